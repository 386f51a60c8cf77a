//! Meta-trains a learned optimizer, then compares it with hand-designed ones on tasks it never saw.
//!
//! `cargo run --release --example meta_train` does it all with good defaults; `-- --help` lists the
//! choices, and `-- --recipe FILE` reads them from a file: `examples/meta_train/small.toml` is the recipe
//! of [`outerloop::pretrained::small`]. Everything ends up in one run directory, and `-- --resume --run-dir DIR`
//! continues a run that was stopped, to the same bytes. `--override outer-lr=1e-4,outer-steps=3000` beside it changes
//! the run from there on. All settings are checked before anything is written.

mod config;
mod contest;
mod options;
mod plan;
mod settings;
mod start;
#[cfg(test)]
mod tests;
mod training;

use options::Options;
use outerloop::outer::guard::input_ranges;
use outerloop::prelude::*;
use plan::Plan;
use settings::{Parts, Settings};
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
    let plan = Plan::new(&options)?;
    let workers = Workers::new(options.threads)?;
    plan.begin()?;
    let (dir, settings, Parts { lopt, family, .. }) = (&plan.dir, &plan.settings, &plan.parts);
    let config = &settings.config;
    println!("{}", config.summary(&**lopt, workers.threads()));
    println!("run directory: {}", dir.path().display());
    if let Some(choice) = &plan.choice {
        println!("chosen: {} (all candidates: {})", choice.settings(), dir.file(plan::CHOICE).display());
    }
    settings.overrides.iter().for_each(|change| println!("{change}"));

    let file = dir.file("theta.safetensors");
    let mut best: Option<(RunDir, LearnerState)> = None;
    let mut inner_steps = 0;
    for (seed, own) in config.runs(dir) {
        let state = match one_run(&plan, seed, &own, &workers) {
            Err(e @ Error::NonFinite { .. }) => {
                let state = own.load(&plan.learner)?;
                let theta = plan.learner.chosen_theta(&state);
                plan.parts.save_theta(file, &theta, provenance(settings, state.inner_steps)?)?;
                return Err(e);
            }
            state => state?,
        };
        inner_steps += state.inner_steps;
        if best.as_ref().is_none_or(|b| score(&state) < score(&b.1)) {
            best = Some((own, state));
        }
    }
    let Some((best_dir, state)) = best else { return Ok(()) };
    if let Some(v) = &state.validated {
        let (step, score, path) = (v.outer_step, v.score, best_dir.path().display());
        println!("kept: theta after {step} outer steps in {path}, validation {score:.5}");
    }
    // What the optimizer has seen, for guard rails where it is used.
    let key = Key::new(config.seed).named("input ranges");
    let theta = plan.learner.chosen_theta(&state);
    let opt = lopt.opt_fn(&theta);
    let seen = input_ranges(&**family, &*opt, config.max_length, RANGE_RUNS, key, &workers);
    let seen = serde_json::to_string(&seen).map_err(|e| Error::invalid("input ranges", e.to_string()))?;
    let mut provenance = provenance(settings, inner_steps)?;
    provenance.insert("input_ranges".to_string(), seen);
    plan.parts.save_theta(&file, &theta, provenance)?;
    let steps = state.outer_step;
    println!("{steps} outer steps, {inner_steps} inner steps in all; theta: {}", file.display());

    let pictures = training::pictures(dir, &best_dir.metrics(), config)?;
    contest::compare(&plan, &state, pictures, &workers)
}

/// The run of one seed; continues where it was stopped.
fn one_run(plan: &Plan, seed: u64, own: &RunDir, workers: &Workers) -> Result<LearnerState> {
    let config = &plan.settings.config;
    if config.restarts > 1 {
        println!("seed {seed}");
    }
    let run = RunConfig {
        seed,
        checkpoint_every: config.checkpoint_every,
        resume: plan.resume && own.checkpoint().exists(),
        description: format!("```toml\n{}\n```", plan.settings.to_toml()?),
        ..RunConfig::default()
    };
    let state = meta_train(&plan.learner, workers, own, &run);
    if matches!(state, Err(Error::Interrupted)) {
        let dir = plan.dir.path().display();
        let resume = format!("cargo run --release --example meta_train -- --resume --run-dir {dir}");
        eprintln!("stopped and saved; continue with\n  {resume}");
    }
    state
}

/// How a theta came about.
fn provenance(settings: &Settings, inner_steps: u64) -> Result<BTreeMap<String, String>> {
    Ok(BTreeMap::from([
        ("config".to_string(), settings.to_toml()?),
        ("inner_steps".to_string(), inner_steps.to_string()),
        ("outerloop".to_string(), env!("CARGO_PKG_VERSION").to_string()),
    ]))
}

/// What restarts are compared by: the best validation.
fn score(state: &LearnerState) -> f64 {
    state.validated.as_ref().map_or(f64::INFINITY, |v| v.score)
}
