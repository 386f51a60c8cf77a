//! Amortized inference: variational autoencoders on the embedded digits, iterative inference, filtering.
//!
//! `cargo run --release --example infer -- iterative --seeds 3`

mod filter;
mod iterative;
mod vae;

use clap::{Parser, Subcommand};
use outerloop::amortized::report::mean;
use outerloop::amortized::train::{task_learner, TrainRun};
use outerloop::core::{FlatTask, Optimizer, Result};
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
    Vae(Options),
    /// Direct, gradient and error encoding at equal epochs.
    Iterative(iterative::IterativeOptions),
    /// Filtering in a linear-Gaussian model against Kalman.
    Filter(Options),
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().what {
        What::Vae(o) => vae::run(&o),
        What::Iterative(o) => iterative::run(&o),
        What::Filter(o) => filter::run(&o),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

impl Options {
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

/// Mean over runs and its standard error, where there is one.
fn show(x: &[f64]) -> String {
    let (m, e) = mean(x);
    if x.len() > 1 {
        format!("{m:.3} +- {e:.3}")
    } else {
        format!("{m:.3}")
    }
}

/// Adam of this rate, as torch has it.
fn adam(rate: f64) -> Box<dyn Optimizer> {
    Box::new(Adam { epsilon_root: 0.0, ..Adam::new(rate) })
}
