//! One core: a hypergradient with a weight decay per weight, on 1000 training and 1000 validation examples of MNIST's
//! shape, by 20 Neumann terms and by 20 steps of conjugate gradients.

mod report;

use criterion::Criterion;
use outerloop::core::ops;
use outerloop::outer::implicit::{HyperBatches, HyperEvaluator};
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

fn net(c: &mut Criterion, name: &'static str, widths: Vec<usize>) -> Result<()> {
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
    group.bench("20 products alone", 1, work(), || {
        (0..20).for_each(|_| kept.hvp(black_box(&v), &mut out));
        1
    });
    let mut evaluator = HyperEvaluator::new(problem);
    let cg = ConjugateGradient { steps: 20, tolerance: 0.0, ..ConjugateGradient::default() };
    for (name, implicit) in [
        ("hypergradient, 20 Neumann terms", Implicit::new(Neumann::new(20, 0.01))),
        ("hypergradient, 20 CG steps", Implicit::new(cg)),
    ] {
        evaluator.hypergradient(&implicit, &at, &joint, None)?;
        group.bench(name, 1, work(), || {
            let h = evaluator.hypergradient(&implicit, &at, black_box(&joint), None);
            black_box(h.expect("it worked before").residual);
            1
        });
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
