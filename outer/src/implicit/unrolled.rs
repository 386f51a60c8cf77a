//! The other theory: the derivative through the training steps themselves.

use super::hypergradient::HyperEvaluator;
use super::vector::add_scaled;
use outerloop_core::{
    BatchKey, Error, Float, Interval, Key, OptState, Optimizer, Params, Result, UpdateAdjoint,
};
use std::sync::Arc;

/// Differentiates the validation loss after a number of training steps, by a sweep back through all of them or the
/// last few.
///
/// With `sₜ₊₁ = U(sₜ, ∂L_T/∂w)` for any [`Optimizer`] whose update has a derivative, adjoints `s̄` run back from
/// `∂L_V/∂w` and each step adds `B(ḡ)` to λ's, where `ḡ` is the adjoint of the step's gradient: one joint product per
/// step, since `H (ḡ, 0) = (H ḡ, B(ḡ))`. Exact for that training, wherever it ends; truncated, biased towards the last
/// steps. From an optimum, n steps of gradient descent give what [`Neumann`](super::Neumann) does with `n − 1` terms.
///
/// Cost: a gradient per step and a product per step swept. Memory: an optimizer's state per step swept.
#[derive(Clone)]
pub struct Unrolled<E: Float = f32> {
    /// What trains `w`.
    pub optimizer: Arc<dyn Optimizer<E>>,
    /// Training steps, at least 1.
    pub steps: usize,
    /// Steps that are differentiated, the last ones; `None`: all.
    pub truncate: Option<usize>,
}

/// What an unroll gave.
#[derive(Clone, Debug, PartialEq)]
pub struct UnrolledHypergradient<E> {
    /// The derivative of the validation loss after training by λ; the initial `w` is a constant.
    pub grad: Vec<E>,
    /// Its derivative by the initial `w`, if all steps are differentiated.
    pub initial: Option<Vec<E>>,
    /// The validation loss after training.
    pub valid_loss: f64,
    /// `w` after training.
    pub params: Vec<E>,
}

impl<E: Float> Unrolled<E> {
    /// Of all `steps`.
    pub fn new(optimizer: impl Optimizer<E> + 'static, steps: usize) -> Self {
        Unrolled { optimizer: Arc::new(optimizer), steps, truncate: None }
    }
}

impl<E: Float> HyperEvaluator<E> {
    /// Trains from `joint = [w, λ]` on batches `0, 1, ...` of the training stream `key`, and differentiates the loss on
    /// `valid` after that.
    ///
    /// # Errors
    /// If the optimizer's update has no derivative, there are no steps, or `joint` has another length.
    pub fn unrolled_hypergradient(
        &mut self,
        unrolled: &Unrolled<E>,
        key: Key,
        valid: BatchKey,
        joint: &[E],
    ) -> Result<UnrolledHypergradient<E>> {
        self.problem.check_len(joint)?;
        Interval::COUNT.check("unrolled: steps", unrolled.steps as f64)?;
        let opt = &*unrolled.optimizer;
        let vjp = opt.update_vjp().ok_or_else(|| {
            let why = "its update has no derivative; implement `Optimizer::update_vjp`";
            Error::invalid(format!("optimizer {}", opt.name()), why)
        })?;
        let n = self.problem.params.len();
        let mut point = joint.to_vec();
        let start = Params { layout: self.problem.params.clone(), data: joint[..n].to_vec() };
        let mut state = opt.init(&start, Some(unrolled.steps as u64), key);
        let first = unrolled.steps - unrolled.truncate.unwrap_or(unrolled.steps).min(unrolled.steps);
        let mut grad = vec![E::of(0.0); n];
        let mut states: Vec<(OptState<E>, E)> = Vec::with_capacity(unrolled.steps - first);
        for step in 0..unrolled.steps {
            let at = BatchKey::train(step as u64, key);
            let loss = self.evaluator.loss_and_leading_grad(&point, &mut [], at, &mut grad);
            if step >= first {
                states.push((state.clone(), loss));
            }
            opt.update(&mut state, &grad, loss, key);
            point[..n].copy_from_slice(&state.params);
        }
        let mut all = vec![E::of(0.0); joint.len()];
        let valid_loss = self.evaluator.loss_and_grad(&point, &mut [], valid, &mut all).f64();
        let mut hyper = all.split_off(n);
        let mut adjoint = state.zeros_like();
        adjoint.params = all;
        let (mut full, mut product) = (vec![E::of(0.0); joint.len()], vec![E::of(0.0); joint.len()]);
        let mut direction = vec![E::of(0.0); joint.len()];
        for (step, (before, loss)) in (first..unrolled.steps).zip(&states).rev() {
            let at = BatchKey::train(step as u64, key);
            point[..n].copy_from_slice(&before.params);
            self.evaluator.loss_and_leading_grad(&point, &mut [], at, &mut grad);
            let UpdateAdjoint { state, grad, loss } = vjp.vjp(before, &grad, *loss, key, &adjoint, &mut []);
            direction[..n].copy_from_slice(&grad);
            self.evaluator.loss_grad_hvp(&point, &[], at, &direction, &mut full, &mut product);
            adjoint = state;
            add_scaled(&mut adjoint.params, 1.0, &product[..n]);
            add_scaled(&mut adjoint.params, loss.f64(), &full[..n]);
            add_scaled(&mut hyper, 1.0, &product[n..]);
            add_scaled(&mut hyper, loss.f64(), &full[n..]);
        }
        let initial = (first == 0).then_some(adjoint.params);
        Ok(UnrolledHypergradient { grad: hyper, initial, valid_loss, params: state.params })
    }
}
