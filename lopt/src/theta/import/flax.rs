//! flax's `.state` files: one msgpack map per level of a tree of arrays.
//!
//! An array is an extension of type 1 (a single number: 3) that holds msgpack again: shape, name of the type,
//! bytes, row major and little endian. Reference: `flax.serialization`, `msgpack_serialize`.

use super::float_type::{FloatType, EXPECTED};
use super::format::{Array, MAX_ARRAYS, MAX_NAME};
use rmp::{decode, Marker};

/// Deepest tree.
const MAX_DEPTH: usize = 32;
/// Most axes of an array: NumPy's limit.
const MAX_RANK: u32 = 64;

/// All arrays of a file, by the names of their levels joined with `/`.
pub(super) fn tree(bytes: &[u8]) -> Result<Vec<(String, Array)>, String> {
    let mut reader = Reader { rest: bytes, path: Vec::new(), arrays: Vec::new() };
    reader.level()?;
    match reader.rest.len() {
        0 => Ok(reader.arrays),
        more => Err(format!("expected the end of the file after the tree, got {more} more bytes")),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Names of the levels down to where it is.
    path: Vec<&'a str>,
    arrays: Vec<(String, Array)>,
}

impl<'a> Reader<'a> {
    /// The name of the entry that is read.
    fn name(&self) -> String {
        self.path.join("/")
    }

    /// An error about the entry that is read.
    fn wrong(&self, why: impl std::fmt::Display) -> String {
        match self.path.is_empty() {
            true => format!("flax's msgpack: {why}"),
            false => format!("flax's msgpack, entry `{}`: {why}", self.name()),
        }
    }

    /// A map with all that is below it, or an array.
    fn level(&mut self) -> Result<(), String> {
        const WANTED: &str = "expected a map or an array (extension of type 1)";
        let Some(first) = self.rest.first() else {
            return Err(self.wrong(format_args!("{WANTED}, got the end of the file")));
        };
        match Marker::from_u8(*first) {
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                if self.path.len() == MAX_DEPTH {
                    return Err(self.wrong(format_args!("expected at most {MAX_DEPTH} levels, got more")));
                }
                // Every entry takes bytes: a length that is too large ends with the file.
                let len = decode::read_map_len(&mut self.rest).map_err(|e| self.wrong(e))?;
                for _ in 0..len {
                    let (key, rest) =
                        decode::read_str_from_slice(self.rest).map_err(|e| self.wrong(key_error(&e)))?;
                    self.rest = rest;
                    self.path.push(key);
                    if self.path.iter().map(|part| part.len() + 1).sum::<usize>() > MAX_NAME {
                        self.path.pop();
                        return Err(self.wrong(format_args!("expected names of at most {MAX_NAME} bytes")));
                    }
                    self.level()?;
                    self.path.pop();
                }
                Ok(())
            }
            Marker::FixExt1
            | Marker::FixExt2
            | Marker::FixExt4
            | Marker::FixExt8
            | Marker::FixExt16
            | Marker::Ext8
            | Marker::Ext16
            | Marker::Ext32 => {
                let array = self.extension().map_err(|why| self.wrong(why))?;
                if self.arrays.len() == MAX_ARRAYS {
                    return Err(self.wrong(format_args!("expected at most {MAX_ARRAYS} arrays, got more")));
                }
                self.arrays.push((self.name(), array));
                Ok(())
            }
            other => Err(self.wrong(format_args!("{WANTED}, got {other:?}"))),
        }
    }

    /// The array in an extension.
    fn extension(&mut self) -> Result<Array, String> {
        let meta = decode::read_ext_meta(&mut self.rest).map_err(|e| e.to_string())?;
        let Some((payload, rest)) = self.rest.split_at_checked(meta.size as usize) else {
            return Err(format!(
                "expected {} bytes, got the end of the file after {}",
                meta.size,
                self.rest.len()
            ));
        };
        self.rest = rest;
        match meta.typeid {
            1 | 3 => array(payload),
            2 => Err("expected an array (extension of type 1), got a complex number".into()),
            other => {
                Err(format!("expected an array (extension of type 1), got an extension of type {other}"))
            }
        }
    }
}

/// What is wrong with a name; the error holds the bytes, which may be many.
fn key_error<E: decode::RmpReadErr>(e: &decode::DecodeStringError<'_, E>) -> String {
    let got = match e {
        decode::DecodeStringError::InvalidUtf8(..) => "bytes that are no UTF-8".into(),
        decode::DecodeStringError::TypeMismatch(marker) => format!("{marker:?}"),
        decode::DecodeStringError::BufferSizeTooSmall(len) => format!("{len} bytes, more than there are"),
        _ => "the end of the file".into(),
    };
    format!("expected a name, got {got}")
}

/// Shape, type and bytes.
fn array(mut rest: &[u8]) -> Result<Array, String> {
    let parts = decode::read_array_len(&mut rest).map_err(|e| format!("shape, type and bytes: {e}"))?;
    if parts != 3 {
        return Err(format!("expected shape, type and bytes, got {parts} parts"));
    }
    let rank = decode::read_array_len(&mut rest).map_err(|e| format!("shape: {e}"))?;
    if rank > MAX_RANK {
        return Err(format!("expected at most {MAX_RANK} axes, got {rank}"));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        shape.push(decode::read_int::<usize, _>(&mut rest).map_err(|e| format!("shape: {e}"))?);
    }
    let (name, mut rest) =
        decode::read_str_from_slice(rest).map_err(|e| format!("type: {}", key_error(&e)))?;
    let len = decode::read_bin_len(&mut rest).map_err(|e| format!("numbers: {e}"))?;
    if len as usize != rest.len() {
        return Err(format!("expected {len} bytes of numbers, got {}", rest.len()));
    }
    let Some(float) = FloatType::named(name) else {
        let name: String = name.chars().take(40).collect();
        return Err(format!("expected {EXPECTED}, got {name}"));
    };
    Array::new(shape, float, rest)
}
