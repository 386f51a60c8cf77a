//! Learning to solve: trains amortization models on problems with known solutions, prints a table and draws pictures.
//!
//! `cargo run --release --example amortize -- sphere --dir runs/sphere`
//!
//! Training writes what every run of outerloop writes (metrics, TensorBoard, checkpoints; `--resume` continues).

mod control;
mod figures;
mod maml;
mod rank;
mod sparse;
mod sphere;

use clap::{Parser, Subcommand};
use outerloop::amortized::train::task_learner;
use outerloop::core::{FlatTask, Result};
use outerloop::lopt::hand::Adam;
use outerloop::outer::run::{meta_train, RunConfig, RunDir};
use outerloop::outer::Workers;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Parser)]
#[command(about = "Learning to solve: amortized optimization")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

/// What all subcommands take.
#[derive(clap::Args, Clone)]
struct Options {
    /// Where runs and pictures go.
    #[arg(long, default_value = "runs/amortize")]
    dir: PathBuf,
    /// Training steps; by default as many as the subcommand needs.
    #[arg(long)]
    steps: Option<u64>,
    /// Root of all randomness.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue runs that exist.
    #[arg(long)]
    resume: bool,
}

#[derive(Subcommand)]
enum What {
    /// Soft minima on the sphere: a prediction, and a prediction with learned Riemannian steps.
    Sphere(Options),
    /// Sparse coding: ISTA, FISTA and learned ISTA.
    Sparse(Options),
    /// Sinusoids by MAML: first order, second order, Reptile.
    Maml(Options),
    /// LQR and the pendulum: policies by objective and by cloning an expert.
    Control(Options),
    /// Learning to rank through a perturbed ranking and its Fenchel-Young loss.
    Rank(Options),
    /// The tutorial's figures, mended.
    Figures(Options),
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().what {
        What::Sphere(o) => sphere::run(&o),
        What::Sparse(o) => sparse::run(&o),
        What::Maml(o) => maml::run(&o),
        What::Control(o) => control::run(&o),
        What::Rank(o) => rank::run(&o),
        What::Figures(o) => figures::run(&o),
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
    /// Trains a task's parameters with Adam in `dir/name` and returns them.
    fn train(&self, name: &str, task: Arc<dyn FlatTask>, rate: f64, steps: u64) -> Result<Vec<f32>> {
        let steps = self.steps.unwrap_or(steps);
        eprintln!("training {name}: {} parameters, {steps} steps", task.layout().len());
        let opt = Adam { epsilon_root: 0.0, ..Adam::new(rate) };
        let learner = task_learner(task, Box::new(opt), steps, 1)?;
        let dir = RunDir::new(self.dir.join(name));
        let resume = self.resume && dir.checkpoint().exists();
        let config = RunConfig { seed: self.seed, resume, checkpoint_every: 1000, ..RunConfig::default() };
        let state = meta_train(&learner, &Workers::new(1)?, &dir, &config)?;
        Ok(learner.chosen_theta(&state).into_owned())
    }
}

/// Prints rows of a table.
fn table(title: &str, rows: &[(String, String)]) {
    let width = rows.iter().map(|r| r.0.chars().count()).max().unwrap_or(0);
    println!("\n{title}");
    for (name, value) in rows {
        println!("  {name:<width$}  {value}");
    }
}

/// Mean and standard error.
fn mean(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (var / n).sqrt())
}
