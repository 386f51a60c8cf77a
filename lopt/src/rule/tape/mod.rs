//! A small reverse-mode tape over flat arrays: learned updates are written once in its operations,
//! run plainly in the inner loop and recorded for [`outerloop_core::UpdateVjp`].
//!
//! A [`Var`] is an immutable array. Operations on constants only compute; as soon as one operand
//! comes from [`Tape::leaf`], the result remembers how to send adjoints back. Matrices are feature
//! major: `[rows, n]` with the parameter index last, so loops run over contiguous memory.

mod arrays;
mod elementwise;

use outerloop_core::Float;
use std::{cell::RefCell, rc::Rc};

/// Adds a linear map of the first array to the second.
type Linear<E> = Box<dyn Fn(&[E], &mut [E])>;

/// How a node depends on one parent.
struct Edge<E> {
    parent: usize,
    /// From the node's adjoint to the parent's.
    pull: Linear<E>,
    /// From the parent's tangent to the node's; `None`: by `pull`, as its matrix is diagonal.
    push: Option<Linear<E>>,
}

struct Node<E> {
    len: usize,
    edges: Vec<Edge<E>>,
}

/// The record of one evaluation; see the module.
pub struct Tape<E>(Rc<RefCell<Vec<Node<E>>>>);

impl<E> Clone for Tape<E> {
    fn clone(&self) -> Self {
        Tape(self.0.clone())
    }
}

impl<E: Float> Default for Tape<E> {
    fn default() -> Self {
        Tape(Rc::new(RefCell::new(Vec::new())))
    }
}

impl<E: Float> Tape<E> {
    /// An input whose adjoint is wanted.
    pub fn leaf(&self, value: &[E]) -> Var<E> {
        let mut nodes = self.0.borrow_mut();
        nodes.push(Node { len: value.len(), edges: Vec::new() });
        Var { value: Rc::new(value.to_vec()), node: Some((self.clone(), nodes.len() - 1)) }
    }

    /// The adjoints of `inputs`, given the adjoints of some outputs.
    ///
    /// # Panics
    /// If a seed has not the length of its variable.
    pub fn pull_back(&self, seeds: &[(&Var<E>, &[E])], inputs: &[&Var<E>]) -> Vec<Vec<E>> {
        let nodes = self.0.borrow();
        let mut adjoints: Vec<Vec<E>> = nodes.iter().map(|n| vec![E::of(0.0); n.len]).collect();
        for (var, seed) in seeds {
            assert_eq!(var.len(), seed.len(), "tape: seed and variable differ in length");
            if let Some((_, i)) = &var.node {
                adjoints[*i].iter_mut().zip(*seed).for_each(|(a, s)| *a += *s);
            }
        }
        for i in (0..nodes.len()).rev() {
            let (before, rest) = adjoints.split_at_mut(i);
            for edge in &nodes[i].edges {
                (edge.pull)(&rest[0], &mut before[edge.parent]);
            }
        }
        let of = |v: &&Var<E>| match &v.node {
            Some((_, i)) => adjoints[*i].clone(),
            None => vec![E::of(0.0); v.len()],
        };
        inputs.iter().map(of).collect()
    }

    /// How `outputs` move, given how some leaves move.
    ///
    /// # Panics
    /// If a tangent has not the length of its variable.
    pub fn push_forward(&self, seeds: &[(&Var<E>, &[E])], outputs: &[&Var<E>]) -> Vec<Vec<E>> {
        let nodes = self.0.borrow();
        let mut tangents: Vec<Vec<E>> = nodes.iter().map(|n| vec![E::of(0.0); n.len]).collect();
        for (var, seed) in seeds {
            assert_eq!(var.len(), seed.len(), "tape: tangent and variable differ in length");
            if let Some((_, i)) = &var.node {
                tangents[*i].copy_from_slice(seed);
            }
        }
        for (i, node) in nodes.iter().enumerate() {
            let (before, rest) = tangents.split_at_mut(i);
            for Edge { parent, pull, push } in &node.edges {
                push.as_ref().unwrap_or(pull)(&before[*parent], &mut rest[0]);
            }
        }
        let of = |v: &&Var<E>| match &v.node {
            Some((_, i)) => tangents[*i].clone(),
            None => vec![E::of(0.0); v.len()],
        };
        outputs.iter().map(of).collect()
    }
}

/// An immutable array that may be recorded on a [`Tape`]. Cheap to clone.
pub struct Var<E> {
    value: Rc<Vec<E>>,
    node: Option<(Tape<E>, usize)>,
}

impl<E> Clone for Var<E> {
    fn clone(&self) -> Self {
        Var { value: self.value.clone(), node: self.node.clone() }
    }
}

impl<E: Float> Var<E> {
    /// An array without derivative.
    pub fn constant(value: Vec<E>) -> Self {
        Var { value: Rc::new(value), node: None }
    }
    /// One number without derivative.
    pub fn scalar(value: f64) -> Self {
        Var::constant(vec![E::of(value)])
    }
    /// The elements.
    pub fn data(&self) -> &[E] {
        &self.value
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.value.len()
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.value.is_empty()
    }
    /// The same elements; no adjoint flows back.
    pub fn detach(&self) -> Self {
        Var { value: self.value.clone(), node: None }
    }

    /// A new operation: its value and how it depends on each recorded operand.
    fn recorded(value: Vec<E>, edges: Vec<(Tape<E>, Edge<E>)>) -> Self {
        let tape = edges.first().map(|(t, _)| t.clone());
        let len = value.len();
        let node = tape.map(|tape| {
            let edges = edges.into_iter().map(|(_, edge)| edge).collect();
            let index = {
                let mut nodes = tape.0.borrow_mut();
                nodes.push(Node { len, edges });
                nodes.len() - 1
            };
            (tape, index)
        });
        Var { value: Rc::new(value), node }
    }

    /// How a result depends on this operand, if it is recorded.
    fn edge(
        &self,
        pull: impl Fn(&[E], &mut [E]) + 'static,
        push: impl Fn(&[E], &mut [E]) + 'static,
    ) -> Option<(Tape<E>, Edge<E>)> {
        let (tape, parent) = self.node.clone()?;
        Some((tape, Edge { parent, pull: Box::new(pull), push: Some(Box::new(push)) }))
    }

    /// The same for a result whose elements each depend on the operand's element of the same index.
    fn diagonal(&self, pull: impl Fn(&[E], &mut [E]) + 'static) -> Option<(Tape<E>, Edge<E>)> {
        let (tape, parent) = self.node.clone()?;
        Some((tape, Edge { parent, pull: Box::new(pull), push: None }))
    }

    /// An operation of one operand.
    fn unary(
        &self,
        value: Vec<E>,
        pull: impl Fn(&[E], &mut [E]) + 'static,
        push: impl Fn(&[E], &mut [E]) + 'static,
    ) -> Self {
        Var::recorded(value, self.edge(pull, push).into_iter().collect())
    }

    /// An operation on each element.
    fn elementwise(&self, value: Vec<E>, pull: impl Fn(&[E], &mut [E]) + 'static) -> Self {
        Var::recorded(value, self.diagonal(pull).into_iter().collect())
    }

    /// `f` on every element; `df(x, y)` is its derivative at `x`, where `y = f(x)`.
    fn map(&self, f: impl Fn(E) -> E, df: impl Fn(E, E) -> E + 'static) -> Self {
        let value: Vec<E> = self.value.iter().map(|x| f(*x)).collect();
        if self.node.is_none() {
            return Var::constant(value);
        }
        let (x, y) = (self.value.clone(), value.clone());
        self.elementwise(value, move |adj, out| {
            for (i, o) in out.iter_mut().enumerate() {
                *o += adj[i] * df(x[i], y[i]);
            }
        })
    }

    /// Elementwise `f(a, b)` with derivatives `da`, `db`; an array of length 1 stands for any length.
    fn zip(
        &self,
        other: &Self,
        f: impl Fn(E, E) -> E,
        da: impl Fn(E, E) -> E + 'static,
        db: impl Fn(E, E) -> E + 'static,
    ) -> Self {
        let (a, b) = (&self.value, &other.value);
        let len = if a.len() == 1 { b.len() } else { a.len() };
        assert!(b.len() == len || b.len() == 1, "tape: lengths {} and {} do not broadcast", a.len(), b.len());
        let (sa, sb) = (usize::from(a.len() > 1), usize::from(b.len() > 1));
        let value = (0..len).map(|i| f(a[i * sa], b[i * sb])).collect();
        let edges = [zip_edge(self, [self, other], len, da), zip_edge(other, [self, other], len, db)];
        Var::recorded(value, edges.into_iter().flatten().collect())
    }
}

/// How an elementwise function of `a` and `b` depends on one of the two, by which it has this slope.
fn zip_edge<E: Float>(
    operand: &Var<E>,
    [a, b]: [&Var<E>; 2],
    len: usize,
    slope: impl Fn(E, E) -> E + 'static,
) -> Option<(Tape<E>, Edge<E>)> {
    operand.node.as_ref()?;
    let [sa, sb, stride] = [a, b, operand].map(|x| usize::from(x.len() > 1));
    let (a, b) = (a.value.clone(), b.value.clone());
    let slope = Rc::new(move |i: usize| slope(a[i * sa], b[i * sb]));
    let again = slope.clone();
    let pull = move |adj: &[E], out: &mut [E]| {
        for i in 0..len {
            out[i * stride] += adj[i] * slope(i);
        }
    };
    if operand.len() == len {
        return operand.diagonal(pull);
    }
    operand.edge(pull, move |tangent, out| {
        for (i, o) in out.iter_mut().enumerate() {
            *o += tangent[0] * again(i);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::Key;

    /// Largest relative gap between the tape's gradient of `sum(weights · f(x))` and central
    /// differences; step 1e-6: truncation 1e-12, rounding 1e-10. Forward mode has to be its transpose.
    fn gap(x: &[f64], f: impl Fn(&Var<f64>) -> Var<f64>) -> f64 {
        let tape = Tape::default();
        let leaf = tape.leaf(x);
        let y = f(&leaf);
        let mut seed = vec![0.0; y.len()];
        Key::new(9).fill_normal(&mut seed);
        let adjoint = tape.pull_back(&[(&y, &seed)], &[&leaf]).remove(0);
        let mut direction = vec![0.0; x.len()];
        Key::new(10).fill_normal(&mut direction);
        let tangent = tape.push_forward(&[(&leaf, &direction)], &[&y]).remove(0);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (forward, backward) = (dot(&seed, &tangent), dot(&adjoint, &direction));
        assert!((forward - backward).abs() < 1e-9 * (1.0 + backward.abs()), "{forward} {backward}");
        let at = |i: usize, h: f64| {
            let mut x = x.to_vec();
            x[i] += h;
            let y = f(&Var::constant(x));
            y.data().iter().zip(&seed).map(|(y, s)| y * s).sum::<f64>()
        };
        let slope = |i| (at(i, 1e-6) - at(i, -1e-6)) / 2e-6;
        (0..x.len()).map(|i| (slope(i) - adjoint[i]).abs() / (1.0 + adjoint[i].abs())).fold(0.0, f64::max)
    }

    #[test]
    fn every_operation_agrees_with_differences() {
        let mut x = vec![0.0f64; 24];
        Key::new(4).fill_normal(&mut x);
        let positive: Vec<f64> = x.iter().map(|x| x.abs() + 0.1).collect();
        type Op = fn(&Var<f64>) -> Var<f64>;
        let anywhere: [(&str, Op); 26] = [
            ("spread", |x| x.spread(&x.slice(2..3))),
            ("norm", |x| x.norm()),
            ("largest", |x| x.largest()),
            ("transpose", |x| x.transpose(4, 6).row(1, 8)),
            ("exp", |x| x.exp()),
            ("tanh", |x| x.tanh()),
            ("sigmoid", |x| x.sigmoid()),
            ("relu", |x| x.relu()),
            ("square", |x| x.square()),
            ("abs", |x| x.abs()),
            ("clip", |x| x.clip(-0.7, 0.4)),
            ("scale, shift", |x| x.scale(3.0).shift(1.0)),
            ("max", |x| x.row(0, 12).max(&x.row(1, 12))),
            ("min", |x| x.row(0, 12).min(&x.row(1, 12))),
            ("add", |x| x.row(0, 12) + x.row(1, 12)),
            ("sub", |x| x.row(0, 12) - x.row(1, 12)),
            ("mul", |x| x * x.slice(3..4)),
            ("mul, scalar first", |x| x.slice(3..4) * x),
            ("div", |x| x / x.row(1, 1).exp()),
            ("mean", |x| x.mean() * x),
            ("mean_axis", |x| x.mean_axis([2, 3, 4]).square()),
            ("expand_axis", |x| x.expand_axis([6, 5, 4]).square()),
            ("concat", |x| Var::concat(&[x.row(2, 6), x.square(), x.row(0, 6)]).tanh()),
            ("linear in x", |x| x.linear(&Var::constant((0..18).map(|i| f64::from(i) - 7.0).collect()), 3)),
            ("matmul", |x| x.slice(0..12).matmul(&x.slice(4..24), 3)),
            ("linear in w", |x| x.slice(0..12).linear(&x.slice(12..24), 4)),
        ];
        let needs_positive: [(&str, Op); 4] = [
            ("ln", |x| x.ln()),
            ("sqrt", |x| x.sqrt()),
            ("rsqrt", |x| x.rsqrt()),
            ("bias_correction", |x| x.bias_correction(0.9, 1e-3)),
        ];
        for (name, op) in anywhere {
            assert!(gap(&x, op) < 1e-7, "{name}: {:e}", gap(&x, op));
        }
        for (name, op) in needs_positive {
            assert!(gap(&positive, op) < 1e-7, "{name}: {:e}", gap(&positive, op));
        }
    }

    #[test]
    fn constants_are_not_recorded_and_detached_values_pass_no_adjoint() {
        let tape = Tape::default();
        let x = tape.leaf(&[2.0f64]);
        assert!(Var::<f64>::scalar(2.0).exp().node.is_none());
        let y = &x * x.detach();
        assert_eq!(tape.pull_back(&[(&y, &[1.0])], &[&x])[0], [2.0]);
    }

    #[test]
    fn selections_keep_nan() {
        let x = Var::constant(vec![f64::NAN]);
        assert!(x.relu().data()[0].is_nan() && x.clip(-1.0, 1.0).data()[0].is_nan());
        let one = Var::scalar(1.0);
        for y in [x.max(&one), one.max(&x), x.min(&one), one.min(&x)] {
            assert!(y.data()[0].is_nan());
        }
    }
}
