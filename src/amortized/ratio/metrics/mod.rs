//! How good samples and ratios are.
//!
//! | module | owns |
//! |---|---|
//! | [`two_sample`] | classifier two-sample tests (k nearest neighbours, logistic regression), MMD |
//! | [`c2st`] | the published classifier two-sample test: a multilayer perceptron |
//! | [`calibration`] | simulation-based calibration, expected coverage, TARP |
//! | [`chains`] | R-hat, effective sample size, importance weights |
//! | [`special`] | error function, normal distribution |

pub mod c2st;
pub mod calibration;
pub mod chains;
pub mod special;
pub mod two_sample;
