//! Theta files: meta-parameters as safetensors, with what is needed to use them rightly.
//!
//! The file holds one F32 array per tensor of the theta layout, readable by any safetensors
//! library, and one metadata entry, `outerloop`: a JSON object with the format version, the
//! architecture, the tensors' order, free-form provenance, and an XXH3-64 checksum over all of
//! these, the names, the shapes and the data. The same theta gives the same bytes. [`Import`] reads
//! weights that other libraries published.

mod import;

pub use import::{import, Import, MULO_DECAYS};
use outerloop_core::{atomic::write_atomic, Error, Layout, LearnedOptimizer, Params, Result};
use safetensors::{tensor::TensorView, Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};
use xxhash_rust::xxh3::Xxh3;

const ENTRY: &str = "outerloop";
const VERSION: u32 = 1;

/// What a theta file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct ThetaFile {
    /// [`LearnedOptimizer::architecture`] of the learned optimizer that theta belongs to.
    pub architecture: String,
    /// Names and shapes of theta.
    pub layout: Arc<Layout>,
    /// The meta-parameters, in layout order.
    pub theta: Vec<f32>,
    /// Provenance: task, estimator, seed, outer steps, anything worth keeping. Empty is fine.
    pub metadata: BTreeMap<String, String>,
}

/// The metadata entry as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    architecture: String,
    tensors: Vec<String>,
    metadata: BTreeMap<String, String>,
    /// 16 hexadecimal digits; see [`checksum`].
    xxh3: String,
}

/// Over the header without its checksum and over every tensor, with lengths between the parts.
fn checksum(header: &Header, file: &ThetaFile) -> Result<String> {
    let head = (header.format, &header.architecture, &header.metadata, file.layout.entries());
    let head = serde_json::to_vec(&head).map_err(|e| Error::invalid("theta metadata", e.to_string()))?;
    let mut hash = Xxh3::new();
    hash.update(&(head.len() as u64).to_le_bytes());
    hash.update(&head);
    file.theta.iter().for_each(|x| hash.update(&x.to_le_bytes()));
    Ok(format!("{:016x}", hash.digest()))
}

impl ThetaFile {
    /// Theta of a learned optimizer, ready to be saved.
    pub fn new(
        lopt: &dyn LearnedOptimizer<f32>,
        theta: &[f32],
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        let layout = lopt.theta_layout();
        layout.check_len("theta", theta.len())?;
        Ok(ThetaFile { architecture: lopt.architecture(), layout, theta: theta.to_vec(), metadata })
    }

    /// Writes the file atomically.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.layout.check_len("theta", self.theta.len())?;
        let mut header = Header {
            format: VERSION,
            architecture: self.architecture.clone(),
            tensors: self.layout.entries().iter().map(|e| e.name.clone()).collect(),
            metadata: self.metadata.clone(),
            xxh3: String::new(),
        };
        header.xxh3 = checksum(&header, self)?;
        let cannot = |e: String| Error::format(path, format!("cannot encode: {e}"));
        let json = serde_json::to_string(&header).map_err(|e| cannot(e.to_string()))?;
        // One entry only: safetensors writes several in the order of a hash map.
        let metadata = HashMap::from([(ENTRY.to_string(), json)]);
        write_atomic(path, &safetensors_of(path, &self.layout, &self.theta, Some(metadata))?)
    }

    /// Reads a file that [`ThetaFile::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Format`] if it is foreign, truncated, corrupt,
    /// or written by a newer version.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        parse(&bytes).map_err(|why| Error::format(path, why))
    }

    /// The contents of a theta file, e.g. one built into a program; `name` stands in errors.
    ///
    /// # Errors
    /// [`Error::Format`] as [`ThetaFile::load`].
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self> {
        parse(bytes).map_err(|why| Error::format(Path::new(name), why))
    }

    /// Theta, if it belongs to `lopt`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] that describes both, if the architecture or the layout is another.
    pub fn theta_for(&self, lopt: &dyn LearnedOptimizer<f32>) -> Result<&[f32]> {
        let (want, layout) = (lopt.architecture(), lopt.theta_layout());
        if self.architecture != want {
            return Err(Error::Mismatch {
                what: "theta's architecture".into(),
                expected: want,
                got: self.architecture.clone(),
            });
        }
        if *self.layout != *layout {
            return Err(Error::Mismatch {
                what: format!("theta's tensors ({want})"),
                expected: describe(&layout),
                got: describe(&self.layout),
            });
        }
        Ok(&self.theta)
    }
}

/// Saves theta of `lopt`; see [`ThetaFile`].
pub fn save(
    path: impl AsRef<Path>,
    lopt: &dyn LearnedOptimizer<f32>,
    theta: &[f32],
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    ThetaFile::new(lopt, theta, metadata)?.save(path)
}

/// Saves a trained task's parameters as safetensors, one f32 tensor per entry of the layout, for use elsewhere.
///
/// # Errors
/// [`Error::Io`]; [`Error::Mismatch`] if the data have not the layout's length.
pub fn save_params(path: impl AsRef<Path>, params: &Params<f32>) -> Result<()> {
    let (path, layout) = (path.as_ref(), &params.layout);
    layout.check_len("parameters", params.data.len())?;
    write_atomic(path, &safetensors_of(path, layout, &params.data, None)?)
}

/// The tensors of a layout as a safetensors file.
fn safetensors_of(
    path: &Path,
    layout: &Layout,
    data: &[f32],
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let views = layout.entries().iter().map(|e| {
        let data = &bytes[4 * e.range().start..4 * e.range().end];
        Ok((e.name.as_str(), TensorView::new(Dtype::F32, e.shape.clone(), data)?))
    });
    views
        .collect::<std::result::Result<Vec<_>, _>>()
        .and_then(|views| safetensors::serialize(views, metadata))
        .map_err(|e| Error::format(path, format!("cannot encode: {e}")))
}

/// Loads a theta file; see [`ThetaFile::load`].
pub fn load(path: impl AsRef<Path>) -> Result<ThetaFile> {
    ThetaFile::load(path)
}

/// Loads theta for `lopt`.
///
/// # Errors
/// Those of [`ThetaFile::load`], and [`Error::Format`] that describes both architectures if the
/// file belongs to another.
pub fn load_for(path: impl AsRef<Path>, lopt: &dyn LearnedOptimizer<f32>) -> Result<Vec<f32>> {
    let path = path.as_ref();
    let file = ThetaFile::load(path)?;
    file.theta_for(lopt).map_err(|e| Error::format(path, e.to_string()))?;
    Ok(file.theta)
}

/// `b [5], w [4, 3]`.
fn describe(layout: &Layout) -> String {
    let tensors: Vec<String> = layout.entries().iter().map(|e| format!("{} {:?}", e.name, e.shape)).collect();
    tensors.join(", ")
}

fn parse(bytes: &[u8]) -> std::result::Result<ThetaFile, String> {
    let broken = |e: &dyn std::fmt::Display| format!("not a whole safetensors file: {e}");
    let (_, info) = SafeTensors::read_metadata(bytes).map_err(|e| broken(&e))?;
    let json = info.metadata().as_ref().and_then(|m| m.get(ENTRY)).ok_or_else(|| {
        format!("a safetensors file, but not a theta file: expected the metadata entry `{ENTRY}`")
    })?;
    // The version alone first: a newer format may have other fields.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let entry = |e: serde_json::Error| format!("metadata entry `{ENTRY}`: {e}");
    let Version { format } = serde_json::from_str(json).map_err(entry)?;
    if format > VERSION {
        return Err(format!(
            "theta format version {format}, but this build reads version {VERSION}: upgrade outerloop"
        ));
    }
    let header: Header = serde_json::from_str(json).map_err(entry)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| broken(&e))?;
    if tensors.len() != header.tensors.len() {
        return Err(format!("expected {} tensors, got {}", header.tensors.len(), tensors.len()));
    }
    let (mut layout, mut theta) = (Layout::default(), Vec::new());
    for name in &header.tensors {
        let tensor = tensors.tensor(name).map_err(|_| format!("expected a tensor `{name}`, got none"))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("tensor `{name}`: expected F32, got {:?}", tensor.dtype()));
        }
        if layout.get(name).is_some() {
            return Err(format!("metadata entry `{ENTRY}` lists `{name}` twice"));
        }
        layout.push(name, tensor.shape());
        // The data may be unaligned: no cast.
        theta.extend(tensor.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])));
    }
    let file = ThetaFile {
        architecture: header.architecture.clone(),
        layout: Arc::new(layout),
        theta,
        metadata: header.metadata.clone(),
    };
    let computed = checksum(&header, &file).map_err(|e| e.to_string())?;
    if computed != header.xxh3 || header.format != VERSION {
        return Err(format!("corrupt: the checksum is {computed}, expected {}", header.xxh3));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::{contract::awkward_layout, Key, Optimizer};
    use proptest::prelude::*;

    #[test]
    fn parameters_are_plain_safetensors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("params.safetensors");
        let layout = awkward_layout();
        let mut params = Params::zeros(layout.clone());
        Key::new(0).fill_normal(&mut params.data);
        save_params(&path, &params).unwrap();
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.names().len(), layout.entries().len());
        for e in layout.entries() {
            let tensor = file.tensor(&e.name).unwrap();
            let want: Vec<u8> = params.data[e.range()].iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!((tensor.shape(), tensor.data()), (&e.shape[..], &want[..]), "{}", e.name);
        }
    }

    struct Fake {
        name: &'static str,
        layout: Arc<Layout>,
    }

    impl LearnedOptimizer<f32> for Fake {
        fn name(&self) -> String {
            self.name.into()
        }
        fn architecture(&self) -> String {
            format!("{}(hidden=32)", self.name)
        }
        fn theta_layout(&self) -> Arc<Layout> {
            self.layout.clone()
        }
        fn init(&self, key: Key) -> Vec<f32> {
            let mut theta = vec![0.0; self.layout.len()];
            key.fill_normal(&mut theta);
            theta
        }
        fn opt_fn(&self, _: &[f32]) -> Box<dyn Optimizer<f32>> {
            unreachable!("no test trains")
        }
    }

    fn fake() -> Fake {
        // `b` after `w`: neither sorted by name nor in safetensors' own order.
        let mut layout = Layout::new([("w", vec![2, 3]), ("b", vec![3])]);
        for e in awkward_layout().entries() {
            layout.push(format!("awkward/{}", e.name), e.shape.clone());
        }
        Fake { name: "fake", layout: Arc::new(layout) }
    }

    fn provenance() -> BTreeMap<String, String> {
        [("task", "digits"), ("seed", "7"), ("note", "\"é\" \\ \n")]
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .into()
    }

    fn saved() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theta.safetensors");
        save(&path, &fake(), &fake().init(Key::new(1)), provenance()).unwrap();
        (dir, path)
    }

    #[test]
    fn a_saved_theta_comes_back_with_everything() {
        let (_dir, path) = saved();
        let file = load(&path).unwrap();
        assert_eq!(file, ThetaFile::new(&fake(), &fake().init(Key::new(1)), provenance()).unwrap());
        assert_eq!(load_for(&path, &fake()).unwrap(), fake().init(Key::new(1)));
        assert!(save(&path, &fake(), &[0.0; 3], BTreeMap::new()).is_err());
    }

    #[test]
    fn the_same_theta_gives_the_same_bytes() {
        let (_a, a) = saved();
        let (_b, b) = saved();
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
    }

    #[test]
    fn another_architecture_is_refused_with_both_described() {
        let (_dir, path) = saved();
        let other = Fake { name: "other", ..fake() };
        let message = load_for(&path, &other).unwrap_err().to_string();
        let want = "theta's architecture: expected other(hidden=32), got fake(hidden=32)";
        assert_eq!(message, format!("{}: {want}", path.display()));
        let wider = Fake { layout: Arc::new(Layout::new([("w", vec![2, 4])])), ..fake() };
        let message = load_for(&path, &wider).unwrap_err().to_string();
        assert!(message.contains("expected w [2, 4], got w [2, 3], b [3], "), "{message}");
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let (_dir, path) = saved();
        let good = fs::read(&path).unwrap();
        let want = parse(&good).unwrap();
        for n in 0..good.len() {
            assert!(parse(&good[..n]).is_err(), "{n} bytes are accepted");
        }
        assert!(parse(&[&good[..], b"x"].concat()).is_err());
        let mut bad = good.clone();
        for i in 0..8 * good.len() {
            bad[i / 8] ^= 1 << (i % 8);
            if let Ok(file) = parse(&bad) {
                panic!("bit {} of byte {} is accepted, same content: {}", i % 8, i / 8, file == want);
            }
            bad[i / 8] = good[i / 8];
        }
    }

    #[test]
    fn foreign_and_newer_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theta");
        assert!(matches!(load(&path), Err(Error::Io { .. })));
        let message = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            load(&path).unwrap_err().to_string()
        };
        assert!(message(b"PK\x03\x04 a zip file").contains("not a whole safetensors file"));
        let none: Vec<(&str, TensorView)> = Vec::new();
        let with = |json: Option<&str>| {
            let metadata = json.map(|j| HashMap::from([(ENTRY.to_string(), j.to_string())]));
            safetensors::serialize(none.clone(), metadata).unwrap()
        };
        assert!(message(&with(None)).contains("expected the metadata entry `outerloop`"));
        assert!(message(&with(Some("{}"))).contains("missing field `format`"));
        assert!(message(&with(Some(r#"{"format":2,"new":1}"#)))
            .contains("theta format version 2, but this build reads version 1: upgrade outerloop"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        #[test]
        fn round_trip_keeps_every_bit(
            architecture in ".*",
            names in prop::collection::btree_set("[^_].{0,8}", 0..5),
            shape in prop::collection::vec(0..4usize, 0..4),
            bits in prop::collection::vec(any::<u32>(), 64),
            metadata: BTreeMap<String, String>,
        ) {
            let layout = Layout::new(names.into_iter().rev().map(|n| (n, shape.clone())));
            let theta: Vec<f32> =
                (0..layout.len()).map(|i| f32::from_bits(bits[i % 64].rotate_left(i as u32 / 64))).collect();
            let file = ThetaFile { architecture, layout: Arc::new(layout), theta, metadata };
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("theta");
            file.save(&path).unwrap();
            let back = load(&path).unwrap();
            let bits = |f: &ThetaFile| f.theta.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(&file));
            prop_assert_eq!(&back.layout, &file.layout);
            prop_assert_eq!((back.architecture, back.metadata), (file.architecture, file.metadata));
        }
    }
}
