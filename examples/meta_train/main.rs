//! Meta-trains a learned optimizer, then compares it with hand-designed ones on tasks it never saw.
//!
//! `cargo run --release --example meta_train` does it all with good defaults; `-- --help` lists the
//! choices, and `-- --recipe FILE` reads them from a file: `examples/meta_train/small.toml` is the recipe
//! of [`outerloop::pretrained::small`]. Everything ends up in one run directory, and `-- --resume --run-dir DIR` continues a run
//! that was stopped, to the same bytes.

mod config;
mod contest;

use config::Options;
use outerloop::prelude::*;
use std::collections::BTreeMap;
use std::process::ExitCode;

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

    let run = RunConfig {
        seed: config.seed,
        checkpoint_every: config.checkpoint_every,
        resume: options.resume,
        description: format!("```toml\n{}\n```", config.to_toml()?),
        ..RunConfig::default()
    };
    let state = match meta_train(&learner, &workers, &dir, &run) {
        Err(Error::Interrupted) => {
            let resume = format!(
                "cargo run --release --example meta_train -- --resume --run-dir {}",
                dir.path().display()
            );
            eprintln!("stopped and saved; continue with\n  {resume}");
            return Err(Error::Interrupted);
        }
        state => state?,
    };
    let provenance = BTreeMap::from([
        ("config".to_string(), config.to_toml()?),
        ("inner_steps".to_string(), state.inner_steps.to_string()),
        ("outerloop".to_string(), env!("CARGO_PKG_VERSION").to_string()),
    ]);
    theta::save(dir.file("theta.safetensors"), &*lopt, &state.theta.params, provenance)?;
    println!(
        "{} outer steps, {} inner steps; theta: {}",
        state.outer_step,
        state.inner_steps,
        dir.file("theta.safetensors").display()
    );

    contest::meta_loss_plot(&dir, &config)?;
    contest::compare(&dir, &config, &*lopt, &state, &workers)
}
