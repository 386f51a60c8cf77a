//! The sum of several optimizers' steps.

use super::{add, named_slots, part_state, prefix, Part};
use crate::hand::vjp_of;
use outerloop_core::{Float, Key, OptState, Optimizer, Params, UpdateAdjoint, UpdateVjp};

/// `p ← p + Σᵢ dᵢ`, where `dᵢ` is optimizer i's step from the same parameters with its own slots.
///
/// A learned correction beside a trusted rule, for example. Reference: `SumOptimizer` of
/// google/learned_optimization.
pub struct SumOptimizer<E: Float = f32> {
    parts: Vec<Part<E>>,
}

impl<E: Float> SumOptimizer<E> {
    /// The sum of these optimizers' steps; for parts with theta see [`super::Combined`].
    pub fn new(parts: Vec<Box<dyn Optimizer<E>>>) -> Self {
        Self::of(Part::hand(parts))
    }

    pub(super) fn of(parts: Vec<Part<E>>) -> Self {
        SumOptimizer { parts }
    }
}

impl<E: Float> Optimizer<E> for SumOptimizer<E> {
    fn name(&self) -> String {
        format!("sum({})", Part::names(&self.parts))
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        let mut state = OptState::new(params, num_steps);
        for (i, part) in self.parts.iter().enumerate() {
            state.slots.extend(named_slots(&prefix(i), part.opt.init(params, num_steps, key).slots));
        }
        state
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let (mut params, mut slots) = (state.params.clone(), Vec::new());
        for (i, part) in self.parts.iter().enumerate() {
            let mut inner = part_state(state, &prefix(i));
            part.opt.update(&mut inner, grad, loss, key);
            for ((p, new), old) in params.iter_mut().zip(&inner.params).zip(&state.params) {
                *p += *new - *old;
            }
            slots.extend(named_slots(&prefix(i), inner.slots));
        }
        (state.params, state.slots) = (params, slots);
        state.step += 1;
    }
    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        let before = state.clone();
        state.slots.clear();
        for (i, part) in self.parts.iter().enumerate() {
            let mut inner = part_state(&before, &prefix(i));
            part.opt.observe_validation(&mut inner, loss);
            state.step = state.step.max(inner.step);
            state.slots.extend(named_slots(&prefix(i), inner.slots));
        }
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        Part::all_differentiable(&self.parts).then_some(self)
    }
}

impl<E: Float> UpdateVjp<E> for SumOptimizer<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let zero = E::of(0.0);
        let mut total =
            UpdateAdjoint { state: before.zeros_like(), grad: vec![zero; grad.len()], loss: zero };
        total.state.params.copy_from_slice(&after.params);
        total.state.slots.clear();
        for (i, part) in self.parts.iter().enumerate() {
            let (inner, adjoint) = (part_state(before, &prefix(i)), part_state(after, &prefix(i)));
            let theta = &mut theta[part.theta.clone()];
            let a = vjp_of(&*part.opt).vjp(&inner, grad, loss, key, &adjoint, theta);
            // The step is new minus old parameters.
            for ((to, x), step) in total.state.params.iter_mut().zip(&a.state.params).zip(&after.params) {
                *to += *x - *step;
            }
            add(&mut total.grad, &a.grad);
            total.loss += a.loss;
            total.state.slots.extend(named_slots(&prefix(i), a.state.slots));
        }
        total
    }

    fn init_vjp(&self, start: &OptState<E>, adjoint: &OptState<E>, theta: &mut [E]) {
        for (i, part) in self.parts.iter().enumerate() {
            let (start, adjoint) = (part_state(start, &prefix(i)), part_state(adjoint, &prefix(i)));
            vjp_of(&*part.opt).init_vjp(&start, &adjoint, &mut theta[part.theta.clone()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::{Adam, Momentum, Sgd};
    use outerloop_core::contract::awkward_params;

    #[test]
    fn steps_add_up() {
        let key = Key::new(1);
        let params = awkward_params::<f64>(key);
        let run = |opt: &dyn Optimizer<f64>| {
            let mut state = opt.init(&params, None, key);
            // Gradients that do not depend on the parameters, so that steps are independent.
            for t in 0..4 {
                let mut grad = vec![0.0; params.data.len()];
                key.fold_in(t).fill_normal(&mut grad);
                opt.update(&mut state, &grad, 1.0, key);
            }
            state.params
        };
        let both = run(&SumOptimizer::new(vec![Box::new(Adam::new(0.1)), Box::new(Momentum::new(0.2, 0.5))]));
        let (a, b) = (run(&Adam::new(0.1)), run(&Momentum::new(0.2, 0.5)));
        for (i, p) in both.iter().enumerate() {
            let want = a[i] + b[i] - params.data[i];
            assert!((p - want).abs() < 1e-12, "{p}, not {want}");
        }
        assert_eq!(run(&SumOptimizer::new(vec![Box::new(Sgd::new(0.1))])), run(&Sgd::new(0.1)));
        assert_eq!(run(&SumOptimizer::new(Vec::new())), params.data);
    }
}
