//! MLPs whose shapes are known at run time only.

use super::fused::FusedNet;
use super::layers::{dense, initial, one_hot_mse, Nonlinearity, Rows};
use super::{check_init_scale, check_widths, joined, normalize_cross_entropy, normalize_mse};
use crate::data::{ImageBatch, Splits};
use dfdx::prelude::PutTape;
use outerloop_core::ops::{batch_norm, layer_norm, softmax_cross_entropy, Activation, Head};
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, Rank0, Tensor};
use outerloop_core::{in_f32, BatchKey, Evaluator, Float, Key, Layout, Result, Task};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
/// sums of means and variances; read it with [`Self::batch_norm_averages`].
#[derive(Clone, Debug)]
pub struct MlpTask {
    data: Splits,
    config: MlpConfig,
    layout: Arc<Layout>,
}

/// Batch norm's running averages of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormAverages<E> {
    /// Mean of each output.
    pub mean: Vec<E>,
    /// Biased variance of each output.
    pub var: Vec<E>,
}

impl MlpTask {
    /// A task on the given data.
    pub fn new(data: Splits, config: MlpConfig) -> Result<Self> {
        data.check_batch_size(config.batch_size)?;
        check_widths("mlp: hidden", &config.hidden)?;
        check_init_scale("mlp", config.init_scale)?;
        let mut layout = Layout::default();
        let mut inputs = data.data().features();
        let widths = config.hidden.iter().copied().chain([data.data().classes]);
        for (i, outputs) in widths.enumerate() {
            layout.push(format!("w{i}"), [inputs, outputs]);
            layout.push(format!("b{i}"), [outputs]);
            if config.norm != Norm::None && i < config.hidden.len() {
                layout.push(format!("scale{i}"), [outputs]);
                layout.push(format!("offset{i}"), [outputs]);
            }
            inputs = outputs;
        }
        Ok(MlpTask { data, config, layout: Arc::new(layout) })
    }

    /// The configuration.
    pub fn config(&self) -> &MlpConfig {
        &self.config
    }
    /// The data.
    pub fn data(&self) -> &Splits {
        &self.data
    }

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
        self.config.hidden.iter().map(|&n| BatchNormAverages { mean: take(n), var: take(n) }).collect()
    }

    /// The logits `[N, classes]`; updates the averages if there is a state.
    fn logits<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        batch: &ImageBatch<usize, E, B>,
        state: &mut [E],
        m: M,
    ) -> Rows<E, B, M> {
        let MlpConfig { hidden, nonlinearity, norm, .. } = &self.config;
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
        dense(params, index, x, self.data.data().classes, Activation::Identity)
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for MlpTask {
    type Params = DynParams<E, B>;
    type Batch = ImageBatch<usize, E, B>;

    fn name(&self) -> String {
        let c = &self.config;
        let norm = match c.norm {
            Norm::None => "",
            Norm::Layer => "_layernorm",
            Norm::Batch => "_batchnorm",
        };
        let loss = if c.loss == ImageLoss::MeanSquaredError { "_mse" } else { "" };
        format!("{}_mlp{}_{}{norm}{loss}", self.data.data().name, joined(&c.hidden), c.nonlinearity.name())
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
        self.loss_with_state(params, &mut [], batch, m)
    }

    fn init_state(&self) -> Vec<E> {
        match self.config.norm {
            Norm::Batch => vec![E::of(0.0); 1 + 2 * self.config.hidden.iter().sum::<usize>()],
            Norm::None | Norm::Layer => Vec::new(),
        }
    }

    fn loss_with_state<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        state: &mut [E],
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let logits = self.logits(params, batch, state, m);
        match self.config.loss {
            ImageLoss::CrossEntropy => softmax_cross_entropy(logits, &batch.labels),
            ImageLoss::MeanSquaredError => one_hot_mse(logits, &batch.labels),
        }
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator<E>>> {
        let MlpConfig { hidden, nonlinearity, norm, loss, batch_size, .. } = &self.config;
        if *norm != Norm::None {
            return None;
        }
        let head = match loss {
            ImageLoss::CrossEntropy => Head::CrossEntropy,
            ImageLoss::MeanSquaredError => Head::SquaredError,
        };
        let classes = self.data.data().classes;
        in_f32(|| FusedNet::new(&self.data, *batch_size, hidden, classes, nonlinearity.elementwise(), head))
    }

    fn normalizer(&self, loss: f64) -> f64 {
        match self.config.loss {
            ImageLoss::CrossEntropy => normalize_cross_entropy(loss, self.data.data().classes),
            ImageLoss::MeanSquaredError => normalize_mse(loss),
        }
    }
}
