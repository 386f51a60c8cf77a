//! End-to-end tests of the outer loop, one program: a module per subject.

mod adjoint;
mod allocations;
mod estimators;
mod forward;
mod groups;
mod guide;
mod lab;
mod learns;
mod mixes;
mod precision;
mod resume;
mod settings;
mod support;
mod trajectories;
