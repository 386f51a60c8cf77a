//! Adjoints of running averages, and sums over blocks, in [`super::tensor_vjp`].

use super::features::{load_row, store_row};
use crate::kernel::dot::SUM;
use crate::kernel::net_vjp::BLOCK;
use outerloop_core::simd::{parts, total, MAX_PARTS};
use pulp::Simd;

/// A block of an average `a ← (1 − r) a + r x`.
pub(crate) struct Average<'a> {
    pub(crate) rate: f32,
    pub(crate) old: &'a [f32],
    /// After the update; becomes that before it.
    pub(crate) adjoint: &'a mut [f32],
}

impl Average<'_> {
    /// With what else the new average's adjoint has: adds to the adjoints of `value` and, `[parts]`, of
    /// the rate.
    #[inline(always)]
    pub(crate) fn pull_back<S: Simd>(
        &mut self,
        s: S,
        more: &[S::f32s; BLOCK],
        value: &[S::f32s; BLOCK],
        value_adjoint: &mut [S::f32s; BLOCK],
        rate_adjoint: &mut [S::f32s],
    ) {
        let (keep, rate) = (s.splat_f32s(1.0 - self.rate), s.splat_f32s(self.rate));
        let old = loaded::<S, BLOCK>(s, self.old);
        let mut adjoint = loaded::<S, BLOCK>(s, self.adjoint);
        let parts = parts::<S>();
        let mut rates = [s.splat_f32s(0.0); MAX_PARTS];
        rates[..parts].copy_from_slice(&rate_adjoint[..parts]);
        for v in 0..BLOCK {
            let a = s.add_f32s(adjoint[v], more[v]);
            rates[v % parts] = s.mul_add_e_f32s(a, s.sub_f32s(value[v], old[v]), rates[v % parts]);
            value_adjoint[v] = s.mul_add_e_f32s(rate, a, value_adjoint[v]);
            adjoint[v] = s.mul_f32s(keep, a);
        }
        rate_adjoint[..parts].copy_from_slice(&rates[..parts]);
        store_row(s, &adjoint, self.adjoint);
    }
}

/// At most V vectors; zeros after the end.
#[inline(always)]
pub(crate) fn loaded<S: Simd, const V: usize>(s: S, from: &[f32]) -> [S::f32s; V] {
    let mut x = [s.splat_f32s(0.0); V];
    load_row::<S, V>(s, from, &mut x);
    x
}

/// `x + y`.
#[inline(always)]
pub(crate) fn sums<S: Simd, const V: usize>(s: S, x: &[S::f32s; V], y: &[S::f32s; V]) -> [S::f32s; V] {
    let mut out = *x;
    for (out, y) in out.iter_mut().zip(y) {
        *out = s.add_f32s(*out, *y);
    }
    out
}

/// `x y + z`.
#[inline(always)]
pub(crate) fn mul_add<S: Simd, const V: usize>(
    s: S,
    x: &[S::f32s; V],
    y: &[S::f32s; V],
    z: &[S::f32s; V],
) -> [S::f32s; V] {
    let mut out = *z;
    for v in 0..V {
        out[v] = s.mul_add_e_f32s(x[v], y[v], z[v]);
    }
    out
}

/// Sums over blocks of vectors, taken together now and then, which bounds the rounding error.
pub(crate) struct Sums<'a> {
    /// Vectors `[sums, parts]`.
    pub(crate) partial: &'a mut [f32],
    pub(crate) totals: &'a mut [f32],
    /// Numbers in each sum of `partial`.
    pub(crate) added: usize,
}

impl Sums<'_> {
    #[inline(always)]
    pub(crate) fn clear<S: Simd>(&mut self, s: S) {
        S::as_mut_simd_f32s(self.partial).0.fill(s.splat_f32s(0.0));
        self.added = 0;
    }

    /// What to add to, `[sums, parts]`.
    #[inline(always)]
    pub(crate) fn vectors<S: Simd>(&mut self, _: S) -> &mut [S::f32s] {
        &mut S::as_mut_simd_f32s(self.partial).0[..self.totals.len() * parts::<S>()]
    }

    /// Says that a block was added to every sum.
    #[inline(always)]
    pub(crate) fn added_block<S: Simd>(&mut self, s: S) {
        self.added += BLOCK * S::F32_LANES;
        if self.added >= SUM {
            self.finish(s);
        }
    }

    /// Brings all to the totals. To be called after every tensor: the next one begins with the first partial
    /// sum.
    #[inline(always)]
    pub(crate) fn finish<S: Simd>(&mut self, s: S) {
        let (partial, _) = S::as_mut_simd_f32s(self.partial);
        for (to, sums) in self.totals.iter_mut().zip(partial.chunks_exact(parts::<S>())) {
            *to += total(s, sums);
        }
        self.clear(s);
    }
}
