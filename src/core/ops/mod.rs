//! Differentiable operations on dfdx's tape, each with forward, VJP, JVP and the tangent of the VJP.
//!
//! A loss made of these alone has exact Hessian-vector products (forward over reverse, about two
//! gradients' time). Shapes may be const or run-time dims; data that no parameter reaches gets no
//! gradient. Any dfdx operation can be mixed in: it works, only slower and without exact tangents.

mod gemm;
mod linear;
mod xent;

pub(crate) use linear::cpu_linear;
pub use linear::Activation;
pub(crate) use xent::cpu_softmax_cross_entropy;

use crate::tensor::{unique_id, with_recording, Backend, Cpu, Dim, Float, Host, Mode, Rank0, Shape, Tensor};
use dfdx::prelude::{HasShape, PutTape, ReshapeTo, SplitTape, TensorFromVec};

/// `act(x w + b)`. Shapes: `x` `[N, I]`, `w` `[I, O]`, `b` `[O]`, result `[N, O]`.
pub fn linear<E: Float, B: Backend<E>, N: Dim, I: Dim, O: Dim, M: Mode<E, B>>(
    x: Tensor<(N, I), E, B, M>,
    w: &Tensor<(I, O), E, B>,
    b: &Tensor<(O,), E, B>,
    act: Activation,
) -> Tensor<(N, O), E, B, M> {
    B::linear(x, w, b, act)
}

/// Mean softmax cross entropy in nats against integer labels. Shapes: `logits` `[N, C]`, `labels`
/// `[N]`, each below `C`.
///
/// # Panics
/// If the number of labels differs from `N`.
pub fn softmax_cross_entropy<E: Float, B: Backend<E>, N: Dim, C: Dim, M: Mode<E, B>>(
    logits: Tensor<(N, C), E, B, M>,
    labels: &[u32],
) -> Tensor<Rank0, E, B, M> {
    B::softmax_cross_entropy(logits, labels)
}

/// One operation `y = f(x₀, x₁, ...)` on flat buffers. All methods that take `dx` **add** to it;
/// an input without gradient has `None` there.
pub(crate) trait RawOp<E: Float>: 'static {
    /// `y = f(x)`; `y` comes zeroed.
    fn forward(&mut self, x: &[&[E]], y: &mut [E]);
    /// `dxᵢ += Jᵢᵀ dy`.
    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]);
    /// `ty = Σᵢ Jᵢ txᵢ`; `ty` comes zeroed.
    fn jvp(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]);
    /// `ddxᵢ += Jᵢᵀ ddy + J̇ᵢᵀ dy`, where `J̇` is the change of `J` along `tx`.
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]);
}

/// Inputs, output and output adjoint of an operation.
#[derive(Clone, Copy)]
pub(crate) struct Primal<'a, E> {
    pub x: &'a [&'a [E]],
    pub y: &'a [E],
    pub dy: &'a [E],
}

/// Tangents of [`Primal`].
#[derive(Clone, Copy)]
pub(crate) struct Tangent<'a, E> {
    pub tx: &'a [Option<&'a [E]>],
    pub ty: &'a [E],
    pub ddy: &'a [E],
}

/// A tensor of any shape, seen flat; it keeps its identity.
pub(crate) type Flat<E> = Tensor<(usize,), E, Cpu>;

/// The flat view of a tensor (a strided one is copied first, by a dfdx operation).
pub(crate) fn flat<S: Shape, E: Float, M: Mode<E, Cpu>>(t: Tensor<S, E, Cpu, M>) -> Flat<E>
where
    Cpu: Host<E>,
{
    let n = t.shape().num_elements();
    t.contiguous().reshape_like(&(n,)).split_tape().0
}

/// Runs an operation and records its derivative.
pub(crate) fn apply<S: Shape, E: Float, M: Mode<E, Cpu>>(
    mut op: impl RawOp<E>,
    inputs: Vec<Flat<E>>,
    shape: S,
    mode: M,
) -> Tensor<S, E, Cpu, M>
where
    Cpu: Host<E>,
{
    use crate::tensor::host_data;
    let mut y = vec![E::of(0.0); shape.num_elements()];
    {
        let x: Vec<&[E]> = inputs.iter().map(host_data).collect();
        op.forward(&x, &mut y);
    }
    let out = inputs[0].device().tensor_from_vec(y, shape);
    if !M::OWNS_TAPE {
        return out.put_tape(mode);
    }
    let ids: Vec<_> = inputs.iter().map(unique_id).collect();
    let out_id = unique_id(&out);
    let flat_out = flat(out.clone());
    with_recording::<E, Cpu, _>(|r| {
        let active: Vec<bool> = ids.iter().map(|&id| r.is_active(id)).collect();
        if !active.contains(&true) {
            return; // data in, data out
        }
        if let Some(t) = &r.tangents {
            let mut t = t.borrow_mut();
            let mut ty = vec![E::of(0.0); host_data(&flat_out).len()];
            {
                let x: Vec<&[E]> = inputs.iter().map(host_data).collect();
                let tx: Vec<Option<&[E]>> = ids.iter().map(|id| t.value.get(id).map(|v| &v[..])).collect();
                op.jvp(&x, host_data(&flat_out), &tx, &mut ty);
            }
            t.value.insert(out_id, ty);
        }
        let tangents = r.tangents.clone();
        r.push(out_id, move |grads| {
            let x: Vec<&[E]> = inputs.iter().map(host_data).collect();
            let y = host_data(&flat_out);
            let dy = Cpu::slice(grads.get_or_alloc_mut(&flat_out)?).to_vec();
            // An input may occur twice (x * x): each occurrence adds to its own buffer.
            let mut dx: Vec<Option<Vec<E>>> =
                x.iter().zip(&active).map(|(x, a)| a.then(|| vec![E::of(0.0); x.len()])).collect();
            let mut views: Vec<Option<&mut [E]>> = dx.iter_mut().map(|d| d.as_deref_mut()).collect();
            op.vjp(&x, y, &dy, &mut views);
            for (input, dx) in inputs.iter().zip(&dx) {
                if let Some(dx) = dx {
                    let g = Cpu::slice_mut(grads.get_or_alloc_mut(input)?);
                    for (g, d) in g.iter_mut().zip(dx) {
                        *g += *d;
                    }
                }
            }
            if let Some(t) = tangents {
                let mut t = t.borrow_mut();
                let n = y.len();
                let ddy = t.adjoint.remove(&out_id).unwrap_or_else(|| vec![E::of(0.0); n]);
                for d in dx.iter_mut().flatten() {
                    d.fill(E::of(0.0));
                }
                let mut views: Vec<Option<&mut [E]>> = dx.iter_mut().map(|d| d.as_deref_mut()).collect();
                let tx: Vec<Option<&[E]>> = ids.iter().map(|id| t.value.get(id).map(|v| &v[..])).collect();
                let zero = Vec::new();
                let ty = t.value.get(&out_id).unwrap_or(&zero);
                op.vjp_tangent(Primal { x: &x, y, dy: &dy }, Tangent { tx: &tx, ty, ddy: &ddy }, &mut views);
                for (id, d) in ids.iter().zip(dx) {
                    if let Some(d) = d {
                        match t.adjoint.entry(*id) {
                            std::collections::hash_map::Entry::Vacant(e) => {
                                e.insert(d);
                            }
                            std::collections::hash_map::Entry::Occupied(mut e) => {
                                for (a, d) in e.get_mut().iter_mut().zip(d) {
                                    *a += d;
                                }
                            }
                        }
                    }
                }
            }
            Ok(())
        });
    });
    out.put_tape(mode)
}
