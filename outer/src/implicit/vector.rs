//! Arithmetic of vectors: sums in f64, so that rounding in f32 does not grow with the dimension.

use super::LinearOperator;
use outerloop_core::Float;

/// `Σ f(aᵢ, bᵢ)`.
#[inline(always)]
pub fn sum_by<A: Copy, B: Copy>(a: &[A], b: &[B], f: impl Fn(A, B) -> f64) -> f64 {
    // Eight sums: the compiler must not reorder one.
    const N: usize = 8;
    let mut sums = [0.0f64; N];
    let (a_n, b_n) = (a.chunks_exact(N), b.chunks_exact(N));
    let rest: f64 = a_n.remainder().iter().zip(b_n.remainder()).map(|(a, b)| f(*a, *b)).sum();
    for (a, b) in a_n.zip(b_n) {
        for i in 0..N {
            sums[i] += f(a[i], b[i]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `⟨a, b⟩`.
pub fn dot<E: Float>(a: &[E], b: &[E]) -> f64 {
    sum_by(a, b, |a, b| a.f64() * b.f64())
}

/// `‖a‖`.
pub fn norm<E: Float>(a: &[E]) -> f64 {
    dot(a, a).sqrt()
}

/// `y ← y + c x`.
pub fn add_scaled<E: Float>(y: &mut [E], c: f64, x: &[E]) {
    E::add_scaled(E::of(c), x, y);
}

/// `y ← x + c y`.
pub fn scale_add<E: Float>(y: &mut [E], c: f64, x: &[E]) {
    let c = E::of(c);
    y.iter_mut().zip(x).for_each(|(y, x)| *y = *x + c * *y);
}

/// Calls `f` with the number and the product of each of so many vectors, which `fill` makes; some at a time.
pub fn products<E: Float>(
    a: &mut dyn LinearOperator<E>,
    count: usize,
    mut fill: impl FnMut(usize, &mut [E]),
    mut f: impl FnMut(usize, &[E], &[E]),
) {
    const TOGETHER: usize = 8;
    let n = a.dim();
    let mut room = vec![E::of(0.0); 2 * n * count.min(TOGETHER)];
    for first in (0..count).step_by(TOGETHER) {
        let some = TOGETHER.min(count - first);
        let (v, out) = room[..2 * n * some].split_at_mut(n * some);
        v.chunks_exact_mut(n).enumerate().for_each(|(i, v)| fill(first + i, v));
        let v: Vec<&[E]> = v.chunks_exact(n).collect();
        a.apply_all(&v, &mut out.chunks_exact_mut(n).collect::<Vec<_>>());
        v.iter().zip(out.chunks_exact(n)).enumerate().for_each(|(i, (v, out))| f(first + i, v, out));
    }
}

/// The start of an iteration and its residual `b − A q`, with the products that took. A start that leaves more than
/// `b` itself, or anything not finite, is worse than none: the iteration begins at zero.
pub fn begin<E: Float>(
    a: &mut dyn LinearOperator<E>,
    b: &[E],
    start: Option<Vec<E>>,
) -> (Vec<E>, Vec<E>, usize) {
    let Some(mut q) = start else { return (vec![E::of(0.0); b.len()], b.to_vec(), 0) };
    let mut r = vec![E::of(0.0); b.len()];
    a.apply(&q, &mut r);
    r.iter_mut().zip(b).for_each(|(r, b)| *r = *b - *r);
    let is_good = norm(&r) <= norm(b);
    if !is_good {
        q.fill(E::of(0.0));
        r.copy_from_slice(b);
    }
    (q, r, 1)
}
