//! Augmentations: tasks made harder or stranger, so that a learned optimizer meets more than its
//! training tasks.
//!
//! | augmentation | effect |
//! |---|---|
//! | [`ReparamWeights`] | stored parameters are the task's divided by random scales |
//! | [`ReducedBatchsize`] | the first rows of every batch |
//! | [`ModifyGradient`] of [`NormalizeGradient`] | gradients of norm 1 |
//! | [`ModifyGradient`] of [`NoisyGradient`] | gradients with noise of a given relative size |
//! | [`ModifyGradient`] of [`SubsampleDirections`] | gradients projected on a few random directions |
//! | [`EsGradient`] | gradients estimated by evolution strategies |
//! | [`DelayedGradients`] | gradients at parameters of some steps ago |
//!
//! All but [`ReducedBatchsize`] see flat buffers only, so they wrap any task and each other. Where
//! the gradient that the optimizer sees is no longer the loss's slope, an evaluator's "Hessian times
//! `v`" is the transposed Jacobian of that gradient times `v`: what differentiating an unroll needs.
//!
//! Reference: `learned_optimization/tasks/task_augmentation.py` and `es_wrapper.py`.

mod around;
mod delayed_gradients;
mod es_gradient;
mod modify_gradient;
mod noisy_gradient;
mod normalize_gradient;
mod reduced_batchsize;
mod reparam_weights;
mod subsample_directions;

pub use delayed_gradients::DelayedGradients;
pub use es_gradient::EsGradient;
pub use modify_gradient::{GradientMap, ModifyGradient};
pub use noisy_gradient::NoisyGradient;
pub use normalize_gradient::NormalizeGradient;
pub use reduced_batchsize::{KeepRows, ReducedBatchsize, ReducedBatchsizeFamily};
pub use reparam_weights::{ReparamLevel, ReparamWeights};
pub use subsample_directions::SubsampleDirections;

use around::Wrapper;
use outerloop_core::{BatchKey, Device, Evaluator, FlatFamily, FlatTask, Float, Key, Layout, Metric, Params};
use std::sync::Arc;

/// A change of a task. Randomness of the change itself (scales) comes from the key; randomness within
/// training (directions, perturbations) from the batch's.
///
/// ```
/// use outerloop_core::{FlatTask, Key, Typed};
/// use outerloop_tasks::augment::{Augmentation, ReparamLevel, ReparamWeights};
/// use outerloop_tasks::quadratics::QuadraticTask;
/// use std::sync::Arc;
/// # fn main() -> outerloop_core::Result<()> {
/// let task: Arc<dyn FlatTask> = Arc::new(Typed::new(QuadraticTask::new(10)));
/// let harder = ReparamWeights::new(ReparamLevel::Parameter, 1e-2..=1e2)?.apply(task, Key::new(0));
/// # Ok(()) }
/// ```
pub trait Augmentation<E: Float = f32>: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;
    /// The changed task; a pure function of the arguments.
    fn apply(&self, task: Arc<dyn FlatTask<E>>, key: Key) -> Arc<dyn FlatTask<E>>;
}

/// A family whose tasks are all augmented, each with its own key.
pub struct AugmentedFamily<E: Float = f32> {
    /// Where the tasks come from.
    pub family: Arc<dyn FlatFamily<E>>,
    /// What is done to them.
    pub augmentation: Arc<dyn Augmentation<E>>,
}

impl<E: Float> FlatFamily<E> for AugmentedFamily<E> {
    fn name(&self) -> String {
        format!("{}_{}", self.family.name(), self.augmentation.name())
    }
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask<E>> {
        let [task, change] = key.split();
        self.augmentation.apply(self.family.sample_task(task), change)
    }
}

/// A task with what an augmentation changes about it.
struct Wrapped<E: Float, W> {
    task: Arc<dyn FlatTask<E>>,
    augmentation: String,
    wrapper: W,
}

impl<E: Float, W: Wrapper<E>> FlatTask<E> for Wrapped<E, W> {
    fn name(&self) -> String {
        format!("{}_{}", self.task.name(), self.augmentation)
    }
    fn layout(&self) -> Arc<Layout> {
        self.task.layout()
    }
    fn init(&self, key: Key) -> Params<E> {
        let mut params = self.task.init(key);
        self.wrapper.init(&mut params.data);
        params
    }
    fn init_state(&self) -> Vec<E> {
        let mut state = self.task.init_state();
        let own = self.wrapper.state_len(self.task.layout().len());
        state.resize(state.len() + own, E::of(0.0));
        state
    }
    fn evaluator(&self) -> Box<dyn Evaluator<E>> {
        self.wrapper.evaluator(self.task.evaluator())
    }
    fn normalizer(&self, loss: f64) -> f64 {
        self.task.normalizer(loss)
    }
    fn device(&self) -> Device {
        self.task.device()
    }
    fn metrics(&self, params: &[E], state: &[E], at: BatchKey) -> Vec<Metric> {
        let (state, own) = state.split_at(state.len() - self.wrapper.state_len(params.len()));
        let mut room = Vec::new();
        self.task.metrics(self.wrapper.seen(params, own, &mut room), state, at)
    }
}
