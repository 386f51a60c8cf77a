//! Adam's update and its derivative, each in one pass over the parameters.
//!
//! The readable twin is [`Elementwise::step`](crate::hand::Elementwise::step) of the rules that name
//! [`super::Fused::Adam`], on plain and on dual numbers. The update does the same operations in the same
//! order, without contractions, to the same bits on every path.

use super::Path;
use crate::rule::MAX_GRADIENT;
use outerloop_core::nan;
use outerloop_core::simd::{load, parts, store, totals, LANES, MAX_PARTS};
use pulp::{Simd, WithSimd};

/// Which Adam: see [`super::Fused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdamKind {
    /// Plain.
    Adam,
    /// With decoupled weight decay.
    AdamW,
}

/// Number of coefficients.
const COEFFS: usize = 9;

/// Numbers per sum of the coefficients' adjoints, which are added up in f64.
const CHUNK: usize = 64 * LANES;

impl AdamKind {
    /// One update in place.
    pub(crate) fn update(
        self,
        path: Path,
        coeffs: &[f32],
        p: &mut [f32],
        [m, v]: [&mut [f32]; 2],
        g: &[f32],
    ) {
        let c = coefficients(coeffs);
        match self {
            AdamKind::Adam => path.run(Update::<false> { c, p, m, v, g }),
            AdamKind::AdamW => path.run(Update::<true> { c, p, m, v, g }),
        }
    }

    /// The adjoints `out` of parameters, m, v and gradient before an update from those after it,
    /// `after` = `[p̄, m̄, v̄]`, given `before` = `[p, m, v, g]`; returns the coefficients' adjoints. β and
    /// 1 − β count as one coefficient: the adjoint of 1 − β is in that of β, with the other sign.
    pub(crate) fn pull_back(
        self,
        path: Path,
        coeffs: &[f32],
        before: [&[f32]; 4],
        after: [&[f32]; 3],
        out: [&mut [f32]; 4],
    ) -> [f64; COEFFS] {
        let c = coefficients(coeffs);
        match self {
            AdamKind::Adam => path.run(PullBack::<false> { c, before, after, out }),
            AdamKind::AdamW => path.run(PullBack::<true> { c, before, after, out }),
        }
    }
}

fn coefficients(coeffs: &[f32]) -> [f32; COEFFS] {
    coeffs.try_into().expect("a rule that names Fused::Adam has its coefficients")
}

#[inline(always)]
fn splat<S: Simd>(s: S, c: [f32; COEFFS]) -> [S::f32s; COEFFS] {
    let mut out = [s.splat_f32s(0.0); COEFFS];
    for (out, c) in out.iter_mut().zip(c) {
        *out = s.splat_f32s(c);
    }
    out
}

struct Update<'a, const DECAY: bool> {
    c: [f32; COEFFS],
    p: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    g: &'a [f32],
}

impl<const DECAY: bool> WithSimd for Update<'_, DECAY> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Update { c, p, m, v, g } = self;
        let c = splat(s, c);
        let lanes = S::F32_LANES;
        let places = p.chunks_mut(lanes).zip(m.chunks_mut(lanes)).zip(v.chunks_mut(lanes));
        for (((p, m), v), g) in places.zip(g.chunks(lanes)) {
            let [new_p, new_m, new_v] =
                step::<S, DECAY>(s, &c, [load(s, p), load(s, m), load(s, v)], load(s, g));
            store(s, p, new_p);
            store(s, m, new_m);
            store(s, v, new_v);
        }
    }
}

/// The new `[p, m, v]`.
#[inline(always)]
fn step<S: Simd, const DECAY: bool>(
    s: S,
    &[scale, b1, rest1, b2, rest2, v_scale, eps, eps_root, decay]: &[S::f32s; COEFFS],
    [p, m, v]: [S::f32s; 3],
    g: S::f32s,
) -> [S::f32s; 3] {
    let g = limited(s, g);
    let m = s.add_f32s(s.mul_f32s(b1, m), s.mul_f32s(rest1, g));
    let v = s.add_f32s(s.mul_f32s(b2, v), s.mul_f32s(rest2, s.mul_f32s(g, g)));
    let root = s.sqrt_f32s(s.add_f32s(s.mul_f32s(v, v_scale), eps_root));
    let (divisor, zero) = (s.add_f32s(root, eps), s.splat_f32s(0.0));
    let u = s.div_f32s(s.mul_f32s(scale, m), divisor);
    let mut next = s.sub_f32s(p, s.select_f32s(s.equal_f32s(divisor, zero), zero, u));
    if DECAY {
        next = s.sub_f32s(next, s.mul_f32s(decay, p));
    }
    [next, m, v]
}

/// [`Scalar::limited`](crate::rule::dual::Scalar::limited).
#[inline(always)]
fn limited<S: Simd>(s: S, g: S::f32s) -> S::f32s {
    let [bound, infinity] = [MAX_GRADIENT as f32, f32::INFINITY];
    let (low, high) = (s.splat_f32s(-bound), s.splat_f32s(bound));
    let inside = nan::at_most(s, nan::at_least(s, g, low), high);
    s.select_f32s(s.less_than_f32s(s.abs_f32s(g), s.splat_f32s(infinity)), inside, g)
}

struct PullBack<'a, const DECAY: bool> {
    c: [f32; COEFFS],
    before: [&'a [f32]; 4],
    after: [&'a [f32]; 3],
    out: [&'a mut [f32]; 4],
}

impl<const DECAY: bool> WithSimd for PullBack<'_, DECAY> {
    type Output = [f64; COEFFS];
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> [f64; COEFFS] {
        let PullBack { c, before, after, out } = self;
        let (n, c) = (before[0].len(), splat(s, c));
        let ([p, m, v, g], [a_p, a_m, a_v]) = (before, after);
        let mut total = [0.0; COEFFS];
        for start in (0..n).step_by(CHUNK) {
            let end = n.min(start + CHUNK);
            let mut sums = [[s.splat_f32s(0.0); COEFFS]; MAX_PARTS];
            for (part, to) in sums.iter_mut().enumerate().take(parts::<S>()) {
                let mut own = *to;
                for i in (start + part * S::F32_LANES..end).step_by(LANES) {
                    let i = i..end;
                    let x = [
                        load(s, &p[i.clone()]),
                        load(s, &m[i.clone()]),
                        load(s, &v[i.clone()]),
                        load(s, &g[i.clone()]),
                    ];
                    let a = [load(s, &a_p[i.clone()]), load(s, &a_m[i.clone()]), load(s, &a_v[i.clone()])];
                    let adjoints = pull_back::<S, DECAY>(s, &c, x, a, &mut own);
                    for k in 0..4 {
                        store(s, &mut out[k][i.clone()], adjoints[k]);
                    }
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

/// The adjoints of one vector of `[p, m, v, g]` from those of the new `[p, m, v]`; adds the
/// coefficients' to `sums`. Zeros past the end of the parameters give zeros.
#[inline(always)]
fn pull_back<S: Simd, const DECAY: bool>(
    s: S,
    &[scale, b1, rest1, b2, rest2, v_scale, eps, eps_root, decay]: &[S::f32s; COEFFS],
    [p, m0, v0, g]: [S::f32s; 4],
    [a_p, a_m, a_v]: [S::f32s; 3],
    sums: &mut [S::f32s; COEFFS],
) -> [S::f32s; 4] {
    let (zero, one) = (s.splat_f32s(0.0), s.splat_f32s(1.0));
    let (raw, g) = (g, limited(s, g));
    let square = s.mul_f32s(g, g);
    let m = s.mul_add_e_f32s(b1, m0, s.mul_f32s(rest1, g));
    let v = s.mul_add_e_f32s(b2, v0, s.mul_f32s(rest2, square));
    let root = s.sqrt_f32s(s.mul_add_e_f32s(v, v_scale, eps_root));
    // One division for 1/(root + eps) and 1/root. The slope of the root is 0 at 0, as on dual numbers.
    let is_positive = s.less_than_f32s(zero, root);
    let (sum, divisor) = (s.add_f32s(root, eps), s.select_f32s(is_positive, root, one));
    // The step is a constant 0 where the sum is.
    let sum = s.select_f32s(s.equal_f32s(sum, zero), s.splat_f32s(f32::INFINITY), sum);
    let product = s.div_f32s(one, s.mul_f32s(sum, divisor));
    let inverse = s.mul_f32s(product, divisor);
    let slope = s.select_f32s(is_positive, s.mul_f32s(product, sum), zero);
    let ratio = s.mul_f32s(m, inverse);
    // p' = p − scale ratio − decay p
    let a_ratio = s.neg_f32s(s.mul_f32s(a_p, scale));
    let a_m = s.mul_add_e_f32s(a_ratio, inverse, a_m);
    let a_eps = s.neg_f32s(s.mul_f32s(s.mul_f32s(a_ratio, ratio), inverse));
    let a_square = s.mul_f32s(s.mul_f32s(s.splat_f32s(0.5), a_eps), slope);
    let a_v = s.mul_add_e_f32s(a_square, v_scale, a_v);
    sums[0] = s.negate_mul_add_e_f32s(a_p, ratio, sums[0]);
    sums[1] = s.mul_add_e_f32s(a_m, s.sub_f32s(m0, g), sums[1]);
    sums[3] = s.mul_add_e_f32s(a_v, s.sub_f32s(v0, square), sums[3]);
    sums[5] = s.mul_add_e_f32s(a_square, v, sums[5]);
    sums[6] = s.add_f32s(sums[6], a_eps);
    sums[7] = s.add_f32s(sums[7], a_square);
    let mut a_param = a_p;
    if DECAY {
        sums[8] = s.negate_mul_add_e_f32s(a_p, p, sums[8]);
        a_param = s.sub_f32s(a_p, s.mul_f32s(decay, a_p));
    }
    let through_v = s.mul_f32s(s.mul_f32s(rest2, s.add_f32s(g, g)), a_v);
    let a_g = s.mul_add_e_f32s(a_m, rest1, through_v);
    let is_beyond = s.less_than_f32s(s.abs_f32s(g), s.abs_f32s(raw));
    let a_g = s.select_f32s(is_beyond, zero, a_g);
    [a_param, s.mul_f32s(a_m, b1), s.mul_f32s(a_v, b2), a_g]
}
