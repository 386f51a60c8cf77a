//! dfdx's CUDA device as a [`Backend`]. What runs where:
//!
//! | operation | value and gradient | tangents (Hessian-vector products) |
//! |---|---|---|
//! | `linear` with its activation, `matmul`, `batch_matmul`, `conv2d`'s product | device: cuBLAS, dfdx's elementwise kernels | host |
//! | `softmax_cross_entropy`, `weighted_softmax_cross_entropy`, `mse` | device | host |
//! | `sum`, `mean`, `sum_axis0`, `sum_axis1`, `mean_axis0`, `mean_axis1` | device: products with constants | host |
//! | `add`, `sub`, `mul`, `div`, also with a row or a number | device | host |
//! | `exp`, `square`, `tanh`, `sigmoid`, `relu`, `sin`, `cos`, `neg`, `affine`, `scale`, `shift` | device | host |
//! | any of these with two inputs that are one tensor, or empty | host | host |
//! | sums over a middle axis, maxima, pooling, embedding and other moves of elements, softmax, norms, `sigmoid_cross_entropy`, `weight_decay`, other elementwise functions, `map`, operations of a user's | host | host |
//! | operations of dfdx itself in a loss | device | differences in f64, on the device |
//! | a task's closed form | host | host |
//!
//! Host: inputs are copied to the host, the CPU's code runs, the result is copied back; so too for the tangents, which
//! are exact and on the same tape as on the CPU. [`crate::ops::by_dfdx`] makes the device's operations of dfdx's, and says
//! which of these it avoids and why. dfdx computes the gradient of data, too, where a parameter is multiplied by it.
//!
//! Random numbers are drawn on the host from keys and copied: the same values as on the CPU.
//!
//! Results repeat to the bit from run to run on one card and one version of cuBLAS, if cuBLAS has a workspace per
//! stream: [`crate::Device::check`] sets `CUBLAS_WORKSPACE_CONFIG=:4096:8` unless the environment has a value. No
//! floating-point sum is taken by atomics in more than one addition per element. cuBLAS computes f32 in f32 (TF32
//! is an option that nobody here turns on).

use super::copied::Copies;
use super::{Backend, Cuda, DynTensors, Gradients, PairTensors, ParamTree, Shape, Storage, Tensor};
use crate::ops::{by_dfdx, raw, RawOp};
use dfdx::prelude::TensorFromVec;
use std::borrow::Cow;

/// What is not there to be had: the caller has no way on.
fn out_of_memory<E>(len: usize, e: impl std::fmt::Debug) -> ! {
    panic!(
        "{} bytes asked for on the CUDA device: {e:?}; take smaller batches, fewer tasks, fewer threads, or --device cpu",
        len * size_of::<E>()
    )
}

macro_rules! cuda {
    ($t:ty) => {
        impl Backend<$t> for Cuda {
            type DynParams = DynTensors<$t, Cuda>;
            type Pair<P: ParamTree<$t, Self>, Q: ParamTree<$t, Self>> = PairTensors<P, Q>;
            fn filled<S: Shape>(&self, shape: S, f: impl FnOnce(&mut [$t])) -> Tensor<S, $t, Self> {
                let len = shape.num_elements();
                let mut v = vec![0.0; len];
                f(&mut v);
                self.try_tensor_from_vec(v, shape).unwrap_or_else(|e| out_of_memory::<$t>(len, e))
            }
            fn read_vec(&self, v: &<Self as Storage<$t>>::Vec, out: &mut [$t]) {
                let copied = v.device().dtoh_sync_copy_into(&**v, out);
                copied.unwrap_or_else(|e| panic!("copying from the CUDA device: {e:?}"));
            }
            fn host<S: Shape, T>(t: &Tensor<S, $t, Self, T>) -> Cow<'_, [$t]> {
                Cow::Owned(Storage::<$t>::tensor_to_vec(t.device(), t))
            }
            fn with_grads(
                grads: &mut Gradients<$t, Self>,
                y: &Tensor<(usize,), $t, Self>,
                x: &[Tensor<(usize,), $t, Self>],
                active: &[bool],
                f: impl FnOnce(&[$t], &mut [Option<&mut [$t]>]),
            ) -> Result<(), Self::Err> {
                let copies: Copies<$t, Self> = Copies {
                    read: |v| v.device().dtoh_sync_copy(&**v).unwrap_or_else(|e| panic!("{e:?}")),
                    write: |v, x| {
                        let dev = v.device();
                        dev.htod_sync_copy_into(x, &mut **v).unwrap_or_else(|e| panic!("{e:?}"));
                    },
                };
                copies.with_grads(grads, y, x, active, f)
            }
            #[inline(never)]
            fn run(
                op: Box<dyn RawOp<$t>>,
                inputs: Vec<Tensor<(usize,), $t, Self>>,
                len: usize,
                records: bool,
            ) -> Tensor<(usize,), $t, Self> {
                match by_dfdx::run(&*op, &inputs, len, records) {
                    Some(y) => y,
                    None => raw::run(op, inputs, len, records),
                }
            }
        }
    };
}
cuda!(f32);
cuda!(f64);
