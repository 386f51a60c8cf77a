//! How meta-losses become the meta-objective: on which scale a loss counts, and which part of a run.
//!
//! The mean of raw losses is dominated by the first steps, where losses are large: an optimizer
//! trained on it is fast early and stops improving late. On a logarithmic scale, halving the loss is
//! worth the same at every step and in every task, whatever its units, but a rare spike of the loss costs
//! little, and optimizers trained on it spike. A small power of the loss lies between. An [`Emphasis`] then
//! says which part of a run matters more.

use outerloop_core::{Error, FlatTask, Float, Result};
use serde::{Deserialize, Serialize};

/// What a step contributes: `e(t/T) · s(N(m))` with the raw meta-loss `m`, the task's normalizer `N`,
/// the scale `s` and the emphasis `e`.
///
/// Bias: every estimator estimates the gradient of this objective; of the mean raw loss only with the
/// defaults. Summing logarithms favours what is likely over what is best on average: the geometric
/// mean of losses, not the arithmetic one.
///
/// ```
/// use outerloop_outer::objective::{Emphasis, LossScale, Objective};
///
/// let o = Objective { scale: LossScale::Log { floor: 1e-4, ceiling: 10.0 }, emphasis: Emphasis::Power(1.0) };
/// // A hundredth of the loss is worth ln 100 everywhere; the end of a run counts double, its start nothing.
/// assert!((o.scale.apply(1.0) - o.scale.apply(0.01) - 100f64.ln()).abs() < 0.01);
/// assert_eq!(o.emphasis.weight(99, Some(100)), 2.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Default: losses as they are.
    pub scale: LossScale,
    /// Default: all steps alike.
    pub emphasis: Emphasis,
}

/// The scale on which normalized losses count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum LossScale {
    /// As they are.
    #[default]
    Linear,
    /// `ln(min(max(x, 0), ceiling) + floor)`; NaN counts as the ceiling, so that divergence is the worst
    /// that can happen and not a run that is left out.
    Log {
        /// Losses far below this count alike, so that noise of tiny losses does not dominate. Positive.
        floor: f64,
        /// Losses above this count alike. Above the floor, finite.
        ceiling: f64,
    },
    /// [`LossScale::Log`] for tasks whose losses may have any size: floor and ceiling as they are for a run
    /// that starts between their geometric mean and the ceiling, and in units of the run's first loss for
    /// any other ([`Self::fitted`]). A run that starts above a fixed ceiling, or at its floor, teaches nothing.
    FittedLog {
        /// As above; below 1, so that a run's start lies above its floor.
        floor: f64,
        /// As above; above 1.
        ceiling: f64,
    },
    /// `(min(max(x, 0), ceiling) + floor)^power`; NaN counts as the ceiling.
    Power {
        /// Above 0.
        power: f64,
        /// As above.
        floor: f64,
        /// As above.
        ceiling: f64,
    },
}

/// The two ends of a [`LossScale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleEnd {
    /// At or below the floor.
    Floor,
    /// At or above the ceiling, or NaN.
    Ceiling,
}

/// How much a step counts by its place in the run; mean 1 over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Emphasis {
    /// All steps alike.
    #[default]
    Uniform,
    /// `(p + 1) ((t + 1) / T)^p` for step `t` of a run of length `T`, `p >= 0`: later steps count more,
    /// and steps behind the last ([`crate::InitialOffset::Counter`]) as the last. Runs without end count all
    /// steps alike.
    Power(f64),
}

impl LossScale {
    /// Floor and ceiling.
    fn limits(self) -> Option<[f64; 2]> {
        match self {
            LossScale::Linear => None,
            LossScale::Log { floor, ceiling }
            | LossScale::FittedLog { floor, ceiling }
            | LossScale::Power { floor, ceiling, .. } => Some([floor, ceiling]),
        }
    }

    /// The scale of one run, by its normalized loss before the first update. One that is not positive and
    /// finite has no size and changes nothing.
    #[must_use]
    pub fn fitted(self, first: f64) -> Self {
        let LossScale::FittedLog { floor, ceiling } = self else { return self };
        let is_within = (floor * ceiling).sqrt() <= first && first <= ceiling;
        let unit = if is_within || !(first > 0.0 && first.is_finite()) { 1.0 } else { first };
        LossScale::Log { floor: unit * floor, ceiling: unit * ceiling }
    }

    /// At which end of the scale a normalized loss lies, where a change of it counts little or nothing.
    pub fn end(self, loss: f64) -> Option<ScaleEnd> {
        let [floor, ceiling] = self.limits()?;
        match loss {
            _ if loss.is_nan() || loss >= ceiling => Some(ScaleEnd::Ceiling),
            _ if loss <= floor => Some(ScaleEnd::Floor),
            _ => None,
        }
    }

    /// A normalized loss on this scale.
    pub fn apply(self, loss: f64) -> f64 {
        let Some([floor, ceiling]) = self.limits() else { return loss };
        let x = if loss.is_nan() { ceiling } else { loss.clamp(0.0, ceiling) } + floor;
        match self {
            LossScale::Power { power, .. } => x.powf(power),
            _ => x.ln(),
        }
    }

    /// The derivative of [`Self::apply`].
    pub fn slope(self, loss: f64) -> f64 {
        let Some([floor, ceiling]) = self.limits() else { return 1.0 };
        match self {
            _ if !(loss > 0.0 && loss < ceiling) => 0.0,
            LossScale::Power { power, .. } => power * (loss + floor).powf(power - 1.0),
            _ => 1.0 / (loss + floor),
        }
    }
}

impl Emphasis {
    /// The weight of step `step` (from 0) of a run of `length` steps; `None`: a run without end.
    pub fn weight(self, step: u64, length: Option<u64>) -> f64 {
        match (self, length) {
            (Emphasis::Power(p), Some(length)) => {
                (p + 1.0) * ((step + 1) as f64 / length as f64).min(1.0).powf(p)
            }
            _ => 1.0,
        }
    }
}

impl Objective {
    /// Errors on numbers out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |why: &str| Err(Error::invalid(format!("objective {self:?}"), why));
        if let Some([floor, ceiling]) = self.scale.limits() {
            if !(floor > 0.0 && ceiling > floor && ceiling.is_finite()) {
                return bad("the scale needs 0 < floor < ceiling < ∞");
            }
        }
        if let LossScale::FittedLog { floor, ceiling } = self.scale {
            if !(floor < 1.0 && ceiling > 1.0) {
                return bad("a fitted scale needs floor < 1 < ceiling: in units of the run's start");
            }
        }
        if let LossScale::Power { power, .. } = self.scale {
            if !(power > 0.0 && power.is_finite()) {
                return bad("the power of the scale must be positive and finite");
            }
        }
        match self.emphasis {
            Emphasis::Power(p) if !(p >= 0.0 && p.is_finite()) => {
                bad("the power must be finite and not negative")
            }
            _ => Ok(()),
        }
    }

    /// The objective of one run, by the raw loss of its first batch at the initial parameters.
    #[must_use]
    pub fn fitted<E: Float>(self, task: &dyn FlatTask<E>, first: f64) -> Self {
        Objective { scale: self.scale.fitted(task.normalizer(first)), ..self }
    }

    /// A raw meta-loss on the scale, before the emphasis.
    pub fn scaled<E: Float>(&self, task: &dyn FlatTask<E>, raw: f64) -> f64 {
        self.scale.apply(task.normalizer(raw))
    }

    /// The derivative of [`Self::scaled`]. The normalizer's is taken by central differences of a scalar
    /// function in f64.
    pub fn slope<E: Float>(&self, task: &dyn FlatTask<E>, raw: f64) -> f64 {
        // Relative, since losses may be tiny; absolute at 0.
        let h = 1e-5 * raw.abs() + 1e-12;
        let normalizer = (task.normalizer(raw + h) - task.normalizer(raw - h)) / (2.0 * h);
        normalizer * self.scale.slope(task.normalizer(raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::{Key, Layout, Params};
    use std::sync::Arc;

    const LOG: LossScale = LossScale::Log { floor: 1e-4, ceiling: 5.0 };

    const ROOT: LossScale = LossScale::Power { power: 0.25, floor: 1e-4, ceiling: 5.0 };

    /// A task of which only the normalizer is asked for: twice the loss, at most 8.
    struct Doubled;
    impl FlatTask<f64> for Doubled {
        fn name(&self) -> String {
            "doubled".into()
        }
        fn layout(&self) -> Arc<Layout> {
            unreachable!("not trained")
        }
        fn init(&self, _: Key) -> Params<f64> {
            unreachable!("not trained")
        }
        fn init_state(&self) -> Vec<f64> {
            Vec::new()
        }
        fn evaluator(&self) -> Box<dyn outerloop_core::Evaluator<f64>> {
            unreachable!("not trained")
        }
        fn normalizer(&self, loss: f64) -> f64 {
            (2.0 * loss).clamp(0.0, 8.0)
        }
    }

    #[test]
    fn the_logarithm_saturates_at_both_ends_and_takes_divergence_as_the_worst() {
        let top = 5.0001f64.ln();
        for worst in [5.0, 1e9, f64::INFINITY, f64::NAN] {
            assert_eq!(LOG.apply(worst), top, "{worst}");
        }
        assert_eq!([LOG.apply(0.0), LOG.apply(-3.0)], [1e-4f64.ln(); 2]);
        assert!((LOG.apply(0.5) - LOG.apply(0.05) - 10f64.ln()).abs() < 2e-3);
        assert!(LossScale::Linear.apply(f64::NAN).is_nan());
        assert!((ROOT.apply(0.5) / ROOT.apply(0.05) - 10f64.powf(0.25)).abs() < 1e-3);
        assert_eq!(ROOT.apply(f64::NAN), 5.0001f64.powf(0.25));
    }

    #[test]
    fn emphasis_has_mean_one_over_a_run() {
        for p in [0.0, 1.0, 3.0] {
            let mean = |n: u64| (0..n).map(|t| Emphasis::Power(p).weight(t, Some(n))).sum::<f64>() / n as f64;
            // The sum exceeds the integral by p/(2n) to first order.
            assert!((mean(1000) - 1.0).abs() < 0.6 * p.max(0.1) * (p + 1.0) / 1000.0, "{p}: {}", mean(1000));
        }
        assert_eq!(Emphasis::Power(2.0).weight(7, None), 1.0);
        assert_eq!(Emphasis::Uniform.weight(3, Some(9)), 1.0);
    }

    #[test]
    fn emphasis_stays_in_its_range_behind_an_offset() {
        // A lane whose counter starts behind the end of its first run.
        assert_eq!(Emphasis::Power(1.0).weight(315, Some(10)), 2.0);
        assert_eq!(Emphasis::Power(3.0).weight(10, Some(10)), 4.0);
    }

    #[test]
    fn a_fitted_scale_moves_to_runs_that_start_elsewhere() {
        let fitted = |first| LossScale::FittedLog { floor: 1e-4, ceiling: 4.0 }.fitted(first);
        let unmoved = LossScale::Log { floor: 1e-4, ceiling: 4.0 };
        // Between √(1e-4 · 4) = 0.02 and 4, and what has no size.
        for first in [0.021, 1.0, 4.0, 0.0, -7.0, f64::NAN, f64::INFINITY] {
            assert_eq!(fitted(first), unmoved, "{first}");
        }
        for first in [1e-20, 0.019, 4.1, 2e7] {
            let scale = fitted(first);
            assert_eq!(scale, LossScale::Log { floor: 1e-4 * first, ceiling: 4.0 * first });
            assert!(scale.slope(first) > 0.0 && scale.end(first).is_none(), "{first}");
        }
        assert_eq!(ROOT.fitted(1e9), ROOT);
    }

    #[test]
    fn the_ends_are_where_losses_count_alike() {
        let at = |x| LOG.end(x);
        assert_eq!([at(f64::NAN), at(f64::INFINITY), at(5.0)], [Some(ScaleEnd::Ceiling); 3]);
        assert_eq!([at(-1.0), at(0.0), at(1e-4)], [Some(ScaleEnd::Floor); 3]);
        assert_eq!([at(2e-4), at(4.9)], [None; 2]);
        assert_eq!(LossScale::Linear.end(f64::NAN), None);
    }

    #[test]
    fn the_slope_is_the_derivative_through_normalizer_and_scale() {
        for scale in [LossScale::Linear, LOG, ROOT] {
            let o = Objective { scale, ..Objective::default() };
            for x in [1e-6, 1e-4, 0.03, 1.0, 2.4, 3.9, 6.0] {
                let h = 1e-6 * x;
                let want = (o.scaled(&Doubled, x + h) - o.scaled(&Doubled, x - h)) / (2.0 * h);
                let got = o.slope(&Doubled, x);
                assert!(
                    (got - want).abs() <= 1e-6 * want.abs() + 1e-9,
                    "{scale:?} at {x}: {got}, not {want}"
                );
            }
        }
    }

    #[test]
    fn impossible_objectives_are_refused() {
        for (floor, ceiling) in [(0.0, 1.0), (1.0, 1.0), (f64::NAN, 1.0), (1e-3, f64::INFINITY)] {
            let o = Objective { scale: LossScale::Log { floor, ceiling }, ..Objective::default() };
            assert!(o.validate().is_err(), "{o:?}");
        }
        for (floor, ceiling) in [(1e-5, 1.0), (1.0, 3.0)] {
            let o = Objective { scale: LossScale::FittedLog { floor, ceiling }, ..Objective::default() };
            assert!(o.validate().unwrap_err().to_string().contains("floor < 1 < ceiling"), "{o:?}");
        }
        for p in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Objective { emphasis: Emphasis::Power(p), ..Objective::default() }.validate().is_err());
        }
        for power in [0.0, -1.0, f64::NAN] {
            let scale = LossScale::Power { power, floor: 1e-4, ceiling: 1.0 };
            assert!(Objective { scale, ..Objective::default() }.validate().is_err());
        }
        assert!(Objective { scale: LOG, emphasis: Emphasis::Power(1.0) }.validate().is_ok());
    }
}
