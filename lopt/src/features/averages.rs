//! Running averages: `a ← (1 − r) a + r x`, from 0, without bias correction. Of the gradient they
//! are momenta, of its square RMS accumulators.
//!
//! A slot is decay major: `[decays, n]`, so one decay's averages are contiguous. Rates `r = 1 − d`
//! are kept instead of decays d, which in f32 would lose digits near 1.
//! Reference: Metz et al. 2019, arXiv:1810.10180, section 3.

use crate::rule::{Theta, Var};
use outerloop_core::Float;

/// The averages after one more value. `slot` `[rates, n]`, `value` `[n]`.
pub fn update<E: Float>(slot: &Var<E>, value: &Var<E>, rates: &[Var<E>]) -> Var<E> {
    let n = value.len();
    let next = |(k, r): (usize, &Var<E>)| step(&slot.row(k, n), value, r);
    Var::concat(&rates.iter().enumerate().map(next).collect::<Vec<_>>())
}

/// One average after one more value.
pub fn step<E: Float>(average: &Var<E>, value: &Var<E>, rate: &Var<E>) -> Var<E> {
    average * (Var::scalar(1.0) - rate) + value * rate
}

/// The rates of fixed decays.
pub fn fixed_rates<E: Float>(decays: &[f64]) -> Vec<Var<E>> {
    decays.iter().map(|d| Var::scalar(1.0 - d)).collect()
}

/// The rates of decays that theta moves: `r = (1 − d) exp(10 θ)`, where `theta` holds one θ per
/// decay under `name`, initially 0.
pub fn learned_rates<E: Float>(theta: &Theta<E>, name: &str, decays: &[f64]) -> Vec<Var<E>> {
    let offsets = theta.get(name);
    let rate = |(k, d): (usize, &f64)| offsets.slice(k..k + 1).scale(10.0).exp().scale(1.0 - d);
    decays.iter().enumerate().map(rate).collect()
}
