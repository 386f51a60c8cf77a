//! Learned against hand-designed optimizers, honestly:
//!
//! `cargo run --release --example benchmark`
//!
//! trains every task of the held-out suite with every optimizer and writes a report (HTML, CSV, JSON)
//! whose numbers repeat bit for bit. The learned contestant is the one that is shipped, or
//! `-- --theta runs/meta_train-1/theta.safetensors`, or several: `-- --contestants small,celo,celo-adam`.
//! `-- --help` lists the choices, `-- --quick` takes seconds.

mod contestants;
mod options;

use clap::Parser;
use contestants::contestants;
use options::Options;
use outerloop::outer::benchmark::{time_steps, Contest, Report};
use outerloop::prelude::*;
use outerloop::tasks::suite;
use std::process::ExitCode;

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
    options.device.check()?;
    let workers = Workers::new(options.threads)?;
    let (contestants, receipt) = contestants(options)?;
    let contest = Contest {
        config: options.contest(),
        tasks: options.tasks()?,
        contestants,
        reference: 0,
        key: suite::evaluation_key(options.seed),
    };
    contest.check()?;
    // A place for the report that cannot be had is found out now, not after the runs.
    std::fs::create_dir_all(&options.out).map_err(|e| Error::io(&options.out, e))?;
    let variants: usize = contest.contestants.iter().map(|c| c.variants.len()).sum();
    println!(
        "{} tasks on {}, {} optimizers with {variants} variants, {} seeds, {} steps, {} threads",
        contest.tasks.len(),
        options.device,
        contest.contestants.len(),
        contest.config.seeds,
        contest.config.num_steps,
        workers.threads(),
    );
    let results = contest.run(&workers)?;
    let title = format!("Benchmark of optimizers on the {} suite", options.suite.name());
    let mut report = Report::new(title, &contest, &results);
    report.receipt = receipt.with("device", options.device.to_string());
    report.times = time_steps(&contest);
    print!("{}", report.text());
    println!("\nwrote {}", report.save(&options.out)?.display());
    Ok(())
}
