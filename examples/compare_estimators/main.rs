//! Meta-gradient estimators at equal compute: truncated ES, PES, unrolled gradients, their mix, and PES with an
//! analytic control variate meta-train the same learned optimizer on the same tasks.
//!
//! Before that the lab measures them at the first theta: bias and cosine against a long measurement of noise-reuse ES,
//! variance, and signal to noise per inner step and per second; how variance grows with the length of runs; and the
//! meta-loss itself, along its gradient and in a plane around theta. The last
//! row is what `lab::choose` takes at the first theta, by this machine's seconds: the only one that may change from
//! machine to machine.
//!
//! Compute is counted in gradient equivalents, the cost of one loss and gradient of the task: an inner
//! step of an ES-type estimator is one; a step of an unrolled window is one forward and, by the timing of
//! this machine, about two for loss, gradient and Hessian-vector product backward. Updates of the
//! optimizer are not counted; the seconds in the table include everything. The same runs are drawn over gradient
//! equivalents, inner steps and seconds, and compared at the most that all of them reach. Everything stands in
//! `report.html`.
//!
//! `cargo run --release --example compare_estimators` takes about eight minutes on 2 cores.

mod measure;
mod options;
mod report;
mod training;

use clap::Parser;
use options::Options;
use outerloop::prelude::*;
use std::process::ExitCode;

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
    options.validate()?;
    let mut entries = options.entries()?;
    let workers = Workers::new(options.threads)?;
    std::fs::create_dir_all(&options.out).map_err(|e| Error::io(&options.out, e))?;
    let lab = if options.lab_samples > 0 { Some(options.lab(&entries, &workers)?) } else { None };
    let (auto, choice) = options.auto(&workers)?;
    entries.push(auto);
    println!("{}\n", report::setting(options));
    println!("{}", report::HEADER);
    let mut all = Vec::new();
    for entry in &entries {
        let runs = options.train(entry, &workers)?;
        println!("{}", report::line(&runs));
        all.push(runs);
    }
    let path = report::save(options, lab.as_ref(), &choice, &all)?;
    println!("\nwritten: {}", path.display());
    Ok(())
}
