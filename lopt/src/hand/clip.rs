//! Wrappers that clip the gradient.

use super::elementwise::sum_f64;
use outerloop_core::{
    nan, Float, Interval, Key, OptState, Optimizer, Params, Result, UpdateAdjoint, UpdateVjp,
};
use std::borrow::Cow;

/// Clips the gradient before another optimizer sees it.
#[derive(Debug)]
pub struct Clip<E: Float = f32> {
    rule: ClipRule,
    inner: Box<dyn Optimizer<E>>,
}

/// How [`Clip`] clips.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum ClipRule {
    /// Every element to `[-c, c]`; NaN stays. The derivative is 0 outside and 1 inside, the bounds
    /// included.
    Value(f64),
    /// The whole gradient is scaled to the norm `c` if its 2-norm over all tensors exceeds `c`. One NaN
    /// makes the norm, and so all elements, NaN.
    GlobalNorm(f64),
}

impl<E: Float> Clip<E> {
    /// Clips by this rule in front of `inner`.
    pub fn new(rule: ClipRule, inner: Box<dyn Optimizer<E>>) -> Self {
        Clip { rule, inner }
    }
}

fn norm<E: Float>(x: &[E]) -> f64 {
    let squares: Vec<f64> = x.iter().map(|x| x.f64() * x.f64()).collect();
    sum_f64(&squares).sqrt()
}

impl ClipRule {
    /// The clipped gradient.
    pub fn clip<E: Float>(self, grad: &[E]) -> Vec<E> {
        match self {
            ClipRule::Value(c) => grad.iter().map(|g| nan::clamp(*g, E::of(-c), E::of(c))).collect(),
            ClipRule::GlobalNorm(c) => {
                // 1 up to the norm c, c/|g| above it, NaN if there is no norm.
                let scale = E::of(nan::min(1.0, c / norm(grad)));
                grad.iter().map(|g| *g * scale).collect()
            }
        }
    }

    /// Turns the adjoint of the clipped gradient into that of the gradient, in place.
    fn clip_vjp<E: Float>(self, grad: &[E], adjoint: &mut [E]) {
        match self {
            ClipRule::Value(c) => {
                for (a, g) in adjoint.iter_mut().zip(grad) {
                    if num_traits::Float::abs(*g).f64() > E::of(c).f64() {
                        *a = E::of(0.0);
                    }
                }
            }
            ClipRule::GlobalNorm(c) => {
                let norm = norm(grad);
                if norm <= c {
                    return;
                }
                // d(c g/|g|) = c/|g| (dg − g (g·dg)/|g|²), a symmetric map.
                let products: Vec<f64> = grad.iter().zip(&*adjoint).map(|(g, a)| g.f64() * a.f64()).collect();
                let along = sum_f64(&products) / (norm * norm);
                for (a, g) in adjoint.iter_mut().zip(grad) {
                    *a = E::of(c / norm * (a.f64() - along * g.f64()));
                }
            }
        }
    }
}

impl<E: Float> Optimizer<E> for Clip<E> {
    fn name(&self) -> String {
        match self.rule {
            ClipRule::Value(_) => format!("value_clip({})", self.inner.name()),
            ClipRule::GlobalNorm(_) => format!("norm_clip({})", self.inner.name()),
        }
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        self.inner.init(params, num_steps, key)
    }
    fn validate(&self) -> Result<()> {
        let (ClipRule::Value(bound) | ClipRule::GlobalNorm(bound)) = self.rule;
        Interval::POSITIVE.check(&format!("{}: bound", self.name()), bound)?;
        self.inner.validate()
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        self.inner.update(state, &self.rule.clip(grad), loss, key)
    }
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        self.inner.evaluation_params(state)
    }
    fn clipped(&self, grad: &[E]) -> f64 {
        let changed = self.rule.clip(grad).iter().zip(grad).filter(|(c, g)| c != g).count();
        changed as f64 / grad.len().max(1) as f64
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        self.inner.update_vjp().map(|_| self as _)
    }
}

impl<E: Float> UpdateVjp<E> for Clip<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let mut adjoint =
            super::vjp_of(&*self.inner).vjp(before, &self.rule.clip(grad), loss, key, after, theta);
        self.rule.clip_vjp(grad, &mut adjoint.grad);
        adjoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping() {
        let g = [3.0, -4.0, 0.5, f64::NAN];
        let by_value = ClipRule::Value(1.0).clip(&g);
        assert_eq!(by_value[..3], [1.0, -1.0, 0.5]);
        assert!(by_value[3].is_nan());
        assert_eq!(ClipRule::GlobalNorm(2.5).clip(&[3.0f32, -4.0]), [1.5, -2.0]);
        assert_eq!(ClipRule::GlobalNorm(6.0).clip(&[3.0f32, -4.0]), [3.0, -4.0]);
        assert_eq!(ClipRule::GlobalNorm(1.0).clip(&[0.0f32]), [0.0]);
        // Elements beside NaN would pass without limit.
        assert!(ClipRule::GlobalNorm(1.0).clip(&[f32::NAN, 1e6]).iter().all(|g| g.is_nan()));
    }
}
