//! Arithmetic of vectors: sums in f64, so that rounding in f32 does not grow with the dimension.

use super::LinearOperator;
use outerloop_core::Float;

/// `⟨a, b⟩`.
pub fn dot<E: Float>(a: &[E], b: &[E]) -> f64 {
    // Four sums: the compiler must not reorder one.
    let mut sums = [0.0f64; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(a, b)| a.f64() * b.f64()).sum();
    for (a, b) in a4.zip(b4) {
        for i in 0..4 {
            sums[i] += a[i].f64() * b[i].f64();
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// `‖a‖`.
pub fn norm<E: Float>(a: &[E]) -> f64 {
    dot(a, a).sqrt()
}

/// `y ← y + c x`.
pub fn add_scaled<E: Float>(y: &mut [E], c: f64, x: &[E]) {
    let c = E::of(c);
    y.iter_mut().zip(x).for_each(|(y, x)| *y += c * *x);
}

/// `y ← x + c y`.
pub fn scale_add<E: Float>(y: &mut [E], c: f64, x: &[E]) {
    let c = E::of(c);
    y.iter_mut().zip(x).for_each(|(y, x)| *y = *x + c * *y);
}

/// The start of an iteration and its residual `b − A q`, with the products that took.
pub fn begin<E: Float>(
    a: &mut dyn LinearOperator<E>,
    b: &[E],
    start: Option<&[E]>,
) -> (Vec<E>, Vec<E>, usize) {
    let Some(start) = start else { return (vec![E::of(0.0); b.len()], b.to_vec(), 0) };
    let mut r = vec![E::of(0.0); b.len()];
    a.apply(start, &mut r);
    r.iter_mut().zip(b).for_each(|(r, b)| *r = *b - *r);
    (start.to_vec(), r, 1)
}
