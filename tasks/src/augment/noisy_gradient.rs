//! Gradients with noise of a given relative size.

use super::modify_gradient::{dot, GradientMap};
use outerloop_core::{Error, Float, Key, Result};

/// `g + r ‖g‖ ξ/√P` with `ξ ~ N(0, I)` over all `P` parameters together, drawn anew for every batch:
/// noise whose expected squared norm is `r²` times the gradient's. Unbiased.
#[derive(Clone, Copy, Debug)]
pub struct NoisyGradient {
    ratio: f64,
}

impl NoisyGradient {
    /// Noise of `ratio` times the gradient's norm; finite, not negative.
    pub fn new(ratio: f64) -> Result<Self> {
        if !(ratio.is_finite() && ratio >= 0.0) {
            let why = format!("must be finite and not negative, got {ratio}");
            return Err(Error::invalid("noisy gradient: ratio", why));
        }
        Ok(NoisyGradient { ratio })
    }

    /// `r ξ/√P`
    fn noise<E: Float>(&self, key: Key, out: &mut [E]) {
        key.fill_normal(out);
        let size = E::of(self.ratio / (out.len().max(1) as f64).sqrt());
        out.iter_mut().for_each(|x| *x *= size);
    }
}

impl<E: Float> GradientMap<E> for NoisyGradient {
    fn name(&self) -> String {
        format!("noise{}", self.ratio)
    }
    fn apply(&self, grad: &mut [E], key: Key) {
        let mut noise = vec![E::of(0.0); grad.len()];
        self.noise(key, &mut noise);
        let norm = num_traits::Float::sqrt(dot(grad, grad));
        grad.iter_mut().zip(&noise).for_each(|(g, n)| *g += norm * *n);
    }
    fn pull_back(&self, grad: &[E], key: Key, v: &[E], out: &mut [E]) {
        // v + ĝ (n·v) with n = r ξ/√P; at a zero gradient the norm has no derivative: v
        self.noise(key, out);
        let norm = num_traits::Float::sqrt(dot(grad, grad));
        let along = if norm > E::of(0.0) { dot(out, v) / norm } else { norm };
        for ((out, g), v) in out.iter_mut().zip(grad).zip(v) {
            *out = *v + *g * along;
        }
    }
}
