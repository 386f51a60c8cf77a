//! Image data sets from the files that their authors publish, wherever libraries and unpackers put
//! them.
//!
//! | file | owns |
//! |---|---|
//! | `find` | folders and spellings, and what to say when a file is missing |
//! | `unpack` | a file's bytes, decompressed |
//! | `idx` | the format of MNIST, Fashion-MNIST, EMNIST |
//! | `cifar` | the binary format of CIFAR-10 and CIFAR-100 |
//! | `npy` | the same images as numpy arrays |

mod cifar;
mod find;
mod idx;
mod npy;
mod unpack;

pub use idx::read_idx_folder;

use super::{ImageData, Splits};
use cifar::CifarSet;
use find::Place;
use idx::IdxSet;
use outerloop_core::{Error, Result};
use std::path::{Path, PathBuf};

/// The environment variable that names the data directory when no argument does.
pub const DATA_VARIABLE: &str = "OUTERLOOP_DATA";

/// A data set that is read from disk. Pixels are divided by 255.
///
/// The data directory holds one folder per data set, in any of the usual spellings and with
/// torchvision's `raw` folders inside or not: `mnist/`, `MNIST/raw/`, `FashionMNIST/raw/`,
/// `emnist/gzip/`, `cifar-10-batches-bin/`, ... Files may be plain or `.gz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageFiles {
    /// 28 x 28 grey digits, in `mnist/`: IDX files.
    Mnist,
    /// 28 x 28 grey clothes, in `fashion-mnist/`: IDX files.
    FashionMnist,
    /// 28 x 28 grey letters and digits, in `emnist/`: IDX files. They hold columns of pixels where
    /// MNIST holds rows; here the images are upright like MNIST's.
    Emnist(EmnistSplit),
    /// 32 x 32 colour photographs, in `cifar-10-batches-bin/`: the binary version's six files, or
    /// the numpy arrays `x_train.npy`, `y_train.npy`, `x_test.npy`, `y_test.npy` with images
    /// `[n, 32, 32, 3]` of bytes.
    Cifar10,
    /// The same in 100 or 20 classes, in `cifar-100-binary/`: `train.bin` and `test.bin`, or arrays as
    /// for CIFAR-10.
    Cifar100(Cifar100Labels),
}

/// A division of EMNIST, Cohen et al. 2017, arXiv:1702.05373.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EmnistSplit {
    /// 47 classes, equally many images of each: digits, capitals, and lower case where it differs.
    Balanced,
    /// 62 classes: digits, capitals, lower case.
    ByClass,
    /// The 47 classes of [`Self::Balanced`], as many images as there are.
    ByMerge,
    /// The 10 digits.
    Digits,
    /// The 26 letters, capital or not. The files count them from 1; here they begin at 0.
    Letters,
    /// The 10 digits, as many images as in MNIST.
    Mnist,
}

/// Which labels of CIFAR-100 count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cifar100Labels {
    /// The 100 classes.
    Fine,
    /// The 20 superclasses of 5 classes each.
    Coarse,
}

impl EmnistSplit {
    /// As in the names of its files.
    fn name(self) -> &'static str {
        match self {
            Self::Balanced => "emnist-balanced",
            Self::ByClass => "emnist-byclass",
            Self::ByMerge => "emnist-bymerge",
            Self::Digits => "emnist-digits",
            Self::Letters => "emnist-letters",
            Self::Mnist => "emnist-mnist",
        }
    }
}

impl ImageFiles {
    /// All of them.
    pub const ALL: [ImageFiles; 11] = [
        Self::Mnist,
        Self::FashionMnist,
        Self::Emnist(EmnistSplit::Balanced),
        Self::Emnist(EmnistSplit::ByClass),
        Self::Emnist(EmnistSplit::ByMerge),
        Self::Emnist(EmnistSplit::Digits),
        Self::Emnist(EmnistSplit::Letters),
        Self::Emnist(EmnistSplit::Mnist),
        Self::Cifar10,
        Self::Cifar100(Cifar100Labels::Fine),
        Self::Cifar100(Cifar100Labels::Coarse),
    ];

    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Emnist(split) => split.name(),
            Self::Cifar10 => "cifar10",
            Self::Cifar100(Cifar100Labels::Fine) => "cifar100",
            Self::Cifar100(Cifar100Labels::Coarse) => "cifar100-coarse",
        }
    }

    /// The data set of a short name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name).ok_or_else(|| Error::Unknown {
            what: "image data set",
            got: name.to_string(),
            allowed: Self::ALL.iter().map(|d| d.name().to_string()).collect(),
        })
    }

    /// Number of classes.
    pub fn classes(self) -> usize {
        match self {
            Self::Emnist(EmnistSplit::Balanced | EmnistSplit::ByMerge) => 47,
            Self::Emnist(EmnistSplit::ByClass) => 62,
            Self::Emnist(EmnistSplit::Letters) => 26,
            Self::Cifar100(Cifar100Labels::Fine) => 100,
            Self::Cifar100(Cifar100Labels::Coarse) => 20,
            _ => 10,
        }
    }

    /// The folder inside the data directory.
    pub fn folder(self) -> &'static str {
        self.folders()[0]
    }

    /// What the folder may be called: capitals, `-` and `_` do not count.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Mnist => &["mnist"],
            Self::FashionMnist => &["fashion-mnist", "fashion"],
            Self::Emnist(_) => &["emnist"],
            Self::Cifar10 => &["cifar-10-batches-bin", "cifar-10-binary", "cifar-10"],
            Self::Cifar100(_) => &["cifar-100-binary", "cifar-100"],
        }
    }

    /// The splits, from this data set's folder in `root`, or in the directory that the environment
    /// variable `OUTERLOOP_DATA` names. Its own test set is the test split.
    ///
    /// # Errors
    /// As [`Self::read`]; and if neither names a directory.
    pub fn load(self, root: Option<&Path>) -> Result<Splits> {
        let root = match root {
            Some(root) => root.to_path_buf(),
            None => std::env::var_os(DATA_VARIABLE).map(PathBuf::from).ok_or_else(|| {
                Error::invalid(
                    format!("data directory of {}", self.name()),
                    format!("give it as an argument or in the environment variable {DATA_VARIABLE}"),
                )
            })?,
        };
        let (train, test) = self.read(&self.folder_in(&root)?)?;
        Splits::with_test(&train, &test)
    }

    /// The first of this data set's folders that holds it, else the usual one.
    fn folder_in(self, root: &Path) -> Result<PathBuf> {
        let folders = find::folders(root, self.folders())?;
        for folder in &folders {
            for file in self.format().first_files() {
                if self.place(folder).find(&file)?.is_some() {
                    return Ok(folder.clone());
                }
            }
        }
        Ok(folders.into_iter().next().unwrap_or_else(|| root.join(self.folder())))
    }

    fn place(self, folder: &Path) -> Place<'_> {
        Place { folder, names: self.folders() }
    }

    /// Training and test images from the folder that holds the files.
    ///
    /// # Errors
    /// [`Error::Io`] if a file is missing or cannot be read; [`Error::Format`] if it is truncated,
    /// foreign, an archive, or disagrees with another.
    pub fn read(self, folder: &Path) -> Result<(ImageData, ImageData)> {
        match self.format() {
            Format::Idx(set) => set.read(self.place(folder)),
            Format::Cifar(set) => set.read(self.place(folder)),
        }
    }

    fn format(self) -> Format {
        let (name, classes) = (self.name(), self.classes());
        let idx = |parts, first, transposed| {
            Format::Idx(IdxSet { name, parts, classes: Some(classes), first, transposed })
        };
        match self {
            Self::Mnist | Self::FashionMnist => idx(["train".into(), "t10k".into()], 0, false),
            Self::Emnist(split) => {
                let first = u8::from(split == EmnistSplit::Letters);
                idx([format!("{name}-train"), format!("{name}-test")], first, true)
            }
            Self::Cifar10 => Format::Cifar(CifarSet { name, classes, ..cifar::TEN }),
            Self::Cifar100(labels) => {
                let label = usize::from(labels == Cifar100Labels::Fine);
                Format::Cifar(CifarSet { name, classes, label, ..cifar::HUNDRED })
            }
        }
    }
}

/// How a data set is stored.
enum Format {
    Idx(IdxSet<'static>),
    Cifar(CifarSet),
}

impl Format {
    /// A file of every form that can be read.
    fn first_files(&self) -> Vec<String> {
        match self {
            Self::Idx(set) => vec![set.images_file(0)],
            Self::Cifar(set) => vec![set.train[0].into(), npy::FILES[0].into()],
        }
    }
}

#[cfg(test)]
mod tests;
