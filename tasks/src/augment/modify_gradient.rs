//! Gradients changed on their way to the optimizer.

use super::{Augmentation, Wrapped, Wrapper};
use outerloop_core::{BatchKey, Evaluator, FlatTask, Float, Key};
use std::sync::Arc;

/// A function of the gradient, and its derivative.
pub trait GradientMap<E: Float = f32>: Clone + Send + Sync + 'static {
    /// Short name for reports.
    fn name(&self) -> String;
    /// Replaces `grad` by its image. The key is the batch's: the same for every evaluation of a batch.
    fn apply(&self, grad: &mut [E], key: Key);
    /// Overwrites `out` with the transposed derivative at `grad` times `v`, for the same key.
    fn pull_back(&self, grad: &[E], key: Key, v: &[E], out: &mut [E]);
}

/// The same losses with gradients changed by a [`GradientMap`].
#[derive(Clone, Copy, Debug)]
pub struct ModifyGradient<G>(pub G);

impl<E: Float, G: GradientMap<E>> Augmentation<E> for ModifyGradient<G> {
    fn name(&self) -> String {
        self.0.name()
    }
    fn apply(&self, task: Arc<dyn FlatTask<E>>, _: Key) -> Arc<dyn FlatTask<E>> {
        Arc::new(Wrapped { task, augmentation: self.0.name(), wrapper: self.clone() })
    }
}

impl<E: Float, G: GradientMap<E>> Wrapper<E> for ModifyGradient<G> {
    fn evaluator(&self, inner: Box<dyn Evaluator<E>>) -> Box<dyn Evaluator<E>> {
        let map = self.0.clone();
        Box::new(Modified { inner, map, state: Vec::new(), grad: Vec::new(), v: Vec::new() })
    }
}

struct Modified<E, G> {
    inner: Box<dyn Evaluator<E>>,
    map: G,
    state: Vec<E>,
    grad: Vec<E>,
    v: Vec<E>,
}

fn key(at: BatchKey) -> Key {
    at.noise().named("gradient map")
}

impl<E: Float, G: GradientMap<E>> Evaluator<E> for Modified<E, G> {
    fn loss(&mut self, params: &[E], state: &[E], at: BatchKey) -> E {
        self.inner.loss(params, state, at)
    }
    fn loss_and_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut [E]) -> E {
        let loss = self.inner.loss_and_grad(params, state, at, grad);
        self.map.apply(grad, key(at));
        loss
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
        // G = m(∇L): G'ᵀ v = H m'(∇L)ᵀ v
        self.state.clear();
        self.state.extend_from_slice(state);
        self.grad.resize(params.len(), E::of(0.0));
        self.v.resize(params.len(), E::of(0.0));
        self.inner.loss_and_grad(params, &mut self.state, at, &mut self.grad);
        self.map.pull_back(&self.grad, key(at), v, &mut self.v);
        let loss = self.inner.loss_grad_hvp(params, state, at, &self.v, grad, hvp);
        self.map.apply(grad, key(at));
        loss
    }
}

/// `a · b`
pub(super) fn dot<E: Float>(a: &[E], b: &[E]) -> E {
    a.iter().zip(b).map(|(a, b)| *a * *b).sum()
}
