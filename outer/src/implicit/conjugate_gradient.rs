//! Conjugate gradients.

use super::vector::{begin, dot, norm, sum_by};
use super::{InverseHessian, LinearOperator, Preconditioner, Solution, Status};
use outerloop_core::{Float, Interval, Result};

/// Conjugate gradients, preconditioned or not: step n minimizes `½ qᵀA q − bᵀq` over the n-th Krylov space.
///
/// Needs `A ≻ 0`. Where the curvature along a search direction is not positive, the iterate before is returned as
/// [`Status::Indefinite`] (truncated CG): going on would leave the direction in which training moves. Exact after as
/// many steps as `A` has distinct eigenvalues, up to rounding; truncated, it is biased towards large eigenvalues, but
/// less than a Neumann series of the same cost. Scalar products are summed in f64.
///
/// Cost: a product per step. Memory: 4 vectors, two of them in f64, and those of the preconditioner.
///
/// Reference: Hestenes, Stiefel 1952; truncation: Steihaug 1983.
#[derive(Clone, Debug, PartialEq)]
pub struct ConjugateGradient {
    /// Most steps; default 20.
    pub steps: usize,
    /// Ends when the residual is this much smaller than `b`; default 1e-10.
    pub tolerance: f64,
    /// Default: none.
    pub preconditioner: Preconditioner,
}

/// `q ← q + α p` and `r ← r − α A p` in one pass; returns `⟨r, r⟩`.
fn advance<E: Float>(q: &mut [f64], r: &mut [f64], (p, ap): (&[E], &[E]), alpha: f64) -> f64 {
    const N: usize = 8;
    let mut sums = [0.0; N];
    let vectors = q.chunks_mut(N).zip(r.chunks_mut(N)).zip(p.chunks(N).zip(ap.chunks(N)));
    for ((q, r), (p, ap)) in vectors {
        for (((q, r), (p, ap)), sum) in q.iter_mut().zip(r).zip(p.iter().zip(ap)).zip(&mut sums) {
            *q += alpha * p.f64();
            *r -= alpha * ap.f64();
            *sum += *r * *r;
        }
    }
    sums.iter().sum()
}

impl Default for ConjugateGradient {
    fn default() -> Self {
        ConjugateGradient { steps: 20, tolerance: 1e-10, preconditioner: Preconditioner::None }
    }
}

impl<E: Float> InverseHessian<E> for ConjugateGradient {
    fn name(&self) -> String {
        format!("{}cg {}", self.preconditioner.name(), self.steps)
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self, dim: usize) -> Result<()> {
        Interval::NOT_NEGATIVE.check("cg: tolerance", self.tolerance)?;
        self.preconditioner.validate(dim)
    }
    fn needs_diagonal(&self) -> bool {
        self.preconditioner == Preconditioner::Decay
    }
    fn solve(&self, a: &mut dyn LinearOperator<E>, b: &[E], start: Option<Vec<E>>) -> Solution<E> {
        let (inverse, tuning) = self.preconditioner.inverse(a);
        let (q, r, begun) = begin(a, b, start);
        // In f64: rounding the residual and the iterate to f32 costs CG its conjugacy within ten steps.
        let [mut q, mut r] = [q, r].map(|x| x.into_iter().map(|x| x.f64()).collect::<Vec<f64>>());
        let goal = self.tolerance * norm(b);
        let mut history = vec![norm(&r)];
        let (mut p, mut z) = (vec![E::of(0.0); b.len()], Vec::new());
        let mut rho = inverse.square(&r, dot(&r, &r), &mut z);
        inverse.turn(&mut p, &r, &z, 0.0);
        let mut ap = vec![E::of(0.0); b.len()];
        let mut products = tuning + begun;
        let status = loop {
            let (step, residual) = (history.len(), history[history.len() - 1]);
            if !residual.is_finite() {
                break Status::NonFinite;
            }
            if residual <= goal {
                break Status::Converged;
            }
            if step > self.steps {
                break Status::Truncated;
            }
            a.apply(&p, &mut ap);
            products += 1;
            let curvature = dot(&p, &ap);
            if !curvature.is_finite() {
                break Status::NonFinite;
            }
            if curvature <= 0.0 {
                break Status::Indefinite(step);
            }
            // The step along p as it was rounded.
            let alpha = sum_by(&r, &p, |r, p| r * p.f64()) / curvature;
            let square = advance(&mut q, &mut r, (&p, &ap), alpha);
            history.push(square.sqrt());
            let next = inverse.square(&r, square, &mut z);
            inverse.turn(&mut p, &r, &z, next / rho);
            rho = next;
        };
        let q = q.into_iter().map(E::of).collect();
        Solution { q, products, history, status }
    }
}
