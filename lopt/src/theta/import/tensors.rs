//! safetensors files.

use super::float_type::{FloatType, EXPECTED};
use super::format::{Array, MAX_NAME};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::{Map, Value};

/// All arrays of a file.
pub(super) fn arrays(bytes: &[u8]) -> Result<Vec<(String, Array)>, String> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| wrong(bytes, &e))?;
    let read = |(name, tensor): (&str, safetensors::tensor::TensorView<'_>)| {
        if name.len() > MAX_NAME {
            return Err(format!("expected names of at most {MAX_NAME} bytes, got {}", name.len()));
        }
        let float = match tensor.dtype() {
            Dtype::F64 => FloatType::F64,
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::Bf16,
            other => return Err(format!("array `{name}`: expected {EXPECTED}, got {other:?}")),
        };
        let array = Array::new(tensor.shape().to_vec(), float, tensor.data());
        Ok((name.to_string(), array.map_err(|why| format!("array `{name}`: {why}"))?))
    };
    tensors.iter().map(read).collect()
}

/// What is wrong with a file that the crate refuses, with the array's name where it is an array.
fn wrong(bytes: &[u8], error: &SafeTensorError) -> String {
    let blamed = blamed(bytes).map_or(String::new(), |why| format!("; {why}"));
    format!("expected a whole safetensors file, got {} bytes with {error}{blamed}", bytes.len())
}

/// The first array whose numbers are not where its entry in the header says.
fn blamed(bytes: &[u8]) -> Option<String> {
    let (len, rest) = bytes.split_first_chunk()?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
    let Some((header, content)) = rest.split_at_checked(len) else {
        return Some(format!("the header is to have {len} bytes, {} are there", rest.len()));
    };
    let entries: Map<String, Value> = serde_json::from_slice(header).ok()?;
    entries.iter().filter(|(name, _)| *name != "__metadata__").find_map(|(name, entry)| {
        let name: String = name.chars().take(MAX_NAME).collect();
        let numbers = |key: &str| -> Option<Vec<usize>> { serde_json::from_value(entry[key].clone()).ok() };
        let (Some(shape), Some([from, to])) =
            (numbers("shape"), numbers("data_offsets").and_then(|x| <[usize; 2]>::try_from(x).ok()))
        else {
            return Some(format!("array `{name}`: expected lengths in `shape` and two in `data_offsets`"));
        };
        if from > to || to > content.len() {
            return Some(format!(
                "array `{name}`: expected its numbers in the {} bytes there are, got {from}..{to}",
                content.len()
            ));
        }
        let width = match entry["dtype"].as_str().unwrap_or_default() {
            "F64" => 8,
            "F32" => 4,
            "F16" | "BF16" => 2,
            other => {
                let other: String = other.chars().take(40).collect();
                return Some(format!("array `{name}`: expected {EXPECTED}, got {other}"));
            }
        };
        let len = shape.iter().try_fold(width, |a: usize, s| a.checked_mul(*s));
        (len != Some(to - from)).then(|| {
            let got = to - from;
            format!("array `{name}`: expected {width} bytes for each number of {shape:?}, got {got} in all")
        })
    })
}
