//! PES with an analytic control variate.

use super::pes::{PesTerms, TerminalWeight};
use super::truncated_grad::check;
use super::{
    over_lanes, run_pair, start_lanes, trained_steps, Antithetic, Contribution, Estimate, EstimateInputs,
    EstimatorState, GradientEstimator, Lane,
};
use crate::adjoint::{Memory, StepWeights, SweepConfig};
use crate::episode::Episode;
use crate::unroll::{LaneRun, TruncatedStep};
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
    step: TruncatedStep,
    common: Antithetic,
    memory: Memory,
}

impl PesAnalytic {
    /// Errors on settings out of range, an update rule without derivative, and the sign option, which
    /// has no unbiased control variate.
    pub fn new(step: TruncatedStep, common: Antithetic, memory: Memory) -> Result<Self> {
        common.validate(&step)?;
        check(&step, common.num_tasks, &SweepConfig::default())?;
        if common.sign.is_some() {
            return Err(Error::invalid(
                "sign",
                "PES with a control variate needs the loss differences themselves",
            ));
        }
        Ok(PesAnalytic { step, common, memory })
    }

    /// Exact gradients of the unperturbed window's loss sums, before and after its first reset; advances
    /// the lane's third trajectory.
    fn analytic(
        &self,
        inputs: EstimateInputs<'_>,
        mut episode: Episode,
        lane: &mut Lane,
        worker: &mut Worker,
    ) -> [Vec<f32>; 2] {
        let (mut clock, trunc_length) = (lane.clock.clone(), self.common.trunc_length);
        let left = match clock.length {
            _ if clock.is_done => 0,
            Some(n) => n.saturating_sub(clock.inner_step).max(1).min(trunc_length as u64) as usize,
            None => trunc_length,
        };
        let mut run = LaneRun {
            episode: &mut episode,
            clock: &mut clock,
            trajectories: [&mut lane.trajectories[2]],
            outer_step: inputs.outer_step,
        };
        [left, trunc_length - left].map(|steps| {
            let weights = StepWeights::Given(vec![1.0; steps]);
            let config = SweepConfig { weights, memory: self.memory, clip: None };
            self.step
                .window_and_grad(inputs.theta, &mut run, steps, &config, worker)
                .expect("the constructor checked the update rule")
                .grad
        })
    }

    /// Advances lane `i` by a window.
    fn contribution(
        &self,
        inputs: EstimateInputs<'_>,
        i: usize,
        lane: &mut Lane,
        buffers: &mut LaneBuffers<f32>,
        worker: &mut Worker,
    ) -> Contribution {
        let (c, step) = (&self.common, &self.step);
        let opts = c.perturbed(&*step.lopt, inputs.theta, inputs.noise(i), &mut buffers.eps, worker);
        let kept = &mut buffers.episode;
        let episode = Episode::kept(kept, &step.family, inputs.lane(i), lane.clock.episode);
        let [mut before, mut after] = self.analytic(inputs, episode.clone(), lane, worker);
        let [plus, minus, _] = &mut lane.trajectories[..] else {
            unreachable!("lanes hold an antithetic pair and its mean")
        };
        let (clock, outer_step) = (&mut lane.clock, inputs.outer_step);
        let mut pair = LaneRun { episode, clock, trajectories: [plus, minus], outer_step };
        let windows = run_pair(step, &opts, &mut pair, c.trunc_length, worker);
        let [pos, neg] = &windows;
        let divisor = c.window_loss.divisor(&pos.mask);
        for a in before.iter_mut().chain(&mut after) {
            *a /= divisor as f32;
        }
        let t = PesTerms::new(pos, neg, c.window_loss, None, TerminalWeight::Full);
        let metrics = Contribution::of_windows(&windows);
        // A run that diverged at the unperturbed theta predicts nothing.
        let finite = before.iter().chain(&after).all(|a| a.is_finite());
        let diverged = metrics.diverged || !finite;
        lane.clock.is_done |= diverged;
        t.next.apply(lane, buffers, diverged);
        // `reduce` multiplies by 1/(2σ²): the analytic part must not be.
        let whole = 1.0 / c.factor();
        Contribution {
            sum: t.before - 2.0 * dot(&buffers.eps, &before),
            eps: t.after - 2.0 * dot(&buffers.eps, &after),
            terms: vec![(whole, before), (whole, after)],
            inner_steps: metrics.inner_steps + trained_steps(pos),
            diverged,
            ..metrics
        }
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
        format!("pes-analytic({:?}, {})", self.common, self.step.describe())
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        start_lanes(&self.step, self.common.num_tasks, theta, key, workers).persistent(3, theta)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        over_lanes(inputs, &mut state.lanes, self.common.factor(), |worker, i, lane, buffers| {
            self.contribution(inputs, i, lane, buffers, worker)
        })
    }
}
