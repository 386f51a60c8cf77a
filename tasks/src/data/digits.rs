//! The 8 x 8 digits, embedded; source and licence in `DIGITS.md`.

use super::ImageData;
use std::sync::OnceLock;

const COUNT: usize = 1797;
const FEATURES: usize = 64;
static BYTES: &[u8; COUNT * (FEATURES + 1)] = include_bytes!("digits.bin");

/// 1797 handwritten digits, 8 x 8 pixels in `{0, 1/16, ..., 1}`, 10 classes.
///
/// UCI *Optical Recognition of Handwritten Digits*, test part, E. Alpaydin and C. Kaynak (1998),
/// <https://doi.org/10.24432/C50P49>, CC BY 4.0.
pub fn digits() -> ImageData {
    static DATA: OnceLock<ImageData> = OnceLock::new();
    DATA.get_or_init(|| {
        let (pixels, labels) = BYTES.split_at(COUNT * FEATURES);
        let images: Vec<f32> = pixels.iter().map(|&p| f32::from(p) / 16.0).collect();
        let labels: Vec<u32> = labels.iter().map(|&l| u32::from(l)).collect();
        ImageData::new("digits", images, labels, [8, 8, 1], 10).expect("the embedded file fits its sizes")
    })
    .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_facts() {
        let d = digits();
        assert_eq!((d.len(), d.features(), d.classes), (1797, 64, 10));
        let mut counts = [0; 10];
        d.labels.iter().for_each(|&l| counts[l as usize] += 1);
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        let n = d.images.len() as f64;
        let mean = d.images.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let std = (d.images.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((mean - 0.3052603).abs() < 5e-8, "{mean}");
        assert!((std - 0.3760492).abs() < 5e-8, "{std}");
        assert!(d.images.iter().all(|&x| (0.0..=1.0).contains(&x) && (x * 16.0).fract() == 0.0));
    }
}
