//! MNIST, Fashion-MNIST and CIFAR-10 from the files their authors publish.

use super::{ImageData, Splits};
use outerloop_core::{Error, Result};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The environment variable that names the data directory when no argument does.
pub const DATA_VARIABLE: &str = "OUTERLOOP_DATA";

/// IDX magic numbers: unsigned bytes in 1 and in 3 dimensions.
const IDX_LABELS: u32 = 0x0801;
const IDX_IMAGES: u32 = 0x0803;
/// CIFAR-10 records: a label byte, then 3 planes of 32 x 32 pixels.
const CIFAR_SIDE: usize = 32;
const CIFAR_RECORD: usize = 1 + 3 * CIFAR_SIDE * CIFAR_SIDE;
const CLASSES: usize = 10;

/// A data set that is read from disk. Pixels are divided by 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageFiles {
    /// 28 x 28 grey digits, in `mnist/`: IDX files, plain or `.gz`.
    Mnist,
    /// 28 x 28 grey clothes, in `fashion-mnist/`: IDX files, plain or `.gz`.
    FashionMnist,
    /// 32 x 32 colour photographs, in `cifar-10-batches-bin/`: the binary version's six files.
    Cifar10,
}

impl ImageFiles {
    /// All of them.
    pub const ALL: [ImageFiles; 3] = [Self::Mnist, Self::FashionMnist, Self::Cifar10];

    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Cifar10 => "cifar10",
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

    /// The folder inside the data directory.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Cifar10 => "cifar-10-batches-bin",
        }
    }

    /// The splits, from this data set's folder in `root`, or in the directory that the environment
    /// variable `OUTERLOOP_DATA` names. Its own test set is the test split.
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
        let (train, test) = self.read(&root.join(self.folder()))?;
        Splits::with_test(&train, &test)
    }

    /// Training and test images from the folder that holds the files.
    pub fn read(self, folder: &Path) -> Result<(ImageData, ImageData)> {
        match self {
            Self::Mnist | Self::FashionMnist => Ok((
                read_idx_pair(self.name(), folder, "train")?,
                read_idx_pair(self.name(), folder, "t10k")?,
            )),
            Self::Cifar10 => read_cifar(self.name(), folder),
        }
    }
}

fn read_idx_pair(name: &str, folder: &Path, part: &str) -> Result<ImageData> {
    let images_path = find(folder, &format!("{part}-images-idx3-ubyte"))?;
    let labels_path = find(folder, &format!("{part}-labels-idx1-ubyte"))?;
    let ([n, height, width], pixels) = read_idx::<3>(&images_path, IDX_IMAGES)?;
    let ([num_labels], labels) = read_idx::<1>(&labels_path, IDX_LABELS)?;
    if num_labels != n {
        return Err(Error::format(
            &labels_path,
            format!("expected {n} labels, as many as images in {}, got {num_labels}", images_path.display()),
        ));
    }
    check_labels(&labels_path, &labels)?;
    let images: Vec<f32> = pixels.iter().map(|&p| f32::from(p) / 255.0).collect();
    let labels: Vec<u32> = labels.iter().map(|&l| u32::from(l)).collect();
    ImageData::new(name, images, labels, [height, width, 1], CLASSES)
        .map_err(|e| Error::format(&images_path, e.to_string()))
}

/// The first that exists of the published spellings of an IDX file name.
fn find(folder: &Path, name: &str) -> Result<PathBuf> {
    let dotted = name.replace("-idx", ".idx");
    let spellings = [name.to_string(), format!("{name}.gz"), dotted.clone(), format!("{dotted}.gz")];
    spellings.iter().map(|s| folder.join(s)).find(|p| p.exists()).ok_or_else(|| {
        Error::io(
            folder.join(name),
            io::Error::new(io::ErrorKind::NotFound, format!("not found, nor {}", spellings[1..].join(", "))),
        )
    })
}

/// Reads an IDX file of unsigned bytes, compressed or not: magic number, `D` sizes (big endian
/// u32), then the bytes. Exactly the bytes that the sizes promise must follow.
fn read_idx<const D: usize>(path: &Path, magic: u32) -> Result<([usize; D], Vec<u8>)> {
    let mut file = open(path)?;
    let mut word = || -> Result<u32> {
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes).map_err(|e| unreadable(path, e, "the file ends inside its header"))?;
        Ok(u32::from_be_bytes(bytes))
    };
    let got = word()?;
    if got != magic {
        return Err(Error::format(
            path,
            format!("expected an IDX file with magic {magic:#010x}, got {got:#010x}"),
        ));
    }
    let mut sizes = [0usize; D];
    for s in &mut sizes {
        *s = word()? as usize;
    }
    let expected = sizes
        .iter()
        .try_fold(1usize, |a, &s| a.checked_mul(s))
        .ok_or_else(|| Error::format(path, format!("expected sizes that fit in memory, got {sizes:?}")))?;
    let mut bytes = Vec::new();
    let read = file.take(expected as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| {
        unreadable(path, e, &format!("expected {expected} bytes for sizes {sizes:?}, got {}", bytes.len()))
    })?;
    if bytes.len() != expected {
        let more = if bytes.len() > expected { "more".to_string() } else { bytes.len().to_string() };
        return Err(Error::format(
            path,
            format!("expected {expected} bytes for sizes {sizes:?}, got {more}"),
        ));
    }
    Ok((sizes, bytes))
}

/// The file's content; decompressed if it starts like gzip.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let io_error = |e| Error::io(path, e);
    let mut file = std::fs::File::open(path).map_err(io_error)?;
    let mut start = Vec::new();
    (&mut file).take(2).read_to_end(&mut start).map_err(io_error)?;
    let gzip = start == [0x1f, 0x8b];
    let whole = io::BufReader::new(io::Cursor::new(start).chain(file));
    Ok(if gzip { Box::new(flate2::bufread::GzDecoder::new(whole)) } else { Box::new(whole) })
}

/// A file that ends early or is corrupt is a format error, anything else an I/O error.
fn unreadable(path: &Path, e: io::Error, why: &str) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::format(path, why),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            Error::format(path, format!("{why}: corrupt gzip data: {e}"))
        }
        _ => Error::io(path, e),
    }
}

fn check_labels(path: &Path, labels: &[u8]) -> Result<()> {
    match labels.iter().position(|&l| usize::from(l) >= CLASSES) {
        Some(i) => {
            Err(Error::format(path, format!("expected labels below {CLASSES}, got {} at {i}", labels[i])))
        }
        None => Ok(()),
    }
}

/// The binary version of CIFAR-10: five training files and one test file of equally many records.
fn read_cifar(name: &str, folder: &Path) -> Result<(ImageData, ImageData)> {
    let mut train = (Vec::new(), Vec::new());
    let mut per_file = None;
    let mut read = |file: &str, (images, labels): &mut (Vec<f32>, Vec<u32>)| -> Result<()> {
        let path = folder.join(file);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let expected = *per_file.get_or_insert(bytes.len());
        if bytes.is_empty() || bytes.len() % CIFAR_RECORD != 0 {
            return Err(Error::format(
                &path,
                format!(
                    "expected a multiple of {CIFAR_RECORD} bytes (10000 records: 30730000), got {}",
                    bytes.len()
                ),
            ));
        }
        if bytes.len() != expected {
            return Err(Error::format(
                &path,
                format!("expected {expected} bytes, as many as in data_batch_1.bin, got {}", bytes.len()),
            ));
        }
        let records = bytes.chunks_exact(CIFAR_RECORD);
        check_labels(&path, &records.clone().map(|r| r[0]).collect::<Vec<u8>>())?;
        for record in records {
            labels.push(u32::from(record[0]));
            // Planes to pixels: [channels, height, width] to [height, width, channels].
            let plane = CIFAR_SIDE * CIFAR_SIDE;
            images.extend(
                (0..plane).flat_map(|px| (0..3).map(move |c| f32::from(record[1 + c * plane + px]) / 255.0)),
            );
        }
        Ok(())
    };
    for i in 1..=5 {
        read(&format!("data_batch_{i}.bin"), &mut train)?;
    }
    let mut test = (Vec::new(), Vec::new());
    read("test_batch.bin", &mut test)?;
    let shape = [CIFAR_SIDE, CIFAR_SIDE, 3];
    Ok((
        ImageData::new(name, train.0, train.1, shape, CLASSES)?,
        ImageData::new(name, test.0, test.1, shape, CLASSES)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn idx(magic: u32, sizes: &[u32], body: &[u8]) -> Vec<u8> {
        let mut out = magic.to_be_bytes().to_vec();
        sizes.iter().for_each(|s| out.extend(s.to_be_bytes()));
        out.extend(body);
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    /// 20 training and 4 test images of 2 x 3 pixels; image `i` holds `i, i+1, ...`.
    fn write_mnist(root: &Path, compress: bool) -> PathBuf {
        let folder = root.join("mnist");
        fs::create_dir_all(&folder).unwrap();
        for (part, n) in [("train", 20u8), ("t10k", 4)] {
            let pixels: Vec<u8> = (0..n).flat_map(|i| i..i + 6).collect();
            let labels: Vec<u8> = (0..n).map(|i| i % 10).collect();
            let images = idx(IDX_IMAGES, &[n.into(), 2, 3], &pixels);
            let labels = idx(IDX_LABELS, &[n.into()], &labels);
            for (name, bytes) in [("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)] {
                let (suffix, bytes) = if compress { (".gz", gzip(&bytes)) } else { ("", bytes) };
                fs::write(folder.join(format!("{part}-{name}{suffix}")), bytes).unwrap();
            }
        }
        folder
    }

    fn message(folder: &Path) -> String {
        ImageFiles::Mnist.read(folder).unwrap_err().to_string()
    }

    #[test]
    fn reads_idx_files_plain_and_compressed() {
        for compress in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let folder = write_mnist(dir.path(), compress);
            let (train, test) = ImageFiles::Mnist.read(&folder).unwrap();
            assert_eq!((train.len(), test.len(), train.height, train.width), (20, 4, 2, 3));
            assert_eq!(train.image(7)[1], 8.0 / 255.0);
            assert_eq!(train.labels[13], 3);
            let splits = ImageFiles::Mnist.load(Some(dir.path())).unwrap();
            assert_eq!(outerloop_core::Split::ALL.map(|s| splits.len(s)), [16, 2, 2, 4]);
        }
    }

    #[test]
    fn refuses_truncated_foreign_and_inconsistent_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = write_mnist(dir.path(), false);
        let images = folder.join("train-images-idx3-ubyte");
        let labels = folder.join("train-labels-idx1-ubyte");
        let (good_images, good_labels) = (fs::read(&images).unwrap(), fs::read(&labels).unwrap());

        for cut in 0..good_images.len() {
            fs::write(&images, &good_images[..cut]).unwrap();
            let error = ImageFiles::Mnist.read(&folder).unwrap_err();
            assert!(matches!(&error, Error::Format { path, .. } if *path == images), "{cut}: {error}");
        }
        assert!(message(&folder).ends_with("expected 120 bytes for sizes [20, 2, 3], got 119"));
        fs::write(&images, [&good_images[..], b"x"].concat()).unwrap();
        assert!(message(&folder).ends_with("expected 120 bytes for sizes [20, 2, 3], got more"));
        fs::write(&images, &good_labels).unwrap();
        assert!(message(&folder).ends_with("expected an IDX file with magic 0x00000803, got 0x00000801"));
        fs::write(&images, idx(IDX_IMAGES, &[u32::MAX; 3], &[])).unwrap();
        assert!(message(&folder).contains("expected sizes that fit in memory"));
        fs::write(&images, idx(IDX_IMAGES, &[u32::MAX, 1, 1], &[1])).unwrap();
        assert!(message(&folder).contains("expected 4294967295 bytes"));
        fs::write(&images, idx(IDX_IMAGES, &[0, 2, 3], &[])).unwrap();
        assert!(ImageFiles::Mnist.read(&folder).is_err());
        fs::write(&images, &good_images).unwrap();

        fs::write(&labels, idx(IDX_LABELS, &[19], &[0; 19])).unwrap();
        assert!(message(&folder).contains("expected 20 labels"));
        fs::write(&labels, idx(IDX_LABELS, &[20], &[12; 20])).unwrap();
        assert!(message(&folder).ends_with("expected labels below 10, got 12 at 0"));
        fs::remove_file(&labels).unwrap();
        let missing = ImageFiles::Mnist.read(&folder).unwrap_err();
        assert!(matches!(&missing, Error::Io { path, .. } if *path == labels), "{missing}");
    }

    #[test]
    fn refuses_damaged_gzip_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = write_mnist(dir.path(), true);
        let images = folder.join("train-images-idx3-ubyte.gz");
        let good = fs::read(&images).unwrap();
        for cut in 0..good.len() {
            fs::write(&images, &good[..cut]).unwrap();
            let error = ImageFiles::Mnist.read(&folder).unwrap_err();
            assert!(matches!(&error, Error::Format { path, .. } if *path == images), "{cut}: {error}");
        }
    }

    #[test]
    fn a_missing_directory_says_how_to_name_one() {
        let error = ImageFiles::Cifar10.load(Some(Path::new("no-such-folder"))).unwrap_err().to_string();
        assert!(error.starts_with("no-such-folder/cifar-10-batches-bin/data_batch_1.bin: "), "{error}");
        let error = ImageFiles::from_name("mnits").unwrap_err().to_string();
        assert_eq!(error, "unknown image data set `mnits`, expected one of: mnist, fashion-mnist, cifar10");
    }

    #[test]
    fn reads_cifar_planes_as_pixels_and_refuses_damage() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<String> =
            (1..=5).map(|i| format!("data_batch_{i}.bin")).chain(["test_batch.bin".into()]).collect();
        let record = |label: u8, v: u8| {
            let planes = (0..3 * 1024).map(move |i| v + (i / 1024) as u8 * 10 + u8::from(i % 1024 == 33));
            std::iter::once(label).chain(planes).collect::<Vec<u8>>()
        };
        for (i, f) in files.iter().enumerate() {
            let bytes = [record(i as u8, i as u8), record(9, 100)].concat();
            fs::write(dir.path().join(f), bytes).unwrap();
        }
        let (train, test) = ImageFiles::Cifar10.read(dir.path()).unwrap();
        assert_eq!((train.len(), test.len(), train.features()), (10, 2, 3072));
        assert_eq!((train.labels[4], test.labels[0]), (2, 5));
        // Pixel (1, 1) of image 4 (value 2): red 3, green 13, blue 23.
        assert_eq!(train.image(4)[33 * 3..34 * 3], [3.0, 13.0, 23.0].map(|v: f32| v / 255.0));
        let bw = train.resized(16, 16).unwrap().channel_mean();
        assert_eq!((bw.features(), bw.name.as_str()), (256, "cifar1016x16bw"));

        let path = dir.path().join(&files[2]);
        let good = fs::read(&path).unwrap();
        for (bytes, part) in [
            (good[..good.len() - 1].to_vec(), "expected a multiple of 3073 bytes"),
            (Vec::new(), "expected a multiple of 3073 bytes"),
            (good[..CIFAR_RECORD].to_vec(), "expected 6146 bytes, as many as in data_batch_1.bin, got 3073"),
            (record(10, 0).repeat(2), "expected labels below 10, got 10 at 0"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = ImageFiles::Cifar10.read(dir.path()).unwrap_err();
            assert!(matches!(&error, Error::Format { path: p, .. } if *p == path), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
