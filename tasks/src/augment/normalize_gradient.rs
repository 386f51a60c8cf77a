//! Gradients of norm 1.

use super::modify_gradient::{dot, GradientMap};
use outerloop_core::{Float, Key};

/// `g / ‖g‖` over all parameters together. A zero gradient stays zero (the reference: NaN).
#[derive(Clone, Copy, Debug)]
pub struct NormalizeGradient;

/// `1 / ‖g‖`, or 0.
fn inverse_norm<E: Float>(grad: &[E]) -> E {
    let norm = num_traits::Float::sqrt(dot(grad, grad));
    if norm == E::of(0.0) {
        norm
    } else {
        E::of(1.0) / norm
    }
}

impl<E: Float> GradientMap<E> for NormalizeGradient {
    fn name(&self) -> String {
        "normalized".into()
    }
    fn apply(&self, grad: &mut [E], _: Key) {
        let r = inverse_norm(grad);
        grad.iter_mut().for_each(|g| *g *= r);
    }
    fn pull_back(&self, grad: &[E], _: Key, v: &[E], out: &mut [E]) {
        // (v − ĝ (ĝ·v)) / ‖g‖ with ĝ = g / ‖g‖
        let r = inverse_norm(grad);
        let along = r * r * dot(grad, v);
        for ((out, g), v) in out.iter_mut().zip(grad).zip(v) {
            *out = r * (*v - *g * along);
        }
    }
}
