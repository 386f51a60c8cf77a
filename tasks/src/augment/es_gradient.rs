//! Gradients estimated by evolution strategies.

use super::modify_gradient::dot;
use super::{Augmentation, Wrapped, Wrapper};
use outerloop_core::{BatchKey, Error, Evaluator, FlatTask, Float, Key, Result};
use std::sync::Arc;

/// The same losses with antithetic estimates of the gradient of the smoothed loss,
///
/// `g = 1/N Σᵢ εᵢ (L(p + εᵢ) − L(p − εᵢ)) / (2σ²)`, `εᵢ ~ N(0, σ² I)`,
///
/// drawn anew for every batch, all on the batch's data. Costs `2N + 1` losses.
/// Unbiased for the gradient of `E L(p + ε)`. Reference: `tasks/es_wrapper.py`.
#[derive(Clone, Copy, Debug)]
pub struct EsGradient {
    std: f64,
    pairs: u32,
}

impl Default for EsGradient {
    /// `std` 0.01, 8 pairs.
    fn default() -> Self {
        EsGradient { std: 0.01, pairs: 8 }
    }
}

impl EsGradient {
    /// Perturbations of standard deviation `std > 0`; at least one pair.
    pub fn new(std: f64, pairs: u32) -> Result<Self> {
        if !(std.is_finite() && std > 0.0) {
            let why = format!("must be positive and finite, got {std}");
            return Err(Error::invalid("es gradient: std", why));
        }
        if pairs == 0 {
            return Err(Error::invalid("es gradient: pairs", "must be at least 1, got 0"));
        }
        Ok(EsGradient { std, pairs })
    }
}

impl<E: Float> Augmentation<E> for EsGradient {
    fn name(&self) -> String {
        format!("es{}", self.pairs)
    }
    fn apply(&self, task: Arc<dyn FlatTask<E>>, _: Key) -> Arc<dyn FlatTask<E>> {
        Arc::new(Wrapped { task, augmentation: Augmentation::<E>::name(self), wrapper: *self })
    }
}

impl<E: Float> Wrapper<E> for EsGradient {
    fn evaluator(&self, inner: Box<dyn Evaluator<E>>) -> Box<dyn Evaluator<E>> {
        Box::new(Estimated { inner, config: *self, scratch: Default::default() })
    }
}

struct Estimated<E> {
    inner: Box<dyn Evaluator<E>>,
    config: EsGradient,
    scratch: Scratch<E>,
}

#[derive(Default)]
struct Scratch<E> {
    noise: Vec<E>,
    moved: Vec<E>,
    state: Vec<E>,
    /// Losses and gradients at both signs.
    loss: [E; 2],
    grad: [Vec<E>; 2],
}

impl<E: Float> Estimated<E> {
    /// Calls `f(evaluator, scratch, side)` for both sides of every perturbation, with `scratch.noise = ε`
    /// and `scratch.moved = params ± ε`; then `close(scratch)` per pair.
    fn each_pair(
        &mut self,
        params: &[E],
        at: BatchKey,
        mut f: impl FnMut(&mut dyn Evaluator<E>, &mut Scratch<E>, usize),
        mut close: impl FnMut(&Scratch<E>),
    ) {
        let key = at.noise().named("es");
        let s = &mut self.scratch;
        s.noise.resize(params.len(), E::of(0.0));
        for pair in 0..self.config.pairs {
            key.fold_in(pair.into()).fill_normal(&mut s.noise);
            s.noise.iter_mut().for_each(|e| *e *= E::of(self.config.std));
            for (side, sign) in [1.0, -1.0].into_iter().enumerate() {
                s.moved.clear();
                s.moved.extend(params.iter().zip(&s.noise).map(|(p, e)| *p + E::of(sign) * *e));
                f(&mut *self.inner, s, side);
            }
            close(s);
        }
    }

    /// `1 / (2σ²N)`
    fn weight(&self) -> E {
        E::of(0.5 / (self.config.std * self.config.std * f64::from(self.config.pairs)))
    }

    fn estimate(&mut self, params: &[E], state: &[E], at: BatchKey, grad: &mut [E]) {
        let weight = self.weight();
        grad.fill(E::of(0.0));
        self.each_pair(
            params,
            at,
            |inner, s, side| s.loss[side] = inner.loss(&s.moved, state, at),
            |s| {
                let [plus, minus] = s.loss;
                let slope = weight * (plus - minus);
                grad.iter_mut().zip(&s.noise).for_each(|(g, e)| *g += *e * slope);
            },
        );
    }
}

impl<E: Float> Evaluator<E> for Estimated<E> {
    fn loss(&mut self, params: &[E], state: &[E], at: BatchKey) -> E {
        self.inner.loss(params, state, at)
    }
    fn loss_and_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut [E]) -> E {
        self.estimate(params, state, at, grad);
        if state.is_empty() {
            return self.inner.loss(params, state, at);
        }
        // Only training steps move the state.
        let unused = &mut self.scratch.grad[0];
        unused.resize(params.len(), E::of(0.0));
        self.inner.loss_and_grad(params, state, at, unused)
    }
    fn loss_grad_hvp(
        &mut self,
        params: &[E],
        state: &[E],
        at: BatchKey,
        v: &[E],
        grad: &mut [E],
        hvp: &mut [E],
    ) -> E {
        self.estimate(params, state, at, grad);
        // G'ᵀ v = 1/(2σ²N) Σᵢ (εᵢ·v) (∇L(p + εᵢ) − ∇L(p − εᵢ))
        let weight = self.weight();
        hvp.fill(E::of(0.0));
        self.each_pair(
            params,
            at,
            |inner, s, side| {
                s.state.clear();
                s.state.extend_from_slice(state);
                s.grad[side].resize(params.len(), E::of(0.0));
                inner.loss_and_grad(&s.moved, &mut s.state, at, &mut s.grad[side]);
            },
            |s| {
                let along = weight * dot(&s.noise, v);
                let [plus, minus] = &s.grad;
                for ((h, plus), minus) in hvp.iter_mut().zip(plus).zip(minus) {
                    *h += along * (*plus - *minus);
                }
            },
        );
        self.inner.loss(params, state, at)
    }
}
