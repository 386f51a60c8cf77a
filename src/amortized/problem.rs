//! A parametric problem: contexts, an objective per context, a domain; and the same as tasks over the solution.

use crate::rows;
use outerloop_core::ops;
use outerloop_core::tensor::{
    Backend, Cpu, DynParams, DynTree, Float, Host, Mode, NoneTape, PutTape, Rank0, Shape, Tensor,
    TensorFromVec,
};
use outerloop_core::{BatchKey, Key, Layout, Task, TaskFamily};
use std::sync::Arc;

/// A batch of vectors, `[N, D]`.
pub type Rows<E, B, M = NoneTape> = Tensor<(usize, usize), E, B, M>;

/// Where solutions live, as a map onto it from all of space: solvers and models move in space, and the objective sees
/// the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Domain {
    /// All of space.
    #[default]
    Identity,
    /// `y/|y|`, row by row.
    Sphere,
    /// `tanh`, into the open box `(-1, 1)`; scale inside the objective for another box.
    Box,
    /// Softmax of every row: positive numbers of sum 1.
    Simplex,
}

impl Domain {
    /// The image of the rows of `y`.
    pub fn project<E: Float, B: Backend<E>, M: Mode<E, B>>(self, y: Rows<E, B, M>) -> Rows<E, B, M> {
        match self {
            Domain::Identity => y,
            Domain::Sphere => rows::unit(y),
            Domain::Box => ops::tanh(y),
            Domain::Simplex => ops::softmax(y),
        }
    }
}

/// What an objective is asked about.
pub struct Query<'a, E: Float, B: Backend<E>> {
    /// Contexts, `[N, C]`.
    pub x: &'a Rows<E, B>,
    /// Key of the objective's own noise, if it has any; the same key, the same noise.
    pub key: Key,
}

/// The problem's own parameters (a decoder, a dynamics model), by position in [`Problem::own_layout`].
pub struct Own<'a, E: Float, B: Backend<E>> {
    /// The buffer that holds them.
    pub params: &'a DynParams<E, B>,
    /// Position of the first.
    pub first: usize,
}

impl<E: Float, B: Backend<E>> Own<'_, E, B> {
    /// Parameter `i` in the given shape; it keeps its identity.
    pub fn get<S: Shape>(&self, i: usize, shape: S) -> Tensor<S, E, B> {
        self.params.get(self.first + i, shape)
    }
}

/// A solution with its objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimum {
    /// The solution, in the domain, `[D]`.
    pub y: Vec<f64>,
    /// Its objective.
    pub value: f64,
}

/// A family of optimization problems `y*(x) = argmin_y f(y; x)`: what amortized optimization learns to solve.
///
/// Invariants: `context` is a pure function of its key, `objective` of its arguments; row `n` of the objective depends
/// on row `n` of `y` and `x` alone, so that gradients of the sum are per-context gradients. Written with
/// [`outerloop_core::ops`], second derivatives are exact.
///
/// ```
/// use outerloop_amortized::problem::{Own, Problem, Query, Rows};
/// use outerloop_core::{ops, tensor::*, Key};
///
/// /// The nearest point to x on the line through (1, 2): f(y; x) = |x − y (1, 2)|².
/// #[derive(Clone)]
/// struct Nearest;
///
/// impl Problem for Nearest {
///     fn name(&self) -> String { "nearest".into() }
///     fn dim(&self) -> usize { 1 }
///     fn context_dim(&self) -> usize { 2 }
///     fn context(&self, key: Key, x: &mut [f64]) { key.fill_normal(x) }
///     fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
///         &self, y: Rows<E, B, M>, at: &Query<'_, E, B>, _: &Own<'_, E, B>,
///     ) -> Tensor<(usize,), E, B, M> {
///         let line = at.x.device().tensor_from_vec(vec![E::of(1.0), E::of(2.0)], (1, 2));
///         ops::sum_axis1(ops::square(ops::sub(ops::matmul(y, &line), at.x)))
///     }
/// }
/// ```
pub trait Problem: Clone + Send + Sync + 'static {
    /// Short name for reports.
    fn name(&self) -> String;
    /// Length D of a solution.
    fn dim(&self) -> usize;
    /// Length C of a context.
    fn context_dim(&self) -> usize;
    /// Writes the context of a key, `[C]`.
    fn context(&self, key: Key, out: &mut [f64]);
    /// Writes a batch of contexts, `[N, C]`: by default one per child of the batch's key. Problems on data override it.
    fn contexts(&self, at: BatchKey, out: &mut [f64]) {
        let rows = out.chunks_mut(self.context_dim().max(1)).enumerate();
        rows.for_each(|(i, row)| self.context(at.noise().fold_in(i as u64), row));
    }
    /// What a model sees of the contexts, `[N, F]`; by default the contexts themselves.
    fn features<E: Float, B: Backend<E>>(&self, x: &Rows<E, B>) -> Rows<E, B> {
        x.clone()
    }
    /// Length F of the features.
    fn features_dim(&self) -> usize {
        self.context_dim()
    }
    /// Where solutions live; by default all of space.
    fn domain(&self) -> Domain {
        Domain::Identity
    }
    /// The map onto the domain: override it for one that is not in [`Domain`].
    fn project<E: Float, B: Backend<E>, M: Mode<E, B>>(&self, y: Rows<E, B, M>) -> Rows<E, B, M> {
        self.domain().project(y)
    }
    /// Names and shapes of the problem's own parameters, trained with the model; by default there are none.
    fn own_layout(&self) -> Layout {
        Layout::default()
    }
    /// Writes the initial values of the own parameters.
    fn own_init(&self, key: Key, out: &mut [f64]) {
        let _ = (key, out);
    }
    /// The objective of every row, `[N]`: `y` `[N, D]` lies in the domain.
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        own: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M>;
    /// The optimum of a context, where an exact or far better solver knows it.
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        let _ = context;
        None
    }
}

/// The objective of points in space: [`Problem::project`], then [`Problem::objective`].
pub fn objective_in_space<P: Problem, E: Float, B: Backend<E>, M: Mode<E, B>>(
    problem: &P,
    y: Rows<E, B, M>,
    at: &Query<'_, E, B>,
    own: &Own<'_, E, B>,
) -> Tensor<(usize,), E, B, M> {
    problem.objective(problem.project(y), at, own)
}

/// Contexts as a [`Task`] over their solutions: parameters `y` `[N, D]` in space, loss the sum of the objectives. Any
/// solver of the project runs on it; with an elementwise one (Adam) every context is solved as if alone.
#[derive(Clone)]
pub struct ContextTask<P> {
    /// The problem.
    pub problem: P,
    /// Contexts, `[N, C]`.
    pub contexts: Vec<f64>,
    /// The problem's own parameters, held fixed.
    pub own: Vec<f64>,
    /// Where solvers start, `[N, D]`; empty, zeros (normal numbers from the key on the sphere, which has no zero).
    pub start: Vec<f64>,
}

impl<P: Problem> ContextTask<P> {
    /// Number N of contexts.
    pub fn len(&self) -> usize {
        self.contexts.len() / self.problem.context_dim().max(1)
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The objective of every context at `y` `[N, D]` in space, in `E`.
    pub fn values<E: Float>(&self, y: &[E], key: Key) -> Vec<E>
    where
        Cpu: Host<E>,
    {
        let dev = Cpu::default();
        let (x, own) = self.tensors::<E, Cpu>(&dev);
        let y = dev.tensor_from_vec(y.to_vec(), (self.len(), self.problem.dim()));
        let (at, own) = (Query { x: &x, key }, Own { params: &own, first: 0 });
        outerloop_core::tensor::host_data(&objective_in_space(&self.problem, y, &at, &own)).to_vec()
    }
    fn tensors<E: Float, B: Backend<E>>(&self, dev: &B) -> (Rows<E, B>, DynParams<E, B>) {
        let of = |v: &[f64]| v.iter().map(|x| E::of(*x)).collect::<Vec<E>>();
        let x = dev.tensor_from_vec(of(&self.contexts), (self.len(), self.problem.context_dim()));
        (x, DynParams::<E, B>::new(dev, Arc::new(self.problem.own_layout()), &of(&self.own)))
    }
}

impl<P: Problem, E: Float, B: Backend<E>> Task<E, B> for ContextTask<P> {
    type Params = DynParams<E, B>;
    /// Contexts, own parameters, and the key of the objective's noise.
    type Batch = (Rows<E, B>, DynParams<E, B>, Key);

    fn name(&self) -> String {
        format!("{}_contexts", self.problem.name())
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let layout = Layout::new([("y", vec![self.len(), self.problem.dim()])]);
        let mut y = vec![E::of(0.0); layout.len()];
        if !self.start.is_empty() {
            y.iter_mut().zip(&self.start).for_each(|(y, s)| *y = E::of(*s));
        } else if self.problem.domain() == Domain::Sphere {
            key.fill_normal(&mut y);
        }
        DynParams::<E, B>::new(dev, Arc::new(layout), &y)
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let (x, own) = self.tensors(dev);
        (x, own, at.noise())
    }
    fn loss<M: Mode<E, B>>(
        &self,
        y: &Self::Params,
        (x, own, key): &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let y = y.get(0, (self.len(), self.problem.dim())).put_tape(m);
        let (at, own) = (Query { x, key: *key }, Own { params: own, first: 0 });
        ops::sum(objective_in_space(&self.problem, y, &at, &own))
    }
}

/// The family of single contexts: learned optimizers can be meta-trained on any problem.
#[derive(Clone)]
pub struct ContextFamily<P> {
    /// The problem.
    pub problem: P,
    /// The problem's own parameters, held fixed.
    pub own: Vec<f64>,
}

impl<P: Problem> TaskFamily for ContextFamily<P> {
    /// The context.
    type Config = Vec<f64>;
    type Task = ContextTask<P>;
    fn name(&self) -> String {
        format!("{}_family", self.problem.name())
    }
    fn sample(&self, key: Key) -> Vec<f64> {
        let mut x = vec![0.0; self.problem.context_dim()];
        self.problem.context(key, &mut x);
        x
    }
    fn task(&self, config: &Vec<f64>) -> ContextTask<P> {
        let (problem, own) = (self.problem.clone(), self.own.clone());
        ContextTask { problem, contexts: config.clone(), own, start: Vec::new() }
    }
}
