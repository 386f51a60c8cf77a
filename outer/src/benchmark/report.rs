//! The report: a benchmark's results with their scores, as tables and as text.

use super::contest::{Contest, Results};
use super::metrics::ZERO_MARGIN;
use super::receipt::Receipt;
use super::scores::Scores;
use super::statistics::Interval;
use super::tables::{self, Table};
use super::timing::StepTime;
use crate::plot::Plot;
use std::fmt::Write;

/// A benchmark's results, ready to be written by [`Report::save`].
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
    /// Pictures of the meta-training behind it, for the page; none by default.
    pub training: Vec<Plot>,
    /// What is needed to repeat it.
    pub receipt: Receipt,
}

impl<'a> Report<'a> {
    /// Scores the results. Add `times` and inputs of the receipt, then [`Self::save`].
    pub fn new(title: impl Into<String>, contest: &'a Contest, results: &'a Results) -> Self {
        let scores = Scores::new(contest, results);
        let (times, training, receipt) = (Vec::new(), Vec::new(), Receipt::new());
        Report { title: title.into(), contest, results, scores, times, training, receipt }
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
            "\nAgainst best-of-sweep {reference} (95 % intervals; rates by training and by validation loss):\n{:<width$}  {:>20}  {:>20}  {:>22}  {:>20}  {:>6}\n",
            "optimizer", "training wins, %", "validation wins, %", "loss ratio, IQM", "speed-up, median", "failed"
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
                "{:<width$}  {:>20}  {:>20}  {:>22}  {:>20}  {:>6}",
                self.contest.contestants[i].name,
                cell(s.win_rate, &wins),
                cell(s.validation_win_rate, &wins),
                cell(s.loss_ratio, &three),
                cell(s.median_speedup, &two),
                s.failures
            );
        }
        for remark in self.remarks() {
            let _ = writeln!(text, "{remark}");
        }
        text
    }

    /// What must be known to read the numbers: where the reference failed, and where ratios are not of the
    /// losses as they are.
    pub fn remarks(&self) -> Vec<String> {
        let reference = self.contest.reference;
        let name = &self.contest.contestants[reference].name;
        let tasks = |which: &dyn Fn(usize) -> bool| {
            let all = (0..self.contest.tasks.len()).filter(|t| which(*t));
            all.map(|t| self.contest.tasks[t].name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let mut remarks = Vec::new();
        let failed = tasks(&|t| !self.scores.tasks[t][reference].loss.is_finite());
        if !failed.is_empty() {
            remarks.push(format!(
                "Every setting of {name} has a failed run on {failed}: there whoever does not fail wins with ratio 0, \
                 its speed-up is measured against what {name} reached before, and the profile's target is the \
                 best of all optimizers."
            ));
        }
        let shifted = tasks(&|t| self.scores.tasks[t][reference].ratio_zero != 0.0);
        if !shifted.is_empty() {
            remarks.push(format!(
                "Losses reach zero or below on {shifted}: there the ratio is of distances from a zero that lies \
                 {} % below the lowest loss, relative to the way from the start to it.",
                100.0 * ZERO_MARGIN
            ));
        }
        remarks
    }
}
