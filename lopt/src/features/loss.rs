//! The training loss as features: averages at ten time scales, and where each stands between its best
//! value and the next slower average.
//!
//! Slots: `loss_means` and `loss_min`, ten numbers each. Reference: VeLO, Metz et al. 2022,
//! arXiv:2211.09760, appendix; `BufferLossAccumulators` of google/learned_optimization.

use crate::rule::Var;
use outerloop_core::Float;

/// Number of averages.
pub const AVERAGES: usize = 10;

/// Number of features: neighbouring pairs of averages.
pub const COUNT: usize = AVERAGES - 1;

/// `loss_min` before the first loss.
pub const NO_MINIMUM: f64 = 999_999_999_999.0;

/// Decays `exp(-1/h)` for h from 10 to `horizon` steps, evenly in the logarithm.
pub fn decays(horizon: u64) -> [f64; AVERAGES] {
    let top = (horizon.max(1) as f64).log10();
    std::array::from_fn(|i| {
        let exponent = 1.0 + (top - 1.0) * i as f64 / (AVERAGES - 1) as f64;
        (-1.0 / 10f64.powf(exponent)).exp()
    })
}

/// The next `(means, running minimum)` after the loss of update number `step` (0 for the first). A
/// loss above twice the largest average counts as that much; one that is no number as what the averages are.
pub fn update<E: Float>(
    [means, lowest]: [&Var<E>; 2],
    decays: &[f64; AVERAGES],
    loss: &Var<E>,
    step: u64,
) -> [Var<E>; 2] {
    if !num_traits::Float::is_finite(loss.data()[0]) {
        return [skipped(means, decays, step), lowest.clone()];
    }
    let is_first = lowest.data()[0] == E::of(NO_MINIMUM) && means.data().iter().all(|m| *m == E::of(0.0));
    if step > 0 && is_first {
        // What came before was no number: as if all had been this one.
        let means = loss * Var::constant(decays.map(|d| E::of(weight(d, step + 1))).to_vec());
        let lowest = lowest.min(&corrected(&means, decays, step + 1));
        return [means, lowest];
    }
    let rates = Var::constant(decays.map(|d| E::of(1.0 - d)).to_vec());
    let limit = match step {
        0 => loss.clone(),
        _ => corrected(means, decays, step + 1).largest(),
    };
    let loss = limit.abs().scale(2.0).min(loss);
    let kept = Var::constant(decays.map(E::of).to_vec());
    let means = means * kept + rates * loss;
    let lowest = lowest.min(&corrected(&means, decays, step + 1));
    [means, lowest]
}

/// The features after `steps` losses; all 0 for the first two.
pub fn features<E: Float>([means, lowest]: [&Var<E>; 2], decays: &[f64; AVERAGES], steps: u64) -> Var<E> {
    if steps <= 2 {
        return Var::constant(vec![E::of(0.0); COUNT]);
    }
    let means = corrected(means, decays, steps);
    let (fast, slow, lowest) = (means.slice(0..COUNT), means.slice(1..AVERAGES), lowest.slice(0..COUNT));
    let width = (slow - &lowest).max(&Var::scalar(1e-8));
    ((fast - lowest) / width).shift(-1.0).clip(-1.0, 1.0)
}

/// What `steps` losses weigh in a mean.
fn weight(decay: f64, steps: u64) -> f64 {
    1.0 - decay.powf(steps as f64)
}

/// The means over the weight that `steps` losses have had.
fn corrected<E: Float>(means: &Var<E>, decays: &[f64; AVERAGES], steps: u64) -> Var<E> {
    means * Var::constant(decays.map(|d| E::of(1.0 / weight(d, steps))).to_vec())
}

/// The means after one more loss that leaves the corrected ones what they are.
fn skipped<E: Float>(means: &Var<E>, decays: &[f64; AVERAGES], step: u64) -> Var<E> {
    match step {
        0 => means.clone(),
        _ => means * Var::constant(decays.map(|d| E::of(weight(d, step + 1) / weight(d, step))).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_loss_is_below_and_a_rising_one_above_its_past() {
        let decays = decays(1000);
        let run = |slope: f64| {
            let mut state = [Var::constant(vec![0.0; AVERAGES]), Var::constant(vec![NO_MINIMUM; AVERAGES])];
            for t in 0..30 {
                let loss = Var::scalar(2.0 + slope * f64::from(t));
                state = update([&state[0], &state[1]], &decays, &loss, t as u64);
            }
            features([&state[0], &state[1]], &decays, 30)
        };
        // Falling: each average is at its minimum, feature −1. Rising: the fast one leads, above −1.
        assert_eq!(run(-0.01).data(), [-1.0; COUNT]);
        assert!(run(0.01).data().iter().all(|f| *f > -1.0));
    }

    #[test]
    fn losses_that_are_no_numbers_change_no_average() {
        let decays = decays(1000);
        let run = |losses: &[f64]| {
            let mut state = [Var::constant(vec![0.0; AVERAGES]), Var::constant(vec![NO_MINIMUM; AVERAGES])];
            for (t, loss) in losses.iter().enumerate() {
                state = update([&state[0], &state[1]], &decays, &Var::scalar(*loss), t as u64);
            }
            let steps = losses.len() as u64;
            (corrected(&state[0], &decays, steps), state[1].clone())
        };
        let close =
            |a: &Var<f64>, b: &Var<f64>| a.data().iter().zip(b.data()).all(|(a, b)| (a - b).abs() < 1e-12);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (got, want) = (run(&[3.0, 2.0, bad]), run(&[3.0, 2.0]));
            assert!(close(&got.0, &want.0) && close(&got.1, &want.1), "{bad}");
            let got = run(&[bad, bad, 3.0]);
            assert!(close(&got.0, &Var::constant(vec![3.0; AVERAGES])), "{bad}: {:?}", got.0.data());
            assert!(close(&got.1, &Var::constant(vec![3.0; AVERAGES])), "{bad}: {:?}", got.1.data());
        }
    }
}
