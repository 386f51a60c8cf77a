//! IDX files: unsigned bytes behind a magic number and their sizes.
//!
//! Reference: <http://yann.lecun.com/exdb/mnist/>.

use super::find::Place;
use super::unpack::unpacked;
use crate::data::ImageData;
use outerloop_core::{Error, Result};
use std::path::{Path, PathBuf};

/// Magic numbers: unsigned bytes in 1 and in 3 dimensions.
pub(super) const LABELS: u32 = 0x0801;
pub(super) const IMAGES: u32 = 0x0803;

/// How a data set uses the format.
pub(super) struct IdxSet<'a> {
    /// What the names of its files begin with, training and test.
    pub(super) parts: [String; 2],
    /// Number of classes; none: one more than the largest label.
    pub(super) classes: Option<usize>,
    /// The label of the first class.
    pub(super) first: u8,
    /// Whether the files hold columns of pixels where rows are usual.
    pub(super) transposed: bool,
    pub(super) name: &'a str,
}

/// Images and labels as they are stored.
struct Stored {
    images: PathBuf,
    sizes: [usize; 3],
    pixels: Vec<u8>,
    labels_path: PathBuf,
    labels: Vec<u8>,
}

/// Training and test images of a data set of one's own in MNIST's format: `train-images-idx3-ubyte`,
/// `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, plain or `.gz`.
/// Labels begin at 0; `classes` is their number, by default one more than the largest of both parts.
///
/// ```no_run
/// use outerloop_tasks::data::{read_idx_folder, Splits};
/// # fn main() -> outerloop_core::Result<()> {
/// let (train, test) = read_idx_folder("letters", "data/letters", None)?;
/// let splits = Splits::with_test(&train, &test)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Io`] if a file is missing or cannot be read; [`Error::Format`] if it is truncated, foreign,
/// or disagrees with another.
pub fn read_idx_folder(
    name: &str,
    folder: impl AsRef<Path>,
    classes: Option<usize>,
) -> Result<(ImageData, ImageData)> {
    let parts = ["train".into(), "t10k".into()];
    let set = IdxSet { parts, classes, first: 0, transposed: false, name };
    set.read(Place { folder: folder.as_ref(), names: &[] })
}

impl IdxSet<'_> {
    /// The name of the file of training (0) or test (1) images.
    pub(super) fn images_file(&self, part: usize) -> String {
        format!("{}-images-idx3-ubyte", self.parts[part])
    }

    /// Training and test images.
    pub(super) fn read(&self, place: Place) -> Result<(ImageData, ImageData)> {
        let (train, test) = (self.stored(place, 0)?, self.stored(place, 1)?);
        let largest = train.labels.iter().chain(&test.labels).max().copied().unwrap_or(0);
        let classes = self.classes.unwrap_or(usize::from(largest) + 1);
        Ok((self.images_of(train, classes)?, self.images_of(test, classes)?))
    }

    fn stored(&self, place: Place, part: usize) -> Result<Stored> {
        let images = place.need(&self.images_file(part))?;
        let labels_path = place.need(&format!("{}-labels-idx1-ubyte", self.parts[part]))?;
        let (sizes, pixels) = read::<3>(&images, IMAGES)?;
        let ([num_labels], labels) = read::<1>(&labels_path, LABELS)?;
        if num_labels != sizes[0] {
            let as_many = format!("as many as images in {}", images.display());
            let why = format!("expected {} labels, {as_many}, got {num_labels}", sizes[0]);
            return Err(Error::format(&labels_path, why));
        }
        Ok(Stored { images, sizes, pixels, labels_path, labels })
    }

    fn images_of(&self, part: Stored, classes: usize) -> Result<ImageData> {
        let labels = (part.labels.iter().map(|l| l.wrapping_sub(self.first))).map(u32::from);
        if let Some(i) = labels.clone().position(|l| l as usize >= classes) {
            let (low, high) = (usize::from(self.first), usize::from(self.first) + classes);
            let why = format!("expected labels from {low} to {}, got {} at {i}", high - 1, part.labels[i]);
            return Err(Error::format(&part.labels_path, why));
        }
        let [_, mut height, mut width] = part.sizes;
        let mut pixels = part.pixels;
        if self.transposed {
            pixels = transposed(&pixels, [height, width]);
            (height, width) = (width, height);
        }
        let images: Vec<f32> = pixels.iter().map(|&p| f32::from(p) / 255.0).collect();
        ImageData::new(self.name, images, labels.collect::<Vec<u32>>(), [height, width, 1], classes)
            .map_err(|e| Error::format(&part.images, e.to_string()))
    }
}

/// Every image `[height, width]` with rows and columns exchanged.
fn transposed(pixels: &[u8], [height, width]: [usize; 2]) -> Vec<u8> {
    let images = pixels.chunks_exact((height * width).max(1));
    images.flat_map(|p| (0..width).flat_map(move |x| (0..height).map(move |y| p[y * width + x]))).collect()
}

/// Reads an IDX file of unsigned bytes, compressed or not: magic number, `D` sizes (big endian
/// u32), then the bytes. Exactly the bytes that the sizes promise must follow.
fn read<const D: usize>(path: &Path, magic: u32) -> Result<([usize; D], Vec<u8>)> {
    let mut bytes = unpacked(path)?;
    let header = 4 * (1 + D);
    if bytes.len() < header {
        let why = format!("expected an IDX file with a header of {header} bytes, got {} bytes", bytes.len());
        return Err(Error::format(path, why));
    }
    let content = bytes.split_off(header);
    let mut words = bytes.chunks_exact(4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    let got = words.next().unwrap_or_default();
    if got != magic {
        let why = format!("expected an IDX file with magic {magic:#010x}, got {got:#010x}");
        return Err(Error::format(path, why));
    }
    let sizes: [usize; D] = std::array::from_fn(|_| words.next().unwrap_or_default() as usize);
    let expected = sizes
        .iter()
        .try_fold(1usize, |a, &s| a.checked_mul(s))
        .ok_or_else(|| Error::format(path, format!("expected sizes that fit in memory, got {sizes:?}")))?;
    if content.len() != expected {
        let why = format!("expected {expected} bytes for sizes {sizes:?}, got {}", content.len());
        return Err(Error::format(path, why));
    }
    Ok((sizes, content))
}
