//! The theorem: one solve between two gradients.

use super::vector::{add_scaled, dot, norm};
use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::tensor::Curvature;
use outerloop_core::{
    BatchKey, Error, Evaluator, Float, HyperProblem, Interval, Key, LayerCurvature, Linearization, Result,
    Split,
};
use std::ops::Range;
use std::sync::Arc;

/// How to differentiate implicitly.
#[derive(Clone)]
pub struct Implicit<E: Float = f32> {
    /// How the inverse of the curvature is applied.
    pub solver: Arc<dyn InverseHessian<E>>,
    /// `δ`: the curvature gets `δ I` added. It makes nearly flat directions harmless, and biases the result. Default 0.
    pub damping: f64,
    /// The matrix that is inverted. Default: the Hessian.
    pub curvature: Curvature,
}

impl<E: Float> Implicit<E> {
    /// With the Hessian itself.
    pub fn new(solver: impl InverseHessian<E> + 'static) -> Self {
        Implicit { solver: Arc::new(solver), damping: 0.0, curvature: Curvature::Hessian }
    }

    /// With damping.
    #[must_use]
    pub fn damped(self, damping: f64) -> Self {
        Implicit { damping, ..self }
    }

    /// With the Gauss-Newton matrix in place of the Hessian: never indefinite.
    #[must_use]
    pub fn gauss_newton(self) -> Self {
        Implicit { curvature: Curvature::GaussNewton, ..self }
    }

    /// The whole configuration; a resumed run is recognized by it.
    pub fn describe(&self) -> String {
        format!("{}, damping {}, {:?}", self.solver.describe(), self.damping, self.curvature)
    }

    /// Errors on settings out of range.
    ///
    /// # Errors
    /// The first one.
    pub fn validate(&self, dim: usize) -> Result<()> {
        Interval::NOT_NEGATIVE.check("implicit: damping", self.damping)?;
        self.solver.validate(dim)
    }
}

/// Which batches the terms of a hypergradient see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HyperBatches {
    /// Of the training loss, for the curvature.
    pub curvature: BatchKey,
    /// Of the training loss, for the mixed derivative. If it is that of the curvature, the last product gives both.
    pub mixed: BatchKey,
    /// Of the validation loss.
    pub valid: BatchKey,
}

impl HyperBatches {
    /// Batch `step` of the streams of `key`, the same training batch for curvature and mixed derivative.
    pub fn at(step: u64, key: Key) -> Self {
        let train = BatchKey::train(step, key);
        let valid = BatchKey { split: Split::OuterValid, step, key };
        HyperBatches { curvature: train, mixed: train, valid }
    }
}

/// A hypergradient, and how far it can be trusted.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypergradient<E> {
    /// `d − B(q)`, in the layout of λ.
    pub grad: Vec<E>,
    /// `d = ∂L_V/∂λ` alone.
    pub direct: Vec<E>,
    /// `L_V`.
    pub valid_loss: f64,
    /// `L_T`.
    pub train_loss: f64,
    /// `‖∂L_T/∂w‖`: 0 at the optimum that the theorem speaks of.
    pub inner_grad_norm: f64,
    /// `‖∂L_V/∂w − (A + δ) q‖ / ‖∂L_V/∂w‖`, computed, not taken from the solver's recurrence.
    pub residual: f64,
    /// What the solver gave; its `q` starts the next solve.
    pub solution: Solution<E>,
}

impl<E: Float> Hypergradient<E> {
    /// `cos` of the angle to another one.
    pub fn cosine(&self, other: &[E]) -> f64 {
        dot(&self.grad, other) / (norm(&self.grad) * norm(other))
    }

    /// Whether all numbers are finite and the solve ended as its method promises.
    pub fn is_good(&self) -> bool {
        self.solution.status.is_good() && norm(&self.grad).is_finite()
    }
}

/// Evaluates a [`HyperProblem`]'s losses and hypergradients; one per thread.
pub struct HyperEvaluator<E: Float = f32> {
    /// What is evaluated.
    pub problem: Arc<HyperProblem<E>>,
    pub(super) evaluator: Box<dyn Evaluator<E>>,
}

impl<E: Float> HyperEvaluator<E> {
    /// An evaluator with its own device and scratch.
    pub fn new(problem: Arc<HyperProblem<E>>) -> Self {
        let evaluator = problem.joint.evaluator();
        HyperEvaluator { problem, evaluator }
    }

    /// The loss on a batch at `joint = [w, λ]`: the training loss on one of [`Split::Train`], else the validation loss.
    ///
    /// # Errors
    /// If `joint` has another length than `[w, λ]`.
    pub fn loss(&mut self, joint: &[E], at: BatchKey) -> Result<E> {
        self.problem.check_len(joint)?;
        Ok(self.evaluator.loss(joint, &[], at))
    }

    /// [`Self::loss`]; overwrites `grad` with the gradient by `w` alone, or by `[w, λ]` if it is as long.
    ///
    /// # Errors
    /// If a buffer has a wrong length.
    pub fn loss_and_grad(&mut self, joint: &[E], at: BatchKey, grad: &mut [E]) -> Result<E> {
        self.problem.check_len(joint)?;
        if grad.len() != joint.len() && grad.len() != self.problem.params.len() {
            return Err(Error::mismatch("gradient: elements", self.problem.params.len(), grad.len()));
        }
        Ok(self.evaluator.loss_and_leading_grad(joint, &mut [], at, grad))
    }

    /// The hypergradient at `joint = [w, λ]`. `start`: a guess of `q`, e.g. the last solution.
    ///
    /// Cost: a gradient of each loss, the solver's products, and one joint product. NaN is a value: it comes out as
    /// NaN, with [`Status::NonFinite`] where the solve met it.
    ///
    /// # Errors
    /// Settings out of range; buffers of another length; the Gauss-Newton matrix of losses with operations that are
    /// not in [`outerloop_core::ops`].
    pub fn hypergradient(
        &mut self,
        implicit: &Implicit<E>,
        at: &HyperBatches,
        joint: &[E],
        start: Option<&[E]>,
    ) -> Result<Hypergradient<E>> {
        let start = start.map(<[E]>::to_vec);
        let mut h = hypergradient(&self.problem, &mut *self.evaluator, implicit, at, (joint, start))?;
        h.direct.resize(h.grad.len(), E::of(0.0));
        Ok(h)
    }
}

/// [`HyperEvaluator::hypergradient`] with a thread's evaluator of the joint task. There may be millions of numbers, so
/// `start` becomes the solution, and `direct` is empty where it is zero.
pub(super) fn hypergradient<E: Float>(
    problem: &HyperProblem<E>,
    evaluator: &mut dyn Evaluator<E>,
    implicit: &Implicit<E>,
    at: &HyperBatches,
    (joint, start): (&[E], Option<Vec<E>>),
) -> Result<Hypergradient<E>> {
    problem.check_len(joint)?;
    let n = problem.params.len();
    implicit.validate(n)?;
    if let Some(start) = start.as_ref().filter(|s| s.len() != n) {
        return Err(Error::mismatch("start of the solve: elements", n, start.len()));
    }
    let Implicit { damping, curvature, .. } = *implicit;
    if implicit.solver.needs_diagonal() {
        check_diagonal(problem, &known_diagonal(problem, &joint[n..], damping))?;
    }
    let (zero, whole) = (E::of(0.0), joint.len());
    // First, since nothing of it needs to be kept.
    let mut g = Vec::new();
    let valid_loss = evaluator.loss_and_used_grad(joint, &mut [], at.valid, &mut g).f64();
    let direct = match g.get(n..) {
        Some(direct) if direct.iter().any(|d| *d != zero) => [direct, &vec![zero; whole - g.len()]].concat(),
        _ => Vec::new(),
    };
    g.resize(n, zero);
    g.shrink_to_fit();
    let mut inner = vec![zero; n];
    let (train_loss, kept) = evaluator.linearize(joint, &mut [], at.curvature, &mut inner);
    let (train_loss, inner_grad_norm) = (train_loss.f64(), norm(&inner));
    drop(inner);
    let mut products = Products { evaluator, joint, at: at.curvature, kept, scratch: Vec::new() };
    if products.kept.is_none() && implicit.curvature == Curvature::GaussNewton {
        let why = "needs losses made of `outerloop_core::ops` alone";
        return Err(Error::invalid(format!("{}: Gauss-Newton matrix", problem.name()), why));
    }
    let mut solution = {
        let mut a = CurvatureOperator { products: &mut products, problem, damping, curvature };
        implicit.solver.solve(&mut a, &g, start)
    };
    // H (q, 0) = (H q, B(q))
    let mut product = vec![zero; whole];
    let q = &solution.q;
    if at.mixed == at.curvature {
        products.apply(Curvature::Hessian, q, &mut product);
    } else {
        let (mut padded, mut grad) = (q.clone(), vec![zero; whole]);
        padded.resize(whole, zero);
        products.evaluator.loss_grad_hvp(products.joint, &[], at.mixed, &padded, &mut grad, &mut product);
    }
    if at.mixed != at.curvature || curvature != Curvature::Hessian {
        products.apply(curvature, q, &mut product[..n]);
        solution.products += 1;
    }
    let damping = E::of(damping);
    let misfit = g.iter().zip(&product).zip(q).map(|((g, p), q)| (*g - *p - damping * *q).f64());
    let g_norm = norm(&g);
    let residual = misfit.map(|x| x * x).sum::<f64>().sqrt() / g_norm;
    drop(g);
    product.drain(..n);
    product.shrink_to_fit();
    let mut grad = product;
    match direct.is_empty() {
        true => grad.iter_mut().for_each(|b| *b = zero - *b),
        false => grad.iter_mut().zip(&direct).for_each(|(b, d)| *b = *d - *b),
    }
    if !residual.is_finite() && solution.status.is_good() && g_norm != 0.0 {
        solution.status = Status::NonFinite;
    }
    Ok(Hypergradient { grad, direct, valid_loss, train_loss, inner_grad_norm, residual, solution })
}

/// Products with the second derivatives of the training loss at one point and batch.
pub(super) struct Products<'a, E: Float> {
    evaluator: &'a mut dyn Evaluator<E>,
    joint: &'a [E],
    at: BatchKey,
    kept: Option<Box<dyn Linearization<E>>>,
    /// Of evaluators that keep nothing: padded `v`, gradient, product.
    scratch: Vec<E>,
}

impl<'a, E: Float> Products<'a, E> {
    /// Of a loss at a point and batch, linearized now.
    pub fn new(
        evaluator: &'a mut dyn Evaluator<E>,
        joint: &'a [E],
        at: BatchKey,
        grad: &mut [E],
    ) -> (E, Self) {
        let (loss, kept) = evaluator.linearize(joint, &mut [], at, grad);
        (loss, Products { evaluator, joint, at, kept, scratch: Vec::new() })
    }

    /// The leading part of the product with `(v, 0)`.
    pub fn apply(&mut self, curvature: Curvature, v: &[E], out: &mut [E]) {
        if let Some(kept) = &mut self.kept {
            return kept.product(curvature, v, out);
        }
        let len = self.joint.len();
        self.scratch.clear();
        self.scratch.extend_from_slice(v);
        self.scratch.resize(3 * len, E::of(0.0));
        let (padded, rest) = self.scratch.split_at_mut(len);
        let (grad, product) = rest.split_at_mut(len);
        self.evaluator.loss_grad_hvp(self.joint, &[], self.at, padded, grad, product);
        out.copy_from_slice(&product[..out.len()]);
    }
}

/// `A + δ I` over `w`.
struct CurvatureOperator<'a, 'b, E: Float> {
    products: &'a mut Products<'b, E>,
    problem: &'a HyperProblem<E>,
    damping: f64,
    curvature: Curvature,
}

/// What is known to be diagonal in the curvature: the damping, and the decays of the tensors of `w` that λ has log decays
/// of the same name for; else 0.
pub(super) fn known_diagonal<E: Float>(problem: &HyperProblem<E>, lambda: &[E], damping: f64) -> Vec<f64> {
    let mut diagonal = vec![damping; problem.params.len()];
    let is_decay = |range: &Range<usize>| problem.log_decays.contains(range);
    for hyper in problem.hyper.entries().iter().filter(|e| is_decay(&e.range())) {
        let Ok(params) = problem.params.entry(&hyper.name) else { continue };
        let (lambda, d) = (&lambda[hyper.range()], &mut diagonal[params.range()]);
        if lambda.len() == 1 {
            d.iter_mut().for_each(|d| *d += lambda[0].f64().exp());
        } else if lambda.len() == d.len() {
            d.iter_mut().zip(lambda).for_each(|(d, l)| *d += l.f64().exp());
        }
    }
    diagonal
}

/// Whether something is known of every weight.
///
/// # Errors
/// The first tensor of which nothing is.
pub(super) fn check_diagonal<E: Float>(problem: &HyperProblem<E>, diagonal: &[f64]) -> Result<()> {
    let unknown = problem.params.entries().iter().find(|e| diagonal[e.range()].contains(&0.0));
    match unknown {
        None => Ok(()),
        Some(e) => {
            let why = format!("needs a damping, or log decays of the name of tensor `{}`", e.name);
            Err(Error::invalid(format!("{}: diagonal part of the curvature", problem.name()), why))
        }
    }
}

fn add_damping<E: Float>(damping: f64, v: &[E], out: &mut [E]) {
    if damping != 0.0 {
        add_scaled(out, damping, v);
    }
}

impl<E: Float> LinearOperator<E> for CurvatureOperator<'_, '_, E> {
    fn dim(&self) -> usize {
        self.problem.params.len()
    }
    fn apply_all(&mut self, v: &[&[E]], out: &mut [&mut [E]]) {
        match &mut self.products.kept {
            Some(kept) => {
                kept.products(self.curvature, v, out);
                for (v, out) in v.iter().zip(out) {
                    add_damping(self.damping, v, out);
                }
            }
            None => v.iter().zip(out).for_each(|(v, out)| self.apply(v, out)),
        }
    }
    fn diagonal(&self) -> Option<Vec<f64>> {
        Some(known_diagonal(self.problem, &self.products.joint[self.dim()..], self.damping))
    }
    fn layers(&mut self, key: Key) -> Vec<LayerCurvature> {
        let dim = self.dim();
        let mut layers = self.products.kept.as_mut().map_or_else(Vec::new, |kept| kept.layers(key));
        // Hyperparameters may be weights of layers, too.
        layers.retain(|layer| layer.weight.end <= dim);
        for layer in &mut layers {
            layer.bias = layer.bias.take().filter(|bias| bias.end <= dim);
        }
        layers
    }
    fn apply(&mut self, v: &[E], out: &mut [E]) {
        self.products.apply(self.curvature, v, out);
        add_damping(self.damping, v, out);
    }
}
