//! Files of all formats, whole, broken and hostile.

use super::format::{self, Array};
use super::{import, Import};
use crate::learned::{Celo, CeloAdam, MlpLopt};
use outerloop_core::{Key, LearnedOptimizer};
use proptest::prelude::*;
use safetensors::{tensor::TensorView, Dtype};
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Shape, type and bytes as flax packs them.
fn payload(shape: &[u64], dtype: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_array_len(&mut out, 3).unwrap();
    rmp::encode::write_array_len(&mut out, shape.len() as u32).unwrap();
    for n in shape {
        rmp::encode::write_uint(&mut out, *n).unwrap();
    }
    rmp::encode::write_str(&mut out, dtype).unwrap();
    rmp::encode::write_bin(&mut out, bytes).unwrap();
    out
}

/// A map of one level: names with what stands for them.
fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_map_len(&mut out, entries.len() as u32).unwrap();
    for (name, value) in entries {
        rmp::encode::write_str(&mut out, name).unwrap();
        out.extend_from_slice(value);
    }
    out
}

fn extension(kind: i8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_ext_meta(&mut out, payload.len() as u32, kind).unwrap();
    out.extend_from_slice(payload);
    out
}

fn array(shape: &[u64], dtype: &str, bytes: &[u8]) -> Vec<u8> {
    extension(1, &payload(shape, dtype, bytes))
}

fn floats(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn npy(descr: &str, order: &str, shape: &str, content: &[u8]) -> Vec<u8> {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let len = (dict.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &len[..], dict.as_bytes(), content].concat()
}

fn npz(files: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A small file of every format.
fn samples() -> Vec<Vec<u8>> {
    let w = floats(&[1.0, -2.0, 3.5, 4.0, 0.0, 6.0]);
    let state = map(&[
        ("params", map(&[("w", array(&[2, 3], "float32", &w)), ("b", array(&[0], "float32", &[]))])),
        ("a", array(&[], "float64", &0.5f64.to_le_bytes())),
    ]);
    let files =
        [("w.npy", npy("<f4", "False", "(2, 3)", &w)), ("s.npy", npy("<f2", "False", "()", &[0, 60]))];
    vec![
        state,
        npz(&files, CompressionMethod::Stored),
        npz(&files, CompressionMethod::Deflated),
        npy("<f4", "True", "(2, 3)", &w),
        safetensors::serialize(
            [
                ("a.w", TensorView::new(Dtype::F32, vec![2, 3], &w).unwrap()),
                ("b", TensorView::new(Dtype::BF16, vec![1], &[0x80, 0x3f]).unwrap()),
            ],
            None,
        )
        .unwrap(),
    ]
}

/// A safetensors file with this header.
fn tensors(header: &str, content: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), content].concat()
}

fn read(bytes: &[u8]) -> Result<BTreeMap<String, Array>, String> {
    format::arrays(bytes, "x").map(|arrays| arrays.into_iter().collect())
}

#[test]
fn flax_trees_are_read_in_any_order_and_type() {
    let halves = [0x3c00u16, 0xc000].map(u16::to_le_bytes).concat();
    let bf16 = [0x3f80u16, 0xc000].map(u16::to_le_bytes).concat();
    let long = "n".repeat(300);
    let entries = [
        ("z", map(&[("f16", array(&[2], "float16", &halves)), ("bf16", array(&[1, 2], "bfloat16", &bf16))])),
        ("a", array(&[1], "float32", &floats(&[0.1]))),
        (&long[..], extension(3, &payload(&[], "float64", &0.1f64.to_le_bytes()))),
        // More than 65535 bytes: an extension of the widest kind.
        ("long", array(&[20_000], "float32", &floats(&[7.0; 20_000]))),
    ];
    let arrays = read(&map(&entries)).unwrap();
    let data = |name: &str| &arrays[name].data[..];
    assert_eq!((data("z/f16"), data("z/bf16")), (&[1.0, -2.0][..], &[1.0, -2.0][..]));
    assert_eq!((data("a"), data(&long)), (&[0.1f32][..], &[0.1f32][..]));
    assert_eq!((arrays["z/bf16"].shape.clone(), arrays[&long].shape.clone()), (vec![1, 2], vec![]));
    assert_eq!(data("long"), [7.0; 20_000]);
}

#[test]
fn numpy_files_are_read_stored_and_packed_and_in_either_order() {
    let all = samples();
    let (stored, packed) = (read(&all[1]).unwrap(), read(&all[2]).unwrap());
    assert_eq!(stored, packed);
    assert_eq!((&stored["w"].data[..3], &stored["s"].data[..]), (&[1.0, -2.0, 3.5][..], &[1.0][..]));
    // Columns first: [[1, 3.5, 0], [-2, 4, 6]].
    let columns = &read(&all[3]).unwrap()["x"];
    assert_eq!((&columns.shape[..], &columns.data[..]), (&[2, 3][..], &[1.0, 3.5, 0.0, -2.0, 4.0, 6.0][..]));
    let cube: Vec<f32> = (0u8..24).map(f32::from).collect();
    let cube = &read(&npy("<f4", "True", "(2, 3, 4)", &floats(&cube))).unwrap()["x"];
    // Element [i, j, k] is at i + 2 j + 6 k.
    assert_eq!((cube.data[0], cube.data[1], cube.data[4], cube.data[12]), (0.0, 6.0, 2.0, 1.0));
}

#[test]
fn errors_name_the_entry_what_was_expected_and_what_came() {
    let one = |value: Vec<u8>| map(&[("top", map(&[("w", value)]))]);
    let mut nested = array(&[1], "float32", &floats(&[1.0]));
    for _ in 0..40 {
        nested = map(&[("k", nested)]);
    }
    let name = "n".repeat(1025);
    // A map, an extension and a shape that say they are huge.
    let huge_map = [&[0xdf][..], &u32::MAX.to_be_bytes(), &[0xa1, b'k']].concat();
    let huge_extension = [&[0x81, 0xa1, b'k', 0xc9][..], &u32::MAX.to_be_bytes(), &[1]].concat();
    for (bytes, parts) in [
        (one(vec![0xc0]), &["`top/w`", "expected a map or an array", "Null"][..]),
        (one(vec![0x07]), &["`top/w`", "FixPos(7)"]),
        (one(vec![]), &["`top/w`", "the end of the file"]),
        (one(extension(2, &[0])), &["`top/w`", "complex"]),
        (one(extension(9, &[0])), &["`top/w`", "type 9"]),
        (
            one(array(&[2], "float32", &[0; 4])),
            &["`top/w`", "expected 4 bytes for each number of [2], got 4"],
        ),
        (one(array(&[1], "int32", &[0; 4])), &["`top/w`", "F64, F32, F16 or BF16", "int32"]),
        (one(array(&[1 << 40, 1 << 40], "float32", &[0; 4])), &["`top/w`", "1099511627776"]),
        (one(extension(1, &[0x90])), &["`top/w`", "got 0 parts"]),
        (map(&[(&name, vec![0xc0])]), &["at most 1024 bytes"]),
        (nested, &["k/k/k", "at most 32 levels"]),
        (huge_map, &["`k`", "the end of the file"]),
        (huge_extension, &["`k`", "expected 4294967295 bytes"]),
        ([samples()[0].clone(), vec![0]].concat(), &["1 more bytes"]),
        (vec![0x82, 0x01, 0x02], &["expected a name, got FixPos(1)"]),
        (vec![0x80, 4, 0x95], &["pickle", "safetensors"]),
        (npz(&[("a/data.pkl", vec![])], CompressionMethod::Stored), &["PyTorch", "safetensors"]),
        (npz(&[("w.npy", vec![1])], CompressionMethod::Stored), &["`w`", "whole npy file"]),
        (npy("<i8", "False", "(1,)", &[0; 8]), &["`<f4`", "got `<i8`"]),
        (npy("<f4", "False", "(2,)", &[0; 4]), &["each number of [2], got 4"]),
        (npy("<f4", "False", "(1,)", &[0; 8]), &["each number of [1], got 8"]),
        (npy(">f4", "False", "(1,)", &[0; 4]), &["`<f4`", "got `>f4`"]),
        // No number at all, but lengths whose product is too large.
        (
            npy("<f4", "True", "(1099511627776, 1099511627776, 0)", &[]),
            &["[1099511627776, 1099511627776, 0]"],
        ),
        (npy("<f4", "False", "(18446744073709551616,)", &[]), &["shape", "too large"]),
        (
            tensors(r#"{"w":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]),
            &["`w`", "F64, F32, F16 or BF16", "I64"],
        ),
        (
            tensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]),
            &["safetensors", "`w`", "expected 4 bytes for each number of [2], got 4"],
        ),
        (
            tensors(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 2]),
            &["whole safetensors file", "`w`", "in the 2 bytes there are, got 0..4"],
        ),
        (
            tensors(r#"{"w":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}}"#, &[0; 4]),
            &["`w`", "4611686018427387904"],
        ),
        (tensors(r#"{"w":{"dtype":"F32"}}"#, &[]), &["safetensors", "`w`", "`data_offsets`"]),
        (b"\xff\xff\x00\x00\x00\x00\x00\x00{".to_vec(), &["header is to have 65535 bytes, 1 are there"]),
        (b"GIF89a".to_vec(), &["expected safetensors", "npz", "47, 49"]),
        (vec![], &["begins with []"]),
    ] {
        let error = read(&bytes).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}, expected {parts:?}");
    }
    let twice = map(&[("a", array(&[0], "float32", &[])), ("a", array(&[0], "float32", &[]))]);
    let error = Import::default().bytes(&twice, "twice.state").unwrap_err().to_string();
    assert!(error.contains("twice.state") && error.contains("`a` comes a second time"), "{error}");
}

#[test]
fn no_part_of_a_file_is_a_file() {
    for whole in samples() {
        read(&whole).unwrap();
        for n in 0..whole.len() {
            assert!(read(&whole[..n]).is_err(), "{n} bytes of {}", whole.len());
        }
    }
}

#[test]
fn a_small_archive_cannot_unpack_to_more_than_the_limit() {
    // 2 GiB of zeros in 2 MB would be refused; unpacking that much is too slow for a test, so the check is of
    // the header alone: the array says that it is larger than what there is.
    let bomb = npz(&[("w.npy", npy("<f4", "False", "(1073741824,)", &[0; 64]))], CompressionMethod::Deflated);
    let error = read(&bomb).unwrap_err();
    assert!(error.contains("`w`") && error.contains("got 64 in all"), "{error}");
}

/// A published file, beside the program that ships it.
fn published(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/pretrained").join(file)
}

#[test]
fn published_weights_are_those_of_their_classes_only() {
    let (celo, adam) = (Celo::published(), CeloAdam::default());
    let theta = import(published("celo.state"), &celo).unwrap();
    assert_eq!(theta.len(), 37089);
    assert_eq!(import(published("celo_adam.state"), &adam).unwrap().len(), 36865);
    // A published file without the network is no theta of Celo, and the error names both.
    let error = import(published("celo_adam.state"), &celo).unwrap_err().to_string();
    assert!(
        error.contains("ff_mod_stack/~/w1") && error.contains("rnn_params/step_size/w [64, 1]"),
        "{error}"
    );
    let wider = Celo { lstm_hidden_size: 32, ..Celo::published() };
    let error = import(published("celo.state"), &wider).unwrap_err().to_string();
    assert!(error.contains("lstm_init_state/cell") && error.contains("[1, 32]"), "{error}");
}

#[test]
fn published_weights_begin_with_the_published_learning_rates() {
    // At the first update neither losses nor the number of steps matter.
    let celo = import(published("celo.state"), &Celo::published()).unwrap();
    let adam = import(published("celo_adam.state"), &CeloAdam::default()).unwrap();
    let rates = [Celo::published().first_rate(&celo), CeloAdam::default().first_rate(&adam)];
    for (got, want) in rates.into_iter().zip([0.44360143, 0.15356146]) {
        assert!((got - want).abs() < 5e-9, "{got}, expected {want}");
    }
}

#[test]
fn npz_is_read_as_theta() {
    let lopt = MlpLopt { hidden_size: 4, ..MlpLopt::default() };
    let theta = LearnedOptimizer::<f32>::init(&lopt, Key::new(1));
    let layout = LearnedOptimizer::<f32>::theta_layout(&lopt);
    let files: Vec<(String, Vec<u8>)> = layout
        .entries()
        .iter()
        .map(|e| {
            let shape = e.shape.iter().map(|n| format!("{n},")).collect::<String>();
            (
                format!("{}.npy", e.name),
                npy("<f4", "False", &format!("({shape})"), &floats(&theta[e.range()])),
            )
        })
        .collect();
    let files: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(name, content)| (&name[..], content.clone())).collect();
    let bytes = npz(&files, CompressionMethod::Deflated);
    assert_eq!(Import::default().bytes(&bytes, "theta.npz").unwrap().theta_for(&lopt).unwrap(), theta);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Whatever comes is read or refused.
    #[test]
    fn changed_files_never_panic(
        sample in 0..5usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts: bool,
    ) {
        let mut bytes = samples().swap_remove(sample);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = read(&bytes);
    }

    #[test]
    fn random_files_never_panic(start in 0..6usize, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let starts: [&[u8]; 6] = [b"", b"\x81\xa1k\xc9", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\xdf", b"\x81\xa1k\xc7\x20\x01\x93"];
        let _ = read(&[starts[start], &bytes].concat());
    }

    #[test]
    fn flax_round_trip(names in prop::collection::btree_set("[a-z~/_0-9]{1,12}", 1..6), bits in prop::collection::vec(any::<u32>(), 0..20)) {
        let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let entry = array(&[x.len() as u64], "float32", &floats(&x));
        let entries: Vec<(&str, Vec<u8>)> = names.iter().map(|n| (&n[..], entry.clone())).collect();
        let arrays = read(&map(&entries)).unwrap();
        prop_assert_eq!(arrays.len(), names.len());
        for array in arrays.values() {
            prop_assert_eq!(array.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), bits.clone());
        }
    }
}
