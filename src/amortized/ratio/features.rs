//! [`Features`]: what a network sees of parameters and data, learned from the training simulations.

use super::{Prior, Simulations};
use outerloop_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is made of a number of the data, after subtracting the mean and dividing by the deviation (`z`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataScale {
    /// `z`
    #[default]
    Standard,
    /// `asinh z`: heavy tails are drawn in.
    Asinh,
    /// Both, side by side.
    Both,
}

/// What is built into the inputs, beside standardization.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureConfig {
    /// Parameters of which the network sees the absolute value only: a symmetry of the simulator
    /// (`p(x | theta)` does not depend on the sign) that is built in instead of learned. Default none.
    pub even: Vec<usize>,
    /// Default [`DataScale::Standard`].
    pub data: DataScale,
}

/// Mean and deviation of one input, and the range that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Column {
    mean: f64,
    /// 1 where all are the same.
    std: f64,
    low: f64,
    high: f64,
}

impl Column {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let n = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / n;
        let var = values.clone().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let std = if var > 0.0 { var.sqrt() } else { 1.0 };
        Column { mean, std, low, high }
    }
    fn z(&self, v: f64) -> f64 {
        (v - self.mean) / self.std
    }
}

/// The map from parameters and data to a network's inputs; saved with its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Features {
    config: FeatureConfig,
    theta: Vec<Column>,
    x: Vec<Column>,
    simulations: usize,
}

impl Features {
    /// Means and deviations of these simulations.
    ///
    /// # Errors
    /// If an index in `even` is not one of the parameters.
    pub fn fit(simulations: &Simulations, config: FeatureConfig) -> Result<Self> {
        let [d, p] = simulations.dims();
        if let Some(i) = config.even.iter().find(|i| **i >= d) {
            return Err(Error::mismatch("features: index of an even parameter", 0..d, i));
        }
        let column = |data: &[f32], c: usize, stride: usize, is_even: bool| {
            let value = move |v: &f32| if is_even { f64::from(v.abs()) } else { f64::from(*v) };
            Column::of(data.iter().skip(c).step_by(stride).map(value))
        };
        let theta = (0..d).map(|c| column(simulations.theta(), c, d, config.even.contains(&c))).collect();
        let x = (0..p).map(|c| column(simulations.x(), c, p, false)).collect();
        Ok(Features { config, theta, x, simulations: simulations.len() })
    }

    /// Leaves every number as it is: the seed's network has no scaling.
    pub fn identity([d, p]: [usize; 2]) -> Self {
        let plain = Column { mean: 0.0, std: 1.0, low: f64::NEG_INFINITY, high: f64::INFINITY };
        let config = FeatureConfig::default();
        Features { config, theta: vec![plain; d], x: vec![plain; p], simulations: 0 }
    }

    /// Parameters and numbers of data.
    pub fn dims(&self) -> [usize; 2] {
        [self.theta.len(), self.x.len()]
    }
    /// Inputs for the parameters and for the data.
    pub fn inputs(&self) -> [usize; 2] {
        [self.theta.len(), self.x.len() * self.per_number()]
    }
    fn per_number(&self) -> usize {
        if self.config.data == DataScale::Both {
            2
        } else {
            1
        }
    }

    /// Inputs of parameters, `[n, d]` to `[n, inputs]`.
    pub fn theta_into(&self, theta: impl Iterator<Item = f64>, out: &mut [f32]) {
        let d = self.theta.len();
        for (i, (out, v)) in out.iter_mut().zip(theta).enumerate() {
            let v = if self.config.even.contains(&(i % d)) { v.abs() } else { v };
            *out = self.theta[i % d].z(v) as f32;
        }
    }

    /// From the gradient by inputs, `[n, d]`, to that by parameters, in place.
    pub fn chain_theta(&self, theta: &[f64], grad: &mut [f64]) {
        let d = self.theta.len();
        for (i, (g, t)) in grad.iter_mut().zip(theta).enumerate() {
            let sign = if self.config.even.contains(&(i % d)) && *t < 0.0 { -1.0 } else { 1.0 };
            *g *= sign / self.theta[i % d].std;
        }
    }

    /// Inputs of data, `[n, p]` to `[n, inputs]`; those of one number stand side by side.
    pub fn x_into(&self, x: impl Iterator<Item = f64>, out: &mut [f32]) {
        let (p, per) = (self.x.len(), self.per_number());
        for ((i, out), v) in out.chunks_exact_mut(per).enumerate().zip(x) {
            let z = self.x[i % p].z(v);
            match self.config.data {
                DataScale::Standard => out[0] = z as f32,
                DataScale::Asinh => out[0] = z.asinh() as f32,
                DataScale::Both => (out[0], out[1]) = (z as f32, z.asinh() as f32),
            }
        }
    }

    /// Checks an observation, and says where it lies outside of everything simulated.
    ///
    /// # Errors
    /// Another length than the simulations', and numbers that are not finite.
    pub fn check_observation(&self, x: &[f64]) -> Result<Vec<String>> {
        if x.len() != self.x.len() {
            return Err(Error::mismatch("observation: number of numbers", self.x.len(), x.len()));
        }
        if let Some(i) = x.iter().position(|x| !x.is_finite()) {
            let why = format!("expected finite numbers, got x[{i}] = {}", x[i]);
            return Err(Error::invalid("observation", why));
        }
        let outside = x.iter().zip(&self.x).enumerate().filter(|(_, (x, c))| **x < c.low || **x > c.high);
        Ok(outside
            .map(|(i, (x, c))| {
                format!(
                    "x[{i}] = {x} lies outside of all {} simulations ([{}, {}]): the ratio is extrapolated there, \
                     and the model may be wrong",
                    self.simulations, c.low, c.high
                )
            })
            .collect())
    }

    /// Errors unless the prior has as many parameters as the simulations.
    pub fn check_prior(&self, prior: &dyn Prior) -> Result<()> {
        if prior.dim() == self.theta.len() {
            return Ok(());
        }
        Err(Error::mismatch("prior: number of parameters", self.theta.len(), prior.dim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::Invalid;

    fn fit(config: FeatureConfig) -> Features {
        let (theta, x) = ([-1.0, 0.0, 3.0, 4.0], [0.0, 7.0, 10.0, 7.0]);
        Features::fit(&Simulations::new(&theta, &x, [2, 2], Invalid::Refuse).unwrap(), config).unwrap()
    }

    #[test]
    fn inputs_are_standardized() {
        let config = FeatureConfig { even: vec![0], data: DataScale::Both };
        let f = fit(config);
        let mut out = [0.0; 2];
        f.theta_into([-3.0, 4.0].into_iter(), &mut out);
        // |θ₁| has mean 2 and deviation 1, θ₂ mean 2 and deviation 2.
        assert_eq!(out, [1.0, 1.0]);
        let mut grad = [2.0, 2.0];
        f.chain_theta(&[-3.0, 4.0], &mut grad);
        assert_eq!(grad, [-2.0, 1.0]);
        let mut x = [0.0; 4];
        f.x_into([10.0, 8.0].into_iter(), &mut x);
        // The second column is constant: its deviation counts as 1.
        let asinh = 1f64.asinh() as f32;
        assert_eq!(x, [1.0, asinh, 1.0, asinh]);
        assert_eq!((f.dims(), f.inputs()), ([2, 2], [2, 4]));
    }

    #[test]
    fn far_observations_are_named() {
        let f = fit(FeatureConfig::default());
        assert!(f.check_observation(&[5.0, 7.0]).unwrap().is_empty());
        let far = f.check_observation(&[80.0, 7.0]).unwrap();
        assert!(far.len() == 1 && far[0].contains("x[0] = 80 lies outside of all 2 simulations ([0, 10])"));
        let error = f.check_observation(&[5.0]).unwrap_err().to_string();
        assert!(error.contains("expected 2, got 1"), "{error}");
        let error = f.check_observation(&[5.0, f64::NAN]).unwrap_err().to_string();
        assert!(error.contains("x[1] = NaN"), "{error}");
    }
}
