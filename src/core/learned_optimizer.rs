//! [`LearnedOptimizer`]: optimizers indexed by meta-parameters.

use crate::{Float, Key, Layout, Optimizer, OptimizerGroup, Result};
use std::sync::Arc;

/// A family of optimizers, indexed by meta-parameters theta. Learning lives outside the optimizer.
///
/// Invariants, checked by [`crate::contract::check_learned_optimizer`]: theta has the length of
/// `theta_layout`; `init` is a pure function of its key; `opt_fn(theta)` keeps [`Optimizer`]'s
/// invariants for theta near `init`.
pub trait LearnedOptimizer<E: Float = f32>: Send + Sync {
    /// Short name for reports and files.
    fn name(&self) -> String;

    /// Architecture and hyperparameters: what a theta file must match, as `name(key=value, ...)`.
    fn architecture(&self) -> String {
        self.name()
    }

    /// Whether every hyperparameter is in its range; see [`Optimizer::validate`].
    ///
    /// # Errors
    /// The first hyperparameter that is out of its range, with the range.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Names and shapes of theta.
    fn theta_layout(&self) -> Arc<Layout>;

    /// Initial theta.
    fn init(&self, key: Key) -> Vec<E>;

    /// The optimizer that theta describes.
    ///
    /// # Panics
    /// If `theta` has not the length of `theta_layout`.
    fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>>;

    /// How many optimizers step fastest as a [`Self::group`] on parameters of `layout`; 1, the default:
    /// each alone.
    fn group_size(&self, layout: &Layout) -> usize {
        let _ = layout;
        1
    }

    /// The optimizers that `thetas` describe, to step together; at most [`Self::group_size`].
    ///
    /// # Panics
    /// If there are more, or a theta has not the length of `theta_layout`.
    fn group(&self, thetas: Vec<Vec<E>>) -> Box<dyn OptimizerGroup<E>> {
        let members: Vec<_> = thetas.iter().map(|theta| self.opt_fn(theta)).collect();
        Box::new(members)
    }
}
