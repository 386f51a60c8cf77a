//! What image tasks share: data, batches, initial values.

use super::layers::initial;
use crate::data::{ImageBatch, ImageData, Splits};
use outerloop_core::tensor::{Backend, DynParams, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Error, Evaluator, Float, Key, Layout, Metric, Result, Task};
use std::fmt::Debug;
use std::sync::Arc;

/// A model of images whose shapes are known at run time: its configuration, and what an
/// [`ImageTask`] of it minimizes.
pub trait ImageModel: Clone + Debug + Send + Sync + 'static {
    /// The model and what its widths are, for errors: `mlp: hidden`.
    const WIDTHS: &'static str;

    /// Short name, to follow the data's: `mlp32_relu`.
    fn name(&self) -> String;
    /// Outputs of the hidden layers, from the input on.
    fn widths(&self) -> &[usize];
    /// Factor on the initial weights' standard deviation `1/sqrt(fan_in)`.
    fn init_scale(&self) -> f64;
    /// Images per batch.
    fn batch_size(&self) -> usize;
    /// The parameters: weights are those whose names begin with `w`, and names that begin with
    /// `scale` start at 1.
    fn layout(&self, data: &ImageData) -> Layout;

    /// See [`Task::loss_with_state`].
    fn loss<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        data: &ImageData,
        params: &DynParams<E, B>,
        state: &mut [E],
        batch: &ImageBatch<usize, E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M>;
    /// See [`Task::metrics`].
    fn metrics<E: Float, B: Backend<E>>(
        &self,
        data: &ImageData,
        params: &DynParams<E, B>,
        state: &[E],
        batch: &ImageBatch<usize, E, B>,
    ) -> Vec<Metric> {
        let _ = (data, params, state, batch);
        Vec::new()
    }
    /// See [`Task::init_state`].
    fn init_state<E: Float>(&self) -> Vec<E> {
        Vec::new()
    }
    /// See [`Task::evaluator`].
    fn evaluator<E: Float>(&self, data: &Splits) -> Option<Box<dyn Evaluator<E>>> {
        let _ = data;
        None
    }
    /// See [`Task::normalizer`].
    fn normalizer(&self, data: &ImageData, loss: f64) -> f64;
}

/// A model of images on data.
#[derive(Clone, Debug)]
pub struct ImageTask<M> {
    data: Splits,
    config: M,
    layout: Arc<Layout>,
}

impl<M: ImageModel> ImageTask<M> {
    /// A task on the given data.
    ///
    /// # Errors
    /// Sizes of 0, batches that the data refuses, and an initial scale that is negative or not finite.
    pub fn new(data: Splits, config: M) -> Result<Self> {
        data.check_batch_size(config.batch_size())?;
        let (widths, scale) = (config.widths(), config.init_scale());
        if widths.contains(&0) {
            return Err(Error::invalid(M::WIDTHS, format!("every width must be at least 1, got {widths:?}")));
        }
        if !(scale.is_finite() && scale >= 0.0) {
            let model = M::WIDTHS.split(':').next().unwrap_or_default();
            let why = format!("must be finite and not negative, got {scale}");
            return Err(Error::invalid(format!("{model}: init_scale"), why));
        }
        let layout = Arc::new(config.layout(data.data()));
        Ok(ImageTask { data, config, layout })
    }

    /// The configuration.
    pub fn config(&self) -> &M {
        &self.config
    }
    /// The data.
    pub fn data(&self) -> &Splits {
        &self.data
    }
}

impl<C: ImageModel, E: Float, B: Backend<E>> Task<E, B> for ImageTask<C> {
    type Params = DynParams<E, B>;
    type Batch = ImageBatch<usize, E, B>;

    fn name(&self) -> String {
        format!("{}_{}", self.data.data().name, self.config.name())
    }

    fn init(&self, dev: &B, key: Key) -> Self::Params {
        initial(dev, &self.layout, self.config.init_scale(), key)
    }

    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        self.data.batch(dev, at, self.config.batch_size(), self.data.data().features())
    }

    fn refill(&self, _: &B, at: BatchKey, batch: &mut Self::Batch) {
        self.data.refill(at, batch);
    }

    fn loss<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        self.loss_with_state(params, &mut [], batch, m)
    }

    fn init_state(&self) -> Vec<E> {
        self.config.init_state()
    }

    fn loss_with_state<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        state: &mut [E],
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        self.config.loss(self.data.data(), params, state, batch, m)
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator<E>>> {
        self.config.evaluator(&self.data)
    }

    fn metrics(&self, params: &Self::Params, state: &[E], batch: &Self::Batch) -> Vec<Metric> {
        self.config.metrics(self.data.data(), params, state, batch)
    }

    fn normalizer(&self, loss: f64) -> f64 {
        self.config.normalizer(self.data.data(), loss)
    }
}
