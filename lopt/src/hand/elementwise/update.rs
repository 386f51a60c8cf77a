//! `Optimizer::update` of an [`Elementwise`] rule.

use super::{in_f32, rounded, Array, At, Elementwise};
use crate::kernel::{f32s, is_f32, Path};
use outerloop_core::{Float, OptState};
use pulp::{Arch, Simd, WithSimd};
use std::ops::Range;

/// Elements per block. Blocks are copied to the stack, so that the compiler sees buffers that do
/// not overlap and vectorizes the loop over them.
pub(super) const BLOCK: usize = 64;
/// Elements per block of what is left, which is all that tiny tasks have.
const REST: usize = 8;

/// A block of `x` from `start` on, padded with zeros.
#[inline(always)]
pub(super) fn load<E: Float, const B: usize>(x: &[E], start: usize) -> [E; B] {
    let mut out = [<E as Float>::of(0.0); B];
    match x[start..].first_chunk() {
        Some(full) => out = *full,
        None => out[..x.len() - start].copy_from_slice(&x[start..]),
    }
    out
}

/// Writes a block of `x` from `start` on, without the padding.
#[inline(always)]
pub(super) fn store<E: Float, const B: usize>(block: &[E; B], x: &mut [E], start: usize) {
    let x = &mut x[start..];
    match x.first_chunk_mut() {
        Some(full) => *full = *block,
        None => x.copy_from_slice(&block[..x.len()]),
    }
}

/// `Optimizer::update` of a rule.
///
/// # Panics
/// If `grad` and the parameters differ in length.
#[track_caller]
pub fn update<E: Float, R: Elementwise>(rule: &R, state: &mut OptState<E>, grad: &[E]) {
    assert_eq!(grad.len(), state.params.len(), "update: length of the gradient");
    let coeffs = rounded::<E, R>(&rule.values(At::of(state)));
    if !update_fused::<E, R>(Path::best(), &coeffs, state, grad) {
        update_plain(rule, &coeffs, state, grad);
    }
    state.step += 1;
}

/// The update by [`Elementwise::step`]: on all instruction sets only where it has to be fast. A rule with a
/// kernel needs it as that one's twin, and f64 is the oracle.
pub(super) fn update_plain<E: Float, R: Elementwise>(
    rule: &R,
    coeffs: &R::Coeffs<E>,
    state: &mut OptState<E>,
    grad: &[E],
) {
    let mut update = Update { rule, coeffs, state, grad };
    if const { R::FUSED.is_none() && is_f32::<E>() } {
        Arch::new().dispatch(update);
    } else {
        update.blocks::<REST>(0..grad.len());
    }
}

/// The update by [`Elementwise::FUSED`]; false if there is no kernel for this rule and dtype.
pub(super) fn update_fused<E: Float, R: Elementwise>(
    path: Path,
    coeffs: &R::Coeffs<E>,
    state: &mut OptState<E>,
    grad: &[E],
) -> bool {
    let (Some(fused), Some([c, g])) = (R::FUSED, f32s([coeffs.as_ref(), grad])) else { return false };
    let mut slots = state.slots.iter_mut().map(|slot| &mut slot.data[..]);
    let mut slots =
        R::Slots::<&mut [f32]>::from_fn(|_| in_f32(slots.next().expect("as many slots as the rule names")));
    fused.update(path, c, in_f32(&mut state.params), slots.as_mut(), g);
    true
}

/// A loop that `pulp` compiles for every instruction set. Rust never contracts a product and a sum,
/// so all of them give the same bits.
struct Update<'a, E, R: Elementwise> {
    rule: &'a R,
    coeffs: &'a R::Coeffs<E>,
    state: &'a mut OptState<E>,
    grad: &'a [E],
}

impl<E: Float, R: Elementwise> WithSimd for Update<'_, E, R> {
    type Output = ();
    #[inline(always)]
    fn with_simd<V: Simd>(mut self, _: V) {
        let whole = self.grad.len() / BLOCK * BLOCK;
        self.blocks::<BLOCK>(0..whole);
        self.blocks::<REST>(whole..self.grad.len());
    }
}

impl<E: Float, R: Elementwise> Update<'_, E, R> {
    /// Updates these elements in blocks of B; the last one may be padded.
    #[inline(always)]
    fn blocks<const B: usize>(&mut self, range: Range<usize>) {
        let Update { rule, coeffs, state, grad } = self;
        for start in range.step_by(B) {
            let mut p: [E; B] = load(&state.params, start);
            let mut slots = R::Slots::<[E; B]>::from_fn(|k| load(&state.slots[k].data, start));
            let g: [E; B] = load(grad, start);
            for i in 0..B {
                let s = R::Slots::<E>::from_fn(|k| slots.as_ref()[k][i]);
                let (new, s) = rule.step(coeffs, p[i], s, g[i]);
                p[i] = new;
                for k in 0..R::Slots::<E>::LEN {
                    slots.as_mut()[k][i] = s.as_ref()[k];
                }
            }
            store(&p, &mut state.params, start);
            for (k, s) in slots.as_ref().iter().enumerate() {
                store(s, &mut state.slots[k].data, start);
            }
        }
    }
}
