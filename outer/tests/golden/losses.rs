//! Kind D: losses, gradients and Hessian-vector products of tasks, and what their normalizers return.

use crate::fixture::{
    device, f32_tolerance, get, inputs, magnitude, number, numbers, tree_inputs, tree_layout, Case, Errors,
    Outcome,
};
use crate::images::{self, ImageTask};
use crate::models::TextModel;
use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{AnyDevice, BatchKey, FlatTask, Float, Key, Layout, Task, Typed};
use outerloop_tasks::data::{ImageData, Splits};
use outerloop_tasks::image::{
    AutoencoderConfig, AutoencoderTask, ConvConfig, ConvTask, ImageLoss, MlpConfig, MlpTask,
};
use outerloop_tasks::quadratics::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::sync::Arc;

/// Loss, gradient and Hessian times `v`, widened.
struct Derivatives {
    loss: f64,
    grad: Vec<f64>,
    hvp: Vec<f64>,
}

fn cast<A: Float, B: Float>(x: &[A]) -> Vec<B> {
    x.iter().map(|x| B::of(x.f64())).collect()
}

/// By the evaluator that training uses.
fn evaluate<E: Float>(task: &dyn FlatTask<E>, params: &[f64], v: &[f64]) -> Derivatives {
    let (params, v) = (cast::<_, E>(params), cast::<_, E>(v));
    let (mut grad, mut hvp) = (params.clone(), params.clone());
    let at = BatchKey::train(0, Key::new(0));
    let mut evaluator = task.evaluator();
    let mut loss = evaluator.loss_grad_hvp(&params, &[], at, &v, &mut grad, &mut hvp);
    if !task.device().is_cpu() {
        // With a product it is the host's.
        loss = evaluator.loss_and_grad(&params, &mut [], at, &mut grad);
    }
    Derivatives { loss: loss.f64(), grad: cast(&grad), hvp: cast(&hvp) }
}

/// By the closed form, on an explicit batch.
fn evaluate_on<E: Float, T: Task<E, Cpu>>(
    task: &T,
    batch: &T::Batch,
    params: &[f64],
    v: &[f64],
) -> Derivatives
where
    Cpu: Host<E>,
{
    let (params, v) = (cast::<_, E>(params), cast::<_, E>(v));
    let (mut grad, mut hvp) = (params.clone(), params.clone());
    let loss = task.closed_form(&params, batch, Some(&mut grad)).expect("quadratics have closed forms");
    assert!(task.hvp(&params, batch, &v, &mut hvp), "quadratics have Hessians");
    Derivatives { loss: loss.f64(), grad: cast(&grad), hvp: cast(&hvp) }
}

/// The reference's numbers, and its own distance between f32 and f64.
struct Reference {
    loss: f64,
    grad: Vec<f64>,
    hvp: Vec<f64>,
    loss_gap: f64,
    grad_gap: f64,
    hvp_gap: f64,
}

impl Reference {
    /// f64 to 1e-9 of a leaf's largest magnitude. A leaf whose true derivative is zero (the key bias of
    /// attention) holds rounding noise only: no leaf is held to less than 1e-15 of the whole.
    fn check_f64(&self, errors: &mut Errors, what: &str, got: &Derivatives, layout: &Layout) {
        errors.check(&format!("{what} f64 loss"), got.loss, self.loss, 1e-9 * self.loss.abs());
        for (name, got, want) in [("gradient", &got.grad, &self.grad), ("Hv", &got.hvp, &self.hvp)] {
            assert_eq!(got.len(), want.len(), "{what} {name}: number of elements");
            let least = 1e-6 * magnitude(want);
            for e in layout.entries() {
                let (got, want) = (&got[e.range()], &want[e.range()]);
                let tolerance = 1e-9 * magnitude(want).max(least);
                errors.check_all(&format!("{what} f64 {name} {}", e.name), got, want, tolerance);
            }
        }
    }
    /// f32 to ten times the reference's own distance from f64, at least 2e-6 of the largest magnitude.
    fn check_f32(&self, errors: &mut Errors, what: &str, got: &Derivatives) {
        let tolerance = (1e-6 * self.loss.abs()).max(10.0 * self.loss_gap);
        errors.check(&format!("{what} f32 loss"), got.loss, self.loss, tolerance);
        let tolerance = f32_tolerance(self.grad_gap, &self.grad);
        errors.check_all(&format!("{what} f32 gradient"), &got.grad, &self.grad, tolerance);
        let tolerance = f32_tolerance(self.hvp_gap, &self.hvp);
        errors.check_all(&format!("{what} f32 Hv"), &got.hvp, &self.hvp, tolerance);
    }
}

/// A tensor of a file, widened to f64, and its shape.
pub fn read(file: &SafeTensors<'_>, name: &str) -> Option<(Vec<f64>, Vec<usize>)> {
    let view = file.tensor(name).ok()?;
    let bytes = view.data();
    let fixed = "chunks have this length";
    let data = match view.dtype() {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect(fixed)).into()).collect()
        }
        Dtype::I32 => {
            bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect(fixed)).into()).collect()
        }
        Dtype::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect(fixed))).collect(),
        other => panic!("{name}: {other:?}"),
    };
    Some((data, view.shape().to_vec()))
}

/// Models on images and on text.
pub fn task(case: &Case) -> Outcome {
    let bytes = std::fs::read(&case.path).expect("the case is readable");
    let file = SafeTensors::deserialize(&bytes).expect("the case is a safetensors file");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("the case is a safetensors file");
    let text = |key: &str| header.metadata().as_ref().and_then(|m| m.get(key)).map_or("", String::as_str);
    let gaps: Value = serde_json::from_str(text("f32_vs_f64_gap")).unwrap_or_default();
    let gap = |key: &str| gaps.get(key).map_or(0.0, |g| number(get(g, "max_abs")));

    let tensor = |name: &str| read(&file, name).unwrap_or_else(|| panic!("the case has no `{name}`")).0;
    // `names`: the file's, in the order of the task's parameters.
    let check = |task: &Both, names: &[String]| {
        let flat = |group: &str| -> Vec<f64> {
            names.iter().flat_map(|n| tensor(&format!("{group}/{n}"))).collect()
        };
        let want = Reference {
            loss: tensor("loss_f64")[0],
            grad: flat("grad_f64"),
            hvp: flat("hvp_f64"),
            loss_gap: 0.0,
            grad_gap: gap("grad"),
            hvp_gap: gap("hvp"),
        };
        let (params, v) = (flat("params"), flat("direction"));
        let mut errors = Errors::default();
        want.check_f64(&mut errors, "", &evaluate(&*task.1, &params, &v), &task.1.layout());
        want.check_f32(&mut errors, "", &evaluate(&*task.0, &params, &v));
        errors.done()
    };
    let description = text("description");
    if file.tensor("batch/obs").is_ok() {
        let Some(model) = TextModel::of(&file, description) else {
            return Outcome::skip("this language model is not built");
        };
        let names: Vec<String> = model.layout().entries().iter().map(|e| e.name.clone()).collect();
        return check(&both(model), &names);
    }
    let indices: Vec<usize> = serde_json::from_str(text("digits_index")).unwrap_or_default();
    match images::task(&file, description, &indices) {
        None => Outcome::skip("this image model is not built"),
        Some((ImageTask::Mlp(task), names)) => check(&both(task), &names),
        Some((ImageTask::Conv(task), names)) => check(&both(task), &names),
        Some((ImageTask::Autoencoder(task), names)) => check(&both(task), &names),
    }
}

/// A task in f32 and in f64.
type Both = (Arc<dyn FlatTask<f32>>, Arc<dyn FlatTask<f64>>);

fn both<T: AnyDevice<f32> + AnyDevice<f64> + Clone>(task: T) -> Both {
    let on = "the device of OUTERLOOP_DEVICE";
    (Typed::on(task.clone(), device()).expect(on), Typed::on(task, device()).expect(on))
}

/// One entry of the file of quadratics.
fn quadratic<T>(errors: &mut Errors, name: &str, c: &Value, task: T, batch: Option<(T32<T>, T64<T>)>)
where
    T: Task<f32, Cpu> + Task<f64, Cpu>,
{
    // A tree, or one tensor.
    let tree = |key: &str| match get(c, key) {
        Value::Object(o) => Value::Object(o.clone()),
        x => serde_json::json!({ "x": x }),
    };
    let layout = tree_layout(&tree("params"), 0);
    let (params, v) = (
        tree_inputs(&tree("params"), &layout),
        match c.get("direction") {
            Some(_) => tree_inputs(&tree("direction"), &layout),
            None => vec![0.0; layout.len()],
        },
    );
    let (f32s, f64s) = match batch {
        Some((b32, b64)) => {
            (evaluate_on::<f32, T>(&task, &b32, &params, &v), evaluate_on::<f64, T>(&task, &b64, &params, &v))
        }
        None => {
            let task = Typed::new(task);
            (evaluate::<f32>(&task, &params, &v), evaluate::<f64>(&task, &params, &v))
        }
    };
    let leaves = |key: &str| crate::fixture::flatten(&tree(key), &layout);
    // With given noise the reference ran in f32 only.
    let exact = c.get("grad_f64").is_some();
    let (loss, grad) = if exact { ("loss_f64", "grad_f64") } else { ("loss_f32", "grad_f32") };
    let gap = |a: &[f64], b: &[f64]| magnitude(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
    let grad_f32 = leaves("grad_f32");
    let want = Reference {
        loss: number(get(c, loss)),
        grad: leaves(grad),
        hvp: if exact { leaves("hvp_f64") } else { f64s.hvp.clone() },
        loss_gap: (number(get(c, "loss_f32")) - number(get(c, loss))).abs(),
        grad_gap: gap(&grad_f32, &leaves(grad)),
        hvp_gap: 0.0,
    };
    if exact {
        want.check_f64(errors, name, &f64s, &layout);
    }
    want.check_f32(errors, name, &f32s);
}

type T32<T> = <T as Task<f32, Cpu>>::Batch;
type T64<T> = <T as Task<f64, Cpu>>::Batch;

pub fn quadratics(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let mut unknown = Vec::new();
    for (name, c) in case.json.as_object().expect("the cases have names") {
        let e = &mut errors;
        let list = |key: &str| inputs::<f64>(get(c, key));
        let dim = || list("params").len();
        let valid = "the case's numbers make a task";
        match name.split(['_', '.']).next().unwrap_or_default() {
            "QuadraticTask" => {
                quadratic(e, name, c, QuadraticTask::new(dim()), None);
                if dim() == 10 {
                    quadratic(e, name, c, BatchQuadraticTask::default(), None);
                }
            }
            "LogQuadraticTask" => quadratic(e, name, c, LogQuadraticTask::new(dim()), None),
            "SumQuadraticTask" => {
                let dim = numbers(get(get(c, "params"), "a")).len();
                quadratic(e, name, c, SumQuadraticTask::new(dim), None);
            }
            "FixedDimQuadraticFamily" => {
                quadratic(e, name, c, QuadraticTask::with_center(list("task_params")), None);
            }
            "FixedDimQuadraticFamilyData" => {
                let task = DataQuadraticTask::new(list("task_params"));
                let (l2, l1) = DataQuadraticTask::aux(&list("params"));
                for (key, got) in [("l2", l2), ("l1", l1)] {
                    let want = number(get(get(c, "aux_f32"), key));
                    e.check(&format!("{name} {key}"), got, want, 2e-6 * want.abs());
                }
                let data = list("data")[0];
                quadratic(e, name, c, task, Some((data as f32, data)));
            }
            "NoisyMeanQuadraticTask" => {
                let task = NoisyMeanQuadraticTask::with_hessian(dim(), list("hess"), 0.0).expect(valid);
                quadratic(e, name, c, task, None);
            }
            "NoisyQuadraticFamily" => {
                let cov = c.get("cov").map_or(0.0, number);
                let task = NoisyQuadraticTask::new(list("center"), list("scale"), cov).expect(valid);
                let noise: Vec<f64> = match c.get("eps") {
                    Some(eps) => inputs::<f64>(eps).iter().map(|x| cov * x).collect(),
                    None => vec![0.0; dim()],
                };
                quadratic(e, name, c, task, Some((cast(&noise), noise)));
            }
            "normalizers" => normalizers(e, c),
            _ => unknown.push(name.as_str()),
        }
    }
    match errors.done() {
        outcome if outcome.passed() && !unknown.is_empty() => {
            Outcome::skip(&format!("not built: {}", unknown.join(", ")))
        }
        outcome => outcome,
    }
}

/// What the normalizers make of losses, finite or not.
fn normalizers(errors: &mut Errors, c: &Value) {
    let losses = numbers(get(c, "inputs"));
    let classes = |name: &str| name.split('_').find_map(|part| part.parse().ok()).unwrap_or(10);
    for (name, want) in c.as_object().expect("normalizers have names") {
        let valid = "a valid task";
        let data = || {
            let data = ImageData::new("blank", [0.0; 4], [0; 4], [1, 1, 1], classes(name));
            Splits::undivided(data.expect("a valid data set"))
        };
        let mlp = |loss| MlpTask::new(data(), MlpConfig { loss, ..MlpConfig::default() }).expect(valid);
        let task = if name.starts_with("image_mlp_xent") {
            both(mlp(ImageLoss::CrossEntropy))
        } else if name.starts_with("image_mlp_mse") {
            both(mlp(ImageLoss::MeanSquaredError))
        } else if name.starts_with("image_mlp_ae") {
            both(AutoencoderTask::new(data(), AutoencoderConfig::default()).expect(valid))
        } else if name.starts_with("conv") {
            both(ConvTask::new(data(), ConvConfig::default()).expect(valid))
        } else {
            assert!(matches!(&name[..], "inputs" | "note"), "no normalizer `{name}`");
            continue;
        };
        for (x, want) in losses.iter().zip(numbers(want)) {
            errors.check(&format!("{name}({x})"), task.0.normalizer(*x), want, 1e-6);
        }
    }
}
