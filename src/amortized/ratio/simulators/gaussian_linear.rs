//! A linear Gaussian model, whose posterior is known.

use crate::ratio::prior::LN_SQRT_2PI;
use crate::ratio::{NormalPrior, Prior, Simulator};
use outerloop_core::{Error, Key, Result};

/// Variance of prior and of data: sbibm's.
const VARIANCE: f64 = 0.1;

/// `θ ~ N(0, 0.1)` in every dimension, `x ~ N(θ, 0.1)`. The posterior is `N(x/2, 0.05)` and
/// `ln p(x) = Σ ln N(xᵢ; 0, 0.2)`.
///
/// Reference: Lueckmann et al. 2021, arXiv:2101.04653, task T.1.
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianLinear(NormalPrior);

impl GaussianLinear {
    /// In `dim` dimensions; sbibm has 10.
    ///
    /// # Errors
    /// If `dim` is 0.
    pub fn new(dim: usize) -> Result<Self> {
        if dim == 0 {
            return Err(Error::invalid("gaussian_linear: dim", "must be at least 1, got 0"));
        }
        Ok(GaussianLinear(NormalPrior::new(vec![0.0; dim], vec![VARIANCE.sqrt(); dim])?))
    }
    /// Mean of the posterior; its standard deviation is [`Self::posterior_std`] in every dimension.
    pub fn posterior_mean(&self, x: &[f64]) -> Vec<f64> {
        x.iter().map(|x| 0.5 * x).collect()
    }
    /// `√0.05`
    pub fn posterior_std(&self) -> f64 {
        (0.5 * VARIANCE).sqrt()
    }
    /// `ln p(x)` in nats.
    pub fn log_evidence(&self, x: &[f64]) -> f64 {
        let var = 2.0 * VARIANCE;
        x.iter().map(|x| -0.5 * x * x / var - 0.5 * var.ln() - LN_SQRT_2PI).sum()
    }
}

impl Simulator for GaussianLinear {
    fn name(&self) -> String {
        format!("gaussian_linear{}", self.0.dim())
    }
    fn prior(&self) -> &dyn Prior {
        &self.0
    }
    fn data_dim(&self) -> usize {
        self.0.dim()
    }
    fn simulate(&self, theta: &[f64], key: Key, x: &mut [f64]) {
        key.fill_normal(x);
        for (x, t) in x.iter_mut().zip(theta) {
            *x = t + VARIANCE.sqrt() * *x;
        }
    }
    fn log_likelihood(&self, theta: &[f64], x: &[f64]) -> Option<f64> {
        let term =
            |(x, t): (&f64, &f64)| -0.5 * (x - t).powi(2) / VARIANCE - 0.5 * VARIANCE.ln() - LN_SQRT_2PI;
        Some(x.iter().zip(theta).map(term).sum())
    }
}
