//! Times with what they mean: work per second beside the machine's peak, and reference numbers.
//! Shared by the benches. Criterion does the sampling; a [`Group`] remembers its samples, prints a
//! table of rates in Markdown when it ends and adds them to the summary that `OUTERLOOP_BENCH_JSON` names.

#![allow(dead_code)] // each bench uses its part

mod peak;
mod training;

pub use peak::threads;
#[allow(unused_imports)] // as above
pub use training::{against, products, trained_products, Trainer};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use outerloop::lopt::kernel;
use peak::Peak;
use serde_json::{json, Value};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Environment variable with the path of the summary file.
const SUMMARY: &str = "OUTERLOOP_BENCH_JSON";

/// What one unit of a benchmarked function does; what is 0 is not reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Floating point operations, counted by hand from the formulas.
    pub flops: f64,
    /// The operations on which a floor is stated, if that counts more than what is done.
    pub nominal_flops: f64,
    /// Bytes read plus written.
    pub bytes: f64,
    /// Inner steps per second of google/learned_optimization on 2 cores (AVX-512), after compilation:
    /// where given, a unit is an inner step.
    pub jax: f64,
}

/// Criterion as every bench of ours configures it.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(20)
        .configure_from_args()
}

/// Benchmarks that are compared with one measurement of the machine's peak.
pub struct Group<'a> {
    name: &'static str,
    group: BenchmarkGroup<'a, WallTime>,
    peak: Peak,
    results: Vec<Value>,
    /// Of the table, in Markdown.
    rows: Vec<String>,
    ratios: Vec<Value>,
    /// Below the table.
    lines: Vec<String>,
}

/// Seconds per unit of a benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub median: f64,
    pub best: f64,
}

impl std::ops::Mul<f64> for Timing {
    type Output = Timing;
    fn mul(self, factor: f64) -> Timing {
        Timing { median: self.median * factor, best: self.best * factor }
    }
}

impl std::ops::Add for Timing {
    type Output = Timing;
    fn add(self, other: Timing) -> Timing {
        Timing { median: self.median + other.median, best: self.best + other.best }
    }
}

impl<'a> Group<'a> {
    /// Measures the machine, then opens a criterion group.
    pub fn new(c: &'a mut Criterion, name: &'static str) -> Self {
        let peak = Peak::measure();
        println!(
            "\n{name}\n{}: fused multiply-adds {:.1} GFLOP/s on one core and {:.1} on {} threads, gemm (256 cubed) \
             {:.1} GFLOP/s, copy {:.1} GB/s; {} kernels. JAX's rates are from another machine, 2 AVX-512 cores.",
            cpu(),
            peak.fma,
            peak.fma_all,
            threads(),
            peak.gemm,
            peak.copy,
            kernel::path(),
        );
        let group = c.benchmark_group(name);
        Group { name, group, peak, results: vec![], rows: vec![], ratios: vec![], lines: vec![] }
    }

    /// Benchmarks `f`, which returns how many units of `work` one call did, on `threads` threads. Returns
    /// the time unless a filter on the command line skips it.
    pub fn bench(
        &mut self,
        name: &str,
        threads: usize,
        work: Work,
        mut f: impl FnMut() -> u64,
    ) -> Option<Timing> {
        let mut samples: Vec<Sample> = Vec::new();
        self.group.bench_function(name, |b| {
            b.iter_custom(|iters| {
                let start = Instant::now();
                let units: u64 = (0..iters).map(|_| f()).sum();
                let time = start.elapsed();
                samples.push(Sample { iters, units, seconds: time.as_secs_f64() });
                time
            })
        });
        let per_unit = |s: &Sample| s.seconds / s.units as f64;
        let best = samples.iter().map(per_unit).min_by(f64::total_cmp)?;
        let middle = median(samples)?;
        let best_call = best * middle.units as f64 / middle.iters as f64;
        self.report(name, threads, work, middle, best_call);
        Some(Timing { median: per_unit(&middle), best })
    }

    /// Adds `time / parts` to what is reported.
    pub fn ratio(&mut self, name: &str, time: Timing, parts: Timing) {
        let (median, best) = (time.median / parts.median, time.best / parts.best);
        self.ratios.push(json!({ "name": name, "of_medians": median, "of_best": best }));
        self.lines.push(format!("{name}: {median:.2} by medians, {best:.2} by best samples"));
    }

    /// Adds the median of `f`'s time over `g`'s, both called in turn: a machine that others use changes its speed within
    /// seconds, and less within two calls.
    pub fn ratio_in_turn(&mut self, name: &str, mut f: impl FnMut(), mut g: impl FnMut()) {
        const ROUNDS: usize = 31;
        let seconds = |call: &mut dyn FnMut()| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        };
        let mut ratios: Vec<f64> = (0..ROUNDS).map(|_| seconds(&mut f) / seconds(&mut g)).collect();
        ratios.sort_by(f64::total_cmp);
        let [low, median, high] = [1, 2, 3].map(|quarter| ratios[quarter * ROUNDS / 4]);
        self.ratios.push(json!({ "name": name, "in_turn": median, "quartiles": [low, high] }));
        self.lines.push(format!("{name}: {median:.2} in turn (quartiles {low:.2} to {high:.2})"));
    }

    /// `best`: seconds per call of the fastest sample.
    fn report(&mut self, name: &str, threads: usize, work: Work, s: Sample, best: f64) {
        let per_call = s.seconds / s.iters as f64;
        let rate = s.units as f64 / s.seconds;
        let mut entry =
            json!({ "name": name, "threads": threads, "seconds": per_call, "best_seconds": best });
        let mut cells =
            [format!("{name} | {} ({})", time(per_call), time(best)), "".into(), "".into(), "".into()];
        if work.jax > 0.0 {
            entry["inner_steps_per_second"] = json!(rate);
            entry["jax_inner_steps_per_second"] = json!(work.jax);
            let (ours, jax, ratio) = (count(rate), count(work.jax), rate / work.jax);
            cells[1] = format!("{ours}, {ratio:.1} x JAX's {jax}");
        }
        if work.flops > 0.0 {
            let rate = rate * work.flops / 1e9;
            let peak = if threads == 1 {
                self.peak.fma
            } else {
                self.peak.fma_all.min(self.peak.fma * threads as f64)
            };
            entry["gigaflops"] = json!(rate);
            entry["fma_peak_gigaflops"] = json!(peak);
            entry["fraction_of_fma_peak"] = json!(rate / peak);
            entry["fraction_of_gemm_peak"] = json!(rate / (self.peak.gemm * threads as f64));
            cells[2] = format!("{rate:.1} GFLOP/s, {:.0} %", 100.0 * rate / peak);
            if work.nominal_flops > 0.0 {
                let nominal = rate / peak * work.nominal_flops / work.flops;
                entry["nominal_flops"] = json!(work.nominal_flops);
                entry["fraction_of_fma_peak_by_nominal_flops"] = json!(nominal);
                let megaflops = work.nominal_flops / 1e6;
                cells[2] += &format!(" ({:.0} % on the floor's {megaflops} MFLOP)", 100.0 * nominal);
            }
        }
        if work.bytes > 0.0 {
            let rate = rate * work.bytes / 1e9;
            entry["gigabytes_per_second"] = json!(rate);
            entry["fraction_of_copy_peak"] = json!(rate / self.peak.copy);
            cells[3] = format!("{rate:.1} GB/s, {:.1} x", rate / self.peak.copy);
        }
        self.rows.push(format!("| {} |", cells.join(" | ")));
        self.results.push(entry);
    }

    /// Ends the group: prints its table and writes the summary, if one is asked for.
    pub fn finish(self) {
        self.group.finish();
        // A filter on the command line may have skipped everything.
        if self.rows.is_empty() {
            return;
        }
        println!("\n| {} | time (best) | inner steps/s | of the FMA peak | of the copy rate |", self.name);
        println!("|---|---|---|---|---|\n{}", self.rows.join("\n"));
        self.lines.iter().for_each(|line| println!("\n{line}"));
        let Some(path) = std::env::var_os(SUMMARY).map(PathBuf::from) else { return };
        let old: Option<Value> = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let mut summary = old.filter(Value::is_object).unwrap_or_else(|| json!({}));
        summary["machine"] = machine();
        summary["groups"][self.name] = json!({
            "peak": {
                "fma_gigaflops_one_core": self.peak.fma,
                "fma_gigaflops_all_threads": self.peak.fma_all,
                "gemm_gigaflops_one_core": self.peak.gemm,
                "copy_gigabytes_per_second": self.peak.copy,
            },
            "results": self.results,
            "ratios": self.ratios,
        });
        let text = serde_json::to_string_pretty(&summary).expect("plain values");
        if let Err(e) = outerloop::core::atomic::write_atomic(&path, text.as_bytes()) {
            eprintln!("{SUMMARY}: {e}");
        }
    }
}

/// One timed run of `iters` calls.
#[derive(Clone, Copy)]
struct Sample {
    iters: u64,
    units: u64,
    seconds: f64,
}

/// The median by time per call, weighted by calls: warm-up runs of one call hardly count.
fn median(mut samples: Vec<Sample>) -> Option<Sample> {
    samples.sort_by(|a, b| (a.seconds / a.iters as f64).total_cmp(&(b.seconds / b.iters as f64)));
    let half = samples.iter().map(|s| s.iters).sum::<u64>() / 2;
    let mut below = 0;
    samples.into_iter().find(|s| {
        below += s.iters;
        below > half
    })
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{:.1} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// Readable: `430`, `12.3k`, `4.56M`.
pub fn count(x: f64) -> String {
    match x {
        x if x < 1e3 => format!("{x:.0}"),
        x if x < 1e6 => format!("{:.1}k", x / 1e3),
        x if x < 1e9 => format!("{:.2}M", x / 1e6),
        x => format!("{:.2}G", x / 1e9),
    }
}

/// What a summary says about where it was measured.
pub fn machine() -> Value {
    json!({ "cpu": cpu(), "threads": threads(), "kernels": kernel::path() })
}

/// 1, 2 and all threads.
pub fn thread_counts() -> Vec<usize> {
    let mut counts = vec![1, 2, threads()];
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// The processor's name where the system tells it, else its architecture.
pub fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split(": ").nth(1)).unwrap_or(std::env::consts::ARCH).to_string()
}
