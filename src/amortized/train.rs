//! Training any flat task through the learner of meta-training: checkpoints, metrics, TensorBoard and exact resume come
//! from [`outerloop_outer::run`]. Theta is the task's parameters, the estimate their gradient on a batch.

use outerloop_core::{BatchKey, FlatTask, Key, Layout, LearnedOptimizer, Optimizer, Result};
use outerloop_lopt::hand::{Adam, Sgd};
use outerloop_outer::health::Saturated;
use outerloop_outer::run::{meta_train, RunConfig, RunDir};
use outerloop_outer::{Estimate, EstimatorState, GradientEstimator, GradientLearner, LearnerState, Workers};
use std::path::PathBuf;
use std::sync::Arc;

/// The gradient of a task's loss at theta, averaged over `lanes` batches.
///
/// `g = 1/L Σᵢ ∇ loss(θ; batch i)`. Unbiased; variance that of batches, over `lanes`. Lanes run in parallel, and results
/// do not depend on the number of threads. For tasks without model state.
pub struct TaskGradient {
    task: Arc<dyn FlatTask>,
    lanes: usize,
}

impl GradientEstimator for TaskGradient {
    fn name(&self) -> String {
        "task-grad".into()
    }
    fn describe(&self) -> String {
        format!(
            "task-grad(task={}, parameters={}, lanes={})",
            self.task.name(),
            self.task.layout().len(),
            self.lanes
        )
    }
    fn init(&self, _: &[f32], key: Key, _: &Workers) -> EstimatorState {
        EstimatorState::new(key)
    }
    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let mut keys: Vec<Key> =
            (0..self.lanes).map(|i| state.key.named("batches").fold_in(i as u64)).collect();
        let parts = workers.map(&mut keys, |worker, _, key| {
            let (evaluator, grad) = worker.evaluator(&self.task);
            let loss = evaluator.loss_and_grad(theta, &mut [], BatchKey::train(outer_step, *key), grad);
            (f64::from(loss), grad.to_vec())
        });
        averaged(parts, self.lanes as u64)
    }
}

/// The mean of losses with gradients, those left out that are not finite; `inner_steps`: evaluations that were made.
pub fn averaged(parts: Vec<(f64, Vec<f32>)>, inner_steps: u64) -> Estimate {
    let len = parts.first().map_or(0, |p| p.1.len());
    let finite: Vec<_> =
        parts.iter().filter(|(l, g)| l.is_finite() && g.iter().all(|g| g.is_finite())).collect();
    let share = 1.0 / finite.len().max(1) as f64;
    let mut grad = vec![0.0; len];
    for (_, g) in &finite {
        grad.iter_mut().zip(g.iter()).for_each(|(a, g)| *a += share as f32 * g);
    }
    let mut mean_loss = finite.iter().map(|p| p.0).sum::<f64>() * share;
    if finite.is_empty() {
        // The learner leaves theta alone and counts the step.
        grad.fill(f32::NAN);
        mean_loss = f64::NAN;
    }
    let lost = parts.len() - finite.len();
    Estimate {
        grad,
        mean_loss,
        inner_steps,
        saturated: Saturated::default(),
        lanes: parts.len(),
        diverged: lost,
        masked: lost,
    }
}

/// A task's parameters in the place of theta. Its optimizer is never used.
struct Parameters(Arc<dyn FlatTask>);

impl LearnedOptimizer for Parameters {
    fn name(&self) -> String {
        self.0.name()
    }
    fn theta_layout(&self) -> Arc<Layout> {
        self.0.layout()
    }
    fn init(&self, key: Key) -> Vec<f32> {
        self.0.init(key).data
    }
    fn opt_fn(&self, _: &[f32]) -> Box<dyn Optimizer> {
        Box::new(Sgd::default())
    }
}

/// A learner that trains a task's parameters with any optimizer for `num_steps` steps of `lanes` batches: give it to
/// [`outerloop_outer::run::meta_train`], whose `meta_loss` column then is the task's loss.
///
/// # Errors
/// No steps, no lanes, or optimizer settings out of range.
pub fn task_learner(
    task: Arc<dyn FlatTask>,
    opt: Box<dyn Optimizer>,
    num_steps: u64,
    lanes: usize,
) -> Result<GradientLearner> {
    if lanes == 0 {
        return Err(outerloop_core::Error::invalid("task learner: lanes", "must be at least 1, got 0"));
    }
    parameter_learner(task.clone(), Box::new(TaskGradient { task, lanes }), opt, num_steps)
}

/// [`task_learner`] with any estimate of the gradient by the task's parameters; the task itself only says what they are
/// and how they start.
///
/// # Errors
/// No steps, or optimizer settings out of range.
pub fn parameter_learner(
    task: Arc<dyn FlatTask>,
    estimator: Box<dyn GradientEstimator>,
    opt: Box<dyn Optimizer>,
    num_steps: u64,
) -> Result<GradientLearner> {
    opt.validate()?;
    GradientLearner::new(Arc::new(Parameters(task)), vec![estimator], opt, num_steps)
}

/// Where training runs of a program go, and how.
#[derive(Clone, Debug)]
pub struct TrainRun {
    /// Every run has a directory in here.
    pub dir: PathBuf,
    /// Root of all randomness.
    pub seed: u64,
    /// Continue a run that exists.
    pub resume: bool,
}

impl TrainRun {
    /// Runs a learner on disk in `dir/name`, a checkpoint every 1000 steps, and returns its theta.
    ///
    /// # Errors
    /// As for [`meta_train`]: a directory that holds a run already, for one.
    pub fn train(&self, name: &str, learner: &GradientLearner) -> Result<Vec<f32>> {
        let dir = RunDir::new(self.dir.join(name));
        let resume = self.resume && dir.checkpoint().exists();
        let config = RunConfig { seed: self.seed, resume, checkpoint_every: 1000, ..RunConfig::default() };
        eprintln!("training {name}: {} steps", learner.num_steps());
        let state = meta_train(learner, &Workers::new(1)?, &dir, &config)?;
        Ok(learner.chosen_theta(&state).into_owned())
    }

    /// [`Self::train`] of a task's parameters by torch's Adam at a learning rate.
    ///
    /// # Errors
    /// As there.
    pub fn fit(&self, name: &str, task: Arc<dyn FlatTask>, rate: f64, steps: u64) -> Result<Vec<f32>> {
        let opt = Adam { epsilon_root: 0.0, ..Adam::new(rate) };
        self.train(name, &task_learner(task, Box::new(opt), steps, 1)?)
    }
}

/// Trains in memory, without a run directory; `seen` gets the state after every step.
pub fn train_task(
    learner: &GradientLearner,
    key: Key,
    workers: &Workers,
    mut seen: impl FnMut(&LearnerState, f64),
) -> Result<LearnerState> {
    let mut state = learner.init(key, workers)?;
    while state.outer_step < learner.num_steps() {
        let report = learner.step(&mut state, workers);
        seen(&state, report.mean_loss);
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Full;
    use crate::problems::sphere::Sphere;
    use crate::task::{AmortizedTask, Training};
    use outerloop_core::Typed;

    fn learner(steps: u64) -> GradientLearner {
        let training = Training { batch_size: 16, ..Training::default() };
        let task = AmortizedTask::new(Sphere::default(), Full::new([16]), training).expect("valid settings");
        task_learner(Arc::new(Typed::new(task)), Box::new(Adam::new(1e-2)), steps, 2).expect("valid settings")
    }

    #[test]
    fn a_run_on_disk_learns_resumes_exactly_and_does_not_depend_on_threads() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = RunConfig { progress: false, checkpoint_every: 7, ..RunConfig::default() };
        let one = Workers::new(1).expect("one thread");
        let run = RunDir::new(dir.path().join("run"));
        let whole = meta_train(&learner(40), &one, &run, &config).expect("a run");
        let (mut losses, two) = (Vec::new(), Workers::new(2).expect("two threads"));
        let memory = train_task(&learner(40), Key::new(0), &two, |_, loss| losses.push(loss)).expect("a run");
        assert_eq!(whole.theta.params, memory.theta.params);
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        assert!(mean(&losses[30..]) < mean(&losses[..5]) - 0.2, "{losses:?}");
        // Half a run, loaded again.
        let half = learner(40);
        let mut state = half.init(Key::new(0), &one).expect("a state");
        (0..20).for_each(|_| {
            half.step(&mut state, &one);
        });
        let path = RunDir::new(dir.path().join("half"));
        path.create().expect("a directory");
        path.save(&state).expect("saved");
        let resumed = meta_train(&half, &one, &path, &RunConfig { resume: true, ..config }).expect("a run");
        assert_eq!(resumed.theta.params, whole.theta.params);
    }
}
