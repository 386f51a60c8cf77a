//! What to meta-train and how.

use crate::settings::Parts;
use crate::start::started;
use clap::{Args, ValueEnum};
use outerloop::lopt::learned::Horizon;
use outerloop::lopt::{AdafacMlp, Celo, CeloAdam, ControlledAdam};
use outerloop::outer::lab::{self, Choice, Experiment, Kind};
use outerloop::outer::{Emphasis, LossScale, Mixed, Objective, ToldLength, Validation};
use outerloop::prelude::*;
use outerloop::tasks::image::ResplitFamily;
use outerloop::tasks::suite;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Halving the loss is worth the same everywhere, down to 1e-3 (or, of a run that starts above 3 or far below
/// it, of its start), and the end of a run counts double: the mean of raw losses is all about its first steps.
const OBJECTIVE: Objective =
    Objective { scale: LossScale::FittedLog { floor: 1e-3, ceiling: 3.0 }, emphasis: Emphasis::Power(1.0) };

/// Samples per candidate of the estimator `auto`.
const CHOICE_SAMPLES: u64 = 8;
/// Estimates in a row whose mean is a sample; each row begins at other places of other runs.
const CHOICE_ESTIMATES: u64 = 2;

#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The learned optimizer.
    #[arg(long, value_enum, default_value_t = Lopt::ControlledAdam)]
    lopt: Lopt,
    /// Theta to begin from: a pretrained optimizer's (small, fast, celo, celo-adam) or a file: of meta_train, safetensors,
    /// `.state` or `.npz`.
    #[arg(long, value_name = "NAME|FILE")]
    init_theta: Option<String>,
    /// Tensors of theta, or what they are below, that stay as they begin (recipes only).
    #[arg(skip)]
    #[serde(default)]
    frozen: Vec<String>,
    /// Of celo (recipes only): 1 learns the update rule, 2 the schedule or both [default: 2].
    #[arg(skip = 2u8)]
    #[serde(default = "second_phase")]
    train_phase: u8,
    /// Of celo and celo-adam (recipes only): units of the LSTM [default: 64].
    #[arg(skip = 64usize)]
    #[serde(default = "lstm_units")]
    lstm_hidden_size: usize,
    /// What it is trained on.
    #[arg(long, value_enum, default_value_t = TaskName::DigitsMlp)]
    task: TaskName,
    /// Where image files are, one folder per data set [default: the environment variable OUTERLOOP_DATA].
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where tasks are computed: cpu, cuda (the first card) or cuda:N.
    #[arg(long, default_value_t = Device::Cpu)]
    #[serde(default)]
    device: Device,
    /// How the meta-gradient is estimated.
    #[arg(long, value_enum, default_value_t = Estimator::Pes)]
    estimator: Estimator,
    /// Root of all randomness.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Outer steps.
    #[arg(long, default_value_t = 1500)]
    pub outer_steps: u64,
    /// Tasks trained side by side.
    #[arg(long, default_value_t = 16)]
    num_tasks: usize,
    /// Inner steps per outer step.
    #[arg(long, default_value_t = 50)]
    trunc_length: usize,
    /// Shortest inner run, in steps; lengths are log-uniform.
    #[arg(long, default_value_t = 100)]
    min_length: u64,
    /// Longest inner run, in steps.
    #[arg(long, default_value_t = 500)]
    pub max_length: u64,
    /// Instead of --min-length and --max-length: any schedule of lengths (recipes only).
    #[arg(skip)]
    horizon: Option<TruncationSchedule>,
    /// What optimizers are told about the length of their runs (recipes only) [default: the truth].
    #[arg(skip)]
    #[serde(default)]
    told: ToldLength,
    /// The loss that counts: the training loss, that of the same batch after the update, or that of a batch of
    /// images that inner training does not see. Validation scores by the same.
    #[arg(long, value_enum, default_value_t = MetaLossName::OuterValid)]
    pub meta_loss: MetaLossName,
    /// On which scale losses count, and when (recipes only) [default: logarithms, later steps more].
    #[arg(skip = OBJECTIVE)]
    pub objective: Objective,
    /// The mixture of the task `suite` (recipes only) [default: that of the suite].
    #[arg(skip)]
    training: Option<suite::Training>,
    /// Standard deviation of the perturbations of theta.
    #[arg(long, default_value_t = 0.01)]
    std: f32,
    /// Learning rate of the outer Adam, decayed along a cosine.
    #[arg(long, default_value_t = 3e-3)]
    outer_lr: f64,
    /// What the outer learning rate is decayed to, as a fraction.
    #[arg(long, default_value_t = 0.1)]
    outer_lr_end: f64,
    /// Meta-gradients are clipped to this, element by element.
    #[arg(long, default_value_t = 10.0)]
    clip: f64,
    /// Scale of the learned optimizer's step (all with a network).
    #[arg(long, default_value_t = 0.01)]
    step_mult: f64,
    /// Scale of the learned optimizer's log magnitude (mlp, adafac, celo).
    #[arg(long, default_value_t = 0.01)]
    exp_mult: f64,
    /// Width of the learned optimizer's network (mlp, adafac, controlled-adam, celo).
    #[arg(long, default_value_t = 32)]
    hidden_size: usize,
    /// Weight decay of controlled-adam at its start, in units of its learning rate; 0: none.
    #[arg(long, default_value_t = 0.3)]
    weight_decay: f64,
    /// Power of controlled-adam's average of the iterates, which makes it independent of the run's length; 0: no
    /// average, and a learning rate that falls over the length it is told.
    #[arg(long, default_value_t = 8.0)]
    average: f64,
    /// The whole configuration of controlled-adam, instead of the flags (recipes only).
    #[arg(skip)]
    controlled_adam: Option<ControlledAdam>,
    /// Fixed tasks on which theta is measured along the way; the best is kept. 0: the last is kept.
    #[arg(long, default_value_t = 8)]
    validation_tasks: u64,
    /// Outer steps between measurements.
    #[arg(long, default_value_t = 100)]
    validation_every: u64,
    /// Meta-trainings with --seed and the seeds after it; the best by validation is kept.
    #[arg(long, default_value_t = 1)]
    pub restarts: u64,
    /// Outer steps between checkpoints.
    #[arg(long, default_value_t = 100)]
    pub checkpoint_every: u64,
    /// Steps of the final comparison.
    #[arg(long, default_value_t = 500)]
    pub eval_steps: u64,
    /// Fresh starts per optimizer in the final comparison.
    #[arg(long, default_value_t = 10)]
    pub eval_seeds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Lopt {
    LearnableSgd,
    LearnableSgdm,
    LearnableAdam,
    Mlp,
    Adafac,
    ControlledAdam,
    Celo,
    CeloAdam,
}

fn second_phase() -> u8 {
    2
}

fn lstm_units() -> usize {
    64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetaLossName {
    Train,
    SameBatch,
    OuterValid,
}

impl MetaLossName {
    /// For labels.
    pub fn text(self) -> &'static str {
        match self {
            Self::Train => "training loss",
            Self::SameBatch => "training loss after the update",
            Self::OuterValid => "validation loss",
        }
    }

    fn meta_loss(self) -> MetaLoss {
        match self {
            Self::Train => MetaLoss::Train,
            Self::SameBatch => MetaLoss::SameBatch,
            Self::OuterValid => MetaLoss::Fresh(Split::OuterValid),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum TaskName {
    /// The tutorial's 64-32-10 ReLU MLP on 8x8 digits, batch 128.
    DigitsMlp,
    /// The same on MNIST, grey and resized to 8x8, from --data-dir.
    MnistMlp,
    /// The same on Fashion-MNIST.
    FashionMnistMlp,
    /// The same on CIFAR-10.
    Cifar10Mlp,
    /// Digits MLPs of random width, depth, activation, initial scale and batch size.
    DigitsMlpFamily,
    /// Quadratics in 10 dimensions with random centers.
    Quadratics,
    /// The suite's training mixture: MLPs, autoencoders and quadratics, augmented.
    Suite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Estimator {
    /// Persistent evolution strategies.
    Pes,
    /// Persistent evolution strategies for the loss at the end of a run.
    FinalPes,
    /// Noise-reuse evolution strategies: one perturbation per run.
    NoiseReuse,
    /// Truncated evolution strategies.
    Es,
    /// Truncated evolution strategies and unrolled gradients, mixed by their variances.
    Mixed,
    /// Evolution strategies over whole runs.
    FullEs,
    /// Backpropagation through truncated unrolls.
    Grad,
    /// Backpropagation through whole runs.
    FullGrad,
    /// Exact derivatives of whole runs along one random direction for each task, in constant memory.
    ForwardGrad,
    /// That of the best signal to noise per second at the first theta, with its standard deviation, window and number of
    /// tasks, measured before the run begins.
    Auto,
}

impl Config {
    /// Errors on settings out of range, as far as the library does not refuse them anyway when the parts of
    /// the run are made. Upper ends are where a mistake is likelier than a machine that could do it.
    pub fn check(&self) -> Result<()> {
        self.device.check()?;
        let steps = 1_000_000_000;
        // As far as TOML counts.
        let seeds = i64::MAX as u64;
        // Where a horizon is given, the shortest length is not used.
        let longest = if self.horizon.is_some() { u64::MAX } else { self.max_length };
        for (name, got, least, most) in [
            ("outer_steps", self.outer_steps, 1, steps),
            ("num_tasks", self.num_tasks as u64, 1, 65_536),
            ("trunc_length", self.trunc_length as u64, 1, 10_000_000),
            ("max_length", self.max_length, 1, 10_000_000),
            ("min_length", self.min_length, 1, longest),
            ("hidden_size", self.hidden_size as u64, 1, 4096),
            ("validation_tasks", self.validation_tasks, 0, 1_000_000),
            ("validation_every", self.validation_every, 1, steps),
            ("checkpoint_every", self.checkpoint_every, 1, steps),
            ("eval_steps", self.eval_steps, 1, 10_000_000),
            ("eval_seeds", self.eval_seeds, 1, 100_000),
            ("restarts", self.restarts, 1, 10_000),
            ("seed", self.seed, 0, seeds - self.restarts.saturating_sub(1)),
        ] {
            if !(least..=most).contains(&got) {
                return Err(Error::invalid(format!("{name} = {got}"), format!("expected {least} to {most}")));
            }
        }
        if self.restarts > 1 && self.validation_tasks == 0 {
            let why = "the best is chosen by validation, expected validation_tasks of at least 1";
            return Err(Error::invalid(format!("restarts = {}", self.restarts), why));
        }
        for (name, got) in [
            ("std", f64::from(self.std)),
            ("outer_lr", self.outer_lr),
            ("clip", self.clip),
            ("step_mult", self.step_mult),
        ] {
            if !(got > 0.0 && got.is_finite()) {
                return Err(Error::invalid(format!("{name} = {got}"), "expected a positive number"));
            }
        }
        for (name, got, most) in [
            ("outer_lr_end", self.outer_lr_end, 1.0),
            ("exp_mult", self.exp_mult, 1e6),
            ("weight_decay", self.weight_decay, 1e6),
            ("average", self.average, 1e6),
        ] {
            if !(0.0..=most).contains(&got) {
                return Err(Error::invalid(format!("{name} = {got}"), format!("expected 0 to {most}")));
            }
        }
        Ok(())
    }

    /// The runs with their seeds: the restarts in directories of their own, a single run in `dir` itself.
    pub fn runs(&self, dir: &RunDir) -> Vec<(u64, RunDir)> {
        let own = |seed| match self.restarts {
            1 => dir.clone(),
            _ => RunDir::new(dir.file(&format!("seed-{seed}"))),
        };
        (0..self.restarts).map(|i| self.seed + i).map(|seed| (seed, own(seed))).collect()
    }

    pub fn to_table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).map_err(|e| Error::invalid("configuration", e.to_string()))
    }

    /// What takes time to make, and files to read.
    pub fn parts(&self) -> Result<Parts> {
        let (lopt, family) = (self.learned_optimizer()?, self.family()?);
        lopt.validate()?;
        let key = Key::new(self.seed).named("frozen");
        let frozen = started(&lopt, self.init_theta.as_deref(), &self.frozen, key)?;
        let lopt = frozen.clone().map_or(lopt, |frozen| frozen as Arc<dyn LearnedOptimizer>);
        Ok(Parts { lopt, family, frozen })
    }

    fn learned_optimizer(&self) -> Result<Arc<dyn LearnedOptimizer>> {
        Ok(match self.lopt {
            Lopt::LearnableSgd => Arc::new(LearnableSgd::default()),
            Lopt::LearnableSgdm => Arc::new(LearnableSgdm::default()),
            Lopt::LearnableAdam => Arc::new(LearnableAdam::default()),
            Lopt::Mlp => Arc::new(MlpLopt {
                exp_mult: self.exp_mult,
                step_mult: self.step_mult,
                hidden_size: self.hidden_size,
                ..MlpLopt::default()
            }),
            Lopt::Adafac => Arc::new(AdafacMlp {
                exp_mult: self.exp_mult,
                step_mult: self.step_mult,
                hidden_size: self.hidden_size,
                ..AdafacMlp::default()
            }),
            Lopt::ControlledAdam => {
                Arc::new(self.controlled_adam.clone().unwrap_or_else(|| self.controlled_adam_by_flags()))
            }
            Lopt::Celo => Arc::new(Celo {
                exp_mult: self.exp_mult,
                step_mult: self.step_mult,
                ff_hidden_size: self.hidden_size,
                lstm_hidden_size: self.lstm_hidden_size,
                train_phase: self.train_phase,
                ..Celo::published()
            }),
            Lopt::CeloAdam => Arc::new(CeloAdam {
                step_mult: self.step_mult,
                lstm_hidden_size: self.lstm_hidden_size,
                ..CeloAdam::default()
            }),
        })
    }

    fn controlled_adam_by_flags(&self) -> ControlledAdam {
        let planned = ControlledAdam {
            step_mult: self.step_mult,
            hidden_size: self.hidden_size,
            weight_decay: self.weight_decay,
            ..ControlledAdam::default()
        };
        if self.average == 0.0 {
            return planned;
        }
        ControlledAdam {
            decay: 0.0,
            initial_momentum_decays: vec![0.9],
            average: Some(self.average),
            horizon: Horizon::Unplanned,
            ..planned
        }
    }

    fn family(&self) -> Result<Arc<dyn FlatFamily>> {
        Ok(match self.task {
            TaskName::DigitsMlp => self.resplit(Splits::digits())?,
            TaskName::MnistMlp => self.image_mlp(ImageFiles::Mnist)?,
            TaskName::FashionMnistMlp => self.image_mlp(ImageFiles::FashionMnist)?,
            TaskName::Cifar10Mlp => self.image_mlp(ImageFiles::Cifar10)?,
            TaskName::DigitsMlpFamily => {
                Arc::new(FamilyOn::new(ImageMlpFamily::new(Splits::digits()), self.device)?)
            }
            TaskName::Suite => {
                Arc::new(suite::TrainingOn::new(self.training.clone().unwrap_or_default(), self.device)?)
            }
            TaskName::Quadratics => {
                Arc::new(FamilyOn::new(FixedDimQuadraticFamily { dim: 10 }, self.device)?)
            }
        })
    }

    fn image_mlp(&self, files: ImageFiles) -> Result<Arc<dyn FlatFamily>> {
        let data = files.load(self.data_dir.as_deref())?.map(|d| d.channel_mean().resized(8, 8))?;
        self.resplit(data)
    }

    /// The tutorial's 64-32-10 task. Where the meta-loss is on validation data, every run divides the images
    /// anew, lest theta knows the validation images by heart.
    fn resplit(&self, data: Splits) -> Result<Arc<dyn FlatFamily>> {
        let model = MlpConfig::default();
        Ok(match self.meta_loss {
            MetaLossName::OuterValid => {
                Arc::new(FamilyOn::new(ResplitFamily::new(data, model, None)?, self.device)?)
            }
            _ => Arc::new(SingleTask::on(MlpTask::new(data, model)?, self.device)?),
        })
    }

    /// The runs that estimators see.
    fn step(&self, parts: &Parts) -> Result<TruncatedStep> {
        let lengths = TruncationSchedule::LogUniform { min: self.min_length, max: self.max_length };
        let schedule = self.horizon.clone().unwrap_or(lengths);
        TruncatedStep::new(parts.family.clone(), parts.lopt.clone(), schedule)?
            .with_told(self.told)?
            .with_meta_loss(self.meta_loss.meta_loss())
            .with_objective(self.objective)
    }

    fn antithetic(&self) -> Antithetic {
        Antithetic {
            num_tasks: self.num_tasks,
            trunc_length: self.trunc_length,
            std: self.std,
            ..Antithetic::default()
        }
    }

    /// For the estimator `auto`: measures candidates at the first theta and puts the best in its place.
    pub fn choose(&mut self, parts: &Parts, workers: &Workers) -> Result<Option<Choice>> {
        if self.estimator != Estimator::Auto {
            return Ok(None);
        }
        let key = Key::new(self.seed);
        let theta = parts.lopt.init(key.named("choice, theta"));
        let step = self.step(parts)?.with_offset(InitialOffset::BurnIn(self.max_length));
        let candidates = lab::candidates(&step, &self.antithetic())?;
        let (samples, estimates) = (CHOICE_SAMPLES, CHOICE_ESTIMATES);
        let at =
            Experiment { theta: &theta, key: key.named("choice"), samples, warmup: 0, estimates, workers };
        let choice = lab::choose(&candidates, &at)?;
        let lab::Settings { kind, std, trunc_length, num_tasks } = choice.settings();
        self.estimator = match kind {
            Kind::Pes => Estimator::Pes,
            Kind::NoiseReuse => Estimator::NoiseReuse,
            Kind::Es => Estimator::Es,
            Kind::Mixed => Estimator::Mixed,
            Kind::Grad => Estimator::Grad,
        };
        (self.std, self.trunc_length, self.num_tasks) = (std, trunc_length, num_tasks);
        Ok(Some(choice))
    }

    pub fn learner(&self, parts: &Parts) -> Result<GradientLearner> {
        let (family, lopt) = (&parts.family, &parts.lopt);
        let (step, common) = (self.step(parts)?, self.antithetic());
        let sweep = SweepConfig::default();
        let estimator: Box<dyn GradientEstimator> = match self.estimator {
            // Lanes start at random points of their runs, so that every outer step sees all ages.
            Estimator::Pes => {
                Box::new(TruncatedPes::new(step.with_offset(InitialOffset::BurnIn(self.max_length)), common)?)
            }
            Estimator::FinalPes => {
                Box::new(FinalPes::new(step.with_offset(InitialOffset::BurnIn(self.max_length)), common)?)
            }
            Estimator::NoiseReuse => {
                Box::new(NoiseReuseEs::new(step.with_offset(InitialOffset::BurnIn(self.max_length)), common)?)
            }
            Estimator::Es => {
                Box::new(TruncatedEs::new(step.with_offset(InitialOffset::BurnIn(self.max_length)), common)?)
            }
            Estimator::Mixed => {
                let step = step.with_offset(InitialOffset::BurnIn(self.max_length));
                Box::new(Mixed::new(step, common, sweep)?)
            }
            Estimator::FullEs => Box::new(FullEs::new(step, common, FullLoss::Mean)?),
            Estimator::Grad => Box::new(TruncatedGrad::new(step, self.num_tasks, self.trunc_length, sweep)?),
            Estimator::FullGrad => Box::new(FullGrad::new(step, self.num_tasks, sweep)?),
            Estimator::ForwardGrad => Box::new(ForwardGrad::new(step, self.num_tasks, 1)?),
            Estimator::Auto => {
                return Err(Error::invalid("estimator = auto", "expected one that was chosen before the run"))
            }
        };
        let lr = Cosine {
            peak: self.outer_lr,
            min_mult: self.outer_lr_end,
            constant_fraction: 0.0,
            warmup_fraction: 0.0,
            ..Cosine::default()
        };
        let outer = Clip::new(ClipRule::Value(self.clip), Box::new(Adam::new(lr)));
        let learner = GradientLearner::new(lopt.clone(), vec![estimator], Box::new(outer), self.outer_steps)?;
        if self.validation_tasks == 0 {
            return Ok(learner);
        }
        learner.with_validation(Validation {
            family: family.clone(),
            meta_loss: self.meta_loss.meta_loss(),
            objective: self.objective,
            num_tasks: self.validation_tasks,
            num_steps: self.max_length,
            // The same for all restarts, and of no use to any.
            key: Key::new(self.seed).named("validation"),
            every: self.validation_every,
        })
    }

    pub fn summary(&self, lopt: &dyn LearnedOptimizer, threads: usize) -> String {
        format!(
            "meta-training {} ({} meta-parameters) on {:?} by {:?}: {} tasks x {} steps x {} outer steps on {}, {threads} threads, {} kernels",
            lopt.name(),
            lopt.theta_layout().len(),
            self.task,
            self.estimator,
            self.num_tasks,
            self.trunc_length,
            self.outer_steps,
            self.device,
            kernel::path(),
        )
    }
}
