//! The glue to dfdx: dtypes ([`Float`]), devices ([`Backend`]), the recording tape ([`Rec`]) and
//! parameter trees ([`ParamTree`]). dfdx is named here and in [`crate::ops`] only.

mod collection;
mod params;
mod rec;

pub use dfdx::prelude::{
    Axes, Axis, Const, ConstShape, Cpu, Device, Dim, Dtype, Gradients, HasShape, NoneTape, Rank0, Rank1,
    Rank2, Rank3, Rank4, Shape, Storage, Tape, Tensor, TensorCollection,
};
#[doc(hidden)]
pub use dfdx::prelude::{ModuleVisitor, TensorOptions};
pub use params::{DynParams, DynTensors, DynTree, ParamTree};
pub use rec::{record, record_hvp, Mode, Rec, Recorded};
pub(crate) use rec::{unique_id, with_recording};

use crate::Key;

/// A floating dtype: f32 in use, f64 as the oracle.
pub trait Float:
    Dtype
    + num_traits::Float
    + rand_distr::uniform::SampleUniform
    + std::iter::Sum
    + std::fmt::LowerExp
    + std::fmt::Display
    + serde::Serialize
    + serde::de::DeserializeOwned
{
    /// Rounds an f64 to this dtype.
    fn of(x: f64) -> Self;
    /// Widens to f64.
    fn f64(self) -> f64;
}

macro_rules! float {
    ($t:ty) => {
        impl Float for $t {
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                self as f64
            }
        }
    };
}
float!(f32);
float!(f64);

/// A device for a dtype: dfdx's `Device` plus explicit sampling, buffer access and our fused ops.
///
/// The fused operations ([`crate::ops`]) call these hooks; their default bodies are dfdx
/// operations, so any dfdx device works, and [`Cpu`] overrides them with our kernels.
pub trait Backend<E: Float>: Device<E> + Send + Sync {
    /// See [`DynParams`].
    type DynParams: DynTree<E, Self>;

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

    /// Copies a storage buffer to the host.
    fn read_vec(&self, v: &<Self as Storage<E>>::Vec, out: &mut [E]);

    /// See [`crate::ops::linear`].
    fn linear<N: Dim, I: Dim, O: Dim, M: Mode<E, Self>>(
        x: Tensor<(N, I), E, Self, M>,
        w: &Tensor<(I, O), E, Self>,
        b: &Tensor<(O,), E, Self>,
        act: crate::ops::Activation,
    ) -> Tensor<(N, O), E, Self, M>;

    /// See [`crate::ops::softmax_cross_entropy`].
    fn softmax_cross_entropy<N: Dim, C: Dim, M: Mode<E, Self>>(
        logits: Tensor<(N, C), E, Self, M>,
        labels: &[u32],
    ) -> Tensor<Rank0, E, Self, M>;
}

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
            fn read_vec(&self, v: &<Self as Storage<$t>>::Vec, out: &mut [$t]) {
                out.copy_from_slice(v);
            }
            fn linear<N: Dim, I: Dim, O: Dim, M: Mode<$t, Self>>(
                x: Tensor<(N, I), $t, Self, M>,
                w: &Tensor<(I, O), $t, Self>,
                b: &Tensor<(O,), $t, Self>,
                act: crate::ops::Activation,
            ) -> Tensor<(N, O), $t, Self, M> {
                crate::ops::cpu_linear(x, w, b, act)
            }
            fn softmax_cross_entropy<N: Dim, C: Dim, M: Mode<$t, Self>>(
                logits: Tensor<(N, C), $t, Self, M>,
                labels: &[u32],
            ) -> Tensor<Rank0, $t, Self, M> {
                crate::ops::cpu_softmax_cross_entropy(logits, labels)
            }
        }
    };
}
cpu!(f32);
cpu!(f64);

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

/// Lanes are the unit of parallelism: gemm must not start threads of its own inside one.
pub(crate) fn keep_gemm_on_one_thread() {
    gemm_common_dfdx::gemm::set_threading_threshold(usize::MAX);
}
