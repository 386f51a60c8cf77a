//! [`Task`] and [`TaskFamily`]: what is trained.

use crate::device::Movable;
use crate::tensor::{Backend, Mode, ParamTree, Rank0, Tensor};
use crate::{BatchKey, Evaluator, Float, Key};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A number beside the loss, averaged over batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Short name for tables and files.
    pub name: Cow<'static, str>,
    /// On one batch, or its mean over several.
    pub value: f64,
}

impl Metric {
    /// The part of the examples that are classified wrongly, 0 to 1.
    pub const ERROR_RATE: &'static str = "error rate";

    /// A metric of this name.
    pub fn new(name: &'static str, value: f64) -> Self {
        Metric { name: Cow::Borrowed(name), value }
    }
}

/// A problem to be trained: how to initialize parameters and the loss on a batch.
///
/// One implementation serves f32 and f64 and every dfdx device. `Params` is any dfdx tensor,
/// module, tuple, a struct declared with [`collection!`](crate::collection), or
/// [`DynParams`](crate::tensor::DynParams). Write losses with [`crate::ops`] for speed and exact
/// second derivatives; any dfdx operation works too.
///
/// Invariants, checked by [`crate::contract::check_task`]: `init` and `batch` are pure functions of
/// their key; the gradient is that of the loss; f32 agrees with f64.
///
/// ```
/// use outerloop_core::{tensor::*, BatchKey, Float, Key, Task};
/// use dfdx::prelude::*;
///
/// /// Rosenbrock's valley in two dimensions.
/// struct Rosenbrock;
///
/// impl<E: Float, B: Backend<E>> Task<E, B> for Rosenbrock {
///     type Params = (Tensor<Rank0, E, B>, Tensor<Rank0, E, B>);
///     type Batch = ();
///     fn name(&self) -> String { "rosenbrock".into() }
///     fn init(&self, dev: &B, key: Key) -> Self::Params {
///         let [kx, ky] = key.split();
///         (dev.normal(kx), dev.normal(ky))
///     }
///     fn batch(&self, _: &B, _: BatchKey) {}
///     fn loss<M: Mode<E, B>>(&self, (x, y): &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
///         let (x, y) = (x.clone().put_tape(m), y.clone().put_tape(m));
///         let valley = (y - x.clone().square()).square() * E::of(100.0);
///         valley + (-x + E::of(1.0)).square()
///     }
/// }
/// ```
pub trait Task<E: Float, B: Backend<E>>: Send + Sync + 'static {
    /// The parameters' type.
    type Params: ParamTree<E, B>;
    /// One batch of data; `()` if there is none.
    type Batch: Movable + 'static;

    /// Short name for reports.
    fn name(&self) -> String;

    /// Initial parameters.
    fn init(&self, dev: &B, key: Key) -> Self::Params;

    /// The batch that `at` names. A task that acts otherwise in training than in evaluation, as dropout does, puts
    /// what it needs of it into the batch: `at.split` is [`Split::Train`](crate::Split::Train) in training, and
    /// `at.noise()` a key of the batch's own.
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch;

    /// Overwrites `batch` with the one that `at` names; override to reuse its buffers.
    fn refill(&self, dev: &B, at: BatchKey, batch: &mut Self::Batch) {
        *batch = self.batch(dev, at);
    }

    /// The loss on a batch, traced in mode `m`: give every parameter the tape with `put_tape(m)`.
    fn loss<M: Mode<E, B>>(&self, params: &Self::Params, batch: &Self::Batch, m: M)
        -> Tensor<Rank0, E, B, M>;

    /// Initial model state: numbers that training changes but not by gradients (batch-norm
    /// averages). Empty by default.
    fn init_state(&self) -> Vec<E> {
        Vec::new()
    }

    /// [`Self::loss`] for a task with model state, which it may update in place.
    fn loss_with_state<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        state: &mut [E],
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let _ = state;
        self.loss(params, batch, m)
    }

    /// A closed form of loss and gradient over the flat buffer, where one is known; it must agree
    /// with `loss`. `None`: differentiate `loss`.
    fn closed_form(&self, params: &[E], batch: &Self::Batch, grad: Option<&mut [E]>) -> Option<E> {
        let _ = (params, batch, grad);
        None
    }

    /// A closed form of the Hessian-vector product `out = H(params) v`, where one is known; `false`
    /// if not.
    fn hvp(&self, params: &[E], batch: &Self::Batch, v: &[E], out: &mut [E]) -> bool {
        let _ = (params, batch, v, out);
        false
    }

    /// An evaluator of the task's own, used instead of differentiating [`Self::loss`], with which it
    /// must agree to rounding. `None`: there is none for this dtype ([`crate::in_f32`] helps).
    fn evaluator(&self) -> Option<Box<dyn Evaluator<E>>> {
        None
    }

    /// Numbers beside the loss that users of the task look at, such as [`Metric::ERROR_RATE`], in evaluation
    /// mode; computed when a run is evaluated, not in training. None by default.
    fn metrics(&self, params: &Self::Params, state: &[E], batch: &Self::Batch) -> Vec<Metric> {
        let _ = (params, state, batch);
        Vec::new()
    }

    /// Maps a loss into the range that meta-training sees, e.g. clips it and replaces NaN.
    /// Identity by default.
    fn normalizer(&self, loss: f64) -> f64 {
        loss
    }
}

/// A distribution over tasks: sample a configuration from a key, build the task.
pub trait TaskFamily: Send + Sync + 'static {
    /// What is sampled.
    type Config;
    /// What is built from it; implements [`Task`].
    type Task;

    /// Short name for reports.
    fn name(&self) -> String;
    /// A configuration; a pure function of the key.
    fn sample(&self, key: Key) -> Self::Config;
    /// The task of a configuration.
    fn task(&self, config: &Self::Config) -> Self::Task;
}
