//! How far a run has come, by its training loss: features that do not change if all losses are multiplied.
//!
//! Memory, three numbers: averages of the loss over about 10 and 100 steps, and the highest that the first has
//! been. A loss above twice the highest counts as that much, one that is no number as none; losses that have never
//! been positive give zeros.

use crate::rule::Var;
use outerloop_core::{nan, Float};

/// Number of features: `0.3 ln(fast/highest)` and `ln(fast/slow)`.
pub(super) const COUNT: usize = 2;

/// Numbers of the memory.
pub(super) const MEMORY: usize = 3;

/// Rates of the averages after the first steps, in which all losses weigh the same.
const RATES: [f64; 2] = [0.1, 0.01];

/// The least of a fast average over the highest.
const LOWEST: f64 = 1e-6;

/// Bounds of a fast over a slow average.
const RATIO: [f64; 2] = [0.1, 10.0];

/// Rates at update `step`, from 0 on.
fn rates(step: u64) -> [f64; 2] {
    RATES.map(|r| r.max(1.0 / (step + 1) as f64))
}

/// The next memory and the features.
pub(super) fn next<E: Float>(memory: &Var<E>, loss: &Var<E>, step: u64) -> (Var<E>, Vec<Var<E>>) {
    let [fast, slow, highest] = [0, 1, 2].map(|i| memory.row(i, 1));
    let zeros = vec![Var::scalar(0.0); COUNT];
    if !num_traits::Float::is_finite(loss.data()[0]) {
        return (memory.clone(), zeros);
    }
    let was_positive = highest.data()[0] > E::of(0.0);
    let loss = loss.limited();
    let loss = if was_positive { loss.min(&highest.scale(2.0)) } else { loss };
    let [a, b] = rates(step);
    let fast = &fast + (&loss - &fast).scale(a);
    let slow = &slow + (&loss - &slow).scale(b);
    let highest = highest.max(&fast);
    let memory = Var::concat(&[fast.clone(), slow.clone(), highest.clone()]);
    if highest.data()[0] <= E::of(0.0) {
        return (memory, zeros);
    }
    let fallen = (&fast / &highest).clip(LOWEST, 1.0);
    let ratio = (fast / slow.max(&highest.scale(LOWEST))).clip(RATIO[0], RATIO[1]);
    (memory, vec![fallen.ln().scale(0.3), ratio.ln()])
}

/// The same in f32, in place.
pub(super) fn see(memory: &mut [f32], loss: f32, step: u64) -> [f32; COUNT] {
    let [fast, slow, highest] = memory else { unreachable!("three numbers") };
    if !loss.is_finite() {
        return [0.0; COUNT];
    }
    let loss = crate::rule::limited(loss);
    let loss = if *highest > 0.0 { nan::min(loss, 2.0 * *highest) } else { loss };
    let [a, b] = rates(step).map(|r| r as f32);
    *fast += a * (loss - *fast);
    *slow += b * (loss - *slow);
    *highest = nan::max(*highest, *fast);
    if *highest <= 0.0 {
        return [0.0; COUNT];
    }
    let lowest = LOWEST as f32;
    let fallen = nan::clamp(*fast / *highest, lowest, 1.0);
    let ratio = *fast / nan::max(*slow, *highest * lowest);
    [0.3 * fallen.ln(), nan::clamp(ratio, RATIO[0] as f32, RATIO[1] as f32).ln()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(losses: &[f64]) -> (Vec<f64>, [f64; COUNT]) {
        let (mut memory, mut single) = (Var::constant(vec![0.0; MEMORY]), [0.0f32; MEMORY]);
        let mut features = [0.0; COUNT];
        for (t, loss) in losses.iter().enumerate() {
            let (next, seen) = next(&memory, &Var::scalar(*loss), t as u64);
            memory = next;
            features = [seen[0].data()[0], seen[1].data()[0]];
            let twin = see(&mut single, *loss as f32, t as u64);
            for (f, twin) in features.iter().zip(twin) {
                assert!((f - f64::from(twin)).abs() < 1e-4, "{loss}: {f}, not {twin}");
            }
        }
        (memory.data().to_vec(), features)
    }

    #[test]
    fn a_loss_that_has_fallen_tenfold_is_seen_at_any_scale() {
        let losses: Vec<f64> = (0..200).map(|t| if t < 100 { 2.0 } else { 0.2 }).collect();
        let (memory, features) = run(&losses);
        assert!((memory[0] - 0.2).abs() < 1e-3 && memory[2] == 2.0, "{memory:?}");
        assert!((features[0] - 0.3 * 0.1f64.ln()).abs() < 1e-2 && features[1] < -0.5, "{features:?}");
        let scaled: Vec<f64> = losses.iter().map(|l| 1000.0 * l).collect();
        let (_, far) = run(&scaled);
        assert!(features.iter().zip(far).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(run(&losses.iter().map(|l| -l).collect::<Vec<_>>()).1, [0.0; COUNT]);
    }

    #[test]
    fn one_bad_loss_passes() {
        let mut losses = vec![2.0; 150];
        let (_, good) = run(&losses);
        for bad in [f64::NAN, f64::INFINITY, 1e30] {
            losses[20] = bad;
            let (memory, features) = run(&losses);
            assert!(memory[2] < 2.3, "{bad}: {memory:?}");
            assert!(features.iter().zip(good).all(|(a, b)| (a - b).abs() < 0.2), "{bad}: {features:?}");
        }
    }
}
