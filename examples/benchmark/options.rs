//! The command line.

use clap::{Parser, ValueEnum};
use outerloop::outer::benchmark::{ContestConfig, ContestTask};
use outerloop::prelude::*;
use outerloop::tasks::suite;
use std::path::PathBuf;
use std::sync::Arc;

/// Compare learned with hand-designed optimizers and write a report.
#[derive(Parser)]
pub struct Options {
    /// A saved theta, as written by meta_train; may be repeated [default: the pretrained optimizer].
    #[arg(long, value_name = "FILE")]
    pub theta: Vec<PathBuf>,
    /// Learned optimizers: pretrained ones (small, celo, celo-adam), theta files, or CLASS=FILE with a class of the
    /// registry and weights in any known format, e.g. `small,celo,Celo2=weights.npz`; may be repeated.
    #[arg(long, value_name = "NAME,...")]
    pub contestants: Vec<String>,
    /// The optimizers that are shipped also after a sweep over their knobs (rate and decay), chosen on every task as
    /// their rivals' settings are.
    #[arg(long)]
    pub sweep_learned: bool,
    /// Only these hand-designed optimizers beside Adam, the reference; `none` for no other [default: all but
    /// OptList, ten runs of the published list].
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub baselines: Option<Vec<String>>,
    /// Updates per run.
    #[arg(long, default_value_t = 500)]
    steps: u64,
    /// Other run lengths for the learned optimizers, at most four times --steps [default: a fifth, twice
    /// and four times --steps].
    #[arg(long, value_delimiter = ',')]
    horizons: Option<Vec<u64>>,
    /// What learned optimizers are told about the length of their runs: exact, unknown, or a number of steps.
    #[arg(long, default_value = "exact")]
    told: ToldSteps,
    /// Runs per task and optimizer.
    #[arg(long, default_value_t = 3)]
    pub seeds: u64,
    /// Root of all randomness.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// What is trained.
    #[arg(long, value_enum, default_value_t = Suite::HeldOut)]
    pub suite: Suite,
    /// Only tasks whose name contains this.
    #[arg(long, value_name = "PART")]
    tasks: Option<String>,
    /// Where tasks are computed: cpu, cuda (the first card) or cuda:N.
    #[arg(long, default_value_t = Device::Cpu)]
    pub device: Device,
    /// Worker threads; 0: one per core. Results do not depend on it.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Directory of the report.
    #[arg(long, default_value = "runs/benchmark")]
    pub out: PathBuf,
    /// A look in seconds: 50 steps, 2 seeds, 5 learning rates, a few tasks.
    #[arg(long)]
    pub quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// The named tasks that meta-training avoids.
    HeldOut,
    /// Named tasks on data that meta-training never sees: text, spirals, Friedman's regression.
    Foreign,
    /// 24 draws from the mixture for meta-training, with nets of up to four layers.
    Training,
}

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Suite::HeldOut => "held-out",
            Suite::Foreign => "foreign",
            Suite::Training => "training",
        }
    }
}

/// Draws from the training mixture.
const TRAINING_TASKS: u64 = 24;
/// Every so many tasks one in quick mode.
const QUICK_STRIDE: usize = 5;

/// Decades from 1e-4 to 1.
pub fn quick_rates() -> Vec<f64> {
    (-4..=0).map(|i| 10f64.powi(i)).collect()
}

fn named(tasks: Vec<suite::HeldOutTask>, device: Device) -> Result<Vec<ContestTask>> {
    let contest_task = |t: suite::HeldOutTask| {
        let family = Arc::new(SingleTask(t.task_on(device)?));
        Ok(ContestTask { name: t.name, family })
    };
    tasks.into_iter().map(contest_task).collect()
}

impl Options {
    pub fn contest(&self) -> ContestConfig {
        let num_steps = if self.quick { self.steps.min(50) } else { self.steps };
        let times = |n: u64| num_steps.saturating_mul(n);
        let others = || [num_steps / 5, times(2), times(4)].into_iter().filter(|h| *h > 0).collect();
        ContestConfig {
            num_steps,
            seeds: if self.quick { self.seeds.min(2) } else { self.seeds },
            seed: self.seed,
            told: self.told,
            other_horizons: self.horizons.clone().unwrap_or_else(others),
            ..ContestConfig::default()
        }
    }

    pub fn tasks(&self) -> Result<Vec<ContestTask>> {
        let mut all: Vec<ContestTask> = match self.suite {
            Suite::HeldOut => named(suite::held_out(), self.device)?,
            Suite::Foreign => named(suite::foreign(), self.device)?,
            Suite::Training => {
                let mixture = suite::Training { layers: [1, 4], ..suite::training() };
                let mixture = suite::TrainingOn::new(mixture, self.device)?;
                let key = Key::new(self.seed).named("benchmark of the training suite");
                let draw = |i| {
                    let task = FlatFamily::<f32>::sample_task(&mixture, key.fold_in(i));
                    ContestTask {
                        name: format!("{i:02} {}", task.name()),
                        family: Arc::new(SingleTask(task)),
                    }
                };
                (0..TRAINING_TASKS).map(draw).collect()
            }
        };
        if let Some(part) = &self.tasks {
            let names: Vec<String> = all.iter().map(|t| t.name.clone()).collect();
            all.retain(|t| t.name.contains(part));
            if all.is_empty() {
                return Err(Error::Unknown { what: "task", got: part.clone(), allowed: names });
            }
        } else if self.quick {
            all = all.into_iter().step_by(QUICK_STRIDE).collect();
        }
        Ok(all)
    }
}
