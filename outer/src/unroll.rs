//! Inner training as trainers see it: trajectories that are advanced a window of steps at a time,
//! and reset when their run is over.

use crate::{objective::Objective, workers::Worker, TruncationSchedule};
use outerloop_core::{
    BatchKey, Evaluator, FlatFamily, FlatTask, Float, Key, LearnedOptimizer, OptState, Optimizer, Result,
    Split,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which loss a step contributes to the meta-objective; how it counts there says [`Objective`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaLoss {
    /// The training loss at the parameters before the update: costs nothing extra.
    #[default]
    Train,
    /// The loss of the same batch at the updated parameters.
    SameBatch,
    /// The loss of a fresh batch of this split at the updated parameters.
    Fresh(Split),
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

/// Where a trajectory stands. The two trajectories of an antithetic pair share one clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Runs started in this lane before the current one.
    pub episode: u64,
    /// Steps done in the current run.
    pub inner_step: u64,
    /// Length of the current run; `None`: it never ends.
    pub length: Option<u64>,
    /// The run is over: the next step resets.
    pub is_done: bool,
}

/// One inner training run in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trajectory<E = f32> {
    /// Parameters and optimizer slots.
    pub opt: OptState<E>,
    /// The task's model state.
    pub model_state: Vec<E>,
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
}

/// The keys of one inner training run: pure functions of lane and episode.
#[derive(Clone, Copy, Debug)]
pub struct EpisodeKeys {
    /// Samples the task of the family.
    pub task: Key,
    /// Draws initial parameters.
    pub init: Key,
    /// The stream of batches.
    pub data: Key,
    /// Given to the optimizer.
    pub opt: Key,
    length: Key,
}

impl EpisodeKeys {
    /// The keys of run number `episode` of a lane.
    pub fn new(lane: Key, episode: u64) -> Self {
        let [task, init, data, opt, length] = lane.fold_in(episode).split();
        EpisodeKeys { task, init, data, opt, length }
    }
}

/// Task family, learned optimizer and rules of the game: everything that advances a trajectory.
pub struct TruncatedStep<E: Float = f32> {
    /// Where runs get their tasks from.
    pub family: Arc<dyn FlatFamily<E>>,
    /// What is meta-trained.
    pub lopt: Arc<dyn LearnedOptimizer<E>>,
    /// Length of runs.
    pub schedule: TruncationSchedule,
    /// The loss that counts.
    pub meta_loss: MetaLoss,
    /// How it counts.
    pub objective: Objective,
    /// Start of the first runs.
    pub offset: InitialOffset,
}

impl<E: Float> TruncatedStep<E> {
    /// Runs of the family with lengths by `schedule`; training loss, no offset.
    pub fn new(
        family: Arc<dyn FlatFamily<E>>,
        lopt: Arc<dyn LearnedOptimizer<E>>,
        schedule: TruncationSchedule,
    ) -> Result<Self> {
        schedule.validate()?;
        Ok(TruncatedStep {
            family,
            lopt,
            schedule,
            meta_loss: MetaLoss::default(),
            objective: Objective::default(),
            offset: InitialOffset::default(),
        })
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
        format!(
            "family={} lopt={} schedule={:?} meta_loss={:?} {:?} offset={:?}",
            self.family.name(),
            self.lopt.architecture(),
            self.schedule,
            self.meta_loss,
            self.objective,
            self.offset
        )
    }

    /// A run at its start: fresh task, parameters and optimizer state.
    pub fn start(
        &self,
        opt: &dyn Optimizer<E>,
        lane: Key,
        episode: u64,
        outer_step: u64,
    ) -> (Arc<dyn FlatTask<E>>, Clock, Trajectory<E>) {
        let place = self.place(lane, episode);
        let length = self.schedule.length(outer_step, place.keys.length);
        let trajectory = fresh(&*place.task, opt, place.keys, length);
        (place.task, Clock { episode, inner_step: 0, length, is_done: false }, trajectory)
    }

    /// The first run of a lane, offset as configured; `theta` is used by a burn-in.
    pub fn start_lane(&self, theta: &[E], lane: Key, worker: &mut Worker<E>) -> (Clock, Trajectory<E>) {
        let opt = self.lopt.opt_fn(theta);
        let (_, mut clock, mut trajectory) = self.start(&*opt, lane, 0, 0);
        let draw = |max: u64| (lane.named("offset").uniform() * max as f64) as u64;
        match self.offset {
            InitialOffset::None => {}
            InitialOffset::Counter(max) => clock.inner_step = draw(max),
            InitialOffset::BurnIn(max) => {
                let steps = draw(max).min(clock.length.map_or(u64::MAX, |n| n - 1));
                let t = &mut trajectory;
                let [w] = self.windows([&*opt], lane, &mut clock, [t], steps as usize, 0, worker);
                clock.is_done |= w.diverged;
            }
        }
        (clock, trajectory)
    }

    /// Advances trajectories of one lane in lock-step by `steps` calls, each with its own optimizer.
    /// A call trains one step, or, if the run is over, starts the next one (masked). They share task,
    /// clock and batches, so a batch is made once for all of them.
    #[allow(clippy::too_many_arguments)] // the loop body of everything: each is one noun
    pub fn windows<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        lane: Key,
        clock: &mut Clock,
        trajectories: [&mut Trajectory<E>; N],
        steps: usize,
        outer_step: u64,
        worker: &mut Worker<E>,
    ) -> [Window; N] {
        let mut place = self.place(lane, clock.episode);
        self.windows_from(&mut place, opts, lane, clock, trajectories, steps, outer_step, worker)
    }

    /// [`Self::windows`] from where the lane's run was found.
    #[allow(clippy::too_many_arguments)] // as `windows`
    pub(crate) fn windows_from<const N: usize>(
        &self,
        place: &mut Place<E>,
        opts: [&dyn Optimizer<E>; N],
        lane: Key,
        clock: &mut Clock,
        mut trajectories: [&mut Trajectory<E>; N],
        steps: usize,
        outer_step: u64,
        worker: &mut Worker<E>,
    ) -> [Window; N] {
        let mut windows = std::array::from_fn(|_| Window::with_capacity(steps));
        for _ in 0..steps {
            let called = self.call(opts, lane, place, clock, &mut trajectories, outer_step, worker);
            for (w, called) in windows.iter_mut().zip(called) {
                w.push(&self.objective, &*place.task, clock, called);
            }
        }
        windows
    }

    /// Keys and task of a lane's run.
    pub(crate) fn place(&self, lane: Key, episode: u64) -> Place<E> {
        let keys = EpisodeKeys::new(lane, episode);
        Place { family: self.family.clone(), lane, episode, keys, task: self.family.sample_task(keys.task) }
    }

    /// [`Self::place`], kept from call to call where it is the same.
    pub(crate) fn place_kept<'a>(
        &self,
        kept: &'a mut Option<Place<E>>,
        lane: Key,
        episode: u64,
    ) -> &'a mut Place<E> {
        let is_same =
            |p: &Place<E>| Arc::ptr_eq(&p.family, &self.family) && (p.lane, p.episode) == (lane, episode);
        if !kept.as_ref().is_some_and(is_same) {
            *kept = None;
        }
        kept.get_or_insert_with(|| self.place(lane, episode))
    }

    /// One call of [`Self::windows`].
    #[allow(clippy::too_many_arguments)] // as `windows`
    pub(crate) fn call<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        lane: Key,
        place: &mut Place<E>,
        clock: &mut Clock,
        trajectories: &mut [&mut Trajectory<E>; N],
        outer_step: u64,
        worker: &mut Worker<E>,
    ) -> [Called<E>; N] {
        let at = place.batch(clock);
        match self.train(opts, lane, place, clock, trajectories, outer_step, worker) {
            None => [Called::Reset; N],
            Some(losses) => {
                let metas = self.metas(losses, at, place, trajectories, worker);
                std::array::from_fn(|i| Called::Trained { loss: losses[i], meta: metas[i] })
            }
        }
    }

    /// Trains one step and returns the raw training losses; or, if the run is over, starts the next
    /// one.
    #[allow(clippy::too_many_arguments)] // as `windows`
    pub(crate) fn train<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        lane: Key,
        place: &mut Place<E>,
        clock: &mut Clock,
        trajectories: &mut [&mut Trajectory<E>; N],
        outer_step: u64,
        worker: &mut Worker<E>,
    ) -> Option<[E; N]> {
        if clock.is_done {
            let starts = self.restart(opts, lane, place, clock, outer_step);
            trajectories.iter_mut().zip(starts).for_each(|(t, start)| **t = start);
            return None;
        }
        let (evaluator, grad) = worker.evaluator(&place.task);
        let at = place.batch(clock);
        let key = place.keys.opt;
        let losses = std::array::from_fn(|i| train_step(evaluator, opts[i], trajectories[i], at, key, grad));
        clock.advance();
        Some(losses)
    }

    /// Starts the lane's next run: its trajectories at their start.
    pub(crate) fn restart<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        lane: Key,
        place: &mut Place<E>,
        clock: &mut Clock,
        outer_step: u64,
    ) -> [Trajectory<E>; N] {
        let episode = clock.episode + 1;
        *place = self.place(lane, episode);
        let length = self.schedule.length(outer_step, place.keys.length);
        *clock = Clock { episode, inner_step: 0, length, is_done: false };
        opts.map(|opt| fresh(&*place.task, opt, place.keys, length))
    }

    /// The raw meta-losses of a step that was just trained on the batch `at` with these losses.
    pub(crate) fn metas<const N: usize>(
        &self,
        losses: [E; N],
        at: BatchKey,
        place: &Place<E>,
        trajectories: &[&mut Trajectory<E>; N],
        worker: &mut Worker<E>,
    ) -> [E; N] {
        let Some(at) = self.meta_loss.batch(at) else { return losses };
        let (evaluator, _) = worker.evaluator(&place.task);
        trajectories.each_ref().map(|t| evaluator.loss(&t.opt.params, &t.model_state, at))
    }
}

impl Clock {
    /// One step was trained.
    pub(crate) fn advance(&mut self) {
        self.inner_step += 1;
        self.is_done = self.length.is_some_and(|n| self.inner_step >= n);
    }
}

/// The run a trajectory is in.
pub(crate) struct Place<E: Float> {
    family: Arc<dyn FlatFamily<E>>,
    lane: Key,
    episode: u64,
    pub keys: EpisodeKeys,
    pub task: Arc<dyn FlatTask<E>>,
}

impl<E: Float> Place<E> {
    /// The training batch of the next step.
    pub fn batch(&self, clock: &Clock) -> BatchKey {
        BatchKey::train(clock.inner_step, self.keys.data)
    }
}

/// What one call did.
#[derive(Clone, Copy)]
pub(crate) enum Called<E> {
    Reset,
    /// Raw training loss and raw meta-loss.
    Trained {
        loss: E,
        meta: E,
    },
}

impl Window {
    /// An empty window with room for `steps` steps.
    pub(crate) fn with_capacity(steps: usize) -> Self {
        Window {
            loss: Vec::with_capacity(steps),
            mask: Vec::with_capacity(steps),
            is_done: Vec::with_capacity(steps),
            inner_step: Vec::with_capacity(steps),
            diverged: false,
        }
    }

    pub(crate) fn push<E: Float>(
        &mut self,
        objective: &Objective,
        task: &dyn FlatTask<E>,
        clock: &Clock,
        called: Called<E>,
    ) {
        let (loss, mask) = match called {
            Called::Reset => (0.0, false),
            Called::Trained { loss, meta } => {
                self.diverged |= !(loss.f64().is_finite() && meta.f64().is_finite());
                (
                    objective.scaled(task, meta.f64())
                        * objective.emphasis.weight(clock.inner_step - 1, clock.length),
                    true,
                )
            }
        };
        self.loss.push(loss);
        self.mask.push(mask);
        self.is_done.push(clock.is_done);
        self.inner_step.push(clock.inner_step);
    }
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

/// Fresh parameters and optimizer state for a task.
pub fn fresh<E: Float>(
    task: &dyn FlatTask<E>,
    opt: &dyn Optimizer<E>,
    keys: EpisodeKeys,
    num_steps: Option<u64>,
) -> Trajectory<E> {
    let params = task.init(keys.init);
    Trajectory { opt: opt.init(&params, num_steps, keys.opt), model_state: task.init_state() }
}

/// One inner step: loss and gradient at the current parameters, then the update. Returns the loss.
pub fn train_step<E: Float>(
    evaluator: &mut dyn Evaluator<E>,
    opt: &dyn Optimizer<E>,
    t: &mut Trajectory<E>,
    at: BatchKey,
    key: Key,
    grad: &mut [E],
) -> E {
    let loss = evaluator.loss_and_grad(&t.opt.params, &mut t.model_state, at, grad);
    opt.update(&mut t.opt, grad, loss, key);
    loss
}
