//! MLPs whose shapes are known at run time only.

use super::fused::FusedNet;
use super::layers::{dense, one_hot_mse, push_layer, Nonlinearity, Rows};
use super::task::{ImageModel, ImageTask};
use super::{error_rate, joined, normalize_cross_entropy, normalize_mse};
use crate::data::{ImageBatch, ImageData, Splits};
use dfdx::prelude::PutTape;
use outerloop_core::ops::{batch_norm, layer_norm, softmax_cross_entropy, Activation, Head};
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, NoneTape, Rank0, Tensor};
use outerloop_core::{in_f32, Evaluator, Float, Layout, Metric};
use serde::{Deserialize, Serialize};

/// Decay of batch norm's running averages: haiku's usual value.
const AVERAGE_DECAY: f64 = 0.9;

/// What normalizes the inputs of the hidden nonlinearities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Norm {
    /// Nothing.
    None,
    /// Layer norm with learned scale and offset, eps 1e-5.
    Layer,
    /// Batch norm with learned scale and offset, eps 1e-5, by the batch's own statistics in training
    /// and in evaluation alike (the reference always runs in training mode). Running averages are
    /// kept in the model state; see [`MlpTask::batch_norm_averages`].
    Batch,
}

/// What an image classifier minimizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ImageLoss {
    /// Mean softmax cross entropy in nats. For meta-training clipped to `[0, 1.5 ln classes]`, NaN
    /// becoming the maximum.
    CrossEntropy,
    /// Mean over images and classes of `(logit − onehot)²`. For meta-training `10 min(loss, 1)`,
    /// anything not finite becoming 10.
    MeanSquaredError,
}

/// Architecture and batch size of an [`MlpTask`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MlpConfig {
    /// Widths of the hidden layers, from the input on; may be empty (a linear model). Default `[32]`.
    pub hidden: Vec<usize>,
    /// Default [`Nonlinearity::Relu`].
    pub nonlinearity: Nonlinearity,
    /// Default [`Norm::None`].
    pub norm: Norm,
    /// Default [`ImageLoss::CrossEntropy`].
    pub loss: ImageLoss,
    /// Factor on the initial weights' standard deviation `1/sqrt(fan_in)`. Default 1.
    pub init_scale: f64,
    /// Images per batch. Default 128.
    pub batch_size: usize,
}

impl Default for MlpConfig {
    fn default() -> Self {
        MlpConfig {
            hidden: vec![32],
            nonlinearity: Nonlinearity::Relu,
            norm: Norm::None,
            loss: ImageLoss::CrossEntropy,
            init_scale: 1.0,
            batch_size: 128,
        }
    }
}

/// Image classification by an MLP of any widths and depth.
///
/// Layer `i` has `w{i}` `[inputs, outputs]` and `b{i}` `[outputs]`; with a norm, hidden layers also
/// have `scale{i}` and `offset{i}` `[outputs]`. Initial weights: normal truncated at 2 sigma, sigma
/// `init_scale / sqrt(inputs)`; biases and offsets 0, scales 1.
///
/// With batch norm the model state is the number of batches seen, then per hidden layer the moving
/// sums of means and variances; read it with [`MlpTask::batch_norm_averages`].
pub type MlpTask = ImageTask<MlpConfig>;

/// Batch norm's running averages of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormAverages<E> {
    /// Mean of each output.
    pub mean: Vec<E>,
    /// Biased variance of each output.
    pub var: Vec<E>,
}

impl MlpTask {
    /// Batch norm's averages per hidden layer, from the model state: exponential moving averages
    /// with decay 0.9, debiased by `1 − 0.9^batches`. Before the first batch they are NaN.
    pub fn batch_norm_averages<E: Float>(&self, state: &[E]) -> Vec<BatchNormAverages<E>> {
        let Some((batches, mut sums)) = state.split_first() else { return Vec::new() };
        let weight = E::of(1.0 - AVERAGE_DECAY.powf(batches.f64()));
        let mut take = |n: usize| {
            let (head, tail) = sums.split_at(n);
            sums = tail;
            head.iter().map(|s| *s / weight).collect()
        };
        self.config().hidden.iter().map(|&n| BatchNormAverages { mean: take(n), var: take(n) }).collect()
    }
}

impl MlpConfig {
    /// The logits `[N, classes]`; updates the averages if there is a state.
    fn logits<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        state: &mut [E],
        batch: &ImageBatch<usize, E, B>,
        classes: usize,
        m: M,
    ) -> Rows<E, B, M> {
        let MlpConfig { hidden, nonlinearity, norm, .. } = self;
        let mut averages = match state {
            [] => None,
            [batches, sums @ ..] => {
                *batches += E::of(1.0);
                Some(sums)
            }
        };
        // s ← 0.9 s + 0.1 x
        let mut average = |values: Vec<E>| {
            if let Some(sums) = averages.take() {
                let (head, tail) = sums.split_at_mut(values.len());
                for (s, x) in head.iter_mut().zip(values) {
                    *s = E::of(AVERAGE_DECAY) * *s + E::of(1.0 - AVERAGE_DECAY) * x;
                }
                averages = Some(tail);
            }
        };
        let mut x = batch.images.clone().put_tape(m);
        let mut index = 0;
        for &outputs in hidden {
            let layer = |act| dense(params, index, x, outputs, act);
            if *norm == Norm::None {
                x = nonlinearity.after(layer);
                index += 2;
                continue;
            }
            let z = layer(Activation::Identity);
            let (scale, offset) = (params.get(index + 2, (outputs,)), params.get(index + 3, (outputs,)));
            x = nonlinearity.apply(if *norm == Norm::Layer {
                layer_norm(z, &scale, &offset)
            } else {
                let (y, mean, var) = batch_norm(z, &scale, &offset);
                average(mean);
                average(var);
                y
            });
            index += 4;
        }
        dense(params, index, x, classes, Activation::Identity)
    }
}

impl ImageModel for MlpConfig {
    const WIDTHS: &'static str = "mlp: hidden";

    fn name(&self) -> String {
        let norm = match self.norm {
            Norm::None => "",
            Norm::Layer => "_layernorm",
            Norm::Batch => "_batchnorm",
        };
        let loss = if self.loss == ImageLoss::MeanSquaredError { "_mse" } else { "" };
        format!("mlp{}_{}{norm}{loss}", joined(&self.hidden), self.nonlinearity.name())
    }
    fn widths(&self) -> &[usize] {
        &self.hidden
    }
    fn init_scale(&self) -> f64 {
        self.init_scale
    }
    fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn layout(&self, data: &ImageData) -> Layout {
        let mut layout = Layout::default();
        let mut inputs = data.features();
        for (i, outputs) in self.hidden.iter().copied().chain([data.classes]).enumerate() {
            push_layer(&mut layout, i, [inputs, outputs]);
            if self.norm != Norm::None && i < self.hidden.len() {
                layout.push(format!("scale{i}"), [outputs]);
                layout.push(format!("offset{i}"), [outputs]);
            }
            inputs = outputs;
        }
        layout
    }

    fn loss<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        data: &ImageData,
        params: &DynParams<E, B>,
        state: &mut [E],
        batch: &ImageBatch<usize, E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let logits = self.logits(params, state, batch, data.classes, m);
        match self.loss {
            ImageLoss::CrossEntropy => softmax_cross_entropy(logits, &batch.labels),
            ImageLoss::MeanSquaredError => one_hot_mse(logits, &batch.labels),
        }
    }

    fn metrics<E: Float, B: Backend<E>>(
        &self,
        data: &ImageData,
        params: &DynParams<E, B>,
        state: &[E],
        batch: &ImageBatch<usize, E, B>,
    ) -> Vec<Metric> {
        let logits = self.logits(params, &mut state.to_vec(), batch, data.classes, NoneTape);
        error_rate(&logits.as_vec(), &batch.labels)
    }

    fn init_state<E: Float>(&self) -> Vec<E> {
        match self.norm {
            Norm::Batch => vec![E::of(0.0); 1 + 2 * self.hidden.iter().sum::<usize>()],
            Norm::None | Norm::Layer => Vec::new(),
        }
    }

    fn evaluator<E: Float>(&self, data: &Splits) -> Option<Box<dyn Evaluator<E>>> {
        if self.norm != Norm::None {
            return None;
        }
        let head = match self.loss {
            ImageLoss::CrossEntropy => Head::CrossEntropy,
            ImageLoss::MeanSquaredError => Head::SquaredError,
        };
        let (classes, map) = (data.data().classes, || self.nonlinearity.elementwise());
        in_f32(|| FusedNet::new(data, self.batch_size, &self.hidden, classes, map(), head))
    }

    fn normalizer(&self, data: &ImageData, loss: f64) -> f64 {
        match self.loss {
            ImageLoss::CrossEntropy => normalize_cross_entropy(loss, data.classes),
            ImageLoss::MeanSquaredError => normalize_mse(loss),
        }
    }
}
