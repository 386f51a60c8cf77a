//! What is trained: quadratics and image tasks, and the data behind them.
//!
//! | module | owns |
//! |---|---|
//! | [`data`] | images, splits, batches as pure functions of a key, files |
//! | [`image`] | image classification by MLPs: typed, run-time shaped, sampled |
//! | [`quadratics`] | closed-form tasks and their families |

pub mod data;
pub mod image;
pub mod quadratics;
