//! A file's bytes, decompressed, and never an archive's instead of the file's own.

use flate2::bufread::GzDecoder;
use outerloop_core::{Error, Result};
use std::{fs, io::Read, path::Path};

const GZIP: &[u8] = &[0x1f, 0x8b];

/// How files begin that are saved or renamed under the name of the wanted one. None of these can
/// begin an IDX, a CIFAR or an npy file.
const FOREIGN: [(&[u8], &str); 8] = [
    (b"PK", "a zip archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"\xfd7zXZ", "an xz file: decompress it"),
    (b"BZh", "a bzip2 file: decompress it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: decompress it"),
    (GZIP, "a gzip file in a gzip file: decompress it once"),
    (b"<", "a web page: download the file again"),
];
/// What every tar archive since 1988 has in its first header, and where.
const TAR: (usize, &[u8]) = (257, b"ustar");

/// The content of the file; decompressed if it starts like gzip, whatever its name.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Format`] if it is damaged or an archive.
pub(super) fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let content = if bytes.starts_with(GZIP) { members(path, &bytes)? } else { bytes };
    let foreign = FOREIGN.iter().find(|(start, _)| content.starts_with(start)).map(|(_, what)| *what);
    let tar = || content.get(TAR.0..)?.starts_with(TAR.1).then_some("a tar archive: unpack it");
    match foreign.or_else(tar) {
        Some(what) => Err(Error::format(path, format!("expected the data itself, got {what}"))),
        None => Ok(content),
    }
}

/// All members of a gzip file: `cat a.gz b.gz`, `pigz` and `bgzip` write several, and archivers pad
/// the last with zeros.
fn members(path: &Path, mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while !rest.is_empty() {
        let mut member = GzDecoder::new(rest);
        if let Err(e) = member.read_to_end(&mut out) {
            return Err(Error::format(path, format!("damaged gzip data after {} bytes: {e}", out.len())));
        }
        rest = member.into_inner();
        let padding = rest.iter().take_while(|b| **b == 0).count();
        rest = &rest[padding..];
    }
    Ok(out)
}
