//! Tests over all tasks of the crate, one program: a module per subject.

mod augment;
mod contract;
mod fused;
