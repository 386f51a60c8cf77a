//! Samplers: draws from a [`Density`], and what they are worth.
//!
//! All of them work on many chains at once, cut into lanes: a lane is computed on one thread, evaluates all
//! of its chains in one call, and has its own key. So draws are the same, bit by bit, for any number of threads.
//!
//! | sampler | for | against |
//! |---|---|---|
//! | [`Smc`] | finds all modes, gives the evidence; the default | no trajectories |
//! | [`Metropolis`] | simple, adapted in the warm-up | does not cross modes |
//! | [`Hmc`] | uses the gradient: many parameters | does not cross modes |
//! | [`Importance`] | independent draws and the evidence | few effective draws where the data says much |
//! | [`Grid`] | exact, up to two parameters | two parameters |
//! | [`seed_metropolis`] | the seed's chain with given noise: the baseline | everything |

mod grid;
mod hmc;
mod importance;
mod metropolis;
mod smc;

pub use grid::{Grid, GridDensity};
pub use hmc::Hmc;
pub use importance::Importance;
pub use metropolis::{accepts, kept_rows, seed_metropolis, Metropolis, SeedTrace};
pub use smc::{resample, Smc};

use super::density::{Density, Target};
use super::metrics::chains::{effective_sample_size, split_rhat};
use super::Prior;
use outerloop_core::{Error, Key, Result};
use outerloop_outer::Workers;

/// Draws with their report.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// Number of parameters.
    pub dim: usize,
    /// `[n, dim]`
    pub draws: Vec<f64>,
    /// How they came about.
    pub report: SampleReport,
}

/// What a sampler says of its draws.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleReport {
    /// Name of the sampler.
    pub sampler: String,
    /// Rows of the density evaluated.
    pub evaluations: u64,
    /// Rows whose density was NaN; they count as 0.
    pub invalid: u64,
    /// Share of proposals accepted after the warm-up; 1 where there are none.
    pub acceptance: f64,
    /// Split R-hat per parameter: over chains, or over independent populations. Empty if draws are independent.
    pub rhat: Vec<f64>,
    /// Effective sample size per parameter.
    pub ess: Vec<f64>,
    /// Chains that never moved after the warm-up; of [`Smc`], whose particles move a few times only, if they are
    /// more than a tenth.
    pub stuck: usize,
    /// All chains.
    pub chains: usize,
    /// `ln ∫ p(theta) e^f`: for a normalized log ratio near 0, for a log likelihood the log evidence.
    pub log_evidence: Option<f64>,
}

/// R-hat above which chains count as unmixed.
const MIXED: f64 = 1.05;
/// Effective draws below which moments are worth little.
const ENOUGH: f64 = 100.0;
/// A strip of the prior's range along an edge, and the share of draws in it that is worth a word: five times
/// what a flat posterior has there.
const STRIP: f64 = 0.01;
const CROWDED: f64 = 0.05;

impl SampleReport {
    /// What a user must know before using the draws: stuck and unmixed chains, few effective draws.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.stuck > 0 {
            out.push(format!(
                "{} of {} chains are stuck: they never moved after the warm-up",
                self.stuck, self.chains
            ));
        }
        let worst = self.rhat.iter().enumerate().filter(|(_, r)| **r > MIXED || r.is_nan());
        let worst: Vec<String> = worst.map(|(k, r)| format!("{r:.3} for parameter {k}")).collect();
        if !worst.is_empty() {
            out.push(format!(
                "not mixed: R-hat is {}, expected below {MIXED}; the draws are not from the posterior: take more \
                 steps, or another sampler (smc)",
                worst.join(", ")
            ));
        }
        let least = self.ess.iter().copied().fold(f64::INFINITY, f64::min);
        if !self.ess.is_empty() && (least < ENOUGH || self.ess.iter().any(|e| e.is_nan())) {
            out.push(format!(
                "only {least:.0} effective draws, fewer than {ENOUGH}: moments and quantiles are rough"
            ));
        }
        if self.invalid > 0 {
            out.push(format!(
                "the density was NaN at {} of {} rows; they count as 0",
                self.invalid, self.evaluations
            ));
        }
        out
    }
}

impl Samples {
    /// Number of draws.
    pub fn len(&self) -> usize {
        self.draws.len() / self.dim
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.draws.is_empty()
    }
    /// The values of one parameter.
    pub fn column(&self, k: usize) -> Vec<f64> {
        self.draws.iter().skip(k).step_by(self.dim).copied().collect()
    }
    /// Means.
    pub fn mean(&self) -> Vec<f64> {
        (0..self.dim).map(|k| self.column(k).iter().sum::<f64>() / self.len() as f64).collect()
    }
    /// Standard deviations.
    pub fn std(&self) -> Vec<f64> {
        let mean = self.mean();
        let var =
            |k: usize| self.column(k).iter().map(|v| (v - mean[k]).powi(2)).sum::<f64>() / self.len() as f64;
        (0..self.dim).map(|k| var(k).sqrt()).collect()
    }
    /// Parameters whose draws crowd at an edge of the prior: the data wants values that the prior excludes.
    pub fn edge_warnings(&self, prior: &dyn Prior) -> Vec<String> {
        let mut out = Vec::new();
        for (k, (low, high)) in prior.bounds().into_iter().enumerate() {
            let strip = STRIP * (high - low);
            if !strip.is_finite() {
                continue;
            }
            let values = self.column(k);
            for (edge, name) in [(low, "lower"), (high, "upper")] {
                let near = values.iter().filter(|v| (**v - edge).abs() <= strip).count();
                let share = near as f64 / values.len().max(1) as f64;
                if share > CROWDED {
                    out.push(format!(
                        "parameter {k}: {:.0} % of the draws lie at the {name} edge of the prior ({edge}), within \
                         {:.0} % of its range: the prior may be too narrow",
                        100.0 * share,
                        100.0 * STRIP
                    ));
                }
            }
        }
        out
    }
}

/// A way to draw from a density.
pub trait Sampler: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;
    /// `n` draws; a pure function of density and key, whatever the number of threads.
    ///
    /// # Errors
    /// Settings out of range, and densities that the sampler can not handle.
    fn sample(&self, density: &dyn Density, n: usize, key: Key, workers: &Workers) -> Result<Samples>;
}

/// `smc`, `mh`, `hmc`, `importance`, `grid`, each with its defaults.
///
/// # Errors
/// Another name.
pub fn named(name: &str) -> Result<Box<dyn Sampler>> {
    Ok(match name {
        "smc" => Box::new(Smc::default()),
        "mh" => Box::new(Metropolis::default()),
        "hmc" => Box::new(Hmc::default()),
        "importance" => Box::new(Importance::default()),
        "grid" => Box::new(Grid::default()),
        _ => {
            let allowed = ["smc", "mh", "hmc", "importance", "grid"].map(String::from).to_vec();
            return Err(Error::Unknown { what: "sampler", got: name.into(), allowed });
        }
    })
}

/// Errors unless there is something to draw.
fn check_count(n: usize) -> Result<()> {
    if n == 0 {
        return Err(Error::invalid("number of draws", "must be at least 1, got 0"));
    }
    Ok(())
}

/// The chains of one lane: where they are, and the density there.
#[derive(Clone, Debug, Default)]
struct Chains {
    /// `[n, dim]`
    theta: Vec<f64>,
    /// Log prior, `[n]`.
    prior: Vec<f64>,
    /// Log factor, `[n]`.
    factor: Vec<f64>,
}

impl Chains {
    fn at(theta: Vec<f64>, target: &mut Target<'_>) -> Self {
        let n = theta.len() / target.dim();
        let (mut prior, mut factor) = (vec![0.0; n], vec![0.0; n]);
        target.evaluate(&theta, &mut prior, &mut factor);
        Chains { theta, prior, factor }
    }
    /// `n` draws from the prior.
    fn from_prior(n: usize, key: Key, target: &mut Target<'_>, prior: &dyn Prior) -> Self {
        let d = prior.dim();
        let mut theta = vec![0.0; n * d];
        for (i, t) in theta.chunks_exact_mut(d).enumerate() {
            prior.sample(key.fold_in(i as u64), t);
        }
        Self::at(theta, target)
    }
    /// The chains that `index` names, in its order.
    fn picked(&self, index: &[usize], d: usize) -> Self {
        Chains {
            theta: index.iter().flat_map(|&i| self.theta[i * d..(i + 1) * d].iter().copied()).collect(),
            prior: index.iter().map(|&i| self.prior[i]).collect(),
            factor: index.iter().map(|&i| self.factor[i]).collect(),
        }
    }
}

/// What a lane leaves: kept states `[steps, chains, dim]` and counts.
#[derive(Clone, Debug, Default)]
struct LaneTrace {
    states: Vec<f64>,
    chains: usize,
    accepted: u64,
    proposed: u64,
    stuck: usize,
    evaluations: u64,
    invalid: u64,
}

/// Draws and report of chains that ran in lanes: `n` states, evenly spread over the kept steps, the latest last.
fn gather(name: &str, dim: usize, lanes: &[LaneTrace], n: usize) -> Samples {
    let sum = |f: fn(&LaneTrace) -> u64| lanes.iter().map(f).sum::<u64>();
    let chains: usize = lanes.iter().map(|l| l.chains).sum();
    let steps = lanes[0].states.len() / (dim * lanes[0].chains).max(1);
    let state = |lane: &LaneTrace, step: usize, chain: usize, k: usize| {
        lane.states[(step * lane.chains + chain) * dim + k]
    };
    let (mut rhat, mut ess) = (Vec::new(), Vec::new());
    for k in 0..dim {
        let columns: Vec<Vec<f64>> = lanes
            .iter()
            .flat_map(|l| (0..l.chains).map(move |c| (0..steps).map(|s| state(l, s, c, k)).collect()))
            .collect();
        let views: Vec<&[f64]> = columns.iter().map(|c| &c[..]).collect();
        rhat.push(split_rhat(&views));
        ess.push(effective_sample_size(&views));
    }
    let all = steps * chains;
    let mut draws = Vec::with_capacity(n * dim);
    for i in 0..n {
        // Counted from the end, so that few draws are late ones of all chains; from the start again if n > all.
        let index = (all - 1) - (n - 1 - i) % all;
        let (step, mut chain) = (index / chains, index % chains);
        let lane = lanes.iter().find(|l| {
            let here = chain < l.chains;
            chain -= if here { 0 } else { l.chains };
            here
        });
        let lane = lane.expect("every chain lies in a lane");
        draws.extend((0..dim).map(|k| state(lane, step, chain, k)));
    }
    let report = SampleReport {
        sampler: name.into(),
        evaluations: sum(|l| l.evaluations),
        invalid: sum(|l| l.invalid),
        acceptance: sum(|l| l.accepted) as f64 / sum(|l| l.proposed).max(1) as f64,
        rhat,
        ess,
        stuck: lanes.iter().map(|l| l.stuck).sum(),
        chains,
        log_evidence: None,
    };
    Samples { dim, draws, report }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_chains_are_named() {
        let report = SampleReport {
            rhat: vec![1.0, 1.7, f64::INFINITY],
            ess: vec![3.0],
            stuck: 2,
            chains: 10,
            ..SampleReport::default()
        };
        let said = report.warnings().join("\n");
        assert!(said.contains("2 of 10 chains are stuck"), "{said}");
        assert!(said.contains("R-hat is 1.700 for parameter 1, inf for parameter 2"), "{said}");
        assert!(said.contains("only 3 effective draws"), "{said}");
        assert!(SampleReport { rhat: vec![1.001], ess: vec![500.0], ..report_of_none() }
            .warnings()
            .is_empty());
    }
    fn report_of_none() -> SampleReport {
        SampleReport::default()
    }

    #[test]
    fn draws_at_an_edge_are_named() {
        let prior = super::super::UniformBox::cube(1, 0.0, 1.0).unwrap();
        let draws: Vec<f64> = (0..100).map(|i| if i < 20 { 0.999 } else { 0.5 }).collect();
        let samples = Samples { dim: 1, draws, report: SampleReport::default() };
        let said = samples.edge_warnings(&prior);
        assert!(said.len() == 1 && said[0].contains("20 % of the draws lie at the upper edge"), "{said:?}");
    }
}
