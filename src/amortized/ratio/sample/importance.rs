//! Importance resampling from the prior.

use super::metropolis::LANE;
use super::{check_count, Chains, SampleReport, Sampler, Samples};
use crate::ratio::density::{Density, Target};
use crate::ratio::metrics::chains::importance_weights;
use outerloop_core::{check_settings, Interval, Key, Result};
use outerloop_outer::Workers;

/// Prior draws, resampled in proportion to `e^f`. Exact up to the weights, finds every mode that the draws hit, and
/// gives the evidence without bias; the effective number of draws is small where the data says much.
/// Reference: Rubin 1987 (sampling importance resampling).
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// Prior draws; default 100,000.
    pub proposals: usize,
}

impl Default for Importance {
    fn default() -> Self {
        Importance { proposals: 100_000 }
    }
}

impl Sampler for Importance {
    fn name(&self) -> String {
        "importance".into()
    }
    fn sample(&self, density: &dyn Density, n: usize, key: Key, workers: &Workers) -> Result<Samples> {
        check_count(n)?;
        check_settings("importance", [("proposals", self.proposals as f64, Interval::COUNT)])?;
        let d = density.prior().dim();
        let size = 8 * LANE;
        let mut lanes: Vec<usize> =
            (0..self.proposals).step_by(size).map(|s| size.min(self.proposals - s)).collect();
        let parts = workers.map(&mut lanes, |_, i, n| {
            let mut target = Target::new(density);
            let chains = Chains::from_prior(*n, key.fold_in(i as u64), &mut target, density.prior());
            (chains, target.evaluations, target.invalid)
        });
        let factors: Vec<f64> = parts.iter().flat_map(|p| p.0.factor.iter().copied()).collect();
        let rows: Vec<&[f64]> = parts.iter().flat_map(|p| p.0.theta.chunks_exact(d)).collect();
        let weights = importance_weights(&factors);
        let index = super::smc::resample(&factors, n, key.named("resample").uniform());
        let report = SampleReport {
            sampler: self.name(),
            evaluations: parts.iter().map(|p| p.1).sum(),
            invalid: parts.iter().map(|p| p.2).sum(),
            acceptance: 1.0,
            ess: vec![weights.ess; d],
            log_evidence: Some(weights.log_mean),
            ..SampleReport::default()
        };
        let draws = index.iter().flat_map(|i| rows[*i].iter().copied()).collect();
        Ok(Samples { dim: d, draws, report })
    }
}
