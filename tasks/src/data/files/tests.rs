use super::idx::{IMAGES, LABELS};
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
        let images = idx(IMAGES, &[n.into(), 2, 3], &pixels);
        let labels = idx(LABELS, &[n.into()], &labels);
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
    assert!(message(&folder).ends_with("expected 120 bytes for sizes [20, 2, 3], got 121"));
    fs::write(&images, &good_labels).unwrap();
    assert!(message(&folder).ends_with("expected an IDX file with magic 0x00000803, got 0x00000801"));
    fs::write(&images, idx(IMAGES, &[u32::MAX; 3], &[])).unwrap();
    assert!(message(&folder).contains("expected sizes that fit in memory"));
    fs::write(&images, idx(IMAGES, &[u32::MAX, 1, 1], &[1])).unwrap();
    assert!(message(&folder).contains("expected 4294967295 bytes"));
    fs::write(&images, idx(IMAGES, &[0, 2, 3], &[])).unwrap();
    assert!(ImageFiles::Mnist.read(&folder).is_err());
    fs::write(&images, &good_images).unwrap();

    fs::write(&labels, idx(LABELS, &[19], &[0; 19])).unwrap();
    assert!(message(&folder).contains("expected 20 labels"));
    fs::write(&labels, idx(LABELS, &[20], &[12; 20])).unwrap();
    assert!(message(&folder).ends_with("expected labels from 0 to 9, got 12 at 0"));
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
    assert!(error.contains("`mnits`, expected one of: mnist, fashion-mnist, emnist-balanced, "), "{error}");
    assert!(ImageFiles::ALL.iter().all(|d| ImageFiles::from_name(d.name()).unwrap() == *d));
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
        (good[..good.len() - 1].to_vec(), "expected records of 3073 bytes, at least one, got 6145 bytes"),
        (Vec::new(), "expected records of 3073 bytes, at least one, got 0 bytes"),
        (good[..3073].to_vec(), "expected 6146 bytes, 1 times as many as in "),
        (record(10, 0).repeat(2), "expected labels below 10, got 10 at 0"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = ImageFiles::Cifar10.read(dir.path()).unwrap_err();
        assert!(matches!(&error, Error::Format { path: p, .. } if *p == path), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// The content of a folder: names, and bytes.
fn write(folder: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The four files of 20 training and 4 test images `[1, 2]`, under the given names.
fn four(names: [&str; 4]) -> [(&str, Vec<u8>); 4] {
    let images = |n: u8| idx(IMAGES, &[n.into(), 1, 2], &vec![7; 2 * usize::from(n)]);
    let labels = |n: u8| idx(LABELS, &[n.into()], &(0..n).map(|i| i % 10).collect::<Vec<u8>>());
    let contents = [images(20), labels(20), images(4), labels(4)];
    let mut contents = contents.into_iter();
    names.map(|name| (name, contents.next().unwrap()))
}

const USUAL: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

#[test]
fn gzip_files_may_have_members_names_and_padding() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write_mnist(dir.path(), true);
    let (path, labels) =
        (folder.join("train-images-idx3-ubyte.gz"), folder.join("train-labels-idx1-ubyte.gz"));
    let plain = super::unpack::unpacked(&path).unwrap();
    // As `gzip -N` writes it, and with the header's other fields.
    let named =
        flate2::GzBuilder::new().filename("train-images.idx3-ubyte").comment("c").extra(vec![0; 6]).mtime(9);
    let mut named = named.write(Vec::new(), flate2::Compression::best());
    named.write_all(&plain).unwrap();
    let members = [gzip(&plain[..5]), gzip(&plain[5..70]), gzip(&plain[70..])].concat();
    let blocks = [gzip(&plain), gzip(&[])].concat();
    let padded = [&members[..], &[0; 700]].concat();
    for bytes in [named.finish().unwrap(), members.clone(), blocks, padded] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(ImageFiles::Mnist.read(&folder).unwrap().0.image(7)[1], 8.0 / 255.0);
    }
    fs::write(&path, [&members[..], b"x"].concat()).unwrap();
    assert!(message(&folder).contains("damaged gzip data after 136 bytes"), "{}", message(&folder));
    // A browser decompresses and keeps the name, or saves an archive under it.
    fs::write(&path, &plain).unwrap();
    assert!(ImageFiles::Mnist.read(&folder).is_ok());
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, what) in [
        (b"PK\x03\x04 rest".to_vec(), "a zip archive: unpack it"),
        (gzip(&tar), "a tar archive: unpack it"),
        (gzip(&gzip(&plain)), "a gzip file in a gzip file: decompress it once"),
        (b"<!DOCTYPE html>".to_vec(), "a web page: download the file again"),
    ] {
        fs::write(&labels, bytes).unwrap();
        let end = format!("train-labels-idx1-ubyte.gz: expected the data itself, got {what}");
        assert!(message(&folder).ends_with(&end), "{}", message(&folder));
    }
}

#[test]
fn folders_of_all_libraries_and_unpackers_are_found() {
    for prefix in [
        "mnist/",
        "MNIST/raw/",
        "Mnist/MNIST/raw/",
        "fashion-mnist/data/fashion/",
        "FashionMNIST/raw/",
        "Fashion_MNIST/",
        "fashion/",
    ] {
        let files = if prefix.starts_with(['m', 'M']) { ImageFiles::Mnist } else { ImageFiles::FashionMnist };
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join(prefix), &four(USUAL));
        let other = if files == ImageFiles::Mnist { ImageFiles::FashionMnist } else { ImageFiles::Mnist };
        assert!(files.load(Some(dir.path())).is_ok(), "{prefix}");
        assert!(other.load(Some(dir.path())).is_err(), "{prefix} is taken for {other:?}");
    }
}

#[test]
fn spellings_of_file_names_and_leftovers_beside_them_do_not_matter() {
    let spellings = [
        [
            "train-images.idx3-ubyte",
            "train-labels.idx1-ubyte",
            "t10k-images.idx3-ubyte",
            "t10k-labels.idx1-ubyte",
        ],
        [
            "Train-Images-IDX3-ubyte",
            "TRAIN_LABELS_IDX1_UBYTE",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        ],
        // Folders named like the file that they hold.
        [
            "train-images-idx3-ubyte/train-images-idx3-ubyte",
            "train-labels-idx1-ubyte/train-labels.idx1-ubyte",
            "t10k-images-idx3-ubyte.gz/t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        ],
    ];
    for names in spellings {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("mnist");
        write(&folder, &four(names));
        assert!(ImageFiles::Mnist.load(Some(dir.path())).is_ok(), "{names:?}");
        // What macOS and 7-Zip leave beside, and an empty folder.
        write(
            &folder,
            &[("._train-images-idx3-ubyte", vec![1]), ("__MACOSX/train-images-idx3-ubyte", vec![1])],
        );
        let _ = fs::create_dir(folder.join("train-images-idx3-ubyte"));
        assert!(ImageFiles::Mnist.load(Some(dir.path())).is_ok(), "{names:?}");
    }
}

#[test]
fn of_a_plain_and_a_compressed_file_the_plain_one_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write_mnist(dir.path(), false);
    write(&folder, &[("train-images-idx3-ubyte.gz", gzip(b"another"))]);
    assert!(ImageFiles::Mnist.read(&folder).is_ok());
    // A folder of that name does not hide the compressed one.
    let path = folder.join("train-images-idx3-ubyte");
    write(&folder, &[("train-images-idx3-ubyte.gz", gzip(&fs::read(&path).unwrap()))]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(ImageFiles::Mnist.read(&folder).is_ok());
}

#[test]
fn a_link_to_the_folder_itself_ends() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("mnist");
    fs::create_dir(&folder).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&folder, folder.join("raw")).unwrap();
    assert!(message(&folder).ends_with("not found, nor train-images-idx3-ubyte.gz"), "{}", message(&folder));
}

#[test]
fn an_archive_that_is_still_packed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = |files: ImageFiles| files.load(Some(dir.path())).unwrap_err().to_string();
    write(dir.path(), &[("EMNIST/raw/gzip.zip", vec![]), ("FashionMNIST.zip", vec![])]);
    write(dir.path(), &[("cifar-10-binary.tar.gz", vec![]), ("mnist.txt", vec![])]);
    let unpack = format!("; unpack {}", dir.path().join("EMNIST/raw/gzip.zip").display());
    assert!(error(ImageFiles::Emnist(EmnistSplit::Digits)).ends_with(&unpack));
    assert!(error(ImageFiles::FashionMnist).ends_with("FashionMNIST.zip"));
    assert!(error(ImageFiles::Cifar10).ends_with("cifar-10-binary.tar.gz"));
    assert!(error(ImageFiles::Mnist).ends_with("not found, nor train-images-idx3-ubyte.gz"));
    for name in ["train-images-idx3-ubyte.xz", "train-images.idx3-ubyte.zip"] {
        write(&dir.path().join("mnist"), &[("t10k-images-idx3-ubyte.zip", vec![]), (name, vec![])]);
        assert!(error(ImageFiles::Mnist).ends_with(name), "{}", error(ImageFiles::Mnist));
        fs::remove_file(dir.path().join("mnist").join(name)).unwrap();
    }
}

#[test]
fn emnist_is_upright_and_letters_begin_at_zero() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("EMNIST/raw");
    // Stored columns: [3, 2] on disk, `abc` over `def` upright.
    let images = |n: usize| idx(IMAGES, &[n as u32, 3, 2], &b"adbecf".repeat(n));
    let labels = |first: u8| idx(LABELS, &[26], &(first..first + 26).collect::<Vec<u8>>());
    let letters = |part: &str, label: u8| {
        let name = |what: &str| format!("emnist-letters-{part}-{what}");
        write(
            &folder,
            &[(&name("images-idx3-ubyte"), images(26)), (&name("labels-idx1-ubyte"), labels(label))],
        );
    };
    letters("train", 1);
    letters("test", 1);
    let files = ImageFiles::Emnist(EmnistSplit::Letters);
    let (train, test) = files.read(&dir.path().join("EMNIST")).unwrap();
    assert_eq!((train.height, train.width, train.classes, test.len()), (2, 3, 26, 26));
    assert_eq!(train.image(3), b"abcdef".map(|p| f32::from(p) / 255.0));
    assert_eq!(train.labels[..3], [0, 1, 2]);
    assert_eq!(files.load(Some(dir.path())).unwrap().data().name, "emnist-letters");
    letters("test", 0);
    let error = files.load(Some(dir.path())).unwrap_err().to_string();
    assert!(error.ends_with("expected labels from 1 to 26, got 0 at 0"), "{error}");
    let other = ImageFiles::Emnist(EmnistSplit::ByClass).load(Some(dir.path())).unwrap_err().to_string();
    assert!(other.contains("emnist-byclass-train-images-idx3-ubyte"), "{other}");
}

#[test]
fn classes_of_other_idx_folders_come_from_both_parts() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = four(USUAL);
    files[3].1 = idx(LABELS, &[4], &[0, 61, 2, 3]);
    write(dir.path(), &files);
    let (train, test) = read_idx_folder("mine", dir.path(), None).unwrap();
    assert_eq!((train.classes, test.classes, train.name.as_str()), (62, 62, "mine"));
    assert_eq!(read_idx_folder("mine", dir.path(), Some(70)).unwrap().0.classes, 70);
    let error = read_idx_folder("mine", dir.path(), Some(61)).unwrap_err().to_string();
    assert!(error.ends_with("expected labels from 0 to 60, got 61 at 1"), "{error}");
}

#[test]
fn cifar100_has_two_kinds_of_labels() {
    let dir = tempfile::tempdir().unwrap();
    let record = |i: u8| [&[i % 20, 99 - i][..], &[i; 3072]].concat();
    let train: Vec<u8> = (0..20).flat_map(record).collect();
    let test: Vec<u8> = (0..4).flat_map(record).collect();
    write(
        dir.path(),
        &[("cifar-100-binary/train.bin", train.clone()), ("cifar-100-binary/test.bin.gz", gzip(&test))],
    );
    let load = |labels| ImageFiles::Cifar100(labels).load(Some(dir.path()));
    let (fine, coarse) = (load(Cifar100Labels::Fine).unwrap(), load(Cifar100Labels::Coarse).unwrap());
    assert_eq!((fine.data().classes, coarse.data().classes), (100, 20));
    assert_eq!(
        (fine.data().labels[3], coarse.data().labels[3], fine.data().image(3)[7]),
        (96, 3, 3.0 / 255.0)
    );
    // Cut at a record's end.
    write(dir.path(), &[("cifar-100-binary/train.bin", train[..19 * 3074].to_vec())]);
    let error = load(Cifar100Labels::Fine).unwrap_err().to_string();
    assert!(
        error.contains("expected 61480 bytes, 5 times as many as in ") && error.ends_with("got 58406"),
        "{error}"
    );
}

#[test]
fn pickled_cifar_is_refused_with_the_name_of_the_binary_version() {
    for (files, python, binary) in [
        (ImageFiles::Cifar10, "cifar-10-batches-py", "cifar-10-binary.tar.gz"),
        (ImageFiles::Cifar100(Cifar100Labels::Fine), "cifar-100-python", "cifar-100-binary.tar.gz"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join(python), &[("data_batch_1", vec![]), ("train", vec![])]);
        for error in [
            files.load(Some(dir.path())),
            files.read(&dir.path().join(python)).map(|(d, _)| Splits::undivided(d)),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("expected the binary version") && error.ends_with(binary), "{error}");
            assert!(error.contains(&format!("{python}: the Python version")), "{error}");
        }
    }
}

/// A version 1 npy file as numpy 2 writes it.
fn npy(dtype: &str, shape: &str, content: &[u8]) -> Vec<u8> {
    let dict = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
    let padding = " ".repeat(63 - (10 + dict.len()) % 64);
    let len = (dict.len() + padding.len() + 1) as u16;
    [&b"\x93NUMPY\x01\x00"[..], &len.to_le_bytes(), format!("{dict}{padding}\n").as_bytes(), content].concat()
}

#[test]
fn cifar_comes_from_numpy_arrays_too() {
    let dir = tempfile::tempdir().unwrap();
    let labels: Vec<u8> = (0..10i64).flat_map(i64::to_le_bytes).collect();
    let images = |n: usize| {
        npy("|u1", &format!("({n}, 32, 32, 3)"), &(0..n * 3072).map(|i| (i / 3072) as u8).collect::<Vec<_>>())
    };
    let mut files = vec![
        ("x_train.npy", images(10)),
        ("y_train.npy", npy("<i8", "(10, 1)", &labels)),
        ("x_test.npy", images(2)),
        ("y_test.npy", npy("|u1", "(2,)", &[9, 8])),
    ];
    let folder = dir.path().join("cifar-10");
    write(&folder, &files);
    let splits = ImageFiles::Cifar10.load(Some(dir.path())).unwrap();
    let data = splits.data();
    assert_eq!((data.len(), data.labels[7], data.labels[10], data.image(7)[5]), (12, 7, 9, 7.0 / 255.0));
    for (i, bytes, want) in [
        (0, npy("<f4", "(10, 32, 32, 3)", &[0; 4 * 30720]), "expected integers, little endian, got \"<f4\""),
        (
            0,
            npy("|u1", "(10, 3, 32, 32)", &[0; 30720]),
            "expected [n, 32, 32, 3] numbers of 1 byte, got [10, 3, 32, 32] of 1",
        ),
        (
            0,
            npy("|u1", "(10, 32, 32, 3)", &[0; 30719]),
            "expected 1 bytes for each of [10, 32, 32, 3], got 30719 in all",
        ),
        (0, b"\x93NUMPY\x01\x00\x40\x00{".to_vec(), "expected a header of 64 bytes, got the end of the file"),
        (1, npy("|u1", "(9,)", &[0; 9]), "expected 10 labels, one per image, got an array [9]"),
        (1, npy("|i1", "(10,)", &[255; 10]), "label: expected 0..10, got 255"),
        (3, npy("|u1", "(2,)", &[9, 10]), "label: expected 0..10, got 10"),
    ] {
        let good = std::mem::replace(&mut files[i].1, bytes);
        write(&folder, &files);
        let error = ImageFiles::Cifar10.load(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains(want) && error.contains(files[i].0), "{error}");
        files[i].1 = good;
    }
    let at = files[0].1.windows(5).position(|w| w == b"False").unwrap();
    files[0].1[at..at + 5].copy_from_slice(b"True ");
    write(&folder, &files);
    let error = ImageFiles::Cifar10.load(Some(dir.path())).unwrap_err().to_string();
    assert!(error.contains("expected rows first"), "{error}");
}
