//! Approximate inverses that are cheap to apply.

use super::exact::cholesky;
use super::vector::{dot, products, sum_by};
use super::LinearOperator;
use outerloop_core::{Error, Float, Interval, Key, LayerCurvature, Result};
use std::ops::Range;

/// An approximate inverse that is cheap to apply.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Preconditioner {
    /// The identity.
    #[default]
    None,
    /// The inverse of this positive diagonal: that of `A` (Jacobi), or second moments of gradients.
    Diagonal(Vec<f64>),
    /// The inverse of the part of `A` that is known to be diagonal, [`LinearOperator::diagonal`]: the decays and the
    /// damping. With r examples times outputs that is enough for r + 1 steps to the solution, whatever the decays.
    Decay,
    /// The inverse of the diagonal of `A`, estimated without bias as the mean of `z ⊙ A z` over this many random signs
    /// `z` of this key, one product each; elements below a hundredth of the mean are raised to that.
    /// Memory: two vectors per probe, 16 at most.
    Jacobi(usize, Key),
    /// The inverse of the known diagonal plus, for every dense layer `z = x w + b` under a loss, `m mᵀ ⊗ S +
    /// diag v ⊗ diag S` with the mean m and variance v of `(x, 1)` over the rows and the loss's curvature S by z
    /// ([`LinearOperator::layers`]): K-FAC whose factor of the inputs needs no matrix. Inputs have a mean, and so it has
    /// the few eigenvalues that stand far above all others. Hidden layers count with their diagonal alone, `(m² + v) ⊗
    /// diag S`, and weights of which nothing is known as a hundredth of the mean. The key draws random signs for hidden
    /// layers.
    ///
    /// Cost: a pass from each hidden layer to the loss and back. Memory: two vectors in f64.
    Layers(Key),
}

impl Preconditioner {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Preconditioner::None => "",
            Preconditioner::Diagonal(_) => "diagonal-",
            Preconditioner::Decay => "decay-",
            Preconditioner::Jacobi(..) => "jacobi-",
            Preconditioner::Layers(_) => "layers-",
        }
    }

    pub(super) fn validate(&self, dim: usize) -> Result<()> {
        match self {
            Preconditioner::None | Preconditioner::Decay | Preconditioner::Layers(_) => Ok(()),
            Preconditioner::Diagonal(d) if d.len() != dim => {
                Err(Error::mismatch("preconditioner: elements", dim, d.len()))
            }
            Preconditioner::Diagonal(d) => Interval::POSITIVE.check_all("preconditioner", d),
            Preconditioner::Jacobi(probes, _) => {
                Interval::COUNT.check("preconditioner: probes", *probes as f64)
            }
        }
    }

    /// The inverse for `a`, and the products that took.
    pub(super) fn inverse<E: Float>(&self, a: &mut dyn LinearOperator<E>) -> (Inverse, usize) {
        let invert = |d: &[f64]| Inverse::Diagonal(d.iter().map(|d| 1.0 / d).collect());
        match self {
            Preconditioner::None => (Inverse::Identity, 0),
            Preconditioner::Diagonal(d) => (invert(d), 0),
            // Where nothing is known, nothing is preconditioned.
            Preconditioner::Decay => {
                let known = a.diagonal().filter(|d| !d.contains(&0.0));
                (known.map_or(Inverse::Identity, |d| invert(&d)), 0)
            }
            Preconditioner::Jacobi(probes, key) => (invert(&estimated_diagonal(a, *probes, *key)), *probes),
            Preconditioner::Layers(key) => (of_layers(a, *key), 0),
        }
    }
}

/// `M⁻¹`.
pub(super) enum Inverse {
    /// `M = I`.
    Identity,
    /// This diagonal.
    Diagonal(Vec<f64>),
    /// This diagonal `B⁻¹` and, per layer, `B⁻¹ − B⁻¹ (m ⊗ I) K (m ⊗ I)ᵀ B⁻¹`.
    Layers(Vec<f64>, Vec<LowRank>),
}

/// A layer's `m mᵀ ⊗ S`, by Woodbury's formula.
pub(super) struct LowRank {
    weight: Range<usize>,
    bias: Option<Range<usize>>,
    /// `m` without the bias's 1.
    mean: Vec<f64>,
    /// `K = (S⁻¹ + G)⁻¹`, `G = (m ⊗ I)ᵀ B⁻¹ (m ⊗ I)`, `[outputs, outputs]`.
    kernel: Vec<f64>,
}

impl Inverse {
    /// `⟨r, M⁻¹ r⟩`, where `square` is `⟨r, r⟩`; leaves `M⁻¹ r` in `z` if it is no diagonal.
    pub(super) fn square(&self, r: &[f64], square: f64, z: &mut Vec<f64>) -> f64 {
        match self {
            Inverse::Identity => square,
            Inverse::Diagonal(m) => sum_by(r, m, |r, m| r * m * r),
            Inverse::Layers(m, layers) => {
                z.clear();
                z.extend(r.iter().zip(m).map(|(r, m)| r * m));
                layers.iter().for_each(|layer| layer.apply(m, z));
                dot(r, z)
            }
        }
    }

    /// `p ← M⁻¹ r + β p`, after [`Self::square`].
    pub(super) fn turn<E: Float>(&self, p: &mut [E], r: &[f64], z: &[f64], beta: f64) {
        let add = |p: &mut [E], z: &[f64]| {
            p.iter_mut().zip(z).for_each(|(p, z)| *p = E::of(z + beta * p.f64()));
        };
        match self {
            Inverse::Identity => add(p, r),
            Inverse::Diagonal(m) => {
                p.iter_mut().zip(r.iter().zip(m)).for_each(|(p, (r, m))| *p = E::of(r * m + beta * p.f64()));
            }
            Inverse::Layers(..) => add(p, z),
        }
    }
}

impl LowRank {
    /// Of a layer, with the inverse diagonal `B⁻¹` of all weights; `None` if the sum is not positive definite.
    fn new(layer: LayerCurvature, inverse: &[f64]) -> Option<Self> {
        let LayerCurvature { weight, bias, inputs, outputs } = layer;
        let mean: Vec<f64> = inputs.iter().map(|[mean, _]| *mean).collect();
        let o = weight.len() / mean.len();
        let mut g = bias.as_ref().map_or(vec![0.0; o], |bias| inverse[bias.clone()].to_vec());
        for (row, m) in inverse[weight.clone()].chunks_exact(o).zip(&mean) {
            g.iter_mut().zip(row).for_each(|(g, b)| *g += m * m * b);
        }
        // K = S (G⁻¹ + S)⁻¹ G⁻¹
        let mut sum = outputs.clone();
        (0..o).for_each(|c| sum[c * o + c] += 1.0 / g[c]);
        let mut kernel = vec![0.0; o * o];
        for c in 0..o {
            let mut x = vec![0.0; o];
            x[c] = 1.0 / g[c];
            if !(x[c].is_finite() && cholesky(sum.clone(), &mut x)) {
                return None;
            }
            for (row, k) in outputs.chunks_exact(o).zip(kernel[c..].iter_mut().step_by(o)) {
                *k = dot(row, &x);
            }
        }
        Some(LowRank { weight, bias, mean, kernel })
    }

    /// `z ← z − B⁻¹ (m ⊗ I) K (m ⊗ I)ᵀ z`, where `z = B⁻¹ r`.
    fn apply(&self, inverse: &[f64], z: &mut [f64]) {
        let o = self.weight.len() / self.mean.len();
        let mut u = self.bias.as_ref().map_or(vec![0.0; o], |bias| z[bias.clone()].to_vec());
        for (row, m) in z[self.weight.clone()].chunks_exact(o).zip(&self.mean) {
            u.iter_mut().zip(row).for_each(|(u, z)| *u += m * z);
        }
        let t: Vec<f64> = self.kernel.chunks_exact(o).map(|row| dot(row, &u)).collect();
        let rows =
            z[self.weight.clone()].chunks_exact_mut(o).zip(inverse[self.weight.clone()].chunks_exact(o));
        for ((row, inverse), m) in rows.zip(&self.mean) {
            row.iter_mut().zip(inverse).zip(&t).for_each(|((z, b), t)| *z -= b * m * t);
        }
        if let Some(bias) = &self.bias {
            let parts = z[bias.clone()].iter_mut().zip(&inverse[bias.clone()]).zip(&t);
            parts.for_each(|((z, b), t)| *z -= b * t);
        }
    }
}

/// See [`Preconditioner::Layers`].
fn of_layers<E: Float>(a: &mut dyn LinearOperator<E>, key: Key) -> Inverse {
    let n = a.dim();
    let mut base = a.diagonal().unwrap_or_else(|| vec![0.0; n]);
    let is_known: Vec<bool> = base.iter().map(|d| *d > 0.0).collect();
    let layers = a.layers(key);
    for layer in &layers {
        let o = layer.weight.len() / layer.inputs.len();
        let is_full = is_full(layer);
        let s: Vec<f64> =
            layer.outputs.iter().step_by(if is_full { o + 1 } else { 1 }).map(|s| s.max(0.0)).collect();
        for (row, [mean, variance]) in base[layer.weight.clone()].chunks_exact_mut(o).zip(&layer.inputs) {
            let second = if is_full { *variance } else { mean * mean + variance };
            row.iter_mut().zip(&s).for_each(|(b, s)| *b += second * s);
        }
        if let Some(bias) = layer.bias.clone().filter(|_| !is_full) {
            base[bias].iter_mut().zip(&s).for_each(|(b, s)| *b += s);
        }
    }
    let mean = base.iter().sum::<f64>() / n.max(1) as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return Inverse::Identity;
    }
    for (b, is_known) in base.iter_mut().zip(is_known) {
        if !is_known {
            *b = b.max(0.01 * mean);
        }
        *b = 1.0 / *b;
    }
    let parts = layers.into_iter().filter(is_full).filter_map(|layer| LowRank::new(layer, &base)).collect();
    Inverse::Layers(base, parts)
}

/// Whether all of its `S` is known. (Of one output the diagonal is all.)
fn is_full(layer: &LayerCurvature) -> bool {
    layer.outputs.len() * layer.inputs.len().pow(2) == layer.weight.len().pow(2)
}

/// The diagonal of `A` by Hutchinson's estimator, kept positive.
fn estimated_diagonal<E: Float>(a: &mut dyn LinearOperator<E>, probes: usize, key: Key) -> Vec<f64> {
    let n = a.dim();
    let mut sum = vec![0.0; n];
    let signs = |probe: usize, z: &mut [E]| {
        key.fold_in(probe as u64).fill_normal(z);
        z.iter_mut().for_each(|z| *z = E::of(1f64.copysign(z.f64())));
    };
    products(a, probes, signs, |_, z, az| {
        sum.iter_mut().zip(z.iter().zip(az)).for_each(|(s, (z, az))| *s += z.f64() * az.f64());
    });
    let mean = sum.iter().map(|s| s.abs()).sum::<f64>() / n.max(1) as f64;
    // NaN must not survive: a maximum that prefers numbers.
    sum.iter_mut().for_each(|s| *s = f64::max(*s, 0.01 * mean).max(f64::MIN_POSITIVE) / probes as f64);
    sum
}

#[cfg(test)]
mod tests {
    use super::super::{ConjugateGradient, Exact, HyperBatches, HyperEvaluator, Implicit};
    use super::*;
    use outerloop_core::ops;
    use outerloop_core::tensor::{Backend, Const, DynParams, DynTree, Mode, PutTape, Rank0, Rank2, Tensor};
    use outerloop_core::{BatchKey, HyperProblem, HyperTask, Layout};
    use std::sync::Arc;

    const ROWS: usize = 40;

    /// Softmax regression of positive inputs by a network of these widths, with a decay per weight.
    struct Net {
        widths: Vec<usize>,
        /// How far inputs differ.
        spread: f64,
        /// Tensors with decays.
        decayed: usize,
    }

    impl Net {
        fn layout(&self, tensors: usize) -> Arc<Layout> {
            let layers = self.widths.windows(2).enumerate();
            let all = layers
                .flat_map(|(i, w)| [(format!("w{i}"), vec![w[0], w[1]]), (format!("b{i}"), vec![w[1]])]);
            Arc::new(Layout::new(all.take(tensors)))
        }
    }

    impl<E: Float, B: Backend<E>> HyperTask<E, B> for Net {
        type Params = DynParams<E, B>;
        type Hyper = DynParams<E, B>;
        type Batch = (Tensor<(usize, usize), E, B>, Vec<u32>);
        fn name(&self) -> String {
            "net".into()
        }
        fn init(&self, dev: &B, key: Key) -> Self::Params {
            let layout = self.layout(usize::MAX);
            let mut w = vec![E::of(0.0); layout.len()];
            key.fill_normal(&mut w);
            w.iter_mut().for_each(|w| *w *= E::of(0.3));
            DynTree::new(dev, layout, &w)
        }
        fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper {
            let layout = self.layout(self.decayed);
            let decay = |i| E::of(-6.0 + 3.0 * key.fold_in(i as u64).uniform());
            DynTree::new(dev, layout.clone(), &(0..layout.len()).map(decay).collect::<Vec<_>>())
        }
        fn log_decays(&self) -> Vec<String> {
            self.layout(self.decayed).entries().iter().map(|e| e.name.clone()).collect()
        }
        fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
            let (i, o) = (self.widths[0], self.widths[self.widths.len() - 1]);
            let key = Key::new(3).fold_in(at.split as u64);
            let x = dev.filled((ROWS, i), |x| {
                let of = |at: usize| 1.0 + self.spread * key.fold_in(at as u64).uniform();
                x.iter_mut().enumerate().for_each(|(at, x)| *x = E::of(of(at)));
            });
            (x, (0..ROWS).map(|r| (r * 7 % o) as u32).collect())
        }
        fn train_loss<M: Mode<E, B>>(
            &self,
            w: &Self::Params,
            hyper: &Self::Hyper,
            batch: &Self::Batch,
            m: M,
        ) -> Tensor<Rank0, E, B, M> {
            let fit = HyperTask::<E, B>::valid_loss(self, w, hyper, batch, m);
            self.layout(self.decayed).entries().iter().enumerate().fold(fit, |loss, (i, e)| {
                let n = (e.numel(),);
                ops::add(loss, &ops::weight_decay(w.traced(i, n, m), &hyper.get(i, n)))
            })
        }
        fn valid_loss<M: Mode<E, B>>(
            &self,
            w: &Self::Params,
            _: &Self::Hyper,
            (x, labels): &Self::Batch,
            m: M,
        ) -> Tensor<Rank0, E, B, M> {
            let last = self.widths.len() - 2;
            let z = self.widths.windows(2).enumerate().fold(x.clone().put_tape(m), |x, (i, d)| {
                let act = if i < last { ops::Activation::Tanh } else { ops::Activation::Identity };
                ops::linear(x, &w.get(2 * i, (d[0], d[1])), &w.get(2 * i + 1, (d[1],)), act)
            });
            ops::softmax_cross_entropy(z, labels)
        }
    }

    /// Steps of CG to a cosine of 0.99 with the exact solution, of the Gauss-Newton matrix, and the residual there.
    fn steps(net: Net, preconditioner: Preconditioner) -> (usize, f64) {
        let problem = Arc::new(HyperProblem::<f64>::new(net).unwrap());
        let (w, hyper) = problem.init(Key::new(0));
        let joint = [w.data, hyper.data].concat();
        let at = HyperBatches::at(0, Key::new(1));
        let mut evaluator = HyperEvaluator::new(problem);
        let mut of = |implicit: Implicit<f64>| {
            evaluator.hypergradient(&implicit.gauss_newton().damped(1e-3), &at, &joint, None).unwrap()
        };
        let exact = of(Implicit::new(Exact::default())).solution.q;
        (1..300)
            .find_map(|steps| {
                let cg = ConjugateGradient { steps, tolerance: 0.0, preconditioner: preconditioner.clone() };
                let h = of(Implicit::new(cg));
                let q = &h.solution.q;
                let cosine = dot(q, &exact) / (dot(q, q) * dot(&exact, &exact)).sqrt();
                (cosine >= 0.99).then_some((steps, h.residual))
            })
            .expect("CG gets there")
    }

    #[test]
    fn layers_are_the_whole_matrix_where_all_inputs_are_equal() {
        let net = Net { widths: vec![5, 3], spread: 0.0, decayed: 2 };
        let (steps, residual) = steps(net, Preconditioner::Layers(Key::new(0)));
        assert!(steps == 1 && residual < 1e-10, "{steps} {residual:e}");
    }

    #[test]
    fn layers_save_steps() {
        for (widths, decayed) in
            [(vec![30, 10], 2), (vec![30, 10], 1), (vec![30, 10], 0), (vec![20, 8, 10], 4)]
        {
            let net = || Net { widths: widths.clone(), spread: 1.0, decayed };
            let (with, _) = steps(net(), Preconditioner::Layers(Key::new(0)));
            let (without, _) = steps(net(), Preconditioner::None);
            assert!(with < without, "{widths:?} {decayed}: {with} {without}");
        }
    }

    /// A layer whose weight is a hyperparameter, under one whose weight is trained.
    struct Augmented;

    impl Augmented {
        fn fit<E: Float, B: Backend<E>, M: Mode<E, B>>(
            w: &Tensor<Rank2<3, 4>, E, B>,
            x: Tensor<(usize, Const<3>), E, B, M>,
        ) -> Tensor<Rank0, E, B, M> {
            let zeros = w.device().filled(Default::default(), |_| ());
            let z = ops::linear(x, w, &zeros, ops::Activation::Identity);
            ops::softmax_cross_entropy(z, &(0..ROWS as u32).map(|r| r % 4).collect::<Vec<_>>())
        }
    }

    impl<E: Float, B: Backend<E>> HyperTask<E, B> for Augmented {
        type Params = Tensor<Rank2<3, 4>, E, B>;
        type Hyper = Tensor<Rank2<3, 3>, E, B>;
        type Batch = Tensor<(usize, Const<3>), E, B>;
        fn name(&self) -> String {
            "augmented".into()
        }
        fn init(&self, dev: &B, key: Key) -> Self::Params {
            dev.normal(key)
        }
        fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper {
            dev.normal(key)
        }
        fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
            dev.normal_like((ROWS, Const), Key::new(5).fold_in(at.split as u64))
        }
        fn train_loss<M: Mode<E, B>>(
            &self,
            w: &Self::Params,
            hyper: &Self::Hyper,
            batch: &Self::Batch,
            m: M,
        ) -> Tensor<Rank0, E, B, M> {
            let zeros = w.device().filled(Default::default(), |_| ());
            let x = ops::linear(batch.clone().put_tape(m), hyper, &zeros, ops::Activation::Tanh);
            let decay: Tensor<Rank0, E, B> = w.device().filled((), |d| d.fill(E::of(-3.0)));
            ops::add(Self::fit(w, x), &ops::weight_decay(w.clone().put_tape(m), &decay))
        }
        fn valid_loss<M: Mode<E, B>>(
            &self,
            w: &Self::Params,
            _: &Self::Hyper,
            batch: &Self::Batch,
            m: M,
        ) -> Tensor<Rank0, E, B, M> {
            Self::fit(w, batch.clone().put_tape(m))
        }
    }

    #[test]
    fn layers_of_hyperparameters_are_none_of_the_matrix() {
        let problem = Arc::new(HyperProblem::<f64>::new(Augmented).unwrap());
        let (w, hyper) = problem.init(Key::new(0));
        let joint = [w.data, hyper.data].concat();
        let at = HyperBatches::at(0, Key::new(1));
        let mut evaluator = HyperEvaluator::new(problem);
        let mut of = |implicit| evaluator.hypergradient(&implicit, &at, &joint, None).unwrap();
        let exact = of(Implicit::new(Exact::default()));
        let preconditioner = Preconditioner::Layers(Key::new(0));
        let got = of(Implicit::new(ConjugateGradient { steps: 12, preconditioner, ..Default::default() }));
        let error: Vec<f64> = got.grad.iter().zip(&exact.grad).map(|(a, b)| a - b).collect();
        assert!(dot(&error, &error) < 1e-16 * dot(&exact.grad, &exact.grad), "{error:?}");
    }
}
