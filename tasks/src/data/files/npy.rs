//! Images and labels as numpy arrays: what Python writes without pickles.
//!
//! Reference: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use super::find::Place;
use super::unpack::unpacked;
use crate::data::ImageData;
use outerloop_core::{Error, Result};
use std::path::Path;

/// The files' names, as Keras calls the arrays: training images and labels, test images and labels.
pub(super) const FILES: [&str; 4] = ["x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"];

const MAGIC: &[u8] = b"\x93NUMPY";

/// An array of integers, row major, little endian.
struct Array {
    shape: Vec<usize>,
    /// Bytes per number.
    width: usize,
    bytes: Vec<u8>,
}

/// Training and test images, bytes `[n, height, width, channels]`, with labels `[n]` or `[n, 1]`.
pub(super) fn read(
    name: &str,
    place: Place,
    shape: [usize; 3],
    classes: usize,
) -> Result<(ImageData, ImageData)> {
    let part = |images: &str, labels: &str| {
        let (images_path, labels_path) = (place.need(images)?, place.need(labels)?);
        let (images, labels) = (Array::read(&images_path)?, Array::read(&labels_path)?);
        let n = images.shape.first().copied().unwrap_or(0);
        let got = (&images.shape[..], images.width);
        if got != (&[&[n], &shape[..]].concat()[..], 1) {
            let [h, w, c] = shape;
            let why = format!("expected [n, {h}, {w}, {c}] numbers of 1 byte, got {:?} of {}", got.0, got.1);
            return Err(Error::format(&images_path, why));
        }
        if !matches!(labels.shape[..], [m] | [m, 1] if m == n) {
            let why = format!("expected {n} labels, one per image, got an array {:?}", labels.shape);
            return Err(Error::format(&labels_path, why));
        }
        let pixels: Vec<f32> = images.bytes.iter().map(|&p| f32::from(p) / 255.0).collect();
        ImageData::new(name, pixels, labels.labels(), shape, classes)
            .map_err(|e| Error::format(&labels_path, e.to_string()))
    };
    Ok((part(FILES[0], FILES[1])?, part(FILES[2], FILES[3])?))
}

impl Array {
    fn read(path: &Path) -> Result<Self> {
        let bytes = unpacked(path)?;
        Self::parse(&bytes).map_err(|why| Error::format(path, why))
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let (header, content) = split(bytes).ok_or("expected a whole npy file, got another or a part")?;
        let field = |name: &str, open: char, close: char| {
            let rest = header.split_once(&format!("'{name}':"))?.1.trim_start().strip_prefix(open)?;
            Some(rest.split_once(close)?.0)
        };
        let dtype = field("descr", '\'', '\'').unwrap_or_default();
        let width: usize = match dtype {
            "|u1" | "|i1" => 1,
            "<u2" | "<i2" => 2,
            "<u4" | "<i4" => 4,
            "<u8" | "<i8" => 8,
            _ => return Err(format!("expected integers, little endian, got {dtype:?} in {header:?}")),
        };
        if !header.contains("'fortran_order': False") {
            return Err(format!("expected rows first, 'fortran_order': False, got {header:?}"));
        }
        let sizes = field("shape", '(', ')').unwrap_or_default().split(',').map(str::trim);
        let sizes = sizes.filter(|s| !s.is_empty()).map(|s| s.parse::<usize>());
        let shape: Vec<usize> =
            sizes.collect::<std::result::Result<_, _>>().map_err(|e| format!("shape in {header:?}: {e}"))?;
        let expected = shape.iter().try_fold(width, |a, s| a.checked_mul(*s));
        if expected != Some(content.len()) {
            return Err(format!(
                "expected {width} bytes for each of {shape:?}, got {} in all",
                content.len()
            ));
        }
        Ok(Array { shape, width, bytes: content.to_vec() })
    }

    /// As labels; what is negative or too large becomes a label that no class has.
    fn labels(&self) -> Vec<u32> {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| (n << 8) | u64::from(*b));
        let label = |bytes| u32::try_from(number(bytes)).unwrap_or(u32::MAX);
        self.bytes.chunks_exact(self.width).map(label).collect()
    }
}

/// Header and content.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    // Version 1 has two bytes for the header's length, later ones four.
    let (len, rest) = match rest {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        _ => return None,
    };
    Some((std::str::from_utf8(rest.get(..len)?).ok()?, &rest[len..]))
}
