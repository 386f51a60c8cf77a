//! Copies between the rows of a flat buffer and rows of whole vectors.

use crate::simd::{load, store};
use pulp::{Simd, WithSimd};

/// Copies flat rows to rows of whole vectors, with zeros behind them.
pub(super) struct Pad<'a> {
    /// `[n, width]`
    pub(super) flat: &'a [f32],
    pub(super) width: usize,
    /// `[n, stride]`
    pub(super) padded: &'a mut [f32],
    pub(super) stride: usize,
}

impl WithSimd for Pad<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Pad { flat, width, padded, stride } = self;
        if width == stride {
            padded.copy_from_slice(flat);
            return;
        }
        for (from, to) in flat.chunks_exact(width).zip(padded.chunks_exact_mut(stride)) {
            for (from, to) in from.chunks(S::F32_LANES).zip(S::as_mut_simd_f32s(to).0) {
                *to = load(s, from);
            }
        }
    }
}

/// The way back.
pub(super) struct Unpad<'a> {
    /// `[n, stride]`
    pub(super) padded: &'a [f32],
    pub(super) stride: usize,
    /// `[n, width]`
    pub(super) flat: &'a mut [f32],
    pub(super) width: usize,
}

impl WithSimd for Unpad<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Unpad { padded, stride, flat, width } = self;
        if width == stride {
            flat.copy_from_slice(padded);
            return;
        }
        for (row, from) in padded.chunks_exact(stride).enumerate() {
            let to = &mut flat[row * width..];
            // Whole vectors, whose surplus the next row overwrites.
            let end = to.len().min(stride);
            for (from, to) in S::as_simd_f32s(from).0.iter().zip(to[..end].chunks_mut(S::F32_LANES)) {
                store(s, to, *from);
            }
        }
    }
}

/// `to[o, i] = from[i, o]`: rows of `width` to rows of `stride` numbers.
pub(super) fn transpose(from: &[f32], width: usize, to: &mut [f32], stride: usize) {
    for (o, to) in to.chunks_exact_mut(stride).enumerate() {
        for (to, from) in to.iter_mut().zip(from[o..].iter().step_by(width)) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Path;

    #[test]
    fn rows_come_back_from_their_padding() {
        for path in Path::available() {
            for (n, width) in [(1, 1), (3, 10), (4, 8), (2, 33), (5, 16)] {
                let stride = usize::next_multiple_of(width, path.lanes());
                let flat: Vec<f32> = (1..=n * width).map(|i| i as f32).collect();
                let mut padded = vec![f32::NAN; n * stride];
                path.run(Pad { flat: &flat, width, padded: &mut padded, stride });
                for (row, flat) in padded.chunks(stride).zip(flat.chunks(width)) {
                    assert_eq!(&row[..width], flat);
                    assert!(row[width..].iter().all(|x| *x == 0.0));
                }
                let mut back = vec![0.0; n * width];
                path.run(Unpad { padded: &padded, stride, flat: &mut back, width });
                assert_eq!(back, flat);

                let mut transposed = vec![0.0; width * (n + 1)];
                transpose(&flat, width, &mut transposed, n + 1);
                transpose(&transposed, n + 1, &mut back, width);
                assert_eq!((transposed[0], transposed[n], back), (1.0, 0.0, flat));
            }
        }
    }
}
