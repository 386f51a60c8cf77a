//! One inner training run (an episode): its keys, its task, and where it stands.

use outerloop_core::{BatchKey, Evaluator, FlatFamily, FlatTask, Float, Key, OptState, Optimizer};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};

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
    pub(crate) length: Key,
}

impl EpisodeKeys {
    /// The keys of run number `episode` of a lane.
    pub fn new(lane: Key, episode: u64) -> Self {
        let [task, init, data, opt, length] = lane.fold_in(episode).split();
        EpisodeKeys { task, init, data, opt, length }
    }
}

/// One inner training run of a lane: its keys and its task.
#[derive(Clone)]
pub struct Episode<E: Float = f32> {
    /// Its keys.
    pub keys: EpisodeKeys,
    /// What is trained.
    pub task: Arc<dyn FlatTask<E>>,
    family: Arc<dyn FlatFamily<E>>,
    lane: Key,
    number: u64,
    first_loss: OnceLock<f64>,
}

impl<E: Float> Episode<E> {
    /// Run number `number` of a lane, on a task of the family.
    pub fn new(family: &Arc<dyn FlatFamily<E>>, lane: Key, number: u64) -> Self {
        let keys = EpisodeKeys::new(lane, number);
        let (task, family, first_loss) = (family.sample_task(keys.task), family.clone(), OnceLock::new());
        Episode { keys, task, family, lane, number, first_loss }
    }

    /// Run number `number` of the same lane.
    pub(crate) fn numbered(&self, number: u64) -> Self {
        if number == self.number {
            self.clone()
        } else {
            Self::new(&self.family, self.lane, number)
        }
    }

    /// [`Self::new`], kept from call to call where it is the same.
    pub(crate) fn kept<'a>(
        kept: &'a mut Option<Self>,
        family: &Arc<dyn FlatFamily<E>>,
        lane: Key,
        number: u64,
    ) -> &'a mut Self {
        let is_same = |e: &Self| Arc::ptr_eq(&e.family, family) && (e.lane, e.number) == (lane, number);
        if !kept.as_ref().is_some_and(is_same) {
            *kept = None;
        }
        kept.get_or_insert_with(|| Self::new(family, lane, number))
    }

    /// The run at its start, once for every optimizer: fresh parameters and optimizer states under one
    /// clock. `length` in inner steps, `None`: it never ends; `told`: what the optimizers hear of it.
    pub fn start<const N: usize>(
        &self,
        opts: [&dyn Optimizer<E>; N],
        length: Option<u64>,
        told: Option<u64>,
    ) -> (Clock, [Trajectory<E>; N]) {
        let clock = Clock { episode: self.number, inner_step: 0, length, is_done: false };
        (clock, opts.map(|opt| fresh(&*self.task, opt, self.keys, told)))
    }

    /// The raw loss of the first batch at the initial parameters. A function of the keys alone, computed when
    /// it is first asked for, so that it needs no saving.
    pub(crate) fn first_loss(&self) -> f64 {
        *self.first_loss.get_or_init(|| {
            let (params, at) = (self.task.init(self.keys.init), BatchKey::train(0, self.keys.data));
            self.task.evaluator().loss(&params.data, &self.task.init_state(), at).f64()
        })
    }

    /// The training batch of the next step.
    pub(crate) fn batch(&self, clock: &Clock) -> BatchKey {
        BatchKey::train(clock.inner_step, self.keys.data)
    }
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

impl Clock {
    /// One step was trained.
    pub(crate) fn advance(&mut self) {
        self.inner_step += 1;
        self.is_done = self.length.is_some_and(|n| self.inner_step >= n);
    }
}

/// One inner training run in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trajectory<E = f32> {
    /// Parameters and optimizer slots.
    pub opt: OptState<E>,
    /// The task's model state.
    pub model_state: Vec<E>,
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
