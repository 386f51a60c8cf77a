//! CUDA devices by dfdx: what is there, and one per evaluator.

use super::{AnyDevice, Device, Open};
use crate::tensor::{Backend, Cpu, Cuda, Host, Storage};
use crate::{Error, FlatTask, Float, Result, Task, Typed};
use cudarc::driver::{result, sys::CUresult};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What may go from thread to thread. In builds without the feature `cuda` it is [`Send`]; here it is not checked, since
/// dfdx's CUDA tensors do not say that they are, though they may: see `TypedEvaluator`. A task's batch that is not `Send`
/// is a mistake that only the other build reports.
pub trait Movable {}
impl<T> Movable for T {}

/// What threads may use together, likewise: [`Send`] and [`Sync`] in builds without the feature `cuda`.
pub trait Shareable {}
impl<T> Shareable for T {}

fn error(number: usize, why: String) -> Error {
    Error::Device { device: Device::Cuda(number).to_string(), why }
}

pub(super) fn check(number: usize) -> Result<()> {
    // cuBLAS reads it when a handle is made: with a workspace per stream its sums repeat to the bit.
    const WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";
    if std::env::var_os(WORKSPACE).is_none() {
        std::env::set_var(WORKSPACE, ":4096:8");
    }
    // Not by `CudaDevice`, which panics where there is no driver. Not by the errors' own texts: they ask the driver.
    result::init().map_err(|e| no_driver(number, e.0))?;
    let count = result::device::get_count().map_err(|e| no_driver(number, e.0))?;
    if usize::try_from(count).unwrap_or(0) > number {
        return Ok(());
    }
    let why = format!(
        "the driver shows {count} cards, counted from 0 (`nvidia-smi -L`); take one of them, or --device cpu"
    );
    Err(error(number, why))
}

fn no_driver(number: usize, code: CUresult) -> Error {
    let why = format!(
        "no CUDA driver with a card answers ({code:?}); install NVIDIA's driver, at least as new as the CUDA toolkit \
         of this build, see what `nvidia-smi` shows, or take --device cpu"
    );
    error(number, why)
}

pub(super) fn check_memory(number: usize, bytes: usize) -> Result<()> {
    let fails = |e| {
        let why = format!(
            "out of memory: {bytes} bytes asked for ({e:?}); take a smaller task, fewer threads, another card, or --device cpu"
        );
        error(number, why)
    };
    let dev = take(number).map_err(|e| {
        error(number, format!("cannot be opened: {e:?}; see `nvidia-smi`, or take --device cpu"))
    })?;
    let taken = Storage::<f32>::try_alloc_len(&dev, bytes.div_ceil(4).max(1)).map(drop).map_err(fails);
    dev.close(Device::Cuda(number));
    taken
}

/// Devices that no evaluator has, by card. Each has a cuBLAS handle, a stream and loaded kernels, which take long to
/// make.
static IDLE: Mutex<BTreeMap<usize, Vec<Parked>>> = Mutex::new(BTreeMap::new());

struct Parked(Cuda);

// SAFETY: nobody else holds it. Contexts, streams, events, modules and cuBLAS handles may go from thread to thread (CUDA
// programming guide; cudarc marks its device and its cuBLAS so, and of 0.9 forgot the stream); who takes it makes its
// context the thread's own first.
unsafe impl Send for Parked {}

fn take(number: usize) -> std::result::Result<Cuda, dfdx::tensor::CudaError> {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&number).and_then(Vec::pop);
    let dev = idle.map_or_else(|| Cuda::try_build(number, 0), |parked| Ok(parked.0))?;
    // An allocation makes the card that of this thread.
    Storage::<f32>::try_alloc_len(&dev, 1)?;
    Ok(dev)
}

impl Open for Cuda {
    fn open(device: Device) -> Self {
        let number = match device {
            Device::Cuda(number) => number,
            Device::Cpu => panic!("the CPU is no CUDA device"),
        };
        take(number).unwrap_or_else(|e| panic!("device {device}: {e:?}"))
    }
    fn close(self, device: Device) {
        if let Device::Cuda(number) = device {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).entry(number).or_default().push(Parked(self));
        }
    }
}

impl<E: Float, T> AnyDevice<E> for T
where
    T: Task<E, Cpu> + Task<f64, Cpu> + Task<E, Cuda> + Task<f64, Cuda>,
    Cpu: Host<E>,
    Cuda: Backend<E>,
{
    fn on(self, device: Device) -> Result<Arc<dyn FlatTask<E>>> {
        if device.is_cpu() {
            return Ok(Arc::new(Typed::new(self)));
        }
        device.check()?;
        let task = Typed::<T, Cuda>::at(self, device);
        device.check_memory(Device::bytes_for::<E>(&task))?;
        Ok(Arc::new(task))
    }
}
