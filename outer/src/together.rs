//! Antithetic pairs of several lanes whose optimizers step together ([`OptimizerGroup`]).

use crate::unroll::{Called, Clock, Place, Trajectory, TruncatedStep, Window};
use outerloop_core::{Evaluator, Float, Key, MemberUpdate, OptimizerGroup};

/// A lane's antithetic pair.
pub(crate) struct Pair<'a, E: Float> {
    /// The lane's key.
    pub lane: Key,
    /// Where its run stands.
    pub place: &'a mut Place<E>,
    /// Shared by the two.
    pub clock: &'a mut Clock,
    /// Positive first.
    pub trajectories: [&'a mut Trajectory<E>; 2],
}

/// A pair at work, without the optimizers' states, which are in the group's updates.
struct Running<'a, E: Float> {
    lane: Key,
    place: &'a mut Place<E>,
    clock: &'a mut Clock,
    model_states: [&'a mut Vec<E>; 2],
    evaluator: Box<dyn Evaluator<E>>,
    windows: [Window; 2],
}

impl<E: Float> TruncatedStep<E> {
    /// [`TruncatedStep::windows`] of many pairs, to the same bits. The optimizers of pair `i` are members
    /// `2 i` and `2 i + 1` of the group.
    pub(crate) fn windows_together(
        &self,
        group: &dyn OptimizerGroup<E>,
        pairs: Vec<Pair<'_, E>>,
        steps: usize,
        outer_step: u64,
    ) -> Vec<[Window; 2]> {
        let mut updates = Vec::with_capacity(2 * pairs.len());
        let mut running: Vec<Running<'_, E>> = Vec::with_capacity(pairs.len());
        for Pair { lane, place, clock, trajectories } in pairs {
            let model_states = trajectories.map(|t| {
                let grad = vec![E::of(0.0); t.opt.params.len()];
                let (loss, key) = (E::of(0.0), place.keys.opt);
                updates.push(MemberUpdate { state: &mut t.opt, grad, loss, key, skip: false });
                &mut t.model_state
            });
            let evaluator = place.task.evaluator();
            let windows = std::array::from_fn(|_| Window::with_capacity(steps));
            running.push(Running { lane, place, clock, model_states, evaluator, windows });
        }
        for _ in 0..steps {
            for (i, (pair, updates)) in running.iter_mut().zip(updates.chunks_exact_mut(2)).enumerate() {
                let is_over = pair.clock.is_done;
                if is_over {
                    let opts = [group.member(2 * i), group.member(2 * i + 1)];
                    let starts = self.restart(opts, pair.lane, pair.place, pair.clock, outer_step);
                    pair.evaluator = pair.place.task.evaluator();
                    for ((start, update), model_state) in
                        starts.into_iter().zip(&mut *updates).zip(&mut pair.model_states)
                    {
                        update.grad.resize(start.opt.params.len(), E::of(0.0));
                        update.key = pair.place.keys.opt;
                        (*update.state, **model_state) = (start.opt, start.model_state);
                    }
                }
                let at = pair.place.batch(pair.clock);
                for (update, model_state) in updates.iter_mut().zip(&mut pair.model_states) {
                    update.skip = is_over;
                    if !is_over {
                        let params = &update.state.params;
                        update.loss = pair.evaluator.loss_and_grad(params, model_state, at, &mut update.grad);
                    }
                }
            }
            group.update(&mut updates);
            for (pair, updates) in running.iter_mut().zip(updates.chunks_exact(2)) {
                let at = pair.place.batch(pair.clock);
                if !updates[0].skip {
                    pair.clock.advance();
                }
                for ((update, model_state), window) in
                    updates.iter().zip(&pair.model_states).zip(&mut pair.windows)
                {
                    let meta = match self.meta_loss.batch(at) {
                        Some(at) if !update.skip => {
                            pair.evaluator.loss(&update.state.params, model_state, at)
                        }
                        _ => update.loss,
                    };
                    let called = match update.skip {
                        true => Called::Reset,
                        false => Called::Trained { loss: update.loss, meta },
                    };
                    window.push(&self.objective, &*pair.place.task, pair.clock, called);
                }
            }
        }
        running.into_iter().map(|pair| pair.windows).collect()
    }
}
