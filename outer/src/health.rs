//! Whether a run learns: what its meta-gradients and losses say about its settings.

use crate::objective::ScaleEnd;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Outer steps before there is anything to say.
const ENOUGH: u64 = 20;

/// Inner steps whose loss lay at an end of the objective's scale, where a change of it counts little or
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saturated {
    /// At the floor.
    pub floor: u64,
    /// At the ceiling.
    pub ceiling: u64,
}

impl Saturated {
    pub(crate) fn count(&mut self, end: Option<ScaleEnd>) {
        match end {
            Some(ScaleEnd::Floor) => self.floor += 1,
            Some(ScaleEnd::Ceiling) => self.ceiling += 1,
            None => {}
        }
    }
}

impl std::ops::Add for Saturated {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Saturated { floor: self.floor + other.floor, ceiling: self.ceiling + other.ceiling }
    }
}

/// Counts over a whole run of steps that taught nothing; beside those of
/// [`LearnerState`](crate::LearnerState), from which its warnings follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Outer steps with a meta-gradient of exactly zero.
    pub zero: u64,
    /// Outer steps with a meta-gradient of which at least half the elements were clipped.
    pub clipped: u64,
    /// Inner steps at an end of the objective's scale.
    pub saturated: Saturated,
}

/// A sign that a run learns nothing, or not what was asked for: so many steps of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Most meta-gradients are exactly zero.
    Zero(u64, u64),
    /// Most meta-gradients are clipped.
    Clipped(u64, u64),
    /// Some outer steps were left out.
    Skipped(u64, u64),
    /// Most losses lie at the floor of the objective's scale.
    Floor(u64, u64),
    /// Most losses lie at its ceiling.
    Ceiling(u64, u64),
}

impl Health {
    /// What is wrong after so many outer steps, of which some were skipped, and inner steps; the first 20
    /// outer steps say nothing.
    pub(crate) fn warnings(self, outer_steps: u64, skipped: u64, inner_steps: u64) -> Vec<Warning> {
        let Health { zero, clipped, saturated } = self;
        if outer_steps < ENOUGH {
            return Vec::new();
        }
        let mostly = |n: u64, of: u64| 2 * n > of;
        let signs = [
            (mostly(saturated.ceiling, inner_steps), Warning::Ceiling(saturated.ceiling, inner_steps)),
            (mostly(saturated.floor, inner_steps), Warning::Floor(saturated.floor, inner_steps)),
            (mostly(zero, outer_steps), Warning::Zero(zero, outer_steps)),
            (mostly(clipped, outer_steps), Warning::Clipped(clipped, outer_steps)),
            (skipped > 0, Warning::Skipped(skipped, outer_steps)),
        ];
        signs.into_iter().filter(|(is_so, _)| *is_so).map(|(_, warning)| warning).collect()
    }
}

impl Warning {
    /// Whether both warn of the same, with whatever numbers.
    pub fn is_like(&self, other: &Warning) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, of, what, advice) = match self {
            Warning::Zero(n, of) => {
                (n, of, "meta-gradients are exactly zero", "larger `std`, or another objective or estimator")
            }
            Warning::Clipped(n, of) => {
                (n, of, "meta-gradients are clipped", "a higher `clip`, or a larger `std` or more tasks")
            }
            Warning::Skipped(n, of) => {
                (n, of, "outer steps were skipped, not finite", "a smaller outer learning rate or `std`")
            }
            Warning::Floor(n, of) => (
                n,
                of,
                "losses lie at the floor of the objective, where progress does not count",
                "a lower `floor`; for losses below zero the scale `Linear`",
            ),
            Warning::Ceiling(n, of) => (
                n,
                of,
                "losses lie at the ceiling of the objective, where progress does not count",
                "a higher `ceiling`, or the scale `FittedLog`",
            ),
        };
        write!(f, "{n} of {of} {what}; try {advice}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_half_of_the_steps_make_a_warning() {
        let warnings = |health: Health| health.warnings(100, 0, 1000);
        assert_eq!(warnings(Health::default()), []);
        let half = Health { zero: 50, clipped: 50, saturated: Saturated { floor: 500, ceiling: 500 } };
        assert_eq!(warnings(half), []);
        let more = Health { zero: 51, clipped: 51, ..half };
        assert_eq!(warnings(more), [Warning::Zero(51, 100), Warning::Clipped(51, 100)]);
        let at = |floor, ceiling| Health { saturated: Saturated { floor, ceiling }, ..Health::default() };
        assert_eq!(warnings(at(501, 0)), [Warning::Floor(501, 1000)]);
        assert_eq!(warnings(at(0, 501)), [Warning::Ceiling(501, 1000)]);
    }

    #[test]
    fn one_skipped_step_is_worth_a_word_and_a_young_run_is_not() {
        assert_eq!(Health::default().warnings(100, 1, 1000), [Warning::Skipped(1, 100)]);
        assert!(Warning::Skipped(1, 100).is_like(&Warning::Skipped(2, 200)));
        assert!(!Warning::Skipped(1, 100).is_like(&Warning::Zero(1, 100)));
        assert_eq!(Health { zero: 19, ..Health::default() }.warnings(19, 0, 0), []);
    }

    #[test]
    fn warnings_say_how_many_and_what_to_do() {
        let text = Warning::Ceiling(7, 9).to_string();
        assert!(text.starts_with("7 of 9 losses lie at the ceiling") && text.contains("FittedLog"), "{text}");
    }
}
