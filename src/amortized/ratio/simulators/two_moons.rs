//! Two moons.

use crate::ratio::prior::LN_SQRT_2PI;
use crate::ratio::{Prior, Simulator, UniformBox};
use outerloop_core::Key;
use rand::Rng;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_PI_2, PI};

/// Mean and standard deviation of the crescent's radius.
const RADIUS: [f64; 2] = [0.1, 0.01];
/// Where the crescent's centre lies for `θ = 0`.
const CENTRE: f64 = 0.25;

/// A point on a crescent that θ shifts: with `a` uniform on `(−π/2, π/2)` and `r ~ N(0.1, 0.01²)`,
/// `x = (r cos a + ¼ − |θ₁ + θ₂|/√2, r sin a + (θ₂ − θ₁)/√2)`; θ uniform on `[−1, 1]²`. The posterior is two
/// crescents.
///
/// Reference: Greenberg, Nonnenmacher, Macke 2019, arXiv:1905.07488; constants of sbibm.
#[derive(Clone, Debug, PartialEq)]
pub struct TwoMoons(UniformBox);

impl Default for TwoMoons {
    fn default() -> Self {
        TwoMoons(UniformBox::cube(2, -1.0, 1.0).expect("edges are in order"))
    }
}

/// What θ adds to the crescent.
fn shift(theta: &[f64]) -> [f64; 2] {
    [-(theta[0] + theta[1]).abs() * FRAC_1_SQRT_2, (theta[1] - theta[0]) * FRAC_1_SQRT_2]
}

impl Simulator for TwoMoons {
    fn name(&self) -> String {
        "two_moons".into()
    }
    fn prior(&self) -> &dyn Prior {
        &self.0
    }
    fn data_dim(&self) -> usize {
        2
    }
    fn simulate(&self, theta: &[f64], key: Key, x: &mut [f64]) {
        let mut z = [0.0];
        key.named("radius").fill_normal(&mut z);
        let angle = key.rng().gen_range(-FRAC_PI_2..FRAC_PI_2);
        let (r, s) = (RADIUS[0] + RADIUS[1] * z[0], shift(theta));
        x[0] = r * angle.cos() + CENTRE + s[0];
        x[1] = r * angle.sin() + s[1];
    }
    /// `ln p = ln N(r; 0.1, 0.01) − ln r − ln π` on the right half plane of the crescent, plus the mirrored
    /// branch of a negative radius, which has probability 1e-23.
    fn log_likelihood(&self, theta: &[f64], x: &[f64]) -> Option<f64> {
        let s = shift(theta);
        let (u, v) = (x[0] - s[0] - CENTRE, x[1] - s[1]);
        let r = u.hypot(v);
        if u < 0.0 || r == 0.0 {
            return Some(f64::NEG_INFINITY);
        }
        let z = (r - RADIUS[0]) / RADIUS[1];
        Some(-0.5 * z * z - LN_SQRT_2PI - RADIUS[1].ln() - r.ln() - PI.ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_density_of_a_crescent_integrates_to_one() {
        let (moons, n, h) = (TwoMoons::default(), 400, 0.3 / 400.0);
        let mut sum = 0.0;
        for i in 0..n {
            for k in 0..2 * n {
                let x = [CENTRE + (i as f64 + 0.5) * h, -0.3 + (k as f64 + 0.5) * h];
                sum += h * h * moons.log_likelihood(&[0.0, 0.0], &x).unwrap().exp();
            }
        }
        assert!((sum - 1.0).abs() < 1e-3, "{sum}");
    }
}
