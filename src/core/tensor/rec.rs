//! A zero-sized, `Copy` tape. Backward operations go to one thread-local recording, so traced
//! tensors can be cloned and reused freely, and a gradient cannot be lost with a dropped tape.

use super::linear::{Linear, Node};
use super::{Backend, Buffer, Float, Gradients, NoneTape, Rank0, Shape, Storage, Tape, Tensor};
use dfdx::prelude::{Backward, Merge, OwnedTape, SplitTape, UniqueId};
use dfdx::tensor::PutTape;
use std::{
    any::Any,
    cell::RefCell,
    collections::{HashMap, HashSet},
    marker::PhantomData,
    ops::{Deref, DerefMut},
    rc::Rc,
};

thread_local! {
    static CURRENT: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// The recording tape. A traced tensor stays on its thread.
#[derive(Clone, Copy, Default, Debug)]
pub struct Rec(PhantomData<*const ()>);

impl Merge<Rec> for Rec {
    fn merge(self, _: Rec) -> Rec {
        self
    }
}
impl Merge<NoneTape> for Rec {
    fn merge(self, _: NoneTape) -> Rec {
        self
    }
}

impl<E: 'static, D: Storage<E>> Tape<E, D> for Rec {
    const OWNS_TAPE: bool = true;
    /// Called by operations of dfdx itself: they have no tangent rule, which is remembered.
    fn add_backward_op<F>(&mut self, op: F)
    where
        F: 'static + FnOnce(&mut Gradients<E, D>) -> Result<(), D::Err>,
    {
        with_recording(|r: &mut Recording<E, D>| {
            r.foreign = true;
            r.tape.add_backward_op(op);
        });
    }
}

/// The tape of an operation of ours that is made of dfdx's: these count as ours.
#[cfg(any(test, feature = "cuda"))]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Quiet(PhantomData<*const ()>);

#[cfg(any(test, feature = "cuda"))]
impl Merge<Quiet> for Quiet {
    fn merge(self, _: Quiet) -> Quiet {
        self
    }
}
#[cfg(any(test, feature = "cuda"))]
impl Merge<NoneTape> for Quiet {
    fn merge(self, _: NoneTape) -> Quiet {
        self
    }
}

#[cfg(any(test, feature = "cuda"))]
impl<E: 'static, D: Storage<E>> Tape<E, D> for Quiet {
    const OWNS_TAPE: bool = true;
    fn add_backward_op<F>(&mut self, op: F)
    where
        F: 'static + FnOnce(&mut Gradients<E, D>) -> Result<(), D::Err>,
    {
        with_recording(|r: &mut Recording<E, D>| r.tape.add_backward_op(op));
    }
}

/// How a loss is evaluated: [`NoneTape`] (value only) or [`Rec`] (to be differentiated).
pub trait Mode<E: Float, B: Backend<E>>: Tape<E, B> + Copy + std::fmt::Debug + 'static {}
impl<E: Float, B: Backend<E>> Mode<E, B> for NoneTape {}
impl<E: Float, B: Backend<E>> Mode<E, B> for Rec {}

/// Tangents of tensors and of their adjoints, keyed by tensor: forward-over-reverse state.
pub(crate) struct Tangents<'a, E: 'static> {
    /// Tangent of a tensor's value.
    pub value: HashMap<UniqueId, Value<'a, E>>,
    /// Tangent of a tensor's adjoint.
    pub adjoint: HashMap<UniqueId, Sum<'a, E>>,
}

/// Numbers to be read: computed, or the caller's. Those of parameters are lent, since they may be millions.
pub(crate) enum Value<'a, E: 'static> {
    Own(Buffer<E>),
    Lent(&'a [E]),
}

/// Numbers to be added to, likewise.
pub(crate) enum Sum<'a, E: 'static> {
    Own(Buffer<E>),
    Lent(&'a mut [E]),
    /// Lent ones to which nothing was added yet.
    Zeros(&'a mut [E]),
}

impl<E: 'static> Deref for Value<'_, E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        match self {
            Value::Own(x) => x,
            Value::Lent(x) => x,
        }
    }
}

impl<E: 'static> Deref for Sum<'_, E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        match self {
            Sum::Own(x) => x,
            Sum::Lent(x) | Sum::Zeros(x) => x,
        }
    }
}

impl<E: 'static> DerefMut for Sum<'_, E> {
    fn deref_mut(&mut self) -> &mut [E] {
        match self {
            Sum::Own(x) => x,
            Sum::Lent(x) | Sum::Zeros(x) => x,
        }
    }
}

/// What is being recorded on this thread.
pub(crate) struct Recording<E: 'static, D: Storage<E>> {
    tape: OwnedTape<E, D>,
    /// Tensors that depend on a parameter; others are data, and get no gradient.
    active: HashSet<UniqueId>,
    /// Parameters by which tangents are asked for, but not the gradient.
    unswept: HashSet<UniqueId>,
    /// Parameters that no operation has seen.
    unused: HashSet<UniqueId>,
    /// An operation of dfdx itself took part: exact tangents are not available.
    pub foreign: bool,
    /// A derivative that is differenced takes part: it needs f64.
    pub wide: bool,
    /// A differentiated gradient takes part.
    pub holds_gradient: bool,
    /// Elements of the largest result.
    pub largest: usize,
    pub tangents: Option<Rc<RefCell<Tangents<'static, E>>>>,
    /// The operations, where they are kept for products after the sweep back.
    pub nodes: Option<Vec<Rc<dyn Node<E>>>>,
}

impl<E: 'static, D: Storage<E>> Recording<E, D> {
    fn new(params: &[UniqueId], aim: &Aim<E>) -> Self {
        Recording {
            tape: OwnedTape::default(),
            active: params.iter().copied().collect(),
            unused: params.iter().copied().collect(),
            unswept: match aim {
                Aim::Linearization(leading) => params[*leading..].iter().copied().collect(),
                Aim::Gradient | Aim::Product(_) => HashSet::new(),
            },
            foreign: false,
            wide: false,
            holds_gradient: false,
            largest: 0,
            tangents: match aim {
                Aim::Product(tangents) => Some(tangents.clone()),
                Aim::Gradient | Aim::Linearization(_) => None,
            },
            nodes: matches!(aim, Aim::Linearization(_)).then(Vec::new),
        }
    }
    /// Whether a tensor may depend on a parameter. The result of a dfdx operation is not tracked,
    /// so after one everything counts as active.
    pub fn is_active(&self, id: UniqueId) -> bool {
        self.foreign || self.active.contains(&id)
    }
    /// Notes inputs of an operation.
    pub fn uses(&mut self, ids: &[UniqueId]) {
        if !self.unused.is_empty() {
            for id in ids {
                self.unused.remove(id);
            }
        }
    }
    /// Whether the gradient by an active tensor is asked for.
    pub fn is_swept(&self, id: UniqueId) -> bool {
        !self.unswept.contains(&id)
    }
    /// An operation of ours, whose derivative is on the tape, produced `out` of so many elements.
    #[cfg(any(test, feature = "cuda"))]
    pub fn made(&mut self, out: UniqueId, len: usize) {
        // What a device's own kernels see is not tracked.
        self.unused.clear();
        self.active.insert(out);
        self.largest = self.largest.max(len);
    }
    /// Adds an operation of ours that produced `out`.
    pub fn push<F>(&mut self, out: UniqueId, op: F)
    where
        F: 'static + FnOnce(&mut Gradients<E, D>) -> Result<(), D::Err>,
    {
        self.active.insert(out);
        self.tape.add_backward_op(op);
    }
}

pub(crate) fn with_recording<E: 'static, D: Storage<E>, R>(f: impl FnOnce(&mut Recording<E, D>) -> R) -> R {
    CURRENT.with(|c| {
        let mut c = c.borrow_mut();
        let any = c.as_mut().expect("a `Rec` tensor is used outside `record`");
        f(any.downcast_mut().expect("a `Rec` tensor is used inside a `record` of another dtype or device"))
    })
}

/// dfdx keeps tensor ids private, but collects them for error reports.
pub(crate) fn unique_id<S: dfdx::shapes::Shape, E: dfdx::prelude::Unit, D: Storage<E>, T>(
    t: &Tensor<S, E, D, T>,
) -> UniqueId {
    let mut ids = dfdx::optim::UnusedTensors { ids: Vec::with_capacity(1) };
    ids.add(t);
    ids.ids[0]
}

/// A value with its gradients, and its Hessian-vector product where one was asked for.
pub struct Recorded<E: Float, B: Backend<E>> {
    /// The scalar.
    pub value: Tensor<Rank0, E, B>,
    /// Gradients, keyed by tensor.
    pub grads: Gradients<E, B>,
    /// Hv per parameter tensor, in the order of the ids given; `None` if an operation without
    /// tangent rule took part.
    pub hvp: Option<Vec<Option<Vec<E>>>>,
    /// The derivative of the scalar along the direction `v` (it equals gradient · v), under the same
    /// condition.
    pub slope: Option<E>,
    /// A nested [`gradient`](crate::ops::gradient()) took part: `grads` holds differences, good to about 1e-9 in
    /// f64 and to nothing in f32. Evaluators of [`Typed`](crate::Typed) tasks then compute in f64.
    pub wide: bool,
    /// An operation of dfdx itself took part.
    pub(crate) foreign: bool,
    /// A differentiated gradient took part.
    pub(crate) holds_gradient: bool,
    /// Elements of the largest intermediate result.
    pub(crate) largest: usize,
    /// Leading parameters up to the last one that took part: the others' gradients are zero.
    pub(crate) used: usize,
    /// What further products with the Hessian need, from [`record_linear`].
    pub(crate) linear: Option<Linear<E>>,
}

/// Runs `f` on a fresh tape and back-propagates its scalar. `params`: ids of the tensors to
/// differentiate by; everything else is data.
pub fn record<E: Float, B: Backend<E>>(
    params: &[UniqueId],
    f: impl FnOnce(Rec) -> Tensor<Rank0, E, B, Rec>,
) -> Recorded<E, B> {
    run(params, Aim::Gradient, f)
}

/// [`record`], keeping what exact products with the Hessian by all `params` need; the gradient is that by the first
/// `leading` of them alone. `linear` is `None` if an operation without tangent rule took part.
pub(crate) fn record_linear<E: Float, B: Backend<E>>(
    params: &[UniqueId],
    leading: usize,
    f: impl FnOnce(Rec) -> Tensor<Rank0, E, B, Rec>,
) -> Recorded<E, B> {
    run(params, Aim::Linearization(leading), f)
}

/// [`record`] plus an exact Hessian-vector product in the direction `v` (one buffer per parameter).
pub fn record_hvp<E: Float, B: Backend<E>>(
    params: &[UniqueId],
    v: &[&[E]],
    f: impl FnOnce(Rec) -> Tensor<Rank0, E, B, Rec>,
) -> Recorded<E, B> {
    let value = params.iter().copied().zip(v.iter().map(|v| Value::Own(Buffer::copy(v)))).collect();
    let tangents = Tangents { value, adjoint: HashMap::new() };
    run(params, Aim::Product(Rc::new(RefCell::new(tangents))), f)
}

/// What a recording is made for.
enum Aim<E: 'static> {
    Gradient,
    /// The gradient by so many leading parameters, and products with the Hessian later.
    Linearization(usize),
    /// The gradient and a product with the Hessian.
    Product(Rc<RefCell<Tangents<'static, E>>>),
}

/// Runs `f` on a fresh tape and keeps its operations, without a sweep back: for Jacobian products of any tensor.
/// `None` in place of the operations if one without tangent rule took part.
pub(crate) fn record_map<S: Shape, E: Float, B: Backend<E>>(
    params: &[UniqueId],
    f: impl FnOnce(Rec) -> Tensor<S, E, B, Rec>,
) -> (Tensor<S, E, B>, Option<Linear<E>>) {
    let (value, recording) = on_a_fresh_tape(params, &Aim::Linearization(params.len()), f);
    let nodes = recording.nodes.filter(|_| !recording.foreign);
    (value, nodes.map(|nodes| Linear::new(nodes, params.to_vec())))
}

fn run<E: Float, B: Backend<E>>(
    params: &[UniqueId],
    aim: Aim<E>,
    f: impl FnOnce(Rec) -> Tensor<Rank0, E, B, Rec>,
) -> Recorded<E, B> {
    let (value, recording) = on_a_fresh_tape(params, &aim, f);
    differentiated(params, aim, value, recording)
}

/// The sweep back from `value`.
fn differentiated<E: Float, B: Backend<E>>(
    params: &[UniqueId],
    aim: Aim<E>,
    value: Tensor<Rank0, E, B>,
    recording: Recording<E, B>,
) -> Recorded<E, B> {
    let grads = value.clone().put_tape(recording.tape).backward();
    let tangents = match aim {
        Aim::Product(tangents) if !recording.foreign => Some(tangents),
        _ => None,
    };
    let slope = tangents.as_ref().map(|t| {
        let t = t.borrow();
        t.value.get(&unique_id(&value)).map_or(E::of(0.0), |t| t[0])
    });
    let hvp = tangents.map(|t| {
        let mut t = t.borrow_mut();
        params.iter().map(|id| t.adjoint.remove(id).map(|d| d.to_vec())).collect()
    });
    let is_used = |id: &UniqueId| recording.foreign || !recording.unused.contains(id);
    let used = params.iter().rposition(is_used).map_or(0, |last| last + 1);
    let nodes = recording.nodes.filter(|_| !recording.foreign);
    let linear = nodes.map(|nodes| Linear::new(nodes, params.to_vec()));
    Recorded {
        value,
        grads,
        hvp,
        slope,
        wide: recording.wide,
        foreign: recording.foreign,
        holds_gradient: recording.holds_gradient,
        largest: recording.largest,
        used,
        linear,
    }
}

/// Runs `f` while what it does on the tape is recorded.
fn on_a_fresh_tape<S: Shape, E: Float, B: Backend<E>>(
    params: &[UniqueId],
    aim: &Aim<E>,
    f: impl FnOnce(Rec) -> Tensor<S, E, B, Rec>,
) -> (Tensor<S, E, B>, Recording<E, B>) {
    let begun = Begun::new(Recording::<E, B>::new(params, aim));
    let (value, _) = f(Rec::default()).split_tape();
    (value, begun.end())
}

/// A recording on this thread. Dropped, also by a panic, it puts the outer one back.
struct Begun {
    outer: Option<Box<dyn Any>>,
}

impl Begun {
    fn new(fresh: impl Any) -> Self {
        Begun { outer: CURRENT.with(|c| c.replace(Some(Box::new(fresh)))) }
    }

    fn end<R: Any>(mut self) -> R {
        let recording = CURRENT.with(|c| c.replace(self.outer.take())).expect("the recording outlives `f`");
        std::mem::forget(self);
        *recording.downcast().expect("nested recordings restore the outer one")
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        CURRENT.with(|c| c.replace(self.outer.take()));
    }
}
