//! Image classification by multi-layer perceptrons.
//!
//! | item | shapes | use |
//! |---|---|---|
//! | [`ImageMlp`] | checked at compile time | the tutorial's 64-32-10 task, and as a pattern for own tasks |
//! | [`MlpTask`] | from an [`MlpConfig`] | any widths, depth, activation, norm and loss |
//! | [`ImageMlpFamily`] | sampled | a distribution over [`MlpTask`]s |
//!
//! Reference: `learned_optimization/tasks/fixed/image_mlp.py` and `tasks/parametric/image_mlp.py`.

mod family;
mod layers;
mod mlp;
mod typed;

pub use family::ImageMlpFamily;
pub use layers::Nonlinearity;
pub use mlp::{BatchNormAverages, ImageLoss, MlpConfig, MlpTask, Norm};
pub use typed::{ImageMlp, MlpParams};

use outerloop_core::{Float, Key};
use rand::Rng;
use rand_distr::StandardNormal;

/// Haiku's default initial weights of a linear layer `[fan_in, outputs]`: normal with standard
/// deviation `sigma = scale / sqrt(fan_in)`, truncated at 2 `sigma` and not rescaled, so the actual
/// standard deviation is 0.8796 `sigma`.
fn fill_truncated_normal<E: Float>(key: Key, fan_in: usize, scale: f64, out: &mut [E]) {
    let sigma = scale / (fan_in as f64).sqrt();
    let mut rng = key.rng();
    for w in out {
        let z = loop {
            let z: f64 = rng.sample(StandardNormal);
            if z.abs() <= 2.0 {
                break z;
            }
        };
        *w = E::of(sigma * z);
    }
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
