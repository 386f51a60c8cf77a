//! Operations on rows that would take several passes over memory as compositions of [`outerloop_core::ops`]: each is one
//! operation of the tape here, with its exact second derivatives.
//!
//! | file | operations |
//! |---|---|
//! | gaussian | [`sample`], [`divergence`]: what a bound does with a Gaussian posterior |
//! | bernoulli | [`bernoulli`]: log densities from logits |
//! | shrink | [`shrink`]: soft thresholds |
//! | unit | [`unit()`]: rows of length 1 |
//! | mix | [`mix`]: gates |

mod bernoulli;
mod gaussian;
mod mix;
mod shrink;
#[cfg(test)]
mod tests;
mod unit;

pub use bernoulli::bernoulli;
pub use gaussian::{divergence, sample};
pub use mix::mix;
pub use shrink::shrink;
pub use unit::unit;

use outerloop_core::Float;

/// Runs a loop compiled for the widest vectors of this machine; its sums are in an order that does not depend on them. With
/// `for` inside, not `for_each`: what that calls is not always inlined, and then not vectorized.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Partial sums of [`sum`].
const PARTS: usize = 16;

/// `Σ f(aᵢ, bᵢ)` over two rows of the same length, in partial sums so that it vectorizes.
#[inline(always)]
fn sum<E: Float>(a: &[E], b: &[E], f: impl Fn(E, E) -> E) -> E {
    let (blocks_a, blocks_b) = (a.chunks_exact(PARTS), b.chunks_exact(PARTS));
    // Loops, since the iterators' own sums are not inlined, and then not vectorized.
    let mut rest = E::of(0.0);
    for (a, b) in blocks_a.remainder().iter().zip(blocks_b.remainder()) {
        rest += f(*a, *b);
    }
    let mut parts = [E::of(0.0); PARTS];
    for (a, b) in blocks_a.zip(blocks_b) {
        for k in 0..PARTS {
            parts[k] += f(a[k], b[k]);
        }
    }
    let mut width = PARTS;
    while width > 1 {
        width /= 2;
        for k in 0..width {
            parts[k] += parts[k + width];
        }
    }
    parts[0] + rest
}

/// Length of the rows of a matrix with so many of them.
fn width(numbers: usize, rows: usize) -> usize {
    (numbers / rows.max(1)).max(1)
}
