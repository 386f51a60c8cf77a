//! Statistics of a whole tensor, squashed for a recurrent network that reads one row per tensor.

use crate::rule::Var;
use outerloop_core::Float;

/// `ln(1e-8 + |x|)`, limited to ±5.
pub fn log_magnitude<E: Float>(x: &Var<E>) -> Var<E> {
    x.abs().shift(1e-8).ln().clip(-5.0, 5.0)
}

/// Mean and variance (the mean squared distance from the mean), length 1 each.
pub fn mean_and_variance<E: Float>(x: &Var<E>) -> [Var<E>; 2] {
    let mean = x.mean();
    let variance = x.spread(&mean);
    [mean, variance]
}
