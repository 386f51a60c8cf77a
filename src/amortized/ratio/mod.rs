//! Inference without a likelihood: amortized ratio estimation and its samplers.
//!
//! A classifier learns to tell pairs `(theta, x)` that were simulated together from pairs that were not; its
//! logit is `ln p(x|theta)/p(x)`, for every `x` at once. The posterior of an observation is the prior times that
//! ratio, and samplers do the rest.
//!
//! | module | owns |
//! |---|---|
//! | [`prior`](Prior), [`simulator`](Simulator) | what is known: a prior, and a program that makes data |
//! | [`simulators`] | simulators with known answers |
//! | [`data`](Simulations), [`files`] | simulations to train on, checked |
//! | [`features`](Features) | standardization, learned and stored; built-in symmetries |
//! | [`net`](RatioNet), [`loss`](RatioLoss), [`task`](RatioTask) | the estimator as a task |
//! | [`train`](mod@train) | training with early stopping, files and resume |
//! | [`amsgrad`](AmsGrad) | the paper's optimizer |
//! | [`estimator`](RatioEstimator) | a trained network or ensemble, its file, and its posterior |
//! | [`density`](Density), [`sample`] | what is drawn from, and the samplers |
//! | [`calibrate`](fn@calibrate) | coverage, ranks and the ROC test of an amortized posterior |
//! | [`sharpness`](fn@fit_sharpness) | a power of the ratio at which posteriors cover what they claim |
//! | [`corner`](Corner) | the picture of a posterior |
//! | [`exact`], [`excess`](fn@slcp_excess) | the exact posterior of SLCP by quadrature, and the loss above the floor |
//! | [`metrics`] | how good samples and ratios are |
//!
//! References: Hermans, Begy, Louppe 2020, arXiv:1903.04057; Cranmer, Brehmer, Louppe 2020, arXiv:1911.01429.

mod amsgrad;
mod calibrate;
mod contrast;
mod corner;
mod data;
mod density;
mod estimator;
pub mod exact;
mod excess;
mod features;
pub mod files;
mod loss;
pub mod metrics;
mod net;
mod prior;
pub mod sample;
mod sharpness;
mod simulator;
pub mod simulators;
mod task;
#[cfg(test)]
mod tests;
pub mod train;

pub use amsgrad::AmsGrad;
pub use calibrate::{calibrate, roc_test, Calibration, Runs};
pub use corner::Corner;
pub use data::{Invalid, Simulations};
pub use density::{Density, DensityEvaluator, ExactDensity, FnDensity, Target};
pub use estimator::{RatioEstimator, RatioPosterior};
pub use excess::{slcp_excess, Excess};
pub use features::{DataScale, FeatureConfig, Features};
pub use loss::{loss_and_grad, RatioLoss};
pub use net::{Architecture, NetEvaluator, Nonlinearity, RatioNet};
pub use prior::{Edge, NormalPrior, Prior, UniformBox};
pub use sharpness::fit_sharpness;
pub use simulator::{simulate, simulate_at, simulate_one, Joint, Simulator};
pub use task::{Contrast, PairBatch, Pairs, RatioTask, RatioTaskConfig};
