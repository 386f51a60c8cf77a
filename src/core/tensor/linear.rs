//! A recorded loss, kept for many products with its Hessian: each repeats neither the forward pass nor the
//! gradient, which is about half of the work.

use super::{Buffer, Float, Sum, Tangents, Value};
use crate::ops::KnownOp;
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

/// What is called with an operation's inputs and its result.
pub(crate) type Visit<'a, E> = &'a mut dyn FnMut(&[&[E]], &[E]);

/// An operation that was recorded, with its inputs, its result and the adjoint of that.
pub(crate) trait Node<E: Float> {
    /// The result.
    fn out(&self) -> UniqueId;
    /// Elements of the result and of its adjoint.
    fn numel(&self) -> usize;
    /// The inputs, and which of them depend on a parameter.
    fn inputs(&self) -> (&[UniqueId], &[bool]);
    /// The tangent of the result from those of the inputs, for each of some tangents of the same tensors.
    fn push(&self, all: &mut [Tangents<'_, E>]);
    /// Notes that the result has a tangent, which nobody reads: zeros stand for it.
    fn leave(&self, t: &mut Tangents<'_, E>);
    /// Whether `pull` reads the tangents of the inputs, and that of the result.
    fn reads_tangents(&self) -> [bool; 2];
    /// Whether it is a convex loss.
    fn is_loss(&self) -> bool;
    /// What it is by name.
    fn known(&self) -> Option<KnownOp<'_, E>>;
    /// Calls `f` with its inputs and its result.
    fn visit(&self, f: Visit<'_, E>);
    /// Adds the tangents of the adjoints of the `active` inputs, likewise; without the operation's own curvature unless
    /// `curved`.
    fn pull(&self, all: &mut [Tangents<'_, E>], curved: bool, active: &[bool]);
}

/// The operations of a loss after the sweep back, in order.
pub(crate) struct Linear<E: Float> {
    pub(super) nodes: Vec<Rc<dyn Node<E>>>,
    pub(super) params: Vec<UniqueId>,
    /// Operations whose result's tangent is read when the adjoints' tangents are pulled back.
    pub(super) read: Vec<bool>,
    /// For a number of leading parameters: each operation's inputs that depend on one.
    plan: Option<(usize, Vec<Vec<bool>>)>,
}

impl<E: Float> Linear<E> {
    pub fn new(nodes: Vec<Rc<dyn Node<E>>>, params: Vec<UniqueId>) -> Self {
        // What depends on nothing but parameters comes first, as a weight decay does: pulled last, it adds to what larger
        // products have written.
        let given: HashSet<&UniqueId> = params.iter().collect();
        let is_leaf = |node: &Rc<dyn Node<E>>| node.inputs().0.iter().all(|id| given.contains(id));
        let (leaves, rest): (Vec<_>, Vec<_>) = nodes.into_iter().partition(is_leaf);
        let nodes = [leaves, rest].concat();
        let read = read_tangents(&nodes);
        Linear { nodes, params, read, plan: None }
    }

    /// Elements of all results and their adjoints.
    pub fn numel(&self) -> usize {
        self.nodes.iter().map(|n| n.numel()).sum()
    }

    /// The matrix times several directions. Each of `v`, by parameter, has one buffer for each of the leading parameters
    /// and is zero behind them; each of `out` has one for each of the leading parameters whose part of the result is asked
    /// for, and is overwritten. All have the same numbers of parameters. Makes no buffer as large as a parameter.
    pub fn products(&mut self, v: &[Vec<&[E]>], out: Vec<Vec<&mut [E]>>, curvature: Curvature) {
        let mut all: Vec<Tangents<'_, E>> = v.iter().map(|v| self.seeded(v)).collect();
        let Some(wanted) = out.first().map(Vec::len) else { return };
        self.make_plan(wanted);
        self.push(&mut all, &self.read);
        for (t, out) in all.iter_mut().zip(out) {
            for (id, out) in self.params.iter().zip(out) {
                out.fill(E::of(0.0));
                t.adjoint.insert(*id, Sum::Zeros(out));
            }
        }
        self.pull(&mut all, |node| curvature == Curvature::Hessian || node.is_loss());
    }

    /// The tangent of the tensor `out` along `v` (one buffer per parameter), all operations before it being linear
    /// maps; zero if it does not move.
    pub fn jvp(&mut self, v: &[&[E]], out: UniqueId) -> Option<Vec<E>> {
        let mut t = [self.seeded(v)];
        self.make_plan(self.params.len());
        self.push(&mut t, &[]);
        t[0].value.remove(&out).map(|t| t.to_vec())
    }

    /// The adjoints of the parameters from that of the tensor `out`; zero where there is none.
    pub fn vjp(&mut self, out: UniqueId, u: &[E]) -> Vec<Option<Vec<E>>> {
        let mut t = [self.seeded(&[])];
        self.make_plan(self.params.len());
        t[0].adjoint.insert(out, Sum::Own(Buffer::copy(u)));
        self.pull(&mut t, |_| false);
        self.params.iter().map(|id| t[0].adjoint.remove(id).map(|t| t.to_vec())).collect()
    }

    fn seeded<'a>(&self, v: &[&'a [E]]) -> Tangents<'a, E> {
        let value = self.params.iter().copied().zip(v.iter().map(|v| Value::Lent(v))).collect();
        Tangents { value, adjoint: HashMap::new() }
    }

    fn make_plan(&mut self, wanted: usize) {
        if self.plan.as_ref().is_none_or(|(have, _)| *have != wanted) {
            self.plan = Some((wanted, self.plan_for(wanted)));
        }
    }

    /// Places of the operations that matter, and which of their inputs do.
    fn planned(&self) -> impl DoubleEndedIterator<Item = (usize, &Rc<dyn Node<E>>, &Vec<bool>)> {
        let (_, plan) = self.plan.as_ref().expect("a plan was made");
        let all = self.nodes.iter().zip(plan).enumerate();
        all.map(|(i, (node, active))| (i, node, active)).filter(|(_, _, active)| active.contains(&true))
    }

    /// Tangents forwards, those that are `read`; of operations behind its end all.
    fn push(&self, all: &mut [Tangents<'_, E>], read: &[bool]) {
        for (i, node, _) in self.planned() {
            // All have tangents of the same tensors.
            if node.inputs().0.iter().any(|id| all[0].value.contains_key(id)) {
                match read.get(i) {
                    Some(false) => all.iter_mut().for_each(|t| node.leave(t)),
                    _ => node.push(all),
                }
            }
        }
    }

    /// Their adjoints' tangents backwards.
    fn pull(&self, all: &mut [Tangents<'_, E>], curved: impl Fn(&dyn Node<E>) -> bool) {
        for (_, node, active) in self.planned().rev() {
            node.pull(all, curved(&**node), active);
            for t in all.iter_mut() {
                t.value.remove(&node.out());
            }
        }
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

/// Whether somebody reads the tangent of each operation's result: itself, an operation that it is an input of, or one
/// further on by way of that one's own.
fn read_tangents<E: Float>(nodes: &[Rc<dyn Node<E>>]) -> Vec<bool> {
    // Of tensors, by those behind them.
    let mut wanted: HashSet<UniqueId> = HashSet::new();
    let mut read = vec![false; nodes.len()];
    for (node, read) in nodes.iter().zip(&mut read).rev() {
        let [of_inputs, of_result] = node.reads_tangents();
        *read = of_result || wanted.contains(&node.out());
        if of_inputs || *read {
            wanted.extend(node.inputs().0);
        }
    }
    read
}
