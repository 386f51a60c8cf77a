//! A recorded loss, kept for many products with its Hessian: each repeats neither the forward pass nor the
//! gradient, which is about half of the work.

use super::{Buffer, Float, Tangents};
use dfdx::prelude::UniqueId;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Which matrix of second derivatives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Curvature {
    /// The Hessian.
    #[default]
    Hessian,
    /// The Gauss-Newton matrix `Jᵀ S J`: the Hessian of the loss operations (cross entropies, squared errors,
    /// weight decays) by their inputs, without the curvature of the model before them. Positive semidefinite,
    /// as those are convex.
    GaussNewton,
}

/// An operation that was recorded, with its inputs, its result and the adjoint of that.
pub(crate) trait Node<E: Float> {
    /// The result.
    fn out(&self) -> UniqueId;
    /// The inputs, and which of them depend on a parameter.
    fn inputs(&self) -> (&[UniqueId], &[bool]);
    /// The tangent of the result from those of the inputs.
    fn push(&self, t: &mut Tangents<E>);
    /// Adds the tangents of the adjoints of the `active` inputs.
    fn pull(&self, t: &mut Tangents<E>, curvature: Curvature, active: &[bool]);
}

/// The operations of a loss after the sweep back, in order.
pub(crate) struct Linear<E: Float> {
    nodes: Vec<Rc<dyn Node<E>>>,
    params: Vec<UniqueId>,
    /// For a number of leading parameters: each operation's inputs that depend on one.
    plan: Option<(usize, Vec<Vec<bool>>)>,
}

impl<E: Float> Linear<E> {
    pub fn new(nodes: Vec<Rc<dyn Node<E>>>, params: Vec<UniqueId>) -> Self {
        Linear { nodes, params, plan: None }
    }

    /// The matrix times `v`, by parameter: `v` has one buffer for each of the leading parameters and is zero
    /// behind them; the result is that of the first `wanted` parameters.
    pub fn product(&mut self, v: &[&[E]], wanted: usize, curvature: Curvature) -> Vec<Option<Buffer<E>>> {
        let value = self.params.iter().copied().zip(v.iter().map(|v| Buffer::copy(v))).collect();
        let mut t = Tangents { value, adjoint: HashMap::new() };
        if self.plan.as_ref().is_none_or(|(have, _)| *have != wanted) {
            self.plan = Some((wanted, self.plan_for(wanted)));
        }
        let (_, plan) = self.plan.as_ref().expect("just made");
        for (node, active) in self.nodes.iter().zip(plan) {
            let (inputs, _) = node.inputs();
            if active.contains(&true) && inputs.iter().any(|id| t.value.contains_key(id)) {
                node.push(&mut t);
            }
        }
        for (node, active) in self.nodes.iter().zip(plan).rev() {
            if active.contains(&true) {
                node.pull(&mut t, curvature, active);
            }
            t.value.remove(&node.out());
        }
        self.params[..wanted].iter().map(|id| t.adjoint.remove(id)).collect()
    }

    fn plan_for(&self, wanted: usize) -> Vec<Vec<bool>> {
        let mut reached: HashSet<UniqueId> = self.params[..wanted].iter().copied().collect();
        let of_node = |node: &Rc<dyn Node<E>>| {
            let (inputs, active) = node.inputs();
            let active: Vec<bool> =
                inputs.iter().zip(active).map(|(id, active)| *active && reached.contains(id)).collect();
            if active.contains(&true) {
                reached.insert(node.out());
            }
            active
        };
        self.nodes.iter().map(of_node).collect()
    }
}
