//! Numbers from training curves: smoothing, envelopes, speed-ups, performance profiles.
//!
//! A run with a non-finite loss is a failure: its loss is infinite from there on. It is never
//! dropped from a mean, a count or a ranking.

/// Decay of the smoothing average.
///
/// Reference: the normalizer of google/learned_optimization (`baselines/normalizers.py`), used for
/// Figure 1 of VeLO: Metz et al. 2022, arXiv:2211.09760.
pub const EMA_DECAY: f64 = 0.95;

/// Exponential moving average `mₜ = 0.95 mₜ₋₁ + 0.05 lₜ` from `m₀ = l₀`; infinite from the first
/// non-finite loss on.
pub fn smoothed(losses: &[f32]) -> Vec<f64> {
    let mut mean = None;
    losses
        .iter()
        .map(|&loss| {
            let loss = if loss.is_finite() { f64::from(loss) } else { f64::INFINITY };
            let next = mean.map_or(loss, |m: f64| EMA_DECAY * m + (1.0 - EMA_DECAY) * loss);
            mean = Some(next);
            next
        })
        .collect()
}

/// Mean of curves of equal length, point by point; empty for none.
pub fn mean_curve<C: AsRef<[f64]>>(curves: &[C]) -> Vec<f64> {
    let len = curves.iter().map(|c| c.as_ref().len()).min().unwrap_or(0);
    (0..len).map(|t| mean(curves.iter().map(|c| c.as_ref()[t]))).collect()
}

/// Arithmetic mean; NaN for none.
pub fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// The best of a sweep at every step: the lowest of `curves`, then the running minimum.
pub fn envelope<C: AsRef<[f64]>>(curves: &[C]) -> Vec<f64> {
    let len = curves.iter().map(|c| c.as_ref().len()).min().unwrap_or(0);
    let mut best = f64::INFINITY;
    (0..len)
        .map(|t| {
            best = curves.iter().map(|c| c.as_ref()[t]).fold(best, f64::min);
            best
        })
        .collect()
}

/// How many steps a curve needs for a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Steps {
    /// It reaches the loss here; between two steps by linear interpolation.
    At(f64),
    /// It does not reach it in this many steps, all that it has.
    MoreThan(f64),
}

impl Steps {
    /// The number, which for [`Self::MoreThan`] is a lower bound.
    pub fn at_least(self) -> f64 {
        match self {
            Steps::At(steps) | Steps::MoreThan(steps) => steps,
        }
    }
    /// The number, or infinity if the loss is not reached.
    pub fn or_infinity(self) -> f64 {
        match self {
            Steps::At(steps) => steps,
            Steps::MoreThan(_) => f64::INFINITY,
        }
    }
}

/// The first place where a falling curve (an [`envelope`]; entry `t` is the loss after `t` steps)
/// reaches `loss`. 0 if it starts there, or if `loss` is not finite: a failure is reached at once.
pub fn steps_to(curve: &[f64], loss: f64) -> Steps {
    if !loss.is_finite() {
        return Steps::At(0.0);
    }
    match curve.iter().position(|&l| l <= loss) {
        None => Steps::MoreThan(curve.len().saturating_sub(1) as f64),
        Some(0) => Steps::At(0.0),
        Some(t) => {
            let (before, at) = (curve[t - 1], curve[t]);
            // An infinite loss before the step: nothing to interpolate with.
            let part = if before.is_finite() { (before - loss) / (before - at) } else { 1.0 };
            Steps::At((t - 1) as f64 + part)
        }
    }
}

/// Losses below this multiple of the initial one count as equal to it: they differ by f32 rounding.
pub const LOSS_FLOOR: f64 = 1e-10;
/// Where losses are not all positive, the zero of ratios lies below the lowest one by this part of the
/// distance from the start to it.
pub const ZERO_MARGIN: f64 = 0.01;

/// On which scale the losses of one task are divided by each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RatioScale {
    /// What counts as a loss of 0.
    pub zero: f64,
    /// The least distance from `zero`, below which losses differ by rounding only; positive.
    pub floor: f64,
}

impl RatioScale {
    /// For a task that starts at the loss `start` and whose `lowest` loss of all runs is this: losses as they
    /// are, unless one is negative (a likelihood's, a bound's) or the start is 0. Then the ratios are of
    /// distances from a zero that lies [`ZERO_MARGIN`] below the lowest loss.
    pub fn new(start: f64, lowest: f64) -> Self {
        let zero = if (lowest >= 0.0 && start > 0.0) || !lowest.is_finite() {
            0.0
        } else {
            // Where nobody comes below the start, the size of the losses is the only unit there is.
            let units = [start - lowest, lowest.abs(), 1.0];
            lowest - ZERO_MARGIN * units.into_iter().find(|u| *u > 0.0 && u.is_finite()).unwrap_or(1.0)
        };
        let floor = LOSS_FLOOR * (start - zero);
        RatioScale { zero, floor: if floor.is_finite() { floor } else { LOSS_FLOOR } }
    }

    /// Distance of `loss` over that of `reference`, both at least the floor. A failed loss is infinitely worse
    /// than any, a failed reference infinitely worse than any finite loss: ratio 0.
    pub fn ratio(&self, loss: f64, reference: f64) -> f64 {
        match (loss.is_finite(), reference.is_finite()) {
            (false, _) => f64::INFINITY,
            (true, false) => 0.0,
            _ => (loss - self.zero).max(self.floor) / (reference - self.zero).max(self.floor),
        }
    }
}

/// One optimizer's performance profile: the fraction of tasks on which it needs at most `tau` times
/// the steps of the fastest.
///
/// `steps[task][optimizer]`, infinite where the target is not reached. A task that nobody solves
/// counts against everybody.
///
/// Reference: Dolan and Moré 2002, arXiv:cs/0102001; AlgoPerf, Dahl et al. 2023, arXiv:2306.07179.
pub fn performance_profile(steps: &[Vec<f64>], optimizer: usize, tau: f64) -> f64 {
    let within = |task: &&Vec<f64>| {
        let best = task.iter().copied().fold(f64::INFINITY, f64::min);
        task[optimizer].is_finite() && task[optimizer] <= tau * best
    };
    steps.iter().filter(within).count() as f64 / steps.len().max(1) as f64
}

/// AlgoPerf's score: the mean height of the performance profile from `tau` 1 to `max_tau`, exactly
/// (the profile is a step function).
pub fn profile_score(steps: &[Vec<f64>], optimizer: usize, max_tau: f64) -> f64 {
    // A task reached at ratio r adds its 1/n from r on.
    let area = |task: &Vec<f64>| {
        let best = task.iter().copied().fold(f64::INFINITY, f64::min);
        let ratio = if task[optimizer] == best { 1.0 } else { task[optimizer] / best };
        if best.is_finite() {
            (max_tau - ratio).max(0.0) / (max_tau - 1.0)
        } else {
            0.0
        }
    };
    mean(steps.iter().map(area))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;
    const INF: f64 = f64::INFINITY;

    #[test]
    fn smoothing_starts_at_the_first_loss_and_failures_stay() {
        let s = smoothed(&[2.0, 1.0, 0.0]);
        // 2, 0.95·2 + 0.05·1, 0.95·1.95 + 0
        for (got, want) in s.iter().zip([2.0, 1.95, 1.8525]) {
            assert!((got - want).abs() < 1e-12, "{s:?}");
        }
        assert_eq!(smoothed(&[1.0, NAN, 1.0])[1..], [INF, INF]);
        assert_eq!(smoothed(&[1.0, f32::NEG_INFINITY])[1], INF);
        assert!(smoothed(&[]).is_empty());
    }

    #[test]
    fn an_envelope_takes_the_best_rate_at_every_step_and_never_rises() {
        let fast = [4.0, 2.0, 2.5, 2.5];
        let slow = [4.0, 3.0, 2.2, 1.0];
        let failed = [4.0, 0.5, INF, INF];
        assert_eq!(envelope(&[&fast[..], &slow]), [4.0, 2.0, 2.0, 1.0]);
        // What was reached before the failure was reached.
        assert_eq!(envelope(&[&fast[..], &slow, &failed]), [4.0, 0.5, 0.5, 0.5]);
        assert_eq!(mean_curve(&[&fast[..], &failed]), [4.0, 1.25, INF, INF]);
    }

    #[test]
    fn steps_are_interpolated() {
        let curve = [4.0, 2.0, 2.0, 1.0];
        assert_eq!(steps_to(&curve, 5.0), Steps::At(0.0));
        assert_eq!(steps_to(&curve, 3.0), Steps::At(0.5));
        assert_eq!(steps_to(&curve, 2.0), Steps::At(1.0));
        assert_eq!(steps_to(&curve, 1.25), Steps::At(2.75));
        assert_eq!(steps_to(&curve, 0.9), Steps::MoreThan(3.0));
        assert_eq!(steps_to(&[INF, 2.0], 3.0), Steps::At(1.0));
        // A failure reaches nothing: speed-up 0.
        assert_eq!(steps_to(&curve, INF), Steps::At(0.0));
        assert_eq!(steps_to(&curve, f64::NAN), Steps::At(0.0));
        assert_eq!((Steps::MoreThan(3.0).at_least(), Steps::MoreThan(3.0).or_infinity()), (3.0, INF));
    }

    #[test]
    fn ratios_have_a_floor_and_failures_are_infinite() {
        let ratio = |loss, reference| RatioScale::new(10.0, 0.0).ratio(loss, reference);
        assert_eq!(ratio(1.0, 2.0), 0.5);
        assert_eq!(ratio(0.0, 0.0), 1.0);
        assert!((ratio(1.0, 0.0) - 1e9).abs() < 1.0);
        assert_eq!([ratio(INF, 2.0), ratio(f64::NAN, 2.0), ratio(INF, INF)], [INF; 3]);
        assert_eq!(ratio(1.0, INF), 0.0);
    }

    #[test]
    fn losses_below_zero_are_distances_from_below_the_lowest() {
        let scale = RatioScale::new(80.0, -20.0);
        assert_eq!(scale, RatioScale { zero: -21.0, floor: LOSS_FLOOR * 101.0 });
        assert_eq!(scale.ratio(-20.0, 79.0), 0.01);
        assert_eq!(scale.ratio(-10.0, -10.0), 1.0);
        // Positive losses are as they are.
        assert_eq!(RatioScale::new(80.0, 1e-3).zero, 0.0);
        assert_eq!(RatioScale::new(1.0, 0.0).zero, 0.0);
        // Nobody comes below the start, or nobody gets anywhere.
        for (start, lowest) in [(-2.0, -2.0), (0.0, 0.0), (INF, INF), (INF, -3.0), (INF, 2.0)] {
            let scale = RatioScale::new(start, lowest);
            assert!(scale.floor > 0.0 && scale.zero.is_finite(), "{scale:?}");
            assert_eq!(scale.ratio(-1.0, -1.0), 1.0);
            assert!(scale.ratio(4.0, 3.0) > 1.0, "{scale:?}");
        }
    }

    #[test]
    fn profiles_count_tasks_within_a_factor_of_the_fastest() {
        // Three tasks, two optimizers; the last task nobody solves.
        let steps = [vec![10.0, 25.0], vec![30.0, 20.0], vec![INF, INF]];
        let profile = |o, tau| performance_profile(&steps, o, tau);
        assert_eq!([profile(0, 1.0), profile(0, 1.5), profile(0, 100.0)], [1.0, 2.0, 2.0].map(|n| n / 3.0));
        assert_eq!([profile(1, 1.0), profile(1, 2.4), profile(1, 2.5)], [1.0, 1.0, 2.0].map(|n| n / 3.0));
        // Optimizer 0: area 3 from 1 to 4, and 2.5 from 1.5 on, of 3 each, over three tasks.
        assert!((profile_score(&steps, 0, 4.0) - (3.0 + 2.5) / 9.0).abs() < 1e-12);
        assert!((profile_score(&steps, 1, 4.0) - (1.5 + 3.0) / 9.0).abs() < 1e-12);
        // Solved only by the other: nothing.
        assert_eq!(performance_profile(&[vec![INF, 5.0]], 0, 1e9), 0.0);
        assert_eq!(profile_score(&[vec![INF, 5.0]], 0, 4.0), 0.0);
        assert_eq!(profile_score(&[vec![0.0, 5.0]], 0, 4.0), 1.0);
    }
}
