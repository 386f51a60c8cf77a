//! Antithetic pairs of several lanes whose optimizers update as one group ([`OptimizerGroup`]).

use crate::episode::{Clock, Episode};
use crate::unroll::{LaneRun, StepOutcome, TruncatedStep, Window};
use outerloop_core::{Evaluator, Float, MemberUpdate, Optimizer, OptimizerGroup};

/// A lane's antithetic pair without the optimizers' states, which are in the group's updates.
struct Pair<'a, E: Float> {
    episode: &'a mut Episode<E>,
    clock: &'a mut Clock,
    outer_step: u64,
    model_states: [&'a mut Vec<E>; 2],
    evaluator: Box<dyn Evaluator<E>>,
    windows: [Window; 2],
}

impl<E: Float> TruncatedStep<E> {
    /// [`TruncatedStep::windows`] of the pairs of many lanes, to the same bits. The optimizers of lane `i`
    /// are members `2 i` and `2 i + 1` of the group.
    pub(crate) fn windows_grouped(
        &self,
        group: &dyn OptimizerGroup<E>,
        lanes: &mut [LaneRun<'_, E, 2>],
        steps: usize,
    ) -> Vec<[Window; 2]> {
        let mut updates = Vec::with_capacity(2 * lanes.len());
        let mut pairs: Vec<Pair<'_, E>> = Vec::with_capacity(lanes.len());
        for LaneRun { episode, clock, trajectories, outer_step } in lanes {
            let model_states = trajectories.each_mut().map(|t| {
                let grad = vec![E::of(0.0); t.opt.params.len()];
                let (loss, key) = (E::of(0.0), episode.keys.opt);
                updates.push(MemberUpdate { state: &mut t.opt, grad, loss, key, skip: false });
                &mut t.model_state
            });
            let evaluator = episode.task.evaluator();
            let windows = std::array::from_fn(|_| Window::with_capacity(steps));
            let outer_step = *outer_step;
            pairs.push(Pair { episode, clock, outer_step, model_states, evaluator, windows });
        }
        for _ in 0..steps {
            for (i, (pair, updates)) in pairs.iter_mut().zip(updates.chunks_exact_mut(2)).enumerate() {
                if pair.clock.is_done {
                    self.restart_pair(group, i, pair, updates);
                } else {
                    pair.differentiate(updates);
                }
            }
            group.update(&mut updates);
            for (i, (pair, updates)) in pairs.iter_mut().zip(updates.chunks_exact(2)).enumerate() {
                let opts = [group.member(2 * i), group.member(2 * i + 1)];
                self.record_outcomes(opts, pair, updates);
            }
        }
        pairs.into_iter().map(|pair| pair.windows).collect()
    }

    /// Starts the next run of lane `i`; its members skip this update.
    fn restart_pair(
        &self,
        group: &dyn OptimizerGroup<E>,
        i: usize,
        pair: &mut Pair<'_, E>,
        updates: &mut [MemberUpdate<'_, E>],
    ) {
        let opts = [group.member(2 * i), group.member(2 * i + 1)];
        let starts = self.restart(opts, pair.episode, pair.clock, pair.outer_step);
        pair.evaluator = pair.episode.task.evaluator();
        for ((start, update), model_state) in starts.into_iter().zip(updates).zip(&mut pair.model_states) {
            update.grad.resize(start.opt.params.len(), E::of(0.0));
            (update.key, update.skip) = (pair.episode.keys.opt, true);
            (*update.state, **model_state) = (start.opt, start.model_state);
        }
    }

    /// What the step did, for the windows; moves the clock on.
    fn record_outcomes(
        &self,
        opts: [&dyn Optimizer<E>; 2],
        pair: &mut Pair<'_, E>,
        updates: &[MemberUpdate<'_, E>],
    ) {
        let at = pair.episode.batch(pair.clock);
        if !updates[0].skip {
            pair.clock.advance();
        }
        let members = updates.iter().zip(&pair.model_states).zip(&mut pair.windows);
        for (((update, model_state), window), opt) in members.zip(opts) {
            let outcome = if update.skip {
                StepOutcome::Reset
            } else {
                let meta = match self.meta_loss.batch(at) {
                    Some(at) => {
                        let params = opt.evaluation_params(update.state);
                        pair.evaluator.loss(&params, model_state, at)
                    }
                    None => update.loss,
                };
                StepOutcome::Trained { loss: update.loss, meta }
            };
            window.push(self.objective_of(pair.episode), &*pair.episode.task, pair.clock, outcome);
        }
    }
}

impl<E: Float> Pair<'_, E> {
    /// Loss and gradient of both signs on the next batch.
    fn differentiate(&mut self, updates: &mut [MemberUpdate<'_, E>]) {
        let at = self.episode.batch(self.clock);
        for (update, model_state) in updates.iter_mut().zip(&mut self.model_states) {
            update.skip = false;
            let params = &update.state.params;
            update.loss = self.evaluator.loss_and_grad(params, model_state, at, &mut update.grad);
        }
    }
}
