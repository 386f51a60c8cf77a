//! Published weights under the names that other libraries give them.

mod flax;
mod float_type;
mod format;
mod numpy;
mod tensors;

use super::describe;
use format::{Array, MAX_BYTES};
use outerloop_core::{Entry, Error, Layout, LearnedOptimizer, Result};
use std::{collections::BTreeMap, fs, path::Path};

/// The offsets of the decays of muLO's published weights; PyLO has them as defaults of its
/// `AdafacLO`, not in the weights' file.
pub const MULO_DECAYS: [(&str, &[f32]); 3] = [
    ("momentum_decays", &[0.15216392, 0.14245212, 0.06812963]),
    ("rms_decays", &[0.01079706]),
    ("adafactor_decays", &[0.18621896, -0.10864615, -0.06185547]),
];

/// Arrays from files of other libraries, to be read as theta.
///
/// | format, recognized by its first bytes | of | names |
/// |---|---|---|
/// | safetensors | PyLO, our own theta files | as they stand there |
/// | flax's msgpack, `.state` | learned_optimization, amoudgl/celo | levels joined with `/` |
/// | NumPy's `.npz` and `.npy` | anything | as in the archive; of an `.npy` the file's |
///
/// | naming | of |
/// |---|---|
/// | haiku (learned_optimization, amoudgl/celo): theta's own names | all |
/// | PyLO `MetaMLP`: `network.input`, `network.linear_{i}`, `network.output` with `.weight` `[out, in]` and `.bias`; decays apart ([`MULO_DECAYS`]) | [`crate::AdafacMlp`] |
/// | PyLO `VeLOMLP`: `input_weights_` `[sets, out, in]`, `hidden_weights_.{i}`, `output_weights_`, `input_bias_`, ...; `VeLORNN`: `lstm.linear`, `mix_layer1`, `mix_layer2`, `final_mix_layer`, `rnn_to_controls`, `step_size`, `lstm_init_state.{0,1}` | [`crate::Velo`] |
/// | PyLO `CELO2MLP`: `w0.{j}` `[in, out]`, `b0`, `dense_w.{i}`, `dense_b.{i}`; and `.../w0__{j}`, `.../w{i}`, `.../b{i}` under any module name | [`crate::Celo2`], [`crate::Celo2Published`] |
///
/// `module.` and `_orig_mod.` in a name, left there by torch's `DataParallel` and `compile` around the
/// whole or a part, do not count. Every array must be used, except `VeLOMLP`'s last mixed weights,
/// which are no part of theta.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    arrays: BTreeMap<String, Array>,
}

/// Where a tensor of theta comes from.
struct Source {
    name: String,
    form: Form,
}

/// How the source stores it.
enum Form {
    /// As theta.
    Same,
    /// As torch's `Linear` of `inputs` inputs, `[.., out, in]`: columns from `start`.
    Linear { start: usize, inputs: usize },
}

/// Reads theta of `lopt` from a file of another library; see [`Import`].
///
/// # Errors
/// [`Error::Io`], [`Error::Format`], and [`Error::Mismatch`] with the expected and the found arrays.
pub fn import(path: impl AsRef<Path>, lopt: &dyn LearnedOptimizer<f32>) -> Result<Vec<f32>> {
    Import::default().file(path)?.theta_for(lopt)
}

impl Import {
    /// Adds the arrays of a file of at most 1 GiB: F64, F32, F16 or BF16, rounded to f32.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is of no known format, a part of one, or
    /// holds an array of a known name; the message names the array.
    pub fn file(self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let len = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if len > MAX_BYTES {
            return Err(Error::format(path, format!("expected at most {MAX_BYTES} bytes, got {len}")));
        }
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        self.bytes(&bytes, path)
    }

    /// [`Self::file`] of contents that are at hand, e.g. built into a program; `name` stands in errors.
    ///
    /// # Errors
    /// [`Error::Format`] as [`Self::file`].
    pub fn bytes(mut self, bytes: &[u8], name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        let wrong = |why: String| Error::format(name, why);
        let stem = name.file_stem().map(|s| s.to_string_lossy()).unwrap_or_default();
        for (array, content) in format::arrays(bytes, &stem).map_err(wrong)? {
            let array = unwrapped(&array);
            if self.arrays.insert(array.clone(), content).is_some() {
                return Err(wrong(format!("array `{array}` comes a second time")));
            }
        }
        Ok(self)
    }

    /// Adds or replaces a vector, such as those of [`MULO_DECAYS`].
    #[must_use]
    pub fn with(mut self, name: &str, data: &[f32]) -> Self {
        self.arrays.insert(name.into(), Array { shape: vec![data.len()], data: data.to_vec() });
        self
    }

    /// The arrays as theta of `lopt`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the expected and the found names or shapes.
    pub fn theta_for(&self, lopt: &dyn LearnedOptimizer<f32>) -> Result<Vec<f32>> {
        let layout = lopt.theta_layout();
        let own =
            layout.entries().iter().map(|e| Source { name: e.name.clone(), form: Form::Same }).collect();
        let mut namings: Vec<Vec<Source>> = vec![own];
        namings.extend(pylo(&lopt.name(), &layout));
        if lopt.name() == "Celo2" || lopt.name().starts_with("celo2.") {
            namings.extend(self.by_last_part(&layout));
        }
        let complete = |naming: &&Vec<Source>| naming.iter().all(|s| self.arrays.contains_key(&s.name));
        let used = |name: &String, naming: &[Source]| {
            naming.iter().any(|s| s.name == *name) || (lopt.name() == "Velo" && is_mixed(name))
        };
        let exact = |naming: &&Vec<Source>| self.arrays.keys().all(|name| used(name, naming));
        let Some(naming) = namings.iter().filter(complete).find(exact) else {
            let list = |naming: &Vec<Source>| {
                let mut names: Vec<&str> = naming.iter().map(|s| &s.name[..]).collect();
                names.dedup();
                names.join(", ")
            };
            let what = format!("arrays of {}", lopt.architecture());
            let found = Layout::new(self.arrays.iter().map(|(n, a)| (n.clone(), a.shape.clone())));
            let expected = namings.iter().map(list).collect::<Vec<_>>().join("; or ");
            return Err(Error::Mismatch { what, expected, got: describe(&found) });
        };
        let mut theta = Vec::with_capacity(layout.len());
        for (entry, source) in layout.entries().iter().zip(naming) {
            self.append(entry, source, &mut theta)?;
        }
        Ok(theta)
    }

    /// Theta's tensors by the last part of their names, whatever the module is called.
    fn by_last_part(&self, layout: &Layout) -> Option<Vec<Source>> {
        let last = |name: &str| name.rsplit('/').next().map(str::to_string);
        let find = |e: &Entry| {
            let mut named = self.arrays.keys().filter(|n| last(n) == last(&e.name));
            let name = named.next().filter(|_| named.next().is_none())?.clone();
            Some(Source { name, form: Form::Same })
        };
        layout.entries().iter().map(find).collect()
    }

    /// Appends one tensor of theta.
    fn append(&self, entry: &Entry, source: &Source, theta: &mut Vec<f32>) -> Result<()> {
        let array = &self.arrays[&source.name];
        let mut want = entry.shape.clone();
        if let (Form::Linear { inputs, .. }, [.., i, o]) = (&source.form, &mut want[..]) {
            (*i, *o) = (*o, *inputs);
        }
        if array.shape != want {
            let what = format!("shape of array `{}` (theta's `{}`)", source.name, entry.name);
            return Err(Error::mismatch(what, want, &array.shape));
        }
        match (&source.form, &entry.shape[..]) {
            (Form::Linear { start, inputs }, &[.., rows, outputs]) => {
                for matrix in array.data.chunks_exact(outputs * inputs) {
                    for i in *start..start + rows {
                        theta.extend((0..outputs).map(|o| matrix[o * inputs + i]));
                    }
                }
            }
            _ => theta.extend_from_slice(&array.data),
        }
        Ok(())
    }
}

/// The name without the parts that torch's wrappers of modules add.
fn unwrapped(name: &str) -> String {
    let parts = name.split('.').filter(|part| !matches!(*part, "module" | "_orig_mod"));
    parts.collect::<Vec<_>>().join(".")
}

/// The weights that `VeLOMLP` mixed last, registered beside the sets they are mixed from.
fn is_mixed(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name);
    let layer = ["input", "hidden", "output"].iter().find_map(|l| stem.strip_prefix(l));
    matches!(layer, Some("_weights" | "_bias"))
}

/// PyLO's names for theta's tensors, in their order.
fn pylo(class: &str, layout: &Layout) -> Option<Vec<Source>> {
    let entries = layout.entries();
    let count = |prefix: &str| entries.iter().filter(|e| e.name.starts_with(prefix)).count();
    let same = |name: String| Source { name, form: Form::Same };
    let linear = |name: String, e: &Entry| {
        let inputs = e.shape[e.shape.len() - 2];
        Source { name, form: Form::Linear { start: 0, inputs } }
    };
    // `w3` or `b3` under a module: its letter and number.
    let layer = |name: &str| {
        let (kind, number) = name.split_at_checked(1)?;
        Some((kind == "w", number.parse::<usize>().ok()?))
    };
    match class {
        "AdafacMlp" => {
            let last = count("nn/~/w").checked_sub(1)?;
            let source = |e: &Entry| {
                let Some((weight, i)) = e.name.strip_prefix("nn/~/").and_then(layer) else {
                    return Some(same(e.name.clone()));
                };
                let module = match i {
                    0 => "network.input".to_string(),
                    i if i == last => "network.output".to_string(),
                    i => format!("network.linear_{}", i - 1),
                };
                Some(match weight {
                    true => linear(format!("{module}.weight"), e),
                    false => same(format!("{module}.bias")),
                })
            };
            entries.iter().map(source).collect()
        }
        "Velo" => {
            let last = count("ff_mod_stack/~/b").checked_sub(1)?;
            let block = |j: usize| entries.iter().find(|e| e.name == format!("ff_mod_stack/~/w0__{j}"));
            let rows = |j: usize| block(j).map_or(0, |e| e.shape[1]);
            let blocks = count("ff_mod_stack/~/w0__");
            let source = |e: &Entry| velo_source(e, last, blocks, &rows, &layer);
            entries.iter().map(source).collect()
        }
        class if class == "Celo2" || class.starts_with("celo2.") => {
            let source = |e: &Entry| {
                let name = e.name.rsplit('/').next()?;
                Some(same(match (name.strip_prefix("w0__"), layer(name)) {
                    (Some(j), _) => format!("w0.{j}"),
                    (None, Some((false, 0))) => "b0".into(),
                    (None, Some((weight, i))) => {
                        format!("dense_{}.{}", if weight { "w" } else { "b" }, i - 1)
                    }
                    (None, None) => return None,
                }))
            };
            entries.iter().map(source).collect()
        }
        _ => None,
    }
}

/// The two networks of PyLO's VeLO; `rows(j)` is the size of input block j of `blocks`.
fn velo_source(
    e: &Entry,
    last: usize,
    blocks: usize,
    rows: &dyn Fn(usize) -> usize,
    layer: &dyn Fn(&str) -> Option<(bool, usize)>,
) -> Option<Source> {
    const MODULES: [(&str, &str); 6] = [
        ("rnn_params/linear/", "mix_layer1"),
        ("rnn_params/linear_1/", "mix_layer2"),
        ("rnn_params/linear_2/", "final_mix_layer"),
        ("rnn_params/rnn/linear/", "lstm.linear"),
        ("rnn_params/rnn_to_controls/", "rnn_to_controls"),
        ("rnn_params/step_size/", "step_size"),
    ];
    let same = |name: String| Some(Source { name, form: Form::Same });
    let linear = |name: String, start, inputs| Some(Source { name, form: Form::Linear { start, inputs } });
    if let Some(stack) = e.name.strip_prefix("ff_mod_stack/~/") {
        if let Some(j) = stack.strip_prefix("w0__") {
            let j = j.parse().ok()?;
            return linear("input_weights_".into(), (0..j).map(rows).sum(), (0..blocks).map(rows).sum());
        }
        let (weight, i) = layer(stack)?;
        let kind = if weight { "weights_" } else { "bias_" };
        let name = match i {
            0 => format!("input_{kind}"),
            i if i == last => format!("output_{kind}"),
            i => format!("hidden_{kind}.{}", i - 1),
        };
        return if weight { linear(name, 0, e.shape[1]) } else { same(name) };
    }
    match e.name.strip_prefix("lstm_init_state/") {
        Some("hidden") => same("lstm_init_state.0".into()),
        Some("cell") => same("lstm_init_state.1".into()),
        _ => MODULES.iter().find_map(|(ours, theirs)| match e.name.strip_prefix(ours)? {
            "w" => linear(format!("{theirs}.weight"), 0, e.shape[0]),
            _ => same(format!("{theirs}.bias")),
        }),
    }
}

#[cfg(test)]
#[path = "import/tests.rs"]
mod hostile;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdafacMlp, Celo2, MlpLopt, Velo};
    use outerloop_core::Key;
    use safetensors::{tensor::TensorView, Dtype};

    /// A file of arrays whose elements count up from 1000 times the array's number.
    fn write(dir: &tempfile::TempDir, file: &str, arrays: &[(&str, &[usize])]) -> std::path::PathBuf {
        let path = dir.path().join(file);
        let bytes = |i: usize, shape: &[usize]| -> Vec<u8> {
            (0..shape.iter().product()).flat_map(|k: usize| ((1000 * i + k) as f32).to_le_bytes()).collect()
        };
        let data: Vec<Vec<u8>> = arrays.iter().enumerate().map(|(i, (_, shape))| bytes(i, shape)).collect();
        let views = arrays.iter().zip(&data).map(|((name, shape), data)| {
            (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap())
        });
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn tensor<'a>(lopt: &dyn LearnedOptimizer<f32>, theta: &'a [f32], name: &str) -> &'a [f32] {
        &theta[lopt.theta_layout().entry(name).unwrap().range()]
    }

    /// Names and shapes as `MetaMLP(39, 32, 1).state_dict()` lists them.
    const META_MLP: [(&str, &[usize]); 6] = [
        ("network.input.weight", &[32, 39]),
        ("network.input.bias", &[32]),
        ("network.linear_0.weight", &[32, 32]),
        ("network.linear_0.bias", &[32]),
        ("network.output.weight", &[2, 32]),
        ("network.output.bias", &[2]),
    ];

    #[test]
    fn pylos_small_fc_is_transposed_and_takes_its_decays() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(&dir, "mulo", &META_MLP);
        let lopt = AdafacMlp { hidden_size: 32, ..AdafacMlp::default() };
        let whole = MULO_DECAYS
            .iter()
            .fold(Import::default().file(&path).unwrap(), |i, (name, decays)| i.with(name, decays));
        let theta = whole.theta_for(&lopt).unwrap();
        // Weight [out, in] at (o, i) is at o·in + i.
        let (w0, w1) = (tensor(&lopt, &theta, "nn/~/w0"), tensor(&lopt, &theta, "nn/~/w1"));
        assert_eq!((w0[0], w0[1], w0[32]), (0.0, 39.0, 1.0));
        assert_eq!((w1[1], w1[32]), (2032.0, 2001.0));
        assert_eq!(tensor(&lopt, &theta, "nn/~/w2")[1], 4032.0);
        assert_eq!(tensor(&lopt, &theta, "nn/~/b2"), [5000.0, 5001.0]);
        assert_eq!(tensor(&lopt, &theta, "rms_decays"), [0.01079706]);
        // Without the decays, or with another size, both sides are named.
        let message = import(&path, &lopt).unwrap_err().to_string();
        assert!(message.contains("momentum_decays") && message.contains("network.linear_0.weight [32, 32]"));
        let message = whole.theta_for(&AdafacMlp::default()).unwrap_err().to_string();
        assert!(
            message.contains("network.input.bias") && message.contains("expected [4], got [32]"),
            "{message}"
        );
        assert!(whole.theta_for(&MlpLopt::default()).is_err());
        // A deeper network's file is not a shallower one's.
        let deeper = whole.with("network.linear_1.bias", &[0.0; 32]);
        assert!(deeper.theta_for(&lopt).is_err());
    }

    #[test]
    fn pylos_velo_comes_from_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let lopt = Velo { lstm_hidden_size: 8, param_inits: 3, ..Velo::default() };
        let mlp = write(
            &dir,
            "mlp",
            &[
                ("input_weights_", &[3, 4, 30]),
                ("input_bias_", &[3, 4]),
                ("output_weights_", &[3, 3, 4]),
                ("output_bias_", &[3, 3]),
                ("input_weights", &[4, 30]),
                ("input_bias", &[4]),
                ("output_weights", &[3, 4]),
                ("output_bias", &[3]),
                ("hidden_weights_.0", &[3, 4, 4]),
                ("hidden_bias_.0", &[3, 4]),
                ("hidden_weights.0", &[4, 4]),
                ("hidden_bias.0", &[4]),
            ],
        );
        let rnn = write(
            &dir,
            "rnn",
            &[
                ("mix_layer1.weight", &[8, 30]),
                ("mix_layer1.bias", &[8]),
                ("mix_layer2.weight", &[8, 30]),
                ("mix_layer2.bias", &[8]),
                ("final_mix_layer.weight", &[8, 30]),
                ("final_mix_layer.bias", &[8]),
                ("lstm.linear.weight", &[32, 16]),
                ("lstm.linear.bias", &[32]),
                ("rnn_to_controls.weight", &[3, 8]),
                ("rnn_to_controls.bias", &[3]),
                ("step_size.weight", &[1, 8]),
                ("step_size.bias", &[1]),
                ("lstm_init_state.0", &[1, 8]),
                ("lstm_init_state.1", &[1, 8]),
            ],
        );
        let theta = Import::default().file(&mlp).unwrap().file(&rnn).unwrap().theta_for(&lopt).unwrap();
        let at = |name: &str| tensor(&lopt, &theta, name);
        // Block 3 holds inputs 3, 4 and 5 of 30; set 1 begins at 120.
        let block = at("ff_mod_stack/~/w0__3");
        assert_eq!((block[0], block[1], block[4], block[12]), (3.0, 33.0, 4.0, 123.0));
        assert_eq!(at("ff_mod_stack/~/w1")[1], 8004.0);
        assert_eq!(at("ff_mod_stack/~/w2")[1], 2004.0);
        assert_eq!(at("ff_mod_stack/~/b1")[5], 9005.0);
        assert_eq!(at("rnn_params/linear_2/w")[1], 4030.0);
        assert_eq!(at("rnn_params/rnn/linear/w")[1], 6016.0);
        assert_eq!(at("lstm_init_state/cell")[7], 13007.0);
        assert!(import(&mlp, &lopt).unwrap_err().to_string().contains("lstm.linear.weight"));
        assert!(Import::default().file(&mlp).unwrap().file(&mlp).is_err());
    }

    #[test]
    fn celo2_loads_from_pylo_and_from_haiku() {
        let dir = tempfile::tempdir().unwrap();
        let lopt = Celo2::default();
        let dims = [1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3];
        let arrays = |block: &str, rest: [&'static str; 5]| {
            let blocks = dims.iter().enumerate().map(|(j, d)| (format!("{block}{j}"), vec![*d, 8]));
            let shapes = [vec![8], vec![8, 8], vec![8], vec![8, 3], vec![3]];
            let rest = rest.iter().zip(shapes).map(|(n, s)| (n.to_string(), s));
            blocks.chain(rest).collect::<Vec<_>>()
        };
        let load = |file: &str, arrays: Vec<(String, Vec<usize>)>| {
            let arrays: Vec<(&str, &[usize])> = arrays.iter().map(|(n, s)| (&n[..], &s[..])).collect();
            import(write(&dir, file, &arrays), &lopt).unwrap()
        };
        let torch = load("torch", arrays("w0.", ["b0", "dense_w.0", "dense_b.0", "dense_w.1", "dense_b.1"]));
        assert_eq!(tensor(&lopt, &torch, "ff_mod/~/w0__3")[9], 3009.0);
        assert_eq!(tensor(&lopt, &torch, "ff_mod/~/w2")[4], 17004.0);
        let rest = ["ff_mod_stack/~/b0", "ff_mod_stack/~/w1", "ff_mod_stack/~/b1", "ff_mod_stack/~/w2"];
        let rest = [rest[0], rest[1], rest[2], rest[3], "ff_mod_stack/~/b2"];
        assert_eq!(load("haiku", arrays("ff_mod_stack/~/w0__", rest)), torch);
    }

    /// A file of one array per name and dtype, with these bytes.
    fn write_bytes(path: &Path, arrays: &[(&str, Dtype, &[u8])]) {
        let views = arrays.iter().map(|(name, dtype, bytes)| {
            let len = 8 * bytes.len() / dtype.bitsize();
            (name.to_string(), TensorView::new(*dtype, vec![len], bytes).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    #[test]
    fn half_precision_is_read_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("halves");
        let bytes = |bits: &[u16]| bits.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<u8>>();
        // IEEE 754: 1, -2, the nearest to 1/3, largest, smallest normal, smallest, -0, infinite, NaN.
        let f16 = bytes(&[0x3c00, 0xc000, 0x3555, 0x7bff, 0x0400, 0x0001, 0x8000, 0xfc00, 0x7e01]);
        let bf16 = bytes(&[0x3f80, 0xc000, 0x3eab, 0x7f7f, 0x0080, 0x0001, 0x8000, 0xff80, 0x7fc1]);
        let f64: Vec<u8> = [0.1f64, -1e300].iter().flat_map(|x| x.to_le_bytes()).collect();
        write_bytes(&path, &[("h", Dtype::F16, &f16), ("b", Dtype::BF16, &bf16), ("d", Dtype::F64, &f64)]);
        let arrays = Import::default().file(&path).unwrap().arrays;
        let bits = |name: &str| arrays[name].data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let want =
            [1.0f32, -2.0, 0.333_251_95, 65504.0, 6.103_515_6e-5, 5.960_464_5e-8, -0.0, f32::NEG_INFINITY];
        assert_eq!(bits("h")[..8], want.map(f32::to_bits));
        let want = [1.0f32, -2.0, 0.333_984_38, 3.389_531_4e38, 1.175_494_4e-38, 9.183_55e-41, -0.0];
        assert_eq!(bits("b")[..7], want.map(f32::to_bits));
        assert!(arrays["h"].data[8].is_nan() && arrays["b"].data[8].is_nan());
        assert_eq!(arrays["d"].data, [0.1, f32::NEG_INFINITY]);
        write_bytes(&path, &[("i", Dtype::I64, &[0; 8])]);
        let error = Import::default().file(&path).unwrap_err().to_string();
        assert!(error.ends_with("array `i`: expected F64, F32, F16 or BF16, got I64"), "{error}");
    }

    #[test]
    fn names_are_read_without_torchs_wrappers() {
        let dir = tempfile::tempdir().unwrap();
        let lopt = AdafacMlp { hidden_size: 32, ..AdafacMlp::default() };
        let load = |file: &str, rename: &dyn Fn(&str) -> String| {
            let names = META_MLP.map(|(name, shape)| (rename(name), shape));
            let arrays: Vec<(&str, &[usize])> = names.iter().map(|(n, s)| (&n[..], *s)).collect();
            Import::default().file(write(&dir, file, &arrays))
        };
        let theta = |import: Import| {
            MULO_DECAYS
                .iter()
                .fold(import, |i, (name, decays)| i.with(name, decays))
                .theta_for(&lopt)
                .unwrap()
        };
        let want = theta(load("plain", &str::to_string).unwrap());
        for (i, prefix) in
            ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
                .iter()
                .enumerate()
        {
            let import = load(&format!("wrapped{i}"), &|name| format!("{prefix}{name}")).unwrap();
            assert_eq!(theta(import), want, "{prefix}");
        }
        // A part that was compiled on its own.
        let inside = load("inside", &|name| name.replace("network.", "network._orig_mod.")).unwrap();
        assert_eq!(theta(inside), want);
        // The wrapped and the bare module in one file.
        let twice = write(&dir, "twice", &[("module.a", &[1]), ("a", &[1])]);
        let error = Import::default().file(twice).unwrap_err().to_string();
        assert!(error.ends_with("array `a` comes a second time"), "{error}");
    }

    #[test]
    fn haiku_names_are_our_own() {
        let dir = tempfile::tempdir().unwrap();
        let lopt = MlpLopt { hidden_size: 4, ..MlpLopt::default() };
        let theta = LearnedOptimizer::<f32>::init(&lopt, Key::new(1));
        let path = dir.path().join("theta");
        crate::theta::save(&path, &lopt, &theta, Default::default()).unwrap();
        assert_eq!(import(&path, &lopt).unwrap(), theta);
        let wider = MlpLopt { hidden_size: 5, ..MlpLopt::default() };
        assert!(matches!(import(&path, &wider), Err(Error::Mismatch { .. })));
    }
}
