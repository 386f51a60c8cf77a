//! Second-moment normalization: a feature over one tensor is divided by its root mean square, which
//! makes learned updates independent of the scale of the task.

use crate::rule::Var;
use outerloop_core::Float;

/// Added to the mean square, so that a feature that is zero everywhere stays zero.
pub const EPSILON: f64 = 1e-5;

/// `x (ε + mean(x²))^-½`, the mean over the tensor. `x` `[n]`.
pub fn second_moment<E: Float>(x: &Var<E>) -> Var<E> {
    x * x.square().mean().shift(EPSILON).rsqrt()
}

/// The same for each of `matrices` equal parts of `x`, with another ε.
pub fn second_moment_per_matrix<E: Float>(x: &Var<E>, matrices: usize, epsilon: f64) -> Var<E> {
    let extents = [matrices, x.len() / matrices, 1];
    x * x.square().mean_axis(extents).shift(epsilon).rsqrt().expand_axis(extents)
}
