//! Which device a task computes on: [`Device`], chosen when the program runs, and [`AnyDevice`] tasks.
//!
//! ```
//! use outerloop_core::{Device, Error};
//! let device: Device = "cuda:1".parse()?;
//! assert_eq!((device, device.to_string().as_str()), (Device::Cuda(1), "cuda:1"));
//! // A build without the feature, no driver, no such card: said before anything is computed.
//! if let Err(e) = device.check() {
//!     println!("{e}");
//! }
//! # Ok::<(), Error>(())
//! ```
//!
//! What runs where on a card: linear maps, matrix products, cross entropy, mean squared error, sums and most elementwise
//! operations by dfdx's kernels and cuBLAS; everything else, and all second derivatives, on the host by copies. Closed
//! forms and evaluators of a task's own are the host's, too. `src/core/tensor/CUDA.md` says what to build with, what
//! was run, and what it costs.

#[cfg(not(feature = "cuda"))]
mod cuda_disabled;
#[cfg(feature = "cuda")]
mod cuda_enabled;

#[cfg(not(feature = "cuda"))]
use cuda_disabled as cuda;
#[cfg(feature = "cuda")]
use cuda_enabled as cuda;

pub use cuda::{Movable, Shareable};

use crate::tensor::{Cache, Cpu};
use crate::{Error, FlatFamily, FlatTask, Float, Key, Result, TaskFamily};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A device, as text `cpu`, `cuda` (the first card) or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The host, by kernels of ours.
    #[default]
    Cpu,
    /// The NVIDIA card of this number, counted from 0; needs a build with the feature `cuda`.
    Cuda(usize),
}

impl Device {
    /// Whether it is the host.
    pub fn is_cpu(&self) -> bool {
        *self == Device::Cpu
    }

    /// Errors if there is no such device in this build on this machine. Call it at the start of a program, while it
    /// has one thread: for sums that repeat to the bit it sets `CUBLAS_WORKSPACE_CONFIG` if the environment does not.
    ///
    /// # Errors
    /// A build without the feature, no driver, no card of that number, each with what helps.
    pub fn check(self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(number) => cuda::check(number),
        }
    }

    /// [`Self::check`], and whether `bytes` can be had there now: takes them and gives them back. Of the host it asks
    /// nothing.
    ///
    /// # Errors
    /// As there, and out of memory, with the bytes asked for.
    pub fn check_memory(self, bytes: usize) -> Result<()> {
        self.check()?;
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(number) => cuda::check_memory(number, bytes),
        }
    }

    /// About what a worker's evaluator of a task takes there, in bytes, beside batches and intermediate results:
    /// parameters, their gradient, and a copy of each.
    pub fn bytes_for<E: Float>(task: &dyn FlatTask<E>) -> usize {
        4 * task.layout().len() * size_of::<E>()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let number = match text {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => Some(0),
            // Not `parse` alone: it takes "+1".
            _ => text
                .strip_prefix("cuda:")
                .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|n| n.parse().ok()),
        };
        let allowed = ["cpu", "cuda", "cuda:N"].map(String::from).to_vec();
        number.map(Device::Cuda).ok_or_else(|| Error::Unknown { what: "device", got: text.into(), allowed })
    }
}

impl TryFrom<String> for Device {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

/// A backend that an evaluator takes for itself: devices must not be shared between threads.
pub trait Open: Cache + Clone + 'static {
    /// One for the caller alone.
    ///
    /// # Panics
    /// If there is none; [`Device::check`] says so before.
    fn open(device: Device) -> Self;
    /// Gives it back. All tensors on it are gone.
    fn close(self, device: Device);
}

impl Open for Cpu {
    fn open(_: Device) -> Self {
        Cpu::default()
    }
    fn close(self, _: Device) {
        // A dropped cache would leak what it holds.
        self.disable_cache();
    }
}

/// A task for every device of the build: one that implements [`Task`](crate::Task) for any
/// [`Backend`](crate::tensor::Backend) and both dtypes, as all of the library's do. Without the feature `cuda` that is
/// any task on the CPU.
pub trait AnyDevice<E: Float>: Sized {
    /// The task on flat buffers, computed on a device.
    ///
    /// # Errors
    /// As [`Device::check_memory`], for what the parameters take.
    fn on(self, device: Device) -> Result<Arc<dyn FlatTask<E>>>;
}

/// A [`TaskFamily`] whose tasks compute on a device.
pub struct FamilyOn<F> {
    family: F,
    device: Device,
}

impl<F> FamilyOn<F> {
    /// The family there.
    ///
    /// # Errors
    /// As [`Device::check`].
    pub fn new(family: F, device: Device) -> Result<Self> {
        device.check()?;
        Ok(FamilyOn { family, device })
    }
}

impl<E: Float, F> FlatFamily<E> for FamilyOn<F>
where
    F: TaskFamily,
    F::Task: AnyDevice<E>,
{
    fn name(&self) -> String {
        TaskFamily::name(&self.family)
    }
    /// # Panics
    /// Where the device, which was there when the family was made, is there no longer, or is full.
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask<E>> {
        let task = self.family.task(&self.family.sample(key));
        task.on(self.device).unwrap_or_else(|e| panic!("a task of {}: {e}", TaskFamily::name(&self.family)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_devices_and_back() {
        for (text, device) in
            [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:12", Device::Cuda(12))]
        {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), text);
            assert_eq!(Device::try_from(String::from(device)).unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in [
            "",
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:1:2",
            "cuda:99999999999999999999",
        ] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert_eq!(error, format!("unknown device `{text}`, expected one of: cpu, cuda, cuda:N"));
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        Device::Cpu.check().unwrap();
        Device::Cpu.check_memory(usize::MAX).unwrap();
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_the_feature_says_what_to_rebuild() {
        for error in [Device::Cuda(0).check(), Device::Cuda(3).check_memory(1)] {
            let error = error.unwrap_err().to_string();
            assert_eq!(error, "this build lacks the feature `cuda`; rebuild with `--features cuda`");
        }
    }

    /// A card of this number is nowhere; on a machine without a driver, that is what is said.
    #[test]
    #[cfg(feature = "cuda")]
    fn a_card_that_is_not_there_is_an_error() {
        let error = Device::Cuda(1 << 20).check().unwrap_err().to_string();
        assert!(error.starts_with("device cuda:1048576: "), "{error}");
        assert!(error.contains("--device cpu"), "{error}");
    }
}
