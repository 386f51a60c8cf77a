//! [`Parts`]: several optimizers as one. What [`super::SumOptimizer`] and [`super::Grouped`] share is written
//! here; they differ in what a part sees, and in how the parts' results join.

use super::{named_slots, part_slots, prefix, GroupRule, Part};
use crate::hand::vjp_of;
use outerloop_core::{Float, Key, Layout, OptState, Optimizer, Params, Result, UpdateAdjoint, UpdateVjp};
use std::{borrow::Cow, iter::once, ops::Range, sync::Arc};

/// Optimizers whose steps from the same parameters are summed, or, with a rule, each for its group of tensors.
#[derive(Debug)]
pub(super) struct Parts<E: Float> {
    pub(super) parts: Vec<Part<E>>,
    pub(super) rule: Option<GroupRule>,
}

/// What a part sees: its tensors' layout and their places in the whole buffer.
struct View {
    layout: Arc<Layout>,
    ranges: Vec<Range<usize>>,
}

impl View {
    fn gather<E: Float>(&self, whole: &[E]) -> Vec<E> {
        let mut part = Vec::with_capacity(self.layout.len());
        self.ranges.iter().for_each(|r| part.extend_from_slice(&whole[r.clone()]));
        part
    }

    /// Calls `join` for the view's tensors in `whole` and in `part`.
    fn scatter<E: Float>(&self, part: &[E], whole: &mut [E], join: impl Fn(&mut [E], &[E])) {
        let mut start = 0;
        for r in &self.ranges {
            join(&mut whole[r.clone()], &part[start..start + r.len()]);
            start += r.len();
        }
    }

    /// What the part's optimizer knows of a state.
    fn state<E: Float>(&self, state: &OptState<E>, prefix: &str) -> OptState<E> {
        OptState {
            layout: self.layout.clone(),
            params: self.gather(&state.params),
            slots: part_slots(state, prefix),
            ..*state
        }
    }
}

impl<E: Float> Parts<E> {
    /// The parts that see elements, or all in a sum: what their slots begin with, the part, its view.
    fn views(&self, layout: &Arc<Layout>) -> impl Iterator<Item = (String, &Part<E>, View)> {
        let views: Vec<View> = match &self.rule {
            None => {
                let all = || View { layout: layout.clone(), ranges: once(0..layout.len()).collect() };
                self.parts.iter().map(|_| all()).collect()
            }
            Some(rule) => rule.split(layout).map(|(layout, ranges)| View { layout, ranges }).collect(),
        };
        let all = self.parts.iter().zip(views).enumerate().map(|(i, (part, view))| (prefix(i), part, view));
        all.filter(|(_, _, view)| self.rule.is_none() || !view.layout.is_empty())
    }
}

impl<E: Float> Optimizer<E> for Parts<E> {
    fn name(&self) -> String {
        let names = self.parts.iter().map(|p| p.opt.name()).collect::<Vec<_>>().join(", ");
        format!("{}({names})", if self.rule.is_some() { "grouped" } else { "sum" })
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.opt.validate())
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        let mut state = OptState::new(params, num_steps);
        for (prefix, part, view) in self.views(&params.layout) {
            let own = Params { data: view.gather(&params.data), layout: view.layout };
            state.slots.extend(named_slots(&prefix, part.opt.init(&own, num_steps, key).slots));
        }
        state
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let (mut params, mut slots) = (state.params.clone(), Vec::new());
        for (prefix, part, view) in self.views(&state.layout) {
            let mut own = view.state(state, &prefix);
            part.opt.update(&mut own, &view.gather(grad), loss, key);
            if self.rule.is_some() {
                view.scatter(&own.params, &mut params, |to, new| to.copy_from_slice(new));
            } else {
                add_differences(&mut params, &own.params, &state.params);
            }
            slots.extend(named_slots(&prefix, own.slots));
        }
        (state.params, state.slots) = (params, slots);
        state.step += 1;
    }
    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        let before = state.clone();
        state.slots.clear();
        for (prefix, part, view) in self.views(&before.layout) {
            let mut own = view.state(&before, &prefix);
            part.opt.observe_validation(&mut own, loss);
            state.step = state.step.max(own.step);
            state.slots.extend(named_slots(&prefix, own.slots));
        }
    }
    /// In a sum `p + Σᵢ (eᵢ − p)` for the parts' `eᵢ`: as steps add up, so do distances from p.
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        let mut params = state.params.clone();
        for (prefix, part, view) in self.views(&state.layout) {
            let own = view.state(state, &prefix);
            let means = part.opt.evaluation_params(&own);
            if self.rule.is_some() {
                view.scatter(&means, &mut params, |to, e| to.copy_from_slice(e));
            } else {
                add_differences(&mut params, &means, &state.params);
            }
        }
        Cow::Owned(params)
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        self.parts.iter().all(|p| p.opt.update_vjp().is_some()).then_some(self)
    }
}

impl<E: Float> UpdateVjp<E> for Parts<E> {
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
        total.state.slots.clear();
        if self.rule.is_none() {
            total.state.params.copy_from_slice(&after.params);
        }
        for (prefix, part, view) in self.views(&before.layout) {
            let (own, adjoint) = (view.state(before, &prefix), view.state(after, &prefix));
            let theta = &mut theta[part.theta.clone()];
            let a = vjp_of(&*part.opt).vjp(&own, &view.gather(grad), loss, key, &adjoint, theta);
            if self.rule.is_some() {
                view.scatter(&a.state.params, &mut total.state.params, |to, a| to.copy_from_slice(a));
            } else {
                // The step is new minus old parameters.
                add_differences(&mut total.state.params, &a.state.params, &after.params);
            }
            view.scatter(&a.grad, &mut total.grad, |to, a| {
                to.iter_mut().zip(a).for_each(|(to, a)| *to += *a)
            });
            total.loss += a.loss;
            total.state.slots.extend(named_slots(&prefix, a.state.slots));
        }
        total
    }

    fn init_vjp(&self, start: &OptState<E>, adjoint: &OptState<E>, theta: &mut [E]) {
        for (prefix, part, view) in self.views(&start.layout) {
            let (start, adjoint) = (view.state(start, &prefix), view.state(adjoint, &prefix));
            vjp_of(&*part.opt).init_vjp(&start, &adjoint, &mut theta[part.theta.clone()]);
        }
    }
}

/// `x ← x + new − old`
fn add_differences<E: Float>(x: &mut [E], new: &[E], old: &[E]) {
    for ((x, new), old) in x.iter_mut().zip(new).zip(old) {
        *x += *new - *old;
    }
}

/// Makes an [`Optimizer`] of a type around [`Parts`].
macro_rules! optimizer_of_parts {
    ($kind:ident) => {
        impl<E: outerloop_core::Float> outerloop_core::Optimizer<E> for $kind<E> {
            fn name(&self) -> String {
                self.0.name()
            }
            fn describe(&self) -> String {
                format!("{self:?}")
            }
            fn init(
                &self,
                params: &outerloop_core::Params<E>,
                num_steps: Option<u64>,
                key: outerloop_core::Key,
            ) -> outerloop_core::OptState<E> {
                self.0.init(params, num_steps, key)
            }
            fn validate(&self) -> outerloop_core::Result<()> {
                self.0.validate()
            }
            fn update(
                &self,
                state: &mut outerloop_core::OptState<E>,
                grad: &[E],
                loss: E,
                key: outerloop_core::Key,
            ) {
                self.0.update(state, grad, loss, key)
            }
            fn observe_validation(&self, state: &mut outerloop_core::OptState<E>, loss: E) {
                self.0.observe_validation(state, loss)
            }
            fn evaluation_params<'a>(
                &self,
                state: &'a outerloop_core::OptState<E>,
            ) -> std::borrow::Cow<'a, [E]> {
                self.0.evaluation_params(state)
            }
            fn update_vjp(&self) -> Option<&dyn outerloop_core::UpdateVjp<E>> {
                self.0.update_vjp()
            }
        }
    };
}
pub(super) use optimizer_of_parts;
