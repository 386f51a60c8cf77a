//! Learning rate schedules, evaluated in f64 at the 0-based step.

use outerloop_core::{check_settings, Error, Interval, Result};
use serde::{Deserialize, Serialize};

/// A learning rate as a function of the number of updates already done. A plain number converts to
/// [`Schedule::Constant`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Schedule {
    /// The same at every step.
    Constant(f64),
    /// Warm-up, plateau, half a cosine down.
    Cosine(Cosine),
    /// A straight line from `start` at step 0 to `end` at the last planned step.
    Linear {
        /// Value at step 0.
        start: f64,
        /// Value at `num_steps` and after.
        end: f64,
    },
    /// `initial (1 − decay)ˢ` at step s.
    Exponential {
        /// Value at step 0.
        initial: f64,
        /// Fraction lost per step.
        decay: f64,
    },
    /// `peak min(s/w, √(w/s))` at step s ≥ 1 (step 0 counts as 1), w the warm-up steps, at least 1.
    RampUpSqrtDecay {
        /// The largest value, reached at `warmup_steps`.
        peak: f64,
        /// Steps of linear ramp-up; 0: none.
        warmup_steps: f64,
    },
    /// Straight lines between points `(step, value)` in rising order; constant outside.
    PiecewiseLinear(Vec<(f64, f64)>),
}

/// Configuration of [`Schedule::Cosine`]. With T planned steps, W the end of the warm-up and
/// C = `constant_fraction` T: `peak s/W` for s < W, the peak until C, then
/// `min + (peak − min)(1 + cos(π (s − C)/(T − C)))/2`, where min = `min_mult` peak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cosine {
    /// The largest value; default 0.01.
    pub peak: f64,
    /// The final value as a multiple of the peak; default 0.
    pub min_mult: f64,
    /// End of the plateau as a fraction of the run; default 0.5.
    pub constant_fraction: f64,
    /// Warm-up as a fraction of the run; default 0.01.
    pub warmup_fraction: f64,
    /// Where the warm-up ends.
    pub warmup: WarmUp,
}

/// Where the warm-up of [`Cosine`] ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WarmUp {
    /// At `warmup_fraction` of the run.
    #[default]
    Proper,
    /// At `max(warmup_fraction, constant_fraction)` of the run if `warmup_fraction` is positive:
    /// learned_optimization ramps through the whole plateau.
    Reference,
}

impl Default for Cosine {
    fn default() -> Self {
        Cosine {
            peak: 0.01,
            min_mult: 0.0,
            constant_fraction: 0.5,
            warmup_fraction: 0.01,
            warmup: WarmUp::Proper,
        }
    }
}

impl From<f64> for Schedule {
    fn from(learning_rate: f64) -> Self {
        Schedule::Constant(learning_rate)
    }
}

impl From<Cosine> for Schedule {
    fn from(cosine: Cosine) -> Self {
        Schedule::Cosine(cosine)
    }
}

impl Schedule {
    /// The value at `step` (updates already done) of `num_steps` planned ones.
    ///
    /// # Panics
    /// If `num_steps` is `None` and the schedule depends on it ([`Self::needs_num_steps`]).
    #[track_caller]
    pub fn at(&self, step: u64, num_steps: Option<u64>) -> f64 {
        let s = step as f64;
        let total = || num_steps.expect("this learning rate schedule needs `num_steps` at init") as f64;
        match self {
            Schedule::Constant(lr) => *lr,
            Schedule::Cosine(c) => c.at(s, total()),
            Schedule::Linear { start, end } => start + (end - start) * (s / total().max(1.0)).min(1.0),
            Schedule::Exponential { initial, decay } => initial * (1.0 - decay).powf(s),
            Schedule::RampUpSqrtDecay { peak, warmup_steps } => {
                let (s, warmup_steps) = (s.max(1.0), warmup_steps.max(1.0));
                peak * (s / warmup_steps).min((warmup_steps / s).sqrt())
            }
            Schedule::PiecewiseLinear(points) => piecewise_linear(points, s),
        }
    }

    /// Whether the numbers of the schedule `what` make sense: rates that are finite and not negative, shares
    /// in `[0, 1]`, at least one point, and points that rise.
    ///
    /// # Errors
    /// The first number that is out of its range.
    pub fn validate(&self, what: &str) -> Result<()> {
        const RATE: Interval = Interval::NOT_NEGATIVE;
        let check = |settings: &[(&str, f64, Interval)]| check_settings(what, settings.iter().copied());
        match self {
            Schedule::Constant(rate) => RATE.check(what, *rate),
            Schedule::Cosine(c) => check(&[
                ("peak", c.peak, RATE),
                ("min_mult", c.min_mult, RATE),
                ("constant_fraction", c.constant_fraction, Interval::FRACTION),
                ("warmup_fraction", c.warmup_fraction, Interval::FRACTION),
            ]),
            Schedule::Linear { start, end } => check(&[("start", *start, RATE), ("end", *end, RATE)]),
            Schedule::Exponential { initial, decay } => {
                check(&[("initial", *initial, RATE), ("decay", *decay, Interval::FRACTION)])
            }
            Schedule::RampUpSqrtDecay { peak, warmup_steps } => {
                check(&[("peak", *peak, RATE), ("warmup_steps", *warmup_steps, RATE)])
            }
            Schedule::PiecewiseLinear(points) => {
                if points.is_empty() || !points.is_sorted_by(|a, b| a.0 < b.0) {
                    let expected = "at least one point, and steps that rise".into();
                    return Err(Error::Mismatch { what: what.into(), expected, got: format!("{points:?}") });
                }
                points.iter().try_for_each(|p| check(&[("step", p.0, RATE), ("value", p.1, RATE)]))
            }
        }
    }

    /// Whether the schedule is relative to the planned number of steps.
    pub fn needs_num_steps(&self) -> bool {
        matches!(self, Schedule::Cosine(_) | Schedule::Linear { .. })
    }
}

impl Cosine {
    fn at(&self, step: f64, total: f64) -> f64 {
        let s = step.min(total);
        let plateau = self.constant_fraction * total;
        let warmup = match self.warmup {
            WarmUp::Proper => self.warmup_fraction,
            WarmUp::Reference if self.warmup_fraction > 0.0 => {
                self.warmup_fraction.max(self.constant_fraction)
            }
            WarmUp::Reference => 0.0,
        } * total;
        if s < warmup {
            return self.peak * s / warmup;
        }
        let min = self.min_mult * self.peak;
        // A plateau to the end leaves nothing to decay over.
        let along = if total > plateau { (s.max(plateau) - plateau) / (total - plateau) } else { 0.0 };
        (self.peak - min) * ((std::f64::consts::PI * along).cos() / 2.0 + 0.5) + min
    }
}

fn piecewise_linear(points: &[(f64, f64)], s: f64) -> f64 {
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else {
        return 0.0;
    };
    if s <= first.0 {
        return first.1;
    }
    let after = points.iter().find(|p| s <= p.0);
    let before = points.iter().rev().find(|p| p.0 < s);
    match (before, after) {
        (Some(a), Some(b)) => a.1 + (s - a.0) * (b.1 - a.1) / (b.0 - a.0),
        _ => last.1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proper_warm_up_reaches_the_peak_before_the_plateau_ends() {
        let c = Cosine {
            peak: 2.0,
            min_mult: 0.1,
            constant_fraction: 0.5,
            warmup_fraction: 0.1,
            ..Cosine::default()
        };
        let at = |c: &Cosine, s| Schedule::from(c.clone()).at(s, Some(100));
        assert_eq!([0, 5, 10, 30, 50].map(|s| at(&c, s)), [0.0, 1.0, 2.0, 2.0, 2.0]);
        assert!((at(&c, 75) - 1.1).abs() < 1e-15 && (at(&c, 100) - 0.2).abs() < 1e-15);
        assert_eq!(at(&c, 1000), at(&c, 100));
        let reference = Cosine { warmup: WarmUp::Reference, ..c };
        assert_eq!([10, 25, 50].map(|s| at(&reference, s)), [0.4, 1.0, 2.0]);
    }

    #[test]
    fn straight_lines() {
        let line = Schedule::Linear { start: 1.0, end: 0.0 };
        assert_eq!([0, 2, 4, 9].map(|s| line.at(s, Some(4))), [1.0, 0.5, 0.0, 0.0]);
        let points = Schedule::PiecewiseLinear(vec![(2.0, 1.0), (4.0, 3.0), (8.0, 1.0)]);
        assert_eq!([0, 2, 3, 4, 6, 8, 99].map(|s| points.at(s, None)), [1.0, 1.0, 2.0, 3.0, 2.0, 1.0, 1.0]);
    }

    #[test]
    fn no_warm_up_starts_at_the_peak() {
        let rate = Schedule::RampUpSqrtDecay { peak: 2.0, warmup_steps: 0.0 };
        assert_eq!([0, 1, 4, 16].map(|s| rate.at(s, None)), [2.0, 2.0, 1.0, 0.5]);
        let rate = Schedule::from(Cosine { peak: 2.0, warmup_fraction: 0.0, ..Cosine::default() });
        assert_eq!(rate.at(0, Some(10)), 2.0);
    }

    #[test]
    fn schedules_without_sense_are_refused() {
        let cosine = |c: Cosine| Schedule::Cosine(c);
        let d = Cosine::default;
        for (schedule, range) in [
            (Schedule::Constant(-1.0), "[0, ∞)"),
            (Schedule::Constant(f64::NAN), "[0, ∞)"),
            (cosine(Cosine { peak: f64::INFINITY, ..d() }), "[0, ∞)"),
            (cosine(Cosine { warmup_fraction: 1.5, ..d() }), "[0, 1]"),
            (cosine(Cosine { constant_fraction: -0.1, ..d() }), "[0, 1]"),
            (Schedule::Linear { start: 1.0, end: -1.0 }, "[0, ∞)"),
            (Schedule::Exponential { initial: 1.0, decay: 1.5 }, "[0, 1]"),
            (Schedule::RampUpSqrtDecay { peak: 1.0, warmup_steps: -1.0 }, "[0, ∞)"),
            (Schedule::PiecewiseLinear(Vec::new()), "at least one point"),
            (Schedule::PiecewiseLinear(vec![(2.0, 1.0), (1.0, 1.0)]), "rise"),
            (Schedule::PiecewiseLinear(vec![(1.0, -1.0)]), "[0, ∞)"),
        ] {
            let error = schedule.validate("x: learning_rate").unwrap_err().to_string();
            assert!(error.starts_with("x: learning_rate") && error.contains(range), "{error}");
        }
        for schedule in [
            Schedule::Constant(0.0),
            cosine(Cosine { warmup_fraction: 0.0, constant_fraction: 1.0, ..d() }),
            Schedule::Exponential { initial: 0.0, decay: 1.0 },
            Schedule::PiecewiseLinear(vec![(0.0, 1.0)]),
        ] {
            schedule.validate("x").unwrap();
        }
    }
}
