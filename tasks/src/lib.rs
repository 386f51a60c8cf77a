//!
//! | module | owns |
//! |---|---|
//! | [`data`] | images, splits, batches as pure functions of a key, files |

pub mod data;
