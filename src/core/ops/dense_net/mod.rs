//! A stack of dense layers with its loss as one f32 kernel: what the operations of [`super`] compute
//! one by one on the tape, in one pass over blocks of rows that stay in the cache, without
//! allocation.

mod aligned;
mod head;
mod layer;
mod rows;
mod tile;

use crate::simd::Path;
use head::{Loss, Target};
use layer::{Layer, Units};
use pulp::{Simd, WithSimd};
use tile::Matrix;

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
    /// The same; also `d2 ← f'' t` and `t ← f' t` for the tangent `t` of the argument.
    fn tangent(&self, path: Path, y: &mut [f32], d1: &mut [f32], d2: &mut [f32], t: &mut [f32]);
}

impl<F: Fn(f32) -> [f32; 3] + Copy + Send + Sync> Map for F {
    fn value(&self, path: Path, y: &mut [f32]) {
        path.run(Plain(
            #[inline(always)]
            || {
                // Adding 0 keeps the compiler from storing only where a ReLU changes something, by
                // masked stores: 10x slower.
                y.iter_mut().for_each(|y| *y = self(*y)[0] + 0.0);
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
        DenseNet { layers, map, head, path }
    }

    /// Length of the flat buffer.
    pub fn num_params(&self) -> usize {
        self.layers.iter().map(|l| (l.inputs + 1) * l.outputs).sum()
    }

    /// The mean loss of the rows.
    pub fn loss(&mut self, params: &[f32], rows: Rows<'_>) -> f32 {
        self.run(params, None, rows, Order::Value)
    }

    /// The same; overwrites `grad`, of the length of `params`, with its gradient.
    pub fn loss_and_grad(&mut self, params: &[f32], rows: Rows<'_>, grad: &mut [f32]) -> f32 {
        let loss = self.run(params, None, rows, Order::Gradient);
        self.layers.iter().for_each(|l| l.write_grad(&l.params, grad));
        loss
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
        let loss = self.run(params, Some(v), rows, Order::Hessian);
        for l in &self.layers {
            l.write_grad(&l.params, grad);
            l.write_grad(&l.tangent, hvp);
        }
        loss
    }

    /// The mean loss; leaves the gradients in the layers.
    fn run(&mut self, params: &[f32], v: Option<&[f32]>, rows: Rows<'_>, order: Order) -> f32 {
        let DenseNet { layers, map, head, path } = self;
        let last = layers.len() - 1;
        for (i, l) in layers.iter_mut().enumerate() {
            // What a softmax must not see.
            let is_masked = i == last && *head == Head::CrossEntropy;
            l.load(params, v, if is_masked { f32::NEG_INFINITY } else { 0.0 });
        }
        let inputs = layers[0].inputs;
        let with_tangent = order == Order::Hessian;
        let (mut x, mut labels) = ([&[][..]; BLOCK], [0; BLOCK]);
        let mut loss = 0.0;
        for index in rows.index.chunks(BLOCK) {
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
                    let len = n * layer.strides[1];
                    match order {
                        Order::Value => map.0.value(*path, &mut y[..len]),
                        Order::Gradient => map.0.slope(*path, &mut y[..len], &mut d1[..len]),
                        Order::Hessian => {
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
            let len = n * end.strides[1];
            loss += path.run(Loss {
                head: *head,
                outputs: end.outputs,
                width: end.strides[1],
                weight: 1.0 / rows.index.len() as f32,
                target: match head {
                    Head::Reconstruction => Target::Rows(x),
                    Head::CrossEntropy | Head::SquaredError => Target::Labels(&labels[..n]),
                },
                z: &mut end.units.d[..len],
                tz: if with_tangent { &mut end.units.td[..len] } else { &mut [] },
            });
            if order == Order::Value {
                continue;
            }
            for l in (0..=last).rev() {
                let (layer, a, ta) = around(layers, l, x);
                layer.add_grad(a, with_tangent.then_some(ta), n);
                if let (before @ [.., _], [layer, ..]) = layers.split_at_mut(l) {
                    layer.backward(&mut before[l - 1].units, n, with_tangent);
                }
            }
        }
        loss as f32
    }
}

/// How many derivatives are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Value,
    Gradient,
    Hessian,
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
            let matrix = |units| Matrix::Strided(units, b.strides[1]);
            (matrix(&b.units.y), Some(matrix(&b.units.t)))
        }
    };
    (&mut rest[0], a, ta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    /// Loss, gradient and `H v` on the given path.
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
        loss[0] = net.loss_grad_hvp(&draw(n, "params"), rows, &draw(n, "v"), grad, hvp);
        out
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
