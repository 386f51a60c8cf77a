//! What follows the last layer: the loss of a block of rows, its slope, and the slope's tangent.

use super::BLOCK;
use crate::ops::{scalar, Head};
use crate::simd::{self, exp, parts, MAX_PARTS};
use pulp::{Simd, WithSimd};

/// What the rows should have been.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// One class per row.
    Labels(&'a [u32]),
    /// These numbers.
    Rows(&'a [&'a [f32]]),
}

/// The loss of some rows; overwrites the outputs `z` with the slope, and `tz`, if not empty, with
/// its tangent. Columns from `outputs` on are padding.
pub(super) struct Loss<'a> {
    pub(super) head: Head,
    /// Numbers per row that count.
    pub(super) outputs: usize,
    /// Numbers per row.
    pub(super) width: usize,
    /// `1 / rows of the batch`.
    pub(super) weight: f32,
    pub(super) target: Target<'a>,
    /// `[rows, width]`
    pub(super) z: &'a mut [f32],
    /// `[rows, width]`, or empty.
    pub(super) tz: &'a mut [f32],
    /// What [`SlopeTangent`] needs, `[rows, width]`, or empty.
    pub(super) keep: Keep<'a>,
}

/// The curvature of the loss of some rows, `[rows, width]`. Of a cross entropy the probabilities; else the second
/// derivative by each `z`.
pub(super) struct Keep<'a> {
    pub(super) hessian: &'a mut [f32],
    /// Without the curvature of what lies before the squares; empty if that is the same.
    pub(super) gauss_newton: &'a mut [f32],
}

impl WithSimd for Loss<'_> {
    type Output = f64;
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        match (self.head, self.target) {
            (Head::CrossEntropy, Target::Labels(labels)) => self.cross_entropy(s, labels),
            (Head::SquaredError, Target::Labels(labels)) => {
                self.squared_error(|z| [z, 1.0, 0.0], |row, o| f32::from(labels[row] as usize == o))
            }
            (_, Target::Rows(x)) => self.squared_error(scalar::sigmoid, |row, o| x[row][o]),
            (Head::Reconstruction, Target::Labels(_)) => unreachable!("inputs are the target"),
        }
    }
}

impl Loss<'_> {
    /// `−ln softmax(z)[label]`. The padding holds `−∞` and becomes 0.
    #[inline(always)]
    fn cross_entropy<S: Simd>(self, s: S, labels: &[u32]) -> f64 {
        let [w, zero, one] = [self.weight, 0.0, 1.0].map(|x| s.splat_f32s(x));
        let columns = self.outputs - (self.width - S::F32_LANES);
        // Only a row's last vector has padding.
        let used = s.mask_between_m32s(0, columns as u32).mask();
        let used_ones = s.select_f32s(used, one, zero);
        let mut loss = 0.0;
        // One pass after the other: the processor overlaps the rows of each.
        for (z, &label) in self.z.chunks_exact_mut(self.width).zip(labels) {
            let z_label = z[label as usize];
            let Some((last, z)) = S::as_mut_simd_f32s(z).0.split_last_mut() else { break };
            let mut top = *last;
            for z in &*z {
                top = s.max_f32s(top, *z);
            }
            let top = s.reduce_max_f32s(top);
            loss += f64::from(top - z_label);
            let top = s.splat_f32s(top);
            for z in z {
                *z = s.sub_f32s(*z, top);
            }
            // An exponential of the padding would underflow, which is slow.
            *last = s.select_f32s(used, s.sub_f32s(*last, top), zero);
        }
        for z in S::as_mut_simd_f32s(self.z).0 {
            *z = exp(s, *z);
        }
        let mut sums = [0.0; BLOCK];
        let mut tangents = self.tz.chunks_exact_mut(self.width);
        let mut kept = self.keep.hessian.chunks_exact_mut(self.width);
        for (p, total) in self.z.chunks_exact_mut(self.width).zip(&mut sums) {
            let dz = S::as_mut_simd_f32s(p).0;
            let Some(last) = dz.last_mut() else { break };
            // Not a select: the compiler would make it a masked store, which is slow.
            *last = s.mul_f32s(*last, used_ones);
            let vectors = dz.len();
            let mut sum = [zero; MAX_PARTS];
            for v in (0..vectors).step_by(parts::<S>()) {
                for part in 0..parts::<S>().min(vectors - v) {
                    sum[part] = s.add_f32s(sum[part], dz[v + part]);
                }
            }
            *total = simd::total(s, &sum);
            let inverse = s.splat_f32s(1.0 / *total);
            if let Some(t) = tangents.next() {
                // d(dz) = w p ⊙ (ż − p·ż)
                let t = S::as_mut_simd_f32s(t).0;
                let mut dot = [zero; MAX_PARTS];
                for v in (0..vectors).step_by(parts::<S>()) {
                    for part in 0..parts::<S>().min(vectors - v) {
                        let p = s.mul_f32s(dz[v + part], inverse);
                        dot[part] = s.mul_add_e_f32s(t[v + part], p, dot[part]);
                    }
                }
                let dot = s.splat_f32s(simd::total(s, &dot));
                for (t, p) in t.iter_mut().zip(&*dz) {
                    let wp = s.mul_f32s(w, s.mul_f32s(*p, inverse));
                    *t = s.mul_f32s(wp, s.sub_f32s(*t, dot));
                }
            }
            if let Some(kept) = kept.next() {
                for (kept, p) in S::as_mut_simd_f32s(kept).0.iter_mut().zip(&*dz) {
                    *kept = s.mul_f32s(*p, inverse);
                }
            }
            // dz = w (p − onehot)
            for p in dz {
                *p = s.mul_f32s(w, s.mul_f32s(*p, inverse));
            }
        }
        for (z, &label) in self.z.chunks_exact_mut(self.width).zip(labels) {
            z[label as usize] -= self.weight;
        }
        for sum in &sums[..labels.len()] {
            loss += f64::from(sum.ln());
        }
        loss * f64::from(self.weight)
    }

    /// The mean over outputs of `(y − target)²`, `[y, y', y''] = f(z)`. The padding becomes 0.
    #[inline(always)]
    fn squared_error(self, f: impl Fn(f32) -> [f32; 3], target: impl Fn(usize, usize) -> f32) -> f64 {
        let w = self.weight / self.outputs as f32;
        let mut loss = 0.0;
        for (row, z) in self.z.chunks_exact_mut(self.width).enumerate() {
            let mut sum = 0.0;
            let mut t = self.tz.chunks_exact_mut(self.width).nth(row);
            let mut hessian = self.keep.hessian.chunks_exact_mut(self.width).nth(row);
            let mut gauss_newton = self.keep.gauss_newton.chunks_exact_mut(self.width).nth(row);
            for (o, z) in z[..self.outputs].iter_mut().enumerate() {
                let [y, d1, d2] = f(*z);
                let e = y - target(row, o);
                sum += e * e;
                // dz = 2 w e y', d(dz) = 2 w (y'² + e y'') ż
                *z = 2.0 * w * e * d1;
                if let Some(t) = &mut t {
                    t[o] *= 2.0 * w * (d1 * d1 + e * d2);
                }
                if let Some(h) = &mut hessian {
                    h[o] = 2.0 * w * (d1 * d1 + e * d2);
                }
                if let Some(g) = &mut gauss_newton {
                    g[o] = 2.0 * w * (d1 * d1);
                }
            }
            z[self.outputs..].fill(0.0);
            loss += f64::from(sum);
        }
        loss * f64::from(w)
    }
}

/// Overwrites the tangents of the outputs of some rows with those of the slope.
pub(super) struct SlopeTangent<'a> {
    pub(super) head: Head,
    /// Numbers per row.
    pub(super) width: usize,
    /// `1 / rows of the batch`.
    pub(super) weight: f32,
    /// See [`Keep`].
    pub(super) kept: &'a [f32],
    /// `[rows, width]`
    pub(super) tz: &'a mut [f32],
}

impl WithSimd for SlopeTangent<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        if self.head != Head::CrossEntropy {
            self.tz.iter_mut().zip(self.kept).for_each(|(t, h)| *t *= h);
            return;
        }
        let [w, zero] = [self.weight, 0.0].map(|x| s.splat_f32s(x));
        let rows = self.tz.chunks_exact_mut(self.width).zip(self.kept.chunks_exact(self.width));
        for (t, p) in rows {
            // d(dz) = w p ⊙ (ż − p·ż)
            let (t, p) = (S::as_mut_simd_f32s(t).0, S::as_simd_f32s(p).0);
            let mut dot = [zero; MAX_PARTS];
            for v in (0..t.len()).step_by(parts::<S>()) {
                for part in 0..parts::<S>().min(t.len() - v) {
                    dot[part] = s.mul_add_e_f32s(t[v + part], p[v + part], dot[part]);
                }
            }
            let dot = s.splat_f32s(simd::total(s, &dot));
            for (t, p) in t.iter_mut().zip(p) {
                *t = s.mul_f32s(s.mul_f32s(w, *p), s.sub_f32s(*t, dot));
            }
        }
    }
}
