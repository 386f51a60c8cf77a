//! How operations meet the tape: data, foreign operations, strided views, nesting, panics.

use crate::ops::{self, Activation};
use crate::tensor::*;
use crate::{BatchKey, FlatTask, Key, Task, Typed};
use dfdx::prelude::{PermuteTo, PutTape, TensorFrom, TensorFromVec};

fn vector(dev: &Cpu, x: &[f64]) -> Tensor<(usize,), f64, Cpu> {
    dev.tensor_from_vec(x.to_vec(), (x.len(),))
}

fn grad_of<S: Shape>(r: &mut Recorded<f64, Cpu>, t: &Tensor<S, f64, Cpu>) -> Vec<f64> {
    r.grads.get_or_alloc_mut(t).expect("host memory").to_vec()
}

#[test]
fn const_and_run_time_dims_give_the_same_bits() {
    let dev = Cpu::default();
    let x: Tensor<Rank2<5, 4>, f32, Cpu> = dev.normal(Key::new(1));
    let w: Tensor<Rank2<4, 3>, f32, Cpu> = dev.normal(Key::new(2));
    let b: Tensor<Rank1<3>, f32, Cpu> = dev.normal(Key::new(3));
    let ids = [unique_id(&x), unique_id(&w), unique_id(&b)];
    let ones = [vec![1.0f32; 20], vec![1.0; 12], vec![1.0; 3]];
    let v: Vec<&[f32]> = ones.iter().map(|v| &v[..]).collect();
    let fixed = record_hvp(&ids, &v, |m| {
        let h = ops::linear(x.clone().put_tape(m), &w, &b, Activation::Tanh);
        ops::softmax_cross_entropy(ops::layer_norm(h, &b, &b), &[0, 1, 2, 1, 0])
    });
    let run_time = record_hvp(&ids, &v, |m| {
        let (x, w) = (ops::reshape(x.clone().put_tape(m), (5, 4)), ops::reshape(w.clone(), (4, 3)));
        let b = ops::reshape(b.clone(), (3,));
        let h = ops::linear(x, &w, &b, Activation::Tanh);
        ops::softmax_cross_entropy(ops::layer_norm(h, &b, &b), &[0, 1, 2, 1, 0])
    });
    let bits = |r: &Recorded<f32, Cpu>| {
        let hvp = r.hvp.iter().flatten().flatten().flatten();
        hvp.chain(host_data(&r.value)).map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(bits(&fixed).len(), 36);
    assert_eq!(bits(&fixed), bits(&run_time));
    let (a, b) = (fixed.grads.get(&w).as_vec(), run_time.grads.get(&w).as_vec());
    assert!(a.iter().any(|x| *x != 0.0));
    assert_eq!(a, b);
}

#[test]
fn data_gets_no_gradient() {
    let dev = Cpu::default();
    let (x, p) = (vector(&dev, &[1.0, 2.0]), vector(&dev, &[3.0, 4.0]));
    // Also through operations on data alone.
    let mut r = record(&[unique_id(&p)], |m| {
        let data = ops::square(x.clone().put_tape(m));
        ops::sum(ops::mul(data, &p))
    });
    assert_eq!(grad_of(&mut r, &p), [1.0, 4.0]);
    assert_eq!(grad_of(&mut r, &x), [0.0, 0.0]);
}

#[test]
fn strided_inputs_are_read_in_logical_order() {
    let dev = Cpu::default();
    let x: Tensor<Rank2<2, 3>, f64, Cpu> = dev.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    let c: Tensor<Rank2<3, 2>, f64, Cpu> = dev.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]);
    let run = |v: Option<&[f64]>| {
        let f = |m| {
            let t: Tensor<Rank2<3, 2>, f64, Cpu, Rec> = x.clone().put_tape(m).permute();
            ops::sum(ops::mul(t, &c))
        };
        match v {
            None => record(&[unique_id(&x)], f),
            Some(v) => record_hvp(&[unique_id(&x)], &[v], f),
        }
    };
    let mut r = run(None);
    assert_eq!(host_data(&r.value)[0], 1.0 + 40.0 + 4.0 + 100.0 + 9.0 + 180.0);
    assert_eq!(grad_of(&mut r, &x), [1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
    // dfdx copies such a view by an operation of its own, which has no tangent rule.
    assert!(run(Some(&[1.0; 6])).hvp.is_none());
}

#[test]
#[should_panic(expected = "axis 0 is strided")]
fn host_data_refuses_strided_views() {
    let x: Tensor<Rank2<2, 3>, f64, Cpu> = Cpu::default().tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    let t: Tensor<Rank2<3, 2>, f64, Cpu> = x.permute();
    let _ = host_data(&t);
}

#[test]
#[should_panic(expected = "axis 0 is strided")]
fn host_data_refuses_broadcast_views() {
    use dfdx::prelude::BroadcastTo;
    let x: Tensor<Rank1<3>, f64, Cpu> = Cpu::default().tensor([1.0, 2.0, 3.0]);
    let t: Tensor<Rank2<4, 3>, f64, Cpu> = x.broadcast();
    let _ = host_data(&t);
}

#[test]
fn host_data_reads_any_contiguous_shape() {
    let dev = Cpu::default();
    let x: Tensor<Rank3<1, 2, 1>, f64, Cpu> = dev.tensor([[[1.0], [2.0]]]);
    assert_eq!(host_data(&x), [1.0, 2.0]);
    assert_eq!(host_data(&dev.tensor_from_vec(vec![7.0f64], ())), [7.0]);
    assert!(host_data(&dev.tensor_from_vec(Vec::<f64>::new(), (0, 3))).is_empty());
}

#[test]
fn empty_batches_pass() {
    let dev = Cpu::default();
    let (w, b) = (ops::reshape(vector(&dev, &[1.0; 6]), (2, 3)), vector(&dev, &[1.0; 3]));
    let x: Tensor<(usize, usize), f64, Cpu> = dev.tensor_from_vec(Vec::new(), (0, 2));
    let mut r = record(&[unique_id(&w)], |m| {
        ops::sum(ops::tanh(ops::linear(x.clone().put_tape(m), &w, &b, Activation::Relu)))
    });
    assert_eq!((host_data(&r.value)[0], grad_of(&mut r, &w)), (0.0, vec![0.0; 6]));
}

#[test]
fn derivatives_at_kinks_are_zero() {
    let dev = Cpu::default();
    let x = vector(&dev, &[0.0; 3]);
    type Traced = Tensor<(usize,), f64, Cpu, Rec>;
    let check = |f: fn(Traced) -> Traced| {
        let mut r = record_hvp(&[unique_id(&x)], &[&[1.0; 3]], |m| ops::sum(f(x.clone().put_tape(m))));
        assert_eq!(grad_of(&mut r, &x), [0.0; 3]);
        let hvp = r.hvp.expect("ops only").remove(0).expect("a parameter");
        assert_eq!(hvp, [0.0; 3]);
    };
    check(ops::sqrt);
    check(ops::relu);
    check(ops::relu6);
    check(ops::abs);
    check(ops::ln);
}

#[test]
fn equal_maxima_share_the_gradient() {
    let x = ops::reshape(vector(&Cpu::default(), &[2.0, 1.0, 2.0, 5.0, 4.0, 3.0]), (2, 3));
    let mut r = record(&[unique_id(&x)], |m| ops::sum(ops::max_axis1(x.clone().put_tape(m))));
    assert_eq!(grad_of(&mut r, &x), [0.5, 0.0, 0.5, 1.0, 0.0, 0.0]);
}

#[test]
fn batch_norm_returns_its_statistics() {
    let dev = Cpu::default();
    let x = ops::reshape(vector(&dev, &[1.0, 10.0, 3.0, 30.0]), (2, 2));
    let (scale, offset) = (vector(&dev, &[1.0, 2.0]), vector(&dev, &[0.0, 5.0]));
    let (y, mean, var) = ops::batch_norm(x, &scale, &offset);
    assert_eq!((mean, var), (vec![2.0, 20.0], vec![1.0, 100.0]));
    let (r, s) = ((1.0f64 + 1e-5).sqrt(), 20.0 / (100.0f64 + 1e-5).sqrt());
    for (y, e) in host_data(&y).iter().zip([-1.0 / r, 5.0 - s, 1.0 / r, 5.0 + s]) {
        assert!((y - e).abs() < 1e-14, "{y} {e}");
    }
}

#[test]
fn same_padding_follows_tensorflow() {
    // Stride 2 on 4 pixels with a window of 3 pads 0 before and 1 behind.
    let dev = Cpu::default();
    let x = ops::reshape(vector(&dev, &[1.0, 2.0, 3.0, 4.0]), (1, 1, 4, 1));
    let w = ops::reshape(vector(&dev, &[1.0, 10.0, 100.0]), (1, 3, 1, 1));
    let y = ops::conv2d(x, &w, &vector(&dev, &[0.5]), [1, 2], ops::Padding::Same, Activation::Identity);
    assert_eq!(host_data(&y), [321.5, 43.5]);
}

#[test]
fn recordings_nest() {
    let dev = Cpu::default();
    let (x, z) = (vector(&dev, &[3.0]), vector(&dev, &[5.0]));
    let mut inner_grad = Vec::new();
    let mut r = record(&[unique_id(&x)], |m| {
        let traced = ops::square(x.clone().put_tape(m));
        let mut inner = record(&[unique_id(&z)], |m| ops::sum(ops::mul(z.clone().put_tape(m), &x)));
        inner_grad = grad_of(&mut inner, &z);
        // The outer recording goes on; the inner result is data to it.
        ops::sum(ops::mul(traced, &ops::reshape(inner.value, (1,))))
    });
    assert_eq!(inner_grad, [3.0]);
    assert_eq!(grad_of(&mut r, &x), [6.0 * 15.0]);
}

#[test]
fn a_panic_leaves_no_recording_behind() {
    let dev = Cpu::default();
    let x = vector(&dev, &[3.0]);
    let mut r = record(&[unique_id(&x)], |m| {
        let y = ops::square(x.clone().put_tape(m));
        let inner = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            record::<f64, Cpu>(&[], |_| panic!("a task's bug"))
        }));
        assert!(inner.is_err());
        ops::sum(y)
    });
    assert_eq!(grad_of(&mut r, &x), [6.0]);
    let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        ops::square(x.clone().put_tape(Rec::default()))
    }));
    assert!(outside.is_err(), "no recording is open any more");
}

#[test]
#[should_panic(expected = "another dtype or device")]
fn dtypes_do_not_mix_in_a_recording() {
    let dev = Cpu::default();
    let x = vector(&dev, &[3.0]);
    record(&[unique_id(&x)], |m| {
        let y: Tensor<(usize,), f32, Cpu> = dev.tensor_from_vec(vec![1.0], (1,));
        ops::square(y.put_tape(m));
        ops::sum(x.clone().put_tape(m))
    });
}

/// `Σᵢ f(wᵢ)³ + ½ (Σ w)²`, with `f` a ReLU: ours, or dfdx's, which has no tangent rule.
struct Cubes {
    foreign: bool,
    start: [f64; 3],
}

impl<E: Float, B: Backend<E>> Task<E, B> for Cubes {
    type Params = Tensor<Rank1<3>, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "cubes".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        dev.tensor_from_vec(self.start.map(E::of).to_vec(), Default::default())
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, w: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        let w = w.clone().put_tape(m);
        let f = if self.foreign { w.clone().relu() } else { ops::relu(w.clone()) };
        let cubes = ops::sum(ops::mul(ops::square(f.clone()), &f));
        ops::add(cubes, &ops::scale(ops::square(ops::sum(w)), 0.5))
    }
}

/// Loss, gradient and Hv at the task's start.
fn hvp<E: Float>(task: Cubes, v: [f64; 3]) -> (Vec<f64>, Vec<f64>)
where
    Cpu: Host<E>,
{
    let task: Box<dyn FlatTask<E>> = Box::new(Typed::new(task));
    let p = task.init(Key::new(0)).data;
    let (mut g, mut h) = (vec![E::of(f64::NAN); 3], vec![E::of(f64::NAN); 3]);
    let at = BatchKey::train(0, Key::new(0));
    task.evaluator().loss_grad_hvp(&p, &[], at, &v.map(E::of), &mut g, &mut h);
    let wide = |x: &[E]| x.iter().map(|x| x.f64()).collect();
    (wide(&g), wide(&h))
}

#[test]
fn foreign_operations_fall_back_to_differences() {
    let start = [0.5, -1.25, 2.0];
    let v = [1.0, 2.0, -0.5];
    // ∂²/∂wᵢ² = 6 wᵢ where wᵢ > 0, plus 1 everywhere.
    let exact = [6.0 * 0.5 * 1.0 + 2.5, 2.5, 6.0 * 2.0 * -0.5 + 2.5];
    let grad = [3.0 * 0.25 + 1.25, 1.25, 12.0 + 1.25];
    for foreign in [false, true] {
        let (g, h) = hvp::<f64>(Cubes { foreign, start }, v);
        let (g32, h32) = hvp::<f32>(Cubes { foreign, start }, v);
        // Differences: rounding 1e-16 over a step of 1e-6; exact operations are exact.
        let tol = if foreign { 1e-8 } else { 1e-14 };
        for i in 0..3 {
            assert!((g[i] - grad[i]).abs() < 1e-14 && (g32[i] - grad[i]).abs() < 1e-6);
            assert!((h[i] - exact[i]).abs() < tol, "{foreign} {h:?}");
            assert!((h32[i] - exact[i]).abs() < 1e-6, "{foreign} {h32:?}");
        }
    }
}

/// `Σ relu(wᵢ) + wᵢ³`: the gradient jumps by 1 where a weight crosses 0.
struct Kink {
    w0: f64,
}

impl<E: Float, B: Backend<E>> Task<E, B> for Kink {
    type Params = Tensor<Rank1<2>, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "kink".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        dev.tensor_from_vec(vec![E::of(self.w0), E::of(1.5)], Default::default())
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, w: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        let w = w.clone().put_tape(m);
        // dfdx's relu, so that the evaluator must take differences.
        ops::sum(ops::add(w.clone().relu(), &ops::mul(ops::square(w.clone()), &w)))
    }
}

#[test]
fn differences_survive_a_kink_on_either_side() {
    // The step is about 1e-6, so the kink at 0 lies between the points of the central difference.
    for w0 in [1e-8, -1e-8] {
        let task: Box<dyn FlatTask<f64>> = Box::new(Typed::new(Kink { w0 }));
        let p = task.init(Key::new(0)).data;
        let (mut g, mut h) = (vec![0.0; 2], vec![0.0; 2]);
        let at = BatchKey::train(0, Key::new(0));
        let step = 1e-6 * (1.5 + 1e-3) / 2.0f64.sqrt();
        let naive = (1.0 - 0.0) / (2.0 * step);
        assert!(naive > 1e5, "a plain central difference would be this wrong: {naive}");
        task.evaluator().loss_grad_hvp(&p, &[], at, &[1.0, 1.0], &mut g, &mut h);
        // 6 w at w = (±1e-8, 1.5); one-sided differences are good to the step times f'''.
        assert!((h[0] - 6.0 * w0).abs() < 1e-5 && (h[1] - 9.0).abs() < 1e-5, "{w0}: {h:?}");
    }
}
