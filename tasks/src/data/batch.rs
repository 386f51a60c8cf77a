//! One batch of images as a tensor.

use outerloop_core::tensor::{Backend, Dim, HasShape, Tensor};
use outerloop_core::{Error, Float, Result};

/// Images `[N, F]` with labels `[N]`.
pub struct ImageBatch<F: Dim, E: Float, B: Backend<E>> {
    /// Pixels, `[N, F]`.
    pub images: Tensor<(usize, F), E, B>,
    /// One label per image.
    pub labels: Vec<u32>,
}

impl<F: Dim, E: Float, B: Backend<E>> ImageBatch<F, E, B> {
    /// A batch from explicit pixels, row major `[labels.len(), features]`.
    pub fn new(dev: &B, images: Vec<E>, labels: Vec<u32>, features: F) -> Result<Self> {
        let expected = labels.len() * features.size();
        if images.len() != expected {
            return Err(Error::mismatch("image batch: number of pixels", expected, images.len()));
        }
        let images = dev.tensor_from_vec(images, (labels.len(), features));
        Ok(ImageBatch { images, labels })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }
    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
    /// Numbers per image.
    pub fn features(&self) -> usize {
        self.images.shape().1.size()
    }
}
