//! The glue to dfdx: devices ([`Backend`]), the recording tape ([`Rec`]) and parameter trees
//! ([`ParamTree`]). dfdx is named here, in [`Float`]'s bounds and in [`crate::ops`] only.

mod buffer;
mod collection;
#[cfg(any(test, feature = "cuda"))]
mod copied;
#[cfg(feature = "cuda")]
mod cuda;
mod layers;
mod linear;
mod params;
mod rec;

pub use crate::float::Float;
pub(crate) use buffer::{release_buffers, Buffer};
pub(crate) use dfdx::prelude::Cache;
#[cfg(feature = "cuda")]
pub use dfdx::prelude::Cuda;
pub use dfdx::prelude::{
    Axes, Axis, Const, ConstShape, Cpu, Device, Dim, Dtype, Gradients, HasShape, NoneTape, PutTape, Rank0,
    Rank1, Rank2, Rank3, Rank4, Shape, SplitTape, Storage, Tape, Tensor, TensorCollection, TensorFrom,
    TensorFromVec,
};
#[doc(hidden)]
pub use dfdx::prelude::{ModuleVisitor, TensorOptions};
pub(crate) use layers::LayerMoments;
pub use linear::Curvature;
pub(crate) use linear::{Linear, Node, Visit};
pub use params::{DynParams, DynTensors, DynTree, PairTensors, PairTree, ParamTree};
#[cfg(any(test, feature = "cuda"))]
pub(crate) use rec::Quiet;
pub use rec::{record, record_hvp, Mode, Rec, Recorded};
pub(crate) use rec::{record_linear, record_map, unique_id, with_recording, Sum, Tangents, Value};

use crate::activation::Activation;
use crate::device::Shareable;
use crate::ops::{raw, RawOp};
use crate::Key;
use dfdx::prelude::ZerosTensor;
use std::borrow::Cow;

/// A device for a dtype: dfdx's `Device` plus explicit sampling and buffer access.
///
/// Our operations ([`crate::ops`]) run on host slices, which [`Self::host`] and [`Self::with_grads`]
/// lend them: [`Cpu`] its own buffers, another device copies. Operations worth a kernel of their own
/// on a device are hooks here whose default is the host's, which the operation hands in.
pub trait Backend<E: Float>: Device<E> + Shareable {
    /// See [`DynParams`].
    type DynParams: DynTree<E, Self>;
    /// Two trees of parameters as one; see [`PairTree`].
    type Pair<P: ParamTree<E, Self>, Q: ParamTree<E, Self>>: PairTree<E, Self, P, Q>;
    /// Whether buffers lie in host memory, where reading them costs nothing.
    const IN_HOST_MEMORY: bool = false;

    /// Independent standard normal numbers from an explicit key: the same on every device, and in
    /// f32 and f64 up to rounding.
    fn normal<S: ConstShape>(&self, key: Key) -> Tensor<S, E, Self> {
        self.normal_like(S::default(), key)
    }

    /// [`Self::normal`] with a run-time shape.
    fn normal_like<S: Shape>(&self, shape: S, key: Key) -> Tensor<S, E, Self> {
        let mut v = vec![E::of(0.0); shape.num_elements()];
        key.fill_normal(&mut v);
        self.tensor_from_vec(v, shape)
    }

    /// A tensor whose elements `f` fills; they come zeroed.
    fn filled<S: Shape>(&self, shape: S, f: impl FnOnce(&mut [E])) -> Tensor<S, E, Self> {
        let mut v = vec![E::of(0.0); shape.num_elements()];
        f(&mut v);
        self.tensor_from_vec(v, shape)
    }

    /// Copies a storage buffer to the host.
    fn read_vec(&self, v: &<Self as Storage<E>>::Vec, out: &mut [E]);

    /// The elements of a contiguous tensor in host memory, in row-major order.
    fn host<S: Shape, T>(t: &Tensor<S, E, Self, T>) -> Cow<'_, [E]>;

    /// Calls `f(dy, dx)` with the gradient of `y` and those of the inputs `x` that are active (the
    /// others are `None`), to be added to. Inputs may repeat; `y` is none of them.
    fn with_grads(
        grads: &mut Gradients<E, Self>,
        y: &Tensor<(usize,), E, Self>,
        x: &[Tensor<(usize,), E, Self>],
        active: &[bool],
        f: impl FnOnce(&[E], &mut [Option<&mut [E]>]),
    ) -> Result<(), Self::Err>;

    /// What [`crate::ops::apply`] does, on flat tensors: runs an operation on `inputs` for a result of `len`
    /// elements and, if it `records`, puts its derivative on the tape. A backend overrides it by the same call with
    /// its own types, so that crates that use it do not compile it again.
    fn run(
        op: Box<dyn RawOp<E>>,
        inputs: Vec<Tensor<(usize,), E, Self>>,
        len: usize,
        records: bool,
    ) -> Tensor<(usize,), E, Self> {
        raw::run(op, inputs, len, records)
    }

    /// What [`crate::ops::linear`] computes. `host`: the operation on host slices, which a device
    /// without a kernel of its own calls with the same arguments.
    fn linear<N: Dim, I: Dim, O: Dim, M: Mode<E, Self>>(
        x: Tensor<(N, I), E, Self, M>,
        w: &Tensor<(I, O), E, Self>,
        b: &Tensor<(O,), E, Self>,
        act: Activation,
        host: LinearFn<N, I, O, E, Self, M>,
    ) -> Tensor<(N, O), E, Self, M> {
        host(x, w, b, act)
    }

    /// What [`crate::ops::softmax_cross_entropy`] computes; `host` as in [`Self::linear`].
    fn softmax_cross_entropy<N: Dim, C: Dim, M: Mode<E, Self>>(
        logits: Tensor<(N, C), E, Self, M>,
        labels: &[u32],
        host: XentFn<N, C, E, Self, M>,
    ) -> Tensor<Rank0, E, Self, M> {
        host(logits, labels)
    }
}

/// The type of [`crate::ops::linear`].
pub type LinearFn<N, I, O, E, B, M> = fn(
    Tensor<(N, I), E, B, M>,
    &Tensor<(I, O), E, B>,
    &Tensor<(O,), E, B>,
    Activation,
) -> Tensor<(N, O), E, B, M>;

/// The type of [`crate::ops::softmax_cross_entropy`].
pub type XentFn<N, C, E, B, M> = fn(Tensor<(N, C), E, B, M>, &[u32]) -> Tensor<Rank0, E, B, M>;

/// A backend whose buffers are host memory: [`Cpu`].
pub trait Host<E: Float>: Backend<E> {
    /// The buffer as a slice.
    fn slice(v: &<Self as Storage<E>>::Vec) -> &[E];
    /// The buffer as a mutable slice.
    fn slice_mut(v: &mut <Self as Storage<E>>::Vec) -> &mut [E];
}

macro_rules! cpu {
    ($t:ty) => {
        impl Host<$t> for Cpu {
            #[inline]
            fn slice(v: &<Self as Storage<$t>>::Vec) -> &[$t] {
                v
            }
            #[inline]
            fn slice_mut(v: &mut <Self as Storage<$t>>::Vec) -> &mut [$t] {
                v
            }
        }
        impl Backend<$t> for Cpu {
            type DynParams = DynTensors<$t, Cpu>;
            const IN_HOST_MEMORY: bool = true;
            type Pair<P: ParamTree<$t, Self>, Q: ParamTree<$t, Self>> = PairTensors<P, Q>;
            fn filled<S: Shape>(&self, shape: S, f: impl FnOnce(&mut [$t])) -> Tensor<S, $t, Self> {
                // Not from a vector: only what the device allocates comes from its cache.
                let mut t = self.zeros_like(&shape);
                f(host_data_mut(&mut t));
                t
            }
            fn read_vec(&self, v: &<Self as Storage<$t>>::Vec, out: &mut [$t]) {
                out.copy_from_slice(v);
            }
            fn host<S: Shape, T>(t: &Tensor<S, $t, Self, T>) -> Cow<'_, [$t]> {
                Cow::Borrowed(host_data(t))
            }
            fn with_grads(
                grads: &mut Gradients<$t, Self>,
                y: &Tensor<(usize,), $t, Self>,
                x: &[Tensor<(usize,), $t, Self>],
                active: &[bool],
                f: impl FnOnce(&[$t], &mut [Option<&mut [$t]>]),
            ) -> Result<(), Self::Err> {
                with_host_grads(grads, y, x, active, f)
            }
            #[inline(never)]
            fn run(
                op: Box<dyn RawOp<$t>>,
                inputs: Vec<Tensor<(usize,), $t, Self>>,
                len: usize,
                records: bool,
            ) -> Tensor<(usize,), $t, Self> {
                #[cfg(test)]
                if let Some(y) = crate::ops::tests::device::run(&*op, &inputs, len, records) {
                    return y;
                }
                raw::run(op, inputs, len, records)
            }
        }
    };
}
cpu!(f32);
cpu!(f64);

/// [`Backend::with_grads`] where gradients lie in host memory: no copies.
fn with_host_grads<E: Float, B: Host<E>>(
    grads: &mut Gradients<E, B>,
    y: &Tensor<(usize,), E, B>,
    x: &[Tensor<(usize,), E, B>],
    active: &[bool],
    f: impl FnOnce(&[E], &mut [Option<&mut [E]>]),
) -> Result<(), B::Err> {
    let ids: Vec<_> = x.iter().map(unique_id).collect();
    let y_id = unique_id(y);
    assert!(!ids.contains(&y_id), "an operation's output is not its input");
    let first = |i: usize| ids[..i].iter().position(|id| *id == ids[i]).filter(|&j| active[j]);
    let dy: *const [E] = B::slice(grads.get_or_alloc_mut(y)?);
    // Repeated inputs (x * x) add to a buffer of their own.
    let mut repeats: Vec<(usize, Vec<E>)> = Vec::new();
    let mut dx: Vec<Option<*mut [E]>> = Vec::with_capacity(x.len());
    for i in 0..x.len() {
        let own = active[i] && first(i).is_none();
        dx.push(if own { Some(B::slice_mut(grads.get_or_alloc_mut(&x[i])?) as *mut [E]) } else { None });
        if active[i] && !own {
            repeats.push((i, vec![E::of(0.0); x[i].shape().num_elements()]));
        }
    }
    // SAFETY: the pointers are to heap buffers of `grads`, which stay in place when more are
    // allocated and live until the end of its borrow; all have different ids, so none overlap.
    let (dy, mut views): (&[E], Vec<Option<&mut [E]>>) =
        unsafe { (&*dy, dx.into_iter().map(|p| p.map(|p| &mut *p)).collect()) };
    for (i, buffer) in &mut repeats {
        views[*i] = Some(buffer);
    }
    f(dy, &mut views);
    for (i, buffer) in &repeats {
        let target = B::slice_mut(grads.get_or_alloc_mut(&x[*i])?);
        target.iter_mut().zip(buffer).for_each(|(t, b)| *t += *b);
    }
    Ok(())
}

/// The elements of a contiguous host tensor.
///
/// # Panics
/// If the tensor is a strided view; call `contiguous()` first.
#[track_caller]
pub fn host_data<S: Shape, E: Float, T>(t: &Tensor<S, E, Cpu, T>) -> &[E] {
    let n = t.shape().num_elements();
    if n == 0 {
        return &[];
    }
    let first: *const E = &t[Default::default()];
    // dfdx keeps strides private; the address of the second element along each axis shows them.
    let dims = t.shape().concrete();
    let mut stride = n;
    for (axis, dim) in dims.into_iter().enumerate() {
        stride /= dim;
        if dim > 1 {
            let mut at = S::Concrete::default();
            at[axis] = 1;
            let second: *const E = &t[at];
            assert!(
                second as usize == first as usize + stride * size_of::<E>(),
                "host_data needs a contiguous tensor, axis {axis} is strided"
            );
        }
    }
    // SAFETY: `first` is the start of the storage, and the tensor was just shown to be row major
    // without gaps, so the storage holds `n` elements from there.
    unsafe { std::slice::from_raw_parts(first, n) }
}

/// The elements of a tensor that was just made, and so is contiguous and owns its storage.
fn host_data_mut<S: Shape, E: Float>(t: &mut Tensor<S, E, Cpu>) -> &mut [E] {
    let n = host_data(t).len();
    if n == 0 {
        return &mut [];
    }
    let first: *mut E = &mut t[Default::default()];
    // SAFETY: `host_data` showed that `n` elements lie from `first` on without gaps, and dfdx made the
    // storage unique before it lent `first`; the slice borrows the tensor mutably.
    unsafe { std::slice::from_raw_parts_mut(first, n) }
}

/// Lanes are the unit of parallelism: gemm must not start threads of its own inside one.
pub(crate) fn keep_gemm_on_one_thread() {
    gemm_common_dfdx::gemm::set_threading_threshold(usize::MAX);
}
