//! PES with an analytic control variate.

use super::pes::{PesTerms, TerminalWeight, TruncatedStepDebug};
use super::truncated_grad::check;
use super::{
    over_lanes, run_pair, start_lanes, trained_steps, Antithetic, Contribution, Estimate, EstimateKeys,
    EstimatorState, GradientEstimator, Lane,
};
use crate::adjoint::{Memory, StepWeights, SweepConfig};
use crate::unroll::TruncatedStep;
use crate::workers::{LaneBuffers, Worker, Workers};
use outerloop_core::{Error, Key, Result};

/// PES with the truncated analytic gradient as control variate.
///
/// Each lane carries a third trajectory at the unperturbed theta. With `a` its exact gradient of the
/// window's loss, `2 ε·a` predicts the loss difference that this window's perturbation causes; it
/// depends on nothing that is drawn in this window but `ε`, so its expectation is known:
///
/// `g = 1/N Σᵢ [ (ξᵢ + εᵢ)(Lᵢ⁺ − Lᵢ⁻ − 2 εᵢ·aᵢ)/(2σ²) + aᵢ ]`,
///
/// with the parts before and after a reset treated alike, weighted `ξ + ε` and `ε`.
///
/// Bias: as [`super::TruncatedPes`], exactly (`E[(ξ + ε)(ε·a)] = σ² a`). Variance: without the share
/// that `ε εᵀ a` has in PES, which grows with the number of meta-parameters; what earlier windows'
/// perturbations cause is left. Cost: 2 N K inner steps as PES, and the adjoint sweep of N K more.
///
/// Reference: Vicol, Metz, Sohl-Dickstein 2021, arXiv:2112.13835, section 4.3.
#[derive(Debug)]
pub struct PesAnalytic {
    step: TruncatedStepDebug,
    common: Antithetic,
    memory: Memory,
}

impl PesAnalytic {
    /// Errors on settings out of range, an update rule without derivative, and the sign option, which
    /// has no unbiased control variate.
    pub fn new(step: TruncatedStep, common: Antithetic, memory: Memory) -> Result<Self> {
        common.validate()?;
        check(&step, common.num_tasks, &SweepConfig::default())?;
        if common.sign.is_some() {
            return Err(Error::invalid(
                "sign",
                "PES with a control variate needs the loss differences themselves",
            ));
        }
        Ok(PesAnalytic { step: TruncatedStepDebug(step), common, memory })
    }

    /// Exact gradients of the unperturbed window's loss sums, before and after its first reset; advances
    /// the lane's third trajectory.
    fn analytic(
        &self,
        theta: &[f32],
        lane: &mut Lane,
        key: Key,
        outer_step: u64,
        worker: &mut Worker,
    ) -> [Vec<f32>; 2] {
        let mut clock = lane.clock.clone();
        let run = &mut lane.trajectories[2];
        let left = match clock.length {
            _ if clock.is_done => 0,
            Some(n) => {
                (n.saturating_sub(clock.inner_step)).max(1).min(self.common.trunc_length as u64) as usize
            }
            None => self.common.trunc_length,
        };
        [left, self.common.trunc_length - left].map(|steps| {
            let config = SweepConfig {
                weights: StepWeights::Given(vec![1.0; steps]),
                memory: self.memory,
                clip: None,
            };
            self.step
                .0
                .window_and_grad(theta, key, &mut clock, run, steps, outer_step, worker, &config)
                .expect("the constructor checked the update rule")
                .grad
        })
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

impl GradientEstimator for PesAnalytic {
    fn name(&self) -> String {
        "pes-analytic".into()
    }

    fn describe(&self) -> String {
        format!("pes-analytic({:?}, {})", self.common, self.step.0.describe())
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        start_lanes(&self.step.0, self.common.num_tasks, 3, theta.len(), theta, key, workers)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let c = &self.common;
        let mut lanes = std::mem::take(&mut state.lanes);
        let (keys, step) = (EstimateKeys::new(state, outer_step), &self.step.0);
        let estimate =
            over_lanes(workers, &mut lanes, theta.len(), c.factor(), |worker, i, lane, buffers| {
                let LaneBuffers { eps, sum, place } = buffers;
                let key = keys.lane(i);
                let opts = c.perturbed(&*step.lopt, theta, keys.noise(i), eps, worker);
                let [mut before, mut after] = self.analytic(theta, lane, key, outer_step, worker);
                let [plus, minus, _] = &mut lane.trajectories[..] else {
                    unreachable!("lanes hold an antithetic pair and its mean")
                };
                let pair = [plus, minus];
                let [pos, neg] = run_pair(
                    step,
                    place,
                    &opts,
                    key,
                    &mut lane.clock,
                    pair,
                    c.trunc_length,
                    outer_step,
                    worker,
                );
                let divisor = c.window_loss.divisor(&pos.mask);
                for a in before.iter_mut().chain(&mut after) {
                    *a /= divisor as f32;
                }
                let t = PesTerms::new(&pos, &neg, c.window_loss, None, TerminalWeight::Full);
                sum.clear();
                sum.extend(lane.accumulator.iter().zip(&*eps).map(|(x, e)| x + e));
                // A run that diverged at the unperturbed theta predicts nothing.
                let finite = before.iter().chain(&after).all(|a| a.is_finite());
                let diverged = pos.diverged || neg.diverged || !finite;
                let coefficients = [t.before - 2.0 * dot(eps, &before), t.after - 2.0 * dot(eps, &after)];
                // `reduce` multiplies by 1/(2σ²): the analytic part must not be.
                let whole = 1.0 / c.factor();
                lane.clock.is_done |= diverged;
                t.next.apply(&mut lane.accumulator, sum, eps, diverged);
                Contribution {
                    sum: coefficients[0],
                    eps: coefficients[1],
                    terms: vec![(whole, before), (whole, after)],
                    inner_steps: trained_steps(&pos) + trained_steps(&neg) + trained_steps(&pos),
                    diverged,
                    ..Contribution::of_windows(&pos, &neg)
                }
            });
        state.lanes = lanes;
        estimate
    }
}
