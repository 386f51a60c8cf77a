//! One batch of images as a tensor.

use outerloop_core::tensor::{Backend, Dim, HasShape, Tensor};
use outerloop_core::{Error, Float, Result};

/// Images `[N, F]` with labels `[N]`; refilled in place from step to step.
pub struct ImageBatch<F: Dim, E: Float, B: Backend<E>> {
    /// Pixels, `[N, F]`.
    pub images: Tensor<(usize, F), E, B>,
    /// One label per image.
    pub labels: Vec<u32>,
    /// The pixels on the host, where batches are gathered.
    host: Vec<E>,
}

impl<F: Dim, E: Float, B: Backend<E>> ImageBatch<F, E, B> {
    /// A batch of `n` black images.
    pub(super) fn zeros(dev: &B, n: usize, features: F) -> Self {
        let host = vec![E::of(0.0); n * features.size()];
        let images = dev.tensor_from_vec(host.clone(), (n, features));
        ImageBatch { images, labels: vec![0; n], host }
    }

    /// A batch from explicit pixels, row major `[labels.len(), features]`.
    pub fn new(dev: &B, images: Vec<E>, labels: Vec<u32>, features: F) -> Result<Self> {
        let expected = labels.len() * features.size();
        if images.len() != expected {
            return Err(Error::mismatch("image batch: number of pixels", expected, images.len()));
        }
        let tensor = dev.tensor_from_vec(images.clone(), (labels.len(), features));
        Ok(ImageBatch { images: tensor, labels, host: images })
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

    /// Overwrites pixels and labels.
    pub(super) fn fill(&mut self, f: impl FnOnce(&mut [E], &mut [u32])) {
        f(&mut self.host, &mut self.labels);
        self.images.copy_from(&self.host);
    }
}
