//! A wrapper that adds weight decay to the gradient.

use super::elementwise::sum_f64;
use outerloop_core::{Float, Interval, Key, OptState, Optimizer, Params, Result, UpdateAdjoint, UpdateVjp};
use std::borrow::Cow;

/// L2 regularization in front of another optimizer: `g ← g + λ p`, and the loss it sees gets the
/// [`LossTerm`].
#[derive(Debug)]
pub struct WeightDecay<E: Float = f32> {
    weight_decay: f64,
    loss_term: LossTerm,
    inner: Box<dyn Optimizer<E>>,
}

/// What [`WeightDecay`] adds to the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum LossTerm {
    /// `λ/2 Σp²`, whose gradient is the one that is added.
    #[default]
    Proper,
    /// `λ Σp²`: learned_optimization's convention, twice the consistent term.
    Reference,
    /// Nothing.
    None,
}

impl LossTerm {
    /// The factor of `λ Σp²`.
    fn factor(self) -> f64 {
        match self {
            LossTerm::Proper => 0.5,
            LossTerm::Reference => 1.0,
            LossTerm::None => 0.0,
        }
    }
}

impl<E: Float> WeightDecay<E> {
    /// Adds `weight_decay * p` to the gradient that `inner` sees.
    pub fn new(weight_decay: f64, loss_term: LossTerm, inner: Box<dyn Optimizer<E>>) -> Self {
        WeightDecay { weight_decay, loss_term, inner }
    }

    /// The regularized gradient and loss.
    fn regularized(&self, params: &[E], grad: &[E], loss: E) -> (Vec<E>, E) {
        let decay = E::of(self.weight_decay);
        let grad = grad.iter().zip(params).map(|(g, p)| *g + decay * *p).collect();
        if self.loss_term == LossTerm::None {
            return (grad, loss);
        }
        let squares: Vec<f64> = params.iter().map(|p| p.f64() * p.f64()).collect();
        let term = self.loss_term.factor() * self.weight_decay * sum_f64(&squares);
        (grad, loss + E::of(term))
    }
}

impl<E: Float> Optimizer<E> for WeightDecay<E> {
    fn name(&self) -> String {
        format!("weight_decay({})", self.inner.name())
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        self.inner.init(params, num_steps, key)
    }
    fn validate(&self) -> Result<()> {
        Interval::NOT_NEGATIVE.check(&format!("{}: weight_decay", self.name()), self.weight_decay)?;
        self.inner.validate()
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let (grad, loss) = self.regularized(&state.params, grad, loss);
        self.inner.update(state, &grad, loss, key)
    }
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        self.inner.evaluation_params(state)
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        self.inner.update_vjp().map(|_| self as _)
    }
}

impl<E: Float> UpdateVjp<E> for WeightDecay<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let (grad, loss) = self.regularized(&before.params, grad, loss);
        let mut adjoint = super::vjp_of(&*self.inner).vjp(before, &grad, loss, key, after, theta);
        let decay = E::of(self.weight_decay);
        let of_loss = adjoint.loss * E::of(2.0 * self.loss_term.factor() * self.weight_decay);
        for ((a, a_g), p) in adjoint.state.params.iter_mut().zip(&adjoint.grad).zip(&before.params) {
            *a += decay * *a_g + of_loss * *p;
        }
        adjoint
    }
}
