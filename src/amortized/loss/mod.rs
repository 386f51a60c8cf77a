//! What an amortization model is trained on.

pub mod quadratic;
pub mod score;

/// The loss of a prediction, averaged over contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Loss {
    /// The objective at the prediction, `f(ŷ(x); x)`: local information, no solutions needed. Exact gradient, no noise
    /// but the contexts' (and the objective's own).
    #[default]
    Objective,
    /// The squared distance to solutions, `|ŷ(x) − y*(x)|²`, both in the domain; needs a pool of solved contexts. Exact
    /// gradient of a loss that ignores the objective's curvature.
    Regression,
    /// The objective smoothed by `σ`, `E f(ŷ + σ e; x)`, by antithetic pairs of evaluations: for objectives without
    /// gradients. Unbiased for the smoothed objective, biased by order `σ²` for the objective; variance per component
    /// about `(|g|² + gᵢ²)/pairs`. The value reported is the objective at the prediction.
    Score {
        /// Standard deviation σ of the noise, positive.
        sigma: f64,
        /// Pairs of evaluations per context and step.
        pairs: usize,
    },
}

/// Which iterates of a model count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Iterates {
    /// The last one. The default.
    #[default]
    Last,
    /// The mean over all of them, the start included: every prefix of the steps learns to be good.
    Mean,
}
