//! Elementwise functions of one tensor, of any shape.

use super::raw::{apply, apply_built, either, flat, Primal, RawOp, Tangent};
use super::{KnownMap, KnownOp};
use crate::math::vectorize;
use crate::tensor::{Backend, Float, Mode, Shape, Tensor};
use dfdx::prelude::HasShape;

/// `y = f(x)` elementwise, with `f` returning `[f, f', f'']`, and its name if it is known.
struct Map<E, F>(F, Option<KnownMap<E>>);

impl<E: Float, F: Fn(E) -> [E; 3] + 'static> RawOp<E> for Map<E, F> {
    fn known(&self) -> Option<KnownOp<'_, E>> {
        self.1.map(KnownOp::Map)
    }
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        vectorize(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(x[0]) {
                    *y = (self.0)(*x)[0];
                }
            },
        );
    }
    fn vjp(&self, x: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let Some(dx) = &mut dx[0] else { return };
        vectorize(
            #[inline(always)]
            || {
                for ((dx, x), dy) in dx.iter_mut().zip(x[0]).zip(dy) {
                    *dx += (self.0)(*x)[1] * *dy;
                }
            },
        );
    }
    fn jvp(&self, x: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let Some(tx) = tx[0] else { return };
        vectorize(
            #[inline(always)]
            || {
                for ((ty, x), tx) in ty.iter_mut().zip(x[0]).zip(tx) {
                    *ty = (self.0)(*x)[1] * *tx;
                }
            },
        );
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        let Some(tx) = t.tx[0] else { return self.vjp(p.x, p.y, t.ddy, ddx) };
        let Some(ddx) = &mut ddx[0] else { return };
        vectorize(
            #[inline(always)]
            || {
                for ((((d, x), tx), dy), ddy) in ddx.iter_mut().zip(p.x[0]).zip(tx).zip(p.dy).zip(t.ddy) {
                    let [_, d1, d2] = (self.0)(*x);
                    *d += d1 * *ddy;
                    *d += d2 * *tx * *dy;
                }
            },
        );
    }
}

/// Any elementwise function: `f` returns `[f(x), f'(x), f''(x)]`.
///
/// ```
/// use outerloop_core::{ops, tensor::*};
/// # use dfdx::prelude::*;
/// let dev = Cpu::default();
/// let x: Tensor<Rank1<2>, f64, _> = dev.tensor([1.0, 2.0]);
/// let cube = ops::map(x, |x| [x * x * x, 3.0 * x * x, 6.0 * x]);
/// assert_eq!(cube.array(), [1.0, 8.0]);
/// ```
pub fn map<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
    f: impl Fn(E) -> [E; 3] + 'static,
) -> Tensor<S, E, B, M> {
    let shape = *x.shape();
    apply(Map(f, None), vec![flat(x)], shape, M::default())
}

/// The type of a constant.
macro_rules! number {
    ($c:ident) => {
        f64
    };
}

macro_rules! unary {
    ($($(#[$m:meta])* fn $name:ident($x:ident $(, $c:ident)*) $body:block)+) => {
        $(
            $(#[$m])*
            pub fn $name<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
                x: Tensor<S, E, B, M>
                $(, $c: f64)*
            ) -> Tensor<S, E, B, M> {
                let shape = *x.shape();
                // As by `built`, which takes no closures.
                #[inline(never)]
                fn in_f32(($($c,)*): ($(number!($c),)*)) -> Box<dyn RawOp<f32>> {
                    let known = KnownMap::named(stringify!($name), &[$($c),*]);
                    $(let $c = f32::of($c);)*
                    Box::new(Map(move |x: f32| scalar::$name(x $(, $c)*), known))
                }
                #[inline(never)]
                fn in_f64(($($c,)*): ($(number!($c),)*)) -> Box<dyn RawOp<f64>> {
                    let known = KnownMap::named(stringify!($name), &[$($c),*]);
                    Box::new(Map(move |x: f64| scalar::$name(x $(, $c)*), known))
                }
                let op = either(($($c,)*), in_f32, in_f64);
                apply_built(op, vec![flat(x)], shape, M::default())
            }
        )+

        /// The elementwise functions of one number, each with its first and second derivative:
        /// `[f, f', f'']`.
        pub mod scalar {
            use super::{k, pick};
            use crate::{nan, Float};
            $(
                $(#[$m])*
                #[inline(always)]
                pub fn $name<E: Float>($x: E $(, $c: E)*) -> [E; 3] $body
            )+
        }
    };
}

/// A literal.
#[inline(always)]
fn k<E: Float>(x: f64) -> E {
    E::of(x)
}

/// `yes` if `c`, else `no`, as a value: compiles to a select.
#[inline(always)]
fn pick<E: Float>(c: bool, yes: E, no: E) -> E {
    if c {
        yes
    } else {
        no
    }
}

unary! {
    /// `e^x`.
    fn exp(x) {
        let y = x.fast_exp();
        [y, y, y]
    }
    /// Natural logarithm; derivatives 0 for `x ≤ 0`, and at most what the dtype holds.
    fn ln(x) {
        let most: E = num_traits::Float::max_value();
        let r = pick(x > k(0.0), nan::min(k::<E>(1.0) / x, most), k(0.0));
        [num_traits::Float::ln(x), r, nan::max(-r * r, -most)]
    }
    /// Square root; derivatives 0 for `x ≤ 0`, and at most what the dtype holds.
    fn sqrt(x) {
        let most: E = num_traits::Float::max_value();
        let y = num_traits::Float::sqrt(x);
        let d = pick(x > k(0.0), k::<E>(0.5) / y, k(0.0));
        [y, d, pick(x > k(0.0), nan::max(k::<E>(-0.5) * d / x, -most), k(0.0))]
    }
    /// `x²`.
    fn square(x) {
        [x * x, x + x, k(2.0)]
    }
    /// Hyperbolic tangent.
    fn tanh(x) {
        let y = x.fast_tanh();
        let d = k::<E>(1.0) - y * y;
        [y, d, k::<E>(-2.0) * y * d]
    }
    /// `1 / (1 + e^-x)`.
    fn sigmoid(x) {
        let y = x.fast_sigmoid();
        let d = y * (k::<E>(1.0) - y);
        [y, d, d * (k::<E>(1.0) - y - y)]
    }
    /// `max(x, 0)`; NaN stays NaN; derivative 0 at 0.
    fn relu(x) {
        [nan::max(x, k(0.0)), pick(x > k(0.0), k(1.0), k(0.0)), k(0.0)]
    }
    /// `x` if positive, else `slope · x`.
    fn leaky_relu(x, slope) {
        let d = pick(x > k(0.0), k(1.0), slope);
        [x * d, d, k(0.0)]
    }
    /// `min(max(x, 0), 6)`; derivative 0 at 0 and 6.
    fn relu6(x) {
        [nan::clamp(x, k(0.0), k(6.0)), pick(x > k(0.0) && x < k(6.0), k(1.0), k(0.0)), k(0.0)]
    }
    /// `min(max(x, low), high)`; derivative 0 at the bounds.
    fn clip(x, low, high) {
        [nan::clamp(x, low, high), pick(x > low && x < high, k(1.0), k(0.0)), k(0.0)]
    }
    /// `λ x` if positive, else `λ α (e^x − 1)`, with the constants of Klambauer et al. 2017.
    fn selu(x) {
        let (lambda, alpha) = (k::<E>(1.050_700_987_355_480_5), k::<E>(1.673_263_242_354_377_2));
        let e = lambda * alpha * x.fast_exp();
        let y = pick(x > k(0.0), lambda * x, e - lambda * alpha);
        [y, pick(x > k(0.0), lambda, e), pick(x > k(0.0), k(0.0), e)]
    }
    /// `x` if positive, else `e^x − 1`.
    fn elu(x) {
        let e = x.fast_exp();
        let y = pick(x > k(0.0), x, e - k(1.0));
        [y, pick(x > k(0.0), k(1.0), e), pick(x > k(0.0), k(0.0), e)]
    }
    /// `x · sigmoid(x)`, also called swish.
    fn silu(x) {
        let s = x.fast_sigmoid();
        let d = s * (k::<E>(1.0) - s);
        [x * s, s + x * d, d * (k::<E>(2.0) + x * (k::<E>(1.0) - s - s))]
    }
    /// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    fn gelu(x) {
        let (c, a) = (k::<E>(0.797_884_560_802_865_4), k::<E>(0.044_715));
        let half = k::<E>(0.5);
        // From |x| = 8 on the tanh is ±1 and its derivatives 0; powers of a large x are infinite.
        let z = nan::clamp(x, k(-10.0), k(10.0));
        let t = (c * (z + a * z * z * z)).fast_tanh();
        let (u1, u2) = (c * (k::<E>(1.0) + k::<E>(3.0) * a * z * z), k::<E>(6.0) * c * a * z);
        let t1 = k::<E>(1.0) - t * t;
        let d1 = half * (k::<E>(1.0) + t + z * t1 * u1);
        [half * x * (k::<E>(1.0) + t), d1, t1 * (u1 + half * z * (u2 - (t + t) * u1 * u1))]
    }
    /// `ln(1 + e^x)`.
    fn softplus(x) {
        let s = x.fast_sigmoid();
        let tail = num_traits::Float::ln_1p((-num_traits::Float::abs(x)).fast_exp());
        [pick(x > k(0.0), x, k(0.0)) + tail, s, s * (k::<E>(1.0) - s)]
    }
    /// Sine.
    fn sin(x) {
        let (s, c) = num_traits::Float::sin_cos(x);
        [s, c, -s]
    }
    /// Cosine.
    fn cos(x) {
        let (s, c) = num_traits::Float::sin_cos(x);
        [c, -s, -c]
    }
    /// `|x|`; derivative 0 at 0.
    fn abs(x) {
        let d = pick(x > k(0.0), k(1.0), pick(x < k(0.0), k(-1.0), k(0.0)));
        [num_traits::Float::abs(x), d, k(0.0)]
    }
    /// `-x`.
    fn neg(x) {
        [-x, k(-1.0), k(0.0)]
    }
    /// `a x + b`.
    fn affine(x, a, b) {
        [a * x + b, a, k(0.0)]
    }
    /// `c x`.
    fn scale(x, c) {
        [c * x, c, k(0.0)]
    }
    /// `x + c`.
    fn shift(x, c) {
        [x + c, k(1.0), k(0.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::scalar;
    use crate::Float;

    /// Where the value is finite, both derivatives are: up to the ends of the range.
    fn check<E: Float>(name: &str, f: fn(E) -> [E; 3]) {
        let large = [1e3, 2e10, 1e18, 1e20, 1e30, 3e38].into_iter();
        let small = [1e-30, 1e-45, 0.0].into_iter();
        for x in large.chain(small).flat_map(|x| [x, -x]) {
            let all = f(E::of(x));
            let finite = |x: &E| num_traits::Float::is_finite(*x);
            assert!(!finite(&all[0]) || all[1..].iter().all(finite), "{name}({x:e}): {all:?}");
        }
    }

    fn check_all<E: Float>() {
        check::<E>("exp", scalar::exp);
        check::<E>("ln", scalar::ln);
        check::<E>("sqrt", scalar::sqrt);
        check::<E>("square", scalar::square);
        check::<E>("tanh", scalar::tanh);
        check::<E>("sigmoid", scalar::sigmoid);
        check::<E>("relu", scalar::relu);
        check::<E>("relu6", scalar::relu6);
        check::<E>("selu", scalar::selu);
        check::<E>("silu", scalar::silu);
        check::<E>("gelu", scalar::gelu);
        check::<E>("softplus", scalar::softplus);
        check::<E>("sin", scalar::sin);
        check::<E>("cos", scalar::cos);
        check::<E>("abs", scalar::abs);
    }

    #[test]
    fn derivatives_are_finite_where_the_value_is() {
        check_all::<f32>();
        check_all::<f64>();
    }
}
