//! Score-function gradients: for objectives that can only be evaluated.
//!
//! `∇_y E f(y + σ e) = E (f(y + σ e) − b) e/σ` for every baseline `b`, so an estimate from draws is unbiased for the
//! gradient of the *smoothed* objective, which differs from the objective's own by terms of order `σ²`. One draw's
//! variance holds `(f − b)²/σ²`: without a baseline it diverges as `σ → 0`. The antithetic
//! `(f(y + σe) − f(y − σe)) e/(2σ)` drops it: for a quadratic its variance is `|g|² + gᵢ²`, for every σ.

use super::quadratic::Baseline;
use outerloop_core::Key;

/// Which estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// One evaluation per draw, and the baseline's.
    Single(Baseline),
    /// Two evaluations per draw.
    Antithetic,
}

/// The mean of `draws` estimates of the gradient at `y` from the key. [`Baseline::Smoothed`] uses the mean of the
/// other draws (leave one out), which is unbiased, too.
///
/// # Panics
/// If there are no draws, or one for a leave-one-out baseline.
#[track_caller]
pub fn score_gradient(
    f: impl Fn(&[f64]) -> f64,
    y: &[f64],
    (sigma, draws): (f64, usize),
    draw: Draw,
    key: Key,
) -> Vec<f64> {
    assert!(draws > usize::from(draw == Draw::Single(Baseline::Smoothed)), "score_gradient: too few draws");
    let noise = |s: usize| {
        let mut e = vec![0.0; y.len()];
        key.fold_in(s as u64).fill_normal(&mut e);
        e
    };
    let moved = |e: &[f64], c: f64| f(&y.iter().zip(e).map(|(y, e)| y + c * e).collect::<Vec<_>>());
    let noise: Vec<Vec<f64>> = (0..draws).map(noise).collect();
    let values: Vec<f64> = noise.iter().map(|e| moved(e, sigma)).collect();
    let n = draws as f64;
    let weight = |s: usize| match draw {
        Draw::Antithetic => 0.5 * (values[s] - moved(&noise[s], -sigma)),
        Draw::Single(Baseline::None) => values[s],
        Draw::Single(Baseline::Value) => values[s] - f(y),
        Draw::Single(Baseline::Smoothed) => {
            let others = (values.iter().sum::<f64>() - values[s]) / (n - 1.0);
            values[s] - others
        }
    };
    let mut out = vec![0.0; y.len()];
    for (s, e) in noise.iter().enumerate() {
        let c = weight(s) / (sigma * n);
        out.iter_mut().zip(e).for_each(|(o, e)| *o += c * e);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::quadratic::QuadraticLosses;
    use crate::matrix::Matrix;

    #[test]
    fn means_and_variances_are_those_of_the_closed_forms() {
        let h = Matrix::new(2, 2, vec![1.5, 0.4, 0.4, 0.7]);
        let q =
            QuadraticLosses { h, m: Matrix::identity(2), w: Matrix::new(2, 2, vec![0.2, 1.1, -0.6, 0.4]) };
        let (x, sigma, n) = ([0.7, -1.2], 0.6, 20_000u64);
        let (y, _, g) = q.at(&x);
        let f = |y: &[f64]| {
            let gap = [y[0] - x[0], y[1] - x[1]];
            0.5 * q.h.form(&gap, &gap)
        };
        let cases = [
            (Draw::Single(Baseline::None), Some(q.score_variance(&x, sigma, Baseline::None))),
            (Draw::Single(Baseline::Value), Some(q.score_variance(&x, sigma, Baseline::Value))),
            (Draw::Antithetic, Some(q.antithetic_variance(&x))),
            (Draw::Single(Baseline::Smoothed), None),
        ];
        for (draw, variance) in cases {
            let draws = if variance.is_some() { 1 } else { 4 };
            let (mut sum, mut square, mut fourth) = ([0.0; 2], [0.0; 2], [0.0; 2]);
            for i in 0..n {
                let e = score_gradient(f, &y, (sigma, draws), draw, Key::new(3).fold_in(i));
                for j in 0..2 {
                    let off = e[j] - g[j];
                    sum[j] += off;
                    square[j] += off * off;
                    fourth[j] += off.powi(4);
                }
            }
            for j in 0..2 {
                let (bias, var) = (sum[j] / n as f64, square[j] / n as f64);
                assert!(bias.abs() < 4.0 * (var / n as f64).sqrt(), "{draw:?}: {bias}");
                let Some(want) = &variance else { continue };
                let error = ((fourth[j] / n as f64 - var * var) / n as f64).sqrt();
                assert!((var - want[j]).abs() < 4.0 * error, "{draw:?}: {var}, not {}", want[j]);
            }
        }
    }
}
