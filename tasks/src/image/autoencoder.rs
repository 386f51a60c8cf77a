//! Reconstruction of images by an MLP.

use super::family::{check_ranges, log_uniform, one_of};
use super::fused::FusedNet;
use super::joined;
use super::layers::{dense, push_layer, Nonlinearity};
use super::task::{ImageModel, ImageTask};
use crate::data::{ImageBatch, ImageData, Splits};
use dfdx::prelude::PutTape;
use outerloop_core::ops::{self, Activation, Head};
use outerloop_core::tensor::{Backend, DynParams, Mode, Rank0, Tensor};
use outerloop_core::{in_f32, Evaluator, Float, Key, Layout, Result, TaskFamily};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Architecture and batch size of an [`AutoencoderTask`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderConfig {
    /// Widths of the hidden layers, from the input on; the narrowest is the code. Default
    /// `[32, 32, 32]`.
    pub hidden: Vec<usize>,
    /// Of the hidden layers. Default [`Nonlinearity::Relu`].
    pub nonlinearity: Nonlinearity,
    /// Factor on the initial weights' standard deviation `1/sqrt(fan_in)`. Default 1.
    pub init_scale: f64,
    /// Images per batch. Default 128.
    pub batch_size: usize,
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        AutoencoderConfig {
            hidden: vec![32, 32, 32],
            nonlinearity: Nonlinearity::Relu,
            init_scale: 1.0,
            batch_size: 128,
        }
    }
}

/// Autoencoding of images `x` in `[0, 1]`: the mean over images and pixels of `(x − sigmoid(z))²`,
/// where `z` are the outputs of an MLP.
///
/// Layer `i` has `w{i}` `[inputs, outputs]` and `b{i}` `[outputs]`. Initial weights: normal truncated at
/// 2 sigma, sigma `init_scale / sqrt(inputs)`; biases 0. For meta-training the loss is clipped to
/// `[0, 1]`; NaN stays NaN.
pub type AutoencoderTask = ImageTask<AutoencoderConfig>;

impl ImageModel for AutoencoderConfig {
    const WIDTHS: &'static str = "autoencoder: hidden";

    fn name(&self) -> String {
        format!("autoencoder{}_{}", joined(&self.hidden), self.nonlinearity.name())
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
        for (i, outputs) in self.hidden.iter().copied().chain([inputs]).enumerate() {
            push_layer(&mut layout, i, [inputs, outputs]);
            inputs = outputs;
        }
        layout
    }

    fn loss<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        _: &ImageData,
        params: &DynParams<E, B>,
        _: &mut [E],
        batch: &ImageBatch<usize, E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let mut x = batch.images.clone().put_tape(m); // [N, F]
        for (i, &outputs) in self.hidden.iter().enumerate() {
            x = self.nonlinearity.after(|act| dense(params, 2 * i, x, outputs, act));
        }
        let y = dense(params, 2 * self.hidden.len(), x, batch.features(), Activation::Sigmoid); // [N, F]
        ops::mse(y, &batch.images)
    }

    fn evaluator<E: Float>(&self, data: &Splits) -> Option<Box<dyn Evaluator<E>>> {
        let (features, map) = (data.data().features(), || self.nonlinearity.elementwise());
        in_f32(|| FusedNet::new(data, self.batch_size, &self.hidden, features, map(), Head::Reconstruction))
    }

    fn normalizer(&self, _: &ImageData, loss: f64) -> f64 {
        loss.clamp(0.0, 1.0)
    }
}

/// [`AutoencoderTask`]s with sampled data set, widths, depth, nonlinearity, initial scale and batch
/// size. The default ranges are those of the reference's parametric family.
#[derive(Clone, Debug)]
pub struct AutoencoderFamily {
    /// One is drawn uniformly.
    pub datasets: Vec<Splits>,
    /// Width of all hidden layers, log-uniform. Default 8 to 128.
    pub width: RangeInclusive<usize>,
    /// Number of hidden layers, uniform. Default 0 to 4.
    pub layers: RangeInclusive<usize>,
    /// Drawn uniformly; repeat an entry to make it likelier. Default: all, ReLU and SiLU twice.
    pub nonlinearities: Vec<Nonlinearity>,
    /// Factor on the initial weights, uniform. Default 0.5 to 2.
    pub init_scale: RangeInclusive<f64>,
    /// Log-uniform. Default 4 to 512.
    pub batch_size: RangeInclusive<usize>,
}

impl AutoencoderFamily {
    /// The default ranges on one data set.
    pub fn new(data: Splits) -> Self {
        AutoencoderFamily {
            datasets: vec![data],
            width: 8..=128,
            layers: 0..=4,
            nonlinearities: Nonlinearity::REFERENCE.to_vec(),
            init_scale: 0.5..=2.0,
            batch_size: 4..=512,
        }
    }

    /// Errors if a range is empty or reaches 0 where it must not.
    pub fn check(&self) -> Result<()> {
        let lists = [self.datasets.len(), self.nonlinearities.len()];
        check_ranges("autoencoder", &[&self.width, &self.batch_size], &self.layers, &self.init_scale, &lists)
    }
}

impl TaskFamily for AutoencoderFamily {
    /// Index of the data set, and the architecture.
    type Config = (usize, AutoencoderConfig);
    type Task = AutoencoderTask;

    fn name(&self) -> String {
        let names: Vec<&str> = self.datasets.iter().map(|d| d.data().name.as_str()).collect();
        format!("{}_autoencoder_family", names.join("_"))
    }

    /// # Panics
    /// If [`Self::check`] fails.
    fn sample(&self, key: Key) -> Self::Config {
        self.check().unwrap_or_else(|e| panic!("{e}"));
        let mut rng = key.rng();
        let dataset = rng.gen_range(0..self.datasets.len());
        let width = log_uniform(&mut rng, &self.width);
        let config = AutoencoderConfig {
            hidden: vec![width; rng.gen_range(self.layers.clone())],
            nonlinearity: one_of(&mut rng, &self.nonlinearities),
            init_scale: rng.gen_range(self.init_scale.clone()),
            batch_size: log_uniform(&mut rng, &self.batch_size),
        };
        (dataset, config)
    }

    /// # Panics
    /// If the data set has listed batches of another size than the configuration's.
    fn task(&self, (dataset, config): &Self::Config) -> AutoencoderTask {
        let data = self.datasets[*dataset].clone();
        AutoencoderTask::new(data, config.clone()).unwrap_or_else(|e| panic!("{e}"))
    }
}
