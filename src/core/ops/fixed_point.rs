//! Equilibrium layers: the fixed point of a map, as one operation of the outer tape.

use super::raw::{apply, flat, Flat, Primal, RawOp, Tangent};
use crate::tensor::{
    record_linear, record_map, unique_id, Backend, Float, Linear, Mode, Rank0, Rec, Shape, Tensor,
};
use dfdx::prelude::{HasShape, PutTape, UniqueId};

/// How a fixed point is found, and the systems of its derivatives are solved: by repetition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Equilibrium {
    /// Most repetitions, forwards and backwards each; default 200. Backwards, 0 more than the first term is the
    /// one-step (Jacobian-free) gradient.
    pub steps: usize,
    /// Ends when a repetition changes the result by this much relative to its norm; default 1e-12 (an f32 stops
    /// changing before).
    pub tolerance: f64,
}

impl Default for Equilibrium {
    fn default() -> Self {
        Equilibrium { steps: 200, tolerance: 1e-12 }
    }
}

/// `z*` with `z* = T(z*, θ)`, from repeating the map at `start`, for maps that contract near it: equilibrium layers, and
/// solvers as layers.
///
/// The map gets `z` and the flat views of `theta`, all traced on a tape of its own; it may use any other tensors as data.
/// With `J = ∂T/∂z`: tangents are `(I − J)⁻¹ T_θ θ̇`, adjoints `θ̄ = T_θᵀ u` where `u = c + Jᵀ u`, both by repetition,
/// which converges when that of the map does; second derivatives are those of these systems. Nothing of the way to the
/// fixed point is kept, and the start has no derivative. Where it does not converge, the result is where it came to, and
/// derivatives are biased.
///
/// ```
/// use outerloop_core::{ops::{self, Equilibrium}, tensor::*};
/// # use dfdx::prelude::*;
/// // z = θ / 2 + z / 2 has the fixed point θ.
/// let dev = Cpu::default();
/// let theta: Tensor<Rank1<2>, f64, Cpu> = dev.tensor([3.0, -1.0]);
/// let r = record(&theta.ids(), |m| {
///     let half = |z, theta: &[_]| ops::scale(ops::add(z, &theta[0]), 0.5);
///     let theta = ops::reshape(theta.clone().put_tape(m), (2,));
///     let z = ops::fixed_point(dev.zeros_like(&(2,)), vec![theta], Equilibrium::default(), half);
///     ops::sum(ops::square(z))
/// });
/// assert!((host_data(&r.value)[0] - 10.0).abs() < 1e-9);
/// assert!((r.grads.get(&theta).as_vec()[0] - 6.0).abs() < 1e-9);
/// ```
///
/// # Panics
/// If the map holds an operation of dfdx itself, or returns another shape.
///
/// Reference: Bai, Kolter, Koltun 2019, arXiv:1909.01377.
#[track_caller]
pub fn fixed_point<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    start: Tensor<S, E, B>,
    theta: Vec<Tensor<(usize,), E, B, M>>,
    config: Equilibrium,
    map: impl Fn(Tensor<S, E, B, Rec>, &[Tensor<(usize,), E, B, Rec>]) -> Tensor<S, E, B, Rec> + 'static,
) -> Tensor<S, E, B, M> {
    assert!(!theta.is_empty(), "fixed_point: a map without parameters has no derivative");
    let shape = *start.shape();
    let theta: Vec<Flat<E, B>> = theta.into_iter().map(flat).collect();
    let op = FixedPoint { start, config, map: Box::new(map) };
    apply(op, theta, shape, M::default())
}

type Map<S, E, B> = dyn Fn(Tensor<S, E, B, Rec>, &[Tensor<(usize,), E, B, Rec>]) -> Tensor<S, E, B, Rec>;

struct FixedPoint<S: Shape, E: Float, B: Backend<E>> {
    start: Tensor<S, E, B>,
    config: Equilibrium,
    map: Box<Map<S, E, B>>,
}

/// The map's derivatives at a point.
struct Jacobian<E: Float> {
    linear: Linear<E>,
    out: UniqueId,
    /// `T` there.
    value: Vec<E>,
    /// Lengths of `z` and of the θs.
    lengths: Vec<usize>,
}

impl<E: Float> Jacobian<E> {
    /// `J ż + T_θ θ̇`.
    fn jvp(&mut self, z: &[E], theta: &[Option<&[E]>]) -> Vec<E> {
        let zeros: Vec<Vec<E>> = self.lengths[1..].iter().map(|n| vec![E::of(0.0); *n]).collect();
        let mut v = vec![z];
        v.extend(theta.iter().zip(&zeros).map(|(t, zero)| t.unwrap_or(zero)));
        let zero = || vec![E::of(0.0); self.lengths[0]];
        self.linear.jvp(&v, self.out).unwrap_or_else(zero)
    }

    /// `Jᵀ u`, and `T_θᵀ u` where it is not zero.
    fn vjp(&mut self, u: &[E]) -> (Vec<E>, Vec<Option<Vec<E>>>) {
        let mut parts = self.linear.vjp(self.out, u).into_iter();
        let z = parts.next().flatten().unwrap_or_else(|| vec![E::of(0.0); self.lengths[0]]);
        (z, parts.collect())
    }
}

fn norm<E: Float>(x: &[E]) -> f64 {
    x.iter().map(|x| x.f64() * x.f64()).sum::<f64>().sqrt()
}

impl<S: Shape, E: Float, B: Backend<E>> FixedPoint<S, E, B> {
    /// Tensors of their own for a point.
    fn tensors(&self, z: &[E], theta: &[&[E]]) -> (Tensor<S, E, B>, Vec<Flat<E, B>>) {
        let dev = self.start.device();
        let z = dev.filled(*self.start.shape(), |out| out.copy_from_slice(z));
        (z, theta.iter().map(|t| dev.filled((t.len(),), |out| out.copy_from_slice(t))).collect())
    }

    fn jacobian(&self, z: &[E], theta: &[&[E]]) -> Jacobian<E> {
        let lengths = std::iter::once(z.len()).chain(theta.iter().map(|t| t.len())).collect();
        let (z, theta) = self.tensors(z, theta);
        let mut ids = vec![unique_id(&z)];
        ids.extend(theta.iter().map(unique_id));
        let (value, linear) = record_map(&ids, |m| {
            let theta: Vec<_> = theta.iter().map(|t| t.clone().put_tape(m)).collect();
            (self.map)(z.clone().put_tape(m), &theta)
        });
        let (have, want) = (value.shape().concrete(), z.shape().concrete());
        assert_eq!(have, want, "fixed_point: the map must keep the shape");
        let linear = linear.expect("fixed_point: the map must be made of operations of `ops`");
        Jacobian { linear, out: unique_id(&value), value: B::host(&value).into_owned(), lengths }
    }

    /// `x ← f(x)` from `x` until it changes no more.
    fn repeat(&self, mut x: Vec<E>, mut f: impl FnMut(&[E]) -> Vec<E>) -> Vec<E> {
        let mut last = f64::INFINITY;
        for _ in 0..self.config.steps {
            let next = f(&x);
            let moved: Vec<E> = next.iter().zip(&x).map(|(n, x)| *n - *x).collect();
            let moved = norm(&moved);
            x = next;
            // In f32 the changes end in rounding, above the tolerance: when they no longer shrink.
            let is_noise = moved <= 1e-6 * norm(&x) && moved >= last && size_of::<E>() == 4;
            if moved <= self.config.tolerance * norm(&x) || moved.is_nan() || is_noise {
                break;
            }
            last = moved;
        }
        x
    }

    /// `u = c + Jᵀ u`.
    fn adjoint(&self, jacobian: &mut Jacobian<E>, c: &[E]) -> Vec<E> {
        self.repeat(c.to_vec(), |u| {
            let (ju, _) = jacobian.vjp(u);
            ju.iter().zip(c).map(|(j, c)| *j + *c).collect()
        })
    }
}

impl<S: Shape, E: Float, B: Backend<E>> RawOp<E> for FixedPoint<S, E, B> {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let start = B::host(&self.start).into_owned();
        let z = self.repeat(start, |z| self.jacobian(z, x).value);
        y.copy_from_slice(&z);
    }
    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let mut jacobian = self.jacobian(y, x);
        let u = self.adjoint(&mut jacobian, dy);
        add_parts(jacobian.vjp(&u).1, dx);
    }
    fn jvp(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let mut jacobian = self.jacobian(y, x);
        let pushed = jacobian.jvp(&vec![E::of(0.0); y.len()], tx);
        let z = self.repeat(pushed.clone(), |z| {
            let jz = jacobian.jvp(z, &vec![None; tx.len()]);
            jz.iter().zip(&pushed).map(|(j, p)| *j + *p).collect()
        });
        ty.copy_from_slice(&z);
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        let mut jacobian = self.jacobian(p.y, p.x);
        let u = self.adjoint(&mut jacobian, p.dy);
        // The change of (Jᵀ u, T_θᵀ u) along (ż, θ̇) for a constant u: the Hessian of ⟨T, u⟩.
        let (z, theta) = self.tensors(p.y, p.x);
        let mut ids = vec![unique_id(&z)];
        ids.extend(theta.iter().map(unique_id));
        let weights = self.tensors(&u, &[]).0;
        let recorded = record_linear(&ids, ids.len(), |m| -> Tensor<Rank0, E, B, Rec> {
            let theta: Vec<_> = theta.iter().map(|t| t.clone().put_tape(m)).collect();
            super::sum(super::mul((self.map)(z.clone().put_tape(m), &theta), &weights))
        });
        let mut linear = recorded.linear.expect("the map was made of operations of `ops` forwards");
        let zeros: Vec<Vec<E>> = p.x.iter().map(|x| vec![E::of(0.0); x.len()]).collect();
        let mut v = vec![t.ty];
        v.extend(t.tx.iter().zip(&zeros).map(|(t, zero)| t.unwrap_or(zero)));
        let mut bent: Vec<Vec<E>> = v.iter().map(|v| vec![E::of(0.0); v.len()]).collect();
        linear.products(&[v], vec![bent.iter_mut().map(|b| &mut b[..]).collect()], Default::default());
        let mut c = bent.remove(0);
        add_parts(bent.into_iter().map(Some).collect(), ddx);
        // u̇ = ċ + (J̇ᵀ u) + Jᵀ u̇
        c.iter_mut().zip(t.ddy).for_each(|(c, d)| *c += *d);
        let du = self.adjoint(&mut jacobian, &c);
        add_parts(jacobian.vjp(&du).1, ddx);
    }
}

fn add_parts<E: Float>(parts: Vec<Option<Vec<E>>>, dx: &mut [Option<&mut [E]>]) {
    for (part, dx) in parts.into_iter().zip(dx) {
        if let (Some(part), Some(dx)) = (part, dx) {
            dx.iter_mut().zip(&part).for_each(|(d, p)| *d += *p);
        }
    }
}
