//! Two contestants' losses at a horizon, compared.

use super::metrics::{mean, steps_to, RatioScale, Steps};
use super::statistics::{interquartile_mean, median, Bootstrap, Draw, Interval};

/// A contestant's losses at a horizon beside the reference's.
pub(super) struct Duel<'a> {
    /// Of the reference, `[task][step]`.
    pub envelopes: &'a [Vec<f64>],
    /// `[task]`
    pub scales: &'a [RatioScale],
    /// Updates.
    pub horizon: u64,
    /// `[task][seed]`
    pub losses: Vec<Vec<f64>>,
    /// The same for the reference.
    pub reference: Vec<Vec<f64>>,
}

fn pick(values: &[f64], seeds: &[usize]) -> f64 {
    mean(seeds.iter().map(|&s| values[s]))
}

/// Fraction of the tasks where `a` is lower than `b`, equal counting half; a failure never wins.
pub(super) fn win_rate(a: &[Vec<f64>], b: &[Vec<f64>], draw: &Draw) -> f64 {
    mean(draw.iter().map(|(task, seeds)| {
        let (a, b) = (pick(&a[*task], seeds), pick(&b[*task], seeds));
        match a.total_cmp(&b) {
            _ if !a.is_finite() => 0.0,
            _ if a == b => 0.5,
            std::cmp::Ordering::Less => 1.0,
            _ => 0.0,
        }
    }))
}

impl Duel<'_> {
    pub fn speedup(&self, task: usize, loss: f64) -> Steps {
        let over = |steps: f64| steps / self.horizon as f64;
        match steps_to(&self.envelopes[task], loss) {
            Steps::At(steps) => Steps::At(over(steps)),
            Steps::MoreThan(steps) => Steps::MoreThan(over(steps)),
        }
    }

    pub fn ratio(&self, task: usize, loss: f64) -> f64 {
        let all = 0..self.reference[task].len();
        self.scales[task].ratio(loss, pick(&self.reference[task], &all.collect::<Vec<_>>()))
    }

    fn per_run(&self, draw: &Draw, f: impl Fn(usize, f64) -> f64) -> f64 {
        let values =
            draw.iter().flat_map(|(task, seeds)| seeds.iter().map(|s| f(*task, self.losses[*task][*s])));
        interquartile_mean(&values.collect::<Vec<_>>())
    }

    pub fn win_rate(&self, bootstrap: &Bootstrap) -> Interval {
        bootstrap.interval(|draw| win_rate(&self.losses, &self.reference, draw))
    }
    pub fn loss_ratio(&self, bootstrap: &Bootstrap) -> Interval {
        bootstrap.interval(|draw| self.per_run(draw, |task, loss| self.ratio(task, loss)))
    }
    pub fn mean_speedup(&self, bootstrap: &Bootstrap) -> Interval {
        bootstrap.interval(|draw| self.per_run(draw, |task, loss| self.speedup(task, loss).at_least()))
    }
    pub fn median_speedup(&self, bootstrap: &Bootstrap) -> Interval {
        bootstrap.interval(|draw| {
            let of = |(task, seeds): &(usize, Vec<usize>)| {
                self.speedup(*task, pick(&self.losses[*task], seeds)).at_least()
            };
            median(&draw.iter().map(of).collect::<Vec<_>>())
        })
    }
}
