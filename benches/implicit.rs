//! A hypergradient with a weight decay per weight, on 1000 training and 1000 validation examples of MNIST's shape, by 20
//! Neumann terms and by 20 steps of conjugate gradients, beside the bare matrix products of 20 products with the Hessian;
//! and what it takes to come near the exact one.

mod report;

use criterion::Criterion;
use outerloop::core::ops;
use outerloop::outer::implicit::{HyperBatches, HyperEvaluator, Preconditioner};
use outerloop::prelude::*;
use report::{Group, Work};
use std::hint::black_box;
use std::sync::Arc;

/// Examples of either kind.
const EXAMPLES: usize = 1000;

/// A classifier with tanh layers of these widths on random pixels and labels.
struct Net(Vec<usize>);

impl Net {
    fn layout(&self) -> Arc<Layout> {
        let layers = self.0.windows(2).enumerate();
        let tensors =
            layers.flat_map(|(i, w)| [(format!("w{i}"), vec![w[0], w[1]]), (format!("b{i}"), vec![w[1]])]);
        Arc::new(Layout::new(tensors))
    }
    /// Multiply-adds of one product with the Hessian, times two: forwards and backwards, the tangents of layer l need
    /// two products with the data, and four with hidden units.
    fn product(&self) -> f64 {
        let layers = self.0.windows(2).enumerate();
        let parts = layers.map(|(i, w)| (w[0] * w[1]) as f64 * if i == 0 { 2.0 } else { 6.0 });
        2.0 * EXAMPLES as f64 * parts.sum::<f64>()
    }
}

/// Images, labels, and their split.
type Data<E, B> = (Tensor<(usize, usize), E, B>, Vec<u32>, Split);

impl<E: Float, B: Backend<E>> HyperTask<E, B> for Net {
    type Params = DynParams<E, B>;
    type Hyper = DynParams<E, B>;
    type Batch = Data<E, B>;
    fn name(&self) -> String {
        "net".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let mut w = vec![E::of(0.0); self.layout().len()];
        key.fill_normal(&mut w);
        w.iter_mut().for_each(|w| *w *= E::of(0.05));
        DynTree::new(dev, self.layout(), &w)
    }
    fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper {
        let n = self.layout().len() as u64;
        let lambda: Vec<E> = (0..n).map(|i| E::of(-6.0 + 3.0 * key.fold_in(i).uniform())).collect();
        DynTree::new(dev, self.layout(), &lambda)
    }
    fn log_decays(&self) -> Vec<String> {
        self.layout().entries().iter().map(|e| e.name.clone()).collect()
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Data<E, B> {
        let key = at.key.fold_in(at.split as u64);
        let uniform = |i: usize| key.fold_in(i as u64).uniform();
        let x = dev.filled((EXAMPLES, self.0[0]), |x| {
            x.iter_mut().enumerate().for_each(|(i, x)| *x = E::of(uniform(i)));
        });
        let labels = (0..EXAMPLES).map(|i| (10.0 * key.named("label").fold_in(i as u64).uniform()) as u32);
        (x, labels.collect(), at.split)
    }
    fn refill(&self, dev: &B, at: BatchKey, batch: &mut Data<E, B>) {
        if at.split != batch.2 {
            *batch = self.batch(dev, at);
        }
    }
    fn train_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        hyper: &Self::Hyper,
        batch: &Data<E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let fit = HyperTask::<E, B>::valid_loss(self, w, hyper, batch, m);
        self.layout().entries().iter().enumerate().fold(fit, |loss, (i, e)| {
            let n = (e.numel(),);
            ops::add(loss, &ops::weight_decay(w.traced(i, n, m), &hyper.get(i, n)))
        })
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        _: &Self::Hyper,
        (x, labels, _): &Data<E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let last = self.0.len() - 2;
        let layers = self.0.windows(2).enumerate();
        let logits = layers.fold(x.clone().put_tape(m), |x, (i, d)| {
            let act = if i < last { Activation::Tanh } else { Activation::Identity };
            linear(x, &w.get(2 * i, (d[0], d[1])), &w.get(2 * i + 1, (d[1],)), act)
        });
        softmax_cross_entropy(logits, labels)
    }
}

/// `c = a b` by the `gemm` crate on one core, `a` `[m, k]` and `b` `[k, n]` with the given distances between rows and
/// between columns, `c` row-major.
fn gemm(
    [m, k, n]: [usize; 3],
    (a, a_by): (&[f32], [isize; 2]),
    (b, b_by): (&[f32], [isize; 2]),
    c: &mut [f32],
) {
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
    // SAFETY: the buffers have as many numbers as their matrices, and callers' distances are those of row-major ones or
    // of their transposes.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_by[1],
            a_by[0],
            b.as_ptr(),
            b_by[1],
            b_by[0],
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The matrix products of one product with the Hessian and nothing else, with random numbers in all buffers.
struct Bare {
    /// Per layer: widths, units `y`, slopes `d`, weights; then room.
    layers: Vec<([usize; 2], [Vec<f32>; 3])>,
    units: Vec<f32>,
    weights: Vec<f32>,
}

impl Bare {
    fn new(widths: &[usize]) -> Self {
        let draw = |n: usize| {
            let mut x = vec![0.0; n];
            Key::new(3).fill_normal(&mut x);
            x
        };
        let layer = |w: &[usize]| ([w[0], w[1]], [EXAMPLES * w[0], EXAMPLES * w[1], w[0] * w[1]].map(draw));
        let widest = widths.iter().copied().max().unwrap_or(0);
        let layers: Vec<_> = widths.windows(2).map(layer).collect();
        let weights = layers.iter().map(|(_, [_, _, w])| w.len()).max().unwrap_or(0);
        Bare { layers, units: vec![0.0; EXAMPLES * widest], weights: vec![0.0; weights] }
    }

    fn run(&mut self) {
        for (l, ([i, o], [y, d, w])) in self.layers.iter().enumerate() {
            let (n, i_by, o_by) = (EXAMPLES, *i as isize, *o as isize);
            // With tangents in place of either factor: two of each behind the first layer.
            for _ in 0..if l == 0 { 1 } else { 2 } {
                gemm([n, *i, *o], (y, [i_by, 1]), (w, [o_by, 1]), &mut self.units[..n * o]);
                gemm([*i, n, *o], (y, [1, i_by]), (d, [o_by, 1]), &mut self.weights[..i * o]);
                if l > 0 {
                    gemm([n, *o, *i], (d, [o_by, 1]), (w, [1, o_by]), &mut self.units[..n * i]);
                }
            }
        }
        black_box((&self.units, &self.weights));
    }
}

/// Times what it takes to come to a cosine of 0.99 to the exact hypergradient of the logistic problem.
fn accuracy(group: &mut Group<'_>, joint: &[f32], at: &HyperBatches) -> Result<()> {
    let wide = Arc::new(HyperProblem::<f64>::new(Net(vec![784, 10]))?);
    let wide_joint: Vec<f64> = joint.iter().map(|x| f64::from(*x)).collect();
    let long = ConjugateGradient { steps: 2000, tolerance: 1e-10, preconditioner: Preconditioner::Decay };
    let exact = HyperEvaluator::new(wide).hypergradient(&Implicit::new(long), at, &wide_joint, None)?;
    println!("reference in f64: residual {:.1e} after {} products", exact.residual, exact.solution.products);
    let exact: Vec<f32> = exact.grad.iter().map(|g| *g as f32).collect();
    let mut evaluator = HyperEvaluator::new(Arc::new(HyperProblem::<f32>::new(Net(vec![784, 10]))?));
    let cg =
        |steps, preconditioner| Implicit::new(ConjugateGradient { steps, tolerance: 0.0, preconditioner });
    /// By its number of steps.
    type Method<'a> = Box<dyn Fn(usize) -> Implicit + 'a>;
    let methods: [(&str, Method<'_>); 5] = [
        ("neumann", Box::new(|terms| Implicit::new(Neumann { terms, ..Neumann::default() }))),
        ("cg", Box::new(|steps| cg(steps, Preconditioner::None))),
        ("cg, jacobi by 2 probes", Box::new(|steps| cg(steps, Preconditioner::Jacobi(2, Key::new(0))))),
        ("cg, preconditioned by the decays", Box::new(|steps| cg(steps, Preconditioner::Decay))),
        ("cg, preconditioned by layers", Box::new(|steps| cg(steps, Preconditioner::Layers(Key::new(0))))),
    ];
    for (name, method) in methods {
        let mut reached = None;
        for steps in 1..=200 {
            let h = evaluator.hypergradient(&method(steps), at, joint, None)?;
            if h.cosine(&exact) >= 0.99 {
                reached = Some((steps, h.solution.products));
                break;
            }
        }
        let Some((steps, products)) = reached else {
            println!("{name}: no cosine of 0.99 within 200 steps");
            continue;
        };
        println!(
            "{name}: a cosine of 0.99 to the exact hypergradient after {steps} steps, {products} products"
        );
        let implicit = method(steps);
        group.bench(&format!("to cosine 0.99, {name}"), 1, Work::default(), || {
            let h = evaluator.hypergradient(&implicit, at, black_box(joint), None);
            black_box(h.expect("it worked before").residual);
            1
        });
    }
    Ok(())
}

fn net(c: &mut Criterion, name: &'static str, widths: Vec<usize>) -> Result<()> {
    let (mut bare, is_linear) = (Bare::new(&widths), widths.len() == 2);
    let net = Net(widths);
    let flops = 20.0 * net.product();
    let problem = Arc::new(HyperProblem::<f32>::new(net)?);
    let (w, lambda) = problem.init(Key::new(0));
    let joint = [w.data, lambda.data].concat();
    let n = problem.params.len();
    let at = HyperBatches::at(0, Key::new(1));
    let mut group = Group::new(c, name);
    let work = || Work { flops, ..Work::default() };

    let mut evaluator = problem.joint.evaluator();
    let (mut v, mut out) = (vec![0.0; n], vec![0.0; n]);
    let (_, kept) = evaluator.linearize(&joint, &mut [], at.curvature, &mut out);
    let mut kept = kept.ok_or_else(|| Error::invalid("bench", "expected a linearization"))?;
    Key::new(2).fill_normal(&mut v);
    group.bench("the matrix products of 20 products, by gemm", 1, work(), || {
        (0..20).for_each(|_| bare.run());
        1
    });
    group.bench("20 products alone", 1, work(), || {
        (0..20).for_each(|_| kept.hvp(black_box(&v), &mut out));
        1
    });
    drop(kept);
    let mut evaluator = HyperEvaluator::new(problem.clone());
    let cg = ConjugateGradient { steps: 20, tolerance: 0.0, ..ConjugateGradient::default() };
    let mut methods = vec![
        ("hypergradient, 20 Neumann terms", Implicit::new(Neumann::new(20, 0.01))),
        ("hypergradient, 20 CG steps", Implicit::new(cg.clone())),
    ];
    if !is_linear {
        // The Hessian is indefinite there, which ends CG early.
        methods.push(("hypergradient, 20 CG steps, Gauss-Newton", Implicit::new(cg).gauss_newton()));
    }
    for (name, implicit) in methods {
        let h = evaluator.hypergradient(&implicit, &at, &joint, None)?;
        println!("{name}: {} products, {:?}", h.solution.products, h.solution.status);
        let mut once = || {
            let h = evaluator.hypergradient(&implicit, &at, black_box(&joint), None);
            black_box(h.expect("it worked before").residual);
        };
        let time = group.bench(name, 1, work(), || {
            once();
            1
        });
        if time.is_some() {
            group.ratio_in_turn(&format!("{name} / matrix products alone"), once, || {
                (0..20).for_each(|_| bare.run());
            });
        }
    }
    let implicit = Implicit::new(Neumann::new(20, 0.01));
    let mut evaluators = [HyperEvaluator::new(problem.clone()), evaluator];
    group.bench(
        "two hypergradients, 20 Neumann terms, on two threads",
        2,
        Work { flops: 2.0 * flops, ..work() },
        || {
            std::thread::scope(|scope| {
                for evaluator in &mut evaluators {
                    scope.spawn(|| {
                        let h = evaluator.hypergradient(&implicit, &at, black_box(&joint), None);
                        black_box(h.expect("it worked before").residual);
                    });
                }
            });
            1
        },
    );
    if is_linear {
        accuracy(&mut group, &joint, &at)?;
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut c = report::criterion();
    net(&mut c, "implicit, logistic 784-10", vec![784, 10])?;
    net(&mut c, "implicit, mlp 784-256-10", vec![784, 256, 10])?;
    c.final_summary();
    Ok(())
}
