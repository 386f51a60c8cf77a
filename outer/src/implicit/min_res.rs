//! The minimal residual method.

use super::vector::{add_scaled, begin, dot, norm};
use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::{Float, Interval, Result};

/// MINRES: step n minimizes `‖b − A q‖` over the n-th Krylov space, for any symmetric `A`, indefinite ones too.
///
/// What conjugate gradients are for `A ≻ 0`, at the same cost; the residual never grows. At a saddle `A⁻¹ b` is the
/// derivative of nothing that training does: see the facts in [`super`].
///
/// Cost: a product per step. Memory: 6 vectors.
///
/// Reference: Paige, Saunders 1975.
#[derive(Clone, Debug, PartialEq)]
pub struct MinRes {
    /// Most steps; default 20.
    pub steps: usize,
    /// Ends when the residual is this much smaller than `b`; default 1e-10.
    pub tolerance: f64,
}

impl Default for MinRes {
    fn default() -> Self {
        MinRes { steps: 20, tolerance: 1e-10 }
    }
}

impl<E: Float> InverseHessian<E> for MinRes {
    fn name(&self) -> String {
        format!("minres {}", self.steps)
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self, _: usize) -> Result<()> {
        Interval::NOT_NEGATIVE.check("minres: tolerance", self.tolerance)
    }
    fn solve(&self, a: &mut dyn LinearOperator<E>, b: &[E], start: Option<Vec<E>>) -> Solution<E> {
        let n = b.len();
        let zero = || vec![E::of(0.0); n];
        let (mut q, mut v, mut products) = begin(a, b, start);
        let goal = self.tolerance * norm(b);
        let mut beta = norm(&v);
        let mut history = vec![beta];
        let (mut v_old, mut av) = (zero(), zero());
        // Directions of the last two steps.
        let (mut w, mut w_old) = (zero(), zero());
        // Residual left, and the last two rotations.
        let mut rest = beta;
        let (mut c, mut s, mut c_old, mut s_old) = (1.0, 0.0, 1.0, 0.0);
        let status = loop {
            let (step, residual) = (history.len(), history[history.len() - 1]);
            if !residual.is_finite() {
                break Status::NonFinite;
            }
            if residual <= goal || beta == 0.0 {
                break Status::Converged;
            }
            if step > self.steps {
                break Status::Truncated;
            }
            // Lanczos: A v = β v_old + α v + β' v'
            let scale = E::of(1.0 / beta);
            v.iter_mut().for_each(|v| *v *= scale);
            a.apply(&v, &mut av);
            products += 1;
            let alpha = dot(&v, &av);
            if step > 1 {
                add_scaled(&mut av, -beta, &v_old);
            }
            add_scaled(&mut av, -alpha, &v);
            let beta_next = norm(&av);
            // The new column of the tridiagonal matrix, rotated to an upper triangle.
            let beta_before = if step > 1 { beta } else { 0.0 };
            let r3 = s_old * beta_before;
            let shifted = c_old * beta_before;
            let r2 = c * shifted + s * alpha;
            let diagonal = c * alpha - s * shifted;
            let r1 = diagonal.hypot(beta_next);
            if !(r1 > 0.0 && r1.is_finite()) {
                break Status::NonFinite;
            }
            (c_old, s_old) = (c, s);
            (c, s) = (diagonal / r1, beta_next / r1);
            // w' = (v − r3 w_old − r2 w) / r1
            for i in 0..n {
                let next = (v[i] - E::of(r3) * w_old[i] - E::of(r2) * w[i]) * E::of(1.0 / r1);
                w_old[i] = next;
            }
            std::mem::swap(&mut w, &mut w_old);
            add_scaled(&mut q, c * rest, &w);
            rest *= -s;
            history.push(rest.abs());
            beta = beta_next;
            std::mem::swap(&mut v_old, &mut v);
            std::mem::swap(&mut v, &mut av);
        };
        Solution { q, products, history, status }
    }
}
