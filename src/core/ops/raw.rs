//! What an operation is, how it is recorded, and two short ways to write one.

use super::KnownOp;
use crate::same;
use crate::tensor::{
    unique_id, with_recording, Backend, Buffer, Float, Mode, Node, Shape, Sum, Tangents, Tensor, Value, Visit,
};
use dfdx::prelude::{HasShape, PutTape, ReshapeTo, SplitTape, UniqueId};
use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;

/// One operation `y = f(x₀, x₁, ...)` on flat host buffers. All methods that take `dx` **add** to
/// it; an input without gradient has `None` there, one without tangent `None` in `tx`.
///
/// [`apply`] runs and records it on every [`Backend`].
pub trait RawOp<E: Float>: 'static {
    /// `y = f(x)`; `y` comes zeroed.
    fn forward(&mut self, x: &[&[E]], y: &mut [E]);
    /// `dxᵢ += Jᵢᵀ dy`.
    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]);
    /// `ty = Σᵢ Jᵢ txᵢ`; `ty` comes zeroed.
    fn jvp(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]);
    /// `ddxᵢ += Jᵢᵀ ddy + J̇ᵢᵀ dy`, where `J̇` is the change of `J` along `tx`.
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]);
    /// [`Self::jvp`] of several tangents: `tx` and `ty` by tangent. Default: one after the other.
    fn jvps(&self, x: &[&[E]], y: &[E], tx: &[Vec<Option<&[E]>>], ty: &mut [&mut [E]]) {
        for (tx, ty) in tx.iter().zip(ty) {
            self.jvp(x, y, tx, ty);
        }
    }
    /// [`Self::vjp_tangent`] of several tangents: `t` and `ddx` by tangent. Default: one after the other.
    fn vjp_tangents(&self, p: Primal<'_, E>, t: &[Tangent<'_, E>], ddx: &mut [Vec<Option<&mut [E]>>]) {
        for (t, ddx) in t.iter().zip(ddx) {
            self.vjp_tangent(p, *t, ddx);
        }
    }
    /// Whether its own curvature counts in a Gauss-Newton matrix: a loss that is convex in its inputs. Of other
    /// operations only the first derivative does. Default: false.
    fn is_loss(&self) -> bool {
        false
    }
    /// Whether `vjp_tangent` reads the tangents of the inputs, and that of the output. What nobody reads is not
    /// computed in products with a kept linearization. Default: both.
    fn reads_tangents(&self) -> [bool; 2] {
        [true, true]
    }
    /// What it is by name, for devices with kernels of their own. Default: none, it runs on the host.
    fn known(&self) -> Option<KnownOp<'_, E>> {
        None
    }
}

/// Inputs, output and output adjoint of an operation.
#[derive(Clone, Copy)]
pub struct Primal<'a, E> {
    /// Inputs.
    pub x: &'a [&'a [E]],
    /// Output.
    pub y: &'a [E],
    /// Adjoint of the output.
    pub dy: &'a [E],
}

/// Tangents of [`Primal`].
#[derive(Clone, Copy)]
pub struct Tangent<'a, E> {
    /// Of the inputs; `None` is zero.
    pub tx: &'a [Option<&'a [E]>],
    /// Of the output.
    pub ty: &'a [E],
    /// Of the adjoint of the output.
    pub ddy: &'a [E],
    /// Which inputs' `ddx` hold zeros yet, so that they may be written without being read.
    pub fresh: &'a [bool],
}

/// An operation `y = f(x₀, ...)` whose `f` is affine once `value` has run: a linear map `Aᵢ` per
/// input is all its derivatives need.
pub(crate) trait AffineOp<E: Float>: 'static {
    /// `y = f(x)`; `y` comes zeroed. May fix what the maps depend on (the places of maxima).
    fn value(&mut self, x: &[&[E]], y: &mut [E]) {
        for (i, x) in x.iter().enumerate() {
            self.add(i, x, y);
        }
    }
    /// `y += Aᵢ x`.
    fn add(&self, i: usize, x: &[E], y: &mut [E]);
    /// `dx += Aᵢᵀ dy`.
    fn add_adjoint(&self, i: usize, dy: &[E], dx: &mut [E]);
    /// See [`RawOp::known`].
    fn known(&self) -> Option<KnownOp<'_, E>> {
        None
    }
}

/// An [`AffineOp`] as a [`RawOp`].
pub(crate) struct Affine<O>(pub O);

impl<E: Float, O: AffineOp<E>> RawOp<E> for Affine<O> {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        self.0.value(x, y);
    }
    fn vjp(&self, _: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        for (i, dx) in dx.iter_mut().enumerate() {
            if let Some(dx) = dx {
                self.0.add_adjoint(i, dy, dx);
            }
        }
    }
    fn jvp(&self, _: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        for (i, tx) in tx.iter().enumerate() {
            if let Some(tx) = tx {
                self.0.add(i, tx, ty);
            }
        }
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [false, false]
    }
    fn known(&self) -> Option<KnownOp<'_, E>> {
        self.0.known()
    }
}

/// A tensor of any shape, seen flat; it keeps its identity.
pub(crate) type Flat<E, B> = Tensor<(usize,), E, B>;

/// The flat view of a tensor (a strided one is copied first, by a dfdx operation).
pub(crate) fn flat<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(t: Tensor<S, E, B, M>) -> Flat<E, B> {
    let n = t.shape().num_elements();
    t.contiguous().reshape_like(&(n,)).split_tape().0
}

/// The same elements in another shape, without copying.
pub(crate) fn reshape<S: Shape, D: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    t: Tensor<S, E, B, M>,
    shape: D,
) -> Tensor<D, E, B, M> {
    t.contiguous().reshape_like(&shape)
}

/// Calls `f` with the inputs in host memory.
fn with_host<E: Float, B: Backend<E>, R>(inputs: &[Flat<E, B>], f: impl FnOnce(&[&[E]]) -> R) -> R {
    let host: Vec<_> = inputs.iter().map(B::host).collect();
    let x: Vec<&[E]> = host.iter().map(Deref::deref).collect();
    f(&x)
}

/// Runs an operation on flat inputs and records its derivative in mode `M`.
pub fn apply<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    op: impl RawOp<E>,
    inputs: Vec<Flat<E, B>>,
    shape: S,
    mode: M,
) -> Tensor<S, E, B, M> {
    apply_built(Box::new(op), inputs, shape, mode)
}

/// [`apply`] with an operation that is [`built`].
pub(super) fn apply_built<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    op: Box<dyn RawOp<E>>,
    inputs: Vec<Flat<E, B>>,
    shape: S,
    mode: M,
) -> Tensor<S, E, B, M> {
    let out = B::run(op, inputs, shape.num_elements(), M::OWNS_TAPE);
    out.reshape_like(&shape).put_tape(mode)
}

/// An operation of the dtype asked for, whose code is compiled here once per dtype and not in every crate that
/// uses it: the value, and its type in f32 and in f64.
macro_rules! built {
    ($op:expr, $of:ty) => {
        built!($op, $of, $of)
    };
    ($op:expr, $in_f32:ty, $in_f64:ty) => {{
        #[inline(never)]
        fn in_f32(op: $in_f32) -> Box<dyn $crate::ops::RawOp<f32>> {
            Box::new(op)
        }
        #[inline(never)]
        fn in_f64(op: $in_f64) -> Box<dyn $crate::ops::RawOp<f64>> {
            Box::new(op)
        }
        $crate::ops::raw::either($op, in_f32, in_f64)
    }};
}
pub(super) use built;

/// What one of two functions makes of `x`, by the dtype `E`.
pub(super) fn either<E: Float, X: 'static, A: 'static, B: 'static>(
    x: X,
    in_f32: fn(A) -> Box<dyn RawOp<f32>>,
    in_f64: fn(B) -> Box<dyn RawOp<f64>>,
) -> Box<dyn RawOp<E>> {
    const BOTH: &str = "a dtype is f32 or f64";
    if size_of::<E>() == size_of::<f32>() {
        same(in_f32(same(x).ok().expect(BOTH))).ok().expect(BOTH)
    } else {
        same(in_f64(same(x).ok().expect(BOTH))).ok().expect(BOTH)
    }
}

/// [`Backend::run`].
pub(crate) fn run<E: Float, B: Backend<E>>(
    mut op: Box<dyn RawOp<E>>,
    inputs: Vec<Flat<E, B>>,
    len: usize,
    records: bool,
) -> Flat<E, B> {
    let y = inputs[0].device().filled((len,), |y| with_host(&inputs, |x| op.forward(x, y)));
    if !records {
        return y;
    }
    let ids: Vec<UniqueId> = inputs.iter().map(unique_id).collect();
    let (active, swept, tangents, keep) = with_recording::<E, B, _>(|r| {
        let active: Vec<bool> = ids.iter().map(|&id| r.is_active(id)).collect();
        r.uses(&ids);
        let swept: Vec<bool> = ids.iter().zip(&active).map(|(&id, a)| *a && r.is_swept(id)).collect();
        (active, swept, r.tangents.clone(), r.nodes.is_some())
    });
    if !active.contains(&true) {
        return y; // data in, data out
    }
    let out = unique_id(&y);
    let done = Rc::new(Done { op, inputs, y: y.clone(), ids, active, out, dy: RefCell::default() });
    // Outside of the recording: an operation may record on a tape of its own.
    if let Some(t) = &tangents {
        done.push(std::slice::from_mut(&mut *t.borrow_mut()));
    }
    with_recording::<E, B, _>(|r| {
        r.largest = r.largest.max(len);
        if let Some(nodes) = &mut r.nodes {
            nodes.push(done.clone());
        }
        r.push(out, move |grads| {
            let Done { op, inputs, y, active, .. } = &*done;
            B::with_grads(grads, y, inputs, &swept, |dy, dx| {
                with_host(inputs, |x| op.vjp(x, &B::host(y), dy, dx));
                if keep || tangents.is_some() {
                    *done.dy.borrow_mut() = Some(Buffer::copy(dy));
                }
                if let Some(t) = tangents {
                    done.pull(std::slice::from_mut(&mut *t.borrow_mut()), true, active);
                }
            })
        });
    });
    y
}

/// An operation that ran.
struct Done<E: Float, B: Backend<E>> {
    op: Box<dyn RawOp<E>>,
    inputs: Vec<Flat<E, B>>,
    y: Flat<E, B>,
    ids: Vec<UniqueId>,
    /// Which inputs depend on a parameter.
    active: Vec<bool>,
    out: UniqueId,
    /// The adjoint of `y`, after the sweep back.
    dy: RefCell<Option<Buffer<E>>>,
}

impl<E: Float, B: Backend<E>> Node<E> for Done<E, B> {
    fn out(&self) -> UniqueId {
        self.out
    }
    fn numel(&self) -> usize {
        2 * self.y.shape().0
    }
    fn inputs(&self) -> (&[UniqueId], &[bool]) {
        (&self.ids, &self.active)
    }
    fn push(&self, all: &mut [Tangents<'_, E>]) {
        let y = B::host(&self.y);
        let mut ty: Vec<Buffer<E>> = all.iter().map(|_| Buffer::zeros(y.len())).collect();
        let tx: Vec<_> = all.iter().map(|t| self.values(t)).collect();
        let mut views: Vec<&mut [E]> = ty.iter_mut().map(|ty| &mut ty[..]).collect();
        with_host(&self.inputs, |x| self.op.jvps(x, &y, &tx, &mut views));
        for (t, ty) in all.iter_mut().zip(ty) {
            t.value.insert(self.out, Value::Own(ty));
        }
    }
    fn leave(&self, t: &mut Tangents<'_, E>) {
        t.value.insert(self.out, Value::Own(Buffer::zeros(self.y.shape().0)));
    }
    fn reads_tangents(&self) -> [bool; 2] {
        self.op.reads_tangents()
    }
    fn is_loss(&self) -> bool {
        self.op.is_loss()
    }
    fn known(&self) -> Option<KnownOp<'_, E>> {
        self.op.known()
    }
    fn visit(&self, f: Visit<'_, E>) {
        with_host(&self.inputs, |x| f(x, &B::host(&self.y)));
    }
    fn pull(&self, all: &mut [Tangents<'_, E>], curved: bool, active: &[bool]) {
        let dy = self.dy.borrow();
        let y = B::host(&self.y);
        let is_reached =
            |t: &Tangents<'_, E>| t.value.contains_key(&self.out) || t.adjoint.contains_key(&self.out);
        if !all.iter().any(is_reached) {
            return;
        }
        for t in all.iter_mut().filter(|t| curved && !t.value.contains_key(&self.out)) {
            t.value.insert(self.out, Value::Own(Buffer::zeros(y.len())));
        }
        // Without curvature it is not needed, and there need not have been a sweep back.
        let dy = dy.as_deref().unwrap_or_default();
        with_host(&self.inputs, |x| {
            self.adjoint_tangents(Primal { x, y: &y, dy }, all, active, curved);
        });
    }
}

/// The tangents of the adjoints of an operation's inputs, while it adds to them.
struct Adjoints<'a, E: 'static> {
    /// Of the result.
    ddy: Sum<'a, E>,
    ddx: Vec<Option<Sum<'a, E>>>,
    /// See [`Tangent::fresh`].
    fresh: Vec<bool>,
}

impl<E: Float, B: Backend<E>> Done<E, B> {
    /// Adds the tangents of the active inputs' adjoints; without the operation's own curvature unless `curved`.
    fn adjoint_tangents(&self, p: Primal<'_, E>, all: &mut [Tangents<'_, E>], active: &[bool], curved: bool) {
        let mut adjoints: Vec<Adjoints<'_, E>> = all.iter_mut().map(|t| self.take(t, p, active)).collect();
        let tx: Vec<_> = all.iter().map(|t| self.values(t)).collect();
        let mut tangents = Vec::with_capacity(all.len());
        let mut views: Vec<Vec<Option<&mut [E]>>> = Vec::with_capacity(all.len());
        for ((t, tx), Adjoints { ddy, ddx, fresh }) in all.iter().zip(&tx).zip(&mut adjoints) {
            let ty = t.value.get(&self.out).map_or(&[][..], Deref::deref);
            tangents.push(Tangent { tx, ty, ddy, fresh });
            views.push(ddx.iter_mut().map(|d| d.as_deref_mut()).collect());
        }
        if curved {
            self.op.vjp_tangents(p, &tangents, &mut views);
        } else {
            for (t, views) in tangents.iter().zip(&mut views) {
                self.op.vjp(p.x, p.y, t.ddy, views);
            }
        }
        for (t, Adjoints { ddx, .. }) in all.iter_mut().zip(adjoints) {
            self.put(t, ddx);
        }
    }

    /// The tangents of the inputs.
    fn values<'a>(&self, t: &'a Tangents<'_, E>) -> Vec<Option<&'a [E]>> {
        self.ids.iter().map(|id| t.value.get(id).map(Deref::deref)).collect()
    }

    /// Takes what is added to out of `t`. Where there is nothing: zero.
    fn take<'a>(&self, t: &mut Tangents<'a, E>, p: Primal<'_, E>, active: &[bool]) -> Adjoints<'a, E> {
        let zeros = |n: usize| Sum::Own(Buffer::zeros(n));
        let ddy = t.adjoint.remove(&self.out).unwrap_or_else(|| zeros(p.y.len()));
        let mut fresh = vec![false; self.ids.len()];
        // The first occurrence of an input adds in place, further ones (x * x) to their own buffers.
        let mut taken = |i: usize, id: &UniqueId| {
            let (sum, is_fresh) = match t.adjoint.remove(id) {
                Some(Sum::Zeros(x)) => (Sum::Lent(x), true),
                Some(sum) => (sum, false),
                None => (zeros(p.x[i].len()), true),
            };
            fresh[i] = is_fresh;
            sum
        };
        let ddx = self.ids.iter().enumerate().map(|(i, id)| active[i].then(|| taken(i, id))).collect();
        Adjoints { ddy, ddx, fresh }
    }

    /// Puts it back.
    fn put<'a>(&self, t: &mut Tangents<'a, E>, ddx: Vec<Option<Sum<'a, E>>>) {
        for (id, d) in self.ids.iter().zip(ddx) {
            let Some(d) = d else { continue };
            match t.adjoint.entry(*id) {
                std::collections::hash_map::Entry::Vacant(e) => {
                    e.insert(d);
                }
                std::collections::hash_map::Entry::Occupied(mut e) => {
                    e.get_mut().iter_mut().zip(&*d).for_each(|(a, d)| *a += *d);
                }
            }
        }
    }
}
