//! Small convolutional classifiers.

use super::layers::{dense, initial, Nonlinearity};
use super::{check_init_scale, check_widths, joined};
use crate::data::{ImageBatch, Splits};
use dfdx::prelude::PutTape;
use outerloop_core::ops::{self, Activation, Padding};
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Float, Key, Layout, Result, Task};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Height and width of all kernels.
const WINDOW: usize = 3;

/// How the last feature maps become one vector per image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pooling {
    /// Mean over space.
    Mean,
    /// Maximum over space.
    Max,
}

/// Architecture and batch size of a [`ConvTask`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvConfig {
    /// Output channels of the convolutions, from the image on. Default `[32, 64, 64]`.
    pub channels: Vec<usize>,
    /// Default [`Nonlinearity::Relu`].
    pub nonlinearity: Nonlinearity,
    /// Default [`Pooling::Mean`].
    pub pooling: Pooling,
    /// Factor on the initial weights' standard deviation `1/sqrt(fan_in)`. Default 1.
    pub init_scale: f64,
    /// Images per batch. Default 128.
    pub batch_size: usize,
}

impl Default for ConvConfig {
    fn default() -> Self {
        ConvConfig {
            channels: vec![32, 64, 64],
            nonlinearity: Nonlinearity::Relu,
            pooling: Pooling::Mean,
            init_scale: 1.0,
            batch_size: 128,
        }
    }
}

/// Image classification by 3 x 3 convolutions with zero padding, the first of stride 2, each followed
/// by the nonlinearity; then pooling over space, a linear layer and mean softmax cross entropy.
///
/// Convolution `i` has `w{i}` `[3, 3, inputs, outputs]` and `b{i}` `[outputs]`, the linear layer `w`
/// and `b` of the next number. Initial weights: normal truncated at 2 sigma, sigma
/// `init_scale / sqrt(fan_in)`; biases 0. For meta-training the loss is clipped to
/// `[0, 1.5 ln classes]`; NaN stays NaN.
#[derive(Clone, Debug)]
pub struct ConvTask {
    data: Splits,
    config: ConvConfig,
    layout: Arc<Layout>,
}

impl ConvTask {
    /// A task on the given data.
    pub fn new(data: Splits, config: ConvConfig) -> Result<Self> {
        data.check_batch_size(config.batch_size)?;
        check_widths("conv: channels", &config.channels)?;
        check_init_scale("conv", config.init_scale)?;
        let mut layout = Layout::default();
        let mut inputs = data.data().channels;
        for (i, &outputs) in config.channels.iter().enumerate() {
            layout.push(format!("w{i}"), [WINDOW, WINDOW, inputs, outputs]);
            layout.push(format!("b{i}"), [outputs]);
            inputs = outputs;
        }
        let last = config.channels.len();
        layout.push(format!("w{last}"), [inputs, data.data().classes]);
        layout.push(format!("b{last}"), [data.data().classes]);
        Ok(ConvTask { data, config, layout: Arc::new(layout) })
    }

    /// The configuration.
    pub fn config(&self) -> &ConvConfig {
        &self.config
    }
    /// The data.
    pub fn data(&self) -> &Splits {
        &self.data
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for ConvTask {
    type Params = DynParams<E, B>;
    type Batch = ImageBatch<usize, E, B>;

    fn name(&self) -> String {
        let c = &self.config;
        let pooling = if c.pooling == Pooling::Max { "_max" } else { "" };
        format!("{}_conv{}_{}{pooling}", self.data.data().name, joined(&c.channels), c.nonlinearity.name())
    }

    fn init(&self, dev: &B, key: Key) -> Self::Params {
        initial(dev, &self.layout, self.config.init_scale, key)
    }

    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        self.data.batch(dev, at, self.config.batch_size, self.data.data().features())
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
        let data = self.data.data();
        let shape = (batch.len(), data.height, data.width, data.channels);
        let mut x = ops::reshape(batch.images.clone(), shape).put_tape(m); // [N, H, W, C]
        let mut inputs = data.channels;
        for (i, &outputs) in self.config.channels.iter().enumerate() {
            let w = params.get(2 * i, (WINDOW, WINDOW, inputs, outputs));
            let b = params.get(2 * i + 1, (outputs,));
            let stride = if i == 0 { [2, 2] } else { [1, 1] };
            let layer = |act| ops::conv2d(x, &w, &b, stride, Padding::Same, act);
            x = self.config.nonlinearity.after(layer);
            inputs = outputs;
        }
        let pooled = match self.config.pooling {
            Pooling::Mean => ops::global_avg_pool(x),
            Pooling::Max => ops::global_max_pool(x),
        }; // [N, C]
        let index = 2 * self.config.channels.len();
        let logits = dense(params, index, pooled, data.classes, Activation::Identity);
        ops::softmax_cross_entropy(logits, &batch.labels)
    }

    fn normalizer(&self, loss: f64) -> f64 {
        loss.clamp(0.0, 1.5 * (self.data.data().classes as f64).ln())
    }
}
