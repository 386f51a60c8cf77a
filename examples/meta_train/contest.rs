//! The final comparison: learned against hand-designed optimizers on fresh tasks.

use crate::config::Config;
use outerloop::prelude::*;

/// A contestant's runs.
struct Entry {
    name: String,
    curves: Vec<Curve>,
}

/// Steps that a final loss is averaged over: batch losses are noisy.
const TAIL: usize = 20;

impl Entry {
    /// Mean over seeds of the mean of the last training losses; NaN if a run diverged.
    fn final_train(&self) -> f32 {
        self.mean(|c| c.final_train(TAIL))
    }
    fn final_test(&self) -> f32 {
        self.mean(|c| c.evals.last().map_or(f32::NAN, |e| e.loss))
    }
    fn at(&self, step: usize) -> f32 {
        self.mean(|c| {
            let window = &c.train[step.saturating_sub(TAIL)..=step.min(c.train.len() - 1)];
            window.iter().sum::<f32>() / window.len() as f32
        })
    }
    fn mean(&self, f: impl Fn(&Curve) -> f32) -> f32 {
        self.curves.iter().map(f).sum::<f32>() / self.curves.len() as f32
    }

    /// Mean over seeds, smoothed, with the range of the seeds as band.
    fn series(&self) -> Series {
        let steps = self.curves[0].train.len();
        let smooth = |c: &Curve, t: usize| {
            let window = &c.train[t.saturating_sub(9)..=t];
            f64::from(window.iter().sum::<f32>() / window.len() as f32)
        };
        let mut points = Vec::with_capacity(steps);
        let mut band = Vec::with_capacity(steps);
        for t in 0..steps {
            let all: Vec<f64> = self.curves.iter().map(|c| smooth(c, t)).collect();
            points.push((t as f64, all.iter().sum::<f64>() / all.len() as f64));
            let low = all.iter().copied().fold(f64::INFINITY, f64::min);
            let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            band.push((t as f64, low, high));
        }
        Series::line(self.name.clone(), points).with_band(band)
    }
}

/// The learning rates that hand-designed optimizers are swept over: half decades from 1e-4 to 3.
fn learning_rates() -> Vec<f64> {
    (-8..=1).map(|i| 10f64.powf(f64::from(i) / 2.0)).collect()
}

/// Trains fresh tasks with every contestant, prints the table and draws the curves.
pub fn compare(
    dir: &RunDir,
    config: &Config,
    lopt: &dyn LearnedOptimizer,
    state: &LearnerState,
    workers: &Workers,
) -> Result<()> {
    let family = config.family()?;
    // Keys that meta-training never used.
    let key = Key::new(config.seed).named("comparison");
    let eval = EvalConfig {
        num_steps: config.eval_steps,
        eval_every: config.eval_steps,
        eval_batches: 5,
        splits: vec![Split::Test],
    };
    let run = |name: String, opt: &dyn Optimizer| Entry {
        curves: training_curves(&*family, opt, &eval, key, config.eval_seeds, workers),
        name,
    };
    // The best of a sweep, chosen on the very runs that are shown: in favour of the baseline.
    let sweep = |name: &str, make: &dyn Fn(f64) -> Box<dyn Optimizer>| {
        let entries =
            learning_rates().into_iter().map(|lr| run(format!("{name}, best lr {lr:.0e}"), &*make(lr)));
        let score = |e: &Entry| if e.final_train().is_finite() { e.final_train() } else { f32::INFINITY };
        entries.min_by(|a, b| score(a).total_cmp(&score(b)))
    };
    let learned = run(format!("{} (learned)", lopt.name()), &*lopt.opt_fn(&state.theta.params));
    let untrained = lopt.init(state.key.named("theta"));
    let untrained = run(format!("{} (untrained)", lopt.name()), &*lopt.opt_fn(&untrained));
    let sgd = sweep("SGD", &|lr| Box::new(Sgd::new(lr)));
    let adam = sweep("Adam", &|lr| Box::new(Adam::new(lr)));
    let default = run("Adam, default lr 1e-3".into(), &Adam::new(1e-3));
    let entries: Vec<Entry> =
        [Some(learned), Some(untrained), sgd, adam, Some(default)].into_iter().flatten().collect();

    let half = config.eval_steps as usize / 2;
    let tenth = config.eval_steps as usize / 10;
    println!(
        "\n{} fresh runs of {} steps, mean training loss (last {TAIL} batches):",
        config.eval_seeds, config.eval_steps
    );
    println!(
        "{:<28} {:>11} {:>11} {:>11} {:>11}",
        "optimizer",
        format!("step {tenth}"),
        format!("step {half}"),
        "end",
        "test, end"
    );
    for e in &entries {
        let [a, b, c, d] = [e.at(tenth), e.at(half), e.final_train(), e.final_test()];
        println!("{:<28} {a:>11.5} {b:>11.5} {c:>11.5} {d:>11.5}", e.name);
    }
    let plot = Plot {
        title: format!("Training loss on fresh tasks, {} seeds", config.eval_seeds),
        x_label: "inner step".into(),
        y_label: "training loss".into(),
        y_scale: Scale::Log,
        series: entries.iter().map(Entry::series).collect(),
        ..Plot::default()
    };
    save(dir, "learning_curves", &plot)
}

/// Draws the meta-loss of the whole run from its metrics.
pub fn meta_loss_plot(dir: &RunDir, config: &Config) -> Result<()> {
    let path = dir.metrics();
    let bad = |why: String| Error::format(&path, why);
    let mut reader = csv::Reader::from_path(&path).map_err(|e| bad(e.to_string()))?;
    let column = |name: &str, headers: &csv::StringRecord| {
        headers.iter().position(|h| h == name).ok_or_else(|| bad(format!("expected a column `{name}`")))
    };
    let headers = reader.headers().map_err(|e| bad(e.to_string()))?.clone();
    let (x, y) = (column("step", &headers)?, column("meta_loss", &headers)?);
    let mut points = Vec::new();
    for row in reader.records() {
        let row = row.map_err(|e| bad(e.to_string()))?;
        let number = |i: usize| row.get(i).and_then(|v| v.parse::<f64>().ok());
        if let (Some(x), Some(y)) = (number(x), number(y)) {
            points.push((x, y));
        }
    }
    // Windows of 50 outer steps: single estimates jump with the lanes' resets.
    let smooth = points
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let window = &points[i.saturating_sub(49)..=i];
            (p.0, window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64)
        })
        .collect();
    let raw = Series { style: Style::Points, ..Series::line("per outer step", points) };
    let plot = Plot {
        title: format!("Meta-loss over {} outer steps", config.outer_steps),
        x_label: "outer step".into(),
        y_label: "mean normalized training loss".into(),
        y_scale: Scale::Log,
        series: vec![raw, Series::line("mean of 50", smooth)],
        ..Plot::default()
    };
    save(dir, "meta_loss", &plot)
}

/// SVG always; PNG too where the feature is on.
fn save(dir: &RunDir, name: &str, plot: &Plot) -> Result<()> {
    let path = dir.file(&format!("{name}.svg"));
    plot.save(&path)?;
    println!("wrote {}", path.display());
    if cfg!(feature = "png") {
        plot.save(dir.file(&format!("{name}.png")))?;
    }
    Ok(())
}
