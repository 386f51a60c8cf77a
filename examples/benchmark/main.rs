//! Learned against hand-designed optimizers, honestly:
//!
//! `cargo run --release --example benchmark`
//!
//! trains every task of the held-out suite with every optimizer and writes a report (HTML, CSV, JSON)
//! whose numbers repeat bit for bit. The learned contestant is the one that is shipped, or
//! `-- --theta runs/meta_train-1/theta.safetensors`. `-- --help` lists the choices, `-- --quick` takes
//! seconds.

mod options;

use clap::Parser;
use options::Options;
use outerloop::lopt::baselines::{learning_rates, nadamw_decays, nadamw_list, BASELINES};
use outerloop::lopt::theta::ThetaFile;
use outerloop::outer::benchmark::{time_steps, Contest, Contestant, Receipt, Report, Role};
use outerloop::prelude::*;
use outerloop::pretrained::SMALL;
use outerloop::tasks::suite;
use std::path::PathBuf;
use std::process::ExitCode;

/// Peak rates of NAdamW with a cosine schedule and swept weight decay.
const DECAY_PEAKS: [f64; 5] = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1];

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
        "{} tasks, {} optimizers with {variants} variants, {} seeds, {} steps, {} threads",
        contest.tasks.len(),
        contest.contestants.len(),
        contest.config.seeds,
        contest.config.num_steps,
        workers.threads(),
    );
    let results = contest.run(&workers)?;
    let title = format!("Benchmark of optimizers on the {} suite", options.suite.name());
    let mut report = Report::new(title, &contest, &results);
    report.receipt = receipt;
    report.times = time_steps(&contest);
    print!("{}", report.text());
    println!("\nwrote {}", report.save(&options.out)?.display());
    Ok(())
}

/// Adam first: it is the reference.
fn contestants(options: &Options) -> Result<(Vec<Contestant>, Receipt)> {
    let rates = if options.quick { options::quick_rates() } else { learning_rates() };
    let mut all: Vec<Contestant> =
        BASELINES.iter().map(|b| Contestant::swept(b.name, &rates, b.make)).collect();
    let list = nadamw_list().into_iter().map(|o| Box::new(o) as Box<dyn Optimizer>).collect();
    all.push(Contestant::listed("NAdamW list", list));
    let peaks = if options.quick { vec![1e-2, 1e-1] } else { DECAY_PEAKS.to_vec() };
    let decays =
        nadamw_decays(&peaks).into_iter().map(|(label, o)| (label, Box::new(o) as Box<dyn Optimizer>));
    all.push(Contestant::labelled("NAdamW cosine decay", decays));
    if let Some(wanted) = &options.baselines {
        let names: Vec<String> = all.iter().map(|c| c.name.clone()).collect();
        if let Some(got) = wanted.iter().find(|w| *w != "none" && !names.contains(w)) {
            return Err(Error::Unknown { what: "baseline", got: got.clone(), allowed: names });
        }
        let first = names[0].clone();
        all.retain(|c| c.name == first || wanted.contains(&c.name));
    }
    let data = Splits::digits();
    let pixels: Vec<u8> = data.data().images.iter().flat_map(|x| x.to_le_bytes()).collect();
    let labels: Vec<u8> = data.data().labels.iter().flat_map(|l| l.to_le_bytes()).collect();
    let mut receipt = Receipt::new()
        .with("kernels", kernel::path())
        .with_hash("digits, pixels and labels", &[pixels, labels].concat());
    for (name, file) in thetas(options)? {
        let lopt = registry::from_architecture::<f32>(&file.architecture)?;
        let opt = lopt.opt_fn(file.theta_for(&*lopt)?);
        let bytes: Vec<u8> = file.theta.iter().flat_map(|x| x.to_le_bytes()).collect();
        receipt = receipt.with(format!("architecture of {name}"), &file.architecture);
        receipt = receipt.with_hash(format!("theta of {name}"), &bytes);
        all.push(Contestant::single(name, Role::Learned, opt));
    }
    Ok((all, receipt))
}

/// The learned contestants with their names: the given files, or the optimizer that is shipped.
fn thetas(options: &Options) -> Result<Vec<(String, ThetaFile)>> {
    if options.theta.is_empty() {
        return Ok(vec![(format!("pretrained {}", SMALL.name), SMALL.file()?)]);
    }
    let load = |path: &PathBuf| {
        let file = theta::load(path)?;
        let class = file.architecture.split(' ').next().unwrap_or_default().to_string();
        // Several of one class are told apart by their files.
        let name = if options.theta.len() > 1 { format!("{class} {}", path.display()) } else { class };
        Ok((name, file))
    };
    options.theta.iter().map(load).collect()
}
