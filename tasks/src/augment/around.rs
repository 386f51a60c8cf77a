//! The evaluator that all augmentations of a task's own derivatives share.

use outerloop_core::{BatchKey, Evaluator, Float};

/// What an augmentation changes about a task: the task sees parameters `f(p)`, the optimizer sees
/// the gradient `G(p) = m(∇L(f(p)))`, whose transposed derivative is `G'ᵀ v = f'ᵀ H m'(∇L)ᵀ v`.
/// Whatever is not implemented is the identity.
pub(super) trait Wrapper<E: Float>: Clone + Send + Sync + 'static {
    /// Changes initial parameters.
    fn init(&self, params: &mut [E]) {
        let _ = params;
    }
    /// Numbers of model state behind the task's own, for `params` parameters; 0 at the start.
    fn state_len(&self, params: usize) -> usize {
        let _ = params;
        0
    }
    /// `f(p)`; may be written to `room`. `state` is the augmentation's.
    fn seen<'a>(&self, params: &'a [E], state: &'a [E], room: &'a mut Vec<E>) -> &'a [E] {
        let _ = (state, room);
        params
    }
    /// Moves the augmentation's state on, after a training step at `params`.
    fn advance(&self, params: &[E], state: &mut [E]) {
        let _ = (params, state);
    }
    /// `g ← m(g)`
    fn gradient(&self, grad: &mut [E], at: BatchKey) {
        let _ = (grad, at);
    }
    /// Whether `m'` depends on the gradient.
    fn is_linear(&self) -> bool {
        true
    }
    /// `m'(g)ᵀ v`; may be written to `room`. If `m` is linear, `grad` is anything.
    fn pull_back<'a>(&self, grad: &[E], at: BatchKey, v: &'a [E], room: &'a mut Vec<E>) -> &'a [E] {
        let _ = (grad, at, room);
        v
    }
    /// `h ← f'ᵀ h`
    fn product(&self, hvp: &mut [E]) {
        let _ = hvp;
    }
    /// An evaluator around the task's.
    fn evaluator(&self, inner: Box<dyn Evaluator<E>>) -> Box<dyn Evaluator<E>> {
        Box::new(Around { inner, wrapper: self.clone(), scratch: Scratch::default() })
    }
}

struct Around<E, W> {
    inner: Box<dyn Evaluator<E>>,
    wrapper: W,
    scratch: Scratch<E>,
}

#[derive(Default)]
struct Scratch<E> {
    seen: Vec<E>,
    v: Vec<E>,
    grad: Vec<E>,
    state: Vec<E>,
}

impl<E: Float, W: Wrapper<E>> Around<E, W> {
    /// Where the task's own state ends.
    fn split(&self, params: &[E], state: &[E]) -> usize {
        state.len() - self.wrapper.state_len(params.len())
    }
}

impl<E: Float, W: Wrapper<E>> Evaluator<E> for Around<E, W> {
    fn loss(&mut self, params: &[E], state: &[E], at: BatchKey) -> E {
        let (state, own) = state.split_at(self.split(params, state));
        let seen = self.wrapper.seen(params, own, &mut self.scratch.seen);
        self.inner.loss(seen, state, at)
    }

    fn loss_and_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut [E]) -> E {
        let (state, own) = state.split_at_mut(self.split(params, state));
        let seen = self.wrapper.seen(params, own, &mut self.scratch.seen);
        let loss = self.inner.loss_and_grad(seen, state, at, grad);
        self.wrapper.gradient(grad, at);
        self.wrapper.advance(params, own);
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
        let (state, own) = state.split_at(self.split(params, state));
        let Around { inner, wrapper, scratch } = self;
        let seen = wrapper.seen(params, own, &mut scratch.seen);
        if !wrapper.is_linear() {
            scratch.state.clear();
            scratch.state.extend_from_slice(state);
            scratch.grad.resize(params.len(), E::of(0.0));
            inner.loss_and_grad(seen, &mut scratch.state, at, &mut scratch.grad);
        }
        let v = wrapper.pull_back(&scratch.grad, at, v, &mut scratch.v);
        let loss = inner.loss_grad_hvp(seen, state, at, v, grad, hvp);
        wrapper.gradient(grad, at);
        wrapper.product(hvp);
        loss
    }
}
