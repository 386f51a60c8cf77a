//! A wrapper that averages gradients over several calls.

use outerloop_core::{Float, Key, OptState, Optimizer, Params, Result, Slot, UpdateAdjoint, UpdateVjp};
use std::borrow::Cow;

/// Gradient accumulation: sums gradients and losses, and at every `num_average`-th call gives their
/// means to another optimizer. Between those calls the parameters rest.
///
/// The inner optimizer counts its own updates: `step / num_average` of `num_steps / num_average`
/// planned ones, both rounded down.
#[derive(Debug)]
pub struct Accumulate<E: Float = f32> {
    num_average: u64,
    inner: Box<dyn Optimizer<E>>,
}

/// The wrapper's slots, behind the inner optimizer's.
const SLOTS: [&str; 2] = ["accumulated_grad", "accumulated_loss"];

impl<E: Float> Accumulate<E> {
    /// Averages over `num_average` calls.
    ///
    /// # Panics
    /// If `num_average` is 0.
    pub fn new(num_average: u64, inner: Box<dyn Optimizer<E>>) -> Self {
        assert!(num_average > 0, "gradient accumulation over 0 calls");
        Accumulate { num_average, inner }
    }

    /// Takes the wrapper's slots off, leaving the state that the inner optimizer knows.
    fn split(&self, state: &mut OptState<E>) -> [Slot<E>; 2] {
        state.step /= self.num_average;
        state.num_steps = state.num_steps.map(|n| n / self.num_average);
        let mut pop = || state.slots.pop().expect("a state made by `init` has the wrapper's slots");
        let loss = pop();
        [pop(), loss]
    }

    /// Whether the inner optimizer moves in the call after `step` calls.
    fn moves(&self, step: u64) -> bool {
        (step + 1) % self.num_average == 0
    }
}

/// The means of what was accumulated and what comes now, written into the slots.
fn average<E: Float>(sums: &mut [Slot<E>; 2], grad: &[E], loss: E, count: E) {
    for (s, g) in sums[0].data.iter_mut().zip(grad) {
        *s = (*s + *g) / count;
    }
    sums[1].data[0] = (sums[1].data[0] + loss) / count;
}

impl<E: Float> Optimizer<E> for Accumulate<E> {
    fn name(&self) -> String {
        format!("accumulate({})", self.inner.name())
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        let inner = self.inner.init(params, num_steps.map(|n| n / self.num_average), key);
        OptState { num_steps, ..inner }.with_zeros(SLOTS[0]).with_slot(SLOTS[1], 1, E::of(0.0))
    }
    fn validate(&self) -> Result<()> {
        self.inner.validate()
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        assert_eq!(grad.len(), state.params.len(), "update: length of the gradient");
        let (step, num_steps) = (state.step, state.num_steps);
        let mut sums = self.split(state);
        if self.moves(step) {
            average(&mut sums, grad, loss, E::of(self.num_average as f64));
            self.inner.update(state, &sums[0].data, sums[1].data[0], key);
            sums.iter_mut().for_each(|s| s.data.fill(E::of(0.0)));
        } else {
            average(&mut sums, grad, loss, E::of(1.0));
        }
        state.slots.extend(sums);
        (state.step, state.num_steps) = (step + 1, num_steps);
    }
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        let mut inner = state.clone();
        self.split(&mut inner);
        Cow::Owned(self.inner.evaluation_params(&inner).into_owned())
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        self.inner.update_vjp().map(|_| self as _)
    }
}

impl<E: Float> UpdateVjp<E> for Accumulate<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        if !self.moves(before.step) {
            let [.., sum, sum_loss] = &after.slots[..] else {
                unreachable!("a state made by `init` has the wrapper's slots")
            };
            let (grad, loss) = (sum.data.clone(), sum_loss.data[0]);
            return UpdateAdjoint { state: after.clone(), grad, loss };
        }
        let count = E::of(self.num_average as f64);
        let (mut inner_before, mut inner_after) = (before.clone(), after.clone());
        let mut sums = self.split(&mut inner_before);
        self.split(&mut inner_after);
        average(&mut sums, grad, loss, count);
        let inner = super::vjp_of(&*self.inner);
        let mut adjoint = inner.vjp(&inner_before, &sums[0].data, sums[1].data[0], key, &inner_after, theta);
        // The mean depends on the sum and on the new gradient alike.
        adjoint.grad.iter_mut().for_each(|a| *a /= count);
        adjoint.loss /= count;
        let of_sums = [adjoint.grad.clone(), vec![adjoint.loss]];
        adjoint
            .state
            .slots
            .extend(SLOTS.iter().zip(of_sums).map(|(name, data)| Slot { name: name.to_string(), data }));
        (adjoint.state.step, adjoint.state.num_steps) = (before.step, before.num_steps);
        adjoint
    }
}
