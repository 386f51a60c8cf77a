//! Bilinear resizing of image batches.

/// Source position of one output pixel: two neighbours and the weight of the second.
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

/// Half-pixel centres: output pixel `i` lies at `(i + 1/2) · from / to − 1/2`, clamped to the image.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|i| {
            let at = ((i as f64 + 0.5) * scale - 0.5).clamp(0.0, (from - 1) as f64);
            let low = at as usize;
            Tap { low, high: (low + 1).min(from - 1), weight: (at - low as f64) as f32 }
        })
        .collect()
}

/// Bilinear resize of `[n, h, w, c]` to `[n, to_h, to_w, c]`, row major.
///
/// Half-pixel centres, edges clamped, no antialiasing: a strong reduction samples the image rather
/// than averaging it (the default of `tf.image.resize`, which made the reference's small images).
pub(super) fn resize(images: &[f32], [h, w, c]: [usize; 3], [to_h, to_w]: [usize; 2]) -> Vec<f32> {
    let n = images.len() / (h * w * c);
    let (rows, cols) = (taps(h, to_h), taps(w, to_w));
    let mut out = Vec::with_capacity(n * to_h * to_w * c);
    for image in images.chunks_exact(h * w * c) {
        for y in &rows {
            for x in &cols {
                for k in 0..c {
                    let px = |row: usize, col: usize| image[(row * w + col) * c + k];
                    let mix = |row| px(row, x.low) + x.weight * (px(row, x.high) - px(row, x.low));
                    let (top, bottom) = (mix(y.low), mix(y.high));
                    out.push(top + y.weight * (bottom - top));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn follows_the_half_pixel_convention() {
        // Worked by hand: 4 → 2 samples positions 0.5 and 2.5; 2 → 4 samples −0.25, 0.25, 0.75, 1.25.
        assert_eq!(resize(&[0.0, 1.0, 2.0, 7.0], [1, 4, 1], [1, 2]), [0.5, 4.5]);
        assert_eq!(resize(&[0.0, 4.0], [2, 1, 1], [4, 1]), [0.0, 1.0, 3.0, 4.0]);
        // 9 → 3 samples the middle of each block of three: no averaging.
        let ramp: Vec<f32> = (0..9).map(|i| (i * i) as f32).collect();
        assert_eq!(resize(&ramp, [9, 1, 1], [3, 1]), [1.0, 16.0, 49.0]);
    }

    proptest! {
        #[test]
        fn keeps_constants_range_and_identity(
            h in 1usize..6, w in 1usize..6, c in 1usize..4, to_h in 1usize..9, to_w in 1usize..9,
            pixels in proptest::collection::vec(0.0f32..1.0, 2 * 5 * 5 * 3),
        ) {
            let images = &pixels[..2 * h * w * c];
            prop_assert_eq!(&resize(images, [h, w, c], [h, w])[..], images);
            let out = resize(images, [h, w, c], [to_h, to_w]);
            prop_assert_eq!(out.len(), 2 * to_h * to_w * c);
            let (lo, hi) = images.iter().fold((1.0f32, 0.0f32), |(l, h), &x| (l.min(x), h.max(x)));
            prop_assert!(out.iter().all(|&x| x >= lo - 1e-6 && x <= hi + 1e-6));
            let flat = resize(&vec![0.25; images.len()], [h, w, c], [to_h, to_w]);
            prop_assert!(flat.iter().all(|&x| x == 0.25));
        }

        #[test]
        fn is_linear_in_a_ramp(from in 2usize..8, to in 1usize..20) {
            // A linear image stays linear wherever no edge is clamped.
            let ramp: Vec<f32> = (0..from).map(|i| i as f32).collect();
            for (i, v) in resize(&ramp, [1, from, 1], [1, to]).iter().enumerate() {
                let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
                prop_assert!((f64::from(*v) - at).abs() < 1e-5);
            }
        }
    }
}
