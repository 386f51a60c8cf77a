//! How inner steps per second and memory grow: over threads, over tasks, over parameters.
//!
//!     cargo bench --bench scaling                   # curves as JSON and SVG in target/scaling
//!     cargo bench --bench scaling -- --out DIR --largest 100000

mod report;

use clap::Parser;
use outerloop::core::atomic::write_atomic;
use outerloop::outer::plot::{Plot, Scale, Series};
use outerloop::prelude::*;
use report::threads;
use serde_json::{json, Value};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[derive(Parser)]
struct Options {
    /// Where the curves are written.
    #[arg(long, default_value = "target/scaling")]
    out: PathBuf,
    /// Parameters of the largest task.
    #[arg(long, default_value_t = 10_000_000)]
    largest: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Seconds of measurement per point.
const SECONDS: f64 = 0.5;

/// PES with one optimizer on one family.
struct Case {
    family: Arc<dyn FlatFamily>,
    lopt: Arc<dyn LearnedOptimizer>,
    num_tasks: usize,
    trunc_length: usize,
}

/// What was measured at one point of a curve.
#[derive(Clone, Copy)]
struct Point {
    x: f64,
    inner_steps_per_second: f64,
    bytes_per_lane: f64,
}

impl Case {
    /// The best of the outer steps that fit into [`SECONDS`], at least two after a first one, and the
    /// memory that a lane keeps between them.
    fn measure(&self, x: usize, threads: usize) -> Result<Point> {
        let schedule = TruncationSchedule::LogUniform { min: 100, max: 500 };
        let step = TruncatedStep::new(self.family.clone(), self.lopt.clone(), schedule)?;
        let common = Antithetic {
            num_tasks: self.num_tasks,
            trunc_length: self.trunc_length,
            ..Antithetic::default()
        };
        let pes = TruncatedPes::new(step, common)?;
        let theta = self.lopt.init(Key::new(0));
        let workers = Workers::new(threads)?;
        let mut state = None;
        let memory = allocation_counter::measure(|| {
            // Allocations are counted on this thread.
            state = Workers::new(1).ok().map(|one| pes.init(&theta, Key::new(1), &one));
        });
        let Some(mut state) = state else { return Err(Error::invalid("one thread", "cannot be had")) };
        let (start, mut best, mut t) = (Instant::now(), 0.0f64, 0);
        while t < 3 || start.elapsed().as_secs_f64() < SECONDS {
            let begin = Instant::now();
            let steps = pes.estimate(&theta, &mut state, t, &workers).inner_steps;
            if t > 0 {
                best = best.max(steps as f64 / begin.elapsed().as_secs_f64());
            }
            t += 1;
        }
        let bytes_per_lane = memory.bytes_current as f64 / self.num_tasks as f64;
        Ok(Point { x: x as f64, inner_steps_per_second: best, bytes_per_lane })
    }
}

fn optimizers() -> [Arc<dyn LearnedOptimizer>; 2] {
    [Arc::new(LearnableAdam::default()), Arc::new(MlpLopt::default())]
}

/// The two standard tasks with the number of lanes and steps that suits them.
fn tasks() -> [(&'static str, Arc<dyn FlatFamily>, usize, usize); 2] {
    [
        ("quadratics of dimension 10", Arc::new(FixedDimQuadraticFamily { dim: 10 }), 128, 50),
        ("digits 64-32-10", Arc::new(SingleTask::new(ImageMlp::digits())), 16, 10),
    ]
}

type Curve = (String, Vec<Point>);

/// One curve for each task and optimizer, over `xs`; `set` puts x into the case and returns the threads.
fn curves(xs: &[usize], set: impl Fn(&mut Case, usize) -> usize) -> Result<Vec<Curve>> {
    let mut curves = Vec::new();
    for (name, family, num_tasks, trunc_length) in tasks() {
        for lopt in optimizers() {
            let title = format!("{}, {name}", lopt.name());
            let mut case = Case { family: family.clone(), lopt, num_tasks, trunc_length };
            let points = xs.iter().map(|&x| {
                let threads = set(&mut case, x);
                case.measure(x, threads)
            });
            curves.push((title, points.collect::<Result<_>>()?));
        }
    }
    Ok(curves)
}

/// Quadratics of 10 parameters to `largest`, one lane on one thread.
fn sizes(largest: usize) -> Result<Vec<Curve>> {
    let sizes: Vec<usize> =
        std::iter::successors(Some(10), |n| Some(n * 10)).take_while(|n| *n <= largest).collect();
    let curve = |lopt: Arc<dyn LearnedOptimizer>| {
        let points = sizes.iter().map(|&dim| {
            let family = Arc::new(FixedDimQuadraticFamily { dim });
            // Short windows where a step is long.
            let trunc_length = (1_000_000 / dim).clamp(1, 50);
            Case { family, lopt: lopt.clone(), num_tasks: 1, trunc_length }.measure(dim, 1)
        });
        Ok((format!("{}, quadratics", lopt.name()), points.collect::<Result<_>>()?))
    };
    optimizers().into_iter().map(curve).collect()
}

/// A plot of one quantity of the curves.
fn plot(title: &str, x_label: &str, y_label: &str, curves: &[Curve], y: impl Fn(&Point) -> f64) -> Plot {
    let line =
        |(name, points): &Curve| Series::line(name.clone(), points.iter().map(|p| (p.x, y(p))).collect());
    Plot {
        title: title.into(),
        x_label: x_label.into(),
        y_label: y_label.into(),
        x_scale: Scale::Log,
        y_scale: Scale::Log,
        series: curves.iter().map(line).collect(),
        ..Plot::default()
    }
}

/// Prints curves as a table in Markdown: one row per curve, one column per x.
fn table(title: &str, curves: &[Curve], y: impl Fn(&Point) -> f64) {
    let Some((_, first)) = curves.first() else { return };
    let cells =
        |f: &dyn Fn(&Point) -> String, points: &[Point]| points.iter().map(f).collect::<Vec<_>>().join(" | ");
    println!("\n| {title} | {} |", cells(&|p| format!("{}", p.x), first));
    println!("|---|{}", "---|".repeat(first.len()));
    for (name, points) in curves {
        println!("| {name} | {} |", cells(&|p| report::count(y(p)), points));
    }
}

fn json(curves: &[Curve]) -> Value {
    let point = |p: &Point| json!({ "x": p.x, "inner_steps_per_second": p.inner_steps_per_second, "bytes_per_lane": p.bytes_per_lane });
    let curve = |(name, points): &Curve| json!({ "name": name, "points": points.iter().map(point).collect::<Vec<_>>() });
    curves.iter().map(curve).collect()
}

fn main() -> Result<()> {
    let options = Options::parse();
    std::fs::create_dir_all(&options.out).map_err(|e| Error::io(&options.out, e))?;
    println!("{}, {} kernels", report::cpu(), outerloop::core::simd::path());
    let rate = |p: &Point| p.inner_steps_per_second;
    let rate_label = "inner steps per second";

    let over_threads = curves(&report::thread_counts(), |_, threads| threads)?;
    table("inner steps/s over threads", &over_threads, rate);
    plot("Threads", "threads", rate_label, &over_threads, rate).save(options.out.join("threads.svg"))?;

    let over_tasks = curves(&[1, 4, 16, 64, 256, 1024], |case, tasks| {
        case.num_tasks = tasks;
        threads()
    })?;
    table("inner steps/s over tasks, all threads", &over_tasks, rate);
    plot("Tasks, all threads", "tasks", rate_label, &over_tasks, rate).save(options.out.join("tasks.svg"))?;

    let over_size = sizes(options.largest)?;
    table("inner steps/s over parameters, one thread", &over_size, rate);
    table("parameters updated per second", &over_size, |p| p.x * rate(p));
    table("bytes per lane", &over_size, |p| p.bytes_per_lane);
    plot("Parameters, one thread", "parameters", rate_label, &over_size, rate)
        .save(options.out.join("parameters.svg"))?;
    plot("Memory of an antithetic pair", "parameters", "bytes per lane", &over_size, |p| p.bytes_per_lane)
        .save(options.out.join("memory.svg"))?;

    let summary = json!({
        "machine": report::machine(),
        "threads": json(&over_threads),
        "tasks": json(&over_tasks),
        "parameters": json(&over_size),
    });
    let text = serde_json::to_string_pretty(&summary).expect("plain values");
    write_atomic(options.out.join("scaling.json"), text.as_bytes())
}
