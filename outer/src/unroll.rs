//! Inner training as trainers see it: trajectories that are advanced a window of steps at a time,
//! and reset when their run is over.

use crate::episode::{train_step, Clock, Episode, Trajectory};
use crate::fingerprint;
use crate::health::Saturated;
use crate::objective::{LossScale, Objective};
use crate::{workers::Worker, ToldLength, TruncationSchedule};
use outerloop_core::{
    BatchKey, FlatFamily, FlatTask, Float, Key, LearnedOptimizer, Linearization, Optimizer, Result, Split,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which loss a step contributes to the meta-objective; how it counts there says [`Objective`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaLoss {
    /// The training loss at the parameters before the update: costs nothing extra.
    #[default]
    Train,
    /// The loss of the same batch at the updated parameters, where the optimizer means them
    /// ([`Optimizer::evaluation_params`]).
    SameBatch,
    /// The loss of a fresh batch of this split, likewise. [`Split::OuterValid`] makes a learned optimizer stop
    /// before it overfits, or regularize.
    Fresh(Split),
}

impl MetaLoss {
    /// The batch on which the updated parameters are measured after a step on `at`; `None`: the
    /// meta-loss is the training loss before the update.
    pub(crate) fn batch(self, at: BatchKey) -> Option<BatchKey> {
        match self {
            MetaLoss::Train => None,
            MetaLoss::SameBatch => Some(at),
            MetaLoss::Fresh(split) => Some(BatchKey { split, ..at }),
        }
    }
}

/// Moves lanes out of lock-step at the start of meta-training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitialOffset {
    /// All lanes start at step 0.
    #[default]
    None,
    /// Only the step counter starts at `U{0, ..., max - 1}`: first runs are shorter, but early
    /// parameters are counted as late ones until the first reset (the reference library's way).
    Counter(u64),
    /// The lane is really trained for `U{0, ..., max - 1}` steps (at most its length − 1) with the
    /// unperturbed theta: every step's state is what it will be in the long run.
    BurnIn(u64),
}

/// A lane with its episode: trajectories in lock-step, which share task, clock and batches.
pub struct LaneRun<'a, E: Float, const N: usize> {
    /// The run that they are in.
    pub episode: &'a mut Episode<E>,
    /// Where it stands; `clock.episode` is the number of `episode`.
    pub clock: &'a mut Clock,
    /// One per optimizer.
    pub trajectories: [&'a mut Trajectory<E>; N],
    /// The outer step, on which the length of runs that start now may depend.
    pub outer_step: u64,
}

/// What one step did to a trajectory.
#[derive(Clone, Copy)]
pub(crate) enum StepOutcome<E> {
    /// It started a new run.
    Reset,
    /// Raw training loss and raw meta-loss.
    Trained { loss: E, meta: E },
}

/// What happened in a window of steps, one entry per step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// What the step contributes to the meta-objective ([`Objective`]), by default the normalized
    /// meta-loss; 0 where masked.
    pub loss: Vec<f64>,
    /// Whether the step trained; a reset consumes one step and is masked.
    pub mask: Vec<bool>,
    /// Whether the step was the last of its run.
    pub is_done: Vec<bool>,
    /// Steps done in the run after this step.
    pub inner_step: Vec<u64>,
    /// A raw loss was NaN or infinite.
    pub diverged: bool,
    /// Steps whose loss lay at an end of the objective's scale.
    pub saturated: Saturated,
}

impl Window {
    /// An empty window with room for `steps` steps.
    pub(crate) fn with_capacity(steps: usize) -> Self {
        // A run that practically never ends must not ask for all memory at once.
        let steps = steps.min(1 << 16);
        Window {
            loss: Vec::with_capacity(steps),
            mask: Vec::with_capacity(steps),
            is_done: Vec::with_capacity(steps),
            inner_step: Vec::with_capacity(steps),
            ..Window::default()
        }
    }

    /// `objective`: that of the run.
    pub(crate) fn push<E: Float>(
        &mut self,
        objective: Objective,
        task: &dyn FlatTask<E>,
        clock: &Clock,
        outcome: StepOutcome<E>,
    ) {
        let (loss, mask) = match outcome {
            StepOutcome::Reset => (0.0, false),
            StepOutcome::Trained { loss, meta } => {
                self.diverged |= !(loss.f64().is_finite() && meta.f64().is_finite());
                let Objective { scale, emphasis } = objective;
                let normalized = task.normalizer(meta.f64());
                self.saturated.count(scale.end(normalized));
                (scale.apply(normalized) * emphasis.weight(clock.inner_step - 1, clock.length), true)
            }
        };
        self.loss.push(loss);
        self.mask.push(mask);
        self.is_done.push(clock.is_done);
        self.inner_step.push(clock.inner_step);
    }
}

/// Task family, learned optimizer and rules of the game: everything that advances a trajectory.
///
/// ```
/// # use outerloop_core::{Key, Result};
/// # use outerloop_lopt::LearnableSgd;
/// # use outerloop_outer::{unroll::LaneRun, workers::Worker, TruncatedStep, TruncationSchedule};
/// # use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
/// # use std::sync::Arc;
/// # fn main() -> Result<()> {
/// let family = Arc::new(FixedDimQuadraticFamily { dim: 4 });
/// let lopt = Arc::new(LearnableSgd::default());
/// let step: TruncatedStep = TruncatedStep::new(family, lopt, TruncationSchedule::Constant(10))?;
/// let (opt, outer_step) = (step.lopt.opt_fn(&step.lopt.init(Key::new(0))), 0);
/// let (mut episode, mut clock, mut trajectory) = step.start(&*opt, Key::new(1), 0, outer_step);
/// let trajectories = [&mut trajectory];
/// let mut run = LaneRun { episode: &mut episode, clock: &mut clock, trajectories, outer_step };
/// let [window] = step.windows([&*opt], &mut run, 5, &mut Worker::default());
/// assert_eq!(window.loss.len(), 5);
/// # Ok(())
/// # }
/// ```
pub struct TruncatedStep<E: Float = f32> {
    /// Where runs get their tasks from.
    pub family: Arc<dyn FlatFamily<E>>,
    /// What is meta-trained.
    pub lopt: Arc<dyn LearnedOptimizer<E>>,
    /// Length of runs.
    pub schedule: TruncationSchedule,
    /// What optimizers are told about it.
    pub told: ToldLength,
    /// The loss that counts.
    pub meta_loss: MetaLoss,
    /// How it counts.
    pub objective: Objective,
    /// Start of the first runs.
    pub offset: InitialOffset,
}

impl<E: Float> Clone for TruncatedStep<E> {
    fn clone(&self) -> Self {
        let TruncatedStep { family, lopt, schedule, told, meta_loss, objective, offset } = self;
        TruncatedStep {
            family: family.clone(),
            lopt: lopt.clone(),
            schedule: schedule.clone(),
            told: *told,
            meta_loss: *meta_loss,
            objective: *objective,
            offset: *offset,
        }
    }
}

/// A loss, and its linearization where there is one.
pub(crate) type Linearized<E> = (E, Option<Box<dyn Linearization<E>>>);

impl<E: Float> TruncatedStep<E> {
    /// Runs of the family with lengths by `schedule`; training loss, no offset. Errors on settings of the optimizer
    /// or the schedule that are out of range.
    pub fn new(
        family: Arc<dyn FlatFamily<E>>,
        lopt: Arc<dyn LearnedOptimizer<E>>,
        schedule: TruncationSchedule,
    ) -> Result<Self> {
        lopt.validate()?;
        schedule.validate()?;
        Ok(TruncatedStep {
            family,
            lopt,
            schedule,
            told: ToldLength::default(),
            meta_loss: MetaLoss::default(),
            objective: Objective::default(),
            offset: InitialOffset::default(),
        })
    }

    /// Errors on numbers out of range.
    pub fn validate(&self) -> Result<()> {
        self.schedule.validate()?;
        self.told.validate()?;
        self.objective.validate()
    }

    /// Tells optimizers something else about the length of runs. Errors on numbers out of range.
    pub fn with_told(mut self, told: ToldLength) -> Result<Self> {
        told.validate()?;
        self.told = told;
        Ok(self)
    }

    /// Uses another meta-loss.
    #[must_use]
    pub fn with_meta_loss(mut self, meta_loss: MetaLoss) -> Self {
        self.meta_loss = meta_loss;
        self
    }

    /// Uses another scale or emphasis of losses. Errors on numbers out of range.
    pub fn with_objective(mut self, objective: Objective) -> Result<Self> {
        objective.validate()?;
        self.objective = objective;
        Ok(self)
    }

    /// Moves first runs out of lock-step.
    #[must_use]
    pub fn with_offset(mut self, offset: InitialOffset) -> Self {
        self.offset = offset;
        self
    }

    /// What a resumed run must match.
    pub fn describe(&self) -> String {
        let TruncatedStep { family, lopt, schedule, told, meta_loss, objective, offset } = self;
        let (family, lopt) = (fingerprint::of_family(&**family), fingerprint::of_lopt(&**lopt));
        let told = match told {
            ToldLength::Exact => String::new(),
            told => format!(" {told:?}"),
        };
        format!("family={family} lopt={lopt} {schedule:?}{told} {meta_loss:?} {objective:?} {offset:?}")
    }

    /// The objective of one run.
    pub(crate) fn objective_of(&self, episode: &Episode<E>) -> Objective {
        match self.objective.scale {
            LossScale::FittedLog { .. } => self.objective.fitted(&*episode.task, episode.first_loss()),
            _ => self.objective,
        }
    }

    /// Run number `episode` of a lane at its start: fresh task, parameters and optimizer state.
    pub fn start(
        &self,
        opt: &dyn Optimizer<E>,
        lane: Key,
        episode: u64,
        outer_step: u64,
    ) -> (Episode<E>, Clock, Trajectory<E>) {
        let episode = Episode::new(&self.family, lane, episode);
        let (clock, [trajectory]) = self.start_episode(&episode, [opt], outer_step);
        (episode, clock, trajectory)
    }

    /// [`Episode::start`] with the length that the schedule draws.
    fn start_episode<const N: usize>(
        &self,
        episode: &Episode<E>,
        opts: [&dyn Optimizer<E>; N],
        outer_step: u64,
    ) -> (Clock, [Trajectory<E>; N]) {
        self.start_of_length(episode, opts, self.schedule.length(outer_step, episode.keys.length))
    }

    /// [`Episode::start`] with what the optimizers are told about the length.
    pub(crate) fn start_of_length<const N: usize>(
        &self,
        episode: &Episode<E>,
        opts: [&dyn Optimizer<E>; N],
        length: Option<u64>,
    ) -> (Clock, [Trajectory<E>; N]) {
        episode.start(opts, length, self.told.told(length, episode.keys.length))
    }

    /// The first run of a lane, offset as configured; `theta` is used by a burn-in.
    pub fn start_lane(&self, theta: &[E], lane: Key, worker: &mut Worker<E>) -> (Clock, Trajectory<E>) {
        let opt = self.lopt.opt_fn(theta);
        let (mut episode, mut clock, mut trajectory) = self.start(&*opt, lane, 0, 0);
        let draw = |max: u64| (lane.named("offset").uniform() * max as f64) as u64;
        match self.offset {
            InitialOffset::None => {}
            InitialOffset::Counter(max) => clock.inner_step = draw(max),
            InitialOffset::BurnIn(max) => {
                let steps = draw(max).min(clock.length.map_or(u64::MAX, |n| n - 1));
                let trajectories = [&mut trajectory];
                let (episode, clock) = (&mut episode, &mut clock);
                let mut run = LaneRun { episode, clock, trajectories, outer_step: 0 };
                let [w] = self.windows([&*opt], &mut run, steps as usize, worker);
                run.clock.is_done |= w.diverged;
            }
        }
        (clock, trajectory)
    }

    /// Advances the trajectories of a lane by `steps` steps, each with its own optimizer. If the run is
    /// over, a step starts the next one instead of training (it is masked).
    pub fn windows<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        run: &mut LaneRun<'_, E, N>,
        steps: usize,
        worker: &mut Worker<E>,
    ) -> [Window; N] {
        let mut windows = std::array::from_fn(|_| Window::with_capacity(steps));
        for _ in 0..steps {
            let outcomes = self.advance(opts, run, worker);
            for (w, outcome) in windows.iter_mut().zip(outcomes) {
                w.push(self.objective_of(run.episode), &*run.episode.task, run.clock, outcome);
            }
        }
        windows
    }

    /// One step of [`Self::windows`].
    pub(crate) fn advance<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        run: &mut LaneRun<'_, E, N>,
        worker: &mut Worker<E>,
    ) -> [StepOutcome<E>; N] {
        let at = run.episode.batch(run.clock);
        match self.train(opts, run, worker) {
            None => [StepOutcome::Reset; N],
            Some(losses) => {
                let metas = self.meta_losses(opts, losses, at, run, worker);
                std::array::from_fn(|i| StepOutcome::Trained { loss: losses[i], meta: metas[i] })
            }
        }
    }

    /// Trains one step and returns the raw training losses; or, if the run is over, starts the next
    /// one.
    pub(crate) fn train<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        run: &mut LaneRun<'_, E, N>,
        worker: &mut Worker<E>,
    ) -> Option<[E; N]> {
        if run.clock.is_done {
            let starts = self.restart(opts, run.episode, run.clock, run.outer_step);
            run.trajectories.iter_mut().zip(starts).for_each(|(t, start)| **t = start);
            return None;
        }
        let (evaluator, grad) = worker.evaluator(&run.episode.task);
        let at = run.episode.batch(run.clock);
        let key = run.episode.keys.opt;
        let trajectories = &mut run.trajectories;
        let losses = std::array::from_fn(|i| train_step(evaluator, opts[i], trajectories[i], at, key, grad));
        run.clock.advance();
        Some(losses)
    }

    /// [`Self::train`] of one trajectory, to the same bits, that also linearizes the loss at the parameters before the
    /// update, if the task's evaluator can.
    pub(crate) fn train_linearized(
        &self,
        opt: &dyn Optimizer<E>,
        run: &mut LaneRun<'_, E, 1>,
        worker: &mut Worker<E>,
    ) -> Option<Linearized<E>> {
        if run.clock.is_done {
            return self.train([opt], run, worker).map(|[loss]| (loss, None));
        }
        let (evaluator, grad) = worker.evaluator(&run.episode.task);
        let at = run.episode.batch(run.clock);
        let t = &mut *run.trajectories[0];
        let (loss, kept) = evaluator.linearize(&t.opt.params, &mut t.model_state, at, grad);
        opt.update(&mut t.opt, grad, loss, run.episode.keys.opt);
        run.clock.advance();
        Some((loss, kept))
    }

    /// Starts the lane's next run: its trajectories at their start.
    pub(crate) fn restart<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        episode: &mut Episode<E>,
        clock: &mut Clock,
        outer_step: u64,
    ) -> [Trajectory<E>; N] {
        *episode = episode.numbered(clock.episode + 1);
        let (start, trajectories) = self.start_episode(episode, opts, outer_step);
        *clock = start;
        trajectories
    }

    /// The raw meta-losses of a step that was just trained on the batch `at` with these losses.
    pub(crate) fn meta_losses<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        losses: [E; N],
        at: BatchKey,
        run: &LaneRun<'_, E, N>,
        worker: &mut Worker<E>,
    ) -> [E; N] {
        let Some(at) = self.meta_loss.batch(at) else { return losses };
        let (evaluator, _) = worker.evaluator(&run.episode.task);
        std::array::from_fn(|i| {
            let t = &run.trajectories[i];
            evaluator.loss(&opts[i].evaluation_params(&t.opt), &t.model_state, at)
        })
    }
}

/// Its description is its debug form: trait objects have none.
impl<E: Float> std::fmt::Debug for TruncatedStep<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}
