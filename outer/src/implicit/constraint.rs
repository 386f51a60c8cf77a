//! Ranges of hyperparameters, as transforms with their derivative.

use outerloop_core::{Error, Result};

/// Where hyperparameters may lie: `λ = T(u)` of a free number `u`, which is what the hyper optimizer moves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Constraint {
    /// Anywhere: `λ = u`.
    #[default]
    Free,
    /// `λ > 0`: `λ = e^u`.
    Positive,
    /// `low < λ < high`: `λ = low + (high − low) / (1 + e^−u)`.
    Between {
        /// The lower end.
        low: f64,
        /// The upper end.
        high: f64,
    },
}

impl Constraint {
    /// Errors on an empty range.
    ///
    /// # Errors
    /// Its ends.
    pub fn validate(self) -> Result<()> {
        match self {
            Constraint::Between { low, high } if !(low < high && (high - low).is_finite()) => {
                Err(Error::invalid("constraint", format!("expected low < high, got {low} and {high}")))
            }
            _ => Ok(()),
        }
    }

    /// `T(u)` and `T'(u)`.
    pub fn apply(self, u: f32) -> (f32, f32) {
        match self {
            Constraint::Free => (u, 1.0),
            Constraint::Positive => (u.exp(), u.exp()),
            Constraint::Between { low, high } => {
                let (low, width) = (low as f32, (high - low) as f32);
                let s = 1.0 / (1.0 + (-u).exp());
                (low + width * s, width * s * (1.0 - s))
            }
        }
    }

    /// The `u` of a λ; NaN outside of the range.
    pub fn invert(self, lambda: f32) -> f32 {
        match self {
            Constraint::Free => lambda,
            Constraint::Positive => lambda.ln(),
            Constraint::Between { low, high } => {
                let (low, high) = (low as f32, high as f32);
                ((lambda - low) / (high - lambda)).ln()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_stay_in_range_invert_and_have_their_slope() {
        for c in [Constraint::Free, Constraint::Positive, Constraint::Between { low: -2.0, high: 3.0 }] {
            c.validate().unwrap();
            for u in [-3.0f32, -0.4, 0.0, 1.7] {
                let (lambda, slope) = c.apply(u);
                assert!((c.invert(lambda) - u).abs() < 1e-5, "{c:?} {u}");
                let h = 1e-2;
                let difference = (c.apply(u + h).0 - c.apply(u - h).0) / (2.0 * h);
                assert!((difference - slope).abs() < 1e-3 * (1.0 + slope), "{c:?} {u}: {difference} {slope}");
                assert!(c != Constraint::Positive || lambda > 0.0);
                assert!(!matches!(c, Constraint::Between { .. }) || (-2.0..3.0).contains(&lambda));
            }
        }
        assert!(Constraint::Between { low: 1.0, high: 1.0 }.validate().is_err());
        assert!(Constraint::Positive.invert(-1.0).is_nan());
    }
}
