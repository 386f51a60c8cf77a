//! Operations written once over any scalar: dual numbers give the tangents, correct by construction.

use super::raw::{Primal, RawOp, Tangent};
use super::KnownOp;
use crate::Float;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// A number with a derivative along one direction: `v + t ε`, `ε² = 0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dual<E> {
    /// Value.
    pub v: E,
    /// Tangent.
    pub t: E,
}

/// What an operation over any scalar may use.
pub(crate) trait Scalar:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    fn of(x: f64) -> Self;
    fn exp(self) -> Self;
    /// `ln(1 + self)`.
    fn ln_1p(self) -> Self;
    /// `1 / √self`, for positive arguments.
    fn rsqrt(self) -> Self;
    /// Order of the values.
    fn less(self, other: Self) -> bool;
}

impl<E: Float> Scalar for E {
    #[inline(always)]
    fn of(x: f64) -> Self {
        E::of(x)
    }
    #[inline(always)]
    fn exp(self) -> Self {
        self.fast_exp()
    }
    #[inline(always)]
    fn ln_1p(self) -> Self {
        num_traits::Float::ln_1p(self)
    }
    #[inline(always)]
    fn rsqrt(self) -> Self {
        E::of(1.0) / num_traits::Float::sqrt(self)
    }
    #[inline(always)]
    fn less(self, other: Self) -> bool {
        self < other
    }
}

impl<E: Float> Dual<E> {
    /// A value with its tangent.
    #[inline(always)]
    pub fn new(v: E, t: E) -> Self {
        Dual { v, t }
    }
}

impl<E: Float> Add for Dual<E> {
    type Output = Self;
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Dual::new(self.v + o.v, self.t + o.t)
    }
}
impl<E: Float> Sub for Dual<E> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Dual::new(self.v - o.v, self.t - o.t)
    }
}
impl<E: Float> Mul for Dual<E> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Dual::new(self.v * o.v, self.t * o.v + self.v * o.t)
    }
}
impl<E: Float> Div for Dual<E> {
    type Output = Self;
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        let v = self.v / o.v;
        Dual::new(v, (self.t - v * o.t) / o.v)
    }
}
impl<E: Float> Neg for Dual<E> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Dual::new(-self.v, -self.t)
    }
}
impl<E: Float> AddAssign for Dual<E> {
    #[inline(always)]
    fn add_assign(&mut self, o: Self) {
        *self = *self + o;
    }
}

impl<E: Float> Scalar for Dual<E> {
    #[inline(always)]
    fn of(x: f64) -> Self {
        Dual::new(E::of(x), E::of(0.0))
    }
    #[inline(always)]
    fn exp(self) -> Self {
        let v = self.v.fast_exp();
        Dual::new(v, v * self.t)
    }
    #[inline(always)]
    fn ln_1p(self) -> Self {
        Dual::new(num_traits::Float::ln_1p(self.v), self.t / (E::of(1.0) + self.v))
    }
    #[inline(always)]
    fn rsqrt(self) -> Self {
        let r = Scalar::rsqrt(self.v);
        Dual::new(r, E::of(-0.5) * r * self.t / self.v)
    }
    #[inline(always)]
    fn less(self, other: Self) -> bool {
        self.v < other.v
    }
}

/// An operation and its VJP over any scalar.
pub(crate) trait ScalarOp: 'static {
    /// See [`RawOp::is_loss`].
    const IS_LOSS: bool = false;
    /// See [`RawOp::reads_tangents`].
    const READS_TANGENTS: bool = true;
    /// See [`RawOp::known`].
    fn known<E: Float>(&self) -> Option<KnownOp<'_, E>> {
        None
    }
    /// `y = f(x)`; `y` comes zeroed.
    fn value<T: Scalar>(&self, x: &[&[T]], y: &mut [T]);
    /// `dxᵢ += Jᵢᵀ dy`.
    fn adjoint<T: Scalar>(&self, x: &[&[T]], y: &[T], dy: &[T], dx: &mut [Option<&mut [T]>]);
}

/// A [`ScalarOp`] as a [`RawOp`]: JVP is `value` on duals, the tangent of the VJP `adjoint` on duals.
pub(crate) struct ByDuals<O>(pub O);

fn zip<E: Float>(v: &[E], t: Option<&[E]>) -> Vec<Dual<E>> {
    match t {
        Some(t) => v.iter().zip(t).map(|(v, t)| Dual::new(*v, *t)).collect(),
        None => v.iter().map(|v| Dual::new(*v, E::of(0.0))).collect(),
    }
}

impl<E: Float, O: ScalarOp> RawOp<E> for ByDuals<O> {
    fn is_loss(&self) -> bool {
        O::IS_LOSS
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [O::READS_TANGENTS; 2]
    }
    fn known(&self) -> Option<KnownOp<'_, E>> {
        self.0.known()
    }
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        self.0.value(x, y);
    }
    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        self.0.adjoint(x, y, dy, dx);
    }
    fn jvp(&self, x: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let x: Vec<_> = x.iter().zip(tx).map(|(x, t)| zip(x, *t)).collect();
        let x: Vec<_> = x.iter().map(|x| &x[..]).collect();
        let mut y = vec![Dual::of(0.0); ty.len()];
        self.0.value(&x, &mut y);
        ty.iter_mut().zip(&y).for_each(|(t, y)| *t = y.t);
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        let x: Vec<_> = p.x.iter().zip(t.tx).map(|(x, t)| zip(x, *t)).collect();
        let x: Vec<_> = x.iter().map(|x| &x[..]).collect();
        let (y, dy) = (zip(p.y, Some(t.ty)), zip(p.dy, Some(t.ddy)));
        let mut dx: Vec<_> = ddx.iter().map(|d| d.as_ref().map(|d| vec![Dual::of(0.0); d.len()])).collect();
        let mut views: Vec<_> = dx.iter_mut().map(|d| d.as_deref_mut()).collect();
        self.0.adjoint(&x, &y, &dy, &mut views);
        for (ddx, dx) in ddx.iter_mut().zip(&dx) {
            if let (Some(ddx), Some(dx)) = (ddx, dx) {
                ddx.iter_mut().zip(dx).for_each(|(d, x)| *d += x.t);
            }
        }
    }
}
