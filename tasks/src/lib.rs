//! What is trained: quadratics and image tasks, and the data behind them.
//!
//! | module | owns |
//! |---|---|
//! | [`augment`] | changes of tasks: scales, noise, delays |
//! | [`data`] | images, splits, batches as pure functions of a key, files |
//! | [`image`] | image classification by MLPs and convolutions, autoencoders |
//! | [`quadratics`] | closed-form tasks and their families |
//! | [`regression`] | tables with known noise and nets fitted to them |
//! | [`suite`] | what to meta-train on, and what to measure on: kept apart by construction |

pub mod augment;
pub mod data;
pub mod image;
pub mod quadratics;
pub mod regression;
pub mod suite;
