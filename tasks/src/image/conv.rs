//! Small convolutional classifiers.

use super::layers::{dense, push_layer, Nonlinearity, Rows};
use super::task::{ImageModel, ImageTask};
use super::{error_rate, joined};
use crate::data::{ImageBatch, ImageData};
use dfdx::prelude::PutTape;
use outerloop_core::ops::{self, Activation, Padding};
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, NoneTape, Rank0, Tensor};
use outerloop_core::{Float, Layout, Metric};
use serde::{Deserialize, Serialize};

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
pub type ConvTask = ImageTask<ConvConfig>;

impl ConvConfig {
    /// The logits `[N, classes]`.
    fn logits<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        data: &ImageData,
        params: &DynParams<E, B>,
        batch: &ImageBatch<usize, E, B>,
        m: M,
    ) -> Rows<E, B, M> {
        let shape = (batch.len(), data.height, data.width, data.channels);
        let mut x = ops::reshape(batch.images.clone(), shape).put_tape(m); // [N, H, W, C]
        let mut inputs = data.channels;
        for (i, &outputs) in self.channels.iter().enumerate() {
            let w = params.get(2 * i, (WINDOW, WINDOW, inputs, outputs));
            let b = params.get(2 * i + 1, (outputs,));
            let stride = if i == 0 { [2, 2] } else { [1, 1] };
            let layer = |act| ops::conv2d(x, &w, &b, stride, Padding::Same, act);
            x = self.nonlinearity.after(layer);
            inputs = outputs;
        }
        let pooled = match self.pooling {
            Pooling::Mean => ops::global_avg_pool(x),
            Pooling::Max => ops::global_max_pool(x),
        }; // [N, C]
        let index = 2 * self.channels.len();
        dense(params, index, pooled, data.classes, Activation::Identity)
    }
}

impl ImageModel for ConvConfig {
    const WIDTHS: &'static str = "conv: channels";

    fn name(&self) -> String {
        let pooling = if self.pooling == Pooling::Max { "_max" } else { "" };
        format!("conv{}_{}{pooling}", joined(&self.channels), self.nonlinearity.name())
    }
    fn widths(&self) -> &[usize] {
        &self.channels
    }
    fn init_scale(&self) -> f64 {
        self.init_scale
    }
    fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn layout(&self, data: &ImageData) -> Layout {
        let mut layout = Layout::default();
        let mut inputs = data.channels;
        for (i, &outputs) in self.channels.iter().enumerate() {
            push_layer(&mut layout, i, [WINDOW, WINDOW, inputs, outputs]);
            inputs = outputs;
        }
        push_layer(&mut layout, self.channels.len(), [inputs, data.classes]);
        layout
    }

    fn loss<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        data: &ImageData,
        params: &DynParams<E, B>,
        _: &mut [E],
        batch: &ImageBatch<usize, E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        ops::softmax_cross_entropy(self.logits(data, params, batch, m), &batch.labels)
    }

    fn metrics<E: Float, B: Backend<E>>(
        &self,
        data: &ImageData,
        params: &DynParams<E, B>,
        _: &[E],
        batch: &ImageBatch<usize, E, B>,
    ) -> Vec<Metric> {
        error_rate(&self.logits(data, params, batch, NoneTape).as_vec(), &batch.labels)
    }

    fn normalizer(&self, data: &ImageData, loss: f64) -> f64 {
        loss.clamp(0.0, 1.5 * (data.classes as f64).ln())
    }
}
