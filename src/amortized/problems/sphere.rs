//! Soft minima of squared distances on the sphere: the tutorial's c-convex functions.
//!
//! Components `zᵢ` on the sphere with offsets `αᵢ`; `cᵢ(y) = dᵢ²/2 + αᵢ` ([`Form::Code`], as the published program has
//! it) or `dᵢ/2 + αᵢ` ([`Form::Text`]), `dᵢ = arccos(ẑᵢ·y)` the geodesic distance; the objective is the soft minimum
//! `−γ ln Σ exp(−cᵢ/γ)`, at `γ = 0` the minimum. The program's arccos has no bounds, and becomes NaN once a prediction
//! hits a component; here every value and derivative is finite: at a component by its series, at the antipode (where
//! the derivative of the squared form is infinite) it is 0.
//!
//! Reference: Amos 2022, arXiv:2202.00665, chapter 4; Cohen, Amos, Lipman 2021, arXiv:2106.10272.

use super::sphere_rows::soft_min;
use crate::matrix::dot;
use crate::problem::{Domain, Optimum, Own, Problem, Query};
use outerloop_core::tensor::{Backend, Float, Mode, Tensor};
use outerloop_core::{BatchKey, Key};
use rand::Rng;
use std::f64::consts::PI;

/// How a distance enters the objective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `d²/2 + α`, as the published program.
    #[default]
    Code,
    /// `d/2 + α`, as the published text.
    Text,
}

/// `[c, c']` without α, as functions of `t = ẑ·y`; see the module's head.
fn cost<E: Float>(t: E, d: E, form: Form) -> [E; 2] {
    let (one, half) = (E::of(1.0), E::of(0.5));
    let root = (one - t * t).sqrt();
    match form {
        Form::Code => {
            let u = one - t;
            let slope = if t <= E::of(-1.0) {
                E::of(0.0)
            } else if u < E::of(1e-3) {
                let k = E::of;
                -(one + u / k(3.0) + k(2.0) * u * u / k(15.0) + k(2.0) * u * u * u / k(35.0))
            } else {
                -d / root
            };
            [half * d * d, slope]
        }
        Form::Text => [half * d, if t.abs() >= one { E::of(0.0) } else { -half / root }],
    }
}

/// One function of the family.
#[derive(Clone, Debug)]
pub struct SoftMin<E = f64> {
    /// Unit vectors, `[K][3]`.
    z: Vec<Vec<E>>,
    /// Offsets, `[K]`.
    alpha: Vec<E>,
    /// Smoothing; 0 is the minimum itself.
    gamma: f64,
    form: Form,
}

/// What [`SoftMin::at`] finds at a point.
#[derive(Clone, Debug)]
pub struct SphereValue<E = f64> {
    /// Distances to the components, `[K]`.
    pub distance: Vec<E>,
    /// The objective.
    pub value: E,
    /// The components' weights: the gradient by α, `[K]`.
    pub weights: Vec<E>,
    /// The gradient by `y` as if it lay in space, `[3]`.
    pub euclidean: Vec<E>,
    /// Its part along the sphere, `[3]`.
    pub riemannian: Vec<E>,
    /// The gradient by `x`, of which `y = x/|x|` is the projection, `[3]`.
    pub through_projection: Vec<E>,
}

/// `x/|x|`.
pub fn project<E: Float>(x: &[E]) -> Vec<E> {
    let norm = dot(x, x).sqrt();
    x.iter().map(|x| *x / norm).collect()
}

/// The VJP of [`project`]: `(v − y (y·v))/|x|`.
pub fn project_vjp<E: Float>(x: &[E], v: &[E]) -> Vec<E> {
    let (norm, y) = (dot(x, x).sqrt(), project(x));
    let along = dot(&y, v);
    v.iter().zip(&y).map(|(v, y)| (*v - *y * along) / norm).collect()
}

impl<E: Float> SoftMin<E> {
    /// A function with components `z` (of any length but 0), offsets and smoothing.
    pub fn new(z: &[Vec<E>], alpha: &[E], gamma: f64, form: Form) -> Self {
        SoftMin { z: z.iter().map(|z| project(z)).collect(), alpha: alpha.to_vec(), gamma, form }
    }

    /// Everything at `x`, of any length but 0.
    pub fn at(&self, x: &[E]) -> SphereValue<E> {
        let (y, one) = (project(x), E::of(1.0));
        let clip = |t: E| {
            if t > one {
                one
            } else if t < -one {
                -one
            } else {
                t
            }
        };
        let t: Vec<E> = self.z.iter().map(|z| clip(dot(z, &y))).collect();
        let distance: Vec<E> = t.iter().map(|t| t.acos()).collect();
        let parts: Vec<[E; 2]> = t.iter().zip(&distance).map(|(t, d)| cost(*t, *d, self.form)).collect();
        let c: Vec<E> = parts.iter().zip(&self.alpha).map(|(p, a)| p[0] + *a).collect();
        let (value, weights) = self.soft_min(&c);
        let mut euclidean = vec![E::of(0.0); y.len()];
        for ((z, p), w) in self.z.iter().zip(&parts).zip(&weights) {
            euclidean.iter_mut().zip(z).for_each(|(g, z)| *g += *w * p[1] * *z);
        }
        let through_projection = project_vjp(x, &euclidean);
        let norm = dot(x, x).sqrt();
        let riemannian = through_projection.iter().map(|g| *g * norm).collect();
        SphereValue { distance, value, weights, euclidean, riemannian, through_projection }
    }

    fn soft_min(&self, c: &[E]) -> (E, Vec<E>) {
        let first = (0..c.len()).fold(0, |best, i| if c[i] < c[best] { i } else { best });
        if self.gamma == 0.0 {
            let weights = (0..c.len()).map(|i| E::of(f64::from(u8::from(i == first)))).collect();
            return (c[first], weights);
        }
        let gamma = E::of(self.gamma);
        let e: Vec<E> = c.iter().map(|x| ((c[first] - *x) / gamma).exp()).collect();
        let sum: E = e.iter().copied().sum();
        (c[first] - gamma * sum.ln(), e.iter().map(|e| *e / sum).collect())
    }

    /// The objective alone.
    pub fn value(&self, x: &[E]) -> E {
        self.at(x).value
    }
}

impl SoftMin<f64> {
    /// The global optimum: Riemannian descent with backtracking from every component and the best of a grid of points,
    /// then Newton's steps in the tangent plane of the best.
    pub fn optimum(&self) -> Optimum {
        let golden = PI * (3.0 - 5f64.sqrt());
        let spiral = (0..60).map(|i| {
            let h = 1.0 - 2.0 * (f64::from(i) + 0.5) / 60.0;
            let (s, c) = (golden * f64::from(i)).sin_cos();
            vec![(1.0 - h * h).sqrt() * c, (1.0 - h * h).sqrt() * s, h]
        });
        // Descents from the best of the grid and from every component; a component is a kink of the text's form and
        // may be the optimum itself.
        let mut grid: Vec<Vec<f64>> = spiral.collect();
        grid.sort_by(|a, b| self.value(a).total_cmp(&self.value(b)));
        let starts = grid.into_iter().take(10).chain(self.z.iter().cloned());
        let candidates = starts.map(|y| self.descend(y, 200)).chain(self.z.iter().cloned());
        let best = candidates.min_by(|a, b| self.value(a).total_cmp(&self.value(b)));
        let mut y = best.expect("a function has components");
        for _ in 0..30 {
            let next = self.newton(&y);
            if self.value(&next) <= self.value(&y) {
                y = next;
            }
        }
        Optimum { value: self.value(&y), y }
    }

    /// `steps` steps of Riemannian descent with backtracking from `y`.
    pub fn descend(&self, mut y: Vec<f64>, steps: usize) -> Vec<f64> {
        let mut rate = 1.0;
        for _ in 0..steps {
            let at = self.at(&y);
            let mut next = exponential(&y, &at.riemannian, rate);
            while self.value(&next) > at.value && rate > 1e-12 {
                rate *= 0.5;
                next = exponential(&y, &at.riemannian, rate);
            }
            if self.value(&next) > at.value {
                break;
            }
            (y, rate) = (next, (rate * 2.0).min(4.0));
        }
        y
    }

    /// A Newton step in the tangent plane, its Hessian by differences of the gradient.
    fn newton(&self, y: &[f64]) -> Vec<f64> {
        let basis = tangents(y);
        let at = |a: f64, b: f64| -> Vec<f64> {
            (0..3).map(|k| y[k] + a * basis[0][k] + b * basis[1][k]).collect()
        };
        let slope = |a: f64, b: f64| {
            let g = self.at(&at(a, b)).through_projection;
            [dot(&g, &basis[0]), dot(&g, &basis[1])]
        };
        let h = 1e-5;
        let column = |p: [f64; 2], m: [f64; 2]| [(p[0] - m[0]) / (2.0 * h), (p[1] - m[1]) / (2.0 * h)];
        let (c0, c1) = (column(slope(h, 0.0), slope(-h, 0.0)), column(slope(0.0, h), slope(0.0, -h)));
        let (g, det) = (slope(0.0, 0.0), c0[0] * c1[1] - c0[1] * c1[0]);
        let (a, b) = ((c1[1] * g[0] - c1[0] * g[1]) / det, (c0[0] * g[1] - c0[1] * g[0]) / det);
        if a.is_finite() && b.is_finite() {
            project(&at(-a, -b))
        } else {
            y.to_vec()
        }
    }
}

/// The point at distance `rate |g|` from `y` against the tangent `g`.
fn exponential(y: &[f64], g: &[f64], rate: f64) -> Vec<f64> {
    let norm = dot(g, g).sqrt();
    if norm == 0.0 {
        return y.to_vec();
    }
    let (s, c) = (rate * norm).sin_cos();
    project(&y.iter().zip(g).map(|(y, g)| c * y - s * g / norm).collect::<Vec<_>>())
}

/// Two orthonormal tangents at `y`.
fn tangents(y: &[f64]) -> [Vec<f64>; 2] {
    let least = (0..3).fold(0, |b, i| if y[i].abs() < y[b].abs() { i } else { b });
    let e: Vec<f64> = (0..3).map(|i| f64::from(u8::from(i == least))).collect();
    let a = project(&project_vjp(y, &e));
    let b = vec![y[1] * a[2] - y[2] * a[1], y[2] * a[0] - y[0] * a[2], y[0] * a[1] - y[1] * a[0]];
    [a, b]
}

/// The family: fresh functions of four components uniform on the sphere, `α = 0.7 U[0, 1)`, or a fixed list of them.
///
/// Context: `[z₁, ..., z_K, α]`, `3 K + K` numbers, which the model sees as they are.
#[derive(Clone, Debug)]
pub struct Sphere {
    /// Components per function; default 4.
    pub components: usize,
    /// Smoothing γ, positive; default 0.5.
    pub gamma: f64,
    /// Contexts that every batch repeats in order; none, the default: fresh ones.
    pub fixed: Vec<Vec<f64>>,
}

impl Default for Sphere {
    fn default() -> Self {
        Sphere { components: 4, gamma: 0.5, fixed: Vec::new() }
    }
}

impl Sphere {
    /// The function of a context, for the oracle.
    pub fn function(&self, context: &[f64]) -> SoftMin {
        let (z, alpha) = context.split_at(3 * self.components);
        let z: Vec<Vec<f64>> = z.chunks(3).map(<[f64]>::to_vec).collect();
        SoftMin::new(&z, alpha, self.gamma, Form::Code)
    }
    /// Contexts from one key, as many as fit.
    fn draw(&self, key: Key, out: &mut [f64]) {
        let (k, width) = (self.components, self.context_dim());
        let mut all = vec![0.0; out.len() / width * 3 * k];
        key.named("z").fill_normal(&mut all);
        let mut rng = key.named("alpha").rng();
        for (row, from) in out.chunks_exact_mut(width).zip(all.chunks_exact(3 * k)) {
            let (z, alpha) = row.split_at_mut(3 * k);
            for (z, from) in z.chunks_exact_mut(3).zip(from.chunks_exact(3)) {
                let norm = dot::<f64>(from, from).sqrt();
                z.iter_mut().zip(from).for_each(|(z, x)| *z = x / norm);
            }
            alpha.iter_mut().for_each(|a| *a = 0.7 * rng.gen::<f64>());
        }
    }
}

impl Problem for Sphere {
    fn name(&self) -> String {
        "sphere".into()
    }
    fn dim(&self) -> usize {
        3
    }
    fn context_dim(&self) -> usize {
        4 * self.components
    }
    fn domain(&self) -> Domain {
        Domain::Sphere
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        self.draw(key, out);
    }
    fn contexts(&self, at: BatchKey, out: &mut [f64]) {
        if self.fixed.is_empty() {
            return self.draw(at.noise(), out);
        }
        let rows = out.chunks_mut(self.context_dim()).enumerate();
        rows.for_each(|(i, row)| row.copy_from_slice(&self.fixed[i % self.fixed.len()]));
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Tensor<(usize, usize), E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        soft_min(y, at.x, self.gamma)
    }
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        Some(self.function(context).optimum())
    }
}

/// `½ arccos(t)²` with first and second derivative, by the series near 1; 0 where the derivative is infinite.
pub(super) fn half_squared_distance<E: Float>(t: E) -> [E; 3] {
    let (one, k) = (E::of(1.0), E::of);
    let u = one - t;
    if u < k(1e-2) {
        // ½ d² = u + u²/6 + 2u³/45 + u⁴/70 + ..., also a little beyond t = 1
        let value = u + u * u / k(6.0) + k(2.0 / 45.0) * u * u * u + k(1.0 / 70.0) * u * u * u * u;
        let slope = -(one + u / k(3.0) + k(2.0 / 15.0) * u * u + k(2.0 / 35.0) * u * u * u);
        return [value, slope, k(1.0 / 3.0) + k(4.0 / 15.0) * u + k(6.0 / 35.0) * u * u];
    }
    if t <= -one {
        return [k(0.5 * PI * PI), k(0.0), k(0.0)];
    }
    let (d, s) = (t.acos(), one - t * t);
    let root = s.sqrt();
    [k(0.5) * d * d, -d / root, one / s - t * d / (s * root)]
}
