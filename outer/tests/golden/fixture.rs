//! Reading cases and comparing numbers.

use outerloop_core::{Device, Float, Layout, Params};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where tasks of kind D compute: what `OUTERLOOP_DEVICE` says, else the CPU.
pub fn device() -> Device {
    let name = std::env::var("OUTERLOOP_DEVICE").ok();
    name.map_or(Device::Cpu, |name| name.parse().unwrap_or_else(|e| panic!("OUTERLOOP_DEVICE: {e}")))
}

/// One case file.
pub struct Case {
    pub path: PathBuf,
    /// Empty for safetensors files.
    pub json: Value,
}

impl Case {
    pub fn open(path: &Path) -> Self {
        let json = if path.extension().is_some_and(|e| e == "json") {
            let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        } else {
            Value::Null
        };
        Case { path: path.to_path_buf(), json }
    }
    pub fn get(&self, key: &str) -> &Value {
        get(&self.json, key)
    }
    /// `max_abs` of a gap entry: one, or the largest of a list.
    pub fn gap(&self, key: &str) -> f64 {
        fn largest(v: &Value) -> f64 {
            match v {
                Value::Array(a) => a.iter().map(largest).fold(0.0, f64::max),
                Value::Object(o) => o.get("max_abs").map_or(0.0, number),
                _ => 0.0,
            }
        }
        let gap = self.get("f32_vs_f64_gap");
        if key.is_empty() {
            largest(gap)
        } else {
            gap.get(key).map_or(0.0, largest)
        }
    }
}

pub fn get<'a>(v: &'a Value, key: &str) -> &'a Value {
    v.get(key).unwrap_or_else(|| panic!("the case has no `{key}`"))
}

pub fn array(v: &Value) -> &[Value] {
    v.as_array().map_or_else(|| panic!("expected a list, got {v}"), |a| &a[..])
}

/// A number; "nan", "inf" and "-inf" stand for themselves.
pub fn number(v: &Value) -> f64 {
    match v {
        Value::String(s) => s.parse().unwrap_or_else(|_| panic!("expected a number, got `{s}`")),
        v => v.as_f64().unwrap_or_else(|| panic!("expected a number, got {v}")),
    }
}

/// All numbers of nested lists, row major.
pub fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(a) => a.iter().flat_map(numbers).collect(),
        v => vec![number(v)],
    }
}

/// Inputs are f32 numbers printed with 9 digits: parse to f32 first, then widen.
pub fn inputs<E: Float>(v: &Value) -> Vec<E> {
    numbers(v).into_iter().map(|x| E::of(f64::from(x as f32))).collect()
}

pub fn shape(v: &Value) -> Vec<usize> {
    match v {
        Value::Array(a) => std::iter::once(a.len()).chain(a.first().map_or_else(Vec::new, shape)).collect(),
        _ => Vec::new(),
    }
}

/// The layout of a tree of arrays: leaves in sorted order. `drop` leading axes are left out.
pub fn tree_layout(tree: &Value, drop: usize) -> Arc<Layout> {
    let leaves = tree.as_object().unwrap_or_else(|| panic!("expected a tree, got {tree}"));
    let mut leaves: Vec<(&String, &Value)> = leaves.iter().collect();
    leaves.sort_by_key(|l| l.0);
    Arc::new(Layout::new(leaves.into_iter().map(|(name, v)| (name.clone(), shape(v)[drop..].to_vec()))))
}

/// The leaves of a tree in a layout's order.
pub fn flatten(tree: &Value, layout: &Layout) -> Vec<f64> {
    layout.entries().iter().flat_map(|e| numbers(get(tree, &e.name))).collect()
}

pub fn tree_inputs<E: Float>(tree: &Value, layout: &Layout) -> Vec<E> {
    layout.entries().iter().flat_map(|e| inputs(get(tree, &e.name))).collect()
}

/// Entry `lane` of every leaf of a tree with a leading lane axis.
pub fn tree_lane<E: Float>(tree: &Value, layout: &Layout, lane: usize) -> Vec<E> {
    layout.entries().iter().flat_map(|e| inputs(&array(get(tree, &e.name))[lane])).collect()
}

pub fn params<E: Float>(tree: &Value) -> Params<E> {
    let layout = tree_layout(tree, 0);
    Params { data: tree_inputs(tree, &layout), layout }
}

/// The largest ratio of error to tolerance seen in a case.
#[derive(Default)]
pub struct Errors {
    worst: f64,
    what: String,
    compared: usize,
}

impl Errors {
    /// `|got − want|` within `tolerance`; equal non-finite values pass.
    pub fn check(&mut self, what: &str, got: f64, want: f64, tolerance: f64) {
        self.compared += 1;
        let same = got == want || (got.is_nan() && want.is_nan());
        let ratio = if same { 0.0 } else { (got - want).abs() / tolerance };
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        if ratio > self.worst || self.what.is_empty() {
            self.worst = ratio;
            self.what = format!("{what}: got {got:.9e}, expected {want:.9e}");
        }
    }
    pub fn check_all<E: Float>(&mut self, what: &str, got: &[E], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len(), "{what}: number of elements");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            self.check(&format!("{what}[{i}]"), g.f64(), *w, tolerance);
        }
    }
    /// Leaf by leaf, relative to the leaf's largest magnitude.
    pub fn check_tree<E: Float>(
        &mut self,
        what: &str,
        got: &[E],
        want: &[f64],
        layout: &Layout,
        relative: f64,
    ) {
        assert_eq!(got.len(), want.len(), "{what}: number of elements");
        for e in layout.entries() {
            let largest = magnitude(&want[e.range()]);
            let name = format!("{what} {}", e.name);
            self.check_all(&name, &got[e.range()], &want[e.range()], relative * largest.max(1e-30));
        }
    }
    pub fn done(self) -> Outcome {
        Outcome::Checked { worst: self.worst, what: self.what, compared: self.compared }
    }
}

pub fn magnitude(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |a, b| a.max(b.abs()))
}

/// The tolerance of an f32 implementation: ten observed gaps, at least 2e-6 of the largest magnitude.
pub fn f32_tolerance(gap: f64, want: &[f64]) -> f64 {
    (10.0 * gap).max(2e-6 * magnitude(want))
}

pub enum Outcome {
    Checked { worst: f64, what: String, compared: usize },
    Skipped(String),
    Failed(String),
}

impl Outcome {
    pub fn skip(why: &str) -> Self {
        Outcome::Skipped(why.into())
    }
    pub fn fail(why: impl fmt::Display) -> Self {
        Outcome::Failed(why.to_string())
    }
    pub fn passed(&self) -> bool {
        matches!(self, Outcome::Checked { worst, compared, .. } if *worst <= 1.0 && *compared > 0)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Skipped(why) => write!(f, "skipped: {why}"),
            Outcome::Failed(why) => write!(f, "FAILED: {why}"),
            Outcome::Checked { worst, what, compared } => {
                let verdict = if self.passed() { "ok" } else { "FAILED" };
                write!(f, "{verdict:<7} largest error {worst:.2e} of the tolerance ({compared} numbers")?;
                if self.passed() {
                    write!(f, ")")
                } else {
                    write!(f, "; worst: {what})")
                }
            }
        }
    }
}
