//! Learning to solve: a model predicts the solution of a problem from its context, so that solving
//! many related problems costs one training instead of many searches.
//!
//! | module | owns |
//! |---|---|
//! | [`ratio`] | inference without a likelihood: ratio estimators, samplers, diagnostics |

pub mod ratio;
