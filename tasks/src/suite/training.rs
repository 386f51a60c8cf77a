//! The mixture of tasks for meta-training.

use super::{is_held_out, Problem, QuadraticConfig, Reparam, Scarce, TaskConfig};
use crate::augment::ReparamLevel;
use crate::data::{Chain, Table};
use crate::image::{log_uniform, one_of, AutoencoderConfig, ImageLoss, MlpConfig, Nonlinearity};
use crate::regression::{RegressionConfig, Truth};
use outerloop_core::{Device, Error, FlatFamily, FlatTask, Float, Key, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::{fmt::Debug, sync::Arc};

/// Draws until one is not held out; the default ranges need two on average.
const MAX_DRAWS: u64 = 10_000;

/// A distribution over small tasks that never gives one of which [`is_held_out`] is true: such draws
/// are rejected and repeated within the same kind of problem, so the weights hold.
///
/// Ranges are `[low, high]`, both ends included. Widths, batch sizes, initial scales, dimensions and
/// condition numbers are log-uniform, depths uniform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Relative frequency of digits MLPs; default 0.75.
    pub mlp_weight: f64,
    /// Relative frequency of digits autoencoders; default 0.15.
    pub autoencoder_weight: f64,
    /// Relative frequency of quadratics; default 0.1.
    pub quadratic_weight: f64,
    /// Relative frequency of MLPs on generated tables, of which a third are logistic regressions; default 0.
    pub table_weight: f64,
    /// Relative frequency of regressions on generated tables, of which a third are linear; default 0.
    pub regression_weight: f64,
    /// Relative frequency of MLPs that predict the next symbol of a generated chain, small language models of which
    /// a third have no hidden layer; default 0.
    pub chain_weight: f64,
    /// Relative frequency of MLPs that learn curved borders of classes in the plane or a little more, without noise:
    /// what takes large steps and no decay; default 0.
    pub border_weight: f64,
    /// Fraction of the digits MLPs with few images and wrong labels, which they overfit; default 0.
    pub scarce_fraction: f64,
    /// Training rows of scarce tasks and of tables; default 64 to 512.
    pub rows: [usize; 2],
    /// Wrong labels of scarce tasks, uniform from 0 to this part; default 0.3.
    pub label_noise: f64,
    /// Fraction of the tasks on digits whose images are divided anew into training and validation; default 0.
    /// 1 keeps a meta-loss on validation data from learning one set of images.
    pub resplit_fraction: f64,
    /// Fraction of the MLPs that fit one-hot labels by squared error; the others minimize the
    /// cross-entropy. Default 0.
    pub squared_error_fraction: f64,
    /// Width of all hidden layers; default 8 to 128.
    pub width: [usize; 2],
    /// Number of hidden layers of MLPs; default 1 to 2.
    pub layers: [usize; 2],
    /// Number of hidden layers of autoencoders; default 1 to 2.
    pub autoencoder_layers: [usize; 2],
    /// Drawn uniformly; repeat an entry to make it likelier. Default: ReLU four times, SiLU, SELU,
    /// sigmoid, leaky ReLU.
    pub nonlinearities: Vec<Nonlinearity>,
    /// Factor on the initial weights; default 0.25 to 2.
    pub init_scale: [f64; 2],
    /// Default 8 to 256.
    pub batch_size: [usize; 2],
    /// Of quadratics; default 2 to 100.
    pub dimension: [usize; 2],
    /// Condition number of quadratics; default 1 to 100.
    pub condition: [f64; 2],
    /// Noise per element of the gradient of quadratics, uniform from 0 to this; default 0.1.
    pub quadratic_noise: f64,
    /// Fraction of the tasks with reparametrized weights, at a level drawn uniformly; default 0.3.
    pub reparam_fraction: f64,
    /// Spread of the reparametrizations, log-uniform from 1 to this; default 5.
    pub reparam_spread: f64,
    /// Fraction of the tasks with noisy gradients; default 0.1.
    pub noise_fraction: f64,
    /// Noise relative to the gradient's norm, uniform from 0 to this; default 0.9.
    pub gradient_noise: f64,
}

impl Default for Training {
    fn default() -> Self {
        use Nonlinearity::{LeakyRelu, Relu, Selu, Sigmoid, Silu};
        Training {
            mlp_weight: 0.75,
            autoencoder_weight: 0.15,
            quadratic_weight: 0.1,
            table_weight: 0.0,
            regression_weight: 0.0,
            chain_weight: 0.0,
            border_weight: 0.0,
            scarce_fraction: 0.0,
            rows: [64, 512],
            label_noise: 0.3,
            resplit_fraction: 0.0,
            squared_error_fraction: 0.0,
            width: [8, 128],
            layers: [1, 2],
            autoencoder_layers: [1, 2],
            nonlinearities: vec![Relu, Relu, Relu, Relu, Silu, Selu, Sigmoid, LeakyRelu],
            init_scale: [0.25, 2.0],
            batch_size: [8, 256],
            dimension: [2, 100],
            condition: [1.0, 100.0],
            quadratic_noise: 0.1,
            reparam_fraction: 0.3,
            reparam_spread: 5.0,
            noise_fraction: 0.1,
            gradient_noise: 0.9,
        }
    }
}

/// The default mixture.
pub fn training() -> Training {
    Training::default()
}

/// A kind of problem with its relative frequency.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Mlp,
    Autoencoder,
    Quadratic,
    Table,
    Regression,
    Chain,
    Border,
}

impl Training {
    /// Errors if a range is empty or out of bounds, or if nothing but held-out tasks is left.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str, why: String| Err(Error::invalid(format!("training mixture: {what}"), why));
        let bad = |what: &str, range: &str, got: &dyn Debug| refuse(what, format!("{range}, got {got:?}"));
        let weights = self.weights().map(|(_, w)| w);
        if !weights.iter().all(|w| *w >= 0.0 && w.is_finite()) || weights.iter().sum::<f64>() <= 0.0 {
            return bad("weights", "must be finite, not negative, and one of them positive", &weights);
        }
        let counts = [self.width, self.batch_size, self.dimension, self.rows];
        if counts.iter().any(|[low, high]| *low == 0 || low > high) {
            return bad("width, batch_size, dimension, rows", "must be ranges from at least 1", &counts);
        }
        let layers = [self.layers, self.autoencoder_layers];
        if layers.iter().any(|[low, high]| low > high) {
            return bad("layers, autoencoder_layers", "must not be empty", &layers);
        }
        let positive = |[low, high]: [f64; 2], least: f64| least <= low && low <= high && high.is_finite();
        if !positive(self.init_scale, f64::MIN_POSITIVE) || !positive(self.condition, 1.0) {
            let got = [self.init_scale, self.condition];
            return bad("init_scale, condition", "must be finite ranges above 0, and from at least 1", &got);
        }
        if !positive([self.reparam_spread; 2], 1.0) {
            return bad("reparam_spread", "must be finite and at least 1", &self.reparam_spread);
        }
        let noises = [self.quadratic_noise, self.gradient_noise];
        if !noises.iter().all(|n| *n >= 0.0 && n.is_finite()) {
            return bad("quadratic_noise, gradient_noise", "must be finite and not negative", &noises);
        }
        let fractions = [
            self.squared_error_fraction,
            self.reparam_fraction,
            self.noise_fraction,
            self.scarce_fraction,
            self.label_noise,
            self.resplit_fraction,
        ];
        if !fractions.iter().all(|f| (0.0..=1.0).contains(f)) {
            let what =
                "squared_error_fraction, reparam_fraction, noise_fraction, scarce_fraction, label_noise, \
                        resplit_fraction";
            return bad(what, "must be between 0 and 1", &fractions);
        }
        if self.nonlinearities.is_empty() {
            return refuse("nonlinearities", "must have at least one entry, got none".into());
        }
        for (kind, weight) in self.weights() {
            if weight > 0.0 && self.accepted(kind, Key::new(0)).is_none() {
                return refuse(&format!("{kind:?}"), "all of it is held out".into());
            }
        }
        Ok(())
    }

    fn weights(&self) -> [(Kind, f64); 7] {
        [
            (Kind::Mlp, self.mlp_weight),
            (Kind::Autoencoder, self.autoencoder_weight),
            (Kind::Quadratic, self.quadratic_weight),
            (Kind::Table, self.table_weight),
            (Kind::Regression, self.regression_weight),
            (Kind::Chain, self.chain_weight),
            (Kind::Border, self.border_weight),
        ]
    }

    /// A configuration that is not held out; a pure function of the key.
    ///
    /// # Panics
    /// If [`Self::check`] fails.
    pub fn sample(&self, key: Key) -> TaskConfig {
        let weights = self.weights();
        let mut left = key.named("kind").uniform() * weights.iter().map(|(_, w)| w).sum::<f64>();
        // The last kind with a weight takes what rounding leaves.
        let mut kind = None;
        for (k, w) in weights.into_iter().filter(|(_, w)| *w > 0.0) {
            kind = Some(k);
            left -= w;
            if left < 0.0 {
                break;
            }
        }
        let config = kind.and_then(|kind| self.accepted(kind, key));
        config.unwrap_or_else(|| panic!("{:?}", self.check().err()))
    }

    fn accepted(&self, kind: Kind, key: Key) -> Option<TaskConfig> {
        (0..MAX_DRAWS).map(|i| self.draw(kind, key.fold_in(i))).find(|config| !is_held_out(config))
    }

    fn draw(&self, kind: Kind, key: Key) -> TaskConfig {
        let rng = &mut key.rng();
        let problem = match kind {
            Kind::Quadratic => {
                let (dim, condition) = (count(rng, self.dimension), ratio(rng, self.condition));
                let noise = self.quadratic_noise * rng.gen::<f64>();
                Problem::Quadratic(QuadraticConfig { dim, condition, noise })
            }
            Kind::Table | Kind::Regression => self.tabular(kind, key),
            Kind::Chain => self.chain(key),
            Kind::Border => self.border(key),
            Kind::Mlp | Kind::Autoencoder => {
                let autoencodes = matches!(kind, Kind::Autoencoder);
                let [low, high] = if autoencodes { self.autoencoder_layers } else { self.layers };
                let hidden = vec![count(rng, self.width); rng.gen_range(low..=high)];
                let nonlinearity = one_of(rng, &self.nonlinearities);
                let init_scale = ratio(rng, self.init_scale);
                let batch_size = count(rng, self.batch_size);
                if autoencodes {
                    Problem::Autoencoder(AutoencoderConfig { hidden, nonlinearity, init_scale, batch_size })
                } else {
                    let mut other = MlpConfig::default();
                    if key.named("loss").uniform() < self.squared_error_fraction {
                        other.loss = ImageLoss::MeanSquaredError;
                    }
                    Problem::Mlp(MlpConfig { hidden, nonlinearity, init_scale, batch_size, ..other })
                }
            }
        };
        let mut config = TaskConfig::from(problem);
        // From keys of their own, so that mixtures without them draw what they always drew.
        if matches!(kind, Kind::Mlp) && key.named("scarce").uniform() < self.scarce_fraction {
            let rng = &mut key.named("scarce rows").rng();
            let rows = count(rng, self.rows);
            config.scarce = Some(Scarce { rows, label_noise: self.label_noise * rng.gen::<f64>() });
        }
        let on_digits = matches!(kind, Kind::Mlp | Kind::Autoencoder);
        config.resplit = on_digits && key.named("resplit").uniform() < self.resplit_fraction;
        if rng.gen_bool(self.reparam_fraction) {
            let level = one_of(rng, &[ReparamLevel::Global, ReparamLevel::Tensor, ReparamLevel::Parameter]);
            config.reparam = Some(Reparam { level, spread: ratio(rng, [1.0, self.reparam_spread]) });
        }
        if rng.gen_bool(self.noise_fraction) {
            config.gradient_noise = self.gradient_noise * rng.gen::<f64>();
        }
        config
    }
}

/// Columns of generated tables.
const FEATURES: [usize; 2] = [4, 64];
/// Labels of generated tables.
const CLASSES: [usize; 2] = [2, 10];
/// Hidden units of teachers.
const TEACHER: [usize; 2] = [4, 32];
/// How sure teachers are of their labels.
const SHARPNESS: [f64; 2] = [1.0, 10.0];
/// Noise of the targets of regressions.
const TARGET_NOISE: [f64; 2] = [0.03, 1.0];
/// Symbols of chains, how many of them the next depends on, and how predictable it is.
const SYMBOLS: [usize; 2] = [4, 32];
const ORDERS: [usize; 2] = [1, 3];
const PREDICTABLE: [f64; 2] = [0.5, 4.0];
/// Symbols of a chain that a net sees.
const CONTEXTS: [usize; 2] = [1, 6];
/// The part of tables, regressions, and chains that are fitted without hidden layers.
const LINEAR: f64 = 1.0 / 3.0;

impl Training {
    /// A generated table and a model of it.
    fn tabular(&self, kind: Kind, key: Key) -> Problem {
        let rng = &mut key.named("table").rng();
        let (features, rows) = (count(rng, FEATURES), count(rng, self.rows));
        let (condition, batch_size) = (ratio(rng, self.condition), count(rng, self.batch_size));
        let teacher = if rng.gen_bool(0.5) { 0 } else { count(rng, TEACHER) };
        let (width, depth) = (count(rng, self.width), rng.gen_range(self.layers[0]..=self.layers[1]));
        let hidden = if rng.gen_bool(LINEAR) { Vec::new() } else { vec![width; depth] };
        let nonlinearity = one_of(rng, &self.nonlinearities);
        if matches!(kind, Kind::Regression) {
            let truth = if teacher == 0 { Truth::Linear } else { Truth::Net(teacher) };
            let noise = ratio(rng, TARGET_NOISE);
            return Problem::Regression(RegressionConfig {
                features,
                rows,
                truth,
                noise,
                condition,
                hidden,
                nonlinearity,
                batch_size,
            });
        }
        let (classes, sharpness) = (count(rng, CLASSES), ratio(rng, SHARPNESS));
        let init_scale = ratio(rng, self.init_scale);
        let model = MlpConfig { hidden, nonlinearity, init_scale, batch_size, ..MlpConfig::default() };
        let table = Table { features, classes, rows, teacher, condition, sharpness, ..Table::default() };
        Problem::Table { table, model }
    }

    /// A table of few columns whose classes have curved borders, and an MLP with hidden layers.
    fn border(&self, key: Key) -> Problem {
        let rng = &mut key.named("border").rng();
        let table = Table {
            features: count(rng, [2, 4]),
            classes: count(rng, [2, 4]),
            rows: count(rng, self.rows),
            teacher: count(rng, [8, 32]),
            condition: 1.0,
            sharpness: 100.0,
            roughness: ratio(rng, [2.0, 8.0]),
        };
        let hidden =
            vec![count(rng, self.width); rng.gen_range(self.layers[0].max(1)..=self.layers[1].max(1))];
        let (nonlinearity, init_scale) = (one_of(rng, &self.nonlinearities), ratio(rng, self.init_scale));
        let batch_size = count(rng, self.batch_size);
        Problem::Table {
            table,
            model: MlpConfig { hidden, nonlinearity, init_scale, batch_size, ..MlpConfig::default() },
        }
    }

    /// A small language model of a generated chain.
    fn chain(&self, key: Key) -> Problem {
        let rng = &mut key.named("chain").rng();
        let (symbols, order) = (count(rng, SYMBOLS), rng.gen_range(ORDERS[0]..=ORDERS[1]));
        let chain = Chain { symbols, order, sharpness: ratio(rng, PREDICTABLE), rows: count(rng, self.rows) };
        let (width, depth) = (count(rng, self.width), rng.gen_range(self.layers[0]..=self.layers[1]));
        let hidden = if rng.gen_bool(LINEAR) { Vec::new() } else { vec![width; depth] };
        let (nonlinearity, init_scale) = (one_of(rng, &self.nonlinearities), ratio(rng, self.init_scale));
        let batch_size = count(rng, self.batch_size);
        let model = MlpConfig { hidden, nonlinearity, init_scale, batch_size, ..MlpConfig::default() };
        Problem::Chain { chain, context: rng.gen_range(CONTEXTS[0]..=CONTEXTS[1]), model }
    }
}

fn count(rng: &mut impl Rng, [low, high]: [usize; 2]) -> usize {
    log_uniform(rng, &(low..=high))
}

fn ratio(rng: &mut impl Rng, [low, high]: [f64; 2]) -> f64 {
    rng.gen_range(low.ln()..=high.ln()).exp()
}

impl<E: Float> FlatFamily<E> for Training {
    fn name(&self) -> String {
        "suite_training".into()
    }
    /// # Panics
    /// If [`Training::check`] fails.
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask<E>> {
        self.sample_on(key, Device::Cpu)
    }
}

impl Training {
    fn sample_on<E: Float>(&self, key: Key, device: Device) -> Arc<dyn FlatTask<E>> {
        self.sample(key).task_on(key.named("task"), device).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// The mixture on a device.
#[derive(Clone, Debug)]
pub struct TrainingOn {
    training: Training,
    device: Device,
}

impl TrainingOn {
    /// The mixture there.
    ///
    /// # Errors
    /// As [`Training::check`] and [`Device::check`].
    pub fn new(training: Training, device: Device) -> Result<Self> {
        training.check()?;
        device.check()?;
        Ok(TrainingOn { training, device })
    }
}

impl<E: Float> FlatFamily<E> for TrainingOn {
    fn name(&self) -> String {
        FlatFamily::<E>::name(&self.training)
    }
    /// # Panics
    /// Where the device, which was there when the family was made, is there no longer, or is full.
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask<E>> {
        self.training.sample_on(key, self.device)
    }
}
