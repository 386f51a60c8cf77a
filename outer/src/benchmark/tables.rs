//! The benchmark's numbers as CSV: one table per file, one number per cell.

use super::contest::{Contest, Results, Role};
use super::metrics::smoothed;
use super::scores::Scores;
use super::statistics::Interval;
use super::timing::StepTime;
use outerloop_core::{Error, Metric, Result};

/// A table as it is written: header, then rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// File name.
    pub name: &'static str,
    /// Column names.
    pub header: Vec<&'static str>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn new(name: &'static str, header: &[&'static str]) -> Self {
        Table { name, header: header.to_vec(), rows: Vec::new() }
    }

    /// The table as CSV. Numbers are written so that they can be read back exactly.
    pub fn csv(&self) -> Result<String> {
        let bad = |e: String| Error::invalid(self.name, e);
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&self.header).map_err(|e| bad(e.to_string()))?;
        for row in &self.rows {
            writer.write_record(row).map_err(|e| bad(e.to_string()))?;
        }
        let bytes = writer.into_inner().map_err(|e| bad(e.to_string()))?;
        String::from_utf8(bytes).map_err(|e| bad(e.to_string()))
    }
}

/// One row: anything that can be shown.
macro_rules! row {
    ($($cell:expr),+ $(,)?) => { vec![$($cell.to_string()),+] };
}

/// A number, or nothing if there is none.
fn known(x: f64) -> String {
    if x.is_nan() {
        String::new()
    } else {
        x.to_string()
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Learned => "learned",
        Role::Baseline => "baseline",
    }
}

/// One row per run and step at which it is judged.
pub fn runs(contest: &Contest, results: &Results) -> Table {
    let mut table = Table::new(
        "runs.csv",
        &[
            "task",
            "contestant",
            "variant",
            "position",
            "planned_steps",
            "step",
            "seed",
            "train_loss",
            "validation_loss",
            "test_loss",
            "error_rate",
            "failed",
        ],
    );
    let mut judged = contest.config.other_horizons.clone();
    judged.push(contest.config.num_steps);
    for r in &results.runs {
        let c = &contest.contestants[r.contestant];
        let v = &c.variants[r.variant];
        let mut steps = vec![r.num_steps];
        if r.contestant == contest.reference {
            steps.extend(&judged);
        }
        steps.sort_unstable();
        steps.dedup();
        let losses = smoothed(&r.curve.train);
        for step in steps {
            let loss = losses[step as usize];
            let at = |split| r.curve.evals.iter().find(|e| e.step == step && e.split == split);
            let loss_on = |split| at(split).map_or(String::new(), |e| e.loss.to_string());
            let valid = loss_on(contest.config.validation);
            let test = contest.config.test.map_or(String::new(), loss_on);
            let rated = at(contest.config.test.unwrap_or(contest.config.validation));
            let error =
                rated.and_then(|e| e.metric(Metric::ERROR_RATE)).map_or(String::new(), |e| e.to_string());
            let task = &contest.tasks[r.task].name;
            let failed = u8::from(!loss.is_finite());
            table.rows.push(row![
                task,
                c.name,
                v.label,
                v.position,
                r.num_steps,
                step,
                r.seed,
                loss,
                valid,
                test,
                error,
                failed
            ]);
        }
    }
    table
}

/// One row per task and contestant.
pub fn scores(contest: &Contest, results: &Results, scores: &Scores) -> Table {
    let mut table = Table::new(
        "scores.csv",
        &[
            "task",
            "parameters",
            "contestant",
            "role",
            "best_variant",
            "train_loss",
            "best_by_validation",
            "validation_loss",
            "lowest_validation_loss",
            "test_loss",
            "error_rate",
            "loss_ratio",
            "speedup",
            "speedup_is_lower_bound",
            "steps_to_target",
            "state_bytes",
            "loss_ratio_zero",
        ],
    );
    for (task, row) in scores.tasks.iter().enumerate() {
        for (i, (c, s)) in contest.contestants.iter().zip(row).enumerate() {
            table.rows.push(row![
                contest.tasks[task].name,
                results.parameters[task],
                c.name,
                role(c.role),
                c.variants[s.best].label,
                s.loss,
                c.variants[s.best_by_validation].label,
                s.validation,
                s.lowest_validation,
                known(s.test),
                known(s.error_rate),
                s.ratio,
                s.speedup,
                u8::from(s.speedup_is_bound),
                s.steps_to_target,
                results.state_bytes[task][i],
                s.ratio_zero,
            ]);
        }
    }
    table
}

/// One row per task, contestant and variant.
pub fn sweeps(contest: &Contest, scores: &Scores) -> Table {
    let mut table =
        Table::new("sweeps.csv", &["task", "contestant", "variant", "position", "train_loss", "best"]);
    for (task, row) in scores.tasks.iter().enumerate() {
        for (c, s) in contest.contestants.iter().zip(row) {
            for (v, variant) in c.variants.iter().enumerate() {
                let best = u8::from(v == s.best);
                let task = &contest.tasks[task].name;
                table.rows.push(row![task, c.name, variant.label, variant.position, s.sweep[v], best]);
            }
        }
    }
    table
}

/// One row per contestant and metric.
pub fn summary(contest: &Contest, scores: &Scores) -> Table {
    let mut table = Table::new("summary.csv", &["contestant", "role", "metric", "value", "low", "high"]);
    for (c, s) in contest.contestants.iter().zip(&scores.contestants) {
        let mut push = |metric: &str, i: Interval| {
            table.rows.push(row![c.name, role(c.role), metric, i.value, i.low, i.high]);
        };
        push("win_rate", s.win_rate);
        push("validation_win_rate", s.validation_win_rate);
        push("loss_ratio_iqm", s.loss_ratio);
        push("speedup_iqm", s.speedup);
        push("speedup_median", s.median_speedup);
        for (metric, value) in [("failures", s.failures as f64), ("profile_score", s.profile_score)] {
            table.rows.push(row![c.name, role(c.role), metric, value, "", ""]);
        }
    }
    table
}

/// One row per learned contestant, horizon and metric.
pub fn horizons(contest: &Contest, scores: &Scores) -> Table {
    let mut table =
        Table::new("horizons.csv", &["contestant", "num_steps", "metric", "value", "low", "high"]);
    for s in &scores.horizons {
        let metrics = [
            ("win_rate", s.win_rate),
            ("validation_win_rate", s.validation_win_rate),
            ("loss_ratio_iqm", s.loss_ratio),
            ("speedup_median", s.median_speedup),
        ];
        for (metric, i) in metrics {
            let name = &contest.contestants[s.contestant].name;
            table.rows.push(row![name, s.num_steps, metric, i.value, i.low, i.high]);
        }
    }
    table
}

/// Points of every performance profile.
pub(super) const PROFILE_POINTS: usize = 61;

/// One row per contestant and factor.
pub fn profiles(contest: &Contest, scores: &Scores) -> Table {
    let mut table = Table::new("profiles.csv", &["contestant", "tau", "fraction_of_tasks"]);
    for (i, c) in contest.contestants.iter().enumerate() {
        for (tau, fraction) in scores.profile(i, PROFILE_POINTS) {
            table.rows.push(row![c.name, tau, fraction]);
        }
    }
    table
}

/// A contestant's best variant on a task, over the seeds: `(step, mean, low, high)` of the smoothed
/// training loss at about [`CURVE_POINTS`] steps up to the horizon.
pub(super) fn curve(
    contest: &Contest,
    results: &Results,
    scores: &Scores,
    task: usize,
    contestant: usize,
) -> Vec<(u64, f64, f64, f64)> {
    let horizon = contest.config.num_steps;
    let best = scores.tasks[task][contestant].best;
    let curves: Vec<Vec<f64>> =
        results.of(task, contestant, best).map(|r| smoothed(&r.curve.train)).collect();
    let stride = horizon.div_ceil(CURVE_POINTS).max(1);
    let steps = (0..horizon).step_by(stride as usize).chain([horizon]);
    let point = |step: u64| {
        let at = || curves.iter().map(|c| c[step as usize]);
        let (low, high) = (at().fold(f64::INFINITY, f64::min), at().fold(f64::NEG_INFINITY, f64::max));
        (step, at().sum::<f64>() / curves.len() as f64, low, high)
    };
    steps.map(point).collect()
}

/// Points of every learning curve.
const CURVE_POINTS: u64 = 100;

/// One row per task, contestant and step, of the best variants.
pub fn curves(contest: &Contest, results: &Results, scores: &Scores) -> Table {
    let mut table =
        Table::new("curves.csv", &["task", "contestant", "variant", "step", "mean", "low", "high"]);
    for task in 0..contest.tasks.len() {
        for (i, c) in contest.contestants.iter().enumerate() {
            let variant = &c.variants[scores.tasks[task][i].best].label;
            for (step, mean, low, high) in curve(contest, results, scores, task, i) {
                table.rows.push(row![contest.tasks[task].name, c.name, variant, step, mean, low, high]);
            }
        }
    }
    table
}

/// One row per task and contestant: seconds on one thread.
pub fn timing(contest: &Contest, times: &[Vec<StepTime>]) -> Table {
    let mut table = Table::new("timing.csv", &["task", "contestant", "gradient_seconds", "update_seconds"]);
    for (task, row) in contest.tasks.iter().zip(times) {
        for (c, t) in contest.contestants.iter().zip(row) {
            table.rows.push(row![task.name, c.name, t.gradient, t.update]);
        }
    }
    table
}
