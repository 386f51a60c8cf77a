//! Update rules that look at one whole tensor at a time, each written once on a [`Graph`]; the
//! update and its exact derivative follow from it.

use super::graph::{map, Graph, Var};
use super::At;
use crate::rule::dual::Scalar;
use outerloop_core::{Float, OptState, Params, Result, Slot, UpdateAdjoint};
use std::borrow::Cow;
use std::ops::Range;

/// An update rule for one tensor.
///
/// [`tensorwise_optimizer!`](crate::tensorwise_optimizer) makes an
/// [`Optimizer`](outerloop_core::Optimizer) with its [`UpdateVjp`](outerloop_core::UpdateVjp) of it.
/// A slot is one flat buffer that holds the tensors' parts in layout order.
///
/// ```
/// use outerloop_core::Float;
/// use outerloop_lopt::hand::graph::{Graph, Var};
/// use outerloop_lopt::hand::{At, Tensorwise};
/// use outerloop_lopt::{tensor_map, tensorwise_optimizer};
///
/// /// p ← p − lr g/(|g| + 1e-8) in every tensor
/// #[derive(Debug)]
/// struct NormalizedSgd { lr: f64 }
///
/// impl Tensorwise for NormalizedSgd {
///     fn name(&self) -> String { "normalized_sgd".into() }
///     fn slots(&self, _shape: &[usize]) -> Vec<(&'static str, Vec<f64>)> { Vec::new() }
///     fn step<E: Float>(
///         &self, graph: &mut Graph<E>, _at: At, _shape: &[usize], p: Var, _slots: &[Var], g: Var,
///     ) -> (Var, Vec<Var>) {
///         let norm = graph.norm(g);
///         let p = tensor_map!(graph, [p, g, norm], |k; p, g, n| p - k(self.lr) * g / (n + k(1e-8)));
///         (p, Vec::new())
///     }
/// }
/// tensorwise_optimizer!(NormalizedSgd);
///
/// use outerloop_core::contract::{check_optimizer, check_update_vjp};
/// check_optimizer::<f32>(&NormalizedSgd { lr: 0.1 })?;
/// check_update_vjp(|_| Box::new(NormalizedSgd { lr: 0.1 }), &[])?;
/// # Ok::<(), outerloop_core::Error>(())
/// ```
pub trait Tensorwise: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;

    /// Whether every hyperparameter is in its range; see [`Optimizer::validate`](outerloop_core::Optimizer::validate).
    ///
    /// # Errors
    /// The first that is not, with the range.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// The slots of a tensor of this shape, `(name, initial elements)`: the same names for every
    /// shape, any length.
    fn slots(&self, shape: &[usize]) -> Vec<(&'static str, Vec<f64>)>;

    /// The new parameters and slots of a tensor with at least one element (an empty one rests). The gradient comes
    /// [limited](Scalar::limited): its squares, and their sums, are finite.
    fn step<E: Float>(
        &self,
        graph: &mut Graph<E>,
        at: At,
        shape: &[usize],
        p: Var,
        slots: &[Var],
        g: Var,
    ) -> (Var, Vec<Var>);

    /// See [`Optimizer::evaluation_params`](outerloop_core::Optimizer::evaluation_params).
    fn evaluation_params<'a, E: Float>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        Cow::Borrowed(&state.params)
    }
}

/// A slot of zeros like the tensor.
pub(crate) fn zeros(name: &'static str, shape: &[usize]) -> (&'static str, Vec<f64>) {
    (name, vec![0.0; shape.iter().product()])
}

/// `Optimizer::init` of a rule.
pub fn init<E: Float, R: Tensorwise>(rule: &R, params: &Params<E>, num_steps: Option<u64>) -> OptState<E> {
    let mut state = OptState::new(params, num_steps);
    for (name, _) in rule.slots(&[]) {
        state = state.with_slot(name, 0, E::of(0.0));
    }
    for entry in params.layout.entries() {
        for (slot, (_, initial)) in state.slots.iter_mut().zip(rule.slots(&entry.shape)) {
            slot.data.extend(initial.into_iter().map(E::of));
        }
    }
    state
}

/// For every tensor: its shape, its range, and the ranges of its part of every slot.
fn parts<'a, R: Tensorwise, E>(
    rule: &'a R,
    state: &'a OptState<E>,
) -> impl Iterator<Item = (Vec<usize>, Range<usize>, Vec<Range<usize>>)> + 'a {
    let mut ends = vec![0; state.slots.len()];
    let entries: Vec<_> = state.layout.entries().iter().map(|e| (e.shape.clone(), e.range())).collect();
    entries.into_iter().map(move |(shape, range)| {
        let lens = rule.slots(&shape).into_iter().map(|(_, initial)| initial.len());
        let slots = ends
            .iter_mut()
            .zip(lens)
            .map(|(end, len)| {
                let start = *end;
                *end += len;
                start..*end
            })
            .collect();
        (shape, range, slots)
    })
}

/// `Optimizer::update` of a rule.
///
/// # Panics
/// If `grad` and the parameters differ in length.
#[track_caller]
pub fn update<E: Float, R: Tensorwise>(rule: &R, state: &mut OptState<E>, grad: &[E]) {
    assert_eq!(grad.len(), state.params.len(), "update: length of the gradient");
    let at = At::of(state);
    let parts: Vec<_> = parts(rule, state).collect();
    for (shape, range, slot_ranges) in parts {
        if range.is_empty() {
            continue;
        }
        let mut graph = Graph::plain();
        let p = graph.input(&state.params[range.clone()]);
        let g = graph.input(&grad[range.clone()]);
        let g = map!(graph, [g], |g| g.limited());
        let slots: Vec<Var> =
            state.slots.iter().zip(&slot_ranges).map(|(s, r)| graph.input(&s.data[r.clone()])).collect();
        let (p, slots) = rule.step(&mut graph, at, &shape, p, &slots, g);
        state.params[range].copy_from_slice(graph.value(p));
        for ((slot, range), new) in state.slots.iter_mut().zip(slot_ranges).zip(slots) {
            slot.data[range].copy_from_slice(graph.value(new));
        }
    }
    state.step += 1;
}

/// `UpdateVjp::vjp` of a rule, which has no theta.
pub fn vjp<E: Float, R: Tensorwise>(
    rule: &R,
    before: &OptState<E>,
    grad: &[E],
    after: &OptState<E>,
    _theta: &mut [E],
) -> UpdateAdjoint<E> {
    let at = At::of(before);
    let mut adjoint =
        UpdateAdjoint { state: before.zeros_like(), grad: vec![E::of(0.0); grad.len()], loss: E::of(0.0) };
    for (shape, range, slot_ranges) in parts(rule, before) {
        if range.is_empty() {
            for ((to, from), r) in adjoint.state.slots.iter_mut().zip(&after.slots).zip(slot_ranges) {
                to.data[r.clone()].copy_from_slice(&from.data[r]);
            }
            continue;
        }
        let mut graph = Graph::recording();
        let data = |(s, r): (&Slot<E>, &Range<usize>)| s.data[r.clone()].to_vec();
        let mut inputs = vec![graph.input(&before.params[range.clone()]), graph.input(&grad[range.clone()])];
        inputs.extend(before.slots.iter().zip(&slot_ranges).map(data).map(|s| graph.input(&s)));
        let g = map!(graph, [inputs[1]], |g| g.limited());
        let (p, slots) = rule.step(&mut graph, at, &shape, inputs[0], &inputs[2..], g);
        let mut outputs = vec![(p, &after.params[range.clone()])];
        for ((new, slot), r) in slots.into_iter().zip(&after.slots).zip(&slot_ranges) {
            outputs.push((new, &slot.data[r.clone()]));
        }
        let mut adjoints = graph.backward(&outputs, &inputs).into_iter();
        for to in [&mut adjoint.state.params, &mut adjoint.grad] {
            to[range.clone()].copy_from_slice(&adjoints.next().expect("one adjoint per input"));
        }
        for ((slot, r), a) in adjoint.state.slots.iter_mut().zip(slot_ranges).zip(adjoints) {
            slot.data[r].copy_from_slice(&a);
        }
    }
    adjoint
}

/// Makes an [`Optimizer`](outerloop_core::Optimizer) and its
/// [`UpdateVjp`](outerloop_core::UpdateVjp) of a [`Tensorwise`] rule.
#[macro_export]
macro_rules! tensorwise_optimizer {
    ($rule:ty) => {
        $crate::optimizer_of_rule!($rule, Tensorwise, tensorwise, {});
    };
}
