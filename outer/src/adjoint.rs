//! The exact gradient of an unroll by an adjoint sweep.
//!
//! Forward: train, remembering states. Backward, step by step, with `a` the adjoint of the state
//! after a step: `(a, ḡ, l̄, θ̄) ← UpdateVjp(a)`, then `a.params += H(p) ḡ + l̄ g` and the step's own
//! loss term. One Hessian-vector product per step; second-order terms are exact. Memory: all states,
//! or every k-th with recomputation in between (about `2√T` states), to the same bits.
//!
//! Reference: Maclaurin, Duvenaud, Adams 2015, arXiv:1502.03492 (reverse sweep through training);
//! Griewank and Walther 2008, chapter 12 (checkpointing).

use crate::episode::{Clock, Trajectory};
use crate::unroll::{LaneRun, MetaLoss, StepOutcome, TruncatedStep, Window};
use crate::workers::Worker;
use outerloop_core::{
    BatchKey, Error, FlatTask, Float, Key, Linearization, OptState, Optimizer, Result, UpdateAdjoint,
    UpdateVjp,
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

/// Bytes for linearizations of the recorded steps of a segment, beside the states: each saves the backward sweep
/// the forward pass and the gradient of a step.
const LINEARIZATIONS: usize = 8 << 20;

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

impl SweepConfig {
    /// Errors on numbers out of range.
    pub fn validate(&self) -> Result<()> {
        let weights = match &self.weights {
            StepWeights::Given(w) => &w[..],
            _ => &[],
        };
        if let Some(w) = weights.iter().find(|w| !w.is_finite()) {
            return Err(Error::invalid("step weights", format!("expected finite numbers, got {w}")));
        }
        match self.clip {
            Some(c) if !(c > 0.0 && c.is_finite()) => {
                Err(Error::invalid("adjoint clip", format!("expected a positive finite number, got {c}")))
            }
            _ => Ok(()),
        }
    }
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
    /// The loss at `before`, linearized, if there was room.
    linearization: Option<Box<dyn Linearization<E>>>,
    /// Updated parameters and model state, where the meta-loss is taken there.
    after: Option<(Vec<E>, Vec<E>)>,
}

/// What a step did, for the backward sweep.
enum Recorded<E: Float> {
    /// A new run, from this state.
    Reset(OptState<E>),
    Trained(Box<Step<E>>),
}

/// What the forward pass leaves behind.
struct Forward<E: Float> {
    /// Steps of a segment.
    every: usize,
    /// The states at the start of all segments but the last.
    saved: Vec<(Clock, Trajectory<E>)>,
    /// The last segment, recorded.
    segment: Vec<Recorded<E>>,
    window: Window,
    train_loss: Vec<E>,
    /// Emphasis, and the derivative of the objective by the raw meta-loss.
    slopes: Vec<(f64, f64)>,
}

/// An unroll to be differentiated, and the thread that does it.
struct Unroll<'a, E: Float> {
    rules: &'a TruncatedStep<E>,
    opt: &'a dyn Optimizer<E>,
    vjp: &'a dyn UpdateVjp<E>,
    worker: &'a mut Worker<E>,
    /// Bytes left for linearizations of the present segment.
    room: usize,
}

impl<E: Float> TruncatedStep<E> {
    /// [`Self::windows`] of one trajectory with the exact gradient of the meta-objective by theta. Advances the
    /// trajectory as `windows` does, to the same bits. The state at the start is a constant, unless it
    /// is the fresh state of a run; a reset cuts the chain.
    ///
    /// Errors if the optimizer has no [`outerloop_core::UpdateVjp`].
    pub fn window_and_grad(
        &self,
        theta: &[E],
        run: &mut LaneRun<'_, E, 1>,
        steps: usize,
        config: &SweepConfig,
        worker: &mut Worker<E>,
    ) -> Result<Sweep<E>> {
        let opt = self.lopt.opt_fn(theta);
        let vjp = opt.update_vjp().ok_or_else(|| {
            let why =
                "its update has no derivative; implement `Optimizer::update_vjp` or use an ES estimator";
            Error::invalid(format!("optimizer {}", opt.name()), why)
        })?;
        let start = &run.trajectories[0].opt;
        let fresh_start = (!run.clock.is_done && start.step == 0).then(|| start.clone());
        let room = match config.memory {
            Memory::Bytes(limit) => LINEARIZATIONS.min(limit / 2),
            _ => LINEARIZATIONS,
        };
        let mut unroll = Unroll { rules: self, opt: &*opt, vjp, worker, room };
        let mut forward = unroll.forward(run, steps, config.memory);
        let weights = config.weights.weights(&forward.window.mask)?;
        let weighted = forward.window.loss.iter().zip(&weights).filter(|(_, w)| **w != 0.0);
        let loss = weighted.map(|(l, w)| l * w).sum();
        let slopes = weights.iter().zip(&forward.slopes).map(|(w, (emphasis, slope))| match *w {
            0.0 => E::of(0.0),
            w => E::of(w * emphasis * slope),
        });
        let slopes: Vec<E> = slopes.collect();
        let mut grad = ThetaSum::new(theta.len());
        let adjoint = unroll.backward(&mut forward, run, &slopes, config.clip, &mut grad);
        // A window that begins with a fresh run depends on theta through that run's `init`, too.
        if let (Some(a), Some(start)) = (adjoint, fresh_start) {
            grad.add(|part| vjp.init_vjp(&start, &a, part));
        }
        let Forward { window, train_loss, .. } = forward;
        Ok(Sweep { window, loss, grad: grad.total(), train_loss })
    }
}

impl<E: Float> Unroll<'_, E> {
    /// Advances the trajectory. The last segment is recorded right away, the others when the backward
    /// sweep comes to them.
    fn forward(&mut self, run: &mut LaneRun<'_, E, 1>, steps: usize, memory: Memory) -> Forward<E> {
        let start = &run.trajectories[0].opt;
        let bytes = size_of::<E>() * (2 * start.params.len()) + start.slot_bytes();
        let every = memory.every(steps, bytes);
        let last = steps.saturating_sub(1) / every * every;
        let mut forward = Forward {
            every,
            saved: Vec::new(),
            segment: Vec::new(),
            window: Window::with_capacity(steps),
            train_loss: Vec::with_capacity(steps),
            slopes: Vec::with_capacity(steps),
        };
        for t in 0..steps {
            if t < last && t % every == 0 {
                forward.saved.push((run.clock.clone(), run.trajectories[0].clone()));
            }
            let outcome = if t < last {
                let [outcome] = self.rules.advance([self.opt], run, self.worker);
                outcome
            } else {
                let (recorded, outcome) = self.record_with_outcome(run);
                forward.segment.push(recorded);
                outcome
            };
            let (task, objective) = (&*run.episode.task, self.rules.objective_of(run.episode));
            forward.window.push(objective, task, run.clock, outcome);
            let (loss, slope) = match outcome {
                StepOutcome::Reset => (E::of(f64::NAN), (0.0, 0.0)),
                StepOutcome::Trained { loss, meta } => {
                    let emphasis = objective.emphasis.weight(run.clock.inner_step - 1, run.clock.length);
                    (loss, (emphasis, objective.slope(task, meta.f64())))
                }
            };
            forward.train_loss.push(loss);
            forward.slopes.push(slope);
        }
        forward
    }

    /// Sweeps back, segment by segment, adding to theta's adjoint; returns that of the state at the start,
    /// unless the chain is cut before. `run`: the lane after the forward pass; `slopes`: the derivative
    /// of the meta-objective by every step's raw meta-loss.
    fn backward(
        &mut self,
        forward: &mut Forward<E>,
        run: &LaneRun<'_, E, 1>,
        slopes: &[E],
        clip: Option<f64>,
        grad: &mut ThetaSum<E>,
    ) -> Option<OptState<E>> {
        let vjp = self.vjp;
        let mut adjoint: Option<OptState<E>> = None;
        let Forward { every, saved, segment, .. } = forward;
        loop {
            let first = saved.len() * *every;
            while let Some(recorded) = segment.pop() {
                let step = match recorded {
                    // The new run's start does not depend on the old run, only on theta through `init`.
                    Recorded::Reset(start) => {
                        if let Some(a) = adjoint.take() {
                            grad.add(|part| vjp.init_vjp(&start, &a, part));
                        }
                        continue;
                    }
                    Recorded::Trained(step) => step,
                };
                let slope = slopes[first + segment.len()];
                let a = adjoint.take().unwrap_or_else(|| step.before.zeros_like());
                let mut step = step;
                let mut a = grad.add(|part| self.step_back(&mut step, a, slope, part));
                self.room += step.linearization.map_or(0, |l| l.bytes());
                if let Some(limit) = clip {
                    clip_norm(&mut a, limit);
                }
                adjoint = Some(a);
            }
            let Some((mut clock, mut trajectory)) = saved.pop() else { return adjoint };
            let mut episode = run.episode.numbered(clock.episode);
            let trajectories = [&mut trajectory];
            let (episode, clock, outer_step) = (&mut episode, &mut clock, run.outer_step);
            let mut again = LaneRun { episode, clock, trajectories, outer_step };
            segment.extend((0..*every).map(|_| self.record(&mut again)));
        }
    }

    /// Trains one step, remembering what [`Self::step_back`] needs.
    fn record(&mut self, run: &mut LaneRun<'_, E, 1>) -> Recorded<E> {
        let at = run.episode.batch(run.clock);
        let (before, model_state) =
            (run.trajectories[0].opt.clone(), run.trajectories[0].model_state.clone());
        let trained = match self.room {
            0 => self.rules.train([self.opt], run, self.worker).map(|[loss]| (loss, None)),
            _ => self.rules.train_linearized(self.opt, run, self.worker),
        };
        let Some((loss, mut linearization)) = trained else {
            return Recorded::Reset(run.trajectories[0].opt.clone());
        };
        if let Some(bytes) = linearization.as_ref().map(|l| l.bytes()) {
            if bytes > self.room {
                (self.room, linearization) = (0, None);
            }
            self.room -= self.room.min(bytes);
        }
        let t = &run.trajectories[0];
        let after = self.rules.meta_loss.batch(at).map(|_| (t.opt.params.clone(), t.model_state.clone()));
        let (task, key, grad) = (run.episode.task.clone(), run.episode.keys.opt, self.worker.grad.clone());
        let step = Step { task, before, model_state, at, key, loss, grad, linearization, after };
        Recorded::Trained(Box::new(step))
    }

    /// [`Self::record`], with what [`TruncatedStep::advance`] returns.
    fn record_with_outcome(&mut self, run: &mut LaneRun<'_, E, 1>) -> (Recorded<E>, StepOutcome<E>) {
        let recorded = self.record(run);
        let outcome = match &recorded {
            Recorded::Reset(_) => StepOutcome::Reset,
            Recorded::Trained(s) => {
                let [meta] = self.rules.meta_losses([self.opt], [s.loss], s.at, run, self.worker);
                StepOutcome::Trained { loss: s.loss, meta }
            }
        };
        (recorded, outcome)
    }

    /// The adjoint of the state before a step from the adjoint `a` after it; `slope` is the derivative
    /// of the meta-objective by this step's raw meta-loss.
    fn step_back(
        &mut self,
        step: &mut Step<E>,
        mut a: OptState<E>,
        slope: E,
        theta: &mut [E],
    ) -> OptState<E> {
        let zero = E::of(0.0);
        let n = step.grad.len();
        let meta_loss = self.rules.meta_loss;
        let (evaluator, _) = self.worker.evaluator(&step.task);
        if let (Some((params, model_state)), Some(at)) = (&step.after, meta_loss.batch(step.at)) {
            if slope != zero {
                let mut g = vec![zero; n];
                evaluator.loss_and_grad(params, &mut model_state.clone(), at, &mut g);
                E::add_scaled(slope, &g, &mut a.params);
            }
        }
        let UpdateAdjoint { mut state, grad, loss } =
            self.vjp.vjp(&step.before, &step.grad, step.loss, step.key, &a, theta);
        // a.params += H ḡ + (l̄ + slope) g
        if grad.iter().any(|g| *g != zero) {
            let mut hv = vec![zero; n];
            if let Some(linearization) = &mut step.linearization {
                linearization.hvp(&grad, &mut hv);
            } else {
                let (params, model_state) = (&step.before.params, &step.model_state);
                evaluator.loss_grad_hvp(params, model_state, step.at, &grad, &mut vec![zero; n], &mut hv);
            }
            E::add_scaled(E::of(1.0), &hv, &mut state.params);
        }
        let direct = if meta_loss == MetaLoss::Train { loss + slope } else { loss };
        if direct != zero {
            E::add_scaled(direct, &step.grad, &mut state.params);
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

fn clip_norm<E: Float>(a: &mut OptState<E>, limit: f64) {
    let all = || a.slots.iter().map(|s| &s.data).chain([&a.params]).flatten();
    let norm = all().map(|x| x.f64() * x.f64()).sum::<f64>().sqrt();
    if norm > limit {
        let c = E::of(limit / norm);
        let slots = a.slots.iter_mut().map(|s| &mut s.data);
        slots.chain([&mut a.params]).flatten().for_each(|x| *x *= c);
    }
}
