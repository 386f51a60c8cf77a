//! Chooses the ordered list of NAdamW configurations, `lopt::baselines::nadamw_list`, on draws of the
//! suite's training mixture: greedily, each entry the best complement of those before it.
//!
//! `cargo run --release --example order_nadamw` prints the list with what every entry gains.

use clap::Parser;
use outerloop::lopt::baselines::{nadamw_candidates, nadamw_cosine};
use outerloop::outer::benchmark::{Contest, ContestConfig, ContestTask, Contestant, Scores};
use outerloop::prelude::*;
use outerloop::tasks::suite;
use std::process::ExitCode;
use std::sync::Arc;

/// Choose an ordered list of NAdamW configurations.
#[derive(Parser)]
struct Options {
    /// Draws of the training mixture.
    #[arg(long, default_value_t = 40)]
    tasks: u64,
    /// Updates per run.
    #[arg(long, default_value_t = 500)]
    steps: u64,
    /// Entries of the list.
    #[arg(long, default_value_t = 10)]
    entries: usize,
    /// Root of all randomness.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Worker threads; 0: one per core. The list does not depend on it.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(if matches!(e, Error::Interrupted) { 130 } else { 2 })
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let candidates = nadamw_candidates();
    let counts =
        [("--tasks", options.tasks as usize, 10_000), ("--entries", options.entries, candidates.len())];
    for (flag, got, most) in counts {
        if !(1..=most).contains(&got) {
            return Err(Error::invalid(format!("{flag} {got}"), format!("expected 1 to {most}")));
        }
    }
    let key = Key::new(options.seed).named("order nadamw");
    let mixture = suite::training();
    let tasks = (0..options.tasks).map(|i| {
        let task = FlatFamily::<f32>::sample_task(&mixture, key.fold_in(i));
        ContestTask { name: i.to_string(), family: Arc::new(SingleTask(task)) }
    });
    let optimizers = candidates
        .iter()
        .map(|&(peak, beta1, beta2, decay)| {
            Box::new(nadamw_cosine(peak, beta1, beta2, decay)) as Box<dyn Optimizer>
        })
        .collect();
    let contest = Contest {
        config: ContestConfig {
            num_steps: options.steps,
            reference_factor: 1,
            seeds: 1,
            resamples: 0,
            ..ContestConfig::default()
        },
        tasks: tasks.collect(),
        contestants: vec![Contestant::listed("candidates", optimizers)],
        reference: 0,
        key: key.named("runs"),
    };
    let results = contest.run(&Workers::new(options.threads)?)?;
    let scores = Scores::new(&contest, &results);
    // ln(loss / best of all candidates), [task][candidate]; a failure counts as e times the start.
    let excess: Vec<Vec<f64>> = scores
        .tasks
        .iter()
        .zip(&scores.envelopes)
        .map(|(task, envelope)| {
            let score = &task[0];
            let worst = std::f64::consts::E * envelope[0];
            let best = score.loss.min(worst);
            score.sweep.iter().map(|&loss| (loss.min(worst) / best).ln()).collect()
        })
        .collect();
    let mut reached = vec![f64::INFINITY; excess.len()];
    println!(
        "{:>5} {:>8} {:>6} {:>6} {:>6}  mean ln(loss / best)",
        "place", "rate", "beta1", "beta2", "decay"
    );
    for place in 1..=options.entries {
        let mean_with = |c: usize| {
            excess.iter().zip(&reached).map(|(task, r)| task[c].min(*r)).sum::<f64>() / excess.len() as f64
        };
        let best = (0..candidates.len()).min_by(|&a, &b| mean_with(a).total_cmp(&mean_with(b)));
        let Some(best) = best else { break };
        let mean = mean_with(best);
        reached.iter_mut().zip(&excess).for_each(|(r, task)| *r = r.min(task[best]));
        let (peak, beta1, beta2, decay) = candidates[best];
        println!("{place:>5} {peak:>8.0e} {beta1:>6} {beta2:>6} {decay:>6}  {mean:.4}");
    }
    Ok(())
}
