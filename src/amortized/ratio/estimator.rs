//! [`RatioEstimator`]: a trained network, or several, with all that is needed to use it.

use super::density::{Density, DensityEvaluator};
use super::features::Features;
use super::metrics::chains::log_sum_exp;
use super::net::{NetEvaluator, RatioNet};
use super::Prior;
use outerloop_core::{check_settings, Error, Interval, Result};
use outerloop_outer::checkpoint::{self, Kind};
use serde::{Deserialize, Serialize};
use std::path::Path;

const KIND: Kind = Kind(*b"RATO");

/// An amortized ratio: `ln p(x|theta)/p(x)` for any `theta` and `x`. Several members are averaged as ratios,
/// `ln mean e^f`: an ensemble is wider, and better calibrated, than its members (Hermans et al. 2021). Where logits are
/// known up to a function of `x` only (NRE-B), that function would weigh the members, so their logits are averaged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatioEstimator {
    net: RatioNet,
    features: Features,
    members: Vec<Vec<f32>>,
    is_normalized: bool,
    sharpness: f64,
}

impl RatioEstimator {
    /// One or more weight vectors of a network. `is_normalized`: see [`super::RatioLoss::is_normalized`].
    ///
    /// # Errors
    /// No members, weights of another length or not finite, features of another size.
    pub fn new(
        net: RatioNet,
        features: Features,
        members: Vec<Vec<f32>>,
        is_normalized: bool,
    ) -> Result<Self> {
        if members.is_empty() {
            return Err(Error::invalid("ratio estimator", "expected at least one member, got none"));
        }
        if net.inputs() != features.inputs() {
            return Err(Error::mismatch("ratio estimator: inputs", features.inputs(), net.inputs()));
        }
        let layout = net.layout();
        for m in &members {
            layout.check_len("ratio estimator: weights", m.len())?;
            if let Some(w) = m.iter().find(|w| !w.is_finite()) {
                return Err(Error::invalid(
                    "ratio estimator: weights",
                    format!("expected finite numbers, got {w}"),
                ));
            }
        }
        Ok(RatioEstimator { net, features, members, is_normalized, sharpness: 1.0 })
    }

    /// The same with the ratio (of all members together) to the power `sharpness`: below 1 all posteriors are wider. See
    /// [`super::fit_sharpness`]. Initially 1; a new value replaces the old one.
    ///
    /// # Errors
    /// Unless it is positive.
    pub fn tempered(self, sharpness: f64) -> Result<Self> {
        check_settings("ratio estimator", [("sharpness", sharpness, Interval::POSITIVE)])?;
        Ok(RatioEstimator { sharpness, ..self })
    }

    /// The power of the ratio.
    pub fn sharpness(&self) -> f64 {
        self.sharpness
    }

    /// Saves it: network, scaling and weights in one versioned, checksummed file.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        checkpoint::save(path, KIND, self)
    }

    /// Loads what [`Self::save`] wrote.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let e: RatioEstimator = checkpoint::load(path, KIND)?;
        Self::new(e.net, e.features, e.members, e.is_normalized)?.tempered(e.sharpness)
    }

    /// What the network sees.
    pub fn features(&self) -> &Features {
        &self.features
    }
    /// Whether the logit is the log ratio itself.
    pub fn is_normalized(&self) -> bool {
        self.is_normalized && self.sharpness == 1.0
    }

    /// The posterior of an observation.
    ///
    /// # Errors
    /// An observation of another length or with numbers that are not finite; a prior of another dimension.
    pub fn posterior<'a>(&'a self, x: &[f64], prior: &'a dyn Prior) -> Result<RatioPosterior<'a>> {
        let warnings = self.features.check_observation(x)?;
        self.features.check_prior(prior)?;
        let mut inputs = vec![0.0; self.features.inputs()[1]];
        self.features.x_into(x.iter().copied(), &mut inputs);
        Ok(RatioPosterior { estimator: self, prior, inputs, warnings })
    }

    /// The members, each alone.
    pub fn split(&self) -> Vec<RatioEstimator> {
        let alone = |m: &Vec<f32>| RatioEstimator { members: vec![m.clone()], ..self.clone() };
        self.members.iter().map(alone).collect()
    }
}

/// Prior times ratio, for one observation.
#[derive(Clone)]
pub struct RatioPosterior<'a> {
    estimator: &'a RatioEstimator,
    prior: &'a dyn Prior,
    inputs: Vec<f32>,
    warnings: Vec<String>,
}

impl RatioPosterior<'_> {
    /// Where the observation lies outside of everything simulated.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The log ratios of rows `theta`, `[n, dim]`.
    pub fn log_ratio(&self, theta: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; theta.len() / self.prior.dim()];
        self.evaluator().log_factor(theta, &mut out);
        out
    }
}

/// Rows per call of the network: they fit a second-level cache.
const CHUNK: usize = 256;

struct Rows<'a> {
    posterior: &'a RatioPosterior<'a>,
    nets: Vec<NetEvaluator<f32>>,
}

impl Rows<'_> {
    /// Inputs of parameters.
    fn inputs(&self, theta: &[f64]) -> Vec<f32> {
        let mut inputs = vec![0.0; theta.len()];
        self.posterior.estimator.features.theta_into(theta.iter().copied(), &mut inputs);
        inputs
    }
    /// `ln mean e^f`, or `mean f` where logits have no common scale.
    fn mean(&self, f: impl ExactSizeIterator<Item = f64>) -> f64 {
        let f: Vec<f64> = f.collect();
        let n = f.len() as f64;
        match f[..] {
            [f] => f,
            _ if self.posterior.estimator.is_normalized => log_sum_exp(&f) - n.ln(),
            _ => f.iter().sum::<f64>() / n,
        }
    }
}

impl DensityEvaluator for Rows<'_> {
    fn log_factor(&mut self, theta: &[f64], out: &mut [f64]) {
        let d = self.posterior.prior.dim();
        for (theta, out) in theta.chunks(CHUNK * d).zip(out.chunks_mut(CHUNK)) {
            let inputs = self.inputs(theta);
            let x = &self.posterior.inputs;
            let members: Vec<Vec<f32>> = self.nets.iter_mut().map(|n| n.log_ratio(&inputs, x)).collect();
            for (i, out) in out.iter_mut().enumerate() {
                let mean = self.mean(members.iter().map(|m| f64::from(m[i])));
                *out = self.posterior.estimator.sharpness * mean;
            }
        }
    }

    fn log_factor_grad(&mut self, theta: &[f64], out: &mut [f64], grad: &mut [f64]) {
        let d = self.posterior.prior.dim();
        let chunks = theta.chunks(CHUNK * d).zip(out.chunks_mut(CHUNK)).zip(grad.chunks_mut(CHUNK * d));
        for ((theta, out), grad) in chunks {
            let inputs = self.inputs(theta);
            let x = &self.posterior.inputs;
            let mut member = |n: &mut NetEvaluator<f32>| {
                let mut grad = vec![0.0; inputs.len()];
                (n.log_ratio_grad(&inputs, x, &mut grad), grad)
            };
            let members: Vec<_> = self.nets.iter_mut().map(&mut member).collect();
            grad.fill(0.0);
            for (i, out) in out.iter_mut().enumerate() {
                *out = self.mean(members.iter().map(|m| f64::from(m.0[i])));
                let is_ratio = self.posterior.estimator.is_normalized;
                for (f, g) in &members {
                    // ∇ ln mean e^f = Σ softmax(f) ∇f
                    let share = if is_ratio { (f64::from(f[i]) - *out).exp() } else { 1.0 };
                    let weight = self.posterior.estimator.sharpness * share / members.len() as f64;
                    for k in i * d..(i + 1) * d {
                        grad[k] += weight * f64::from(g[k]);
                    }
                }
                *out *= self.posterior.estimator.sharpness;
            }
            self.posterior.estimator.features.chain_theta(theta, grad);
        }
    }
}

impl Density for RatioPosterior<'_> {
    fn prior(&self) -> &dyn Prior {
        self.prior
    }
    fn has_gradient(&self) -> bool {
        true
    }
    fn evaluator(&self) -> Box<dyn DensityEvaluator + '_> {
        let nets = self.estimator.members.iter().map(|m| NetEvaluator::new(&self.estimator.net, m)).collect();
        Box::new(Rows { posterior: self, nets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::simulators::Slcp;
    use crate::ratio::{Architecture, DataScale, FeatureConfig, Invalid, Nonlinearity, Simulations};
    use outerloop_core::Key;
    use outerloop_outer::Workers;

    fn estimator(is_normalized: bool) -> RatioEstimator {
        let slcp = Slcp::seed();
        let sims =
            Simulations::draw(&slcp, 200, Key::new(1), Invalid::Refuse, &Workers::new(1).unwrap()).unwrap();
        let config = FeatureConfig { even: vec![2, 3], data: DataScale::Both };
        let features = Features::fit(&sims, config).unwrap();
        let architecture = Architecture::Mlp { hidden: vec![8, 8] };
        let net = RatioNet::new(architecture, Nonlinearity::Silu, features.inputs()).unwrap();
        let members = (0..3).map(|i| net.init(Key::new(i))).collect();
        RatioEstimator::new(net, features, members, is_normalized).unwrap()
    }

    #[test]
    fn an_ensemble_is_the_mean_ratio_with_its_gradient() {
        for is_normalized in [true, false] {
            ensemble_of(is_normalized);
        }
    }

    fn ensemble_of(is_normalized: bool) {
        let e = estimator(is_normalized);
        let prior = crate::ratio::UniformBox::cube(5, -3.0, 3.0).unwrap();
        let x = [1.0, -2.0, 0.5, -1.0, 3.0, 0.0, 1.0, 1.0];
        let posterior = e.posterior(&x, &prior).unwrap();
        let theta = [0.3, -1.0, -1.2, 0.7, 0.2, 2.0, 1.0, 0.4, -0.3, -2.0];
        let (mut f, mut grad) = ([0.0; 2], [0.0; 10]);
        posterior.evaluator().log_factor_grad(&theta, &mut f, &mut grad);
        let alone: Vec<Vec<f64>> =
            e.split().iter().map(|m| m.posterior(&x, &prior).unwrap().log_ratio(&theta)).collect();
        for i in 0..2 {
            let ratio = (alone.iter().map(|m| m[i].exp()).sum::<f64>() / 3.0).ln();
            let logit = alone.iter().map(|m| m[i]).sum::<f64>() / 3.0;
            assert!((f[i] - if is_normalized { ratio } else { logit }).abs() < 1e-6);
        }
        for k in 0..10 {
            let at = |h: f64| {
                let mut t = theta;
                t[k] += h;
                posterior.log_ratio(&t)[k / 5]
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((grad[k] - slope).abs() < 2e-2 * (1.0 + slope.abs()), "{k}: {} {slope}", grad[k]);
        }
        let wide = e.clone().tempered(0.5).unwrap();
        let (mut half, mut half_grad) = ([0.0; 2], [0.0; 10]);
        wide.posterior(&x, &prior).unwrap().evaluator().log_factor_grad(&theta, &mut half, &mut half_grad);
        assert!(half.iter().zip(&f).all(|(h, f)| (h - 0.5 * f).abs() < 1e-12));
        assert!(half_grad.iter().zip(&grad).all(|(h, g)| (h - 0.5 * g).abs() < 1e-12));
        // The signs of the even parameters leave no trace.
        let mut mirrored = theta;
        mirrored[2] = 1.2;
        assert_eq!(posterior.log_ratio(&mirrored)[0], posterior.log_ratio(&theta)[0]);
    }

    #[test]
    fn a_file_holds_all_of_it() {
        let (e, dir) = (estimator(true).tempered(0.8).unwrap(), tempfile::tempdir().unwrap());
        let path = dir.path().join("ratio.bin");
        e.save(&path).unwrap();
        assert_eq!(RatioEstimator::load(&path).unwrap(), e);
        let none = RatioEstimator::new(e.net.clone(), e.features.clone(), vec![], true).unwrap_err();
        assert!(none.to_string().contains("at least one member"));
        let short =
            RatioEstimator::new(e.net.clone(), e.features.clone(), vec![vec![0.0]], true).unwrap_err();
        assert!(short.to_string().contains("weights"), "{short}");
    }
}
