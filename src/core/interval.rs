//! Ranges of settings.

use crate::{Error, Result};
use std::fmt;

/// A range of numbers that a setting may have. Settings are finite: an end at ∞ is never included.
///
/// ```
/// use outerloop_core::Interval;
/// let error = Interval::DECAY.check("adam: beta1", 1.5).unwrap_err();
/// assert_eq!(error.to_string(), "adam: beta1: expected a number in [0, 1), got 1.5");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The least number.
    low: End,
    /// The largest.
    high: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Included(f64),
    Excluded(f64),
}
use End::{Excluded, Included};

impl Interval {
    /// `[0, 1)`: what is left of a running average after one step.
    pub const DECAY: Self = Interval { low: Included(0.0), high: Excluded(1.0) };
    /// `[0, 1]`: a share of something.
    pub const FRACTION: Self = Interval { low: Included(0.0), high: Included(1.0) };
    /// `[0, ∞)`: a rate, a weight decay, an ε.
    pub const NOT_NEGATIVE: Self = Interval::at_least(0.0);
    /// `(0, ∞)`: a bound, or what is divided by.
    pub const POSITIVE: Self = Interval { low: Excluded(0.0), high: Excluded(f64::INFINITY) };
    /// `[1, ∞)`: a number of units, steps or calls.
    pub const COUNT: Self = Interval::at_least(1.0);
    /// `(-∞, ∞)`.
    pub const FINITE: Self = Interval { low: Excluded(f64::NEG_INFINITY), high: Excluded(f64::INFINITY) };

    /// `[low, ∞)`.
    pub const fn at_least(low: f64) -> Self {
        Interval { low: Included(low), high: Excluded(f64::INFINITY) }
    }

    /// Whether `x` lies inside; NaN never does.
    pub fn contains(self, x: f64) -> bool {
        let above = match self.low {
            Included(low) => low <= x,
            Excluded(low) => low < x,
        };
        let below = match self.high {
            Included(high) => x <= high,
            Excluded(high) => x < high,
        };
        above && below
    }

    /// Refuses the setting `what` if `x` lies outside.
    ///
    /// # Errors
    /// Setting, range, and `x`.
    pub fn check(self, what: &str, x: f64) -> Result<()> {
        if self.contains(x) {
            return Ok(());
        }
        let expected = format!("a number in {self}");
        Err(Error::Mismatch { what: what.into(), expected, got: x.to_string() })
    }

    /// Refuses the list `what` if it is empty or a number lies outside.
    ///
    /// # Errors
    /// Setting, range, and what came.
    pub fn check_all(self, what: &str, list: &[f64]) -> Result<()> {
        if list.is_empty() {
            let expected = format!("at least one number in {self}");
            return Err(Error::Mismatch { what: what.into(), expected, got: "none".into() });
        }
        list.iter().enumerate().try_for_each(|(i, x)| self.check(&format!("{what}[{i}]"), *x))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ∞ as it is written in formulas.
        let number = |x: f64| if x.is_finite() { x.to_string() } else { x.to_string().replace("inf", "∞") };
        match self.low {
            Included(low) => write!(f, "[{}, ", number(low))?,
            Excluded(low) => write!(f, "({}, ", number(low))?,
        }
        match self.high {
            Included(high) => write!(f, "{}]", number(high)),
            Excluded(high) => write!(f, "{})", number(high)),
        }
    }
}

/// Checks the settings of `owner`, one `(name, value, range)` each.
///
/// # Errors
/// The first that is out of its range.
pub fn check_settings<'a>(
    owner: &str,
    settings: impl IntoIterator<Item = (&'a str, f64, Interval)>,
) -> Result<()> {
    settings.into_iter().try_for_each(|(name, x, range)| range.check(&format!("{owner}: {name}"), x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_belong_to_a_range_or_not() {
        let inside =
            |range: Interval| [f64::NAN, -1.0, 0.0, 0.5, 1.0, 2.0, f64::INFINITY].map(|x| range.contains(x));
        let [f, t] = [false, true];
        assert_eq!(inside(Interval::DECAY), [f, f, t, t, f, f, f]);
        assert_eq!(inside(Interval::FRACTION), [f, f, t, t, t, f, f]);
        assert_eq!(inside(Interval::NOT_NEGATIVE), [f, f, t, t, t, t, f]);
        assert_eq!(inside(Interval::POSITIVE), [f, f, f, t, t, t, f]);
        assert_eq!(inside(Interval::COUNT), [f, f, f, f, t, t, f]);
        assert_eq!(inside(Interval::FINITE), [f, t, t, t, t, t, f]);
    }

    #[test]
    fn messages_give_setting_range_and_value() {
        let settings = [("rate", 1.0, Interval::NOT_NEGATIVE), ("clip", 0.0, Interval::POSITIVE)];
        let error = check_settings("x", settings).unwrap_err().to_string();
        assert_eq!(error, "x: clip: expected a number in (0, ∞), got 0");
        let error = Interval::DECAY.check_all("decays", &[0.9, 1.0]).unwrap_err().to_string();
        assert_eq!(error, "decays[1]: expected a number in [0, 1), got 1");
        let error = Interval::DECAY.check_all("decays", &[]).unwrap_err().to_string();
        assert_eq!(error, "decays: expected at least one number in [0, 1), got none");
    }
}
