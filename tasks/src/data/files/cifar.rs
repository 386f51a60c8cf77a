//! CIFAR-10 and CIFAR-100: their binary versions, or the same images as numpy arrays.
//!
//! Reference: <https://www.cs.toronto.edu/~kriz/cifar.html>.

use super::find::{entries, is_one_of, Place};
use super::npy;
use super::unpack::unpacked;
use crate::data::ImageData;
use outerloop_core::{Error, Result};
use std::path::Path;

const SIDE: usize = 32;
/// Pixels of a plane; a record holds 3 behind its label bytes.
const PLANE: usize = SIDE * SIDE;
const SHAPE: [usize; 3] = [SIDE, SIDE, 3];
/// Training images per test image in both data sets: 50000 to 10000.
const TRAIN_PER_TEST: usize = 5;

/// How a data set uses the format.
pub(super) struct CifarSet {
    pub(super) name: &'static str,
    /// Files of training records, equally many in each.
    pub(super) train: &'static [&'static str],
    pub(super) test: &'static str,
    /// Label bytes of a record.
    pub(super) label_bytes: usize,
    /// Which of them counts.
    pub(super) label: usize,
    pub(super) classes: usize,
    /// Where the binary version comes from.
    pub(super) archive: &'static str,
    /// What may be there of the Python version: pickles, which we do not read.
    pub(super) pickles: &'static [&'static str],
}

/// CIFAR-10.
pub(super) const TEN: CifarSet = CifarSet {
    name: "cifar10",
    train: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test: "test_batch.bin",
    label_bytes: 1,
    label: 0,
    classes: 10,
    archive: "cifar-10-batches-bin from cifar-10-binary.tar.gz",
    pickles: &["cifar-10-batches-py", "cifar-10-python.tar.gz"],
};

/// CIFAR-100: the superclass, then the class.
pub(super) const HUNDRED: CifarSet = CifarSet {
    name: "cifar100",
    train: &["train.bin"],
    test: "test.bin",
    label_bytes: 2,
    label: 1,
    classes: 100,
    archive: "cifar-100-binary from cifar-100-binary.tar.gz",
    pickles: &["cifar-100-python", "cifar-100-python.tar.gz"],
};

type Images = (Vec<f32>, Vec<u32>);

impl CifarSet {
    /// Training and test images.
    pub(super) fn read(&self, place: Place) -> Result<(ImageData, ImageData)> {
        if place.find(self.train[0])?.is_none() {
            if place.find(npy::FILES[0])?.is_some() {
                return npy::read(self.name, place, SHAPE, self.classes);
            }
            self.refuse_pickles(place.folder)?;
        }
        let train_paths = self.train.iter().map(|name| place.need(name)).collect::<Result<Vec<_>>>()?;
        let test_path = place.need(self.test)?;
        let test_bytes = unpacked(&test_path)?;
        let (mut train, mut test) = (Images::default(), Images::default());
        self.append(&test_path, &test_bytes, &mut test)?;
        for path in train_paths {
            let bytes = unpacked(&path)?;
            self.append(&path, &bytes, &mut train)?;
            // A file cut at a record's end shows here only.
            let times = TRAIN_PER_TEST / self.train.len();
            let expected = times * test_bytes.len();
            if bytes.len() != expected {
                let as_many = format!("{times} times as many as in {}", test_path.display());
                let why = format!("expected {expected} bytes, {as_many}, got {}", bytes.len());
                return Err(Error::format(&path, why));
            }
        }
        let data = |(images, labels): Images| ImageData::new(self.name, images, labels, SHAPE, self.classes);
        Ok((data(train)?, data(test)?))
    }

    /// Appends the records of one file.
    fn append(&self, path: &Path, bytes: &[u8], (images, labels): &mut Images) -> Result<()> {
        let record = self.label_bytes + 3 * PLANE;
        if bytes.is_empty() || bytes.len() % record != 0 {
            let why = format!("expected records of {record} bytes, at least one, got {} bytes", bytes.len());
            return Err(Error::format(path, why));
        }
        for (i, record) in bytes.chunks_exact(record).enumerate() {
            let label = record[self.label];
            if usize::from(label) >= self.classes {
                let why = format!("expected labels below {}, got {label} at {i}", self.classes);
                return Err(Error::format(path, why));
            }
            labels.push(u32::from(label));
            // Planes to pixels: [channels, height, width] to [height, width, channels].
            let planes = &record[self.label_bytes..];
            images.extend(
                (0..PLANE).flat_map(|px| (0..3).map(move |c| f32::from(planes[c * PLANE + px]) / 255.0)),
            );
        }
        Ok(())
    }

    /// Errors if the folder is the Python version, or if that is in it or beside it.
    fn refuse_pickles(&self, folder: &Path) -> Result<()> {
        let mut near = entries(folder)?;
        near.extend(folder.file_name().map(|n| (n.to_string_lossy().into_owned(), folder.to_path_buf())));
        near.extend(folder.parent().map_or(Ok(Vec::new()), entries)?);
        match near.into_iter().find(|(name, path)| is_one_of(name, self.pickles) && path.exists()) {
            Some((_, path)) => {
                let why = format!("the Python version; expected the binary version, {}", self.archive);
                Err(Error::format(path, why))
            }
            None => Ok(()),
        }
    }
}
