//! The Neumann series.

use super::vector::{add_scaled, begin, norm};
use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::{Float, Interval, Key, Result};

/// The truncated Neumann series: `q_K = α Σ_{j ≤ K} (I − α A)^j b`.
///
/// Converges to `A⁻¹ b` iff `0 < α λᵢ < 2` for all eigenvalues. Truncated, component i has the weight
/// `1 − (1 − α λᵢ)^(K+1)`: flat directions are underestimated, as by damping with about `1/(α K)`. At an optimum
/// `d − B(q_K)` is exactly the derivative through `K + 1` steps of gradient descent of size α.
///
/// The norms of the terms of a convergent series never grow, since `A` is symmetric; when one does, the series is
/// stopped and reported as [`Status::Diverged`].
///
/// Cost: `terms` products (and those of [`Step::Power`]). Memory: 3 vectors.
///
/// Reference: Lorraine, Vicol, Duvenaud 2020, arXiv:1911.02590, section 4.1.
#[derive(Clone, Debug, PartialEq)]
pub struct Neumann {
    /// `K`; default 20.
    pub terms: usize,
    /// `α`; default from a power iteration of 10 products.
    pub step: Step,
    /// Ends the series once a term is this much smaller than `b`; default 0.
    pub tolerance: f64,
    /// Terms in a row that may grow before the series counts as diverging; default 0. Where `A` is not symmetric (the
    /// Jacobian of a fixed-point map), those of a convergent series may grow at first.
    pub patience: usize,
}

/// The step of the series.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A number; `1/λ_max` or less.
    Fixed(f64),
    /// `1/λ̂`, where λ̂ is the largest eigenvalue as a power iteration of this many products from a random start of
    /// this key finds it. λ̂ never exceeds the largest eigenvalue, and half of it is enough for convergence.
    Power(usize, Key),
}

impl Default for Neumann {
    fn default() -> Self {
        Neumann { terms: 20, step: Step::Power(10, Key::new(0)), tolerance: 0.0, patience: 0 }
    }
}

impl Neumann {
    /// With a fixed step.
    pub fn new(terms: usize, step: f64) -> Self {
        Neumann { terms, step: Step::Fixed(step), tolerance: 0.0, patience: 0 }
    }

    /// The step and the products that took.
    fn step<E: Float>(&self, a: &mut dyn LinearOperator<E>) -> (f64, usize) {
        match self.step {
            Step::Fixed(step) => (step, 0),
            Step::Power(products, key) => (1.0 / largest_eigenvalue(a, products, key), products),
        }
    }
}

/// The largest eigenvalue by absolute value, from below: `‖A v‖ / ‖v‖` after power steps from a random start.
pub(super) fn largest_eigenvalue<E: Float>(a: &mut dyn LinearOperator<E>, products: usize, key: Key) -> f64 {
    let mut v = vec![E::of(0.0); a.dim()];
    key.fill_normal(&mut v);
    let mut next = v.clone();
    let mut value = 0.0;
    for _ in 0..products {
        let scale = E::of(1.0 / norm(&v));
        v.iter_mut().for_each(|v| *v *= scale);
        a.apply(&v, &mut next);
        value = norm(&next);
        std::mem::swap(&mut v, &mut next);
    }
    value
}

impl<E: Float> InverseHessian<E> for Neumann {
    fn name(&self) -> String {
        format!("neumann {}", self.terms)
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self, _: usize) -> Result<()> {
        Interval::NOT_NEGATIVE.check("neumann: tolerance", self.tolerance)?;
        match self.step {
            Step::Fixed(step) => Interval::POSITIVE.check("neumann: step", step),
            Step::Power(products, _) => Interval::COUNT.check("neumann: power steps", products as f64),
        }
    }
    fn solve(&self, a: &mut dyn LinearOperator<E>, b: &[E], start: Option<Vec<E>>) -> Solution<E> {
        let (alpha, tuning) = self.step(a);
        // A start is corrected by the series of its residual.
        let (mut q, mut v, begun) = begin(a, b, start);
        let solution = |q, history: Vec<f64>, status| Solution {
            q,
            products: tuning + begun + history.len().saturating_sub(1),
            history,
            status,
        };
        let first = norm(&v);
        let mut history = vec![first];
        if first == 0.0 {
            return solution(q, history, Status::Converged);
        }
        if !(alpha * first).is_finite() {
            return solution(q, history, Status::NonFinite);
        }
        add_scaled(&mut q, alpha, &v);
        let goal = self.tolerance * norm(b);
        let mut av = vec![E::of(0.0); b.len()];
        // Rounding of one product.
        let slack = 1.0 + 64.0 * num_epsilon::<E>();
        let mut growing = 0;
        for term in 1..=self.terms {
            a.apply(&v, &mut av);
            add_scaled(&mut v, -alpha, &av);
            let (last, now) = (history[term - 1], norm(&v));
            history.push(now);
            if !now.is_finite() {
                return solution(q, history, Status::NonFinite);
            }
            growing = if now > last * slack { growing + 1 } else { 0 };
            if growing > self.patience {
                return solution(q, history, Status::Diverged(term));
            }
            add_scaled(&mut q, alpha, &v);
            if now <= goal {
                return solution(q, history, Status::Converged);
            }
        }
        solution(q, history, Status::Truncated)
    }
}

/// The distance from 1 to the next number.
fn num_epsilon<E: Float>() -> f64 {
    if size_of::<E>() == size_of::<f32>() {
        f32::EPSILON.into()
    } else {
        f64::EPSILON
    }
}
