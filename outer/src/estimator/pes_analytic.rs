//! PES with an analytic control variate.

use super::persistent::Persistent;
use super::truncated_grad::check;
use super::{
    trained_steps, Antithetic, Contribution, Estimate, EstimateInputs, EstimatorState, GradientEstimator,
    Lane, Shaping,
};
use crate::adjoint::{Memory, StepWeights, SweepConfig};
use crate::episode::Episode;
use crate::unroll::{LaneRun, TruncatedStep, Window};
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
    pairs: Persistent,
    memory: Memory,
}

impl PesAnalytic {
    /// Errors on settings out of range, an update rule without derivative, and the sign option, which
    /// has no unbiased control variate.
    pub fn new(step: TruncatedStep, common: Antithetic, memory: Memory) -> Result<Self> {
        check(&step, common.num_tasks, &SweepConfig::default())?;
        if common.sign.is_some() || common.shaping != Shaping::None {
            return Err(Error::invalid(
                "sign",
                "PES with a control variate needs the loss differences themselves, without shaping",
            ));
        }
        Ok(PesAnalytic { pairs: Persistent::new(step, common, 1)?, memory })
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
        let Persistent { step, common, .. } = &self.pairs;
        let (mut clock, trunc_length) = (lane.clock.clone(), common.trunc_length);
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
            step.window_and_grad(inputs.theta, &mut run, steps, &config, worker)
                .expect("the constructor checked the update rule")
                .grad
        })
    }

    /// A lane's contribution from that of its pair and [`Self::analytic`].
    fn controlled(
        &self,
        eps: &[f32],
        [pos, _]: &[Window; 2],
        [mut before, mut after]: [Vec<f32>; 2],
        of_pair: Contribution,
    ) -> Contribution {
        let common = &self.pairs.common;
        let divisor = common.window_loss.divisor(&pos.mask);
        for a in before.iter_mut().chain(&mut after) {
            *a /= divisor as f32;
        }
        // A run that diverged at the unperturbed theta predicts nothing.
        let finite = before.iter().chain(&after).all(|a| a.is_finite());
        // `reduce` multiplies by 1/(2σ²): the analytic part must not be.
        let whole = 1.0 / common.factor();
        Contribution {
            sum: of_pair.sum - 2.0 * dot(eps, &before),
            eps: of_pair.eps - 2.0 * dot(eps, &after),
            terms: vec![(whole, before), (whole, after)],
            inner_steps: of_pair.inner_steps + trained_steps(pos),
            diverged: of_pair.diverged || !finite,
            ..of_pair
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
        format!("pes-analytic({:?}, {})", self.pairs.common, self.pairs.step.describe())
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        self.pairs.start(theta, key, workers, 3)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        let family = &self.pairs.step.family;
        let analytic = |i: usize, lane: &mut Lane, buffers: &mut LaneBuffers<f32>, worker: &mut Worker| {
            let kept = Episode::kept(&mut buffers.episode, family, inputs.lane(i), lane.clock.episode);
            self.analytic(inputs, kept.clone(), lane, worker)
        };
        self.pairs.estimate_with(
            inputs,
            &mut state.lanes,
            analytic,
            |_, buffers, windows, (analytic, of_pair)| {
                self.controlled(&buffers.eps, windows, analytic, of_pair)
            },
        )
    }
}
