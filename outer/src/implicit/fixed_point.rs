//! Derivatives of fixed points: equilibrium layers, and solvers as layers.

use super::hypergradient::{HyperEvaluator, Products};
use super::vector::norm;
use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::tensor::Curvature;
use outerloop_core::{BatchKey, Error, Float, HyperProblem, Interval, Result};
use std::sync::Arc;

/// A map `T` whose fixed points `z* = T(z*, θ)` are differentiated by θ.
///
/// It is given as a [`HyperTask`](outerloop_core::HyperTask) whose training loss is `⟨T(z, θ), u⟩`: `Params` is `z`, and
/// `Hyper` is θ followed by `u`, which has the shapes of `z`. That one scalar holds everything: its gradient by `u` is
/// `T`, its joint Hessian at `u = 0` times `(0, 0, u)` is `(Jᵀu, T_θᵀ u, 0)` with `J = ∂T/∂z` and `T_θ = ∂T/∂θ`, and
/// times `(ż, θ̇, 0)` it is `(0, 0, J ż + T_θ θ̇)`.
///
/// With `z*` follow `dz* = (I − J)⁻¹ T_θ dθ`, and for a cotangent c of `z*`: `θ̄ = T_θᵀ u`, where `(I − J)ᵀ u = c`.
/// `J` is not symmetric: solve by [`Neumann`](super::Neumann) with step 1 and some patience (0 terms are the one-step, or
/// Jacobian-free, gradient), [`NormalCg`](super::NormalCg), or [`Exact`](super::Exact); not by conjugate gradients.
///
/// A proximal inner problem (iMAML) needs none of this: its training loss is `f(y) + λ/2 ‖y − y₀‖²` with
/// hyperparameters `(y₀, λ)`, an ordinary hypergradient.
///
/// References: Bai, Kolter, Koltun 2019, arXiv:1909.01377; Rajeswaran et al. 2019, arXiv:1909.04630.
pub struct FixedPointMap<E: Float = f32> {
    inner: HyperEvaluator<E>,
    at: BatchKey,
}

/// How `z ← T(z, θ)` is repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Iterations {
    /// Most steps; default 100.
    pub steps: usize,
    /// Ends when a step moves `z` by this much relative to its norm; default 1e-10.
    pub tolerance: f64,
}

impl Default for Iterations {
    fn default() -> Self {
        Iterations { steps: 100, tolerance: 1e-10 }
    }
}

/// Where repeating a map led.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedPoint<E> {
    /// The last iterate.
    pub z: Vec<E>,
    /// `‖T(z) − z‖` of every step.
    pub moves: Vec<f64>,
    /// How it ended.
    pub status: Status,
}

/// A vector-Jacobian product through a fixed point.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedPointVjp<E> {
    /// `θ̄ = T_θᵀ u`.
    pub grad: Vec<E>,
    /// `u`, and how the solve ended.
    pub solution: Solution<E>,
}

impl<E: Float> FixedPointMap<E> {
    /// The map of a problem, on the data of batch `at`, one of the training split.
    ///
    /// # Errors
    /// If λ has fewer elements than `w`, and so cannot end with `u`.
    pub fn new(problem: Arc<HyperProblem<E>>, at: BatchKey) -> Result<Self> {
        let (z, hyper) = (problem.params.len(), problem.hyper.len());
        if hyper < z {
            let what = format!("fixed-point map {}: hyperparameters, the cotangent included", problem.name());
            return Err(Error::mismatch(what, z.., hyper));
        }
        Ok(FixedPointMap { inner: HyperEvaluator::new(problem), at })
    }

    /// Elements of `z`.
    pub fn dim(&self) -> usize {
        self.inner.problem.params.len()
    }

    /// Elements of θ.
    pub fn theta_dim(&self) -> usize {
        self.inner.problem.hyper.len() - self.dim()
    }

    /// `[z, θ, u]`.
    fn joint(&self, z: &[E], theta: &[E], u: Option<&[E]>) -> Result<Vec<E>> {
        for (what, want, got) in [("z", self.dim(), z.len()), ("theta", self.theta_dim(), theta.len())] {
            if want != got {
                return Err(Error::mismatch(format!("fixed-point map: elements of {what}"), want, got));
            }
        }
        let mut joint = [z, theta].concat();
        match u {
            Some(u) => joint.extend_from_slice(u),
            None => joint.resize(joint.len() + z.len(), E::of(0.0)),
        }
        Ok(joint)
    }

    /// `T(z, θ)`.
    ///
    /// # Errors
    /// If a buffer has a wrong length.
    pub fn apply(&mut self, z: &[E], theta: &[E]) -> Result<Vec<E>> {
        let joint = self.joint(z, theta, None)?;
        let mut grad = vec![E::of(0.0); joint.len()];
        self.inner.loss_and_grad(&joint, self.at, &mut grad)?;
        Ok(grad.split_off(z.len() + theta.len()))
    }

    /// Repeats the map from `z`.
    ///
    /// # Errors
    /// If a buffer has a wrong length, or a setting is out of range.
    pub fn iterate(&mut self, z: &[E], theta: &[E], config: Iterations) -> Result<FixedPoint<E>> {
        Interval::NOT_NEGATIVE.check("fixed point: tolerance", config.tolerance)?;
        let (mut z, mut moves, mut status) = (z.to_vec(), Vec::new(), Status::Truncated);
        for _ in 0..config.steps {
            let next = self.apply(&z, theta)?;
            let moved: Vec<E> = next.iter().zip(&z).map(|(n, z)| *n - *z).collect();
            let moved = norm(&moved);
            if !moved.is_finite() {
                status = Status::NonFinite;
                break;
            }
            moves.push(moved);
            z = next;
            if moved <= config.tolerance * norm(&z) {
                status = Status::Converged;
                break;
            }
        }
        Ok(FixedPoint { z, moves, status })
    }

    /// The product of the cotangent `c` with `dz*/dθ` at the fixed point `z`.
    ///
    /// # Errors
    /// If a buffer has a wrong length, or the solver refuses.
    pub fn vjp(
        &mut self,
        solver: &dyn InverseHessian<E>,
        z: &[E],
        theta: &[E],
        c: &[E],
    ) -> Result<FixedPointVjp<E>> {
        solver.validate(self.dim())?;
        let joint = self.joint(z, theta, None)?;
        let mut jacobian = Jacobian::new(&mut self.inner, &joint, self.at, Side::Transposed);
        let solution = solver.solve(&mut jacobian, c, None);
        let grad = jacobian.transposed(&solution.q)[z.len()..][..theta.len()].to_vec();
        Ok(FixedPointVjp { grad, solution })
    }

    /// `dz*` for a tangent of θ, at the fixed point `z`; the solution's `q` holds it.
    ///
    /// # Errors
    /// As for [`Self::vjp`].
    pub fn jvp(
        &mut self,
        solver: &dyn InverseHessian<E>,
        z: &[E],
        theta: &[E],
        tangent: &[E],
    ) -> Result<Solution<E>> {
        solver.validate(self.dim())?;
        let joint = self.joint(z, theta, None)?;
        let mut jacobian = Jacobian::new(&mut self.inner, &joint, self.at, Side::Plain);
        let moved = jacobian.plain(&vec![E::of(0.0); z.len()], tangent);
        Ok(solver.solve(&mut jacobian, &moved, None))
    }

    /// The derivatives of `⟨z_N, c⟩` after `steps` repetitions from `z`, through all of them: by θ, and by the initial
    /// `z`; also `z_N`.
    ///
    /// # Errors
    /// If a buffer has a wrong length.
    pub fn unrolled_vjp(
        &mut self,
        z: &[E],
        theta: &[E],
        c: &[E],
        steps: usize,
    ) -> Result<(Vec<E>, Vec<E>, Vec<E>)> {
        let mut iterates = vec![z.to_vec()];
        for step in 0..steps {
            let next = self.apply(&iterates[step], theta)?;
            iterates.push(next);
        }
        let last = iterates.pop().expect("the start is one");
        let (mut adjoint, mut grad) = (c.to_vec(), vec![E::of(0.0); theta.len()]);
        for z in iterates.iter().rev() {
            let joint = self.joint(z, theta, Some(&adjoint))?;
            let mut all = vec![E::of(0.0); joint.len()];
            self.inner.loss_and_grad(&joint, self.at, &mut all)?;
            adjoint.copy_from_slice(&all[..z.len()]);
            grad.iter_mut().zip(&all[z.len()..]).for_each(|(g, a)| *g += *a);
        }
        Ok((grad, adjoint, last))
    }
}

/// Which system is solved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// `I − J`.
    Plain,
    /// `(I − J)ᵀ`.
    Transposed,
}

/// The derivatives of a map at a point `[z, θ, 0]`.
struct Jacobian<'a, E: Float> {
    products: Products<'a, E>,
    dims: [usize; 2],
    side: Side,
}

impl<'a, E: Float> Jacobian<'a, E> {
    fn new(inner: &'a mut HyperEvaluator<E>, joint: &'a [E], at: BatchKey, side: Side) -> Self {
        let z = inner.problem.params.len();
        let mut grad = vec![E::of(0.0); z];
        let (_, products) = Products::new(&mut *inner.evaluator, joint, at, &mut grad);
        Jacobian { products, dims: [z, joint.len() - 2 * z], side }
    }

    /// `(Jᵀ u, T_θᵀ u, 0)`.
    fn transposed(&mut self, u: &[E]) -> Vec<E> {
        let [z, theta] = self.dims;
        let mut v = vec![E::of(0.0); z + theta];
        v.extend_from_slice(u);
        let mut out = vec![E::of(0.0); v.len()];
        self.products.apply(Curvature::Hessian, &v, &mut out);
        out
    }

    /// `J ż + T_θ θ̇`.
    fn plain(&mut self, z: &[E], theta: &[E]) -> Vec<E> {
        let mut v = [z, theta].concat();
        v.resize(v.len() + z.len(), E::of(0.0));
        let mut out = vec![E::of(0.0); v.len()];
        self.products.apply(Curvature::Hessian, &v, &mut out);
        out.split_off(z.len() + theta.len())
    }

    /// `out = v − J v`, or with `Jᵀ`.
    fn system(&mut self, side: Side, v: &[E], out: &mut [E]) {
        let jv = match side {
            Side::Plain => self.plain(v, &vec![E::of(0.0); self.dims[1]]),
            Side::Transposed => self.transposed(v),
        };
        out.iter_mut().zip(v.iter().zip(&jv)).for_each(|(o, (v, j))| *o = *v - *j);
    }
}

impl<E: Float> LinearOperator<E> for Jacobian<'_, E> {
    fn dim(&self) -> usize {
        self.dims[0]
    }
    fn apply(&mut self, v: &[E], out: &mut [E]) {
        self.system(self.side, v, out);
    }
    fn apply_transposed(&mut self, v: &[E], out: &mut [E]) {
        let other = if self.side == Side::Plain { Side::Transposed } else { Side::Plain };
        self.system(other, v, out);
    }
}
