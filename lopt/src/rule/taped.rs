//! [`Taped`]: an optimizer, with its derivative, from one update written in [`Tape`] operations.

use super::{Tape, Var};
use outerloop_core::{
    Float, Key, Layout, OptState, Optimizer, OptimizerGroup, Params, Result, Slot, UpdateAdjoint, UpdateJvp,
    UpdateTangent, UpdateVjp,
};
use std::{borrow::Cow, ops::Range, sync::Arc};

/// Meta-parameters as tape variables.
pub struct Theta<E> {
    layout: Arc<Layout>,
    flat: Var<E>,
}

impl<E: Float> Theta<E> {
    /// The variables of a flat theta.
    pub fn new(layout: Arc<Layout>, flat: Var<E>) -> Self {
        Theta { layout, flat }
    }
    /// The tensor of this name.
    ///
    /// # Panics
    /// If there is none: a rule must ask only for names of its own layout.
    #[track_caller]
    pub fn get(&self, name: &str) -> Var<E> {
        match self.layout.get(name) {
            Some(entry) => self.flat.slice(entry.range()),
            None => panic!("theta has no tensor `{name}`"),
        }
    }
}

/// What an update reads, and the part of it that it returns changed.
#[derive(Clone)]
pub struct StepVars<E> {
    /// Names and shapes of the parameters.
    pub layout: Arc<Layout>,
    /// The parameters, `[n]`.
    pub params: Var<E>,
    /// The optimizer's slots, in the order of its `init`.
    pub slots: Vec<Var<E>>,
    /// The gradient, `[n]`.
    pub grad: Var<E>,
    /// The loss, length 1.
    pub loss: Var<E>,
    /// Updates done before this one.
    pub step: u64,
    /// The planned number of updates, if known.
    pub num_steps: Option<u64>,
}

impl<E: Float> StepVars<E> {
    /// The non-empty tensors' shapes and positions.
    pub fn tensors(&self) -> impl Iterator<Item = (&[usize], Range<usize>)> {
        self.layout.entries().iter().filter(|e| e.numel() > 0).map(|e| (&e.shape[..], e.range()))
    }
}

/// Named initial slots of an optimizer.
pub type Slots<E> = Vec<(&'static str, Var<E>)>;

/// A learned update rule, written once for every dtype, for values and for derivatives.
/// [`learned_optimizer!`](crate::learned_optimizer) makes it a
/// [`LearnedOptimizer`](outerloop_core::LearnedOptimizer).
pub trait UpdateRule: Clone + serde::Serialize + Send + Sync + 'static {
    /// Short name for reports and files.
    fn name(&self) -> String;
    /// Whether every hyperparameter is in its range; see [`Optimizer::validate`](outerloop_core::Optimizer::validate).
    ///
    /// # Errors
    /// The first that is not, with the range.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Names and shapes of theta.
    fn theta_layout(&self) -> Arc<Layout>;
    /// Initial theta.
    fn init_theta<E: Float>(&self, key: Key) -> Vec<E>;
    /// The slots before the first update of parameters of this layout.
    fn init_slots<E: Float>(&self, theta: &Theta<E>, layout: &Layout, num_steps: Option<u64>) -> Slots<E>;
    /// One update: the next `params` and `slots` (the other fields are ignored).
    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>);
    /// The slot that holds the parameters that the rule means after its first update, if those are not the
    /// ones where it takes gradients; see [`Optimizer::evaluation_params`].
    fn average_slot(&self) -> Option<&'static str> {
        None
    }
    /// See [`Optimizer::observe_validation`].
    fn observe_validation<E: Float>(&self, state: &mut OptState<E>, loss: E) {
        let _ = (state, loss);
    }
    /// The optimizer at `theta`; override it to use a kernel.
    fn optimizer<E: Float>(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        Box::new(Taped::new(self.clone(), theta))
    }
    /// See [`LearnedOptimizer::group_size`](outerloop_core::LearnedOptimizer::group_size).
    fn group_size(&self, layout: &Layout) -> usize {
        let _ = layout;
        1
    }
    /// The optimizers at `thetas` as a group; override it with [`Self::group_size`].
    fn group<E: Float>(&self, thetas: Vec<Vec<E>>) -> Box<dyn OptimizerGroup<E>> {
        Box::new(thetas.iter().map(|theta| self.optimizer(theta)).collect::<Vec<_>>())
    }
    /// The name with all hyperparameters as JSON; [`crate::registry::from_architecture`] reads it back.
    fn architecture(&self) -> String {
        super::architecture(&self.name(), self)
    }
}

/// Implements [`LearnedOptimizer`](outerloop_core::LearnedOptimizer) for an
/// [`UpdateRule`](crate::UpdateRule).
#[macro_export]
macro_rules! learned_optimizer {
    ($rule:ty) => {
        impl<E: $crate::outerloop_core::Float> $crate::outerloop_core::LearnedOptimizer<E> for $rule {
            fn name(&self) -> String {
                $crate::UpdateRule::name(self)
            }
            fn architecture(&self) -> String {
                $crate::UpdateRule::architecture(self)
            }
            fn validate(&self) -> $crate::outerloop_core::Result<()> {
                $crate::UpdateRule::validate(self)
            }
            fn theta_layout(&self) -> ::std::sync::Arc<$crate::outerloop_core::Layout> {
                $crate::UpdateRule::theta_layout(self)
            }
            fn init(&self, key: $crate::outerloop_core::Key) -> Vec<E> {
                $crate::UpdateRule::init_theta(self, key)
            }
            fn opt_fn(&self, theta: &[E]) -> Box<dyn $crate::outerloop_core::Optimizer<E>> {
                $crate::UpdateRule::optimizer(self, theta)
            }
            fn group_size(&self, layout: &$crate::outerloop_core::Layout) -> usize {
                $crate::UpdateRule::group_size(self, layout)
            }
            fn group(&self, thetas: Vec<Vec<E>>) -> Box<dyn $crate::outerloop_core::OptimizerGroup<E>> {
                $crate::UpdateRule::group(self, thetas)
            }
        }
    };
}

/// Slots of zeros.
pub(crate) fn zero_slots<E: Float>(lens: impl IntoIterator<Item = (&'static str, usize)>) -> Slots<E> {
    lens.into_iter().map(|(name, len)| (name, Var::constant(vec![E::of(0.0); len]))).collect()
}

/// An [`UpdateRule`] with its theta, as an optimizer.
#[derive(Debug)]
pub struct Taped<R, E> {
    rule: R,
    layout: Arc<Layout>,
    theta: Vec<E>,
}

impl<R: UpdateRule, E: Float> Taped<R, E> {
    /// The optimizer of a rule at `theta`.
    ///
    /// # Panics
    /// If `theta` has not the length of the rule's layout.
    #[track_caller]
    pub fn new(rule: R, theta: &[E]) -> Self {
        let layout = rule.theta_layout();
        Taped::with_layout(rule, layout, theta)
    }

    /// The same, where the rule's layout is known.
    #[track_caller]
    pub(crate) fn with_layout(rule: R, layout: Arc<Layout>, theta: &[E]) -> Self {
        assert_eq!(theta.len(), layout.len(), "{}: length of theta", rule.name());
        Taped { rule, layout, theta: theta.to_vec() }
    }

    /// The rule.
    pub fn rule(&self) -> &R {
        &self.rule
    }

    /// Names and shapes of theta.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Theta without derivatives.
    pub fn theta(&self) -> Theta<E> {
        Theta::new(self.layout.clone(), Var::constant(self.theta.clone()))
    }
}

/// The arguments of an update as variables made by `var`.
pub(crate) fn step_vars<E: Float>(
    state: &OptState<E>,
    grad: &[E],
    loss: E,
    var: impl Fn(&[E]) -> Var<E>,
) -> StepVars<E> {
    StepVars {
        layout: state.layout.clone(),
        params: var(&state.params),
        slots: state.slots.iter().map(|s| var(&s.data)).collect(),
        grad: var(grad),
        loss: var(&[loss]),
        step: state.step,
        num_steps: state.num_steps,
    }
}

impl<R: UpdateRule, E: Float> Optimizer<E> for Taped<R, E> {
    fn name(&self) -> String {
        self.rule.name()
    }
    fn describe(&self) -> String {
        format!("{} {:?}", self.rule.architecture(), self.theta)
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, _key: Key) -> OptState<E> {
        let slots = self.rule.init_slots(&self.theta(), &params.layout, num_steps);
        let mut state = OptState::new(params, num_steps);
        for (name, value) in slots {
            state.slots.push(Slot { name: name.into(), data: value.data().to_vec() });
        }
        state
    }
    fn validate(&self) -> Result<()> {
        self.rule.validate()
    }
    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        self.rule.observe_validation(state, loss);
    }
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        let average =
            self.rule.average_slot().filter(|_| state.step > 0).and_then(|name| state.slot(name).ok());
        Cow::Borrowed(average.unwrap_or(&state.params))
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, _key: Key) {
        assert_eq!(grad.len(), state.params.len(), "{}: length of the gradient", self.rule.name());
        let now = step_vars(state, grad, loss, |x| Var::constant(x.to_vec()));
        let (params, slots) = self.rule.step(&self.theta(), now);
        state.params.copy_from_slice(params.data());
        for (slot, next) in state.slots.iter_mut().zip(&slots) {
            slot.data.copy_from_slice(next.data());
        }
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        Some(self)
    }
    fn update_jvp(&self) -> Option<&dyn UpdateJvp<E>> {
        Some(self)
    }
}

impl<R: UpdateRule, E: Float> UpdateVjp<E> for Taped<R, E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        _key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let tape = Tape::default();
        let flat = tape.leaf(&self.theta);
        let now = step_vars(before, grad, loss, |x| tape.leaf(x));
        let (params, slots) = self.rule.step(&Theta::new(self.layout.clone(), flat.clone()), now.clone());
        let mut seeds = vec![(&params, &after.params[..])];
        seeds.extend(slots.iter().zip(&after.slots).map(|(v, s)| (v, &s.data[..])));
        let mut inputs = vec![&flat, &now.params, &now.grad, &now.loss];
        inputs.extend(&now.slots);
        let mut adjoints = tape.pull_back(&seeds, &inputs).into_iter();
        let mut next = || adjoints.next().expect("one adjoint per input");
        theta.iter_mut().zip(next()).for_each(|(t, a)| *t += a);
        let mut state = after.clone();
        state.step = before.step;
        state.params = next();
        let (grad, loss) = (next(), next()[0]);
        for slot in &mut state.slots {
            slot.data = next();
        }
        UpdateAdjoint { state, grad, loss }
    }

    fn init_vjp(&self, start: &OptState<E>, adjoint: &OptState<E>, theta: &mut [E]) {
        let tape = Tape::default();
        let flat = tape.leaf(&self.theta);
        let leaf = Theta::new(self.layout.clone(), flat.clone());
        let slots = self.rule.init_slots(&leaf, &start.layout, start.num_steps);
        let seeds: Vec<_> = slots.iter().zip(&adjoint.slots).map(|((_, v), s)| (v, &s.data[..])).collect();
        let pulled = tape.pull_back(&seeds, &[&flat]).remove(0);
        theta.iter_mut().zip(pulled).for_each(|(t, a)| *t += a);
    }
}

impl<R: UpdateRule, E: Float> UpdateJvp<E> for Taped<R, E> {
    fn jvp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        _key: Key,
        tangent: UpdateTangent<'_, E>,
    ) -> OptState<E> {
        let tape = Tape::default();
        let flat = tape.leaf(&self.theta);
        let now = step_vars(before, grad, loss, |x| tape.leaf(x));
        let (params, slots) = self.rule.step(&Theta::new(self.layout.clone(), flat.clone()), now.clone());
        let UpdateTangent { state, grad, loss, theta } = tangent;
        let loss = [loss];
        let mut seeds =
            vec![(&flat, theta), (&now.params, &state.params), (&now.grad, grad), (&now.loss, &loss)];
        seeds.extend(now.slots.iter().zip(&state.slots).map(|(v, s)| (v, &s.data[..])));
        let outputs: Vec<&Var<E>> = [&params].into_iter().chain(&slots).collect();
        let mut moved = tape.push_forward(&seeds, &outputs);
        let mut after = before.zeros_like();
        after.step += 1;
        after.params = moved.remove(0);
        after.slots.iter_mut().zip(moved).for_each(|(slot, moved)| slot.data = moved);
        after
    }

    fn init_jvp(&self, start: &OptState<E>, theta: &[E]) -> OptState<E> {
        let tape = Tape::default();
        let flat = tape.leaf(&self.theta);
        let leaf = Theta::new(self.layout.clone(), flat.clone());
        let slots = self.rule.init_slots(&leaf, &start.layout, start.num_steps);
        let outputs: Vec<&Var<E>> = slots.iter().map(|(_, v)| v).collect();
        let moved = tape.push_forward(&[(&flat, theta)], &outputs);
        let mut tangent = start.zeros_like();
        tangent.slots.iter_mut().zip(moved).for_each(|(slot, moved)| slot.data = moved);
        tangent
    }
}
