//! NumPy's files: `.npy` of one array, and `.npz`, a zip archive of them.

use super::float_type::FloatType;
use super::format::{Array, MAX_ARRAYS, MAX_BYTES, MAX_NAME};
use outerloop_core::npy::Npy;
use std::io::{Cursor, Read};
use zip::ZipArchive;

/// The array of an `.npy` file.
pub(super) fn array(bytes: &[u8]) -> Result<Array, String> {
    let npy = Npy::parse(bytes)?;
    let float = match npy.descr {
        "<f8" => FloatType::F64,
        "<f4" => FloatType::F32,
        "<f2" => FloatType::F16,
        other => return Err(format!("expected little-endian floats, `<f8`, `<f4` or `<f2`, got `{other}`")),
    };
    let mut array = Array::new(npy.shape, float, npy.content)?;
    if npy.is_fortran {
        // What was read is in the order of the file, columns first. No product of lengths is too large: the
        // whole one was checked.
        let strides: Vec<usize> =
            array.shape.iter().scan(1, |s, n| Some(std::mem::replace(s, *s * n))).collect();
        // Where element i, counted row by row, is in the file.
        let place = |mut i: usize| {
            let mut at = 0;
            for (n, stride) in array.shape.iter().zip(&strides).rev() {
                at += i % n * stride;
                i /= n;
            }
            at
        };
        array.data = (0..array.data.len()).map(|i| array.data[place(i)]).collect();
    }
    Ok(array)
}

/// The arrays of an `.npz` file by their names, without `.npy`.
pub(super) fn archive(bytes: &[u8]) -> Result<Vec<(String, Array)>, String> {
    let broken = |e: zip::result::ZipError| format!("not a whole npz file: {e}");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    if archive.file_names().any(|name| name.ends_with("data.pkl")) {
        return Err("a PyTorch file, which may run code when it is read: save the `state_dict` with \
                    safetensors.torch.save_file"
            .into());
    }
    if archive.len() > MAX_ARRAYS {
        return Err(format!("expected at most {MAX_ARRAYS} arrays, got {}", archive.len()));
    }
    let mut left = MAX_BYTES;
    let mut arrays = Vec::new();
    for i in 0..archive.len() {
        let file = archive.by_index(i).map_err(broken)?;
        let name = file.name().trim_end_matches(".npy").to_string();
        if name.len() > MAX_NAME {
            return Err(format!("expected names of at most {MAX_NAME} bytes, got {}", name.len()));
        }
        let mut unpacked = Vec::new();
        let read = file.take(left + 1).read_to_end(&mut unpacked);
        read.map_err(|e| format!("array `{name}`: not a whole npz file: {e}"))?;
        left = left.checked_sub(unpacked.len() as u64).ok_or_else(|| {
            format!("array `{name}`: expected at most {MAX_BYTES} bytes in all, unpacked, got more")
        })?;
        arrays.push((name.clone(), array(&unpacked).map_err(|why| format!("array `{name}`: {why}"))?));
    }
    Ok(arrays)
}
