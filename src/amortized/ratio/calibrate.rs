//! Is an amortized posterior calibrated? The same posterior for many simulated observations.

use super::estimator::RatioEstimator;
use super::metrics::c2st::perceptron;
use super::metrics::calibration::{
    credibility, expected_coverage, sbc_ranks, uniformity, CoveragePoint, Uniformity,
};
use super::metrics::two_sample::auc;
use super::sample::{resample, Sampler};
use super::simulator::{simulate, simulate_at, Simulator};
use outerloop_core::{check_settings, Error, Interval, Key, Result};
use outerloop_outer::Workers;

/// How many observations and draws a [`calibrate`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Simulated observations.
    pub observations: usize,
    /// Posterior draws for each.
    pub draws: usize,
}

/// What [`calibrate`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Credibility of the true parameters, per observation.
    pub credibilities: Vec<f64>,
    /// Ranks of the true parameters, per parameter.
    pub uniformity: Vec<Uniformity>,
    /// `ln` of the ratio's mean over the prior, per observation: 0 for a right one that is normalized.
    pub log_evidence: Vec<f64>,
    /// Observations whose sampler gave a warning.
    pub warned: usize,
    /// Simulations that were not finite, and are left out: coverage is then that given a valid simulation.
    pub invalid: usize,
}

impl Calibration {
    /// Expected coverage at these levels.
    pub fn coverage(&self, levels: &[f64]) -> Vec<CoveragePoint> {
        expected_coverage(&self.credibilities, levels)
    }
}

/// Simulates observations and draws from the posterior of each: expected coverage and simulation-based calibration
/// in one run. The estimator is used as it is, so this costs no training and no more simulations than observations.
///
/// # Errors
/// Those of the sampler; no observations, or none that is finite.
pub fn calibrate(
    estimator: &RatioEstimator,
    simulator: &dyn Simulator,
    sampler: &dyn Sampler,
    runs: Runs,
    key: Key,
    workers: &Workers,
) -> Result<Calibration> {
    let counts = [("observations", runs.observations as f64), ("draws", runs.draws as f64)];
    check_settings("calibration", counts.map(|(k, v)| (k, v, Interval::COUNT)))?;
    let joint = simulate(simulator, key.named("observations"), 0, runs.observations, workers);
    let (d, p) = (simulator.prior().dim(), simulator.data_dim());
    let mut out = Calibration {
        credibilities: Vec::new(),
        uniformity: Vec::new(),
        log_evidence: Vec::new(),
        warned: 0,
        invalid: 0,
    };
    let mut ranks = vec![Vec::new(); d];
    for (i, (theta, x)) in joint.theta.chunks_exact(d).zip(joint.x.chunks_exact(p)).enumerate() {
        if x.iter().any(|x| !x.is_finite()) {
            out.invalid += 1;
            continue;
        }
        let posterior = estimator.posterior(x, simulator.prior())?;
        let key = key.named("draws").fold_in(i as u64);
        let samples = sampler.sample(&posterior, runs.draws, key, workers)?;
        let log_q = |theta: &[f64]| -> Vec<f64> {
            let prior = theta.chunks_exact(d).map(|t| simulator.prior().log_density(t));
            posterior.log_ratio(theta).into_iter().zip(prior).map(|(f, p)| f + p).collect()
        };
        out.credibilities.push(credibility(&log_q(&samples.draws), log_q(theta)[0]));
        for (ranks, r) in ranks.iter_mut().zip(sbc_ranks(&samples.draws, theta)) {
            ranks.push(r);
        }
        out.log_evidence.extend(samples.report.log_evidence);
        out.warned += usize::from(!samples.report.warnings().is_empty());
    }
    if out.credibilities.is_empty() {
        let why = format!("expected a finite one, got none in {} simulations", out.invalid);
        return Err(Error::invalid("calibration: observations", why));
    }
    out.uniformity = ranks.iter().map(|r| uniformity(r, runs.draws)).collect();
    Ok(out)
}

/// The ROC test of the paper: data simulated at `theta` against data of the whole prior, resampled by the ratio at
/// `theta`. The area under the curve of a classifier between them is 0.5 where the ratio is right.
///
/// `n` data sets each; simulations that are not finite are left out. Reference: Hermans, Begy, Louppe 2020, arXiv:1903.04057, section 4.
///
/// # Errors
/// No finite data.
pub fn roc_test(
    estimator: &RatioEstimator,
    simulator: &dyn Simulator,
    theta: &[f64],
    n: usize,
    key: Key,
    workers: &Workers,
) -> Result<f64> {
    let p = simulator.data_dim();
    let own = simulate_at(simulator, &theta.repeat(n), key.named("own"), workers);
    // Many candidates: where the ratio is large for few of them, they repeat.
    let all = simulate(simulator, key.named("all"), 0, 20 * n, workers).x;
    let finite = |x: &&[f64]| x.iter().all(|x| x.is_finite());
    let own: Vec<f64> = own.chunks_exact(p).filter(finite).flatten().copied().collect();
    let mut items: Vec<&[f64]> = all.chunks_exact(p).filter(finite).collect();
    if own.is_empty() || items.is_empty() {
        let got = (own.len() / p, items.len());
        return Err(Error::mismatch(
            "roc test: finite simulations at theta and in all",
            "at least 1 each",
            got,
        ));
    }
    let n = own.len() / p;
    let ratios = workers.map(&mut items, |_, _, x| {
        estimator.posterior(x, simulator.prior()).map(|posterior| posterior.log_ratio(theta)[0])
    });
    let ratios = ratios.into_iter().collect::<Result<Vec<f64>>>()?;
    let index = resample(&ratios, n, key.named("resample").uniform());
    let weighted: Vec<f64> = index.iter().flat_map(|i| items[*i]).copied().collect();
    let test = perceptron(&own, &weighted, p, key.named("classifier"), workers)?;
    let labels: Vec<bool> = (0..2 * n).map(|i| i >= n).collect();
    Ok(auc(&test.logits, &labels))
}
