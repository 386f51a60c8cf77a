//! The exact gradient of an unroll by an adjoint sweep.
//!
//! Forward: train, remembering states. Backward, step by step, with `a` the adjoint of the state
//! after a step: `(a, ḡ, l̄, θ̄) ← UpdateVjp(a)`, then `a.params += H(p) ḡ + l̄ g` and the step's own
//! loss term. One Hessian-vector product per step; second-order terms are exact. Memory: all states,
//! or every k-th with recomputation in between (about `2√T` states), to the same bits.
//!
//! Reference: Maclaurin, Duvenaud, Adams 2015, arXiv:1502.03492 (reverse sweep through training);
//! Griewank and Walther 2008, chapter 12 (checkpointing).

use crate::unroll::{Called, Clock, MetaLoss, Place, Trajectory, TruncatedStep, Window};
use crate::workers::Worker;
use outerloop_core::{
    BatchKey, Error, FlatTask, Float, Key, OptState, Optimizer, Result, UpdateAdjoint, UpdateVjp,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How much of the forward pass is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memory {
    /// A state every `⌈√T⌉` steps; each segment is computed twice.
    #[default]
    SquareRoot,
    /// Every state: fastest, `T` states of memory.
    All,
    /// A state every this many steps (at least 1).
    Every(usize),
    /// At most this many bytes of states: [`Memory::All`] if they fit, else the longest distance
    /// between stored states that does, at best that of [`Memory::SquareRoot`].
    Bytes(usize),
}

impl Memory {
    /// Distance between remembered states for `steps` steps of states of `state_bytes` bytes.
    pub fn every(self, steps: usize, state_bytes: usize) -> usize {
        let root = (steps as f64).sqrt().ceil() as usize;
        let every = match self {
            Memory::SquareRoot => root,
            Memory::All => steps,
            Memory::Every(k) => k,
            Memory::Bytes(limit) => {
                // k states of a segment, and steps / k segment starts.
                let fits = |k: usize| (k + steps.div_ceil(k)) * state_bytes <= limit;
                if steps * state_bytes <= limit {
                    steps
                } else {
                    (root..=steps).rev().find(|&k| fits(k)).unwrap_or(root)
                }
            }
        };
        every.clamp(1, steps.max(1))
    }
}

/// The meta-objective over a window: `Σₜ wₜ cₜ` with what the steps contribute by
/// [`TruncatedStep::objective`] (by default the normalized meta-losses); masked steps have weight 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum StepWeights {
    /// The mean over trained steps.
    #[default]
    Mean,
    /// The last trained step only.
    Final,
    /// Given weights, one per step.
    Given(Vec<f64>),
}

impl StepWeights {
    fn weights(&self, mask: &[bool]) -> Result<Vec<f64>> {
        let trained = mask.iter().filter(|m| **m).count().max(1) as f64;
        let last = mask.iter().rposition(|m| *m);
        match self {
            StepWeights::Given(w) if w.len() != mask.len() => {
                Err(Error::mismatch("step weights", mask.len(), w.len()))
            }
            _ => Ok((0..mask.len())
                .map(|t| match self {
                    _ if !mask[t] => 0.0,
                    StepWeights::Mean => 1.0 / trained,
                    StepWeights::Final => f64::from(u8::from(last == Some(t))),
                    StepWeights::Given(w) => w[t],
                })
                .collect()),
        }
    }
}

/// Settings of the sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SweepConfig {
    /// The meta-objective. Default: mean.
    pub weights: StepWeights,
    /// What is remembered. Default: every √T-th state.
    pub memory: Memory,
    /// Scales the adjoint of the state down to this 2-norm after every step, against exploding
    /// gradients; makes the result biased. Default: off.
    pub clip: Option<f64>,
}

/// A meta-loss and its gradient.
#[derive(Clone, Debug)]
pub struct Sweep<E> {
    /// The window, as [`TruncatedStep::windows`] returns it.
    pub window: Window,
    /// `Σₜ wₜ cₜ`.
    pub loss: f64,
    /// Its gradient by theta; the state at the start is a constant.
    pub grad: Vec<E>,
    /// Raw training loss before every update; NaN for a reset.
    pub train_loss: Vec<E>,
}

/// What a trained step needs in the backward sweep.
struct Step<E: Float> {
    task: Arc<dyn FlatTask<E>>,
    before: OptState<E>,
    /// Model state before the step.
    model_state: Vec<E>,
    at: BatchKey,
    key: Key,
    loss: E,
    grad: Vec<E>,
    /// Updated parameters and model state, where the meta-loss is taken there.
    after: Option<(Vec<E>, Vec<E>)>,
}

/// What a call did, for the backward sweep.
enum Replayed<E: Float> {
    /// A new run, from this state.
    Reset(OptState<E>),
    Trained(Step<E>),
}

impl<E: Float> TruncatedStep<E> {
    /// [`Self::windows`] of one trajectory with the exact gradient of the meta-objective by theta. Advances the
    /// trajectory as `windows` does, to the same bits. The state at the start is a constant, unless it
    /// is the fresh state of a run; a reset cuts the chain.
    ///
    /// Errors if the optimizer has no [`outerloop_core::UpdateVjp`].
    #[allow(clippy::too_many_arguments)] // as `windows`
    pub fn window_and_grad(
        &self,
        theta: &[E],
        lane: Key,
        clock: &mut Clock,
        trajectory: &mut Trajectory<E>,
        steps: usize,
        outer_step: u64,
        worker: &mut Worker<E>,
        config: &SweepConfig,
    ) -> Result<Sweep<E>> {
        let opt = self.lopt.opt_fn(theta);
        let vjp = opt.update_vjp().ok_or_else(|| {
            let why =
                "its update has no derivative; implement `Optimizer::update_vjp` or use an ES estimator";
            Error::invalid(format!("optimizer {}", opt.name()), why)
        })?;
        let fresh_start = (!clock.is_done && trajectory.opt.step == 0).then(|| trajectory.opt.clone());
        // Forward, with a state remembered every k calls.
        let bytes = size_of::<E>() * (2 * trajectory.opt.params.len()) + trajectory.opt.slot_bytes();
        let every = config.memory.every(steps, bytes);
        // The last segment is recorded right away, the others when the sweep comes to them.
        let last = steps.saturating_sub(1) / every * every;
        let mut saved: Vec<(Clock, Trajectory<E>)> = Vec::new();
        let mut segment: Vec<Replayed<E>> = Vec::new();
        let mut window = Window::with_capacity(steps);
        // Raw meta-losses and their emphasis.
        let mut metas: Vec<(f64, f64)> = Vec::with_capacity(steps);
        let mut train_loss: Vec<E> = Vec::with_capacity(steps);
        let mut place = self.place(lane, clock.episode);
        for t in 0..steps {
            let called = if t < last {
                if t % every == 0 {
                    saved.push((clock.clone(), trajectory.clone()));
                }
                let t = &mut [&mut *trajectory];
                let [called] = self.call([&*opt], lane, &mut place, clock, t, outer_step, worker);
                called
            } else {
                let step = self.record(&*opt, lane, &mut place, clock, trajectory, outer_step, worker);
                let called = match &step {
                    Replayed::Reset(_) => Called::Reset,
                    Replayed::Trained(s) => {
                        let [meta] = self.metas([s.loss], s.at, &place, &[&mut *trajectory], worker);
                        Called::Trained { loss: s.loss, meta }
                    }
                };
                segment.push(step);
                called
            };
            window.push(&self.objective, &*place.task, clock, called);
            let (loss, meta) = match called {
                Called::Reset => (E::of(f64::NAN), f64::NAN),
                Called::Trained { loss, meta } => (loss, meta.f64()),
            };
            train_loss.push(loss);
            // The clock stands after the step, of which there is none at a reset.
            let done = clock.inner_step.saturating_sub(1);
            metas.push((meta, self.objective.emphasis.weight(done, clock.length)));
        }
        let weights = config.weights.weights(&window.mask)?;
        let weighted = window.loss.iter().zip(&weights).filter(|(_, w)| **w != 0.0);
        let loss = weighted.map(|(l, w)| l * w).sum();

        // Backward, segment by segment.
        let mut grad = ThetaSum::new(theta.len());
        let mut adjoint: Option<OptState<E>> = None;
        let mut first = last;
        loop {
            while let Some(step) = segment.pop() {
                let step = match step {
                    // The new run's start does not depend on the old run, only on theta through `init`.
                    Replayed::Reset(start) => {
                        if let Some(a) = adjoint.take() {
                            grad.add(|part| vjp.init_vjp(&start, &a, part));
                        }
                        continue;
                    }
                    Replayed::Trained(step) => step,
                };
                let t = first + segment.len();
                let slope = match weights[t] {
                    0.0 => 0.0,
                    w => w * metas[t].1 * self.objective.slope(&*step.task, metas[t].0),
                };
                let a = adjoint.take().unwrap_or_else(|| step.before.zeros_like());
                let slope = E::of(slope);
                let mut a = grad.add(|part| self.step_back(vjp, &step, a, slope, part, worker));
                if let Some(limit) = config.clip {
                    clip_norm(&mut a, limit);
                }
                adjoint = Some(a);
            }
            let Some((mut clock, mut trajectory)) = saved.pop() else { break };
            first = saved.len() * every;
            let mut place = self.place(lane, clock.episode);
            segment.extend((0..every).map(|_| {
                self.record(&*opt, lane, &mut place, &mut clock, &mut trajectory, outer_step, worker)
            }));
        }
        // A window that begins with a fresh run depends on theta through that run's `init`, too.
        if let (Some(a), Some(start)) = (adjoint, fresh_start) {
            grad.add(|part| vjp.init_vjp(&start, &a, part));
        }
        Ok(Sweep { window, loss, grad: grad.total(), train_loss })
    }

    /// Trains one step, remembering what [`Self::step_back`] needs.
    #[allow(clippy::too_many_arguments)] // as `windows`
    fn record(
        &self,
        opt: &dyn Optimizer<E>,
        lane: Key,
        place: &mut Place<E>,
        clock: &mut Clock,
        t: &mut Trajectory<E>,
        outer_step: u64,
        worker: &mut Worker<E>,
    ) -> Replayed<E> {
        let at = place.batch(clock);
        let (before, model_state) = (t.opt.clone(), t.model_state.clone());
        let Some([loss]) = self.train([opt], lane, place, clock, &mut [&mut *t], outer_step, worker) else {
            return Replayed::Reset(t.opt.clone());
        };
        let after = self.meta_loss.batch(at).map(|_| (t.opt.params.clone(), t.model_state.clone()));
        let (task, key, grad) = (place.task.clone(), place.keys.opt, worker.grad.clone());
        Replayed::Trained(Step { task, before, model_state, at, key, loss, grad, after })
    }

    /// The adjoint of the state before a step from the adjoint `a` after it; `slope` is the derivative
    /// of the meta-objective by this step's raw meta-loss.
    fn step_back(
        &self,
        vjp: &dyn UpdateVjp<E>,
        step: &Step<E>,
        mut a: OptState<E>,
        slope: E,
        theta: &mut [E],
        worker: &mut Worker<E>,
    ) -> OptState<E> {
        let zero = E::of(0.0);
        let n = step.grad.len();
        let (evaluator, _) = worker.evaluator(&step.task);
        if let (Some((params, model_state)), Some(at)) = (&step.after, self.meta_loss.batch(step.at)) {
            if slope != zero {
                let mut g = vec![zero; n];
                evaluator.loss_and_grad(params, &mut model_state.clone(), at, &mut g);
                add_scaled(&mut a.params, slope, &g);
            }
        }
        let UpdateAdjoint { mut state, grad, loss } =
            vjp.vjp(&step.before, &step.grad, step.loss, step.key, &a, theta);
        // a.params += H ḡ + (l̄ + slope) g
        if grad.iter().any(|g| *g != zero) {
            let (mut g, mut hv) = (vec![zero; n], vec![zero; n]);
            evaluator.loss_grad_hvp(&step.before.params, &step.model_state, step.at, &grad, &mut g, &mut hv);
            add_scaled(&mut state.params, E::of(1.0), &hv);
        }
        let direct = if self.meta_loss == MetaLoss::Train { loss + slope } else { loss };
        if direct != zero {
            add_scaled(&mut state.params, direct, &step.grad);
        }
        state
    }
}

/// Theta's adjoint. Each step's part is summed in f64, so that rounding does not grow with the length.
struct ThetaSum<E> {
    sum: Vec<f64>,
    part: Vec<E>,
}

impl<E: Float> ThetaSum<E> {
    fn new(len: usize) -> Self {
        ThetaSum { sum: vec![0.0; len], part: vec![E::of(0.0); len] }
    }

    /// Adds what `f` adds to the zeros it is given.
    fn add<R>(&mut self, f: impl FnOnce(&mut [E]) -> R) -> R {
        self.part.fill(E::of(0.0));
        let result = f(&mut self.part);
        for (s, p) in self.sum.iter_mut().zip(&self.part) {
            *s += p.f64();
        }
        result
    }

    fn total(&self) -> Vec<E> {
        self.sum.iter().map(|s| E::of(*s)).collect()
    }
}

fn add_scaled<E: Float>(out: &mut [E], c: E, x: &[E]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o += c * *x;
    }
}

fn clip_norm<E: Float>(a: &mut OptState<E>, limit: f64) {
    let all = || a.slots.iter().map(|s| &s.data).chain([&a.params]).flatten();
    let norm = all().map(|x| x.f64() * x.f64()).sum::<f64>().sqrt();
    if norm > limit {
        let c = E::of(limit / norm);
        let slots = a.slots.iter_mut().map(|s| &mut s.data);
        slots.chain([&mut a.params]).flatten().for_each(|x| *x *= c);
    }
}
