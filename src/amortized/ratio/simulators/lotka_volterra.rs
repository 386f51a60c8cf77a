//! Predators and prey.

use crate::ratio::{NormalPrior, Prior, Simulator};
use outerloop_core::Key;

/// Steps of the integrator per unit of time.
const STEPS: usize = 50;
/// Units of time; one observation of both every two.
const TIME: usize = 20;
/// Prey and predators at the start.
const START: [f64; 2] = [30.0, 1.0];
/// Standard deviation of the observations' logarithm.
const NOISE: f64 = 0.1;

/// `ẋ = α x − β x y`, `ẏ = −γ y + δ x y` from `(30, 1)` over 20 units of time; both populations are seen ten
/// times, with log-normal noise of deviation 0.1. Parameters are the logarithms of α, β, γ, δ, normal with
/// means `−0.125, −3, −0.125, −3` and deviation 0.5. Integrated by Runge and Kutta's rule of order four in
/// steps of 0.02.
///
/// Reference: Lueckmann et al. 2021, arXiv:2101.04653, task T.10, with log parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct LotkaVolterra(NormalPrior);

impl Default for LotkaVolterra {
    fn default() -> Self {
        let prior = NormalPrior::new(vec![-0.125, -3.0, -0.125, -3.0], vec![0.5; 4]);
        LotkaVolterra(prior.expect("deviations are positive"))
    }
}

/// One step of order four.
pub(super) fn runge_kutta<const N: usize>(y: [f64; N], h: f64, f: impl Fn([f64; N]) -> [f64; N]) -> [f64; N] {
    let along = |k: [f64; N], c: f64| std::array::from_fn(|i| y[i] + c * h * k[i]);
    let k1 = f(y);
    let k2 = f(along(k1, 0.5));
    let k3 = f(along(k2, 0.5));
    let k4 = f(along(k3, 1.0));
    std::array::from_fn(|i| y[i] + h / 6.0 * (k1[i] + 2.0 * k2[i] + 2.0 * k3[i] + k4[i]))
}

impl Simulator for LotkaVolterra {
    fn name(&self) -> String {
        "lotka_volterra".into()
    }
    fn prior(&self) -> &dyn Prior {
        &self.0
    }
    fn data_dim(&self) -> usize {
        TIME
    }
    fn simulate(&self, theta: &[f64], key: Key, x: &mut [f64]) {
        let rates: [f64; 4] = std::array::from_fn(|i| theta[i].exp());
        let [alpha, beta, gamma, delta] = rates;
        key.fill_normal(x);
        let mut y = START;
        for x in x.chunks_exact_mut(2) {
            for _ in 0..2 * STEPS {
                y = runge_kutta(y, 1.0 / STEPS as f64, |[x, y]| {
                    [alpha * x - beta * x * y, -gamma * y + delta * x * y]
                });
            }
            for (x, y) in x.iter_mut().zip(y) {
                *x = y * (NOISE * *x).exp();
            }
        }
    }
    fn parameter_names(&self) -> Vec<String> {
        ["log alpha", "log beta", "log gamma", "log delta"].map(String::from).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_integrator_keeps_the_invariant() {
        // V = δ x − γ ln x + β y − α ln y is constant along solutions.
        let (a, b, c, d) = (0.9, 0.05, 0.9, 0.05);
        let v = |[x, y]: [f64; 2]| d * x - c * f64::ln(x) + b * y - a * f64::ln(y);
        let mut y = START;
        for _ in 0..TIME * STEPS {
            y = runge_kutta(y, 1.0 / STEPS as f64, |[x, y]| [a * x - b * x * y, -c * y + d * x * y]);
        }
        assert!((v(y) - v(START)).abs() < 1e-5, "{} {}", v(y), v(START));
    }
}
