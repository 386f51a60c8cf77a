//! What a device runs, on the CPU: operations made of dfdx's, with its CPU kernels.

use crate::contract::check_task;
use crate::ops::{self, by_dfdx, Activation, RawOp};
use crate::tensor::*;
use crate::Key;
use dfdx::prelude::{HasShape, PutTape, TensorFromVec};
use std::cell::Cell;

thread_local! {
    /// Operations run as on a device, if they are to be.
    static RUN: Cell<Option<usize>> = const { Cell::new(None) };
}

/// What the CPU's [`Backend::run`] asks first in tests.
pub(crate) fn run<E: Float>(
    op: &dyn RawOp<E>,
    inputs: &[Tensor<(usize,), E, Cpu>],
    len: usize,
    records: bool,
) -> Option<Tensor<(usize,), E, Cpu>>
where
    Cpu: Host<E>,
{
    let ran = RUN.get()?;
    let y = by_dfdx::run(op, inputs, len, records)?;
    RUN.set(Some(ran + 1));
    Some(y)
}

/// What `f` gives on the host and as on a device.
pub(super) fn both<R>(mut f: impl FnMut() -> R) -> [R; 2] {
    let host = f();
    [host, counted(f).0]
}

/// What `f` gives as on a device, and the number of operations that did not run on the host.
fn counted<R>(f: impl FnOnce() -> R) -> (R, usize) {
    RUN.set(Some(0));
    let result = f();
    (result, RUN.take().expect("it was set"))
}

type Numbers = Tensor<(usize,), f32, Cpu>;

/// `n` numbers of a stream.
fn normals(n: usize, key: u64) -> Numbers {
    Cpu::default().normal_like((n,), Key::new(key))
}

/// Operations that ran as on a device while the loss of an input was recorded.
fn on_device(
    n: usize,
    f: impl FnOnce(Rec, Tensor<(usize,), f32, Cpu>) -> Tensor<Rank0, f32, Cpu, Rec>,
) -> usize {
    let x: Tensor<(usize,), f32, Cpu> = Cpu::default().normal_like((n,), Key::new(0));
    counted(|| record(&[unique_id(&x)], |m| f(m, x.clone()))).1
}

#[test]
fn the_table_of_what_runs_where_holds() {
    let x = |m: Rec, x: Tensor<(usize,), f32, Cpu>| ops::reshape(x.put_tape(m), (2, 3));
    // Each with the sum that makes it a loss.
    assert_eq!(on_device(6, |m, v| ops::sum(x(m, v))), 1);
    for (act, count) in
        [(Activation::Identity, 2), (Activation::Relu, 2), (Activation::Tanh, 2), (Activation::Sigmoid, 2)]
    {
        let w = normals(12, 12);
        let b = normals(4, 4);
        let ran = on_device(6, |m, v| ops::sum(ops::linear(x(m, v), &ops::reshape(w, (3, 4)), &b, act)));
        assert_eq!(ran, count, "{act:?}");
    }
    assert_eq!(on_device(6, |m, v| ops::softmax_cross_entropy(x(m, v), &[2, 0])), 1);
    assert_eq!(on_device(6, |m, v| ops::mse(x(m, v), &ops::reshape(normals(6, 6), (2, 3)))), 1);
    assert_eq!(on_device(6, |m, v| ops::sum(ops::gelu(ops::scale(x(m, v), 2.0)))), 2, "gelu is the host's");
    assert_eq!(on_device(6, |m, v| ops::sum(ops::softmax(x(m, v)))), 1, "softmax is the host's");
    assert_eq!(on_device(6, |m, v| ops::sum(ops::mul(x(m, v.clone()), &x(m, v)))), 1, "x * x is the host's");
    assert_eq!(on_device(6, |m, v| ops::sum(ops::mul(x(m, v), &normals(3, 3)))), 2, "a row");
}

#[test]
fn tangents_are_the_hosts() {
    let x: Tensor<(usize,), f64, Cpu> = Cpu::default().normal_like((6,), Key::new(0));
    let loss = |m: Rec| ops::mean(ops::square(ops::tanh(x.clone().put_tape(m))));
    let v = [1.0, -1.0, 2.0, 0.0, 0.5, 3.0];
    let hvp = || record_hvp(&[unique_id(&x)], &[&v], loss).hvp.expect("operations of ours");
    assert_eq!(counted(hvp), (hvp(), 0));
    let linear = || {
        let mut out = vec![0.0; 6];
        let r = record_linear(&[unique_id(&x)], 1, loss);
        r.linear.expect("operations of ours").products(&[vec![&v]], vec![vec![&mut out]], Curvature::Hessian);
        out
    };
    assert_eq!(counted(linear), (hvp()[0].clone().expect("it depends on x"), 0));
}

#[test]
fn a_diverged_run_stays_visible() {
    for act in [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid] {
        let dev = Cpu::default();
        let x = |m: Rec| dev.tensor_from_vec(vec![f32::NAN, 1.0], (1, 2)).put_tape(m);
        let w: Tensor<(usize, usize), f32, Cpu> = dev.normal_like((2, 3), Key::new(1));
        let b: Tensor<(usize,), f32, Cpu> = dev.normal_like((3,), Key::new(2));
        let ids = [unique_id(&w), unique_id(&b)];
        let (r, ran) =
            counted(|| record(&ids, |m| ops::softmax_cross_entropy(ops::linear(x(m), &w, &b, act), &[1])));
        assert!(ran == 2 && host_data(&r.value)[0].is_nan(), "{act:?}");
    }
    // relu' (0) = 0, as on the host.
    let x: Tensor<(usize,), f32, Cpu> = Cpu::default().tensor_from_vec(vec![-1.0, 0.0, 2.0, f32::NAN], (4,));
    let (r, ran) = counted(|| record(&[unique_id(&x)], |m| ops::sum(ops::relu(x.clone().put_tape(m)))));
    assert_eq!((ran, r.grads.get(&x).as_vec()[..3].to_vec()), (2, vec![0.0, 0.0, 1.0]));
}

#[test]
fn data_alone_needs_no_tape() {
    let (data, params) = (normals(4, 1), normals(4, 2));
    let (mut r, ran) = counted(|| {
        record(&[unique_id(&params)], |m| {
            let moved = ops::exp(data.clone().put_tape(m));
            assert_eq!(*moved.shape(), (4,));
            ops::sum(ops::mul(params.clone().put_tape(m), &moved))
        })
    });
    assert_eq!(ran, 3);
    assert!(r.grads.get_or_alloc_mut(&data).unwrap().iter().all(|d| *d == 0.0));
    let exp: Vec<f32> = data.as_vec().iter().map(|x| x.exp()).collect();
    let grad = r.grads.get(&params).as_vec();
    assert!(grad.iter().zip(&exp).all(|(g, e)| (g - e).abs() < 1e-6), "{grad:?} {exp:?}");
}

#[test]
fn a_whole_task_keeps_its_contract() {
    let task = || crate::Typed::new(crate::nn::tests::Everything);
    let (checked, ran) = counted(|| check_task(&task(), &task()));
    checked.expect("the contract");
    assert!(ran > 100, "{ran}");
}
