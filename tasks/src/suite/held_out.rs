//! The regions that meta-training avoids, and the tasks in them.

use super::{Problem, QuadraticConfig, Reparam, TaskConfig};
use crate::augment::ReparamLevel;
use crate::image::{AutoencoderConfig, ConvConfig, ImageLoss, MlpConfig, Nonlinearity};
use crate::regression::{RegressionConfig, Truth};
use outerloop_core::{Device, FlatTask, Float, Key, Result};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Hidden widths that are held out.
pub const HELD_OUT_WIDTHS: RangeInclusive<usize> = 24..=40;
/// Number of hidden layers that is held out.
pub const HELD_OUT_DEPTH: usize = 3;
/// Nonlinearities that are held out.
pub const HELD_OUT_NONLINEARITIES: [Nonlinearity; 2] = [Nonlinearity::Tanh, Nonlinearity::Gelu];
/// Smallest widths of autoencoders that are held out.
pub const HELD_OUT_CODES: RangeInclusive<usize> = 8..=12;
/// Dimensions of quadratics that are held out.
pub const HELD_OUT_DIMENSIONS: RangeInclusive<usize> = 20..=60;
/// Reparametrizations from this spread on are held out.
pub const HELD_OUT_SPREAD: f64 = 10.0;
/// Relative gradient noise from this ratio on is held out.
pub const HELD_OUT_NOISE: f64 = 1.0;

/// Whether a task lies in a region that meta-training must not sample. Held out are
///
/// - nets with [`HELD_OUT_NONLINEARITIES`], with [`HELD_OUT_DEPTH`] hidden layers, or with a hidden
///   width in [`HELD_OUT_WIDTHS`];
/// - all conv nets;
/// - autoencoders whose smallest width is in [`HELD_OUT_CODES`];
/// - quadratics with a dimension in [`HELD_OUT_DIMENSIONS`];
/// - reparametrizations with a spread from [`HELD_OUT_SPREAD`] on, and gradient noise from
///   [`HELD_OUT_NOISE`] on;
/// - all spirals, letters, and Friedman's function: data that meta-training never sees.
///
/// Of images, what is held out is the shape of the problem, not the data.
pub fn is_held_out(config: &TaskConfig) -> bool {
    let problem = match &config.problem {
        Problem::Mlp(_) => false,
        Problem::Autoencoder(c) => c.hidden.iter().min().is_some_and(|w| HELD_OUT_CODES.contains(w)),
        Problem::Conv(_) => true,
        Problem::Quadratic(c) => HELD_OUT_DIMENSIONS.contains(&c.dim),
        Problem::Regression(c) => c.truth == Truth::Friedman,
        Problem::Table { .. } | Problem::Chain { .. } => false,
        Problem::Spirals { .. } | Problem::Letters { .. } => true,
    };
    let net = config.hidden().is_some_and(|(widths, nonlinearity)| {
        HELD_OUT_NONLINEARITIES.contains(&nonlinearity)
            || widths.len() == HELD_OUT_DEPTH
            || widths.iter().any(|w| HELD_OUT_WIDTHS.contains(w))
    });
    let augmented = config.reparam.is_some_and(|r| r.spread >= HELD_OUT_SPREAD)
        || config.gradient_noise >= HELD_OUT_NOISE;
    problem || net || augmented
}

/// A named task that no meta-training on [`Training`](super::Training) has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutTask {
    /// Short name for tables and files: `mlp64-tanh`; what is usual is left out.
    pub name: String,
    /// The task.
    pub config: TaskConfig,
}

impl HeldOutTask {
    /// The task itself; its own randomness (minimum, scales) is fixed by its name.
    pub fn task<E: Float>(&self) -> Result<Arc<dyn FlatTask<E>>> {
        self.task_on(Device::Cpu)
    }

    /// [`Self::task`] on a device.
    ///
    /// # Errors
    /// As there, and of [`AnyDevice::on`](outerloop_core::AnyDevice::on).
    pub fn task_on<E: Float>(&self, device: Device) -> Result<Arc<dyn FlatTask<E>>> {
        self.config.task_on(Key::new(0).named("held-out suite").named(&self.name), device)
    }
}

/// The root of initial parameters and batches in evaluations: a stream that meta-training, which
/// starts from `Key::new(seed)` itself, never draws from.
pub fn evaluation_key(seed: u64) -> Key {
    Key::new(seed).named("held-out evaluation")
}

fn named(name: &str, config: impl Into<TaskConfig>) -> HeldOutTask {
    HeldOutTask { name: name.into(), config: config.into() }
}

fn mlp(hidden: &[usize], nonlinearity: Nonlinearity, batch_size: usize, init_scale: f64) -> Problem {
    let hidden = hidden.to_vec();
    Problem::Mlp(MlpConfig { hidden, nonlinearity, batch_size, init_scale, ..MlpConfig::default() })
}

fn autoencoder(hidden: &[usize], nonlinearity: Nonlinearity, batch_size: usize) -> Problem {
    let hidden = hidden.to_vec();
    Problem::Autoencoder(AutoencoderConfig {
        hidden,
        nonlinearity,
        batch_size,
        ..AutoencoderConfig::default()
    })
}

fn quadratic(dim: usize, condition: f64, noise: f64) -> Problem {
    Problem::Quadratic(QuadraticConfig { dim, condition, noise })
}

fn reparametrized(problem: Problem, level: ReparamLevel) -> TaskConfig {
    TaskConfig { reparam: Some(Reparam { level, spread: HELD_OUT_SPREAD }), ..problem.into() }
}

fn noisy(problem: Problem, gradient_noise: f64) -> TaskConfig {
    TaskConfig { gradient_noise, ..problem.into() }
}

/// The tasks on foreign data: text, spirals, Friedman's regression, tables with another condition. Apart from
/// [`held_out`], whose scores have a history.
pub fn foreign() -> Vec<HeldOutTask> {
    use Nonlinearity::{Relu, Silu, Tanh};
    let model = |hidden: &[usize], nonlinearity, batch_size| MlpConfig {
        hidden: hidden.to_vec(),
        nonlinearity,
        batch_size,
        ..MlpConfig::default()
    };
    let friedman = |rows, noise, hidden: &[usize]| {
        Problem::Regression(RegressionConfig {
            features: 10,
            rows,
            truth: Truth::Friedman,
            noise,
            hidden: hidden.to_vec(),
            nonlinearity: Tanh,
            ..RegressionConfig::default()
        })
    };
    let spirals = |rows, noise, model| Problem::Spirals { rows, noise, model };
    let letters = |context, model| Problem::Letters { context, model };
    vec![
        named("letters4-mlp64", letters(4, model(&[64], Relu, 64))),
        named("letters8-mlp32x32", letters(8, model(&[32, 32], Silu, 128))),
        named("letters2-logistic", letters(2, model(&[], Relu, 128))),
        named("spirals200-mlp32x32", spirals(200, 0.05, model(&[32, 32], Tanh, 32))),
        named("spirals1000-mlp64", spirals(1000, 0.02, model(&[64], Relu, 64))),
        named("friedman200-mlp32", friedman(200, 0.2, &[32])),
        named("friedman1000-mlp64x64", friedman(1000, 0.1, &[64, 64])),
        named("friedman100-linear", friedman(100, 0.5, &[])),
    ]
}

/// The 26 tasks on which optimizers are compared; [`is_held_out`] is true of each.
pub fn held_out() -> Vec<HeldOutTask> {
    use Nonlinearity::{Gelu, Relu, Selu, Silu, Tanh};
    let conv = ConvConfig { channels: vec![8, 16], batch_size: 64, ..ConvConfig::default() };
    let mse = MlpConfig { loss: ImageLoss::MeanSquaredError, ..MlpConfig::default() };
    vec![
        // The tutorial's task, and its neighbours in width, activation, depth.
        named("mlp32-relu", mlp(&[32], Relu, 128, 1.0)),
        named("mlp24-silu", mlp(&[24], Silu, 128, 1.0)),
        named("mlp16-tanh", mlp(&[16], Tanh, 128, 1.0)),
        named("mlp64-tanh", mlp(&[64], Tanh, 128, 1.0)),
        named("mlp128-gelu", mlp(&[128], Gelu, 128, 1.0)),
        named("mlp32x32-relu", mlp(&[32, 32], Relu, 128, 1.0)),
        named("mlp64x64-tanh", mlp(&[64, 64], Tanh, 128, 1.0)),
        named("mlp48x48x48-selu", mlp(&[48, 48, 48], Selu, 128, 1.0)),
        named("mlp64x64x64-relu", mlp(&[64, 64, 64], Relu, 128, 1.0)),
        named("mlp128x128x128-relu", mlp(&[128, 128, 128], Relu, 64, 1.0)),
        named("mlp32-relu-mse", Problem::Mlp(mse)),
        // Batch sizes.
        named("mlp32-relu-batch8", mlp(&[32], Relu, 8, 1.0)),
        named("mlp64-gelu-batch16", mlp(&[64], Gelu, 16, 1.0)),
        named("mlp40-relu-batch256", mlp(&[40], Relu, 256, 1.0)),
        // Initial scales.
        named("mlp32-relu-init0.25", mlp(&[32], Relu, 128, 0.25)),
        named("mlp32x32-relu-init2", mlp(&[32, 32], Relu, 128, 2.0)),
        // Other problems.
        named("ae10-relu", autoencoder(&[10], Relu, 128)),
        named("ae32x8x32-relu", autoencoder(&[32, 8, 32], Relu, 128)),
        named("ae64x12x64-tanh", autoencoder(&[64, 12, 64], Tanh, 64)),
        named("conv8x16-relu", Problem::Conv(conv)),
        named("quadratic20", quadratic(20, 1.0, 0.0)),
        named("quadratic50-cond100", quadratic(50, 100.0, 0.0)),
        named("quadratic30-cond10-noise", quadratic(30, 10.0, 0.1)),
        // Augmentations of tasks that could else be sampled.
        named("mlp64-relu-reparam-tensor", reparametrized(mlp(&[64], Relu, 128, 1.0), ReparamLevel::Tensor)),
        named("mlp64-relu-reparam", reparametrized(mlp(&[64], Relu, 128, 1.0), ReparamLevel::Parameter)),
        named("mlp64-relu-noise2", noisy(mlp(&[64], Relu, 128, 1.0), 2.0)),
    ]
}
