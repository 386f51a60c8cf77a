//! Images and labels as numpy arrays: what Python writes without pickles.

use super::find::Place;
use super::unpack::unpacked;
use crate::data::ImageData;
use outerloop_core::npy::Npy;
use outerloop_core::{Error, Result};
use std::path::Path;

/// The files' names, as Keras calls the arrays: training images and labels, test images and labels.
pub(super) const FILES: [&str; 4] = ["x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"];

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
        let npy = Npy::parse(bytes)?;
        let width: usize = match npy.descr {
            "|u1" | "|i1" => 1,
            "<u2" | "<i2" => 2,
            "<u4" | "<i4" => 4,
            "<u8" | "<i8" => 8,
            dtype => return Err(format!("expected integers, little endian, got {dtype:?}")),
        };
        if npy.is_fortran {
            return Err("expected rows first, 'fortran_order': False, got True".into());
        }
        let Npy { ref shape, content, .. } = npy;
        let expected = npy.numel().and_then(|n| n.checked_mul(width));
        if expected != Some(content.len()) {
            return Err(format!(
                "expected {width} bytes for each of {shape:?}, got {} in all",
                content.len()
            ));
        }
        Ok(Array { width, bytes: content.to_vec(), shape: npy.shape })
    }

    /// As labels; what is negative or too large becomes a label that no class has.
    fn labels(&self) -> Vec<u32> {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| (n << 8) | u64::from(*b));
        let label = |bytes| u32::try_from(number(bytes)).unwrap_or(u32::MAX);
        self.bytes.chunks_exact(self.width).map(label).collect()
    }
}
