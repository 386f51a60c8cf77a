//! Amortization models: from a context to a solution.
//!
//! [`Full`] never asks the objective; [`Semi`] starts somewhere and asks it for gradients on the way.

mod full;
mod semi;

pub use full::Full;
pub use semi::{Rule, Semi, Shown, Start, Weights};

use crate::problem::{Problem, Query, Rows};
use outerloop_core::tensor::{Backend, DynParams, Float, Mode};
use outerloop_core::{Key, Layout, Result};

/// A model `ŷ(x; θ)`. Its parameters come first in the buffer, the problem's own behind them.
///
/// Invariants: `layout` and `init` are functions of their arguments; `predict` gives at least one iterate, in space
/// (before [`Problem::project`]); row `n` depends on row `n` of the contexts alone.
pub trait Model: Clone + Send + Sync + 'static {
    /// Short name for reports.
    fn name(&self) -> String;
    /// Errors if its settings do not fit the problem. Default: they do.
    fn check<P: Problem>(&self, _: &P) -> Result<()> {
        Ok(())
    }
    /// Names and shapes of the parameters θ for a problem.
    fn layout<P: Problem>(&self, problem: &P) -> Layout;
    /// Writes initial values of θ.
    fn init<P: Problem>(&self, problem: &P, key: Key, out: &mut [f64]);
    /// The iterates `[N, D]` from the first prediction to the last, which is the model's answer. `params`: θ, then the
    /// problem's own parameters.
    fn predict<P: Problem, E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        problem: &P,
        at: &Query<'_, E, B>,
        params: &DynParams<E, B>,
        m: M,
    ) -> Vec<Rows<E, B, M>>;
}

#[cfg(test)]
mod tests;
