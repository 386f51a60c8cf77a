//! A stack of dense layers with its loss as one f32 kernel: what the operations of [`super`] compute
//! one by one on the tape, in one pass over blocks of rows that stay in the cache, without
//! allocation.

mod head;
mod layer;
mod linear;
mod rows;

use crate::simd::Path;
pub use linear::DenseLinear;

use super::tile::Matrix;
use head::{Keep, Loss, Target};
use layer::{Back, Layer, Units};
use linear::{Kept, Pool};
use pulp::{Simd, WithSimd};
use std::sync::{Arc, Mutex};

/// Rows that go through all layers, forwards and backwards, before the next ones do: few enough for
/// the first-level cache, many enough to fill register tiles.
const BLOCK: usize = 32;

/// What a [`DenseNet`] minimizes, averaged over rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Softmax cross entropy in nats against one label per row.
    CrossEntropy,
    /// Mean over outputs of `(z − onehot(label))²`.
    SquaredError,
    /// Mean over outputs of `(sigmoid(z) − x)²` against the network's inputs `x`.
    Reconstruction,
}

/// An elementwise function with its derivatives, compiled for vectors; see [`super::scalar`].
pub struct Elementwise(Box<dyn Map>);

impl Elementwise {
    /// From `f`, which returns `[f(x), f'(x), f''(x)]`.
    pub fn new(f: impl Fn(f32) -> [f32; 3] + Copy + Send + Sync + 'static) -> Self {
        Elementwise(Box::new(f))
    }
}

impl std::fmt::Debug for Elementwise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Elementwise")
    }
}

/// Object-safe side of [`Elementwise`].
trait Map: Send + Sync {
    /// `y ← f(y)`.
    fn value(&self, path: Path, y: &mut [f32]);
    /// `y ← f(y)`, `d1 ← f'`.
    fn slope(&self, path: Path, y: &mut [f32], d1: &mut [f32]);
    /// `y ← f(y)`, `d1 ← f'`, `d2 ← f''`.
    fn curve(&self, path: Path, y: &mut [f32], d1: &mut [f32], d2: &mut [f32]);
    /// `y ← f(y)`, `d1 ← f'`; also `d2 ← f'' t` and `t ← f' t` for the tangent `t` of the argument.
    fn tangent(&self, path: Path, y: &mut [f32], d1: &mut [f32], d2: &mut [f32], t: &mut [f32]);
}

impl<F: Fn(f32) -> [f32; 3] + Copy + Send + Sync> Map for F {
    fn value(&self, path: Path, y: &mut [f32]) {
        path.run(Plain(
            #[inline(always)]
            || {
                // Adding 0 keeps the compiler from storing only where a ReLU changes something, by
                // masked stores: 10x slower.
                for y in y {
                    *y = self(*y)[0] + 0.0;
                }
            },
        ));
    }
    fn slope(&self, path: Path, y: &mut [f32], d1: &mut [f32]) {
        path.run(Plain(
            #[inline(always)]
            || {
                for (y, d1) in y.iter_mut().zip(d1) {
                    let [value, first, _] = self(*y);
                    (*y, *d1) = (value + 0.0, first);
                }
            },
        ));
    }
    fn curve(&self, path: Path, y: &mut [f32], d1: &mut [f32], d2: &mut [f32]) {
        path.run(Plain(
            #[inline(always)]
            || {
                for ((y, d1), d2) in y.iter_mut().zip(d1).zip(d2) {
                    let [value, first, second] = self(*y);
                    (*y, *d1, *d2) = (value + 0.0, first, second);
                }
            },
        ));
    }
    fn tangent(&self, path: Path, y: &mut [f32], d1: &mut [f32], d2: &mut [f32], t: &mut [f32]) {
        path.run(Plain(
            #[inline(always)]
            || {
                for (((y, d1), d2), t) in y.iter_mut().zip(d1).zip(d2).zip(t) {
                    let [value, first, second] = self(*y);
                    (*y, *d1, *d2, *t) = (value + 0.0, first, second * *t, first * *t);
                }
            },
        ));
    }
}

/// A loop that the compiler vectorizes.
struct Plain<F>(F);
impl<F: FnOnce()> WithSimd for Plain<F> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        (self.0)();
    }
}

/// The rows of a batch, named by their place in a data set.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The data set's inputs, `[n, inputs]`.
    pub inputs: &'a [f32],
    /// The data set's labels, `[n]`, each below the number of outputs; not read by
    /// [`Head::Reconstruction`].
    pub labels: &'a [u32],
    /// Which of them the batch holds.
    pub index: &'a [u32],
}

/// Dense layers `a ← f(a w + b)`, the last one without `f`, under a [`Head`], over one flat buffer: per
/// layer the weight `[inputs, outputs]`, then the bias `[outputs]`.
///
/// Owns its scratch: make one per thread. Differs from the same network made of [`super::linear`] in the
/// order of sums only.
///
/// ```
/// use outerloop_core::ops::{scalar, DenseNet, Elementwise, Head, Rows};
/// let mut net = DenseNet::new(&[2, 3, 2], Elementwise::new(scalar::relu), Head::CrossEntropy);
/// let params = vec![0.1; net.num_params()];
/// let mut grad = vec![0.0; params.len()];
/// let rows = Rows { inputs: &[1.0, 2.0, 3.0, 4.0], labels: &[0, 1], index: &[1, 0] };
/// let loss = net.loss_and_grad(&params, rows, &mut grad);
/// assert!((loss - 2f32.ln()).abs() < 1e-6); // equal logits for both classes
/// ```
#[derive(Debug)]
pub struct DenseNet {
    layers: Vec<Layer>,
    map: Elementwise,
    head: Head,
    path: Path,
    /// What linearizations share, and leave behind for the next ones.
    pool: Arc<Mutex<Pool>>,
}

impl DenseNet {
    /// A network with layers of these widths, inputs first; `map` follows all but the last layer.
    ///
    /// # Panics
    /// If there are fewer than two widths or one is 0, or a reconstruction is not as wide as its
    /// inputs.
    #[track_caller]
    pub fn new(widths: &[usize], map: Elementwise, head: Head) -> Self {
        Self::with_path(widths, map, head, Path::best())
    }

    #[track_caller]
    fn with_path(widths: &[usize], map: Elementwise, head: Head, path: Path) -> Self {
        assert!(widths.len() > 1 && !widths.contains(&0), "dense net: widths {widths:?}");
        let is_square = widths.first() == widths.last();
        assert!(head != Head::Reconstruction || is_square, "dense net: reconstruction by {widths:?}");
        let mut start = 0;
        let layer = |w: &[usize]| {
            let layer = Layer::new(w[0], w[1], start, path);
            start += (w[0] + 1) * w[1];
            layer
        };
        let layers: Vec<Layer> = widths.windows(2).map(layer).collect();
        DenseNet { layers, map, head, path, pool: Arc::default() }
    }

    /// Length of the flat buffer.
    pub fn num_params(&self) -> usize {
        self.layers.iter().map(|l| (l.place.inputs + 1) * l.place.outputs).sum()
    }

    /// The mean loss of the rows.
    pub fn loss(&mut self, params: &[f32], rows: Rows<'_>) -> f32 {
        self.run(params, rows, Order::Value)
    }

    /// The same; overwrites `grad`, of the length of `params`, with its gradient.
    pub fn loss_and_grad(&mut self, params: &[f32], rows: Rows<'_>, grad: &mut [f32]) -> f32 {
        let loss = self.run(params, rows, Order::Gradient);
        self.layers.iter().for_each(|l| l.place.write_grad(&l.params, grad));
        loss
    }

    /// [`Self::loss_and_grad`], to the same bits, with what many products with second derivatives there need.
    pub fn linearize(&mut self, params: &[f32], rows: Rows<'_>, grad: &mut [f32]) -> (f32, DenseLinear) {
        let places = self.layers.iter().map(|l| l.place).collect();
        let mut kept = Kept::new(&self.pool, places, self.head, rows.index.len());
        let loss = self.run(params, rows, Order::Linear(&mut kept));
        self.layers.iter().for_each(|l| l.place.write_grad(&l.params, grad));
        kept.copy_weights(self.layers.iter().map(|l| &l.params));
        (loss, DenseLinear::new(kept, self.pool.clone()))
    }

    /// The same; also overwrites `hvp` with the Hessian times `v`, both of the length of `params`.
    pub fn loss_grad_hvp(
        &mut self,
        params: &[f32],
        rows: Rows<'_>,
        v: &[f32],
        grad: &mut [f32],
        hvp: &mut [f32],
    ) -> f32 {
        let loss = self.run(params, rows, Order::Hessian(v));
        for l in &self.layers {
            l.place.write_grad(&l.params, grad);
            l.place.write_grad(&l.tangent, hvp);
        }
        loss
    }

    /// The mean loss; leaves the gradients in the layers.
    fn run(&mut self, params: &[f32], rows: Rows<'_>, mut order: Order<'_>) -> f32 {
        let DenseNet { layers, map, head, path, .. } = self;
        let v = match order {
            Order::Hessian(v) => Some(v),
            _ => None,
        };
        let last = layers.len() - 1;
        for (i, l) in layers.iter_mut().enumerate() {
            // What a softmax must not see.
            let is_masked = i == last && *head == Head::CrossEntropy;
            l.load(params, v, if is_masked { f32::NEG_INFINITY } else { 0.0 });
        }
        let inputs = layers[0].place.inputs;
        let with_tangent = v.is_some();
        let (mut x, mut labels) = ([&[][..]; BLOCK], [0; BLOCK]);
        let mut loss = 0.0;
        for (block, index) in rows.index.chunks(BLOCK).enumerate() {
            let n = index.len();
            for (r, &i) in index.iter().enumerate() {
                let i = i as usize;
                x[r] = &rows.inputs[i * inputs..][..inputs];
                if *head != Head::Reconstruction {
                    labels[r] = rows.labels[i];
                }
            }
            let x = &x[..n];
            for l in 0..=last {
                let (layer, a, ta) = around(layers, l, x);
                layer.forward(a, with_tangent.then_some(ta), n, l == last);
                if l < last {
                    let Units { y, d1, d2, t, .. } = &mut layer.units;
                    let len = n * layer.place.strides[1];
                    match &mut order {
                        Order::Value => map.0.value(*path, &mut y[..len]),
                        Order::Gradient => map.0.slope(*path, &mut y[..len], &mut d1[..len]),
                        Order::Linear(kept) => {
                            let [kept_y, kept_d1, kept_d2] = kept.units(l, block, len);
                            map.0.curve(*path, &mut y[..len], &mut d1[..len], kept_d2);
                            kept_y.copy_from_slice(&y[..len]);
                            kept_d1.copy_from_slice(&d1[..len]);
                        }
                        Order::Hessian(_) => {
                            map.0.tangent(
                                *path,
                                &mut y[..len],
                                &mut d1[..len],
                                &mut d2[..len],
                                &mut t[..len],
                            );
                        }
                    }
                }
            }
            let end = &mut layers[last];
            let len = n * end.place.strides[1];
            loss += path.run(Loss {
                head: *head,
                outputs: end.place.outputs,
                width: end.place.strides[1],
                weight: 1.0 / rows.index.len() as f32,
                target: match head {
                    Head::Reconstruction => Target::Rows(x),
                    Head::CrossEntropy | Head::SquaredError => Target::Labels(&labels[..n]),
                },
                z: &mut end.units.d[..len],
                tz: if with_tangent { &mut end.units.td[..len] } else { &mut [] },
                keep: match &mut order {
                    Order::Linear(kept) => kept.curvature(block, len),
                    _ => Keep { hessian: &mut [], gauss_newton: &mut [] },
                },
            });
            match &mut order {
                Order::Value => continue,
                Order::Linear(kept) => kept.slope(last, block, len).copy_from_slice(&end.units.d[..len]),
                Order::Gradient | Order::Hessian(_) => {}
            }
            for l in (0..=last).rev() {
                let (layer, a, ta) = around(layers, l, x);
                layer.add_grad(a, with_tangent.then_some(ta), n);
                if let (before @ [.., _], [layer, ..]) = layers.split_at_mut(l) {
                    let back = match &mut order {
                        Order::Linear(kept) => {
                            Back::Kept(kept.slope(l - 1, block, n * layer.place.strides[0]))
                        }
                        Order::Hessian(_) => Back::Tangent,
                        Order::Value | Order::Gradient => Back::Slope,
                    };
                    layer.backward(&mut before[l - 1].units, n, back);
                }
            }
        }
        loss as f32
    }
}

/// How many derivatives are wanted.
enum Order<'a> {
    Value,
    Gradient,
    /// And what products with second derivatives need.
    Linear(&'a mut Kept),
    /// And the second one along this direction.
    Hessian(&'a [f32]),
}

/// Layer `l` with its inputs and their tangent; the data `x` has none.
fn around<'a>(
    layers: &'a mut [Layer],
    l: usize,
    x: &'a [&'a [f32]],
) -> (&'a mut Layer, Matrix<'a>, Option<Matrix<'a>>) {
    let (before, rest) = layers.split_at_mut(l);
    let (a, ta) = match before.last() {
        None => (Matrix::Listed(x), None),
        Some(b) => {
            let matrix = |units| Matrix::Strided(units, b.place.strides[1]);
            (matrix(&b.units.y), Some(matrix(&b.units.t)))
        }
    };
    (&mut rest[0], a, ta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::tensor::{
        record_linear, Cpu, Curvature, DynParams, DynTree, ParamTree, PutTape, TensorFromVec,
    };
    use crate::Key;

    /// Loss, gradient and `H v` on the given path, which are those of a linearization, too.
    fn all(path: Path, widths: &[usize], head: Head, rows: usize) -> Vec<f32> {
        let mut net = DenseNet::with_path(widths, Elementwise::new(crate::ops::scalar::tanh), head, path);
        let n = net.num_params();
        let draw = |n: usize, name: &str| {
            let mut x = vec![0.0; n];
            Key::new(0).named(name).fill_normal(&mut x);
            x
        };
        let inputs: Vec<f32> = draw(rows * widths[0], "inputs");
        let labels: Vec<u32> = (0..rows).map(|i| (i * 7 % widths[widths.len() - 1]) as u32).collect();
        let index: Vec<u32> = (0..rows as u32).rev().collect();
        let rows = Rows { inputs: &inputs, labels: &labels, index: &index };
        let mut out = vec![0.0; 1 + 2 * n];
        let (loss, rest) = out.split_at_mut(1);
        let (grad, hvp) = rest.split_at_mut(n);
        let params = draw(n, "params");
        // The second one takes the first one's buffers.
        for v in ["other", "v"] {
            let v = draw(n, v);
            loss[0] = net.loss_grad_hvp(&params, rows, &v, grad, hvp);
            let (mut again, mut product) = (vec![0.0; n], vec![0.0; n]);
            let (value, mut linear) = net.linearize(&params, rows, &mut again);
            assert!(value.to_bits() == loss[0].to_bits() && again == *grad);
            for _ in 0..2 {
                linear.product(rows, Curvature::Hessian, &v, &mut product);
                assert_eq!(product, *hvp, "{widths:?} {}", path.name());
            }
        }
        out
    }

    /// `G v` of the same network made of operations.
    fn on_tape(widths: [usize; 3], params: &[f32], x: &[f32], labels: &[u32], v: &[f32]) -> Vec<f32> {
        let [i, h, o] = widths;
        let dev = Cpu::default();
        let shapes = [vec![i, h], vec![h], vec![h, o], vec![o]];
        let names = ["w0", "b0", "w1", "b1"].map(String::from);
        let layout = Arc::new(crate::Layout::new(names.into_iter().zip(shapes)));
        let w: DynParams<f32, Cpu> = DynTree::new(&dev, layout.clone(), params);
        let x = dev.tensor_from_vec(x.to_vec(), (labels.len(), i));
        let r = record_linear(&w.ids(), 4, |m| {
            let y = super::super::linear(x.put_tape(m), &w.get(0, (i, h)), &w.get(1, (h,)), Activation::Tanh);
            let z = super::super::linear(y, &w.get(2, (h, o)), &w.get(3, (o,)), Activation::Identity);
            super::super::softmax_cross_entropy(z, labels)
        });
        let mut out: Vec<Vec<f32>> = layout.entries().iter().map(|e| vec![0.0; e.numel()]).collect();
        let v: Vec<&[f32]> = layout.entries().iter().map(|e| &v[e.range()]).collect();
        let parts = out.iter_mut().map(|part| &mut part[..]).collect();
        r.linear.unwrap().products(&[v], vec![parts], Curvature::GaussNewton);
        out.concat()
    }

    #[test]
    fn the_gauss_newton_matrix_is_that_of_the_operations() {
        let (widths, rows) = ([5, 9, 4], 45);
        let map = Elementwise::new(crate::ops::scalar::tanh);
        let mut net = DenseNet::new(&widths, map, Head::CrossEntropy);
        let n = net.num_params();
        let draw = |n: usize, name: &str| {
            let mut x = vec![0.0; n];
            Key::new(3).named(name).fill_normal(&mut x);
            x
        };
        let (params, x, v) = (draw(n, "params"), draw(rows * 5, "inputs"), draw(n, "v"));
        let labels: Vec<u32> = (0..rows as u32).map(|i| i % 4).collect();
        let index: Vec<u32> = (0..rows as u32).collect();
        let rows = Rows { inputs: &x, labels: &labels, index: &index };
        let want = on_tape(widths, &params, &x, &labels, &v);
        let (mut grad, mut got, mut hvp) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        let (_, mut linear) = net.linearize(&params, rows, &mut grad);
        linear.product(rows, Curvature::GaussNewton, &v, &mut got);
        linear.product(rows, Curvature::Hessian, &v, &mut hvp);
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let gap = |other: &[f32]| norm(&mut got.iter().zip(other).map(|(a, b)| a - b));
        let size = norm(&mut want.iter().copied());
        assert!(gap(&want) < 1e-5 * size && gap(&hvp) > 1e-2 * size, "{} {size}", gap(&want));
        // Of a network with squares of a sigmoid, the curvature of the sigmoid is left out, too: no negative slope.
        let mut net =
            DenseNet::new(&[5, 5], Elementwise::new(crate::ops::scalar::tanh), Head::Reconstruction);
        let n = net.num_params();
        let (_, mut linear) = net.linearize(&params[..n], rows, &mut grad[..n]);
        for curvature in [Curvature::GaussNewton, Curvature::Hessian] {
            let along = |i: usize, linear: &mut DenseLinear| {
                let (mut e, mut out) = (vec![0.0; n], vec![0.0; n]);
                e[i] = 1.0;
                linear.product(rows, curvature, &e, &mut out);
                out[i]
            };
            let lowest = (0..n).map(|i| along(i, &mut linear)).fold(f32::INFINITY, f32::min);
            assert_eq!(lowest >= 0.0, curvature == Curvature::GaussNewton, "{lowest}");
        }
    }

    #[test]
    fn every_path_computes_the_same_bits() {
        for (widths, head) in [
            (&[5, 9][..], Head::CrossEntropy),
            (&[4, 37], Head::CrossEntropy),
            (&[3, 8, 17, 2], Head::SquaredError),
            (&[6, 4, 6], Head::Reconstruction),
            (&[1, 70, 33, 10], Head::CrossEntropy),
        ] {
            let want = all(Path::available()[0], widths, head, 45);
            assert!(want.iter().all(|x| x.is_finite()));
            for path in &Path::available()[1..] {
                let got = all(*path, widths, head, 45);
                for (g, w) in got.iter().zip(&want) {
                    assert!(g.to_bits() == w.to_bits(), "{widths:?} {}: {g} != {w}", path.name());
                }
            }
        }
    }

    #[test]
    fn diverged_parameters_give_nan() {
        let mut net =
            DenseNet::new(&[2, 3, 2], Elementwise::new(crate::ops::scalar::relu), Head::CrossEntropy);
        let mut params = vec![0.1; net.num_params()];
        params[4] = f32::NAN;
        let rows = Rows { inputs: &[1.0, 2.0], labels: &[0], index: &[0] };
        assert!(net.loss(&params, rows).is_nan());
    }
}
