//! The report as files: CSV, JSON, one HTML page.

use super::contest::{Contest, Results};
use super::html;
use super::receipt::{hash, Receipt};
use super::scores::Scores;
use super::statistics::Interval;
use super::tables::{self, Table};
use super::timing::StepTime;
use outerloop_core::{atomic::write_atomic, Error, Result};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A benchmark's results, ready to be written.
///
/// | file | holds |
/// |---|---|
/// | `runs.csv` | every run at every step where it is judged |
/// | `scores.csv` | every contestant on every task |
/// | `summary.csv`, `horizons.csv` | every contestant over all tasks, with intervals |
/// | `sweeps.csv`, `curves.csv`, `profiles.csv` | what the pictures show |
/// | `report.json` | scores again (infinities as null), and the receipt with a hash of all files above |
/// | `timing.csv` | seconds per step: the only numbers that another run does not repeat |
/// | `report.html` | all of it as one page without scripts, each part naming its table |
pub struct Report<'a> {
    /// Heading of the page.
    pub title: String,
    /// Who ran on what.
    pub contest: &'a Contest,
    /// The runs.
    pub results: &'a Results,
    /// The comparison.
    pub scores: Scores,
    /// Seconds per step, `[task][contestant]`; empty if not measured.
    pub times: Vec<Vec<StepTime>>,
    /// What is needed to repeat it.
    pub receipt: Receipt,
}

/// `report.json`.
#[derive(Serialize)]
struct Json<'a> {
    receipt: &'a Receipt,
    results_hash: String,
    config: &'a super::ContestConfig,
    reference: &'a str,
    tasks: Vec<&'a str>,
    contestants: Vec<JsonContestant<'a>>,
    scores: JsonScores<'a>,
}

#[derive(Serialize)]
struct JsonContestant<'a> {
    name: &'a str,
    role: super::Role,
    sweep: super::Sweep,
    variants: Vec<&'a str>,
}

#[derive(Serialize)]
struct JsonScores<'a> {
    contestants: &'a [super::ContestantScore],
    horizons: &'a [super::HorizonScore],
    tasks: &'a [Vec<super::TaskScore>],
}

impl<'a> Report<'a> {
    /// Scores the results. Add `times` and inputs of the receipt, then [`Self::save`].
    pub fn new(title: impl Into<String>, contest: &'a Contest, results: &'a Results) -> Self {
        let scores = Scores::new(contest, results);
        Report { title: title.into(), contest, results, scores, times: Vec::new(), receipt: Receipt::new() }
    }

    /// All tables that another run repeats bit for bit.
    pub fn tables(&self) -> Vec<Table> {
        let (contest, results, scores) = (self.contest, self.results, &self.scores);
        vec![
            tables::summary(contest, scores),
            tables::scores(contest, results, scores),
            tables::horizons(contest, scores),
            tables::runs(contest, results),
            tables::sweeps(contest, scores),
            tables::curves(contest, results, scores),
            tables::profiles(contest, scores),
        ]
    }

    /// The summary for a terminal: one line per optimizer, the best first.
    pub fn text(&self) -> String {
        let reference = &self.contest.contestants[self.contest.reference].name;
        let mut order: Vec<usize> = (0..self.contest.contestants.len()).collect();
        let score = |i: usize| &self.scores.contestants[i];
        order.sort_by(|&a, &b| score(a).loss_ratio.value.total_cmp(&score(b).loss_ratio.value));
        let width = self.contest.contestants.iter().map(|c| c.name.chars().count()).max().unwrap_or(0).max(9);
        let mut text = format!(
            "\nAgainst best-of-sweep {reference} (95 % intervals):\n{:<width$}  {:>20}  {:>22}  {:>20}  {:>6}\n",
            "optimizer", "wins, % of tasks", "loss ratio, IQM", "speed-up, median", "failed"
        );
        for i in order {
            let s = score(i);
            let wins = |x: f64| format!("{:.0}", 100.0 * x);
            let cell = |i: Interval, f: &dyn Fn(f64) -> String| {
                format!("{} ({}..{})", f(i.value), f(i.low), f(i.high))
            };
            let three = |x: f64| format!("{x:.3}");
            let two = |x: f64| format!("{x:.2}");
            let _ = writeln!(
                text,
                "{:<width$}  {:>20}  {:>22}  {:>20}  {:>6}",
                self.contest.contestants[i].name,
                cell(s.win_rate, &wins),
                cell(s.loss_ratio, &three),
                cell(s.median_speedup, &two),
                s.failures
            );
        }
        text
    }

    fn json(&self, results_hash: String) -> Result<String> {
        let variants = |c: &'a super::Contestant| c.variants.iter().map(|v| v.label.as_str()).collect();
        let contestants = self.contest.contestants.iter().map(|c| JsonContestant {
            name: &c.name,
            role: c.role,
            sweep: c.sweep,
            variants: variants(c),
        });
        let json = Json {
            receipt: &self.receipt,
            results_hash,
            config: &self.contest.config,
            reference: &self.contest.contestants[self.contest.reference].name,
            tasks: self.contest.tasks.iter().map(|t| t.name.as_str()).collect(),
            contestants: contestants.collect(),
            scores: JsonScores {
                contestants: &self.scores.contestants,
                horizons: &self.scores.horizons,
                tasks: &self.scores.tasks,
            },
        };
        serde_json::to_string_pretty(&json).map_err(|e| Error::invalid("report.json", e.to_string()))
    }

    /// Writes everything into `dir`, which must exist, each file atomically; returns the page's path.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = dir.as_ref();
        let write = |name: &str, text: &str| write_atomic(dir.join(name), text.as_bytes());
        let mut all = String::new();
        for table in self.tables() {
            let csv = table.csv()?;
            write(table.name, &csv)?;
            all.push_str(&csv);
        }
        let results_hash = hash(all.as_bytes());
        if !self.times.is_empty() {
            let timing = tables::timing(self.contest, &self.times);
            write(timing.name, &timing.csv()?)?;
        }
        write("report.json", &self.json(results_hash.clone())?)?;
        write("report.html", &html::page(self, &results_hash)?)?;
        Ok(dir.join("report.html"))
    }
}
