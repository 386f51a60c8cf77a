//! The first rows of every batch.

use crate::data::ImageBatch;
use outerloop_core::tensor::{Backend, Dim, HasShape, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Error, Float, Key, Result, Task, TaskFamily};

/// A batch of independent examples.
pub trait KeepRows<E: Float, B: Backend<E>> {
    /// Number of examples.
    fn rows(&self) -> usize;
    /// Drops all but the first `rows` examples.
    fn keep_rows(&mut self, rows: usize);
}

impl<F: Dim, E: Float, B: Backend<E>> KeepRows<E, B> for ImageBatch<F, E, B> {
    fn rows(&self) -> usize {
        self.len()
    }
    fn keep_rows(&mut self, rows: usize) {
        let features = self.images.shape().1;
        let pixels = B::host(&self.images)[..rows * features.size()].to_vec();
        self.images = self.images.device().tensor_from_vec(pixels, (rows, features));
        self.labels.truncate(rows);
    }
}

/// A task on the first `max(1, ⌊fraction · N⌋)` of the `N` examples of every batch: noisier gradients
/// of the same expectation.
#[derive(Clone, Debug)]
pub struct ReducedBatchsize<T> {
    task: T,
    fraction: f64,
}

fn check_fraction(fraction: f64) -> Result<()> {
    if fraction > 0.0 && fraction <= 1.0 {
        return Ok(());
    }
    let why = format!("must be above 0 and at most 1, got {fraction}");
    Err(Error::invalid("reduced batch size: fraction", why))
}

impl<T> ReducedBatchsize<T> {
    /// `fraction` in `(0, 1]`.
    pub fn new(task: T, fraction: f64) -> Result<Self> {
        check_fraction(fraction)?;
        Ok(ReducedBatchsize { task, fraction })
    }
}

impl<E: Float, B: Backend<E>, T: Task<E, B>> Task<E, B> for ReducedBatchsize<T>
where
    T::Batch: KeepRows<E, B>,
{
    type Params = T::Params;
    type Batch = T::Batch;

    fn name(&self) -> String {
        format!("{}_batch{}", self.task.name(), self.fraction)
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        self.task.init(dev, key)
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let mut batch = self.task.batch(dev, at);
        let rows = (batch.rows() as f64 * self.fraction) as usize;
        batch.keep_rows(rows.max(1));
        batch
    }
    fn loss<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        self.task.loss(params, batch, m)
    }
    fn init_state(&self) -> Vec<E> {
        self.task.init_state()
    }
    fn loss_with_state<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        state: &mut [E],
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        self.task.loss_with_state(params, state, batch, m)
    }
    fn closed_form(&self, params: &[E], batch: &Self::Batch, grad: Option<&mut [E]>) -> Option<E> {
        self.task.closed_form(params, batch, grad)
    }
    fn hvp(&self, params: &[E], batch: &Self::Batch, v: &[E], out: &mut [E]) -> bool {
        self.task.hvp(params, batch, v, out)
    }
    fn normalizer(&self, loss: f64) -> f64 {
        self.task.normalizer(loss)
    }
}

/// A family whose tasks all have reduced batches.
#[derive(Clone, Debug)]
pub struct ReducedBatchsizeFamily<F> {
    family: F,
    fraction: f64,
}

impl<F> ReducedBatchsizeFamily<F> {
    /// `fraction` in `(0, 1]`.
    pub fn new(family: F, fraction: f64) -> Result<Self> {
        check_fraction(fraction)?;
        Ok(ReducedBatchsizeFamily { family, fraction })
    }
}

impl<F: TaskFamily> TaskFamily for ReducedBatchsizeFamily<F> {
    type Config = F::Config;
    type Task = ReducedBatchsize<F::Task>;

    fn name(&self) -> String {
        format!("{}_batch{}", self.family.name(), self.fraction)
    }
    fn sample(&self, key: Key) -> Self::Config {
        self.family.sample(key)
    }
    fn task(&self, config: &Self::Config) -> Self::Task {
        ReducedBatchsize { task: self.family.task(config), fraction: self.fraction }
    }
}
