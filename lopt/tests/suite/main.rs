//! Tests over all optimizers of the crate, one program: a module per subject.

mod bad_steps;
mod contract;
mod describe;
mod f32_derivatives;
mod golden;
