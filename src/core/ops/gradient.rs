//! Gradients inside a loss: the gradient of a scalar function as an operation on the outer tape.

use super::raw::{flat, reshape};
use crate::flat::derivative_along;
use crate::tensor::{
    record, record_hvp, unique_id, with_recording, Backend, Float, Mode, Rank0, Rec, Shape, Tensor,
};
use dfdx::prelude::{HasShape, PutTape, SplitTape, UniqueId};
use std::rc::Rc;

/// What the outer tape sees of a [`gradient`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Through {
    /// The gradient is differentiated: its VJP is a Hessian-vector product.
    #[default]
    Exact,
    /// The gradient is data: nothing flows back through it.
    Stopped,
}

/// `∂f/∂y`, the gradient of a scalar function on a tape of its own, as an operation of the outer tape. What
/// models that query their objective stand on: learned solvers, iterative inference, MAML.
///
/// `f` gets `y` traced and the tape's mode; it may use any other tensors. Those through which the outer loss
/// shall flow back (parameters, computed tensors without their tape) are named in `depends` as flat views,
/// [`handle`]; what is not named is data to the derivative of the gradient.
///
/// Forward: exact, one gradient. VJP, with adjoint `v` of the gradient: `(f_yy v, f_py v)`, which is the joint
/// Hessian of `f` over `(y, depends)` times `(v, 0)`: one exact Hessian-vector product, about two gradients.
/// No bias, no noise. With [`Through::Stopped`] the result is data, and nothing is computed backward.
///
/// A row of `y` on which alone a summand of `f` depends gets that summand's own gradient: per-example gradients
/// of a batch are the gradient of the sum.
///
/// Where `f` holds a `gradient` itself (nested use), or an operation of dfdx, its Hessian-vector product
/// is a central difference: exact to about 1e-9 in f64. An evaluator of f32 notices it and takes its gradient
/// in f64 ([`Recorded::wide`](crate::tensor::Recorded::wide)). The Hessian-vector product of a loss that holds a
/// differentiated `gradient` needs third derivatives, and comes from differences in f64, too (about 1e-3 where the
/// gradients are nested: differences of differences).
///
/// ```
/// use outerloop_core::{ops::{self, Through}, tensor::*};
/// # use dfdx::prelude::*;
/// // y₁ = y₀ − ½ f'(y₀) with f = y³: the loss y₁ has dy₁/dy₀ = 1 − ½ f''(y₀) = 1 − 3 y₀.
/// let dev = Cpu::default();
/// let y0: Tensor<Rank1<1>, f64, Cpu> = dev.tensor([2.0]);
/// let r = record(&y0.ids(), |m| {
///     let y = y0.clone().put_tape(m);
///     let g = ops::gradient(y.clone(), Vec::new(), Through::Exact, |y, _| {
///         ops::sum(ops::map(y, |y: f64| [y * y * y, 3.0 * y * y, 6.0 * y]))
///     });
///     ops::sum(ops::sub(y, &ops::scale(g, 0.5)))
/// });
/// assert_eq!(host_data(&r.value)[0], 2.0 - 0.5 * 12.0);
/// assert_eq!(r.grads.get(&y0).as_vec(), [1.0 - 3.0 * 2.0]);
/// ```
pub fn gradient<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    y: Tensor<S, E, B, M>,
    depends: Vec<Tensor<(usize,), E, B>>,
    through: Through,
    f: impl Fn(Tensor<S, E, B, Rec>, Rec) -> Tensor<Rank0, E, B, Rec> + 'static,
) -> Tensor<S, E, B, M> {
    value_and_gradient(y, depends, through, f).1
}

/// [`gradient`], and the function's value as data.
pub fn value_and_gradient<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    y: Tensor<S, E, B, M>,
    depends: Vec<Tensor<(usize,), E, B>>,
    through: Through,
    f: impl Fn(Tensor<S, E, B, Rec>, Rec) -> Tensor<Rank0, E, B, Rec> + 'static,
) -> (E, Tensor<S, E, B, M>) {
    let shape = *y.shape();
    let y = reshape(y, shape).split_tape().0;
    let op = Gradient { y, depends, f: Rc::new(f) };
    let mut inner = op.first(&op.y, &[]);
    let value = inner.value[0];
    let out = op.y.device().tensor_from_vec(std::mem::take(&mut inner.grads[0]), shape);
    if M::OWNS_TAPE && through == Through::Exact {
        op.push(&out, inner.is_rough);
    }
    (value, out.put_tape(M::default()))
}

/// A tensor for the list of what a [`gradient`] depends on: the flat view, without tape, of the same identity.
pub fn handle<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    t: &Tensor<S, E, B, M>,
) -> Tensor<(usize,), E, B> {
    flat(t.clone())
}

/// The same elements as data: nothing flows back through them.
pub fn stop_gradient<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
) -> Tensor<S, E, B, M> {
    let shape = *x.shape();
    let x = flat(x);
    // A tensor of another identity: an untraced copy of the same one would still count as active.
    let copy = x.device().filled(shape, |y| y.copy_from_slice(&B::host(&x)));
    copy.put_tape(M::default())
}

type ScalarFn<S, E, B> = dyn Fn(Tensor<S, E, B, Rec>, Rec) -> Tensor<Rank0, E, B, Rec>;

struct Gradient<S: Shape, E: Float, B: Backend<E>> {
    y: Tensor<S, E, B>,
    depends: Vec<Tensor<(usize,), E, B>>,
    f: Rc<ScalarFn<S, E, B>>,
}

/// Value and first derivatives of the function.
struct First<E> {
    value: Vec<E>,
    grads: Vec<Vec<E>>,
    /// Its Hessian-vector products would be differences.
    is_rough: bool,
}

impl<S: Shape, E: Float, B: Backend<E>> Gradient<S, E, B> {
    /// The gradient at `y`, and those by the dependencies of `depends`.
    fn first(&self, y: &Tensor<S, E, B>, depends: &[&Tensor<(usize,), E, B>]) -> First<E> {
        let mut ids = vec![unique_id(y)];
        ids.extend(depends.iter().map(|d| unique_id(*d)));
        let mut r = record(&ids, |m| (self.f)(y.clone().put_tape(m), m));
        let read = |grads: &mut _, t: &Tensor<(usize,), E, B>| {
            let mut out = vec![E::of(0.0); t.shape().num_elements()];
            read_grad(grads, t, &mut out);
            out
        };
        let mut grads = vec![read(&mut r.grads, &flat(y.clone()))];
        grads.extend(depends.iter().map(|d| read(&mut r.grads, d)));
        First { value: r.value.as_vec(), grads, is_rough: r.wide || r.foreign || r.holds_gradient }
    }

    /// The joint Hessian's columns at the active inputs, times `(v, 0)`.
    fn second(&self, v: &[E], active: &[&Tensor<(usize,), E, B>]) -> Vec<Vec<E>> {
        let mut ids = vec![unique_id(&self.y)];
        ids.extend(active.iter().map(|d| unique_id(*d)));
        let zeros: Vec<Vec<E>> = active.iter().map(|d| vec![E::of(0.0); d.shape().num_elements()]).collect();
        let mut along: Vec<&[E]> = vec![v];
        along.extend(zeros.iter().map(|z| &z[..]));
        let r = record_hvp(&ids, &along, |m| (self.f)(self.y.clone().put_tape(m), m));
        match r.hvp {
            Some(parts) => {
                let lengths = std::iter::once(v.len()).chain(zeros.iter().map(Vec::len));
                parts
                    .into_iter()
                    .zip(lengths)
                    .map(|(p, n)| p.unwrap_or_else(|| vec![E::of(0.0); n]))
                    .collect()
            }
            None => self.second_by_differences(v, active),
        }
    }

    fn second_by_differences(&self, v: &[E], active: &[&Tensor<(usize,), E, B>]) -> Vec<Vec<E>> {
        let (mut base, shape) = (vec![E::of(0.0); v.len()], *self.y.shape());
        self.y.copy_into(&mut base);
        let wide: Vec<f64> = base.iter().map(|x| x.f64()).collect();
        let v: Vec<f64> = v.iter().map(|x| x.f64()).collect();
        let mut lengths: Vec<usize> = Vec::new();
        let joint = derivative_along(&wide, &v, |moved| {
            let y = moved.iter().map(|x| E::of(*x)).collect();
            let first = self.first(&self.y.device().tensor_from_vec(y, shape), active);
            lengths = first.grads.iter().map(Vec::len).collect();
            first.grads.iter().flatten().map(|x| x.f64()).collect()
        });
        if lengths.is_empty() {
            // v = 0: nothing was evaluated.
            let zeros = |n| vec![E::of(0.0); n];
            return std::iter::once(v.len())
                .chain(active.iter().map(|d| d.shape().num_elements()))
                .map(zeros)
                .collect();
        }
        let mut at = 0;
        let part = |n: &usize| {
            at += n;
            joint[at - n..at].iter().map(|x| E::of(*x)).collect()
        };
        lengths.iter().map(part).collect()
    }

    /// Records the VJP.
    fn push(self, out: &Tensor<S, E, B>, is_rough: bool) {
        let mut inputs = vec![flat(self.y.clone())];
        inputs.extend(self.depends.iter().cloned());
        let ids: Vec<UniqueId> = inputs.iter().map(unique_id).collect();
        let (out_id, out) = (unique_id(out), flat(out.clone()));
        with_recording::<E, B, _>(|r| {
            let active: Vec<bool> = ids.iter().map(|&id| r.is_active(id)).collect();
            if !active.contains(&true) {
                return; // data in, data out
            }
            r.wide |= is_rough;
            // Tangents would need third derivatives.
            r.foreign |= r.tangents.is_some() || r.nodes.is_some();
            r.holds_gradient = true;
            r.push(out_id, move |grads| {
                B::with_grads(grads, &out, &inputs, &active, |dy, dx| {
                    let named = inputs[1..].iter().zip(&active[1..]);
                    let which: Vec<_> = named.filter(|(_, a)| **a).map(|(d, _)| d).collect();
                    let mut parts = self.second(dy, &which).into_iter();
                    let own = parts.next().expect("y comes first");
                    let targets = dx.iter_mut().enumerate().filter_map(|(i, d)| Some((i, d.as_mut()?)));
                    for (i, d) in targets {
                        let part =
                            if i == 0 { own.clone() } else { parts.next().expect("one per active input") };
                        d.iter_mut().zip(&part).for_each(|(d, p)| *d += *p);
                    }
                })
            });
        });
    }
}

/// The gradient of a tensor.
fn read_grad<E: Float, B: Backend<E>>(
    grads: &mut dfdx::prelude::Gradients<E, B>,
    t: &Tensor<(usize,), E, B>,
    out: &mut [E],
) {
    let v = grads.get_or_alloc_mut(t).unwrap_or_else(|e| panic!("out of device memory: {e:?}"));
    t.device().read_vec(v, out);
}
