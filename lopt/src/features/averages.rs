//! Running averages of the gradient: `m ← d m + (1 − d) g`, from 0, without bias correction.
//!
//! The slot is decay major: `[decays, n]`, so one decay's averages are contiguous.
//! Reference: Metz et al. 2019, arXiv:1810.10180, section 3.

use crate::Var;
use outerloop_core::Float;

/// The averages after one more value. `slot` `[decays, n]`, `value` `[n]`.
pub fn update<E: Float>(slot: &Var<E>, value: &Var<E>, decays: &[f64]) -> Var<E> {
    let n = value.len();
    // 1 − d is taken in f64: in f32 it would be wrong by 2e-4 for d = 0.9999.
    let next = |(k, d): (usize, &f64)| slot.row(k, n).scale(*d) + value.scale(1.0 - d);
    Var::concat(&decays.iter().enumerate().map(next).collect::<Vec<_>>())
}
