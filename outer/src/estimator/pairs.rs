//! Antithetic pairs of a few neighbouring lanes, whose optimizers step together where that is faster.

use super::{moved, run_pair, Antithetic, EstimateKeys, Lane};
use crate::together::Pair;
use crate::unroll::{Clock, Trajectory, TruncatedStep, Window};
use crate::workers::{LaneBuffers, Worker};
use outerloop_core::LearnedOptimizer;

/// What an antithetic pair needs of its lane.
pub(super) struct LanePair<'a> {
    pub clock: &'a mut Clock,
    /// Positive first.
    pub trajectories: [&'a mut Trajectory; 2],
    pub buffers: &'a mut LaneBuffers<f32>,
}

/// Whether so many pairs fill a group of optimizers well enough to be faster than alone.
fn fills(pairs: usize, group_size: usize) -> bool {
    group_size > 1 && 8 * pairs >= 3 * group_size
}

impl Antithetic {
    /// How many neighbouring lanes to give to a thread at once; changes no result.
    pub(super) fn lanes_together(
        &self,
        lopt: &dyn LearnedOptimizer,
        lanes: &[Lane],
        threads: usize,
    ) -> usize {
        let group_size = lanes.first().map_or(1, |l| lopt.group_size(&l.trajectories[0].opt.layout));
        let pairs = (group_size / 2).min(lanes.len().div_ceil(threads));
        if fills(pairs, group_size) {
            pairs
        } else {
            1
        }
    }

    /// Draws the perturbations of the lanes from number `first` on and advances their pairs by a window.
    pub(super) fn run_pairs(
        &self,
        step: &TruncatedStep,
        theta: &[f32],
        keys: EstimateKeys,
        first: usize,
        mut pairs: Vec<LanePair<'_>>,
        worker: &mut Worker,
    ) -> Vec<[Window; 2]> {
        let (steps, outer_step) = (self.trunc_length, keys.outer_step);
        let layout = pairs[0].trajectories[0].opt.layout.clone();
        let is_group = fills(pairs.len(), step.lopt.group_size(&layout))
            && pairs.iter().all(|p| p.trajectories[0].opt.layout == layout);
        if !is_group {
            let alone = (first..).zip(pairs).map(|(i, LanePair { clock, trajectories, buffers })| {
                let LaneBuffers { eps, place, .. } = buffers;
                let opts = self.perturbed(&*step.lopt, theta, keys.noise(i), eps, worker);
                run_pair(step, place, &opts, keys.lane(i), clock, trajectories, steps, outer_step, worker)
            });
            return alone.collect();
        }
        let mut thetas = Vec::with_capacity(2 * pairs.len());
        for (i, pair) in (first..).zip(&mut pairs) {
            let eps = &mut pair.buffers.eps;
            self.draw(theta.len(), keys.noise(i), eps);
            thetas.extend([1.0, -1.0].map(|sign| moved(theta, sign, eps).collect()));
        }
        let group = step.lopt.group(thetas);
        let running = (first..).zip(&mut pairs).map(|(i, pair)| {
            let lane = keys.lane(i);
            let place = step.place_kept(&mut pair.buffers.place, lane, pair.clock.episode);
            let trajectories = pair.trajectories.each_mut().map(|t| &mut **t);
            Pair { lane, place, clock: pair.clock, trajectories }
        });
        let windows = step.windows_together(&*group, running.collect(), steps, outer_step);
        for (pair, windows) in pairs.iter_mut().zip(&windows) {
            pair.clock.is_done |= windows.iter().any(|w| w.diverged);
        }
        windows
    }
}
