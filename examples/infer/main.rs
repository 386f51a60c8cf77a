//! Amortized inference: variational autoencoders on the embedded digits, iterative inference, filtering.
//!
//! ```sh
//! cargo run --release --example infer -- vae --net conv               # an encoder against Adam; pictures
//! cargo run --release --example infer -- iterative --seeds 3          # the published forms, in one table
//! cargo run --release --example infer -- iterative --table surface    # 2 latents: the way over the bound, as a picture
//! cargo run --release --example infer -- filter                       # filters in a known linear model, against Kalman
//! cargo run --release --example infer -- filter --model recurrent --data pendulum
//! cargo run --release --example infer -- filter --model recurrent --data walks.csv    # sequence,number,number,...
//! ```
//!
//! Each prints tables, and leaves pictures and its training runs below `--dir`.

mod filter;
mod filter_linear;
mod filter_recurrent;
mod iterative;
mod pictures;
mod surface;
mod vae;

use clap::{Parser, Subcommand};
use outerloop::amortized::report::interval;
use outerloop::amortized::train::{task_learner, TrainRun};
use outerloop::core::{Error, FlatTask, Optimizer, Result};
use outerloop::lopt::hand::Adam;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Parser)]
#[command(about = "Learning to infer: amortized variational inference")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

/// What all subcommands take.
#[derive(clap::Args, Clone)]
struct Options {
    /// Where runs and pictures go.
    #[arg(long, default_value = "runs/infer")]
    dir: PathBuf,
    /// Epochs (steps for the filter); by default as many as the subcommand needs.
    #[arg(long)]
    epochs: Option<u64>,
    /// Runs with different seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Root of all randomness.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue runs that exist.
    #[arg(long)]
    resume: bool,
}

#[derive(Subcommand)]
enum What {
    /// A VAE with a direct encoder, against Adam on every image's posterior.
    Vae(vae::VaeOptions),
    /// Direct, gradient and error encoding at equal epochs.
    Iterative(iterative::IterativeOptions),
    /// Filtering of sequences: in a linear-Gaussian model against Kalman, or by a learned recurrent model.
    Filter(filter::FilterOptions),
}

fn main() -> std::process::ExitCode {
    let what = Cli::parse().what;
    let common = match &what {
        What::Vae(o) => &o.common,
        What::Iterative(o) => &o.common,
        What::Filter(o) => &o.common,
    };
    let outcome = common.check().and_then(|()| match &what {
        What::Vae(o) => vae::run(o),
        What::Iterative(o) => iterative::run(o),
        What::Filter(o) => filter::run(o),
    });
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

impl Options {
    /// Refuses what no run could have.
    fn check(&self) -> Result<()> {
        let counts = [("--seeds", Some(self.seeds)), ("--epochs", self.epochs)];
        match counts.into_iter().find(|c| c.1 == Some(0)) {
            Some((name, _)) => Err(Error::invalid(name, "must be at least 1, got 0")),
            None => Ok(()),
        }
    }
    /// Seeds of the runs.
    fn seeds(&self) -> std::ops::Range<u64> {
        self.seed..self.seed + self.seeds
    }

    /// Trains a task's parameters in `dir/name` and returns them.
    fn train(
        &self,
        name: &str,
        task: Arc<dyn FlatTask>,
        opt: Box<dyn Optimizer>,
        steps: u64,
        seed: u64,
    ) -> Result<Vec<f32>> {
        let run = TrainRun { dir: self.dir.clone(), seed, resume: self.resume };
        run.train(name, &task_learner(task, opt, steps, 1)?)
    }
}

/// Mean over runs and half of its 95 % interval, where there is one.
fn show(x: &[f64]) -> String {
    let (m, half) = interval(x);
    if x.len() > 1 {
        format!("{m:.3} +- {half:.3}")
    } else {
        format!("{m:.3}")
    }
}

/// Numbers as the engine trains with.
fn single(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// Numbers as reports are made of.
fn double(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Adam of this rate, as torch has it.
fn adam(rate: f64) -> Box<dyn Optimizer> {
    Box::new(Adam { epsilon_root: 0.0, ..Adam::new(rate) })
}
