//! A build without the feature `cuda`: every such device is an error.

use super::{AnyDevice, Device};
use crate::tensor::{Cpu, Host};
use crate::{Error, FlatTask, Float, Result, Task, Typed};
use std::sync::Arc;

/// What may go from thread to thread: [`Send`], in builds without the feature `cuda`.
pub trait Movable: Send {}
impl<T: Send> Movable for T {}

/// What threads may use together: [`Send`] and [`Sync`], in builds without the feature `cuda`.
pub trait Shareable: Send + Sync {}
impl<T: Send + Sync> Shareable for T {}

pub(super) fn check(_: usize) -> Result<()> {
    Err(Error::FeatureDisabled("cuda"))
}

pub(super) fn check_memory(_: usize, _: usize) -> Result<()> {
    Err(Error::FeatureDisabled("cuda"))
}

impl<E: Float, T: Task<E, Cpu> + Task<f64, Cpu>> AnyDevice<E> for T
where
    Cpu: Host<E>,
{
    fn on(self, device: Device) -> Result<Arc<dyn FlatTask<E>>> {
        device.check()?;
        Ok(Arc::new(Typed::new(self)))
    }
}
