//! Image models: multi-layer perceptrons, convolutions, autoencoders.
//!
//! | item | shapes | use |
//! |---|---|---|
//! | [`ImageTask`] | from an [`ImageModel`] | what the following are instances of, and own models may be |
//! | [`ImageMlp`] | checked at compile time | the tutorial's 64-32-10 task, and as a pattern for own tasks |
//! | [`MlpTask`] | from an [`MlpConfig`] | any widths, depth, activation, norm and loss |
//! | [`ImageMlpFamily`] | sampled | a distribution over [`MlpTask`]s |
//! | [`ResplitFamily`] | as its model's | one model, every run on its own division of the images |
//! | [`ConvTask`] | from a [`ConvConfig`] | small convolutional classifiers |
//! | [`AutoencoderTask`] | from an [`AutoencoderConfig`] | reconstruction by an MLP |
//! | [`AutoencoderFamily`] | sampled | a distribution over [`AutoencoderTask`]s |
//!
//! Reference: `image_mlp.py`, `conv.py`, `image_mlp_ae.py` in `learned_optimization/tasks/fixed` and
//! `tasks/parametric`.

mod autoencoder;
mod conv;
mod family;
mod fused;
mod layers;
mod mlp;
mod resplit;
mod task;
mod typed;

pub use autoencoder::{AutoencoderConfig, AutoencoderFamily, AutoencoderTask};
pub use conv::{ConvConfig, ConvTask, Pooling};
pub use family::ImageMlpFamily;
pub(crate) use family::{log_uniform, one_of};
pub use layers::Nonlinearity;
pub use mlp::{BatchNormAverages, ImageLoss, MlpConfig, MlpTask, Norm};
pub use resplit::ResplitFamily;
pub use task::{ImageModel, ImageTask};
pub use typed::{ImageMlp, MlpParams};

use outerloop_core::{Float, Metric};

/// The part of the rows whose largest logit is not the label's; a row with NaN is wrong.
fn error_rate<E: Float>(logits: &[E], labels: &[u32]) -> Vec<Metric> {
    let classes = logits.len() / labels.len().max(1);
    let is_wrong = |(row, label): (&[E], &u32)| {
        let own = row[*label as usize];
        // Whatever is not below it, NaN too.
        let beats = |(class, x): (usize, &E)| {
            class != *label as usize && x.partial_cmp(&own) != Some(std::cmp::Ordering::Less)
        };
        row.iter().enumerate().any(beats)
    };
    let wrong = logits.chunks_exact(classes.max(1)).zip(labels).filter(|(r, l)| is_wrong((r, l))).count();
    vec![Metric::new(Metric::ERROR_RATE, wrong as f64 / labels.len().max(1) as f64)]
}

/// The name's part for layer widths, `32x16`.
fn joined(widths: &[usize]) -> String {
    let widths: Vec<String> = widths.iter().map(usize::to_string).collect();
    widths.join("x")
}

/// Cross entropies as meta-training sees them: clipped to `[0, 1.5 ln classes]`, NaN at the top.
fn normalize_cross_entropy(loss: f64, classes: usize) -> f64 {
    let top = 1.5 * (classes as f64).ln();
    if loss.is_nan() {
        top
    } else {
        loss.clamp(0.0, top)
    }
}

/// Squared errors as meta-training sees them: `10 min(loss, 1)`, anything not finite is 10.
fn normalize_mse(loss: f64) -> f64 {
    if loss.is_finite() {
        10.0 * loss.min(1.0)
    } else {
        10.0
    }
}
