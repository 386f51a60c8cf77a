//! The report as one HTML page: style and pictures inside, no scripts.

mod pictures;

use super::charts::{self, Charts};
use super::contest::Role;
use super::metrics::ZERO_MARGIN;
use super::report::Report;
use super::scores::TaskScore;
use super::statistics::median;
use crate::page::{self, escape, number, percent, percent_1, seconds, with_interval};
use crate::plot::{palette, Plot, Style};
use outerloop_core::Result;
use std::fmt::Write;

struct Page<'a> {
    report: &'a Report<'a>,
    charts: Charts<'a>,
    page: page::Page,
}

pub(super) fn page(report: &Report, results_hash: &str) -> Result<String> {
    let charts = Charts {
        contest: report.contest,
        results: report.results,
        scores: &report.scores,
        colors: charts::colors(report.contest),
    };
    let mut page = Page { report, charts, page: head(report) };
    page.summary();
    page.ranking();
    page.tasks();
    page.horizons();
    page.pictures()?;
    page.cost();
    page.training()?;
    page.method(results_hash);
    Ok(page.page.html())
}

fn head(r: &Report) -> page::Page {
    let lead = format!(
        "Tasks: {}; steps: {}; seeds: {}; runs: {}. Sweeps are represented by their best variant on each task, \
         chosen on the very runs that are scored; learned optimizers run as they are.",
        r.contest.tasks.len(),
        r.contest.config.num_steps,
        r.contest.config.seeds,
        r.results.runs.len(),
    );
    page::Page::new(&escape(&r.title), &lead)
}

impl Page<'_> {
    fn push(&mut self, text: impl AsRef<str>) {
        self.page.push(text);
    }

    fn section(&mut self, title: &str, text: &str) {
        self.page.section(title, text);
    }

    fn name(&self, contestant: usize) -> String {
        escape(&self.report.contest.contestants[contestant].name)
    }
    fn reference(&self) -> String {
        self.name(self.report.contest.reference)
    }
    fn task(&self, task: usize) -> String {
        escape(&self.report.contest.tasks[task].name)
    }
    fn learned(&self) -> Vec<usize> {
        let all = &self.report.contest.contestants;
        (0..all.len()).filter(|&i| all[i].role == Role::Learned).collect()
    }
    fn score(&self, task: usize, contestant: usize) -> &TaskScore {
        &self.report.scores.tasks[task][contestant]
    }
    /// Whether a contestant's final training loss is lower than the reference's, as in the win rate.
    fn wins(&self, task: usize, contestant: usize) -> bool {
        self.score(task, contestant).loss < self.score(task, self.report.contest.reference).loss
    }
    /// A line as it is drawn in the pictures.
    fn swatch(&self, contestant: usize) -> String {
        let ([r, g, b], style) = palette(self.charts.colors[contestant]);
        let dash = if style == Style::Dashed { " stroke-dasharray=\"7 3\"" } else { "" };
        format!(
            "<svg class=\"swatch\" viewBox=\"0 0 24 8\" aria-hidden=\"true\"><line x1=\"0\" y1=\"4\" \
             x2=\"24\" y2=\"4\" stroke=\"rgb({r},{g},{b})\" stroke-width=\"3\"{dash}/></svg>"
        )
    }
    fn labelled(&self, contestant: usize) -> String {
        format!("{} {}", self.swatch(contestant), self.name(contestant))
    }

    fn summary(&mut self) {
        let learned = self.learned();
        if learned.is_empty() {
            return;
        }
        self.push("<h2>In short</h2>\n");
        let tasks = self.report.contest.tasks.len();
        for i in learned {
            let s = self.report.scores.contestants[i];
            let wins = (0..tasks).filter(|&t| self.wins(t, i)).count();
            let cards = [
                (
                    format!("{wins} of {tasks}"),
                    format!("tasks with a lower final training loss than best-of-sweep {}", self.reference()),
                ),
                (
                    with_interval(s.median_speedup, |x| format!("{} ×", number(x))),
                    format!("median speed-up over swept {}", self.reference()),
                ),
                (
                    with_interval(s.loss_ratio, number),
                    format!("final loss over {}'s, interquartile mean", self.reference()),
                ),
                (s.failures.to_string(), "failed runs".into()),
            ];
            let cards: String = cards
                .iter()
                .map(|(v, k)| format!("<div class=\"card\"><b>{v}</b><span>{k}</span></div>\n"))
                .collect();
            self.push(format!("<h3>{}</h3>\n<div class=\"cards\">\n{cards}</div>\n", self.labelled(i)));
            let losses = self.losses(i);
            self.push(format!("<p><strong>Where it loses.</strong> {losses}</p>\n"));
        }
        self.page.source(
            "summary.csv (win_rate, speedup_median, loss_ratio_iqm, failures), scores.csv (train_loss, loss_ratio), \
             horizons.csv. Intervals: 95 %, bootstrap over tasks and seeds",
        );
    }

    /// Tasks, data and horizons where a contestant is behind the reference.
    fn losses(&self, i: usize) -> String {
        let tasks = 0..self.report.contest.tasks.len();
        let mut behind: Vec<(f64, String)> = tasks
            .clone()
            .filter(|&t| !self.wins(t, i))
            .map(|t| (self.score(t, i).ratio, self.task(t)))
            .collect();
        behind.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut text = if behind.is_empty() {
            "On no task of the suite is its final training loss higher. ".to_string()
        } else {
            let list: Vec<String> =
                behind.iter().map(|(ratio, task)| format!("{task} ({} ×)", number(*ratio))).collect();
            format!("Final training loss not lower than {}'s on {}. ", self.reference(), list.join(", "))
        };
        let reference = self.report.contest.reference;
        let valid =
            tasks.clone().filter(|&t| self.score(t, i).validation >= self.score(t, reference).validation);
        let _ = write!(text, "Validation loss not lower on {} of {} tasks. ", valid.count(), tasks.len());
        let weak: Vec<String> = self
            .report
            .scores
            .horizons
            .iter()
            .filter(|h| h.contestant == i && h.win_rate.value < 0.5)
            .map(|h| format!("{} steps (lower on {})", h.num_steps, percent(h.win_rate.value)))
            .collect();
        if !weak.is_empty() {
            let _ = write!(text, "Behind on most tasks at {}.", weak.join(", "));
        }
        text
    }

    fn ranking(&mut self) {
        let reference = self.reference();
        self.section(
            "All optimizers",
            &format!(
                "Against best-of-sweep {reference} on the same tasks and seeds. A speed-up of 2 means that \
                 {reference}, with the best learning rate for every number of steps, needs twice the steps \
                 for the same loss."
            ),
        );
        let header = [
            "optimizer".into(),
            format!("lower training loss than {reference}"),
            "lower validation loss".into(),
            "final loss ratio, IQM".into(),
            "speed-up, IQM".into(),
            "speed-up, median".into(),
            "profile score".into(),
            "failed runs".into(),
        ];
        let scores = &self.report.scores.contestants;
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].loss_ratio.value.total_cmp(&scores[b].loss_ratio.value));
        let rows: Vec<Vec<String>> = order
            .into_iter()
            .map(|i| {
                let s = &scores[i];
                vec![
                    self.labelled(i),
                    with_interval(s.win_rate, percent),
                    with_interval(s.validation_win_rate, percent),
                    with_interval(s.loss_ratio, number),
                    with_interval(s.speedup, number),
                    with_interval(s.median_speedup, number),
                    number(s.profile_score),
                    s.failures.to_string(),
                ]
            })
            .collect();
        self.page.table(&header, &rows);
        for remark in self.report.remarks() {
            self.push(format!("<p><strong>Note.</strong> {}</p>\n", escape(&remark)));
        }
        self.page.source("summary.csv, one row per optimizer and column; 95 % intervals in low and high");
    }

    fn tasks(&mut self) {
        let reference = self.report.contest.reference;
        self.section(
            "Every task",
            "Smoothed training loss at the end (bold: lower than the reference's) and speed-up of the variant \
             chosen by training loss; below, validation loss, its lowest along the run, and test loss and error \
             rate (where measured) of the variant chosen by validation.",
        );
        let mut columns = self.learned();
        columns.push(reference);
        columns.extend(
            (0..self.report.contest.contestants.len()).filter(|i| !columns.contains(i)).collect::<Vec<_>>(),
        );
        let mut header = vec!["task".to_string(), "parameters".into()];
        header.extend(columns.iter().map(|&i| self.labelled(i)));
        let rows: Vec<Vec<String>> = (0..self.report.contest.tasks.len())
            .map(|t| {
                let cell = |&i: &usize| {
                    let s = self.score(t, i);
                    let more = if s.speedup_is_bound { "&gt; " } else { "" };
                    let loss = number(s.loss);
                    let loss = if self.wins(t, i) { format!("<strong>{loss}</strong>") } else { loss };
                    let speedup = format!("{more}{} ×", number(s.speedup));
                    let valid =
                        format!("valid {}, lowest {}", number(s.validation), number(s.lowest_validation));
                    let test = match s.test.is_nan() {
                        true => String::new(),
                        false => format!("<br>test {}", number(s.test)),
                    };
                    let error = match s.error_rate.is_nan() {
                        true => String::new(),
                        false => format!("<br>{} wrong", percent_1(s.error_rate)),
                    };
                    format!("{loss}<br><small>{speedup}<br>{valid}{test}{error}</small>")
                };
                let mut row = vec![self.task(t), self.report.results.parameters[t].to_string()];
                row.extend(columns.iter().map(cell));
                row
            })
            .collect();
        self.page.table(&header, &rows);
        self.page.source(
            "scores.csv, row (task, contestant): parameters, train_loss, speedup, speedup_is_lower_bound \
             (&gt;), best_by_validation, validation_loss, lowest_validation_loss, test_loss, error_rate",
        );
    }

    fn horizons(&mut self) {
        let horizons = &self.report.scores.horizons;
        if horizons.iter().all(|h| h.num_steps == self.report.contest.config.num_steps) {
            return;
        }
        let header = [
            "optimizer",
            "steps",
            "lower training loss",
            "lower validation loss",
            "final loss ratio, IQM",
            "speed-up, median",
        ];
        let rows: Vec<Vec<String>> = horizons
            .iter()
            .map(|h| {
                vec![
                    self.labelled(h.contestant),
                    h.num_steps.to_string(),
                    with_interval(h.win_rate, percent),
                    with_interval(h.validation_win_rate, percent),
                    with_interval(h.loss_ratio, number),
                    with_interval(h.median_speedup, number),
                ]
            })
            .collect();
        let longest = self.report.contest.config.num_steps * self.report.contest.config.reference_factor;
        self.section(
            "Other horizons",
            &format!(
                "Each a training run of its own, told its length, against {} with the best learning rate for \
                 that length. {} runs {longest} steps, so no speed-up above {longest}/steps can be seen.",
                self.reference(),
                self.reference(),
            ),
        );
        self.page.table(&header, &rows);
        self.page.source("horizons.csv, row (contestant, num_steps, metric)");
    }

    fn cost(&mut self) {
        let (times, r) = (&self.report.times, self.report);
        let tasks = r.contest.tasks.len();
        let per_parameter = |i: usize| {
            let bytes = (0..tasks)
                .map(|t| r.results.state_bytes[t][i] as f64 / r.results.parameters[t].max(1) as f64);
            median(&bytes.collect::<Vec<_>>())
        };
        let mut order: Vec<usize> = (0..tasks).collect();
        order.sort_by_key(|&t| r.results.parameters[t]);
        // The smallest and the largest, which may be one.
        let mut timed = vec![order[0], order[tasks - 1]];
        timed.dedup();
        let mut header = vec!["optimizer".to_string(), "state, bytes per parameter".into()];
        if !times.is_empty() {
            for &t in &timed {
                header.push(format!("update on {} ({} parameters)", self.task(t), r.results.parameters[t]));
            }
            header.push("update over gradient, median".into());
        }
        let rows: Vec<Vec<String>> = (0..r.contest.contestants.len())
            .map(|i| {
                let mut row = vec![self.labelled(i), number(per_parameter(i))];
                if !times.is_empty() {
                    row.extend(timed.iter().map(|&t| seconds(times[t][i].update)));
                    let over: Vec<f64> = times.iter().map(|t| t[i].update / t[i].gradient).collect();
                    row.push(number(median(&over)));
                }
                row
            })
            .collect();
        self.section(
            "Cost of a step",
            "State beside the parameters, and time of one update on one thread (fastest of five samples). \
             Times are the only numbers here that another run does not repeat.",
        );
        self.page.table(&header, &rows);
        self.page
            .source("scores.csv, column state_bytes; timing.csv, columns update_seconds, gradient_seconds");
    }

    fn training(&mut self) -> Result<()> {
        let report = self.report;
        if report.training.is_empty() {
            return Ok(());
        }
        self.section("Meta-training", "How the learned optimizer came about, over outer steps.");
        let pictures: Vec<(&str, &Plot)> = report.training.iter().map(|plot| ("", plot)).collect();
        self.page.pictures(&pictures)?;
        self.page.source("metrics.csv of the run");
        Ok(())
    }

    fn method(&mut self, results_hash: &str) {
        let (r, c) = (self.report, &self.report.contest.config);
        let reference = self.reference();
        let text = format!(
            "Training losses are smoothed by an exponential moving average (decay 0.95). A run with a \
             non-finite loss is a failure: its loss is infinite, it is never dropped. Every optimizer meets \
             the same initial parameters and batches. The envelope of {reference} is the lowest mean loss \
             over its sweep at every step, then the running minimum, over {} steps; the speed-up is the \
             number of steps at which it reaches an optimizer's final loss (linear interpolation) over {}. \
             If it never does, the speed-up is a lower bound (&gt;). Normalized final loss: over that of \
             {reference}'s best rate at the horizon, both floored at 10⁻¹⁰ of the initial loss; where a loss is \
             negative, distances from a zero {} % below the lowest one (scores.csv, loss_ratio_zero). IQM: mean \
             without the lowest and highest quarter of all runs. Intervals: percentiles of {} resamplings of \
             tasks, and of seeds within tasks.",
            c.num_steps * c.reference_factor,
            c.num_steps,
            100.0 * ZERO_MARGIN,
            c.resamples
        );
        self.section("Method", &text);
        self.push(
            "<p>After: envelope, speed-up: Metz et al. 2022, arXiv:2211.09760 (VeLO). IQM, bootstrap: \
             Agarwal et al. 2021, arXiv:2108.13264. Profiles: Dolan and Moré 2002, arXiv:cs/0102001; Dahl et \
             al. 2023, arXiv:2306.07179 (AlgoPerf).</p>\n",
        );
        let more = [
            ["seed".into(), format!("{} ({} per task and optimizer)", c.seed, c.seeds)],
            ["hash of all results".into(), results_hash.into()],
        ];
        self.page.receipt(&r.receipt, &more);
        self.page.source(
            "report.json, receipt. The same inputs on the same kernels give the same hash, for any number of \
             threads",
        );
    }
}
