//! The functions of the tutorial's figures, with exact values, gradients and optima.
//!
//! Where the published programs slip, the right function stands beside theirs: the arrows of the main example are
//! those of another function (a parenthesis is lost), the density of the maximum-entropy figure is not normalized
//! ([`maxent`]), the fixed points that the figure marks are unstable, and the cubic of the implicit-MAML figure
//! has no minimum on the real line ([`Cubic`]).
//!
//! Reference: Amos 2022, arXiv:2202.00665.

pub mod maxent;

use crate::quadrature::{erf, integrate, normal_mean, roots};
use outerloop_core::Float;
use std::f64::consts::PI;

/// The derivatives of a figure's objective at a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point<E> {
    /// `f`
    pub value: E,
    /// `∂f/∂x`
    pub grad_x: E,
    /// `∂f/∂y`
    pub grad_y: E,
    /// `∂²f/∂y²`
    pub hess_yy: E,
}

/// Which function of the main example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MainExample {
    /// The plotted objective, `σ((y − sin x − x(1 + 0.1 cos x))²/80)`.
    Contour,
    /// The function whose gradients the program draws as arrows, `σ((y − sin x − x + 0.1 cos x)²/80)`.
    Arrow,
}

fn sigmoid<E: Float>(q: E) -> [E; 3] {
    let s = q.fast_sigmoid();
    let d = s * (E::of(1.0) - s);
    [s, d, d * (E::of(1.0) - s - s)]
}

impl MainExample {
    /// Value and derivatives at a context `x` and a solution `y`.
    pub fn at<E: Float>(self, x: E, y: E) -> Point<E> {
        let (s, c, tenth) = (x.sin(), x.cos(), E::of(0.1));
        let (u, slope) = match self {
            // u and ∂u/∂x
            Self::Contour => {
                (y - s - x * (E::of(1.0) + tenth * c), -(c + E::of(1.0) + tenth * c - tenth * x * s))
            }
            Self::Arrow => (y - s - x + tenth * c, -(c + E::of(1.0) + tenth * s)),
        };
        let [value, d, dd] = sigmoid(u * u / E::of(80.0));
        let along = u / E::of(40.0);
        Point {
            value,
            grad_x: d * along * slope,
            grad_y: d * along,
            hess_yy: dd * along * along + d / E::of(40.0),
        }
    }
    /// The optimum of the contours, where the objective is ½.
    pub fn optimum<E: Float>(x: E) -> E {
        x.sin() + x * (E::of(1.0) + E::of(0.1) * x.cos())
    }
    /// The model that the figure draws: `−y*/2 − 0.23 x min(x, 0)`.
    pub fn drawn_model<E: Float>(x: E) -> E {
        let low = if x < E::of(0.0) { x } else { E::of(0.0) };
        E::of(-0.5) * Self::optimum(x) - E::of(0.23) * x * low
    }
}

/// The fixed-point figure's map `g(y) = −2 sin y + 0.9 y (1 + 0.1 cos y)²` on `[-5, 5]`.
pub fn fixed_point_map<E: Float>(y: E) -> [E; 2] {
    let k = E::of(1.0) + E::of(0.1) * y.cos();
    let value = E::of(-2.0) * y.sin() + E::of(0.9) * y * k * k;
    let slope = E::of(-2.0) * y.cos() + E::of(0.9) * k * k - E::of(0.18) * y * k * y.sin();
    [value, slope]
}

/// The squared residual `(g(y) − y)²` of the fixed-point figure, and its slope.
pub fn fixed_point_residual<E: Float>(y: E) -> [E; 2] {
    let [g, d] = fixed_point_map(y);
    [(g - y) * (g - y), E::of(2.0) * (g - y) * (d - E::of(1.0))]
}

/// The fixed points on `[-5, 5]`.
pub fn fixed_points() -> Vec<f64> {
    roots(-5.0, 5.0, 1000, |y| fixed_point_map(y)[0] - y)
}

/// Where the published program marks its fixed point: the largest of 1000 grid points on `[-5, 5]` whose residual
/// is at most 5e-3.
pub fn marked_fixed_point() -> f64 {
    let grid = (0..1000).map(|i| -5.0 + 10.0 * f64::from(i) / 999.0);
    grid.rev().find(|y| (fixed_point_map(*y)[0] - y).abs() <= 5e-3).unwrap_or(f64::NAN)
}

/// `steps` iterates `y ← g(y)` after `start`, which comes first.
pub fn iterate(start: f64, steps: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |y| Some(fixed_point_map(*y)[0])).take(steps + 1).collect()
}

/// `steps` Newton steps on the residual `g(y) − y` after `start`, which comes first.
pub fn newton(start: f64, steps: usize) -> Vec<f64> {
    let next = |y: &f64| {
        let [g, d] = fixed_point_map(*y);
        Some(y - (g - y) / (d - 1.0))
    };
    std::iter::successors(Some(start), next).take(steps + 1).collect()
}

/// The implicit-MAML figure: `F(y) = −y³ − 10 y + λ/2 (y − y₀)²`. Unbounded below for every λ, as the cubic wins; a
/// local minimum exists if the discriminant `λ² − 12 (10 + λ y₀)` is not negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cubic {
    /// The penalty λ.
    pub lambda: f64,
    /// The center of the penalty.
    pub y0: f64,
}

impl Cubic {
    /// `F(y)`.
    pub fn value(self, y: f64) -> f64 {
        -y * y * y - 10.0 * y + 0.5 * self.lambda * (y - self.y0).powi(2)
    }
    /// `λ² − 12 (10 + λ y₀)`.
    pub fn discriminant(self) -> f64 {
        self.lambda * self.lambda - 12.0 * (10.0 + self.lambda * self.y0)
    }
    /// The local minimum and the local maximum, where there are.
    pub fn stationary(self) -> Option<[f64; 2]> {
        let d = self.discriminant();
        (d >= 0.0).then(|| [-1.0, 1.0].map(|s| (self.lambda + s * d.sqrt()) / 6.0))
    }
    /// `dy/dy₀ = λ/(λ − 6 y)` at a stationary point.
    pub fn sensitivity(self, y: f64) -> f64 {
        self.lambda / (self.lambda - 6.0 * y)
    }
    /// The best of `n + 1` grid points on `[-2, 2]`, the plotted range, with its value.
    pub fn best_on_box(self, n: usize) -> (f64, f64) {
        let at = |i: usize| -2.0 + i as f64 * (4.0 / n as f64);
        let values = (0..=n).map(|i| if i == n { 2.0 } else { at(i) }).map(|y| (y, self.value(y)));
        values.fold((f64::NAN, f64::INFINITY), |best, (y, f)| if f < best.1 { (y, f) } else { best })
    }
}

/// The smoothed-loss figure, `f(x) = cos x + 0.2 |x − π/2|`: the function, and `E f(x + σ e)` with its slopes by
/// `x` and `σ`, in closed form.
pub fn smoothed<E: Float>(x: E, sigma: f64) -> [E; 3] {
    let (u, s) = (x.f64() - PI / 2.0, sigma);
    let (z, damp) = (u / (s * 2f64.sqrt()), E::of((-0.5 * s * s).exp()));
    let (bell, error) = ((-z * z).exp() * (2.0 / PI).sqrt(), erf(z));
    let value = x.cos() * damp + E::of(0.2 * (s * bell + u * error));
    let slope = -x.sin() * damp + E::of(0.2 * error);
    [value, slope, -E::of(s) * x.cos() * damp + E::of(0.2 * bell)]
}

/// The function that [`smoothed`] smooths.
pub fn rough(x: f64) -> f64 {
    x.cos() + 0.2 * (x - PI / 2.0).abs()
}

/// Variances of two estimates of the slope of `E f(x + σ e)` from one draw: `f(x + σe) e/σ`, and the antithetic
/// `(f(x + σe) − f(x − σe)) e/(2σ)`, by quadrature.
pub fn smoothed_variances(x: f64, sigma: f64) -> [f64; 2] {
    let slope = smoothed(x, sigma)[1];
    let kink = (PI / 2.0 - x) / sigma;
    let second = |f: &dyn Fn(f64) -> f64| normal_mean(&[kink, -kink], |e| f(e).powi(2)) - slope * slope;
    let one = |e: f64| rough(x + sigma * e) * e / sigma;
    let pair = |e: f64| (rough(x + sigma * e) - rough(x - sigma * e)) * e / (2.0 * sigma);
    [second(&one), second(&pair)]
}

/// The loss-comparison figure: the objective `σ((y₀² + y₁² + 1.4 y₀ y₁)/10)` with its gradient, and the squared
/// distance to the optimum 0 with its gradient.
pub fn loss_comparison<E: Float>(y: [E; 2]) -> (E, [E; 2], E, [E; 2]) {
    let q = (y[0] * y[0] + y[1] * y[1] + E::of(1.4) * y[0] * y[1]) / E::of(10.0);
    let [value, d, _] = sigmoid(q);
    let slope = |a: E, b: E| d * (E::of(2.0) * a + E::of(1.4) * b) / E::of(10.0);
    let grad = [slope(y[0], y[1]), slope(y[1], y[0])];
    (value, grad, y[0] * y[0] + y[1] * y[1], y.map(|y| E::of(2.0) * y))
}

/// The control figure: `Q(u) = (−u² − 7 sin u)/8` and its slope, to be maximized.
pub fn control_q<E: Float>(u: E) -> [E; 2] {
    let eighth = E::of(0.125);
    [(-u * u - E::of(7.0) * u.sin()) * eighth, (E::of(-2.0) * u - E::of(7.0) * u.cos()) * eighth]
}

/// The stationary points of [`control_q`].
pub fn control_stationary() -> Vec<f64> {
    // |2 u| = |7 cos u| ≤ 7
    roots(-3.6, 3.6, 1000, |u| control_q(u)[1])
}

/// A Gaussian policy `N(μ, σ²)` in the control figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GaussianPolicy<E = f64> {
    /// Mean action.
    pub mu: E,
    /// Standard deviation.
    pub sigma: E,
}

/// What [`GaussianPolicy::evaluate`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyValue<E = f64> {
    /// `½ ln(2πe σ²)`
    pub entropy: E,
    /// `E Q(u)`
    pub expected_q: E,
    /// Its slopes by μ and σ.
    pub grad: [E; 2],
    /// `−H − E Q/α`: the divergence from the density proportional to `exp(Q/α)`, up to `ln Z`.
    pub kl: E,
    /// Its slopes by μ and σ.
    pub kl_grad: [E; 2],
}

impl<E: Float> GaussianPolicy<E> {
    /// Closed forms, at temperature `alpha`.
    pub fn evaluate(self, alpha: f64) -> PolicyValue<E> {
        let (m, s) = (self.mu, self.sigma);
        let (seven, eighth) = (E::of(7.0), E::of(0.125));
        let damp = (E::of(-0.5) * s * s).exp();
        let entropy = E::of(0.5 * (2.0 * PI).ln() + 0.5) + s.ln();
        let expected_q = -(m * m + s * s + seven * m.sin() * damp) * eighth;
        let by_mu = -(E::of(2.0) * m + seven * m.cos() * damp) * eighth;
        let by_sigma = -(E::of(2.0) * s - seven * m.sin() * s * damp) * eighth;
        let c = E::of(1.0 / alpha);
        PolicyValue {
            entropy,
            expected_q,
            grad: [by_mu, by_sigma],
            kl: -entropy - expected_q * c,
            kl_grad: [-by_mu * c, -(E::of(1.0) / s) - by_sigma * c],
        }
    }
}

/// `ln ∫ exp(Q(u)/α) du`, by quadrature.
pub fn control_log_normalizer(alpha: f64) -> f64 {
    integrate(-20.0, 20.0, 0.5, |u| (control_q(u)[0] / alpha).exp()).ln()
}

/// The Gaussian policy nearest to `exp(Q/α)`, by descent with backtracking and then Newton's steps with
/// differences of the gradient.
pub fn best_gaussian(alpha: f64) -> GaussianPolicy {
    let policy = |p: [f64; 2]| GaussianPolicy { mu: p[0], sigma: p[1].exp() };
    let value = |p: [f64; 2]| policy(p).evaluate(alpha).kl;
    let grad = |p: [f64; 2]| {
        let q = policy(p);
        let [a, b] = q.evaluate(alpha).kl_grad;
        [a, b * q.sigma]
    };
    let starts = control_stationary().into_iter().map(|u| [u, 0.0]);
    let descend = |mut p: [f64; 2]| {
        let mut step = 0.5;
        for _ in 0..500 {
            let g = grad(p);
            let next = [p[0] - step * g[0], p[1] - step * g[1]];
            if value(next) < value(p) {
                (p, step) = (next, step * 1.2);
            } else {
                step *= 0.5;
            }
        }
        for _ in 0..20 {
            let h = 1e-5;
            let column = |i: usize| {
                let at = |s: f64| grad(std::array::from_fn(|j| p[j] + if i == j { s } else { 0.0 }));
                let (a, b) = (at(h), at(-h));
                [(a[0] - b[0]) / (2.0 * h), (a[1] - b[1]) / (2.0 * h)]
            };
            let (g, c0, c1) = (grad(p), column(0), column(1));
            let det = c0[0] * c1[1] - c0[1] * c1[0];
            p = [p[0] - (c1[1] * g[0] - c1[0] * g[1]) / det, p[1] - (c0[0] * g[1] - c0[1] * g[0]) / det];
        }
        p
    };
    let best = starts.map(descend).min_by(|a, b| value(*a).total_cmp(&value(*b)));
    policy(best.expect("Q has stationary points"))
}
