//! Checkpoint files: versioned, checksummed, atomic.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | magic: not ASCII, with line ends, so that text-mode copies break it |
//! | 8..12 | format version |
//! | 12..16 | [`Kind`] |
//! | 16..24 | payload length in bytes |
//! | 24..32 | XXH3-64 of bytes 8..24 and the payload |
//! | 32.. | payload: bincode 2, fixed width |
//!
//! Integers are little endian. bincode stores no field names: a change of any saved struct needs a
//! new format version.

use outerloop_core::{atomic::write_atomic_with, Error, Result};
use serde::{de::DeserializeOwned, Serialize};
use std::io::{self, Seek, SeekFrom, Write};
use std::{fmt, fs, path::Path};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: [u8; 8] = *b"\x89OUTL\r\n\x1a";
const VERSION: u32 = 7;
const HEADER: usize = 32;

/// What a file holds: four readable bytes, so that a wrong file can be named.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(pub [u8; 4]);

impl Kind {
    /// A whole meta-training run.
    pub const TRAINING: Kind = Kind(*b"TRNG");
    /// One inner training run.
    pub const INNER: Kind = Kind(*b"INNR");
    /// Evaluation results.
    pub const EVALUATION: Kind = Kind(*b"EVAL");
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0.escape_ascii())
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({self})")
    }
}

/// The codec, and nothing else in the crate knows it.
mod codec {
    use super::{io, DeserializeOwned, Serialize, Write};

    macro_rules! config {
        () => {
            bincode::config::standard().with_little_endian().with_fixed_int_encoding()
        };
    }

    /// Writes the encoded value.
    pub fn encode<T: Serialize>(value: &T, out: &mut impl Write) -> io::Result<()> {
        let written = bincode::serde::encode_into_std_write(value, out, config!());
        written.map(drop).map_err(|e| match e {
            bincode::error::EncodeError::Io { inner, .. } => inner,
            e => io::Error::new(io::ErrorKind::InvalidData, format!("cannot encode: {e}")),
        })
    }

    /// Decodes a value that fills `bytes` exactly.
    pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
        // A length in a hostile payload must not allocate much more than the payload itself, and
        // bincode's limit is a constant: pick the smallest that fits.
        macro_rules! below {
            ($($limit:expr),*) => {
                match bytes.len() as u64 {
                    $(len if len <= $limit => bincode::serde::decode_from_slice(
                        bytes, config!().with_limit::<{ $limit as usize }>()),)*
                    len => return Err(format!("{len} bytes are more than this build decodes")),
                }
            };
        }
        let (value, used) =
            below!(1u64 << 16, 1u64 << 24, 1u64 << 30, 1u64 << 36).map_err(|e| e.to_string())?;
        match bytes.len() - used {
            0 => Ok(value),
            rest => Err(format!("{rest} bytes are left over")),
        }
    }
}

fn checksum(fields: &[u8], payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(fields);
    hash.update(payload);
    hash.digest()
}

/// Saves a value; a crash leaves the old file or the new one (see [`write_atomic_with`]). It is encoded straight into
/// the file.
///
/// The value's `Serialize` must be symmetric: no `flatten`, `skip_serializing_if` or untagged
/// enums, and no hash maps where the bytes should repeat.
pub fn save<T: Serialize>(path: impl AsRef<Path>, kind: Kind, value: &T) -> Result<()> {
    // Twice: the length precedes the content in the file and in the checksum, and the content may be millions of numbers
    // that should not lie in memory a second time.
    let mut length = Length(0);
    let path = path.as_ref();
    codec::encode(value, &mut length).map_err(|e| Error::io(path, e))?;
    let mut fields = Vec::from(VERSION.to_le_bytes());
    fields.extend(kind.0);
    fields.extend(length.0.to_le_bytes());
    write_atomic_with(path, |file| {
        file.write_all(&MAGIC)?;
        file.write_all(&fields)?;
        file.write_all(&[0; 8])?;
        let mut hash = Xxh3::new();
        hash.update(&fields);
        let mut payload = io::BufWriter::new(Hashed { file: &mut *file, hash, length: 0 });
        codec::encode(value, &mut payload)?;
        let Hashed { hash, length: written, .. } = payload.into_inner().map_err(|e| e.into_error())?;
        if written != length.0 {
            let why = format!("encoded to {} bytes and then to {written}", length.0);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        file.seek(SeekFrom::Start(24))?;
        file.write_all(&hash.digest().to_le_bytes())
    })
}

/// Counts bytes.
struct Length(u64);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file whose bytes are counted and hashed on the way.
struct Hashed<'a> {
    file: &'a mut fs::File,
    hash: Xxh3,
    length: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.length += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Loads what [`save`] wrote.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is foreign, truncated, has
/// trailing bytes, comes from a newer version, fails its checksum, holds another kind, or does not
/// decode as `T`.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>, kind: Kind) -> Result<T> {
    let path = path.as_ref();
    let file = fs::read(path).map_err(|e| Error::io(path, e))?;
    parse(&file, kind).map_err(|why| Error::format(path, why))
}

fn parse<T: DeserializeOwned>(file: &[u8], kind: Kind) -> std::result::Result<T, String> {
    let magic = &file[..file.len().min(MAGIC.len())];
    if !MAGIC.starts_with(magic) {
        return Err(format!("not a checkpoint: it starts with \"{}\"", magic.escape_ascii()));
    }
    let Some((header, payload)) = file.split_first_chunk::<HEADER>() else {
        return Err(format!("truncated: a checkpoint has a header of {HEADER} bytes, got {}", file.len()));
    };
    let u64_at = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| header[i + k]));
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version > VERSION {
        return Err(format!(
            "checkpoint format version {version}, but this build reads version {VERSION}: upgrade outerloop"
        ));
    }
    if version != VERSION {
        return Err(format!("checkpoint format version {version}, expected {VERSION}"));
    }
    let (len, have) = (u64_at(16), payload.len() as u64);
    if have < len {
        return Err(format!("truncated: expected {len} bytes of payload, got {have}"));
    }
    if have > len {
        return Err(format!("{} unexpected bytes after the payload of {len}", have - len));
    }
    let (stored, computed) = (u64_at(24), checksum(&header[8..24], payload));
    if stored != computed {
        return Err(format!("corrupt: the checksum is {computed:016x}, expected {stored:016x}"));
    }
    let found = Kind([header[12], header[13], header[14], header[15]]);
    if found != kind {
        return Err(format!("holds {found}, expected {kind}"));
    }
    codec::decode(payload).map_err(|e| format!("the payload of {kind} does not decode: {e}"))
}

#[cfg(test)]
mod tests;
