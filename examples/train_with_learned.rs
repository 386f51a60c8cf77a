//! Trains a task with a learned optimizer: a pretrained one by its name, or one from a theta file, e.g. one that
//! `meta_train` wrote:
//!
//! `cargo run --release --example train_with_learned -- celo`
//! `cargo run --release --example train_with_learned -- runs/meta_train-1/theta.safetensors`

use clap::{Parser, ValueEnum};
use outerloop::prelude::*;
use outerloop::pretrained::Named;
use std::process::ExitCode;

/// Train a task with a learned optimizer.
#[derive(Parser)]
struct Options {
    /// A pretrained optimizer (small, celo, celo-adam); or theta, as written by meta_train, whose file knows its
    /// learned optimizer; or weights of others, `.state`, `.npz` or safetensors, with their class: CLASS=FILE.
    theta: String,
    /// What to train.
    #[arg(long, value_enum, default_value_t = TaskName::DigitsMlp)]
    task: TaskName,
    /// Updates.
    #[arg(long, default_value_t = 500)]
    steps: u64,
    /// Fixes initial parameters and batches.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Lines to print.
    #[arg(long, default_value_t = 10)]
    lines: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TaskName {
    /// The tutorial's 64-32-10 ReLU MLP on 8x8 digits.
    DigitsMlp,
    /// A wider and deeper one: 64-128-128-10.
    DigitsMlpWide,
    /// A quadratic in 10 dimensions.
    Quadratic,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let named = Named::load(&options.theta)?;
    let opt = named.optimizer();
    let family: SingleTask = match options.task {
        TaskName::DigitsMlp => SingleTask::new(ImageMlp::digits()),
        TaskName::DigitsMlpWide => {
            let config = MlpConfig { hidden: vec![128, 128], ..MlpConfig::default() };
            SingleTask::new(MlpTask::new(Splits::digits(), config)?)
        }
        TaskName::Quadratic => SingleTask::new(QuadraticTask::new(10)),
    };
    println!("{} trains {:?}", named.lopt.architecture(), options.task);
    let config = EvalConfig {
        num_steps: options.steps,
        eval_every: (options.steps / options.lines.max(1)).max(1),
        splits: vec![Split::Train, Split::Test],
        ..EvalConfig::default()
    };
    let fit = fit(&family.0, &*opt, &config, Key::new(options.seed));
    println!("{:>8} {:>12} {:>12} {:>12}", "step", "train loss", "test loss", "test errors");
    for pair in fit.curve.evals.chunks_exact(2) {
        let errors = pair[1].metric(Metric::ERROR_RATE).map_or("-".into(), |e| format!("{:.1} %", 100.0 * e));
        println!("{:>8} {:>12.5} {:>12.5} {errors:>12}", pair[0].step, pair[0].loss, pair[1].loss);
    }
    fit.remarks.iter().for_each(|remark| println!("note: {remark}"));
    Ok(())
}
