//! The updates of gradient descent, plain and with momentum, and their derivatives, each in one pass over
//! the parameters.
//!
//! The readable twin is [`Elementwise::step`](crate::hand::Elementwise::step) of the rules that name
//! [`super::Fused::Sgd`] and [`super::Fused::Momentum`]. The update does the same operations in the same
//! order, without contractions, to the same bits on every path.

use outerloop_core::simd::{load, parts, store, totals, LANES, MAX_PARTS};
use pulp::{Simd, WithSimd};

/// Numbers per sum of the coefficients' adjoints, which are added up in f64.
const CHUNK: usize = 64 * LANES;

/// `p ← p − lr g`.
pub(crate) struct Sgd<'a> {
    pub(crate) lr: f32,
    pub(crate) p: &'a mut [f32],
    pub(crate) g: &'a [f32],
}

impl WithSimd for Sgd<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let lr = s.splat_f32s(self.lr);
        for (p, g) in self.p.chunks_mut(S::F32_LANES).zip(self.g.chunks(S::F32_LANES)) {
            let next = s.sub_f32s(load(s, p), s.mul_f32s(lr, load(s, g)));
            store(s, p, next);
        }
    }
}

/// `v ← μ v + g`, `p ← p − lr v`.
pub(crate) struct Momentum<'a> {
    pub(crate) lr: f32,
    pub(crate) mu: f32,
    pub(crate) p: &'a mut [f32],
    pub(crate) v: &'a mut [f32],
    pub(crate) g: &'a [f32],
}

impl WithSimd for Momentum<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (lr, mu) = (s.splat_f32s(self.lr), s.splat_f32s(self.mu));
        let places = self.p.chunks_mut(S::F32_LANES).zip(self.v.chunks_mut(S::F32_LANES));
        for ((p, v), g) in places.zip(self.g.chunks(S::F32_LANES)) {
            let new_v = s.add_f32s(s.mul_f32s(mu, load(s, v)), load(s, g));
            let new_p = s.sub_f32s(load(s, p), s.mul_f32s(lr, new_v));
            store(s, v, new_v);
            store(s, p, new_p);
        }
    }
}

/// The adjoint of the gradient `out` from that of the new parameters `after`; gives that of lr.
pub(crate) struct SgdVjp<'a> {
    pub(crate) lr: f32,
    pub(crate) g: &'a [f32],
    pub(crate) after: &'a [f32],
    pub(crate) out: &'a mut [f32],
}

impl WithSimd for SgdVjp<'_> {
    type Output = [f64; 1];
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> [f64; 1] {
        let SgdVjp { g, after, out, .. } = self;
        let minus_lr = s.splat_f32s(-self.lr);
        let mut total = 0.0;
        for ((g, after), out) in g.chunks(CHUNK).zip(after.chunks(CHUNK)).zip(out.chunks_mut(CHUNK)) {
            let mut sums = [[s.splat_f32s(0.0)]; MAX_PARTS];
            for (part, to) in sums.iter_mut().enumerate().take(parts::<S>()) {
                let [mut own] = *to;
                let from = g.len().min(part * S::F32_LANES);
                let places = g[from..].chunks(LANES).zip(after[from..].chunks(LANES));
                for ((g, after), out) in places.zip(out[from..].chunks_mut(LANES)) {
                    let a = load(s, after);
                    own = s.negate_mul_add_e_f32s(a, load(s, g), own);
                    store(s, out, s.mul_f32s(minus_lr, a));
                }
                *to = [own];
            }
            let [sum] = totals(s, &sums);
            total += f64::from(sum);
        }
        [total]
    }
}

/// The adjoints `out` of momentum and gradient from those of the new parameters and momentum, `after`, given
/// `before` = `[v, g]`; gives those of lr and μ.
pub(crate) struct MomentumVjp<'a> {
    pub(crate) lr: f32,
    pub(crate) mu: f32,
    pub(crate) before: [&'a [f32]; 2],
    pub(crate) after: [&'a [f32]; 2],
    pub(crate) out: [&'a mut [f32]; 2],
}

impl WithSimd for MomentumVjp<'_> {
    type Output = [f64; 2];
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> [f64; 2] {
        let MomentumVjp { before: [v, g], after: [after_p, after_v], out: [out_v, out_g], .. } = self;
        let (minus_lr, mu) = (s.splat_f32s(-self.lr), s.splat_f32s(self.mu));
        let mut total = [0.0; 2];
        for start in (0..g.len()).step_by(CHUNK) {
            let end = g.len().min(start + CHUNK);
            let mut sums = [[s.splat_f32s(0.0); 2]; MAX_PARTS];
            for (part, to) in sums.iter_mut().enumerate().take(parts::<S>()) {
                let mut own = *to;
                for i in (start + part * S::F32_LANES..end).step_by(LANES) {
                    let i = i..end;
                    let (old, a_p) = (load(s, &v[i.clone()]), load(s, &after_p[i.clone()]));
                    let new = s.mul_add_e_f32s(mu, old, load(s, &g[i.clone()]));
                    let a = s.mul_add_e_f32s(minus_lr, a_p, load(s, &after_v[i.clone()]));
                    own[0] = s.negate_mul_add_e_f32s(a_p, new, own[0]);
                    own[1] = s.mul_add_e_f32s(a, old, own[1]);
                    store(s, &mut out_v[i.clone()], s.mul_f32s(mu, a));
                    store(s, &mut out_g[i], a);
                }
                *to = own;
            }
            for (total, sum) in total.iter_mut().zip(totals(s, &sums)) {
                *total += f64::from(sum);
            }
        }
        total
    }
}
