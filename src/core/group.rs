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

    /// One update of every member that is not skipped; `updates[i]` is member `i`'s.
    ///
    /// # Panics
    /// If there are not as many updates as members, or a gradient has not the length of its parameters.
    fn update(&self, updates: &mut [MemberUpdate<'_, E>]);
}

/// The arguments of one member's [`Optimizer::update`].
#[derive(Debug)]
pub struct MemberUpdate<'a, E> {
    /// Changed in place.
    pub state: &'a mut OptState<E>,
    /// The gradient at `state.params`, of the same length.
    pub grad: Vec<E>,
    /// The loss that `grad` belongs to.
    pub loss: E,
    /// The training run's key.
    pub key: Key,
    /// Whether the member leaves this update out.
    pub skip: bool,
}

impl<E: Float> MemberUpdate<'_, E> {
    /// Updates the state with `opt`, unless the member is skipped.
    pub fn apply(&mut self, opt: &dyn Optimizer<E>) {
        if !self.skip {
            opt.update(self.state, &self.grad, self.loss, self.key);
        }
    }
}

/// One by one.
impl<E: Float> OptimizerGroup<E> for Vec<Box<dyn Optimizer<E>>> {
    fn member(&self, i: usize) -> &dyn Optimizer<E> {
        &*self[i]
    }
    fn update(&self, updates: &mut [MemberUpdate<'_, E>]) {
        assert_eq!(updates.len(), self.len(), "updates of a group: one per member");
        updates.iter_mut().zip(self).for_each(|(update, member)| update.apply(&**member));
    }
}
