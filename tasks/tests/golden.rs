//! Tasks against the reference library's own numbers (`golden/`: google/learned_optimization at
//! 32186aa4 run in f32 and f64): loss, gradient, Hessian times vector, normalizers.

use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{BatchKey, Evaluator, FlatTask, Float, Key, Task, Typed};
use outerloop_tasks::data::{digits, Splits};
use outerloop_tasks::image::{ImageLoss, ImageMlp, MlpConfig, MlpTask, Nonlinearity, Norm};
use outerloop_tasks::quadratics::*;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Numbers of nested lists, flattened. Inputs are f32 numbers in print: round to f32 first.
fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(a) => a.iter().flat_map(numbers).collect(),
        Value::Object(o) => o.values().flat_map(numbers).collect(),
        Value::String(s) => vec![s.parse().unwrap()],
        _ => vec![v.as_f64().unwrap()],
    }
}
fn inputs(v: &Value) -> Vec<f64> {
    numbers(v).into_iter().map(|x| f64::from(x as f32)).collect()
}

fn near(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(f64::MIN_POSITIVE, |m: f64, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}[{i}]: expected {w}, got {g}");
    }
}

/// Loss, gradient and Hessian times vector of one evaluator.
fn evaluate<E: Float>(e: &mut dyn Evaluator<E>, params: &[f64], v: &[f64]) -> [Vec<f64>; 3] {
    let cast = |x: &[f64]| x.iter().map(|x| E::of(*x)).collect::<Vec<E>>();
    let back = |x: &[E]| x.iter().map(|x| x.f64()).collect::<Vec<f64>>();
    let (mut grad, mut hvp) = (cast(params), cast(params));
    let at = BatchKey::train(0, Key::new(0));
    let loss = e.loss_grad_hvp(&cast(params), &[], at, &cast(v), &mut grad, &mut hvp);
    [vec![loss.f64()], back(&grad), back(&hvp)]
}

/// f64 to 1e-9, f32 to 2e-6 of the largest magnitude.
fn check_quadratic<T>(case: &str, make: impl Fn(&Value) -> T)
where
    T: Task<f32, Cpu> + Task<f64, Cpu>,
    Cpu: Host<f32> + Host<f64>,
{
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(folder().join("D_quadratics.json")).unwrap()).unwrap();
    let c = &file[case];
    let (params, v) = (inputs(&c["params"]), inputs(&c["direction"]));
    let task = Typed::new(make(c));
    let [loss, grad, hvp] = evaluate::<f64>(&mut *task.evaluator(), &params, &v);
    near(&format!("{case}: loss"), &loss, &numbers(&c["loss_f64"]), 1e-9);
    near(&format!("{case}: gradient"), &grad, &numbers(&c["grad_f64"]), 1e-9);
    near(&format!("{case}: hvp"), &hvp, &numbers(&c["hvp_f64"]), 1e-9);
    let [loss, grad, _] = evaluate::<f32>(&mut *task.evaluator(), &params, &v);
    near(&format!("{case}: f32 loss"), &loss, &numbers(&c["loss_f32"]), 2e-6);
    near(&format!("{case}: f32 gradient"), &grad, &numbers(&c["grad_f32"]), 2e-6);
}

#[test]
fn quadratics() {
    check_quadratic("QuadraticTask", |_| QuadraticTask::new(10));
    check_quadratic("QuadraticTask", |_| BatchQuadraticTask::default());
    check_quadratic("LogQuadraticTask", |_| LogQuadraticTask::default());
    check_quadratic("SumQuadraticTask", |_| SumQuadraticTask::default());
    check_quadratic("FixedDimQuadraticFamily", |c| QuadraticTask::with_center(inputs(&c["task_params"])));
    check_quadratic("NoisyQuadraticFamily_cov0", |c| {
        NoisyQuadraticTask::new(inputs(&c["center"]), inputs(&c["scale"]), 0.0).unwrap()
    });
    check_quadratic("NoisyMeanQuadraticTask_stdev0", |c| {
        NoisyMeanQuadraticTask::with_hessian(2, inputs(&c["hess"]), 0.0).unwrap()
    });
}

#[test]
fn quadratics_with_given_noise() {
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(folder().join("D_quadratics.json")).unwrap()).unwrap();
    let c = &file["FixedDimQuadraticFamilyData"];
    let task = DataQuadraticTask::new(inputs(&c["task_params"]));
    let (params, data, v) = (inputs(&c["params"]), inputs(&c["data"])[0], inputs(&c["direction"]));
    let (mut grad, mut hvp) = (vec![0.0; 10], vec![0.0; 10]);
    let loss = Task::<f64, Cpu>::closed_form(&task, &params, &data, Some(&mut grad)).unwrap();
    assert!(Task::<f64, Cpu>::hvp(&task, &params, &data, &v, &mut hvp));
    near("data: loss", &[loss], &numbers(&c["loss_f64"]), 1e-9);
    near("data: gradient", &grad, &numbers(&c["grad_f64"]), 1e-9);
    near("data: hvp", &hvp, &numbers(&c["hvp_f64"]), 1e-9);
    let (l2, l1) = DataQuadraticTask::aux(&params);
    near("data: aux", &[l2, l1], &[numbers(&c["aux_f32"]["l2"])[0], numbers(&c["aux_f32"]["l1"])[0]], 2e-6);

    let c = &file["NoisyQuadraticFamily_cov07"];
    let cov = c["cov"].as_f64().unwrap();
    let task = NoisyQuadraticTask::new(inputs(&c["center"]), inputs(&c["scale"]), cov).unwrap();
    let noise: Vec<f64> = inputs(&c["eps"]).iter().map(|e| cov * e).collect();
    let loss = Task::<f64, Cpu>::closed_form(&task, &inputs(&c["params"]), &noise, Some(&mut grad)).unwrap();
    near("noisy: loss", &[loss], &numbers(&c["loss_f32"]), 2e-6);
    near("noisy: gradient", &grad, &numbers(&c["grad_f32"]), 2e-6);
}

#[test]
fn normalizers() {
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(folder().join("D_quadratics.json")).unwrap()).unwrap();
    let n = &file["normalizers"];
    let mlp = |loss| MlpTask::new(Splits::digits(), MlpConfig { loss, ..MlpConfig::default() }).unwrap();
    let of = |task: MlpTask, x| Task::<f32, Cpu>::normalizer(&task, x);
    for (x, i) in numbers(&n["inputs"]).into_iter().zip(0..) {
        for (case, got) in [
            ("image_mlp_xent_10_classes", Task::<f32, Cpu>::normalizer(&ImageMlp::digits(), x)),
            ("image_mlp_xent_10_classes", of(mlp(ImageLoss::CrossEntropy), x)),
            ("image_mlp_mse", of(mlp(ImageLoss::MeanSquaredError), x)),
        ] {
            let want = numbers(&n[case])[i];
            assert!((got - want).abs() < 1e-6, "{case}: normalizer({x}): expected {want}, got {got}");
        }
    }
}

/// A safetensors file: tensors as f64 by name, and its metadata.
struct Golden {
    tensors: HashMap<String, Vec<f64>>,
    metadata: Value,
}

impl Golden {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(folder().join(name)).unwrap();
        let (head, rest) = bytes.split_at(8);
        let n = u64::from_le_bytes(head.try_into().unwrap()) as usize;
        let header: serde_json::Map<String, Value> = serde_json::from_slice(&rest[..n]).unwrap();
        let mut tensors = HashMap::new();
        for (name, t) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let offsets: Vec<usize> = numbers(&t["data_offsets"]).iter().map(|&o| o as usize).collect();
            let data = &rest[n + offsets[0]..n + offsets[1]];
            let values = match t["dtype"].as_str().unwrap() {
                "F64" => data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
                "F32" => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
                "I32" => data.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
                other => panic!("{name}: dtype {other}"),
            };
            tensors.insert(name.clone(), values);
        }
        Golden { tensors, metadata: header["__metadata__"].clone() }
    }

    /// The tensors `group/...` in our layout: haiku sorts names, we go layer by layer.
    fn flat(&self, group: &str, layers: usize, norm: bool) -> Vec<f64> {
        let suffix = |i: usize| if i == 0 { String::new() } else { format!("_{i}") };
        let linear =
            |i: usize| if norm { format!("linear{}", suffix(i)) } else { format!("mlp/~/linear_{i}") };
        let mut names = Vec::new();
        for i in 0..layers {
            names.extend(["w", "b"].map(|p| format!("{group}/{}/{p}", linear(i))));
            if norm && i + 1 < layers {
                names.extend(["scale", "offset"].map(|p| format!("{group}/layer_norm{}/{p}", suffix(i))));
            }
        }
        assert_eq!(names.len(), self.tensors.keys().filter(|k| k.starts_with(&format!("{group}/"))).count());
        names.iter().flat_map(|n| self.tensors[n].clone()).collect()
    }
}

/// Checks an image task against a file; `make` gets the data with the file's batch.
fn check_image<T>(file: &str, layers: usize, norm: bool, make: impl Fn(Splits, usize) -> T)
where
    T: Task<f32, Cpu> + Task<f64, Cpu>,
    Cpu: Host<f32> + Host<f64>,
{
    let g = Golden::read(file);
    let index: Value = serde_json::from_str(g.metadata["digits_index"].as_str().unwrap()).unwrap();
    let index: Vec<u32> = numbers(&index).iter().map(|&i| i as u32).collect();
    // The embedded digits are those of the file, to the bit.
    let data = digits();
    let pixels: Vec<f64> = index.iter().flat_map(|&i| data.image(i as usize)).map(|&x| x.into()).collect();
    let labels: Vec<f64> = index.iter().map(|&i| data.labels[i as usize].into()).collect();
    assert_eq!(pixels, g.tensors["batch/image"]);
    assert_eq!(labels, g.tensors["batch/label"]);

    let size = index.len();
    let splits = Splits::listed(data, std::array::from_fn(|_| vec![index.clone()])).unwrap();
    let task = Typed::new(make(splits, size));
    let flat = |group| g.flat(group, layers, norm);
    let (params, v) = (flat("params"), flat("direction"));
    let [loss, grad, hvp] = evaluate::<f64>(&mut *task.evaluator(), &params, &v);
    near(&format!("{file}: loss"), &loss, &g.tensors["loss_f64"], 1e-9);
    near(&format!("{file}: gradient"), &grad, &flat("grad_f64"), 1e-9);
    near(&format!("{file}: hvp"), &hvp, &flat("hvp_f64"), HVP_TOLERANCE);
    let [loss, grad, _] = evaluate::<f32>(&mut *task.evaluator(), &params, &v);
    near(&format!("{file}: f32 loss"), &loss, &g.tensors["loss_f64"], 1e-6);
    near(&format!("{file}: f32 gradient"), &grad, &flat("grad_f64"), 4e-6);
}

/// Losses with dfdx operations get their Hessian from differences in f64.
const HVP_TOLERANCE: f64 = 2e-8;

fn mlp(
    hidden: &[usize],
    nonlinearity: Nonlinearity,
    norm: Norm,
    loss: ImageLoss,
) -> impl Fn(Splits, usize) -> MlpTask + '_ {
    move |data, batch_size| {
        let config = MlpConfig {
            hidden: hidden.to_vec(),
            nonlinearity,
            norm,
            loss,
            batch_size,
            ..MlpConfig::default()
        };
        MlpTask::new(data, config).unwrap()
    }
}

#[test]
fn image_mlp_relu() {
    let file = "D_task_mlp_relu_64_32_10.safetensors";
    check_image(file, 2, false, mlp(&[32], Nonlinearity::Relu, Norm::None, ImageLoss::CrossEntropy));
    check_image(file, 2, false, |data, size| {
        ImageMlp::<64, 32, 10>::new(data, size, outerloop_core::ops::Activation::Relu).unwrap()
    });
}

#[test]
fn image_mlp_tanh() {
    let task = mlp(&[24, 16], Nonlinearity::Tanh, Norm::None, ImageLoss::CrossEntropy);
    check_image("D_task_mlp_tanh_64_24_16_10.safetensors", 3, false, task);
}

#[test]
fn image_mlp_mse() {
    let task = mlp(&[16], Nonlinearity::Relu, Norm::None, ImageLoss::MeanSquaredError);
    check_image("D_task_mlp_mse_64_16_10.safetensors", 2, false, task);
}

#[test]
fn image_mlp_layer_norm() {
    let task = mlp(&[12, 12], Nonlinearity::Relu, Norm::Layer, ImageLoss::CrossEntropy);
    check_image("D_task_mlp_layernorm_64_12_12_10.safetensors", 3, true, task);
}
