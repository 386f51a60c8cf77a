//! The final comparison: learned against hand-designed optimizers on fresh tasks.

use crate::config::Config;
use crate::plan::Plan;
use crate::settings::Parts;
use outerloop::outer::benchmark::{
    time_steps, Contest, ContestConfig, ContestTask, Contestant, Receipt, Report, Results, Role,
};
use outerloop::outer::objective::{Emphasis, LossScale};
use outerloop::prelude::*;
use std::path::Path;

/// Steps that a final loss is averaged over: batch losses are noisy.
const TAIL: usize = 20;

/// The learning rates that hand-designed optimizers are swept over: half decades from 1e-4 to 3.
fn learning_rates() -> Vec<f64> {
    (-8..=1).map(|i| 10f64.powf(f64::from(i) / 2.0)).collect()
}

/// The comparison of theta with its start and with hand-designed optimizers, on fresh tasks. `key`: the
/// run's.
pub fn contest(plan: &Plan, key: Key, theta: &[f32]) -> Contest {
    let (config, Parts { lopt, family, .. }) = (&plan.settings.config, &plan.parts);
    let learned = lopt.opt_fn(theta);
    let untrained = lopt.opt_fn(&lopt.init(key.named("theta")));
    let rates = learning_rates();
    Contest {
        config: ContestConfig {
            num_steps: config.eval_steps,
            seeds: config.eval_seeds,
            seed: config.seed,
            evaluations: 1,
            validation: Split::Test,
            ..ContestConfig::default()
        },
        tasks: vec![ContestTask { name: family.name(), family: family.clone() }],
        contestants: vec![
            Contestant::single(format!("{} (learned)", lopt.name()), Role::Learned, learned),
            Contestant::single(format!("{} (untrained)", lopt.name()), Role::Baseline, untrained),
            Contestant::swept("SGD", &rates, |lr| Box::new(Sgd::new(lr))),
            Contestant::swept("Adam", &rates, |lr| Box::new(Adam::new(lr))),
            Contestant::single("Adam, default lr 1e-3", Role::Baseline, Box::new(Adam::new(1e-3))),
        ],
        reference: 3,
        // Keys that meta-training never used.
        key: Key::new(config.seed).named("comparison"),
    }
}

/// Trains fresh tasks with every contestant, prints the table and writes the report.
pub fn compare(plan: &Plan, state: &LearnerState, workers: &Workers) -> Result<()> {
    let theta = plan.learner.chosen_theta(state);
    let contest = contest(plan, state.key, &theta);
    let results = contest.run(workers)?;
    let mut report = Report::new("Meta-trained against hand-designed optimizers", &contest, &results);
    let theta: Vec<u8> = theta.iter().flat_map(|x| x.to_le_bytes()).collect();
    report.receipt = Receipt::new()
        .with("kernels", kernel::path())
        .with("learned optimizer", plan.parts.lopt.architecture())
        .with_hash("theta", &theta)
        .with("configuration", plan.settings.to_toml()?);
    for change in &plan.settings.overrides {
        report.receipt = report.receipt.with("changed on the way", change.to_string());
    }
    for warning in state.warnings() {
        report.receipt = report.receipt.with("warning", warning.to_string());
    }
    report.times = time_steps(&contest);
    table(&contest, &results, &report);
    let files = plan.dir.file("report");
    std::fs::create_dir_all(&files).map_err(|e| Error::io(&files, e))?;
    println!("wrote {}", report.save(&files)?.display());
    for warning in state.warnings() {
        println!("warning: {warning}");
    }
    Ok(())
}

/// Mean losses of every contestant's best variant along the run.
fn table(contest: &Contest, results: &Results, report: &Report) {
    let steps = contest.config.num_steps;
    let [tenth, half] = [steps / 10, steps / 2];
    println!(
        "\n{} fresh runs of {steps} steps, mean training loss (last {TAIL} batches):",
        contest.config.seeds
    );
    println!(
        "{:<28} {:>11} {:>11} {:>11} {:>11}",
        "optimizer",
        format!("step {tenth}"),
        format!("step {half}"),
        "end",
        "test, end"
    );
    for (i, c) in contest.contestants.iter().enumerate() {
        let score = &report.scores.tasks[0][i];
        let curves: Vec<&Curve> = results.of(0, i, score.best).map(|r| &r.curve).collect();
        let mean = |step: u64| {
            let (end, n) = (step as usize + 1, curves.len() as f32);
            let tail = |c: &&Curve| {
                let window = &c.train[end.saturating_sub(TAIL)..end];
                window.iter().sum::<f32>() / window.len() as f32
            };
            curves.iter().map(tail).sum::<f32>() / n
        };
        let name = match c.variants.len() {
            1 => c.name.clone(),
            _ => format!("{}, best lr {}", c.name, c.variants[score.best].label),
        };
        let [a, b, c, d] = [mean(tenth), mean(half), mean(steps), score.validation as f32];
        println!("{name:<28} {:>11} {:>11} {:>11} {:>11}", short(a), short(b), short(c), short(d));
    }
}

/// Three digits or more, in eleven columns.
fn short(loss: f32) -> String {
    if (1e-3..1e5).contains(&loss.abs()) {
        format!("{loss:.5}")
    } else {
        format!("{loss:.2e}")
    }
}

/// Draws the meta-loss of the whole run from its metrics. Without any (the file may have been deleted before
/// a resume) there is no picture, and the run is none the worse.
pub fn meta_loss_plot(dir: &RunDir, path: &Path, config: &Config) -> Result<()> {
    let bad = |why: String| Error::format(path, why);
    let mut reader = csv::Reader::from_path(path).map_err(|e| bad(e.to_string()))?;
    let column = |name: &str, headers: &csv::StringRecord| {
        headers
            .iter()
            .position(|h| h == name)
            .ok_or_else(|| bad(format!("not the metrics of a run: expected a column `{name}`")))
    };
    let headers = reader.headers().map_err(|e| bad(e.to_string()))?.clone();
    if headers.is_empty() {
        println!("{} holds no outer step: no picture of the meta-loss", path.display());
        return Ok(());
    }
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
    let y_scale = Scale::for_values(points.iter().map(|p| p.1));
    let raw = Series { style: Style::Points, ..Series::line("per outer step", points) };
    let scale = match config.objective.scale {
        LossScale::Linear => "normalized training loss",
        LossScale::Log { .. } | LossScale::FittedLog { .. } => "ln of the training loss",
        LossScale::Power { .. } => "power of the training loss",
    };
    let emphasis = match config.objective.emphasis {
        Emphasis::Uniform => "",
        Emphasis::Power(_) => ", weighted towards the end of runs",
    };
    let plot = Plot {
        title: format!("Meta-loss over {} outer steps", config.outer_steps),
        x_label: "outer step".into(),
        y_label: format!("mean {scale}{emphasis}"),
        y_scale,
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
