//! The curvature taken for a multiple of the identity.

use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::{Float, Interval, Result};

/// `q = scale · b`: no product at all, the "T1-T2" approximation.
///
/// Equal to the first term of a Neumann series of step `scale`. Often of the right sign, for one or few
/// hyperparameters; its length means nothing.
///
/// Reference: Luketina et al. 2016, arXiv:1511.06727.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The inverse of the curvature; default 1.
    pub scale: f64,
}

impl Default for Identity {
    fn default() -> Self {
        Identity { scale: 1.0 }
    }
}

impl<E: Float> InverseHessian<E> for Identity {
    fn name(&self) -> String {
        "identity".into()
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self, _: usize) -> Result<()> {
        Interval::POSITIVE.check("identity: scale", self.scale)
    }
    fn solve(&self, _: &mut dyn LinearOperator<E>, b: &[E], _: Option<Vec<E>>) -> Solution<E> {
        let q = b.iter().map(|b| E::of(self.scale) * *b).collect();
        Solution { q, products: 0, history: Vec::new(), status: Status::Truncated }
    }
}
