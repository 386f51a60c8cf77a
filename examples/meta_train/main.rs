//! Meta-trains a learned optimizer, then compares it with hand-designed ones on tasks it never saw.
//!
//! `cargo run --release --example meta_train` does it all with good defaults; `-- --help` lists the
//! choices, and `-- --recipe FILE` reads them from a file: `examples/meta_train/small.toml` is the recipe
//! of [`outerloop::pretrained::small`]. Everything ends up in one run directory, and `-- --resume --run-dir DIR` continues a run
//! that was stopped, to the same bytes.

mod config;
mod contest;

use config::{Config, Options};
use outerloop::outer::guard::input_ranges;
use outerloop::prelude::*;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Training runs over which the optimizer's inputs are recorded.
const RANGE_RUNS: u64 = 64;

fn main() -> ExitCode {
    match Options::from_command_line().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(if matches!(e, Error::Interrupted) { 130 } else { 2 })
        }
    }
}

fn run(options: Options) -> Result<()> {
    let (dir, config) = options.settle()?;
    let workers = Workers::new(options.threads)?;
    let lopt = config.learned_optimizer()?;
    let learner = config.learner(lopt.clone())?;
    println!("{}", config.summary(&*lopt, workers.threads()));
    println!("run directory: {}", dir.path().display());

    let mut best: Option<(RunDir, LearnerState)> = None;
    let mut inner_steps = 0;
    for seed in config.seeds()? {
        let found = match one_run(&options, &config, seed, &learner, &dir, &workers) {
            Err(e @ Error::NonFinite { .. }) => {
                let state = own_dir(&config, seed, &dir)?.load(&learner)?;
                let path = dir.file("theta.safetensors");
                let theta = learner.chosen_theta(&state);
                theta::save(path, &*lopt, &theta, provenance(&config, state.inner_steps)?)?;
                return Err(e);
            }
            found => found?,
        };
        inner_steps += found.1.inner_steps;
        if best.as_ref().is_none_or(|b| score(&found.1) < score(&b.1)) {
            best = Some(found);
        }
    }
    let Some((best_dir, state)) = best else { return Ok(()) };
    if let Some(v) = &state.validated {
        let (step, score, path) = (v.outer_step, v.score, best_dir.path().display());
        println!("kept: theta after {step} outer steps in {path}, validation {score:.5}");
    }
    // What the optimizer has seen, for guard rails where it is used.
    let key = Key::new(config.seed).named("input ranges");
    let theta = learner.chosen_theta(&state);
    let opt = lopt.opt_fn(&theta);
    let seen = input_ranges(&*config.family()?, &*opt, config.max_length, RANGE_RUNS, key, &workers);
    let seen = serde_json::to_string(&seen).map_err(|e| Error::invalid("input ranges", e.to_string()))?;
    let mut provenance = provenance(&config, inner_steps)?;
    provenance.insert("input_ranges".to_string(), seen);
    theta::save(dir.file("theta.safetensors"), &*lopt, &theta, provenance)?;
    println!(
        "{} outer steps, {inner_steps} inner steps in all; theta: {}",
        state.outer_step,
        dir.file("theta.safetensors").display()
    );

    contest::meta_loss_plot(&dir, &best_dir.metrics(), &config)?;
    let untrained = lopt.init(state.key.named("theta"));
    contest::compare(&dir, &config, &*lopt, [&theta, &untrained], &workers)
}

/// The run of one seed, in the run directory itself or, of several, in a directory in it; continues where
/// it was stopped.
fn one_run(
    options: &Options,
    config: &Config,
    seed: u64,
    learner: &GradientLearner,
    dir: &RunDir,
    workers: &Workers,
) -> Result<(RunDir, LearnerState)> {
    let own = own_dir(config, seed, dir)?;
    if own != *dir {
        println!("seed {seed}");
    }
    let run = RunConfig {
        seed,
        checkpoint_every: config.checkpoint_every,
        resume: options.resume && own.checkpoint().exists(),
        description: format!("```toml\n{}\n```", config.to_toml()?),
        ..RunConfig::default()
    };
    match meta_train(learner, workers, &own, &run) {
        Err(Error::Interrupted) => {
            let resume = format!(
                "cargo run --release --example meta_train -- --resume --run-dir {}",
                dir.path().display()
            );
            eprintln!("stopped and saved; continue with\n  {resume}");
            Err(Error::Interrupted)
        }
        state => Ok((own, state?)),
    }
}

/// Where the run of one seed is.
fn own_dir(config: &Config, seed: u64, dir: &RunDir) -> Result<RunDir> {
    let several = config.seeds()?.count() > 1;
    Ok(if several { RunDir::new(dir.file(&format!("seed-{seed}"))) } else { dir.clone() })
}

/// How a theta came about.
fn provenance(config: &Config, inner_steps: u64) -> Result<BTreeMap<String, String>> {
    Ok(BTreeMap::from([
        ("config".to_string(), config.to_toml()?),
        ("inner_steps".to_string(), inner_steps.to_string()),
        ("outerloop".to_string(), env!("CARGO_PKG_VERSION").to_string()),
    ]))
}

/// What restarts are compared by: the best validation.
fn score(state: &LearnerState) -> f64 {
    state.validated.as_ref().map_or(f64::INFINITY, |v| v.score)
}
