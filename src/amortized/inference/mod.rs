//! Amortized inference: the context is data, the solution the parameters `λ = (μ, ln σ²)` of a Gaussian posterior, the
//! objective the negative evidence lower bound (ELBO), in nats.
//!
//! | module | owns |
//! |---|---|
//! | [`elbo`] | the bound: likelihoods from logits, divergence, reparametrized samples |
//! | [`encoding`] | how gradients are shown to a network |
//! | [`update`] | the network that moves λ, gated |
//! | [`iterative`] | iterative inference by encoded gradients or errors, differentiated in three grades |
//! | [`decoder`] | decoders, fully connected or convolutional; a convolutional encoder |
//! | [`vae`] | the VAE as a problem; iterative inference on it as a task |
//! | [`hierarchical`] | a VAE with two levels of latents as a problem |
//! | [`sequences`] | sequences to filter, simulated or from CSV files |
//! | [`filter`] | one step of filtering as a problem, and filters made of its models |
//! | [`recurrent`] | filtering of a recurrent latent variable model as a task |
//! | [`kalman`] | exact filter, smoother and filtering bounds of linear-Gaussian models |
//!
//! References: Kingma, Welling 2014, arXiv:1312.6114; Marino, Yue, Mandt 2018, arXiv:1807.09356; Marino, Cvitkovic, Yue
//! 2018, arXiv:1811.05090.

pub mod decoder;
pub mod elbo;
pub mod encoding;
pub mod filter;
pub mod hierarchical;
pub mod iterative;
pub mod kalman;
pub mod recurrent;
pub mod sequences;
pub mod update;
pub mod vae;

#[cfg(test)]
mod tests;
