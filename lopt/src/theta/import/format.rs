//! Which kind of file it is, and its arrays.

use super::float_type::FloatType;
use super::{flax, numpy, tensors};
use outerloop_core::npy;

/// An array of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    /// Row major.
    pub(super) data: Vec<f32>,
}

impl Array {
    /// From the bytes of its numbers, row major; the error says what was expected and what came.
    pub(super) fn new(shape: Vec<usize>, float: FloatType, bytes: &[u8]) -> Result<Self, String> {
        let len = shape.iter().try_fold(float.width(), |a, s| a.checked_mul(*s));
        if len != Some(bytes.len()) {
            let (width, got) = (float.width(), bytes.len());
            return Err(format!("expected {width} bytes for each number of {shape:?}, got {got} in all"));
        }
        Ok(Array { shape, data: float.numbers(bytes) })
    }
}

/// Largest file, and what compressed files may unpack to, in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 30;
/// Most arrays of a file.
pub(super) const MAX_ARRAYS: usize = 100_000;
/// Longest name of an array, in bytes.
pub(super) const MAX_NAME: usize = 1024;

/// The arrays of a file in any known format, with their names. `name`: that of the array of a file which
/// holds a single one.
pub(super) fn arrays(bytes: &[u8], name: &str) -> Result<Vec<(String, Array)>, String> {
    match bytes {
        // The length of the header is far below 4 GB.
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] => tensors::arrays(bytes),
        _ if bytes.starts_with(npy::MAGIC) => Ok(vec![(name.to_string(), numpy::array(bytes)?)]),
        [b'P', b'K', ..] => numpy::archive(bytes),
        [0x80, 2..=5, ..] => {
            Err("a Python pickle, which may run code when it is read: save the arrays as safetensors".into())
        }
        [0x80..=0x8f | 0xde | 0xdf, ..] => flax::tree(bytes),
        _ => {
            let start = &bytes[..bytes.len().min(8)];
            let expected = "expected safetensors, flax's msgpack (`.state`), or NumPy's npz or npy";
            Err(format!("{expected}; got a file that begins with {start:02x?}"))
        }
    }
}
