//! Antithetic pairs of a few neighbouring lanes, whose optimizers step together where that is faster.

use super::reduce::over_lane_chunks;
use super::{end_if_diverged, moved, run_pair, Antithetic, Contribution, Estimate, EstimateInputs, Lane};
use crate::episode::{Clock, Episode, Trajectory};
use crate::unroll::{LaneRun, TruncatedStep, Window};
use crate::workers::{LaneBuffers, Worker};
use outerloop_core::{Layout, LearnedOptimizer};

/// What an antithetic pair needs of its lane.
struct LanePair<'a> {
    clock: &'a mut Clock,
    /// Positive first.
    trajectories: [&'a mut Trajectory; 2],
    buffers: &'a mut LaneBuffers<f32>,
    /// See [`Lane::held`].
    held: Option<u64>,
}

impl<'a> LanePair<'a> {
    /// A lane's pair. A lane with one trajectory has a `copy` for the negative sign and goes on from the
    /// positive one.
    fn new(lane: &'a mut Lane, copy: &'a mut Option<Trajectory>, buffers: &'a mut LaneBuffers<f32>) -> Self {
        let (([plus], Some(minus)) | ([plus, minus, ..], None)) = (&mut lane.trajectories[..], copy) else {
            unreachable!("lanes hold a pair first, or one trajectory and its copy")
        };
        LanePair { clock: &mut lane.clock, trajectories: [plus, minus], buffers, held: lane.held }
    }

    /// The pair in its episode; `lane`: its number.
    fn in_episode(
        self,
        step: &TruncatedStep,
        inputs: EstimateInputs<'_>,
        lane: usize,
    ) -> LaneRun<'a, f32, 2> {
        let LanePair { clock, trajectories, buffers, .. } = self;
        let kept = &mut buffers.episode;
        let episode = Episode::kept(kept, &step.family, inputs.lane(lane), clock.episode);
        LaneRun { episode, clock, trajectories, outer_step: inputs.outer_step }
    }
}

/// How many of so many neighbouring lanes, which train a task of this layout, to give to a thread at once; changes no
/// result.
pub(super) fn lanes_per_chunk(
    lopt: &dyn LearnedOptimizer,
    layout: Option<&Layout>,
    lanes: usize,
    threads: usize,
) -> usize {
    let group_size = layout.map_or(1, |layout| lopt.group_size(layout));
    let pairs = (group_size / 2).min(lanes.div_ceil(threads));
    if fills(pairs, group_size) {
        pairs
    } else {
        1
    }
}

/// Whether so many pairs fill a group of optimizers well enough to be faster than alone.
pub(super) fn fills(pairs: usize, group_size: usize) -> bool {
    group_size > 1 && 8 * pairs >= 3 * group_size
}

impl Antithetic {
    /// Advances the lanes' antithetic pairs by a window, each pair at its perturbation, and adds up what
    /// `contribution` makes of a lane, its windows (positive first) and what `before` made of the lane, given its
    /// number, before its pair advanced.
    pub(super) fn estimate_pairs<T: Send>(
        &self,
        step: &TruncatedStep,
        inputs: EstimateInputs<'_>,
        lanes: &mut [Lane],
        before: impl Fn(usize, &mut Lane, &mut LaneBuffers<f32>, &mut Worker) -> T + Sync,
        contribution: impl Fn(&mut Lane, &mut LaneBuffers<f32>, &[Window; 2], T) -> Contribution + Sync,
    ) -> Estimate {
        let layout = lanes.first().map(|l| &*l.trajectories[0].opt.layout);
        let chunk = lanes_per_chunk(&*step.lopt, layout, lanes.len(), inputs.workers.threads());
        over_lane_chunks(inputs, lanes, chunk, self.scale(), |worker, first, lanes, buffers| {
            let numbered = (first..).zip(lanes.iter_mut()).zip(buffers.iter_mut());
            let extras: Vec<T> =
                numbered.map(|((i, lane), buffers)| before(i, lane, buffers, worker)).collect();
            let copy = |lane: &Lane| (lane.trajectories.len() == 1).then(|| lane.trajectories[0].clone());
            let mut copies: Vec<Option<Trajectory>> = lanes.iter().map(copy).collect();
            let pairs = lanes.iter_mut().zip(&mut copies).zip(&mut *buffers);
            let pairs = pairs.map(|((lane, copy), buffers)| LanePair::new(lane, copy, buffers)).collect();
            let windows = self.run_pairs(step, inputs, first, pairs, worker);
            let lanes = lanes.iter_mut().zip(buffers).zip(windows.iter().zip(extras));
            lanes
                .map(|((lane, buffers), (windows, extra))| contribution(lane, buffers, windows, extra))
                .collect()
        })
    }

    /// Draws the perturbations of the lanes from number `first` on and advances their pairs by a window.
    fn run_pairs(
        &self,
        step: &TruncatedStep,
        inputs: EstimateInputs<'_>,
        first: usize,
        mut pairs: Vec<LanePair<'_>>,
        worker: &mut Worker,
    ) -> Vec<[Window; 2]> {
        let (theta, steps) = (inputs.theta, self.trunc_length);
        let layout = pairs[0].trajectories[0].opt.layout.clone();
        let is_group = fills(pairs.len(), step.lopt.group_size(&layout))
            && pairs.iter().all(|p| p.trajectories[0].opt.layout == layout);
        if !is_group {
            let alone = (first..).zip(pairs).map(|(i, pair)| {
                let noise = inputs.noise_of(pair.held.unwrap_or(inputs.outer_step), i);
                let opts = self.perturbed(&*step.lopt, inputs, noise, &mut pair.buffers.eps, worker);
                run_pair(step, &opts, &mut pair.in_episode(step, inputs, i), steps, worker)
            });
            return alone.collect();
        }
        let mut thetas = Vec::with_capacity(2 * pairs.len());
        for (i, pair) in (first..).zip(&mut pairs) {
            let eps = &mut pair.buffers.eps;
            self.draw(inputs, inputs.noise_of(pair.held.unwrap_or(inputs.outer_step), i), eps);
            thetas.extend([1.0, -1.0].map(|sign| moved(theta, sign, eps).collect()));
        }
        let group = step.lopt.group(thetas);
        let runs = (first..).zip(pairs).map(|(i, pair)| pair.in_episode(step, inputs, i));
        let mut runs: Vec<LaneRun<'_, f32, 2>> = runs.collect();
        let windows = step.windows_grouped(&*group, &mut runs, steps);
        for (run, windows) in runs.iter_mut().zip(&windows) {
            end_if_diverged(run.clock, windows);
        }
        windows
    }
}
