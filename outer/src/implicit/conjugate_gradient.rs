//! Conjugate gradients.

use super::vector::{begin, dot, norm, sum_by};
use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::{Error, Float, Interval, Key, Result};

/// Conjugate gradients, preconditioned or not: step n minimizes `½ qᵀA q − bᵀq` over the n-th Krylov space.
///
/// Needs `A ≻ 0`. Where the curvature along a search direction is not positive, the iterate before is returned as
/// [`Status::Indefinite`] (truncated CG): going on would leave the direction in which training moves. Exact after as
/// many steps as `A` has distinct eigenvalues, up to rounding; truncated, it is biased towards large eigenvalues, but
/// less than a Neumann series of the same cost. Scalar products are summed in f64.
///
/// Cost: a product per step. Memory: 4 vectors, two of them in f64, and one in f64 for the preconditioner.
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

/// An approximate inverse that is cheap to apply.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Preconditioner {
    /// The identity.
    #[default]
    None,
    /// The inverse of this positive diagonal: that of `A` (Jacobi), or second moments of gradients.
    Diagonal(Vec<f64>),
    /// The inverse of the part of `A` that is known to be diagonal, [`LinearOperator::diagonal`]: the decays and the
    /// damping. With r examples times outputs that is enough for r + 1 steps to the solution, whatever the decays.
    Decay,
    /// The inverse of the diagonal of `A`, estimated without bias as the mean of `z ⊙ A z` over this many random signs
    /// `z` of this key, one product each; elements below a hundredth of the mean are raised to that.
    Jacobi(usize, Key),
}

impl Preconditioner {
    fn name(&self) -> &'static str {
        match self {
            Preconditioner::None => "",
            Preconditioner::Diagonal(_) => "diagonal-",
            Preconditioner::Decay => "decay-",
            Preconditioner::Jacobi(..) => "jacobi-",
        }
    }

    fn validate(&self, dim: usize) -> Result<()> {
        match self {
            Preconditioner::None | Preconditioner::Decay => Ok(()),
            Preconditioner::Diagonal(d) if d.len() != dim => {
                Err(Error::mismatch("preconditioner: elements", dim, d.len()))
            }
            Preconditioner::Diagonal(d) => Interval::POSITIVE.check_all("preconditioner", d),
            Preconditioner::Jacobi(probes, _) => {
                Interval::COUNT.check("preconditioner: probes", *probes as f64)
            }
        }
    }

    /// The inverse diagonal, if there is one, and the products that took.
    fn inverse<E: Float>(&self, a: &mut dyn LinearOperator<E>) -> (Option<Vec<f64>>, usize) {
        let invert = |d: &[f64]| d.iter().map(|d| 1.0 / d).collect();
        match self {
            Preconditioner::None => (None, 0),
            Preconditioner::Diagonal(d) => (Some(invert(d)), 0),
            // Where nothing is known, nothing is preconditioned.
            Preconditioner::Decay => (a.diagonal().map(|d| invert(&d)), 0),
            Preconditioner::Jacobi(probes, key) => {
                (Some(invert(&estimated_diagonal(a, *probes, *key))), *probes)
            }
        }
    }
}

/// `⟨r, M⁻¹ r⟩`, where `square` is `⟨r, r⟩`.
fn preconditioned_square(inverse: Option<&[f64]>, r: &[f64], square: f64) -> f64 {
    inverse.map_or(square, |m| sum_by(r, m, |r, m| r * m * r))
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

/// `p ← M⁻¹ r + β p`.
fn turn<E: Float>(p: &mut [E], inverse: Option<&[f64]>, r: &[f64], beta: f64) {
    match inverse {
        Some(m) => {
            p.iter_mut().zip(r.iter().zip(m)).for_each(|(p, (r, m))| *p = E::of(r * m + beta * p.f64()))
        }
        None => p.iter_mut().zip(r).for_each(|(p, r)| *p = E::of(r + beta * p.f64())),
    }
}

/// The diagonal of `A` by Hutchinson's estimator, kept positive.
fn estimated_diagonal<E: Float>(a: &mut dyn LinearOperator<E>, probes: usize, key: Key) -> Vec<f64> {
    let n = a.dim();
    let (mut z, mut az, mut sum) = (vec![E::of(0.0); n], vec![E::of(0.0); n], vec![0.0; n]);
    for probe in 0..probes as u64 {
        key.fold_in(probe).fill_normal(&mut z);
        z.iter_mut().for_each(|z| *z = E::of(1f64.copysign(z.f64())));
        a.apply(&z, &mut az);
        sum.iter_mut().zip(z.iter().zip(&az)).for_each(|(s, (z, az))| *s += z.f64() * az.f64());
    }
    let mean = sum.iter().map(|s| s.abs()).sum::<f64>() / n.max(1) as f64;
    // NaN must not survive: a maximum that prefers numbers.
    sum.iter_mut().for_each(|s| *s = f64::max(*s, 0.01 * mean).max(f64::MIN_POSITIVE) / probes as f64);
    sum
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
        let inverse = inverse.as_deref();
        let goal = self.tolerance * norm(b);
        let mut history = vec![norm(&r)];
        let mut p = vec![E::of(0.0); b.len()];
        turn(&mut p, inverse, &r, 0.0);
        let mut rho = preconditioned_square(inverse, &r, dot(&r, &r));
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
            let next = preconditioned_square(inverse, &r, square);
            turn(&mut p, inverse, &r, next / rho);
            rho = next;
        };
        let q = q.into_iter().map(E::of).collect();
        Solution { q, products, history, status }
    }
}
