//! Aggregates over tasks and seeds with their uncertainty.
//!
//! Reference: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical
//! precipice", arXiv:2108.13264 (rliable): interquartile means, stratified bootstrap.

use outerloop_core::Key;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Interquartile mean: the mean without the lowest and the highest quarter (`⌊n/4⌋` values each), so
/// that a failure (infinity) counts as the worst, not as everything. NaN for none.
pub fn interquartile_mean(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let cut = sorted.len() / 4;
    let middle = &sorted[cut..sorted.len() - cut];
    middle.iter().sum::<f64>() / middle.len() as f64
}

/// The middle value, or the mean of the two middle ones; NaN for none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]),
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// A statistic with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Of the data themselves.
    pub value: f64,
    /// 2.5 % of the resampled statistics lie below.
    pub low: f64,
    /// 2.5 % lie above.
    pub high: f64,
}

/// One resampling of a table of tasks and seeds: tasks drawn with replacement, and for each drawn task
/// its seeds drawn with replacement.
pub type Draw = Vec<(usize, Vec<usize>)>;

/// A percentile bootstrap, stratified by task: intervals cover the choice of the tasks and the seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// Number of tasks.
    pub tasks: usize,
    /// Seeds per task.
    pub seeds: usize,
    /// Resamplings.
    pub resamples: u64,
    /// All randomness: the same key, the same intervals.
    pub key: Key,
}

impl Bootstrap {
    /// Resampling number `i`.
    fn draw(&self, i: u64) -> Draw {
        let mut rng = self.key.fold_in(i).rng();
        (0..self.tasks)
            .map(|_| {
                let task = rng.gen_range(0..self.tasks);
                (task, (0..self.seeds).map(|_| rng.gen_range(0..self.seeds)).collect())
            })
            .collect()
    }

    /// Every task and seed once.
    fn identity(&self) -> Draw {
        (0..self.tasks).map(|task| (task, (0..self.seeds).collect())).collect()
    }

    /// The statistic of everything, and the percentiles of the statistics of the resamplings.
    pub fn interval(&self, statistic: impl Fn(&Draw) -> f64) -> Interval {
        let value = statistic(&self.identity());
        if self.tasks == 0 || self.seeds == 0 || self.resamples == 0 {
            return Interval { value, low: f64::NAN, high: f64::NAN };
        }
        let all: Vec<f64> = (0..self.resamples).map(|i| statistic(&self.draw(i))).collect();
        let all = sorted(&all);
        // Nearest ranks, outwards: infinities cannot be interpolated.
        let last = (all.len() - 1) as f64;
        let (low, high) = ((0.025 * last).floor() as usize, (0.975 * last).ceil() as usize);
        Interval { value, low: all[low], high: all[high] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INF: f64 = f64::INFINITY;

    #[test]
    fn interquartile_means_drop_a_quarter_on_each_side() {
        assert_eq!(interquartile_mean(&[5.0, 1.0, 2.0, 3.0]), 2.5);
        // As scipy.stats.trim_mean(x, 0.25): one of seven is cut on each side.
        assert_eq!(interquartile_mean(&[7.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0]), 4.0);
        assert_eq!(interquartile_mean(&[1.0, 2.0, 4.0, INF]), 3.0);
        assert_eq!(interquartile_mean(&[1.0, 2.0, INF, INF]), INF);
        assert_eq!(interquartile_mean(&[3.0]), 3.0);
        assert!(interquartile_mean(&[]).is_nan());
    }

    #[test]
    fn medians() {
        assert_eq!(
            [median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0]), median(&[INF])],
            [2.0, 2.5, INF]
        );
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_of_a_mean_has_the_width_of_its_standard_error() {
        // One seed each, task values 0 or 1: the mean of n draws has variance p (1 − p) / n.
        let n = 400;
        let bootstrap = Bootstrap { tasks: n, seeds: 1, resamples: 2000, key: Key::new(1) };
        let mean = |draw: &Draw| draw.iter().filter(|(task, _)| task % 4 == 0).count() as f64 / n as f64;
        let interval = bootstrap.interval(mean);
        assert_eq!(interval.value, 0.25);
        let want = 1.96 * (0.25f64 * 0.75 / n as f64).sqrt();
        for side in [interval.value - interval.low, interval.high - interval.value] {
            assert!((side / want - 1.0).abs() < 0.15, "{interval:?}, expected ± {want}");
        }
    }

    #[test]
    fn seeds_are_resampled_within_their_task() {
        let bootstrap = Bootstrap { tasks: 3, seeds: 5, resamples: 50, key: Key::new(2) };
        let mut seen = [[false; 5]; 3];
        for i in 0..50 {
            let draw = bootstrap.draw(i);
            assert_eq!((draw.len(), &draw), (3, &bootstrap.draw(i)));
            for (task, seeds) in draw {
                assert_eq!(seeds.len(), 5);
                seeds.into_iter().for_each(|s| seen[task][s] = true);
            }
        }
        assert!(seen.as_flattened().iter().all(|s| *s));
        // No variation, no width; and the key decides everything.
        let constant = bootstrap.interval(|_| 2.0);
        assert_eq!((constant.low, constant.high), (2.0, 2.0));
        let of = |key| Bootstrap { key, ..bootstrap }.interval(|d| d.iter().map(|(t, _)| *t as f64).sum());
        assert_eq!(of(Key::new(3)), of(Key::new(3)));
        let none = Bootstrap { resamples: 0, ..bootstrap }.interval(|_| 2.0);
        assert!(none.value == 2.0 && none.low.is_nan());
    }

    #[test]
    fn failures_give_infinite_ends_not_nan() {
        let bootstrap = Bootstrap { tasks: 4, seeds: 1, resamples: 500, key: Key::new(4) };
        let values = [1.0, 1.0, 1.0, INF];
        let worst = bootstrap.interval(|d| d.iter().map(|(t, _)| values[*t]).fold(0.0, f64::max));
        assert_eq!((worst.value, worst.low, worst.high), (INF, 1.0, INF));
    }
}
