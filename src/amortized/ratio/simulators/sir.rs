//! An epidemic.

use super::lotka_volterra::runge_kutta;
use crate::ratio::{NormalPrior, Prior, Simulator};
use outerloop_core::Key;
use rand::Rng;

/// People.
const PEOPLE: f64 = 1e6;
/// Days.
const DAYS: usize = 160;
/// Observations, evenly spaced, and tests per observation.
const SEEN: usize = 10;
const TESTS: usize = 1000;

/// Susceptible, infected and recovered people among a million, one infected at first:
/// `Ṡ = −β S I/N`, `İ = β S I/N − γ I`. Ten times in 160 days 1000 people are tested: binomial counts.
/// Parameters are `ln β ~ N(ln 0.4, 0.5²)` and `ln γ ~ N(ln 0.125, 0.2²)`.
///
/// Reference: Lueckmann et al. 2021, arXiv:2101.04653, task T.9, with log parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Sir(NormalPrior);

impl Default for Sir {
    fn default() -> Self {
        let prior = NormalPrior::new(vec![0.4f64.ln(), 0.125f64.ln()], vec![0.5, 0.2]);
        Sir(prior.expect("deviations are positive"))
    }
}

impl Simulator for Sir {
    fn name(&self) -> String {
        "sir".into()
    }
    fn prior(&self) -> &dyn Prior {
        &self.0
    }
    fn data_dim(&self) -> usize {
        SEEN
    }
    fn simulate(&self, theta: &[f64], key: Key, x: &mut [f64]) {
        let (beta, gamma) = (theta[0].exp(), theta[1].exp());
        let mut rng = key.rng();
        // Shares of the people.
        let mut y = [1.0 - 1.0 / PEOPLE, 1.0 / PEOPLE];
        for x in x {
            for _ in 0..2 * DAYS / SEEN {
                y = runge_kutta(y, 0.5, |[s, i]| [-beta * s * i, beta * s * i - gamma * i]);
            }
            *x = (0..TESTS).filter(|_| rng.gen::<f64>() < y[1]).count() as f64;
        }
    }
    fn parameter_names(&self) -> Vec<String> {
        vec!["log beta".into(), "log gamma".into()]
    }
}
