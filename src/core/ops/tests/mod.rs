//! Every operation of the table against central differences, in f64 and f32.

pub(crate) mod device;
mod gradient;
mod table;
mod tape;

use crate::tensor::*;
use crate::Key;
use dfdx::prelude::{PutTape, TensorFromVec};

/// An operation under test: named inputs' shapes and a function to a tensor of any shape, flattened.
pub(crate) trait Case {
    fn name(&self) -> &'static str;
    /// Lengths of the inputs.
    fn inputs(&self) -> Vec<usize>;
    /// Makes a standard normal number a valid argument (positive, away from kinks).
    fn domain(&self, x: f64) -> f64;
    fn in_f32(&self, x: &[Traced<f32>]) -> Traced<f32>;
    fn in_f64(&self, x: &[Traced<f64>]) -> Traced<f64>;
}

/// A tensor on the tape.
pub(crate) type Traced<E> = Tensor<(usize,), E, Cpu, Rec>;

/// `Σ cᵢ yᵢ + ½ Σ yᵢ²`, so that the operation sees a non-constant adjoint.
fn head<E: Float>(y: Traced<E>) -> Tensor<Rank0, E, Cpu, Rec>
where
    Cpu: Host<E>,
{
    use dfdx::prelude::HasShape;
    let c: Tensor<_, E, Cpu> = y.device().normal_like(*y.shape(), Key::new(99));
    let half = crate::ops::scale(crate::ops::square(y.clone()), 0.5);
    crate::ops::sum(crate::ops::add(crate::ops::mul(y, &c), &half))
}

struct Outcome {
    loss: f64,
    slope: f64,
    grad: Vec<f64>,
    hvp: Vec<f64>,
}

/// Loss, gradient and Hv of a case, which `run` computes by `E`.
fn differentiate<E: Float>(
    case: &dyn Case,
    run: fn(&dyn Case, &[Traced<E>]) -> Traced<E>,
    x: &[f64],
    v: &[f64],
) -> Outcome
where
    Cpu: Host<E>,
{
    let dev = Cpu::default();
    let cut = |all: &[f64]| -> Vec<Vec<E>> {
        let mut at = 0;
        let piece = |n: &usize| {
            at += n;
            all[at - n..at].iter().map(|x| E::of(*x)).collect()
        };
        case.inputs().iter().map(piece).collect()
    };
    let tensors: Vec<Tensor<(usize,), E, Cpu>> = cut(x)
        .into_iter()
        .map(|x| {
            let n = x.len();
            dev.tensor_from_vec(x, (n,))
        })
        .collect();
    let ids: Vec<_> = tensors.iter().map(unique_id).collect();
    let v = cut(v);
    let v: Vec<&[E]> = v.iter().map(|v| &v[..]).collect();
    let mut r = record_hvp(&ids, &v, |m| {
        let x: Vec<_> = tensors.iter().map(|t| t.clone().put_tape(m)).collect();
        head(run(case, &x))
    });
    let mut grad = Vec::new();
    for t in &tensors {
        grad.extend(Cpu::slice(r.grads.get_or_alloc_mut(t).expect("host memory")).iter().map(|x| x.f64()));
    }
    let hvp = r.hvp.unwrap_or_else(|| panic!("{}: an operation without tangent rule", case.name()));
    let hvp = hvp.into_iter().zip(&tensors).flat_map(|(h, t)| {
        let zeros = vec![E::of(0.0); host_data(t).len()];
        h.unwrap_or(zeros).into_iter().map(|x| x.f64()).collect::<Vec<_>>()
    });
    Outcome {
        loss: host_data(&r.value)[0].f64(),
        slope: r.slope.expect("tangents").f64(),
        grad,
        hvp: hvp.collect(),
    }
}

fn close(name: &str, a: &[f64], b: &[f64], tol: f64) {
    assert_eq!(a.len(), b.len(), "{name}");
    let scale = b.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tol * scale, "{name}[{i}]: {a} and {b}, scale {scale}");
    }
}

/// All checks of one case. The step 1e-5 balances truncation (1e-10) and rounding (1e-11) in f64.
pub(crate) fn check(case: &dyn Case) {
    let in_f64 = |x: &[f64], v: &[f64]| differentiate(case, |case, x| case.in_f64(x), x, v);
    let name = case.name();
    let n = case.inputs().iter().sum();
    let (mut x, mut v) = (vec![0.0; n], vec![0.0; n]);
    Key::new(1).named(name).fill_normal(&mut x);
    Key::new(2).named(name).fill_normal(&mut v);
    x.iter_mut().for_each(|x| *x = case.domain(*x));
    let base = in_f64(&x, &v);
    let h = 1e-5;
    let shifted =
        |d: &dyn Fn(usize) -> f64| -> Vec<f64> { x.iter().enumerate().map(|(i, x)| x + d(i)).collect() };
    // VJP: each coordinate of the gradient.
    let slopes: Vec<f64> = (0..n)
        .map(|i| {
            let at = |s: f64| in_f64(&shifted(&|j| if i == j { s } else { 0.0 }), &v).loss;
            (at(h) - at(-h)) / (2.0 * h)
        })
        .collect();
    close(&format!("{name}: gradient"), &base.grad, &slopes, 1e-7);
    // JVP and the tangent of the VJP: along v.
    let (plus, minus) = (in_f64(&shifted(&|i| h * v[i]), &v), in_f64(&shifted(&|i| -h * v[i]), &v));
    close(&format!("{name}: slope"), &[base.slope], &[(plus.loss - minus.loss) / (2.0 * h)], 1e-7);
    let differences: Vec<f64> = plus.grad.iter().zip(&minus.grad).map(|(p, m)| (p - m) / (2.0 * h)).collect();
    close(&format!("{name}: hvp"), &base.hvp, &differences, 1e-6);
    // f32.
    let single = differentiate(case, |case, x| case.in_f32(x), &x, &v);
    close(&format!("{name}: f32 loss"), &[single.loss], &[base.loss], 1e-5);
    close(&format!("{name}: f32 gradient"), &single.grad, &base.grad, 1e-5);
    close(&format!("{name}: f32 hvp"), &single.hvp, &base.hvp, 1e-4);
    // As on a device.
    let [host, other] = device::both(|| gradient(case, |case, x| case.in_f64(x), &x));
    close(&format!("{name}: on a device"), &other, &host, 1e-12);
    let [_, other] = device::both(|| gradient(case, |case, x| case.in_f32(x), &x));
    close(&format!("{name}: f32 on a device"), &other, &host, 1e-5);
}

/// Loss and gradient of a case, which `run` computes by `E`.
fn gradient<E: Float>(case: &dyn Case, run: fn(&dyn Case, &[Traced<E>]) -> Traced<E>, x: &[f64]) -> Vec<f64>
where
    Cpu: Host<E>,
{
    let dev = Cpu::default();
    let mut rest = x;
    let tensor = |n: &usize| {
        let (part, behind) = rest.split_at(*n);
        rest = behind;
        dev.tensor_from_vec(part.iter().map(|x| E::of(*x)).collect(), (*n,))
    };
    let tensors: Vec<Tensor<(usize,), E, Cpu>> = case.inputs().iter().map(tensor).collect();
    let ids: Vec<_> = tensors.iter().map(unique_id).collect();
    let mut r = record(&ids, |m| {
        let x: Vec<_> = tensors.iter().map(|t| t.clone().put_tape(m)).collect();
        head(run(case, &x))
    });
    assert!(!r.foreign, "{}: an operation of dfdx", case.name());
    let mut out = vec![host_data(&r.value)[0].f64()];
    for t in &tensors {
        out.extend(Cpu::slice(r.grads.get_or_alloc_mut(t).expect("host memory")).iter().map(|x| x.f64()));
    }
    out
}
