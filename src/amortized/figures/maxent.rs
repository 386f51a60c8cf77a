//! The maximum-entropy figure: a density on a grid, standardized, whose entropy is ascended.
//!
//! `v(x) = exp(−½ ((x − φ₀)/s)² + a sin(b x))` on 1000 points of `[-5, 5]`, normalized by right Riemann sums, and the
//! map `X = (x − mean)/std` to mean 0 and variance 1. The published program divides the density by the diagonal of the
//! *full* Jacobian of that map, in which mean and std depend on each grid point; then the density's mass is not 1,
//! and its entropy can pass that of the normal, the largest there is. [`Jacobian::Clean`] divides by `1/std`.

use outerloop_core::ops::{self, Through};
use outerloop_core::tensor::{
    Backend, Const, Cpu, Float, HasShape, Host, Mode, NoneTape, PutTape, Rank0, Tensor, TensorFromVec,
};

/// Which Jacobian the density is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jacobian {
    /// The published program's.
    Full,
    /// `1/std`: the density keeps its mass.
    Clean,
}

/// Points of the grid.
const POINTS: usize = 1000;

fn grid() -> Vec<f64> {
    (0..POINTS).map(|i| -5.0 + 10.0 * i as f64 / (POINTS - 1) as f64).collect()
}

/// The standardized density: places `X`, densities `Y`, and what there is to say about them.
#[derive(Clone, Debug, PartialEq)]
pub struct Density {
    /// Places, `[1000]`.
    pub x: Vec<f64>,
    /// Densities, `[1000]`.
    pub y: Vec<f64>,
    /// `Σ Y dX`.
    pub mass: f64,
    /// `Σ X Y dX`.
    pub mean: f64,
    /// The root of `Σ (X − mean)² Y dX`.
    pub std: f64,
}

type Vector<E, B, M = NoneTape> = Tensor<(usize,), E, B, M>;

/// Places and densities as tensors: `phi` is `[φ₀, a, b]`, or `[φ₀, s, a, b]`.
fn density<E: Float, B: Backend<E>, M: Mode<E, B>>(
    phi: &Vector<E, B, M>,
    jacobian: Jacobian,
) -> (Vector<E, B, M>, Vector<E, B, M>) {
    let (n, dev) = (phi.shape().0, phi.device().clone());
    let data =
        |v: Vec<f64>| -> Vector<E, B> { dev.tensor_from_vec(v.into_iter().map(E::of).collect(), (POINTS,)) };
    let part = |i: usize| -> Tensor<Rank0, E, B, M> {
        ops::reshape(ops::columns(ops::reshape(phi.clone(), (1, n)), i, Const::<1>), ())
    };
    let x = grid();
    let step: Vec<f64> = (0..POINTS).map(|i| if i == 0 { 0.0 } else { x[i] - x[i - 1] }).collect();
    let (xs, dx) = (data(x.clone()), data(step));
    let traced = |v: &Vector<E, B>| -> Vector<E, B, M> { v.clone().put_tape(M::default()) };
    let mut z = ops::sub(traced(&xs), &part(0));
    if n == 4 {
        z = ops::div(z, &part(1));
    }
    let wave = ops::mul(ops::sin(ops::mul(traced(&xs), &part(n - 1))), &part(n - 2));
    let v = ops::exp(ops::add(ops::scale(ops::square(z), -0.5), &wave));
    let y = ops::div(v.clone(), &ops::sum(ops::mul(v, &dx)));
    let w = ops::mul(y.clone(), &dx);
    let mean = ops::sum(ops::mul(w.clone(), &xs));
    let off = ops::sub(traced(&xs), &mean);
    let var = ops::sum(ops::mul(ops::square(off.clone()), &w));
    let std = ops::sqrt(var.clone());
    let places = ops::div(off.clone(), &std);
    let density = match jacobian {
        Jacobian::Clean => ops::mul(y, &std),
        Jacobian::Full => {
            // ∂mean/∂xᵢ = wᵢ + xᵢ yᵢ [i > 0] − xᵢ₊₁ yᵢ₊₁; dx depends on x, too. With q = (x − mean)² y:
            // ∂var/∂xᵢ = 2 (xᵢ − mean) wᵢ + qᵢ [i > 0] − qᵢ₊₁ − 2 Σ (x − mean) w ∂mean/∂xᵢ
            let xy = ops::mul(y.clone(), &xs);
            let q = ops::mul(ops::square(off.clone()), &y);
            let d_mean = ops::add(w.clone(), &ends(xy));
            let skew = ops::sum(ops::mul(off.clone(), &w));
            let own = ops::scale(ops::mul(off.clone(), &w), 2.0);
            let d_var = ops::sub(ops::add(own, &ends(q)), &ops::scale(ops::mul(d_mean.clone(), &skew), 2.0));
            // J = (1 − ∂mean)/std − (x − mean)/std² ∂std,  ∂std = ∂var/(2 std)
            let d_std = ops::div(ops::scale(d_var, 0.5), &std);
            let first = ops::div(ops::affine(d_mean, -1.0, 1.0), &std);
            ops::div(y, &ops::sub(first, &ops::div(ops::mul(off, &d_std), &var)))
        }
    };
    (places, density)
}

/// `zᵢ [i > 0] − zᵢ₊₁`.
fn ends<E: Float, B: Backend<E>, M: Mode<E, B>>(z: Vector<E, B, M>) -> Vector<E, B, M> {
    let n = POINTS;
    let row = ops::reshape(z, (1, n));
    let after = ops::columns(row, 1, n - 1);
    let zero = ops::scale(ops::columns(after.clone(), 0, 1usize), 0.0);
    let own = ops::concat(zero.clone(), &after);
    ops::reshape(ops::sub(own, &ops::concat(after, &zero)), (n,))
}

/// `dXᵢ = Xᵢ − Xᵢ₋₁`, 0 first.
fn steps<E: Float, B: Backend<E>, M: Mode<E, B>>(x: Vector<E, B, M>) -> Vector<E, B, M> {
    let n = POINTS;
    let row = ops::reshape(x, (1, n));
    let d = ops::sub(ops::columns(row.clone(), 1, n - 1), &ops::columns(row, 0, n - 1));
    let zero = ops::scale(ops::columns(d.clone(), 0, 1usize), 0.0);
    ops::reshape(ops::concat(zero, &d), (n,))
}

/// `−Σ Y ln(Y + 10⁻⁸) dX`.
fn entropy_of<E: Float, B: Backend<E>, M: Mode<E, B>>(
    phi: Vector<E, B, M>,
    jacobian: Jacobian,
) -> Tensor<Rank0, E, B, M> {
    let (x, y) = density(&phi, jacobian);
    let log = ops::ln(ops::shift(y.clone(), 1e-8));
    ops::neg(ops::sum(ops::mul(ops::mul(y, &log), &steps(x))))
}

/// Entropy at `phi` and its gradient.
///
/// # Panics
/// If `phi` has neither 3 nor 4 elements.
#[track_caller]
pub fn entropy<E: Float>(phi: &[E], jacobian: Jacobian) -> (E, Vec<E>)
where
    Cpu: Host<E>,
{
    assert!(phi.len() == 3 || phi.len() == 4, "maxent: 3 or 4 parameters, got {}", phi.len());
    let dev = Cpu::default();
    let phi: Vector<E, Cpu> = dev.tensor_from_vec(phi.to_vec(), (phi.len(),));
    let f = move |phi: Vector<E, Cpu, _>, _| entropy_of(phi, jacobian);
    let (value, grad) = ops::value_and_gradient(phi, Vec::new(), Through::Stopped, f);
    (value, outerloop_core::tensor::host_data(&grad).to_vec())
}

/// Gradient ascent on the entropy: entropies and parameters before each update, and after the last.
pub fn ascend<E: Float>(phi: &[E], step: f64, updates: usize, jacobian: Jacobian) -> (Vec<E>, Vec<Vec<E>>)
where
    Cpu: Host<E>,
{
    let (mut phi, mut entropies, mut path) = (phi.to_vec(), Vec::new(), Vec::new());
    for t in 0..=updates {
        let (h, grad) = entropy(&phi, jacobian);
        entropies.push(h);
        path.push(phi.clone());
        if t < updates {
            phi.iter_mut().zip(grad).for_each(|(p, g)| *p += E::of(step) * g);
        }
    }
    (entropies, path)
}

/// The standardized density at `phi`.
pub fn standardized(phi: &[f64], jacobian: Jacobian) -> Density {
    let phi: Vector<f64, Cpu> = Cpu::default().tensor_from_vec(phi.to_vec(), (phi.len(),));
    let (x, y) = density(&phi, jacobian);
    let (x, y) = (x.as_vec(), y.as_vec());
    let sum = |f: &dyn Fn(usize) -> f64| (1..POINTS).map(|i| f(i) * y[i] * (x[i] - x[i - 1])).sum::<f64>();
    let (mass, mean) = (sum(&|_| 1.0), sum(&|i| x[i]));
    let std = sum(&|i| (x[i] - mean).powi(2)).sqrt();
    Density { x, y, mass, mean, std }
}

/// The entropy of the same density on the whole grid range, by quadrature: of the continuous density on `[-5, 5]`,
/// standardized.
pub fn continuous_entropy(phi: &[f64]) -> f64 {
    let (s, [a, b]) = match *phi {
        [_, a, b] => (1.0, [a, b]),
        [_, s, a, b] => (s, [a, b]),
        _ => return f64::NAN,
    };
    let log_v = |x: f64| -0.5 * ((x - phi[0]) / s).powi(2) + a * (b * x).sin();
    let integral =
        |f: &dyn Fn(f64) -> f64| crate::quadrature::integrate(-5.0, 5.0, 0.1, |x| log_v(x).exp() * f(x));
    let z = integral(&|_| 1.0);
    let mean = integral(&|x| x) / z;
    let var = integral(&|x| (x - mean).powi(2)) / z;
    // −∫ p ln p − ln std
    -integral(&log_v) / z + z.ln() - 0.5 * var.ln()
}
