//! Hypergradients by the implicit function theorem.
//!
//! With `w*(λ) = argmin_w L_T(w, λ)`, `g = ∂L_V/∂w`, `d = ∂L_V/∂λ`, `H = ∂²L_T/∂w²` and
//! `B(q) = ∂/∂λ ⟨∂L_T/∂w, q⟩`, all at `(w*, λ)`:
//!
//! `dL_V(w*(λ), λ)/dλ = d − B(q)`, where `H q = g`.
//!
//! Everything needs products with second derivatives only, which a [`HyperProblem`](outerloop_core::HyperProblem) has
//! exactly: the joint Hessian of the training loss times `(q, 0)` is `(H q, B(q))`. The methods differ in how they
//! apply the inverse of `H`, one file each:
//!
//! | method | products | right for | bias |
//! |---|---|---|---|
//! | [`Neumann`] | one per term | `H ≻ 0`, step below `2/λ_max` | underestimates flat directions, like damping by `1/(step · terms)` |
//! | [`ConjugateGradient`] | one per step | `H ≻ 0` | fewer steps than Neumann for the same error |
//! | [`NormalCg`] | two per step | any invertible `H`, not symmetric too | squares the condition number |
//! | [`MinRes`] | one per step | any symmetric `H` | none that more steps do not cure |
//! | [`Woodbury`] | the rank | few examples, a decay per weight | none if the rank suffices |
//! | [`Exact`] | one per weight | up to some thousand weights | none: the oracle |
//! | [`Identity`] | none | a first guess | `H` taken for a multiple of the identity |
//! | [`Unrolled`] | one per training step | any training, at any `w` | truncation, if asked for |
//!
//! Conjugate gradients have a [`Preconditioner`]: with the one of dense layers they come within a cosine of 0.99 of the
//! exact hypergradient of softmax regression in a quarter of the products that knowing the decays alone takes.
//!
//! The theorem speaks of a minimum. At any other `w` the result is biased by `O(‖w − w*‖)`, and by the residual of the
//! solve: both norms come with every [`Hypergradient`], and the [`Status`] says how the solve ended.
//!
//! [`HyperLearner`] trains weights and hyperparameters together, on disk by [`train`](crate::run::train).
//!
//! Reference: Lorraine, Vicol, Duvenaud 2020, *Optimizing Millions of Hyperparameters by Implicit Differentiation*,
//! arXiv:1911.02590 (its Algorithm 2 has typos; signs here are the theorem's).

mod conjugate_gradient;
mod constraint;
mod exact;
mod fixed_point;
mod hypergradient;
mod identity;
mod learner;
mod min_res;
mod neumann;
mod normal_cg;
mod preconditioner;
#[cfg(test)]
mod tests;
mod unrolled;
pub(crate) mod vector;
mod woodbury;

pub use conjugate_gradient::ConjugateGradient;
pub use constraint::Constraint;
pub use exact::Exact;
pub use fixed_point::{FixedPoint, FixedPointMap, FixedPointVjp, Iterations};
pub use hypergradient::{HyperBatches, HyperEvaluator, Hypergradient, Implicit};
pub use identity::Identity;
pub use learner::{DecayLimit, HyperConfig, HyperLane, HyperLearner, HyperReport, HyperState, SolveFrom};
pub use min_res::MinRes;
pub use neumann::{Neumann, Step};
pub use normal_cg::NormalCg;
pub use preconditioner::Preconditioner;
pub use unrolled::{Unrolled, UnrolledHypergradient};
pub use woodbury::Woodbury;

use outerloop_core::{Float, Key, LayerCurvature, Result};
use serde::{Deserialize, Serialize};

/// A linear map of a space into itself, given by its products.
///
/// ```
/// use outerloop_outer::implicit::{ConjugateGradient, InverseHessian, LinearOperator, Status};
///
/// /// A diagonal matrix.
/// struct Diagonal(Vec<f64>);
///
/// impl LinearOperator<f64> for Diagonal {
///     fn dim(&self) -> usize { self.0.len() }
///     fn apply(&mut self, v: &[f64], out: &mut [f64]) {
///         for ((o, v), d) in out.iter_mut().zip(v).zip(&self.0) {
///             *o = d * v;
///         }
///     }
/// }
///
/// let cg = ConjugateGradient { steps: 3, ..ConjugateGradient::default() };
/// let solution = cg.solve(&mut Diagonal(vec![1.0, 2.0]), &[3.0, 8.0], None);
/// assert_eq!(solution.status, Status::Converged);
/// assert!((solution.q[1] - 4.0).abs() < 1e-12);
/// ```
pub trait LinearOperator<E: Float> {
    /// Dimension of the space.
    fn dim(&self) -> usize;
    /// `out = A v`.
    fn apply(&mut self, v: &[E], out: &mut [E]);
    /// [`Self::apply`] to several vectors, which may be faster; by default one after the other.
    fn apply_all(&mut self, v: &[&[E]], out: &mut [&mut [E]]) {
        for (v, out) in v.iter().zip(out) {
            self.apply(v, out);
        }
    }
    /// `out = Aᵀ v`; by default `A` is symmetric.
    fn apply_transposed(&mut self, v: &[E], out: &mut [E]) {
        self.apply(v, out);
    }
    /// A diagonal matrix that `A` is the sum of and of something else, positive semidefinite as a rule; 0 where nothing
    /// is known, `None` (the default) if nothing is.
    fn diagonal(&self) -> Option<Vec<f64>> {
        None
    }
    /// What is known of the rest's largest directions; `key`: of the random signs that estimate it. Nothing by default.
    fn layers(&mut self, key: Key) -> Vec<LayerCurvature> {
        let _ = key;
        Vec::new()
    }
}

/// How a solve ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// The residual fell below the tolerance, or the method is exact.
    Converged,
    /// All steps were done.
    Truncated,
    /// A direction of negative curvature came up in this step (from 1): `w` is no minimum. Iterative methods return
    /// the iterate before; [`Exact`] returns the solution.
    Indefinite(usize),
    /// The terms of a series grew in this step: its step is too large, or the curvature negative. The sum before
    /// is returned.
    Diverged(usize),
    /// A product was NaN or infinite; the last finite iterate is returned.
    NonFinite,
}

impl Status {
    /// Whether the result is what the method promises.
    pub fn is_good(self) -> bool {
        matches!(self, Status::Converged | Status::Truncated)
    }
}

/// What a solve of `A q = b` gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution<E> {
    /// The approximate solution.
    pub q: Vec<E>,
    /// Products with `A`, those to choose a step included.
    pub products: usize,
    /// Norm of the residual, as the method sees it, before the first step and after every step: of the term for a
    /// series, of `b − A q` for the others. Empty for direct methods.
    pub history: Vec<f64>,
    /// How it ended.
    pub status: Status,
}

/// A way to apply the inverse of a curvature matrix.
///
/// Invariants, checked by the tests of this module: a pure function of its arguments, bit for bit; never panics on NaN;
/// `q` is finite if `b` is.
pub trait InverseHessian<E: Float>: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;

    /// The whole configuration; a resumed run is recognized by it.
    fn describe(&self) -> String;

    /// Whether the settings are in range, for a system of this dimension.
    ///
    /// # Errors
    /// The first setting that is not.
    fn validate(&self, dim: usize) -> Result<()>;

    /// Whether it cannot do without a positive [`LinearOperator::diagonal`]; `false` by default.
    fn needs_diagonal(&self) -> bool {
        false
    }

    /// Solves `A q = b` approximately. `start`: where to begin, e.g. the last solution of a slowly changing system;
    /// zero if `None`. It becomes the solution: there may be millions of numbers.
    fn solve(&self, a: &mut dyn LinearOperator<E>, b: &[E], start: Option<Vec<E>>) -> Solution<E>;
}
