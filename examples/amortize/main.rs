//! Learning to solve: trains amortization models on problems with known solutions, prints a table and draws pictures.
//!
//! `cargo run --release --example amortize -- sphere --dir runs/sphere`
//!
//! Training writes what every run of outerloop writes (metrics, TensorBoard, checkpoints; `--resume` continues).

mod control;
mod figures;
mod fixed_point;
mod maml;
mod qp;
mod rank;
mod sparse;
mod sphere;
mod transport;

use clap::{Parser, Subcommand};
use outerloop::amortized::report::{mean, median, table};
use outerloop::amortized::train::TrainRun;
use outerloop::core::{FlatTask, Result};
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
    /// Fixed points: a learned start and learned mixing against Anderson's.
    FixedPoint(Options),
    /// Sinusoids by MAML: first order, second order, Reptile, implicit.
    Maml(Options),
    /// Optimal transport between digits: predicted potentials that Sinkhorn finishes.
    Transport(Options),
    /// Quadratic programs by ADMM, its step parameter chosen by a policy from evolution strategies.
    Qp(Options),
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
        What::FixedPoint(o) => fixed_point::run(&o),
        What::Maml(o) => maml::run(&o),
        What::Transport(o) => transport::run(&o),
        What::Qp(o) => qp::run(&o),
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
    /// Training steps, where the user names none.
    fn steps_or(&self, steps: u64) -> u64 {
        self.steps.unwrap_or(steps)
    }
    /// Where training runs go.
    fn runs(&self) -> TrainRun {
        TrainRun { dir: self.dir.clone(), seed: self.seed, resume: self.resume }
    }
    /// Trains a task's parameters with Adam in `dir/name` and returns them.
    fn train(&self, name: &str, task: Arc<dyn FlatTask>, rate: f64, steps: u64) -> Result<Vec<f32>> {
        self.runs().fit(name, task, rate, self.steps_or(steps))
    }
}
