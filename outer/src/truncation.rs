//! How many steps an inner training run lasts before it is reset.

use outerloop_core::{Error, Key, Result};
use serde::{Deserialize, Serialize};

/// Length of inner training runs, in inner steps. A run's length is drawn when the run starts, from
/// its key, and the optimizer is told it as `num_steps`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TruncationSchedule {
    /// Always the same length.
    Constant(u64),
    /// `⌊exp U(ln min, ln max)⌋`: in `[min, max)`, every scale equally likely.
    LogUniform {
        /// Shortest length.
        min: u64,
        /// Bound that is never reached.
        max: u64,
    },
    /// A length that changes over the outer steps: linear between knots `(outer step, length)`,
    /// constant outside, plus Gaussian jitter of whole steps.
    Scheduled {
        /// Outer steps (increasing) and the lengths there, finite and not negative.
        knots: Vec<(u64, f64)>,
        /// Standard deviation of the jitter, in steps; 0 for none.
        std: f64,
        /// Lower bound of the result.
        min_length: u64,
    },
    /// A curriculum of horizons: log-uniform as [`Self::LogUniform`], with an upper end that changes
    /// over the outer steps, linear between knots `(outer step, length)` and constant outside.
    Growing {
        /// Shortest length.
        min: u64,
        /// Outer steps (increasing) and the upper ends there, finite and at least `min`.
        knots: Vec<(u64, f64)>,
    },
    /// Runs never end; `num_steps` is unknown to the optimizer.
    NeverEnding,
}

impl TruncationSchedule {
    /// Errors unless every length it can give is at least 1.
    pub fn validate(&self) -> Result<()> {
        let bad = |why: &str| Err(Error::invalid(format!("truncation schedule {self:?}"), why));
        match self {
            Self::Constant(0) => bad("the length must be at least 1"),
            Self::LogUniform { min, max } if *min == 0 || max < min => bad("needs 1 <= min <= max"),
            Self::Scheduled { knots, .. } | Self::Growing { knots, .. } if !increasing(knots) => {
                bad("needs at least one knot, outer steps increasing")
            }
            Self::Growing { min, knots } if *min == 0 || !all_from(*min as f64, knots) => {
                bad("needs min >= 1 and finite upper ends of at least min")
            }
            Self::Scheduled { knots, .. } if !all_from(0.0, knots) => {
                bad("needs finite lengths that are not negative")
            }
            Self::Scheduled { std, min_length, .. }
                if *min_length == 0 || !(std.is_finite() && *std >= 0.0) =>
            {
                bad("needs min_length >= 1 and a finite std >= 0")
            }
            _ => Ok(()),
        }
    }

    /// The length of a run that starts at `outer_step`; `None`: it never ends.
    pub fn length(&self, outer_step: u64, key: Key) -> Option<u64> {
        match self {
            Self::Constant(n) => Some(*n),
            Self::LogUniform { min, max } => Some(log_uniform(*min, *max, key)),
            Self::Growing { min, knots } => {
                Some(log_uniform(*min, interpolate(knots, outer_step) as u64, key))
            }
            Self::Scheduled { knots, std, min_length } => {
                let mut z = [0.0f64];
                key.fill_normal(&mut z);
                let jittered = interpolate(knots, outer_step) + (std * z[0]).trunc();
                Some((jittered as u64).max(*min_length))
            }
            Self::NeverEnding => None,
        }
    }
}

/// What an optimizer is told about the length of its run.
///
/// An optimizer that only ever heard the truth relies on it: told a length that is wrong, or none, it plans
/// for another run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum ToldLength {
    /// The truth.
    #[default]
    Exact,
    /// Nothing, by the probability `absent`; a length that is wrong by up to a `factor`, log-uniform in both
    /// directions, by the probability `wrong`; else the truth. Drawn per run, from its key.
    Mixed {
        /// 0 to 1.
        absent: f64,
        /// 0 to 1, and at most 1 together with `absent`.
        wrong: f64,
        /// At least 1.
        factor: f64,
    },
}

impl ToldLength {
    /// Errors on numbers out of range.
    pub fn validate(&self) -> Result<()> {
        let Self::Mixed { absent, wrong, factor } = *self else { return Ok(()) };
        let parts = absent >= 0.0 && wrong >= 0.0 && absent + wrong <= 1.0;
        if parts && factor >= 1.0 && factor.is_finite() {
            return Ok(());
        }
        let why = "needs absent >= 0, wrong >= 0, absent + wrong <= 1 and a finite factor >= 1";
        Err(Error::invalid(format!("told length {self:?}"), why))
    }

    /// What the optimizer hears of a run of this length.
    pub fn told(&self, length: Option<u64>, key: Key) -> Option<u64> {
        let (Self::Mixed { absent, wrong, factor }, Some(n)) = (*self, length) else { return length };
        let [kind, size] = key.named("told length").split();
        match kind.uniform() {
            u if u < absent => None,
            u if u < absent + wrong => {
                let factor = factor.powf(2.0 * size.uniform() - 1.0);
                Some(((n as f64 * factor).round() as u64).max(1))
            }
            _ => length,
        }
    }
}

fn increasing(knots: &[(u64, f64)]) -> bool {
    !knots.is_empty() && knots.windows(2).all(|w| w[0].0 < w[1].0)
}

/// Whether all lengths are finite and at least `low`.
fn all_from(low: f64, knots: &[(u64, f64)]) -> bool {
    knots.iter().all(|k| k.1 >= low && k.1.is_finite())
}

fn log_uniform(min: u64, max: u64, key: Key) -> u64 {
    let (a, b) = ((min as f64).ln(), (max as f64).ln());
    ((a + (b - a) * key.uniform()).exp() as u64).clamp(min, (max - 1).max(min))
}

fn interpolate(knots: &[(u64, f64)], at: u64) -> f64 {
    let next = knots.partition_point(|k| k.0 <= at);
    if next == 0 {
        return knots[0].1;
    }
    let Some(&(x1, y1)) = knots.get(next) else {
        return knots[next - 1].1;
    };
    let (x0, y0) = knots[next - 1];
    y0 + (y1 - y0) * (at - x0) as f64 / (x1 - x0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_uniform_stays_in_range_and_has_the_right_median() {
        let s = TruncationSchedule::LogUniform { min: 10, max: 1000 };
        let mut draws: Vec<u64> = (0..4000).map(|i| s.length(0, Key::new(1).fold_in(i)).unwrap()).collect();
        draws.sort_unstable();
        assert!(draws[0] >= 10 && draws[3999] < 1000);
        // The median of exp U(ln 10, ln 1000) is 100; its standard error here is about 3.6.
        assert!((draws[2000] as f64 - 100.0).abs() < 15.0, "{}", draws[2000]);
    }

    #[test]
    fn scheduled_interpolates_between_knots() {
        let s =
            TruncationSchedule::Scheduled { knots: vec![(0, 10.0), (100, 100.0)], std: 0.0, min_length: 1 };
        let at = |t| s.length(t, Key::new(0)).unwrap();
        assert_eq!([at(0), at(50), at(100), at(1000)], [10, 55, 100, 100]);
        let noisy = TruncationSchedule::Scheduled { knots: vec![(0, 20.0)], std: 50.0, min_length: 7 };
        let draws: Vec<u64> = (0..100).map(|i| noisy.length(0, Key::new(i)).unwrap()).collect();
        assert!(draws.iter().all(|&d| d >= 7) && draws.contains(&7) && draws.iter().any(|&d| d > 20));
    }

    #[test]
    fn a_growing_schedule_is_log_uniform_with_the_upper_end_of_the_moment() {
        let s = TruncationSchedule::Growing { min: 10, knots: vec![(0, 20.0), (100, 1000.0)] };
        for (outer_step, max) in [(0, 20), (50, 510), (100, 1000), (900, 1000)] {
            let fixed = TruncationSchedule::LogUniform { min: 10, max };
            for i in 0..50 {
                let key = Key::new(3).fold_in(i);
                assert_eq!(s.length(outer_step, key), fixed.length(outer_step, key));
            }
        }
        let flat = TruncationSchedule::Growing { min: 7, knots: vec![(0, 7.0)] };
        assert_eq!(flat.length(0, Key::new(1)), Some(7));
    }

    #[test]
    fn told_lengths_are_absent_wrong_and_right_as_often_as_said() {
        let told = ToldLength::Mixed { absent: 0.25, wrong: 0.25, factor: 4.0 };
        told.validate().unwrap();
        let draws: Vec<Option<u64>> = (0..4000).map(|i| told.told(Some(400), Key::new(i))).collect();
        let part = |f: &dyn Fn(u64) -> bool| {
            draws.iter().filter(|d| d.is_some_and(f)).count() as f64 / draws.len() as f64
        };
        let absent = draws.iter().filter(|d| d.is_none()).count() as f64 / draws.len() as f64;
        // The standard error of a part is at most 0.008.
        assert!((absent - 0.25).abs() < 0.03, "{absent}");
        assert!((part(&|n| n < 399) - 0.125).abs() < 0.03 && (part(&|n| n > 401) - 0.125).abs() < 0.03);
        assert!(draws.iter().flatten().all(|n| (100..=1600).contains(n)));
        assert_eq!(ToldLength::Exact.told(Some(7), Key::new(0)), Some(7));
        assert_eq!(told.told(None, Key::new(0)), None);
        for (absent, wrong, factor) in
            [(-0.1, 0.0, 1.0), (0.6, 0.6, 2.0), (0.1, 0.1, 0.5), (f64::NAN, 0.0, 2.0)]
        {
            assert!(ToldLength::Mixed { absent, wrong, factor }.validate().is_err());
        }
    }

    #[test]
    fn impossible_schedules_are_refused() {
        for bad in [
            TruncationSchedule::Constant(0),
            TruncationSchedule::LogUniform { min: 0, max: 10 },
            TruncationSchedule::LogUniform { min: 10, max: 9 },
            TruncationSchedule::Scheduled { knots: vec![], std: 0.0, min_length: 1 },
            TruncationSchedule::Scheduled { knots: vec![(5, 1.0), (5, 2.0)], std: 0.0, min_length: 1 },
            TruncationSchedule::Growing { min: 1, knots: vec![] },
            TruncationSchedule::Growing { min: 0, knots: vec![(0, 5.0)] },
            TruncationSchedule::Growing { min: 10, knots: vec![(0, 20.0), (9, 5.0)] },
            TruncationSchedule::Growing { min: 10, knots: vec![(0, f64::NAN)] },
            TruncationSchedule::Growing { min: 10, knots: vec![(0, f64::INFINITY)] },
            TruncationSchedule::Scheduled { knots: vec![(0, f64::NAN)], std: 0.0, min_length: 1 },
            TruncationSchedule::Scheduled { knots: vec![(0, -5.0)], std: 0.0, min_length: 1 },
            TruncationSchedule::Scheduled { knots: vec![(0, 5.0)], std: -1.0, min_length: 1 },
            TruncationSchedule::Scheduled { knots: vec![(0, 5.0)], std: 0.0, min_length: 0 },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
        assert!(TruncationSchedule::NeverEnding.validate().is_ok());
    }
}
