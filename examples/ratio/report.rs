//! What a run shows: tables and pictures.

use crate::options::Options;
use outerloop::amortized::ratio::exact::{slcp_posterior, Resolution};
use outerloop::amortized::ratio::metrics::c2st::c2st;
use outerloop::amortized::ratio::metrics::two_sample::{mmd2, Bandwidth};
use outerloop::amortized::ratio::sample::{Sampler, Samples, Smc};
use outerloop::amortized::ratio::simulators::Slcp;
use outerloop::amortized::ratio::train::Trained;
use outerloop::amortized::ratio::{
    calibrate, files, slcp_excess, Corner, RatioEstimator, RatioPosterior, Runs, Simulator,
};
use outerloop::prelude::*;
use std::path::Path;
use std::time::Instant;

/// The lowest loss of NRE-A on SLCP, nats (Monte Carlo, ± 0.0013).
const SLCP_FLOOR: f64 = 0.0420;

/// Where the time goes.
pub struct Clock {
    wall: Instant,
    cpu: Option<f64>,
}

impl Clock {
    pub fn new() -> Self {
        Clock { wall: Instant::now(), cpu: cpu_seconds() }
    }

    /// Since the last lap, in words.
    pub fn lap(&mut self, what: &str) -> String {
        let last = std::mem::replace(self, Clock::new());
        let wall = last.wall.elapsed().as_secs_f64();
        let cpu = last.cpu.zip(self.cpu).map(|(a, b)| format!(", {:.1} CPU s", b - a)).unwrap_or_default();
        format!("time of {what}: {wall:.1} s{cpu}")
    }
}

/// CPU seconds of all threads of this process, where the system tells.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name in parentheses, user and system time are numbers 12 and 13, in hundredths.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / 100.0)
}

/// The loss of NRE-A above the lowest possible one.
pub fn excess(o: &Options, estimator: &RatioEstimator, workers: &Workers) -> Result<()> {
    let key = Key::new(o.seed).named("excess");
    let e = slcp_excess(estimator, o.excess, 1000, key, workers)?;
    println!(
        "\nloss of NRE-A {:.4}, of the exact ratio on the same pairs {:.4}: excess {:.4} ± {:.4} nats ({} observations)",
        e.loss,
        e.floor,
        e.excess(),
        e.standard_error,
        o.excess
    );
    Ok(())
}

/// Loss curves.
pub fn losses(o: &Options, runs: &[Trained]) -> Result<()> {
    let mut series = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let points = |f: fn(&outerloop::amortized::ratio::train::TrainPoint) -> f64| {
            run.curve.iter().map(|p| (p.step as f64, f(p))).collect()
        };
        series.push(Series::line(format!("training {i}"), points(|p| p.train)));
        series.push(Series::line(format!("validation {i}"), points(|p| p.valid)));
    }
    if o.loss == "a" && o.is_slcp() {
        let last = runs.iter().map(|r| r.steps[0]).max().unwrap_or(1) as f64;
        let floor = vec![(0.0, SLCP_FLOOR), (last, SLCP_FLOOR)];
        series.push(Series { style: Style::Dashed, ..Series::line("lowest possible", floor) });
    }
    let plot = Plot {
        title: "Loss of the ratio estimator".into(),
        x_label: "updates".into(),
        y_label: "nats".into(),
        y_scale: Scale::for_values(series.iter().flat_map(|s| s.points.iter().map(|p| p.1))),
        series,
        ..Plot::default()
    };
    plot.save(o.out.join("loss.svg"))
}

/// An observation, and the parameters that made it where they are known.
pub struct Observed {
    pub x: Vec<f64>,
    pub truth: Option<Vec<f64>>,
}

/// Draws from the posterior: table, warnings, corner plot, comparison with a reference. Files of observations after the
/// first carry their number.
pub fn posterior(
    o: &Options,
    estimator: &RatioEstimator,
    simulator: &dyn Simulator,
    sampler: &dyn Sampler,
    (number, observed): (usize, &Observed),
    workers: &Workers,
) -> Result<()> {
    let truth = observed.truth.as_deref();
    let density = estimator.posterior(&observed.x, simulator.prior())?;
    if let Some(path) = o.observation.get(number) {
        println!("\nobservation {}", path.display());
    }
    for warning in density.warnings() {
        println!("warning: {warning}");
    }
    let began = Instant::now();
    let samples = sampler.sample(&density, o.draws, Key::new(o.seed).named("sample"), workers)?;
    let r = &samples.report;
    println!(
        "{} draws by {} in {:.2} s: {} rows, acceptance {:.3}",
        samples.len(),
        r.sampler,
        began.elapsed().as_secs_f64(),
        r.evaluations,
        r.acceptance
    );
    for warning in r.warnings().into_iter().chain(samples.edge_warnings(simulator.prior())) {
        println!("warning: {warning}");
    }
    if let (Some(z), true) = (r.log_evidence, estimator.is_normalized()) {
        println!("mean ratio over the prior: e^{z:.3} (1 if the ratio is right)");
    }
    let names = simulator.parameter_names();
    println!("{:<12} {:>9} {:>9} {:>8} {:>8} {:>9}", "parameter", "mean", "std", "R-hat", "ESS", "truth");
    let (mean, std) = (samples.mean(), samples.std());
    for (k, name) in names.iter().enumerate() {
        let of = |v: &[f64]| v.get(k).map_or("".into(), |v| format!("{v:.3}"));
        let ess = r.ess.get(k).map_or("".into(), |v| format!("{v:.0}"));
        let truth = truth.map_or("".into(), of);
        println!("{name:<12} {:>9.3} {:>9.3} {:>8} {ess:>8} {truth:>9}", mean[k], std[k], of(&r.rhat));
    }
    let suffix = if number == 0 { String::new() } else { format!("-{number}") };
    let corner = Corner { samples: &samples, names: &names, ranges: &simulator.ranges(), truth };
    corner.save(o.out.join(format!("corner{suffix}.svg")))?;
    write_draws(&o.out.join(format!("draws{suffix}.csv")), &names, &samples.draws)?;
    println!("wrote corner{suffix}.svg and draws{suffix}.csv to {}", o.out.display());
    match o.reference.get(number) {
        Some(path) => compare(o, &density, &samples, (path, &observed.x), workers),
        None => Ok(()),
    }
}

/// Two-sample tests against draws of the true posterior; for SLCP the log ratio's error on them, too.
fn compare(
    o: &Options,
    density: &RatioPosterior<'_>,
    samples: &Samples,
    (path, x): (&Path, &[f64]),
    workers: &Workers,
) -> Result<()> {
    let (reference, d) = files::table(path)?;
    if d != samples.dim {
        return Err(Error::mismatch("reference: columns", samples.dim, d));
    }
    let n = samples.draws.len().min(reference.len());
    let (ours, theirs) = (&samples.draws[..n], &reference[..n]);
    let test = c2st(theirs, ours, d, Key::new(o.seed).named("c2st"), workers)?;
    let mmd = mmd2(theirs, ours, d, Bandwidth::MedianOfFirst);
    println!(
        "against {}: C2ST {:.4}, MMD^2 {:.5} ({} draws each)",
        path.display(),
        test.mean,
        mmd.unbiased,
        n / d
    );
    if o.is_slcp() {
        let (slcp, exact) = (Slcp::seed(), slcp_posterior(x, Resolution::default(), workers));
        let rows = theirs.chunks_exact(d);
        let errors: Vec<f64> = density
            .log_ratio(theirs)
            .into_iter()
            .zip(rows)
            .map(|(f, t)| f - (slcp.log_lik(t, x) - exact.log_evidence))
            .collect();
        let n = errors.len() as f64;
        let mean = errors.iter().sum::<f64>() / n;
        let var = errors.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / n;
        println!("log ratio minus the exact one on the reference: {mean:.2} nats, spread {:.2}", var.sqrt());
    }
    Ok(())
}

/// One row per draw.
fn write_draws(path: &Path, names: &[String], draws: &[f64]) -> Result<()> {
    let row = |t: &[f64]| t.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
    let rows: Vec<String> =
        std::iter::once(names.join(",")).chain(draws.chunks_exact(names.len()).map(row)).collect();
    write_atomic(path, (rows.join("\n") + "\n").as_bytes())
}

/// A sampler for many observations.
pub fn quick_smc() -> Smc {
    Smc { particles: 400, populations: 2, moves: 3, final_moves: 10, ..Smc::default() }
}

/// Expected coverage over simulated observations.
pub fn coverage(
    o: &Options,
    estimator: &RatioEstimator,
    simulator: &dyn Simulator,
    workers: &Workers,
) -> Result<()> {
    let began = Instant::now();
    let smc = quick_smc();
    let runs = Runs { observations: o.coverage, draws: 400 };
    let key = Key::new(o.seed).named("coverage");
    let c = calibrate(estimator, simulator, &smc, runs, key, workers)?;
    println!(
        "\nexpected coverage over {} observations ({:.1} s):",
        o.coverage,
        began.elapsed().as_secs_f64()
    );
    println!("{:>8} {:>9} {:>9}", "nominal", "observed", "± 1 s.e.");
    for p in c.coverage(&[0.5, 0.6827, 0.8, 0.9, 0.95]) {
        println!("{:>8.3} {:>9.3} {:>9.3}", p.level, p.coverage, p.standard_error);
    }
    if c.invalid > 0 {
        println!("warning: {} simulations were invalid and are left out of the coverage", c.invalid);
    }
    if c.warned > 0 {
        println!("warning: the sampler gave a warning for {} observations", c.warned);
    }
    let p_values: Vec<String> = c.uniformity.iter().map(|u| format!("{:.3}", u.ks_p_value)).collect();
    println!("p-values of uniform ranks: {}", p_values.join(" "));
    let levels: Vec<f64> = (0..=50).map(|i| f64::from(i) / 50.0).collect();
    let points = c.coverage(&levels);
    let curve = points.iter().map(|p| (p.level, p.coverage)).collect();
    let band =
        points.iter().map(|p| (p.level, p.level - 2.0 * p.standard_error, p.level + 2.0 * p.standard_error));
    let plot = Plot {
        title: "Expected coverage".into(),
        x_label: "nominal".into(),
        y_label: "observed (below the line: overconfident)".into(),
        size: (520, 500),
        series: vec![
            Series::line("observed", curve),
            Series::line("calibrated", vec![(0.0, 0.0), (1.0, 1.0)]).with_band(band.collect()),
        ],
        ..Plot::default()
    };
    plot.save(o.out.join("coverage.svg"))
}
