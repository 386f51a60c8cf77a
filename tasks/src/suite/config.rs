//! A task of the suite as plain data.

use crate::augment::{Augmentation, ModifyGradient, NoisyGradient, ReparamLevel, ReparamWeights};
use crate::data::{next_letter, spirals, with_label_noise, Chain, Splits, Table};
use crate::image::{
    AutoencoderConfig, AutoencoderTask, ConvConfig, ConvTask, MlpConfig, MlpTask, Nonlinearity,
};
use crate::quadratics::NoisyQuadraticTask;
use crate::regression::{RegressionConfig, RegressionTask};
use outerloop_core::{same, AnyDevice, Device, Error, FlatTask, Float, Key, Result};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};

/// The text of [`Problem::Letters`]: a licence, for want of a novel.
const TEXT: &str = include_str!("../../../LICENSE-APACHE");

/// What is minimized, without augmentations. Images are the 8 x 8 digits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// Classification by an MLP.
    Mlp(MlpConfig),
    /// Reconstruction by an MLP.
    Autoencoder(AutoencoderConfig),
    /// Classification by a small convolutional net.
    Conv(ConvConfig),
    /// A quadratic.
    Quadratic(QuadraticConfig),
    /// Classification of a generated table by an MLP; without hidden layers, logistic regression.
    Table {
        /// The table.
        table: Table,
        /// The MLP.
        model: MlpConfig,
    },
    /// Regression on a generated table by an MLP; without hidden layers, linear regression.
    Regression(RegressionConfig),
    /// Classification of two spirals by an MLP.
    Spirals {
        /// Training points.
        rows: usize,
        /// Standard deviation around the arms.
        noise: f64,
        /// The MLP.
        model: MlpConfig,
    },
    /// The next symbol of a Markov chain by an MLP.
    Chain {
        /// The chain.
        chain: Chain,
        /// Symbols that the MLP sees.
        context: usize,
        /// The MLP.
        model: MlpConfig,
    },
    /// The next letter of an English text by an MLP.
    Letters {
        /// Letters that the MLP sees.
        context: usize,
        /// The MLP.
        model: MlpConfig,
    },
}

/// Of the images of an MLP that classifies digits: less and worse data, which the net overfits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scarce {
    /// Training images.
    pub rows: usize,
    /// Part of the training labels that are drawn anew.
    pub label_noise: f64,
}

/// `Σ (sᵢ (cᵢ − xᵢ))²` with `c ~ N(0, I)`, start `x₀ ~ N(0, I)`, curvatures `sᵢ²` in a geometric
/// sequence from 1 down to `1/condition`, and gradient noise of standard deviation `noise` per element.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuadraticConfig {
    /// Number of parameters.
    pub dim: usize,
    /// Largest over smallest curvature, at least 1.
    pub condition: f64,
    /// Noise per element of the gradient; not in the loss.
    pub noise: f64,
}

/// Stored parameters are the net's divided by scales, log-uniform in `1/spread ..= spread`: see
/// [`ReparamWeights`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reparam {
    /// What shares a scale.
    pub level: ReparamLevel,
    /// The largest scale, at least 1.
    pub spread: f64,
}

/// A task with its augmentations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskConfig {
    /// What is minimized.
    pub problem: Problem,
    /// Scaled parameters, if any.
    pub reparam: Option<Reparam>,
    /// Noise added to gradients, as a multiple of their norm: see [`NoisyGradient`]. 0: none.
    pub gradient_noise: f64,
    /// Fewer images and wrong labels, for MLPs on digits.
    #[serde(default)]
    pub scarce: Option<Scarce>,
    /// Whether the images are divided anew by the task's key ([`Splits::resplit`]).
    #[serde(default)]
    pub resplit: bool,
}

impl From<Problem> for TaskConfig {
    fn from(problem: Problem) -> Self {
        TaskConfig { problem, reparam: None, gradient_noise: 0.0, scarce: None, resplit: false }
    }
}

impl TaskConfig {
    /// The task. `key` fixes what belongs to the task itself: a quadratic's minimum, the scales of a
    /// reparametrization.
    ///
    /// # Errors
    /// Sizes of 0, and other settings that the task refuses.
    pub fn task<E: Float>(&self, key: Key) -> Result<Arc<dyn FlatTask<E>>> {
        self.task_on(key, Device::Cpu)
    }

    /// [`Self::task`] on a device.
    ///
    /// # Errors
    /// As there, and of [`AnyDevice::on`].
    pub fn task_on<E: Float>(&self, key: Key, device: Device) -> Result<Arc<dyn FlatTask<E>>> {
        if size_of::<E>() == size_of::<f32>() {
            same(self.task_f32(key, device)).unwrap_or_else(|_| unreachable!("E is f32"))
        } else {
            same(self.task_f64(key, device)).unwrap_or_else(|_| unreachable!("E is f64"))
        }
    }

    /// Compiled here, once, as is [`Self::task_f64`].
    fn task_f32(&self, key: Key, device: Device) -> Result<Arc<dyn FlatTask>> {
        self.build(key, device)
    }

    fn task_f64(&self, key: Key, device: Device) -> Result<Arc<dyn FlatTask<f64>>> {
        self.build(key, device)
    }

    fn build<E: Float>(&self, key: Key, device: Device) -> Result<Arc<dyn FlatTask<E>>>
    where
        MlpTask: AnyDevice<E>,
        AutoencoderTask: AnyDevice<E>,
        ConvTask: AnyDevice<E>,
        NoisyQuadraticTask: AnyDevice<E>,
        RegressionTask: AnyDevice<E>,
    {
        static DATA: OnceLock<Splits> = OnceLock::new();
        let mut data = DATA.get_or_init(Splits::digits).clone();
        if self.resplit || self.scarce.is_some() {
            data = data.resplit(key.named("division"), self.scarce.map(|s| s.rows))?;
        }
        if let Some(Scarce { label_noise, .. }) = self.scarce {
            data = with_label_noise(&data, label_noise, key.named("labels"))?;
        }
        let mut task = match &self.problem {
            Problem::Mlp(c) => MlpTask::new(data, c.clone())?.on(device),
            Problem::Autoencoder(c) => AutoencoderTask::new(data, c.clone())?.on(device),
            Problem::Conv(c) => ConvTask::new(data, c.clone())?.on(device),
            Problem::Quadratic(c) => c.task(key.named("center"))?.on(device),
            Problem::Table { table, model } => {
                MlpTask::new(table.splits(key.named("table"))?, model.clone())?.on(device)
            }
            Problem::Regression(c) => RegressionTask::new(c.clone(), key.named("table"))?.on(device),
            Problem::Spirals { rows, noise, model } => {
                MlpTask::new(spirals(*rows, *noise, key.named("spirals"))?, model.clone())?.on(device)
            }
            Problem::Chain { chain, context, model } => {
                MlpTask::new(chain.splits(*context, key.named("chain"))?, model.clone())?.on(device)
            }
            Problem::Letters { context, model } => {
                MlpTask::new(next_letter(TEXT, *context)?, model.clone())?.on(device)
            }
        }?;
        if let Some(Reparam { level, spread }) = self.reparam {
            task = ReparamWeights::new(level, 1.0 / spread..=spread)?.apply(task, key.named("reparam"));
        }
        if self.gradient_noise != 0.0 {
            let noisy = ModifyGradient(NoisyGradient::new(self.gradient_noise)?);
            task = noisy.apply(task, key.named("noise"));
        }
        Ok(task)
    }

    /// Widths of the hidden layers (channels of a conv net) and what follows each, if it is a net.
    pub fn hidden(&self) -> Option<(&[usize], Nonlinearity)> {
        match &self.problem {
            Problem::Mlp(c) => Some((&c.hidden, c.nonlinearity)),
            Problem::Autoencoder(c) => Some((&c.hidden, c.nonlinearity)),
            Problem::Conv(c) => Some((&c.channels, c.nonlinearity)),
            Problem::Table { model, .. }
            | Problem::Spirals { model, .. }
            | Problem::Chain { model, .. }
            | Problem::Letters { model, .. } => Some((&model.hidden, model.nonlinearity)),
            Problem::Regression(c) => Some((&c.hidden, c.nonlinearity)),
            Problem::Quadratic(_) => None,
        }
    }
}

impl QuadraticConfig {
    fn task(&self, key: Key) -> Result<NoisyQuadraticTask> {
        let QuadraticConfig { dim, condition, noise } = *self;
        if dim == 0 || !(condition >= 1.0 && condition.is_finite() && noise >= 0.0 && noise.is_finite()) {
            let why = "dim and condition must be at least 1, noise not negative, all finite";
            return Err(Error::invalid(format!("{self:?}"), why));
        }
        let mut center = vec![0.0; dim];
        key.fill_normal(&mut center);
        let last = (dim - 1).max(1) as f64;
        let scale = (0..dim).map(|i| condition.powf(-0.5 * i as f64 / last)).collect();
        NoisyQuadraticTask::new(center, scale, noise)
    }
}
