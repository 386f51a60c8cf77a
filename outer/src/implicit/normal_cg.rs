//! Conjugate gradients on the normal equation.

use super::vector::{add_scaled, begin, dot, norm, scale_add};
use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::{Float, Interval, Result};

/// Conjugate gradients on `AᵀA q = Aᵀb`, for any invertible `A`, symmetric or not.
///
/// Step n minimizes `‖b − A q‖` over the Krylov space of `AᵀA`. The condition number is that of `A` squared, so it is
/// slow where [`ConjugateGradient`](super::ConjugateGradient) or [`MinRes`](super::MinRes) apply.
///
/// Cost: two products per step. Memory: 4 vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct NormalCg {
    /// Most steps; default 20.
    pub steps: usize,
    /// Ends when the residual `‖b − A q‖` is this much smaller than `b`; default 1e-10.
    pub tolerance: f64,
}

impl Default for NormalCg {
    fn default() -> Self {
        NormalCg { steps: 20, tolerance: 1e-10 }
    }
}

impl<E: Float> InverseHessian<E> for NormalCg {
    fn name(&self) -> String {
        format!("normal-cg {}", self.steps)
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self, _: usize) -> Result<()> {
        Interval::NOT_NEGATIVE.check("normal cg: tolerance", self.tolerance)
    }
    fn solve(&self, a: &mut dyn LinearOperator<E>, b: &[E], start: Option<Vec<E>>) -> Solution<E> {
        let (mut q, mut r, begun) = begin(a, b, start);
        let goal = self.tolerance * norm(b);
        let mut history = vec![norm(&r)];
        let mut s = vec![E::of(0.0); b.len()]; // Aᵀ r
        a.apply_transposed(&r, &mut s);
        let mut p = s.clone();
        let mut gamma = dot(&s, &s);
        let mut ap = vec![E::of(0.0); b.len()];
        let mut products = begun + 1;
        let status = loop {
            let (step, residual) = (history.len(), history[history.len() - 1]);
            if !residual.is_finite() || !gamma.is_finite() {
                break Status::NonFinite;
            }
            if residual <= goal || gamma == 0.0 {
                break Status::Converged;
            }
            if step > self.steps {
                break Status::Truncated;
            }
            a.apply(&p, &mut ap);
            let curvature = dot(&ap, &ap);
            if !(curvature > 0.0 && curvature.is_finite()) {
                products += 1;
                break Status::NonFinite;
            }
            let alpha = gamma / curvature;
            add_scaled(&mut q, alpha, &p);
            add_scaled(&mut r, -alpha, &ap);
            history.push(norm(&r));
            a.apply_transposed(&r, &mut s);
            products += 2;
            let next = dot(&s, &s);
            scale_add(&mut p, next / gamma, &s);
            gamma = next;
        };
        Solution { q, products, history, status }
    }
}
