//! A build without the feature `cuda`: every such device is an error.

use super::{AnyDevice, Device};
use crate::tensor::{Cpu, Host};
use crate::{Error, FlatTask, Float, Result, Task, Typed};
use std::sync::Arc;

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
