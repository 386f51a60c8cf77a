//! What is trained: quadratics and image tasks, and the data behind them.
//!
//! | module | owns |
//! |---|---|
//! | [`data`] | images, splits, batches as pure functions of a key, files |
//! | [`quadratics`] | closed-form tasks and their families |

pub mod data;
pub mod quadratics;
