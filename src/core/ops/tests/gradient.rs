//! Gradients inside a loss, against closed forms, differences and f64.

use crate::ops::{self, Activation, Through};
use crate::tensor::*;
use crate::{BatchKey, FlatTask, Key, Task, Typed};
use dfdx::prelude::{PutTape, SplitTape};

type Flat<E, M = NoneTape> = Tensor<(usize,), E, Cpu, M>;

fn vector<E: Float>(x: &[f64]) -> Flat<E>
where
    Cpu: Host<E>,
{
    use dfdx::prelude::TensorFromVec;
    Cpu::default().tensor_from_vec(x.iter().map(|x| E::of(*x)).collect(), (x.len(),))
}

/// How a learner of starts adapts.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Exact,
    Stopped,
    /// The adapted function holds a gradient itself.
    Nested,
}

/// Two tanh layers whose first weights are adapted by two gradient steps; the loss is the one after.
struct Adapted(How);

impl<E: Float, B: Backend<E>> Task<E, B> for Adapted {
    type Params = (Tensor<Rank2<3, 4>, E, B>, Tensor<Rank2<4, 2>, E, B>);
    type Batch = Tensor<Rank2<5, 3>, E, B>;
    fn name(&self) -> String {
        "adapted".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let [a, b] = key.split();
        (dev.normal(a), dev.normal(b))
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        dev.normal(at.noise())
    }
    fn loss<M: Mode<E, B>>(&self, (w, u): &Self::Params, x: &Self::Batch, m: M) -> Tensor<Rank0, E, B, M> {
        let through = if self.0 == How::Stopped { Through::Stopped } else { Through::Exact };
        let mut y = w.clone().put_tape(m);
        for _ in 0..2 {
            let (x, u, how) = (x.clone(), u.clone(), self.0);
            let g = ops::gradient(y.clone(), vec![ops::handle(&u)], through, move |y, m| {
                let plain = energy(&x, y.clone(), &u, m);
                if how != How::Nested {
                    return plain;
                }
                let (x, u2) = (x.clone(), u.clone());
                let f = move |y: Tensor<Rank2<3, 4>, E, B, Rec>, m| energy(&x, y, &u2, m);
                let inner = ops::gradient(y, vec![ops::handle(&u)], Through::Exact, f);
                ops::add(plain, &ops::scale(ops::sum(ops::square(inner)), 0.1))
            });
            y = ops::sub(y, &ops::scale(g, 0.3));
        }
        energy(x, y, u, m)
    }
}

fn energy<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: &Tensor<Rank2<5, 3>, E, B>,
    w: Tensor<Rank2<3, 4>, E, B, M>,
    u: &Tensor<Rank2<4, 2>, E, B>,
    m: M,
) -> Tensor<Rank0, E, B, M> {
    let h = ops::tanh(ops::matmul(x.clone().put_tape(m), &w));
    ops::mean(ops::square(ops::shift(ops::matmul(h, u), -0.5)))
}

struct Found {
    loss: f64,
    grad: Vec<f64>,
    hvp: Vec<f64>,
}

fn find<E: Float>(how: How, moved: impl Fn(usize) -> f64, v: &[f64]) -> Found
where
    Cpu: Host<E>,
{
    let task: Box<dyn FlatTask<E>> = Box::new(Typed::new(Adapted(how)));
    let mut p = task.init(Key::new(4)).data;
    p.iter_mut().enumerate().for_each(|(i, p)| *p += E::of(moved(i)));
    let at = BatchKey::train(0, Key::new(1));
    let v: Vec<E> = v.iter().map(|v| E::of(*v)).collect();
    let (mut g, mut h, mut g2) = (vec![E::of(0.0); 20], vec![E::of(0.0); 20], vec![E::of(0.0); 20]);
    let mut evaluator = task.evaluator();
    let loss = evaluator.loss_and_grad(&p, &mut [], at, &mut g);
    let again = evaluator.loss_grad_hvp(&p, &[], at, &v, &mut g2, &mut h);
    assert!(loss == again && (g == g2 || size_of::<E>() == 4));
    assert!((evaluator.loss(&p, &[], at) - loss).f64().abs() < 1e-6);
    // Whoever asks for less gets the same: of the leading tensor, beside a linearization, without zeros.
    let [mut leading, mut linearized] = [vec![E::of(0.0); 12], vec![E::of(0.0); 12]];
    evaluator.loss_and_leading_grad(&p, &mut [], at, &mut leading);
    evaluator.linearize(&p, &mut [], at, &mut linearized);
    assert_eq!([&leading, &linearized], [&g[..12]; 2]);
    let mut used = Vec::new();
    evaluator.loss_and_used_grad(&p, &mut [], at, &mut used);
    assert_eq!(used, g);
    let wide = |x: &[E]| x.iter().map(|x| x.f64()).collect();
    Found { loss: loss.f64(), grad: wide(&g), hvp: wide(&h) }
}

fn close(a: &[f64], b: &[f64], tolerance: f64) {
    let scale = b.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{i}: {a} and {b}, scale {scale}");
    }
}

#[test]
fn losses_that_hold_gradients_are_differentiated() {
    let mut v = vec![0.0; 20];
    Key::new(9).fill_normal(&mut v);
    // The step 1e-5 balances truncation (1e-10) and rounding (1e-11) in f64.
    let h = 1e-5;
    // Differences of differences are good to the root of the root of the rounding error.
    for (how, tolerance, second) in [(How::Exact, 1e-8, 1e-6), (How::Nested, 1e-7, 1e-2)] {
        let f = find::<f64>(how, |_| 0.0, &v);
        let slope = |i: usize| {
            let at = |s: f64| find::<f64>(how, |j| if i == j { s } else { 0.0 }, &v).loss;
            (at(h) - at(-h)) / (2.0 * h)
        };
        close(&f.grad, &(0..20).map(slope).collect::<Vec<_>>(), tolerance);
        let (plus, minus) = (find::<f64>(how, |i| h * v[i], &v), find::<f64>(how, |i| -h * v[i], &v));
        let change: Vec<f64> = plus.grad.iter().zip(&minus.grad).map(|(p, m)| (p - m) / (2.0 * h)).collect();
        close(&f.hvp, &change, second);
        // f32, whose nested derivatives and Hessian-vector products are taken in f64.
        let single = find::<f32>(how, |_| 0.0, &v);
        close(&single.grad, &f.grad, 1e-5);
        close(&single.hvp, &f.hvp, second.max(1e-4));
    }
}

#[test]
fn a_stopped_gradient_is_data() {
    let (exact, stopped) =
        (find::<f64>(How::Exact, |_| 0.0, &[1.0; 20]), find::<f64>(How::Stopped, |_| 0.0, &[1.0; 20]));
    assert_eq!(exact.loss, stopped.loss);
    assert!(exact.grad.iter().zip(&stopped.grad).any(|(a, b)| (a - b).abs() > 1e-3));
    // y₁ = y₀ − g with g data: the adjoint passes unchanged, so dL/dw = ∂energy/∂w at the adapted weights.
    let x = vector::<f64>(&[1.0, -2.0]);
    let mut r = record(&[unique_id(&x)], |m| {
        let y = x.clone().put_tape(m);
        let f = |y: Flat<f64, Rec>, _: Rec| ops::sum(ops::square(y));
        let (value, g) = ops::value_and_gradient(y.clone(), Vec::new(), Through::Stopped, f);
        assert_eq!((value, host_data(&g.clone().split_tape().0).to_vec()), (5.0, vec![2.0, -4.0]));
        let still = ops::stop_gradient(ops::square(y.clone()));
        ops::sum(ops::mul(ops::add(ops::sub(y, &ops::scale(g, 0.25)), &still), &vector(&[1.0, 10.0])))
    });
    assert_eq!(r.grads.get_or_alloc_mut(&x).expect("host memory").to_vec(), [1.0, 10.0]);
}

#[test]
fn dependencies_get_the_mixed_derivative() {
    // f = Σ yᵢ² aᵢ: g = 2 a y, so d(Σ cᵢ gᵢ) = 2 c a dy + 2 c y da; what is not named is data.
    let (y, a, b) = (vector::<f64>(&[1.0, 2.0]), vector::<f64>(&[3.0, -1.0]), vector::<f64>(&[5.0, 7.0]));
    let c = vector::<f64>(&[1.0, 10.0]);
    let mut r = record(&[unique_id(&y), unique_id(&a), unique_id(&b)], |m| {
        let (a2, b2) = (a.clone(), b.clone());
        let f = move |y: Flat<f64, Rec>, _: Rec| {
            let quadratic = ops::mul(ops::square(y.clone()), &a2);
            ops::sum(ops::add(quadratic, &ops::mul(y, &b2)))
        };
        let g = ops::gradient(y.clone().put_tape(m), vec![ops::handle(&a)], Through::Exact, f);
        ops::sum(ops::mul(g, &c))
    });
    let mut grad = |t: &Flat<f64>| r.grads.get_or_alloc_mut(t).expect("host memory").to_vec();
    assert_eq!(grad(&y), [6.0, -20.0]);
    assert_eq!(grad(&a), [2.0, 40.0]);
    assert_eq!(grad(&b), [0.0, 0.0]);
}

#[test]
fn foreign_operations_inside_are_differenced() {
    // dfdx's exp has no tangent rule: the second derivative of Σ e^y comes from differences.
    let y = vector::<f64>(&[0.3, -1.2]);
    let mut r = record(&[unique_id(&y)], |m| {
        let f = |y: Flat<f64, Rec>, _: Rec| ops::sum(y.exp());
        ops::sum(ops::gradient(y.clone().put_tape(m), Vec::new(), Through::Exact, f))
    });
    assert!(r.wide);
    let g = r.grads.get_or_alloc_mut(&y).expect("host memory").to_vec();
    assert!((g[0] - 0.3f64.exp()).abs() < 1e-8 && (g[1] - (-1.2f64).exp()).abs() < 1e-8, "{g:?}");
}

#[test]
fn rows_get_their_own_gradients() {
    let dev = Cpu::default();
    let y: Tensor<Rank2<3, 2>, f64, Cpu> = dev.normal(Key::new(1));
    let w: Tensor<Rank2<2, 2>, f64, Cpu> = dev.normal(Key::new(2));
    let b: Tensor<Rank1<2>, f64, Cpu> = dev.normal(Key::new(3));
    let rows = |y: &[f64]| {
        use dfdx::prelude::TensorFromVec;
        let t: Tensor<(usize, Const<2>), f64, Cpu> = dev.tensor_from_vec(y.to_vec(), (y.len() / 2, Const));
        let (w, b2) = (w.clone(), b.clone());
        let f = move |y: Tensor<(usize, Const<2>), f64, Cpu, Rec>, _: Rec| {
            ops::sum(ops::square(ops::linear(y, &w, &b2, Activation::Tanh)))
        };
        ops::gradient(t, Vec::new(), Through::Exact, f).as_vec()
    };
    let all = rows(&y.as_vec());
    let each: Vec<f64> = y.as_vec().chunks(2).flat_map(rows).collect();
    assert_eq!(all, each);
}
