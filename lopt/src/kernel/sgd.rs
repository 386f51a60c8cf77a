//! The updates of gradient descent, plain and with momentum, and their derivatives, each in one pass over
//! the parameters.
//!
//! The readable twin is [`Elementwise::step`](crate::hand::Elementwise::step) of the rules that name
//! [`super::Fused::Sgd`] and [`super::Fused::Momentum`]. The update does the same operations in the same
//! order, without contractions, to the same bits on every path.

use outerloop_core::simd::{load, store};
use pulp::{Simd, WithSimd};

/// Vectors per partial sum of the coefficients' adjoints, which are added up in f64.
const CHUNK: usize = 64;

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
        let minus_lr = s.splat_f32s(-self.lr);
        let mut total = 0.0;
        let chunk = CHUNK * S::F32_LANES;
        let chunks = self.g.chunks(chunk).zip(self.after.chunks(chunk)).zip(self.out.chunks_mut(chunk));
        for ((g, after), out) in chunks {
            let mut sum = s.splat_f32s(0.0);
            let vectors = g.chunks(S::F32_LANES).zip(after.chunks(S::F32_LANES));
            for ((g, after), out) in vectors.zip(out.chunks_mut(S::F32_LANES)) {
                let a = load(s, after);
                sum = s.negate_mul_add_e_f32s(a, load(s, g), sum);
                store(s, out, s.mul_f32s(minus_lr, a));
            }
            total += f64::from(s.reduce_sum_f32s(sum));
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
        for start in (0..g.len()).step_by(CHUNK * S::F32_LANES) {
            let end = g.len().min(start + CHUNK * S::F32_LANES);
            let mut sums = [s.splat_f32s(0.0); 2];
            for i in (start..end).step_by(S::F32_LANES) {
                let i = i..end;
                let (old, a_p) = (load(s, &v[i.clone()]), load(s, &after_p[i.clone()]));
                let new = s.mul_add_e_f32s(mu, old, load(s, &g[i.clone()]));
                let a = s.mul_add_e_f32s(minus_lr, a_p, load(s, &after_v[i.clone()]));
                sums[0] = s.negate_mul_add_e_f32s(a_p, new, sums[0]);
                sums[1] = s.mul_add_e_f32s(a, old, sums[1]);
                store(s, &mut out_v[i.clone()], s.mul_f32s(mu, a));
                store(s, &mut out_g[i], a);
            }
            for (total, sum) in total.iter_mut().zip(sums) {
                *total += f64::from(s.reduce_sum_f32s(sum));
            }
        }
        total
    }
}
