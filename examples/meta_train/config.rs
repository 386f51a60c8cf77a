//! What to meta-train and how: command line, and the file that a resumed run reads back.

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use outerloop::lopt::{AdafacMlp, ControlledAdam};
use outerloop::outer::{Emphasis, LossScale, Objective, Validation};
use outerloop::prelude::*;
use outerloop::tasks::suite;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Meta-train a learned optimizer and compare it with hand-designed ones.
#[derive(Parser)]
pub struct Options {
    #[command(flatten)]
    config: Config,
    /// Worker threads; 0: one per core. Results do not depend on it.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Where everything is written [default: the next free runs/meta_train-N].
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Continue the run in --run-dir [default: the newest]; its saved configuration is used.
    #[arg(long)]
    pub resume: bool,
    /// A TOML file with settings, named as the flags below but with underscores; flags that are given
    /// count more.
    #[arg(long, conflicts_with = "resume")]
    recipe: Option<PathBuf>,
}

/// Halving the loss is worth the same everywhere, down to 1e-5 (or, of a run that starts above 3 or far below
/// it, of its start), and the end of a run counts double: the mean of raw losses is all about its first steps.
const OBJECTIVE: Objective =
    Objective { scale: LossScale::FittedLog { floor: 1e-5, ceiling: 3.0 }, emphasis: Emphasis::Power(1.0) };

#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The learned optimizer.
    #[arg(long, value_enum, default_value_t = Lopt::Mlp)]
    lopt: Lopt,
    /// What it is trained on.
    #[arg(long, value_enum, default_value_t = TaskName::DigitsMlp)]
    task: TaskName,
    /// Where image files are, one folder per data set [default: the environment variable OUTERLOOP_DATA].
    #[arg(long)]
    data_dir: Option<PathBuf>,
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
    #[arg(long, default_value_t = 3.0)]
    clip: f64,
    /// Scale of the learned optimizer's step (mlp, adafac, controlled-adam).
    #[arg(long, default_value_t = 0.01)]
    step_mult: f64,
    /// Scale of the learned optimizer's log magnitude (mlp and adafac).
    #[arg(long, default_value_t = 0.01)]
    exp_mult: f64,
    /// Width of the learned optimizer's network (mlp, adafac, controlled-adam).
    #[arg(long, default_value_t = 32)]
    hidden_size: usize,
    /// Fixed tasks on which theta is measured along the way; the best is kept. 0: the last is kept.
    #[arg(long, default_value_t = 8)]
    validation_tasks: u64,
    /// Outer steps between measurements.
    #[arg(long, default_value_t = 100)]
    validation_every: u64,
    /// Meta-trainings with --seed and the seeds after it; the best by validation is kept.
    #[arg(long, default_value_t = 1)]
    restarts: u64,
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
    /// Truncated evolution strategies.
    Es,
    /// Evolution strategies over whole runs.
    FullEs,
    /// Backpropagation through truncated unrolls.
    Grad,
    /// Backpropagation through whole runs.
    FullGrad,
}

impl Options {
    /// From the command line; exits with a message if that is wrong. Settings come, in this order, from
    /// flags that were given, the recipe, and the defaults.
    pub fn from_command_line() -> Result<Self> {
        let matches = Options::command().get_matches();
        let mut options = Options::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
        let Some(path) = &options.recipe else { return Ok(options) };
        let bad = |e: String| Error::format(path, e);
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let recipe: toml::Table = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let flags = toml::Table::try_from(&options.config).map_err(|e| bad(e.to_string()))?;
        let given = |key: &str| {
            // Settings that have no flag are unknown to clap.
            let source = matches.try_contains_id(key).ok().and_then(|_| matches.value_source(key));
            source == Some(ValueSource::CommandLine)
        };
        let mut settings = flags.clone();
        settings.extend(recipe);
        settings.extend(flags.into_iter().filter(|(key, _)| given(key)));
        options.config = settings.try_into().map_err(|e: toml::de::Error| bad(e.to_string()))?;
        Ok(options)
    }

    /// The run directory and the configuration: from the command line, or the saved one on resume.
    pub fn settle(&self) -> Result<(RunDir, Config)> {
        let numbered = |n: u32| PathBuf::from(format!("runs/meta_train-{n}"));
        let free = (1..).find(|&n| !numbered(n).exists()).unwrap_or(1);
        let path = match (&self.run_dir, self.resume) {
            (Some(path), _) => path.clone(),
            (None, true) => numbered(free.max(2) - 1),
            (None, false) => numbered(free),
        };
        let dir = RunDir::new(path);
        let file = dir.file("config.toml");
        if self.resume {
            let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
            let config = toml::from_str(&text).map_err(|e| Error::format(&file, e.to_string()))?;
            return Ok((dir, config));
        }
        if file.exists() {
            let why = "holds a run already; resume it, or choose another directory";
            return Err(Error::invalid(format!("run directory {}", dir.path().display()), why));
        }
        dir.create()?;
        write_atomic(&file, self.config.to_toml()?.as_bytes())?;
        Ok((dir, self.config.clone()))
    }
}

impl Config {
    /// The seeds of the restarts. Errors if there is nothing to choose by.
    pub fn seeds(&self) -> Result<std::ops::Range<u64>> {
        if self.restarts == 0 || (self.restarts > 1 && self.validation_tasks == 0) {
            let why = "must be at least 1, and more need validation_tasks to choose by";
            return Err(Error::invalid(format!("restarts = {}", self.restarts), why));
        }
        Ok(self.seed..self.seed + self.restarts)
    }

    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::invalid("configuration", e.to_string()))
    }

    pub fn learned_optimizer(&self) -> Result<Arc<dyn LearnedOptimizer>> {
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
            Lopt::ControlledAdam => Arc::new(ControlledAdam {
                step_mult: self.step_mult,
                hidden_size: self.hidden_size,
                ..ControlledAdam::default()
            }),
        })
    }

    /// The tasks, for meta-training and for the final comparison (which uses other keys).
    pub fn family(&self) -> Result<Arc<dyn FlatFamily>> {
        Ok(match self.task {
            TaskName::DigitsMlp => Arc::new(SingleTask::new(ImageMlp::digits())),
            TaskName::MnistMlp => self.image_mlp(ImageFiles::Mnist)?,
            TaskName::FashionMnistMlp => self.image_mlp(ImageFiles::FashionMnist)?,
            TaskName::Cifar10Mlp => self.image_mlp(ImageFiles::Cifar10)?,
            TaskName::DigitsMlpFamily => Arc::new(ImageMlpFamily::new(Splits::digits())),
            TaskName::Suite => {
                let training = self.training.clone().unwrap_or_default();
                training.check()?;
                Arc::new(training)
            }
            TaskName::Quadratics => Arc::new(FixedDimQuadraticFamily { dim: 10 }),
        })
    }

    fn image_mlp(&self, files: ImageFiles) -> Result<Arc<dyn FlatFamily>> {
        let data = files.load(self.data_dir.as_deref())?.map(|d| d.channel_mean().resized(8, 8))?;
        Ok(Arc::new(SingleTask::new(ImageMlp::<64, 32, 10>::new(data, 128, Activation::Relu)?)))
    }

    pub fn learner(&self, lopt: Arc<dyn LearnedOptimizer>) -> Result<GradientLearner> {
        let lengths = TruncationSchedule::LogUniform { min: self.min_length, max: self.max_length };
        let schedule = self.horizon.clone().unwrap_or(lengths);
        let step =
            TruncatedStep::new(self.family()?, lopt.clone(), schedule)?.with_objective(self.objective)?;
        let common = Antithetic {
            num_tasks: self.num_tasks,
            trunc_length: self.trunc_length,
            std: self.std,
            ..Antithetic::default()
        };
        let sweep = SweepConfig::default();
        let estimator: Box<dyn GradientEstimator> = match self.estimator {
            // Lanes start at random points of their runs, so that every outer step sees all ages.
            Estimator::Pes => {
                Box::new(TruncatedPes::new(step.with_offset(InitialOffset::BurnIn(self.max_length)), common)?)
            }
            Estimator::Es => {
                Box::new(TruncatedEs::new(step.with_offset(InitialOffset::BurnIn(self.max_length)), common)?)
            }
            Estimator::FullEs => Box::new(FullEs::new(step, common, FullLoss::Mean)?),
            Estimator::Grad => Box::new(TruncatedGrad::new(step, self.num_tasks, self.trunc_length, sweep)?),
            Estimator::FullGrad => Box::new(FullGrad::new(step, self.num_tasks, sweep)?),
        };
        let lr = Cosine {
            peak: self.outer_lr,
            min_mult: self.outer_lr_end,
            constant_fraction: 0.0,
            warmup_fraction: 0.0,
            ..Cosine::default()
        };
        let outer = Clip::new(ClipRule::Value(self.clip), Box::new(Adam::new(lr)));
        let learner = GradientLearner::new(lopt, vec![estimator], Box::new(outer), self.outer_steps)?
            .with_note(format!("{self:?}; kernel={}", kernel::path()));
        if self.validation_tasks == 0 {
            return Ok(learner);
        }
        learner.with_validation(Validation {
            family: self.family()?,
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
            "meta-training {} ({} meta-parameters) on {:?} by {:?}: {} tasks x {} steps x {} outer steps, {threads} threads, {} kernels",
            lopt.name(),
            lopt.theta_layout().len(),
            self.task,
            self.estimator,
            self.num_tasks,
            self.trunc_length,
            self.outer_steps,
            kernel::path(),
        )
    }
}
