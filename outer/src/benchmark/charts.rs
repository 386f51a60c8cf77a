//! The report's pictures.

use super::contest::{Contest, Results, Role, Sweep};
use super::scores::Scores;
use super::tables;
use crate::plot::{Legend, Plot, Scale, Series};
use outerloop_core::Result;

/// Width and height of one picture in a grid, pixels.
const SMALL: (u32, u32) = (440, 320);
/// Of a picture on its own.
const LARGE: (u32, u32) = (760, 440);

/// Contestants' colours: the learned first, then the reference, then the others.
pub(super) fn colors(contest: &Contest) -> Vec<usize> {
    let rank = |i: usize| match contest.contestants[i].role {
        Role::Learned => 0,
        Role::Baseline if i == contest.reference => 1,
        Role::Baseline => 2,
    };
    let mut order: Vec<usize> = (0..contest.contestants.len()).collect();
    order.sort_by_key(|&i| (rank(i), i));
    let mut colors = vec![0; order.len()];
    order.iter().enumerate().for_each(|(color, &i)| colors[i] = color);
    colors
}

/// The axis of final losses of runs that began at `start`: rates that end far above are off the picture.
fn sweep_axis<I: Iterator<Item = f64>>(losses: impl Fn() -> I, start: f64) -> (Scale, Option<(f64, f64)>) {
    let best = losses().fold(f64::INFINITY, f64::min);
    let way = start - best;
    let range = if best > 0.0 { (0.7 * best, 3.0 * start) } else { (best - 0.1 * way, start + way) };
    let scale = Scale::for_values(losses().filter(|l| *l <= range.1));
    (scale, (range.1.is_finite() && range.0 < range.1).then_some(range))
}

/// All that the pictures are drawn from.
pub(super) struct Charts<'a> {
    pub contest: &'a Contest,
    pub results: &'a Results,
    pub scores: &'a Scores,
    pub colors: Vec<usize>,
}

impl Charts<'_> {
    fn learned(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.contest.contestants.len()).filter(|&i| self.contest.contestants[i].role == Role::Learned)
    }

    /// Whose curves are shown on a task: the learned ones, the reference, and the best of the others.
    pub fn shown(&self, task: usize) -> Vec<usize> {
        let mut shown: Vec<usize> = self.learned().collect();
        shown.push(self.contest.reference);
        let others = (0..self.contest.contestants.len()).filter(|i| !shown.contains(i));
        let loss = |i: &usize| self.scores.tasks[task][*i].loss;
        shown.extend(others.min_by(|a, b| loss(a).total_cmp(&loss(b))));
        shown
    }

    /// Contestants in drawing order: the learned ones last, on top.
    fn drawn(&self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.contest.contestants.len()).collect();
        all.sort_by_key(|&i| std::cmp::Reverse(self.colors[i]));
        all
    }

    /// Loss over steps with the range of the seeds.
    pub fn learning_curves(&self, task: usize) -> Result<String> {
        let of = |i: usize| {
            let curve = tables::curve(self.contest, self.results, self.scores, task, i);
            let points = curve.iter().map(|p| (p.0 as f64, p.1)).collect();
            let band = curve.iter().map(|p| (p.0 as f64, p.2, p.3)).collect();
            Series::line("", points).with_band(band).with_color(self.colors[i])
        };
        let series: Vec<Series> = self.shown(task).into_iter().rev().map(of).collect();
        let bands = series.iter().flat_map(|s| s.band.iter().flatten());
        let plot = Plot {
            x_label: "step".into(),
            y_label: "training loss".into(),
            // The means lie within their bands.
            y_scale: Scale::for_values(bands.flat_map(|(_, low, high)| [*low, *high])),
            size: SMALL,
            legend: Legend::None,
            series,
            ..Plot::default()
        };
        plot.svg()
    }

    /// Final loss over the learning rate; contestants without a sweep are flat lines.
    pub fn sweep(&self, task: usize) -> Result<String> {
        let rates = |i: usize| self.contest.contestants[i].sweep == Sweep::LearningRate;
        let all = self.drawn();
        let positions: Vec<f64> = all
            .iter()
            .filter(|&&i| rates(i))
            .flat_map(|&i| self.contest.contestants[i].variants.iter().map(|v| v.position))
            .collect();
        let low = positions.iter().copied().fold(f64::INFINITY, f64::min);
        let high = positions.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // A flat line over a single rate has a length, too.
        let (low, high) = if low < high { (low, high) } else { (0.5 * low, 2.0 * high) };
        let series = all.into_iter().map(|i| {
            let (c, score) = (&self.contest.contestants[i], &self.scores.tasks[task][i]);
            let points = if rates(i) {
                c.variants.iter().zip(&score.sweep).map(|(v, l)| (v.position, *l)).collect()
            } else {
                vec![(low, score.loss), (high, score.loss)]
            };
            Series::line("", points).with_color(self.colors[i])
        });
        let series: Vec<Series> = series.collect();
        let losses = || series.iter().flat_map(|s| s.points.iter().map(|p| p.1));
        let (y_scale, y_range) = sweep_axis(losses, self.scores.envelopes[task][0]);
        let plot = Plot {
            x_label: "learning rate".into(),
            y_label: "final training loss".into(),
            x_scale: Scale::for_values(positions),
            y_scale,
            y_range,
            size: SMALL,
            legend: Legend::None,
            series,
            ..Plot::default()
        };
        plot.svg()
    }

    /// Every contestant's speed-ups in falling order.
    pub fn sorted_speedups(&self) -> Result<String> {
        let series = self.drawn().into_iter().map(|i| {
            let mut speedups: Vec<f64> = self.scores.tasks.iter().map(|t| t[i].speedup).collect();
            speedups.sort_by(|a, b| b.total_cmp(a));
            let n = speedups.len() as f64;
            let place = |k: usize| 100.0 * (k as f64 + 0.5) / n;
            let points = speedups.iter().enumerate().map(|(k, s)| (place(k), *s)).collect();
            Series::line("", points).with_color(self.colors[i])
        });
        let plot = Plot {
            x_label: "tasks, % (fastest first)".into(),
            y_label: "speed-up".into(),
            size: LARGE,
            legend: Legend::None,
            series: series.collect(),
            ..Plot::default()
        };
        plot.svg()
    }

    /// Fraction of tasks solved within a factor of the fastest.
    pub fn performance_profiles(&self) -> Result<String> {
        let series = self.drawn().into_iter().map(|i| {
            // Stairs: the fraction holds up to the next factor.
            let profile = self.scores.profile(i, tables::PROFILE_POINTS);
            let before = std::iter::once(None).chain(profile.iter().map(|p| Some(p.1)));
            let stairs = profile.iter().zip(before).flat_map(|(&(tau, fraction), before)| {
                before.map(|b| (tau, b)).into_iter().chain([(tau, fraction)])
            });
            Series::line("", stairs.collect()).with_color(self.colors[i])
        });
        let plot = Plot {
            x_label: "steps to the target / steps of the fastest".into(),
            y_label: "fraction of tasks".into(),
            x_scale: Scale::Log,
            y_range: Some((-0.02, 1.02)),
            size: LARGE,
            legend: Legend::None,
            series: series.collect(),
            ..Plot::default()
        };
        plot.svg()
    }
}
