//! Image data in memory, its splits, and batches as pure functions of a
//! [`BatchKey`](outerloop_core::BatchKey).
//!
//! | item | owns |
//! |---|---|
//! | [`ImageData`] | images and labels, resize, channel mean |
//! | [`Splits`] | train / inner valid / outer valid / test, and which images a batch holds |
//! | [`ImageBatch`] | one batch as a tensor with its labels |
//! | [`Permutation`] | shuffling without state |
//! | [`digits`] | the embedded 8 x 8 digits |
//! | [`ImageFiles`] | MNIST, Fashion-MNIST, EMNIST, CIFAR-10 and CIFAR-100 from disk |
//! | [`Table`], [`spirals`], [`next_letter`] | data made from keys or text, with known noise |
//! | [`read_idx_folder`] | other images in MNIST's format |

mod batch;
mod digits;
mod files;
mod generated;
mod permutation;
mod resize;
mod splits;

pub use batch::ImageBatch;
pub use digits::digits;
pub use files::{read_idx_folder, Cifar100Labels, EmnistSplit, ImageFiles, DATA_VARIABLE};
pub use generated::{next_letter, spirals, with_label_noise, Chain, Table};
pub use permutation::Permutation;
pub use splits::Splits;

use outerloop_core::{Error, Result};
use std::sync::Arc;

/// Labelled images in memory; cloning shares them.
#[derive(Clone, Debug)]
pub struct ImageData {
    /// Short name, e.g. `digits`.
    pub name: String,
    /// Pixels in `[0, 1]`, row major `[n, height, width, channels]`.
    pub images: Arc<[f32]>,
    /// One label per image, below `classes`.
    pub labels: Arc<[u32]>,
    /// Pixels per column.
    pub height: usize,
    /// Pixels per row.
    pub width: usize,
    /// Numbers per pixel.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
}

impl ImageData {
    /// Images `[n, height, width, channels]` with labels `[n]`; `n` and all sizes at least 1.
    pub fn new(
        name: impl Into<String>,
        images: impl Into<Arc<[f32]>>,
        labels: impl Into<Arc<[u32]>>,
        [height, width, channels]: [usize; 3],
        classes: usize,
    ) -> Result<Self> {
        let (name, images, labels) = (name.into(), images.into(), labels.into());
        if labels.is_empty() || height * width * channels == 0 {
            let got = format!("got {} images of {height} x {width} x {channels}", labels.len());
            let why = format!("there must be at least one image, of at least one pixel, {got}");
            return Err(Error::invalid(format!("{name}: images"), why));
        }
        if u32::try_from(labels.len()).is_err() {
            let (what, got) = (format!("{name}: number of images"), labels.len().to_string());
            return Err(Error::Mismatch { what, expected: "at most 2^32 - 1".into(), got });
        }
        let expected = [labels.len(), height, width, channels];
        if expected.iter().product::<usize>() != images.len() {
            return Err(Error::mismatch(
                format!("{name}: pixels of {expected:?}"),
                expected.iter().product::<usize>(),
                images.len(),
            ));
        }
        if let Some(label) = labels.iter().find(|&&l| l as usize >= classes) {
            return Err(Error::mismatch(format!("{name}: label"), 0..classes, label));
        }
        Ok(ImageData { name, images, labels, height, width, channels, classes })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }
    /// Never true: there is at least one image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
    /// Numbers per image: `height · width · channels`.
    pub fn features(&self) -> usize {
        self.height * self.width * self.channels
    }
    /// The pixels of one image, row major `[height, width, channels]`.
    pub fn image(&self, index: usize) -> &[f32] {
        let f = self.features();
        &self.images[index * f..(index + 1) * f]
    }

    /// The images in another size: bilinear with half-pixel centres, edges clamped, no antialiasing
    /// (as `tf.image.resize` by default; strong reductions sample rather than average).
    pub fn resized(&self, height: usize, width: usize) -> Result<Self> {
        let images = if height * width == 0 {
            Vec::new()
        } else {
            resize::resize(&self.images, [self.height, self.width, self.channels], [height, width])
        };
        let name = format!("{}{height}x{width}", self.name);
        Self::new(name, images, self.labels.clone(), [height, width, self.channels], self.classes)
    }

    /// Grey images: every pixel is the mean of its channels.
    pub fn channel_mean(&self) -> Self {
        let c = self.channels as f32;
        let images = self.images.chunks_exact(self.channels).map(|px| px.iter().sum::<f32>() / c).collect();
        ImageData { name: format!("{}bw", self.name), images, channels: 1, ..self.clone() }
    }

    /// These images followed by those of `other`, which must have the same sizes.
    pub(crate) fn followed_by(&self, other: &ImageData) -> Result<Self> {
        let shape = |d: &ImageData| [d.height, d.width, d.channels, d.classes];
        if shape(self) != shape(other) {
            return Err(Error::mismatch(
                format!("{}: height, width, channels, classes of the test images", self.name),
                shape(self),
                shape(other),
            ));
        }
        let images: Vec<f32> = [&self.images[..], &other.images[..]].concat();
        let labels: Vec<u32> = [&self.labels[..], &other.labels[..]].concat();
        Self::new(self.name.clone(), images, labels, [self.height, self.width, self.channels], self.classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructor_refuses_what_does_not_fit() {
        let new =
            |pixels: usize, labels: Vec<u32>| ImageData::new("x", vec![0.0; pixels], labels, [2, 3, 1], 4);
        assert!(new(12, vec![0, 3]).is_ok());
        let text = |r: Result<ImageData>| r.unwrap_err().to_string();
        assert_eq!(text(new(11, vec![0, 3])), "x: pixels of [2, 2, 3, 1]: expected 12, got 11");
        assert_eq!(text(new(12, vec![0, 4])), "x: label: expected 0..4, got 4");
        assert!(text(new(0, vec![])).contains("at least one"));
        assert!(new(6, vec![0]).and_then(|d| d.resized(0, 3)).is_err());
    }

    #[test]
    fn channel_mean_averages_pixels() {
        let d = ImageData::new("x", vec![0.0, 0.5, 1.0, 0.25, 0.25, 0.25], vec![1], [1, 2, 3], 2).unwrap();
        let bw = d.channel_mean();
        assert_eq!((&bw.images[..], bw.channels, bw.features()), (&[0.5, 0.25][..], 1, 2));
    }
}
