//! [`Simulator`]: a prior and a program that makes data, without a density.

use super::Prior;
use outerloop_core::Key;
use outerloop_outer::Workers;

/// Simulations that one thread makes at a time.
const CHUNK: usize = 256;

/// A prior over parameters and a stochastic program `x ~ p(x | theta)` that can be run but not written down.
///
/// Invariants: [`Self::simulate`] is a pure function of parameters and key, and fills all of `x`; numbers
/// that are not finite say that a simulation failed.
///
/// ```
/// use outerloop_amortized::ratio::{NormalPrior, Prior, Simulator};
/// use outerloop_core::Key;
///
/// /// `x ~ N(theta, 1)`, twice.
/// struct Twice(NormalPrior);
///
/// impl Simulator for Twice {
///     fn name(&self) -> String { "twice".into() }
///     fn prior(&self) -> &dyn Prior { &self.0 }
///     fn data_dim(&self) -> usize { 2 }
///     fn simulate(&self, theta: &[f64], key: Key, x: &mut [f64]) {
///         key.fill_normal(x);
///         x.iter_mut().for_each(|x| *x += theta[0]);
///     }
/// }
/// let simulator = Twice(NormalPrior::new(vec![0.0], vec![1.0])?);
/// let mut x = [0.0; 2];
/// simulator.simulate(&[100.0], Key::new(0), &mut x);
/// assert!(x.iter().all(|x| (x - 100.0).abs() < 10.0));
/// # outerloop_core::Result::Ok(())
/// ```
pub trait Simulator: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;
    /// The distribution of the parameters.
    fn prior(&self) -> &dyn Prior;
    /// Numbers per simulation.
    fn data_dim(&self) -> usize;
    /// Runs the program: fills `x`, `[data_dim]`, for parameters `theta`, `[dim]`.
    fn simulate(&self, theta: &[f64], key: Key, x: &mut [f64]);
    /// Names of the parameters; `theta1`, `theta2`, ... by default.
    fn parameter_names(&self) -> Vec<String> {
        (1..=self.prior().dim()).map(|i| format!("theta{i}")).collect()
    }
    /// The axes of plots; the prior's ranges by default.
    fn ranges(&self) -> Vec<(f64, f64)> {
        self.prior().ranges()
    }
    /// `ln p(x | theta)` in nats, for the rare simulators that have it: an oracle for tests.
    fn log_likelihood(&self, theta: &[f64], x: &[f64]) -> Option<f64> {
        let _ = (theta, x);
        None
    }
    /// The whole configuration: a saved run is recognized by it.
    fn describe(&self) -> String {
        format!("{} of {} numbers, prior {}", self.name(), self.data_dim(), self.prior().describe())
    }
}

/// Parameters and data of many simulations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Joint {
    /// `[n, dim]`
    pub theta: Vec<f64>,
    /// `[n, data_dim]`
    pub x: Vec<f64>,
}

/// Pair number `index` of the stream `key`: parameters from the prior, data from the program.
pub fn simulate_one(s: &dyn Simulator, key: Key, index: u64, theta: &mut [f64], x: &mut [f64]) {
    let [prior, program] = key.fold_in(index).split();
    s.prior().sample(prior, theta);
    s.simulate(theta, program, x);
}

/// Simulations `first`, ..., `first + n − 1` of the stream `key`, on all worker threads: each has a key of
/// its own, so the result depends on neither the threads nor the batch it is part of.
pub fn simulate(s: &dyn Simulator, key: Key, first: u64, n: usize, workers: &Workers) -> Joint {
    let (d, p) = (s.prior().dim(), s.data_dim());
    let mut joint = Joint { theta: vec![0.0; n * d], x: vec![0.0; n * p] };
    let mut chunks: Vec<_> = joint.theta.chunks_mut(CHUNK * d).zip(joint.x.chunks_mut(CHUNK * p)).collect();
    workers.map(&mut chunks, |_, chunk, (theta, x)| {
        let start = first + (chunk * CHUNK) as u64;
        for (i, (theta, x)) in theta.chunks_mut(d).zip(x.chunks_mut(p)).enumerate() {
            simulate_one(s, key, start + i as u64, theta, x);
        }
    });
    joint
}

/// Data for given parameters, `[n, dim]`: simulation `i` has key `key.fold_in(i)`. For predictive checks.
pub fn simulate_at(s: &dyn Simulator, theta: &[f64], key: Key, workers: &Workers) -> Vec<f64> {
    let (d, p) = (s.prior().dim(), s.data_dim());
    let mut x = vec![0.0; theta.len() / d * p];
    let mut chunks: Vec<_> = theta.chunks(CHUNK * d).zip(x.chunks_mut(CHUNK * p)).collect();
    workers.map(&mut chunks, |_, chunk, (theta, x)| {
        for (i, (theta, x)) in theta.chunks(d).zip(x.chunks_mut(p)).enumerate() {
            s.simulate(theta, key.fold_in((chunk * CHUNK + i) as u64), x);
        }
    });
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::simulators::Slcp;

    #[test]
    fn simulations_depend_on_their_number_alone() {
        let slcp = Slcp::seed();
        let all = simulate(&slcp, Key::new(3), 0, 600, &Workers::new(1).unwrap());
        assert_eq!(all, simulate(&slcp, Key::new(3), 0, 600, &Workers::new(3).unwrap()));
        let part = simulate(&slcp, Key::new(3), 500, 7, &Workers::new(1).unwrap());
        assert_eq!(part.x, all.x[500 * 8..507 * 8]);
        assert_eq!(part.theta, all.theta[500 * 5..507 * 5]);
    }
}
