//! [`OptimizerGroup`]: optimizers that step together because that is faster.

use crate::{Float, Key, OptState, Optimizer};

/// Optimizers of one rule, each at its own theta, that step together: made by
/// [`LearnedOptimizer::group`](crate::LearnedOptimizer::group).
///
/// Invariant, checked by [`crate::contract::check_group`]: together they do what each does alone, to the
/// bit. Who is in a group with whom changes nothing but the time.
pub trait OptimizerGroup<E: Float = f32>: Send + Sync {
    /// The optimizer of member `i` by itself.
    fn member(&self, i: usize) -> &dyn Optimizer<E>;

    /// One update of every member that does not rest; `turns[i]` is member `i`'s.
    ///
    /// # Panics
    /// If there are not as many turns as members, or a gradient has not the length of its parameters.
    fn update(&self, turns: &mut [Turn<'_, E>]);
}

/// The arguments of one member's [`Optimizer::update`].
#[derive(Debug)]
pub struct Turn<'a, E> {
    /// Changed in place.
    pub state: &'a mut OptState<E>,
    /// The gradient at `state.params`, of the same length.
    pub grad: Vec<E>,
    /// The loss that `grad` belongs to.
    pub loss: E,
    /// The training run's key.
    pub key: Key,
    /// Whether the member leaves this update out.
    pub rests: bool,
}

impl<E: Float> Turn<'_, E> {
    /// Takes the turn with `opt`, unless the member rests.
    pub fn take(&mut self, opt: &dyn Optimizer<E>) {
        if !self.rests {
            opt.update(self.state, &self.grad, self.loss, self.key);
        }
    }
}

/// One by one.
impl<E: Float> OptimizerGroup<E> for Vec<Box<dyn Optimizer<E>>> {
    fn member(&self, i: usize) -> &dyn Optimizer<E> {
        &*self[i]
    }
    fn update(&self, turns: &mut [Turn<'_, E>]) {
        assert_eq!(turns.len(), self.len(), "turns of a group: one per member");
        turns.iter_mut().zip(self).for_each(|(turn, member)| turn.take(&**member));
    }
}
