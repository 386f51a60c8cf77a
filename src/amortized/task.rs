//! Problem, model and loss together: a task over the model's parameters, trained by what the project trains with.

use crate::loss::{Iterates, Loss};
use crate::model::Model;
use crate::problem::{objective_in_space, Own, Problem, Query, Rows};
use outerloop_core::ops::{self, stop_gradient};
use outerloop_core::tensor::{
    Backend, Cpu, DynParams, DynTree, Float, HasShape, Host, Mode, NoneTape, Rank0, SplitTape, Tensor,
    TensorFromVec,
};
use outerloop_core::{BatchKey, Error, Key, Layout, Result, Split, Task};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Contexts that were drawn and solved once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    /// `[N][C]`
    pub contexts: Vec<Vec<f64>>,
    /// Solutions in the domain, `[N][D]`.
    pub targets: Vec<Vec<f64>>,
}

impl Pool {
    /// `n` contexts of the key, solved by `solve`: by [`Problem::optimum`], or any solver.
    pub fn solved<P: Problem>(problem: &P, n: usize, key: Key, solve: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        let mut flat = vec![0.0; n * problem.context_dim()];
        problem.contexts(BatchKey { split: Split::Train, step: 0, key }, &mut flat);
        let contexts: Vec<Vec<f64>> = flat.chunks(problem.context_dim()).map(<[f64]>::to_vec).collect();
        let targets = contexts.iter().map(|x| solve(x)).collect();
        Pool { contexts, targets }
    }
}

/// What is learned on, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Default: the objective.
    pub loss: Loss,
    /// Default: the last.
    pub iterates: Iterates,
    /// Contexts per batch; default 128.
    pub batch_size: usize,
    /// Contexts to draw training batches from; none, the default: fresh ones every step.
    pub pool: Option<Arc<Pool>>,
}

impl Default for Training {
    fn default() -> Self {
        Training { loss: Loss::Objective, iterates: Iterates::Last, batch_size: 128, pool: None }
    }
}

/// A model that learns to solve a problem, as a [`Task`]: parameters are the model's and then the problem's own.
#[derive(Clone, Debug)]
pub struct AmortizedTask<P, M> {
    /// The problem.
    pub problem: P,
    /// The model.
    pub model: M,
    training: Training,
    layout: Arc<Layout>,
    /// Number of the model's tensors and of its parameters.
    model_len: (usize, usize),
}

/// A batch of contexts.
pub struct Contexts<E: Float, B: Backend<E>> {
    /// `[N, C]`
    pub x: Rows<E, B>,
    /// Solutions `[N, D]`, where the loss needs them.
    pub targets: Option<Rows<E, B>>,
    /// Key of the objective's noise.
    pub key: Key,
}

impl<P: Problem, M: Model> AmortizedTask<P, M> {
    /// A task.
    ///
    /// # Errors
    /// An empty batch, a regression without solved contexts, a smoothing out of range, a pool whose shapes differ.
    pub fn new(problem: P, model: M, training: Training) -> Result<Self> {
        let at = |what: &str| format!("amortized task: {what}");
        if training.batch_size == 0 {
            return Err(Error::invalid(at("batch_size"), "must be at least 1, got 0"));
        }
        if let Loss::Score { sigma, pairs } = training.loss {
            if !(sigma > 0.0 && sigma.is_finite()) || pairs == 0 {
                let why = format!("needs a positive sigma and at least 1 pair, got {sigma} and {pairs}");
                return Err(Error::invalid(at("score loss"), why));
            }
        }
        match &training.pool {
            None if training.loss == Loss::Regression => {
                return Err(Error::invalid(at("regression"), "needs a pool of solved contexts, got none"));
            }
            Some(pool) => {
                if pool.contexts.is_empty() {
                    return Err(Error::invalid(at("pool"), "must hold at least 1 context, got 0"));
                }
                let lengths = |rows: &[Vec<f64>]| rows.iter().map(Vec::len).collect::<BTreeSet<usize>>();
                let want = [problem.context_dim(), problem.dim()].map(|n| BTreeSet::from([n]));
                let got = [lengths(&pool.contexts), lengths(&pool.targets)];
                if want != got || pool.contexts.len() != pool.targets.len() {
                    return Err(Error::mismatch(at("pool: lengths of contexts and targets"), want, got));
                }
            }
            None => {}
        }
        model.check(&problem)?;
        let mut layout = model.layout(&problem);
        let model_len = (layout.entries().len(), layout.len());
        for e in problem.own_layout().entries() {
            layout.push(format!("problem/{}", e.name), e.shape.clone());
        }
        Ok(AmortizedTask { problem, model, training, layout: Arc::new(layout), model_len })
    }

    /// The settings.
    pub fn training(&self) -> &Training {
        &self.training
    }

    /// The problem's own parameters of a flat buffer.
    pub fn own<'a, E>(&self, theta: &'a [E]) -> &'a [E] {
        &theta[self.model_len.1..]
    }

    fn own_of<'a, E: Float, B: Backend<E>>(&self, params: &'a DynParams<E, B>) -> Own<'a, E, B> {
        Own { params, first: self.model_len.0 }
    }

    /// The iterates for contexts `[N][C]`, in space, each `[N D]` row by row.
    pub fn predict<E: Float>(&self, theta: &[E], contexts: &[f64], key: Key) -> Vec<Vec<E>>
    where
        Cpu: Host<E>,
    {
        let dev = Cpu::default();
        let params = DynParams::<E, Cpu>::new(&dev, self.layout.clone(), theta);
        let x = contexts.iter().map(|x| E::of(*x)).collect::<Vec<E>>();
        let x =
            dev.tensor_from_vec(x, (contexts.len() / self.problem.context_dim(), self.problem.context_dim()));
        let iterates = self.model.predict(&self.problem, &Query { x: &x, key }, &params, NoneTape);
        iterates.iter().map(|y| outerloop_core::tensor::host_data(y).to_vec()).collect()
    }

    /// The loss of every context at one iterate, `[N]`.
    fn per_context<E: Float, B: Backend<E>, T: Mode<E, B>>(
        &self,
        y: Rows<E, B, T>,
        batch: &Contexts<E, B>,
        params: &DynParams<E, B>,
    ) -> Tensor<(usize,), E, B, T> {
        let at = Query { x: &batch.x, key: batch.key };
        let own = self.own_of(params);
        match self.training.loss {
            Loss::Objective => objective_in_space(&self.problem, y, &at, &own),
            Loss::Regression => {
                let targets = batch.targets.as_ref().expect("the constructor asked for a pool");
                ops::sum_axis1(ops::square(ops::sub(self.problem.project(y), targets)))
            }
            Loss::Score { sigma, pairs } => self.score(y, (&at, &own), sigma, pairs),
        }
    }

    /// The objective as value, with the score-function estimate as gradient.
    fn score<E: Float, B: Backend<E>, T: Mode<E, B>>(
        &self,
        y: Rows<E, B, T>,
        (at, own): (&Query<'_, E, B>, &Own<'_, E, B>),
        sigma: f64,
        pairs: usize,
    ) -> Tensor<(usize,), E, B, T> {
        let here = stop_gradient(y.clone()).split_tape().0;
        let shape = *here.shape();
        let f = |y: Rows<E, B>| objective_in_space(&self.problem, y, at, own);
        let mut g: Rows<E, B> = here.device().filled(shape, |_| ());
        for i in 0..pairs {
            let e = here.device().normal_like(shape, at.key.named("score").fold_in(i as u64));
            let step = ops::scale(e.clone(), sigma);
            let gap = ops::sub(f(ops::add(here.clone(), &step)), &f(ops::sub(here.clone(), &step)));
            // e (f⁺ − f⁻)/(2σ), row by row
            let weighted = ops::transpose(ops::mul(ops::transpose(e), &gap));
            g = ops::add(g, &ops::scale(weighted, 0.5 / (sigma * pairs as f64)));
        }
        let slope = ops::sum_axis1(ops::mul(y, &g));
        let offset = ops::sub(f(here), &stop_gradient(slope.clone()).split_tape().0);
        ops::add(slope, &offset)
    }
}

impl<P: Problem, M: Model, E: Float, B: Backend<E>> Task<E, B> for AmortizedTask<P, M> {
    type Params = DynParams<E, B>;
    type Batch = Contexts<E, B>;

    fn name(&self) -> String {
        format!("{}_{}", self.problem.name(), self.model.name())
    }

    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let mut flat = vec![0.0; self.layout.len()];
        let (model, own) = flat.split_at_mut(self.model_len.1);
        self.model.init(&self.problem, key.named("model"), model);
        self.problem.own_init(key.named("problem"), own);
        let flat: Vec<E> = flat.into_iter().map(E::of).collect();
        DynParams::<E, B>::new(dev, self.layout.clone(), &flat)
    }

    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let (n, c, d) = (self.training.batch_size, self.problem.context_dim(), self.problem.dim());
        let tensor = |v: Vec<f64>, cols: usize| -> Rows<E, B> {
            dev.tensor_from_vec(v.into_iter().map(E::of).collect(), (n, cols))
        };
        let key = at.noise().named("objective");
        if let Some(pool) = self.training.pool.as_ref() {
            let pick = |i: usize| at.noise().fold_in(i as u64).bits() as usize % pool.contexts.len();
            let picks: Vec<usize> = (0..n).map(pick).collect();
            let rows = |all: &[Vec<f64>]| picks.iter().flat_map(|i| all[*i].clone()).collect::<Vec<f64>>();
            let targets = Some(tensor(rows(&pool.targets), d));
            return Contexts { x: tensor(rows(&pool.contexts), c), targets, key };
        }
        let mut x = vec![0.0; n * c];
        self.problem.contexts(at, &mut x);
        Contexts { x: tensor(x, c), targets: None, key }
    }

    fn loss<T: Mode<E, B>>(
        &self,
        params: &Self::Params,
        batch: &Self::Batch,
        m: T,
    ) -> Tensor<Rank0, E, B, T> {
        let at = Query { x: &batch.x, key: batch.key };
        let mut iterates = self.model.predict(&self.problem, &at, params, m);
        let counted = match self.training.iterates {
            Iterates::Last => iterates.split_off(iterates.len() - 1),
            Iterates::Mean => iterates,
        };
        let share = 1.0 / counted.len() as f64;
        let losses = counted.into_iter().map(|y| ops::mean(self.per_context(y, batch, params)));
        ops::scale(losses.reduce(|a, b| ops::add(a, &b)).expect("a model has an answer"), share)
    }
}
