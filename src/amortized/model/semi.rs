//! Semi-amortization: a start, then steps that ask the objective for its gradient.

use super::{Full, Model};
use crate::inference::encoding;
use crate::inference::iterative::handles;
use crate::net::Mlp;
use crate::problem::{objective_in_space, Domain, Own, Problem, Query, Rows};
use outerloop_core::ops::{self, Through};
use outerloop_core::tensor::{
    Backend, DynParams, DynTree, Float, HasShape, Mode, PutTape, Rec, SplitTape, Tensor,
};
use outerloop_core::{Error, Key, Layout, Result};
use std::sync::Arc;

/// Where the steps begin.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Start {
    /// Zero (on the sphere the first axis, since 0 has no direction).
    #[default]
    Zero,
    /// A learned point, the same for all contexts.
    Learned,
    /// A prediction.
    Full(Full),
    /// A prediction by a model that was trained before, with its weights: training goes on from them. A start that is
    /// trained together with its steps relies on them; one that was trained alone ends closer to the optimum's basin.
    Trained(Full, Arc<[f64]>),
}

/// What a step does with the gradient `g`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// `y ← y − e^r g` with a learned logarithm of the rate.
    Gradient {
        /// Rate at the start.
        rate: f64,
    },
    /// `v ← σ(k) v + g; y ← y − e^r v`.
    Momentum {
        /// Rate at the start.
        rate: f64,
    },
    /// `y ← y − σ(gate(h)) g + offset(h)`, with `h` a hidden layer that sees iterate and gradient.
    Network {
        /// Width of the hidden layer.
        hidden: usize,
        /// How the gradient is shown.
        shown: Shown,
    },
}

/// How a network sees a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// As it is.
    Raw,
    /// `ln(|g| + 10⁻⁵)` and its sign. The default.
    #[default]
    SignLog,
    /// Standardized over its components.
    LayerNorm,
}

/// Whose weights a step has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// All steps the same: more steps can be done than were trained. The default.
    #[default]
    Shared,
    /// Every step its own.
    PerStep,
}

/// A start and `steps` steps of a rule.
///
/// Gradients are those of the objective in space at the iterate, row by row, by
/// [`outerloop_core::ops::gradient`]; with [`Through::Exact`] training differentiates them, too (second order: unbiased
/// for the loss), with [`Through::Stopped`] they are data (cheaper, biased). An objective with noise of its own shows
/// every step other noise, and the loss other noise again: else the steps would learn to fit the noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Semi {
    /// Default: zero.
    pub start: Start,
    /// Default: gradient steps of rate 0.1.
    pub rule: Rule,
    /// Default 5.
    pub steps: usize,
    /// Default: shared.
    pub weights: Weights,
    /// Default: exact.
    pub through: Through,
}

impl Default for Semi {
    fn default() -> Self {
        let (rule, weights) = (Rule::Gradient { rate: 0.1 }, Weights::Shared);
        Semi { start: Start::Zero, rule, steps: 5, weights, through: Through::Exact }
    }
}

impl Semi {
    /// A prediction and then `steps` gradient steps of a learned rate.
    pub fn refined(start: Full, rate: f64, steps: usize) -> Self {
        Semi { start: Start::Full(start), rule: Rule::Gradient { rate }, steps, ..Self::default() }
    }

    /// The hidden layer and the two heads of [`Rule::Network`].
    fn nets(&self, dim: usize) -> Option<(Mlp, Mlp)> {
        let Rule::Network { hidden, shown } = self.rule else { return None };
        let seen = dim * if shown == Shown::SignLog { 3 } else { 2 };
        let net = |widths: [usize; 2]| Mlp::new(widths);
        Some((net([seen, hidden]), net([hidden, 2 * dim])))
    }

    /// Tensors of one step's weights.
    fn tensors(&self) -> usize {
        match self.rule {
            Rule::Gradient { .. } => 1,
            Rule::Momentum { .. } => 2,
            Rule::Network { .. } => 4,
        }
    }

    fn copies(&self) -> usize {
        match self.weights {
            Weights::Shared => 1,
            Weights::PerStep => self.steps,
        }
    }

    fn start_tensors<P: Problem>(&self, problem: &P) -> usize {
        match &self.start {
            Start::Zero => 0,
            Start::Learned => 1,
            Start::Full(full) | Start::Trained(full, _) => full.net(problem).tensors(),
        }
    }

    /// The gradient of every row's objective.
    fn gradient<P: Problem, E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        problem: &P,
        at: &Query<'_, E, B>,
        (params, first_own): (&DynParams<E, B>, usize),
        y: Rows<E, B, M>,
    ) -> Rows<E, B, M> {
        let depends = match self.through {
            Through::Exact => handles(params),
            Through::Stopped => Vec::new(),
        };
        let (problem, x, key, params) = (problem.clone(), at.x.clone(), at.key, params.clone());
        ops::gradient(y, depends, self.through, move |y: Rows<E, B, Rec>, _| {
            let (at, own) = (Query { x: &x, key }, Own { params: &params, first: first_own });
            ops::sum(objective_in_space(&problem, y, &at, &own))
        })
    }

    /// One step from `y`; `first`: position of its weights.
    fn step<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        first: usize,
        (y, g): (Rows<E, B, M>, Rows<E, B, M>),
        velocity: &mut Option<Rows<E, B, M>>,
        m: M,
    ) -> Rows<E, B, M> {
        let scalar = |i: usize| -> Tensor<(), E, B, M> { params.traced(first + i, (), m) };
        match self.rule {
            Rule::Gradient { .. } => ops::sub(y, &ops::mul(g, &ops::exp(scalar(0)))),
            Rule::Momentum { .. } => {
                let v = match velocity.take() {
                    None => g,
                    Some(v) => ops::add(ops::mul(v, &ops::sigmoid(scalar(1))), &g),
                };
                *velocity = Some(v.clone());
                ops::sub(y, &ops::mul(v, &ops::exp(scalar(0))))
            }
            Rule::Network { shown, .. } => {
                let dim = y.shape().1;
                let (body, heads) = self.nets(dim).expect("the rule is a network");
                let bare = |t: Rows<E, B, M>| t.split_tape().0;
                let seen = match shown {
                    Shown::Raw => ops::concat(y.clone(), &bare(g.clone())),
                    Shown::SignLog => {
                        let size = ops::concat(y.clone(), &bare(encoding::log(g.clone())));
                        ops::concat(size, &bare(encoding::sign(g.clone())))
                    }
                    Shown::LayerNorm => ops::concat(y.clone(), &bare(encoding::layer_norm(g.clone()))),
                };
                let h = ops::tanh(body.forward(params, first, seen));
                let out = heads.forward(params, first + 2, h);
                let gate = ops::sigmoid(ops::columns(out.clone(), 0, dim));
                let moved = ops::sub(y, &ops::mul(gate, &g));
                ops::add(moved, &ops::columns(out, dim, dim))
            }
        }
    }
}

impl Model for Semi {
    fn name(&self) -> String {
        let start = match &self.start {
            Start::Zero => "zero".into(),
            Start::Learned => "learned".into(),
            Start::Full(full) | Start::Trained(full, _) => full.name(),
        };
        let rule = match self.rule {
            Rule::Gradient { .. } => "gradient",
            Rule::Momentum { .. } => "momentum",
            Rule::Network { .. } => "network",
        };
        format!("{start}+{}x{rule}", self.steps)
    }

    fn check<P: Problem>(&self, problem: &P) -> Result<()> {
        let Start::Trained(full, weights) = &self.start else { return Ok(()) };
        let expected = full.net(problem).len();
        if weights.len() != expected {
            return Err(Error::mismatch("weights of the trained start", expected, weights.len()));
        }
        match weights.iter().find(|w| !w.is_finite()) {
            Some(w) => Err(Error::mismatch("weights of the trained start", "finite numbers", w)),
            None => Ok(()),
        }
    }

    fn layout<P: Problem>(&self, problem: &P) -> Layout {
        let mut layout = Layout::default();
        match &self.start {
            Start::Zero => {}
            Start::Learned => {
                layout.push("start", vec![problem.dim()]);
            }
            Start::Full(full) | Start::Trained(full, _) => full.net(problem).push(&mut layout, "start/"),
        }
        for i in 0..self.copies() {
            match self.rule {
                Rule::Gradient { .. } => {
                    layout.push(format!("step{i}/log_rate"), vec![]);
                }
                Rule::Momentum { .. } => {
                    layout.push(format!("step{i}/log_rate"), vec![]);
                    layout.push(format!("step{i}/decay"), vec![]);
                }
                Rule::Network { .. } => {
                    let (body, heads) = self.nets(problem.dim()).expect("the rule is a network");
                    body.push(&mut layout, &format!("step{i}/body/"));
                    heads.push(&mut layout, &format!("step{i}/heads/"));
                }
            }
        }
        layout
    }

    fn init<P: Problem>(&self, problem: &P, key: Key, out: &mut [f64]) {
        let begin: usize = match &self.start {
            Start::Zero => 0,
            Start::Learned => problem.dim(),
            Start::Full(full) | Start::Trained(full, _) => full.net(problem).len(),
        };
        let (start, rest) = out.split_at_mut(begin);
        match &self.start {
            Start::Zero => {}
            Start::Learned => {
                start.fill(0.0);
                start[0] = 1e-3;
            }
            Start::Full(full) => full.init(problem, key.named("start"), start),
            Start::Trained(_, weights) => start.copy_from_slice(weights),
        }
        let each = rest.len() / self.copies().max(1);
        for (i, part) in rest.chunks_mut(each.max(1)).enumerate() {
            match self.rule {
                Rule::Gradient { rate } => part[0] = rate.ln(),
                Rule::Momentum { rate } => part.copy_from_slice(&[rate.ln(), 0.0]),
                Rule::Network { .. } => {
                    let (body, heads) = self.nets(problem.dim()).expect("the rule is a network");
                    let (a, b) = part.split_at_mut(body.len());
                    body.fill(key.named("body").fold_in(i as u64), a);
                    heads.fill(key.named("heads").fold_in(i as u64), b);
                    // Small steps at first: gates nearly shut, offsets near 0.
                    b.iter_mut().for_each(|w| *w *= 0.1);
                    let (bias, dim) = (b.len() - 2 * problem.dim(), problem.dim());
                    b[bias..bias + dim].fill(-2.0);
                }
            }
        }
    }

    fn predict<P: Problem, E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        problem: &P,
        at: &Query<'_, E, B>,
        params: &DynParams<E, B>,
        m: M,
    ) -> Vec<Rows<E, B, M>> {
        let (n, d) = (at.x.shape().0, problem.dim());
        let is_sphere = problem.domain() == Domain::Sphere;
        // On the sphere an iterate is put back, so that rates keep their meaning.
        let retract = |y| if is_sphere { problem.project(y) } else { y };
        let start: Rows<E, B, M> = match &self.start {
            Start::Zero => {
                let axis = E::of(f64::from(u8::from(is_sphere)));
                let zero = at.x.device().filled((n, d), |y| y.chunks_mut(d).for_each(|y| y[0] = axis));
                zero.put_tape(m)
            }
            Start::Learned => ops::repeat_row(params.traced(0, (d,), m), n),
            Start::Full(full) | Start::Trained(full, _) => {
                full.predict(problem, at, params, m).pop().expect("one prediction")
            }
        };
        let first = self.start_tensors(problem);
        let first_own = first + self.copies() * self.tensors();
        let mut iterates = vec![retract(start)];
        let mut velocity = None;
        for t in 0..self.steps {
            let y = iterates[t].clone();
            let noisy = Query { x: at.x, key: at.key.named("step").fold_in(t as u64) };
            let g = self.gradient(problem, &noisy, (params, first_own), y.clone());
            let copy = if self.weights == Weights::Shared { 0 } else { t };
            let place = first + copy * self.tensors();
            iterates.push(retract(self.step(params, place, (y, g), &mut velocity, m)));
        }
        iterates
    }
}
