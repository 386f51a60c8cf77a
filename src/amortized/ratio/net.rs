//! [`RatioNet`]: the networks whose output is a log ratio.

use super::loss::RatioLoss;
use outerloop_core::ops::{self, Activation};
use outerloop_core::tensor::{
    record, Backend, Cpu, DynParams, DynTree, Host, Mode, NoneTape, ParamTree, PutTape, Tensor,
};
use outerloop_core::{Error, Float, Key, Layout, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The nonlinearity between layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nonlinearity {
    /// `λ z` above 0, `λ α (e^z − 1)` below (Klambauer et al. 2017): the seed's.
    #[default]
    Selu,
    /// `max(z, 0)`
    Relu,
    /// `z / (1 + e^−z)`
    Silu,
}

/// How the inputs become a logit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// Dense layers of these widths on the inputs `[theta, x]`, then one output.
    Mlp {
        /// Hidden widths; the seed has three of 256.
        hidden: Vec<usize>,
    },
    /// A layer of `width`, `blocks` times `h ← h + W act(W act(h))`, then one output.
    Residual {
        /// Width of all layers.
        width: usize,
        /// Number of blocks.
        blocks: usize,
    },
    /// For data of `points` independent parts of one distribution, in a row: `f = Σᵢ g(theta, xᵢ) + c(x)`, with
    /// dense layers of widths `hidden` for `g` and `context` for `c`. That is the form of the true log ratio,
    /// `Σᵢ ln p(xᵢ|theta) − ln p(x)`: a property of the simulator that is built in instead of learned.
    Iid {
        /// Parts of the data.
        points: usize,
        /// Hidden widths of g.
        hidden: Vec<usize>,
        /// Hidden widths of c.
        context: Vec<usize>,
    },
    /// `f = a(theta) + ψ(theta)·Σᵢ φ(xᵢ)/√rank + c(Σᵢ φ(xᵢ))`, with a network of parameters and one of data that meet in
    /// a product only. A likelihood of the exponential family has this form exactly, others come close with the rank.
    /// Every parameter of a batch can be compared with every data row at the cost of a matrix product
    /// ([`super::Contrast::Batch`]), and a posterior runs the network of the data once.
    Separable {
        /// Independent parts of the data in a row; 1: no structure is built in.
        points: usize,
        /// Hidden widths of both networks.
        hidden: Vec<usize>,
        /// Length of ψ and φ.
        rank: usize,
    },
}

/// A network from inputs to a log ratio.
///
/// Its parameters are a flat buffer: per layer `linear_i/w` `[inputs, outputs]` and `linear_i/b`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatioNet {
    architecture: Architecture,
    nonlinearity: Nonlinearity,
    inputs: [usize; 2],
}

/// Activations, `[N, C]`.
type Rows<E, B, M> = Tensor<(usize, usize), E, B, M>;

impl RatioNet {
    /// A network for `inputs[0]` numbers of parameters and `inputs[1]` of data.
    ///
    /// # Errors
    /// Widths or numbers of inputs of 0, and data that is not `points` equal parts.
    pub fn new(architecture: Architecture, nonlinearity: Nonlinearity, inputs: [usize; 2]) -> Result<Self> {
        let net = RatioNet { architecture, nonlinearity, inputs };
        if inputs.contains(&0) || net.layers().iter().any(|l| l[0] * l[1] == 0) {
            let why =
                format!("every width must be at least 1, got inputs {inputs:?}, {:?}", net.architecture);
            return Err(Error::invalid("ratio network", why));
        }
        if let Architecture::Iid { points, .. } | Architecture::Separable { points, .. } = net.architecture {
            if points == 0 || inputs[1] % points != 0 {
                let what = "ratio network: inputs of the data";
                return Err(Error::mismatch(what, format!("{points} equal parts"), inputs[1]));
            }
        }
        Ok(net)
    }

    /// Inputs of the parameters and of the data.
    pub fn inputs(&self) -> [usize; 2] {
        self.inputs
    }

    /// `[inputs, outputs]` of the layers, in the order of the buffer.
    fn layers(&self) -> Vec<[usize; 2]> {
        let chain = |inputs: usize, hidden: &[usize]| -> Vec<[usize; 2]> {
            let widths: Vec<usize> =
                std::iter::once(inputs).chain(hidden.iter().copied()).chain([1]).collect();
            widths.windows(2).map(|w| [w[0], w[1]]).collect()
        };
        let [a, b] = self.inputs;
        match &self.architecture {
            Architecture::Mlp { hidden } => chain(a + b, hidden),
            Architecture::Residual { width, blocks } => {
                let w = *width;
                let mut layers = vec![[a + b, w]];
                layers.extend(vec![[w, w]; 2 * blocks]);
                layers.push([w, 1]);
                layers
            }
            Architecture::Iid { points, hidden, context } => {
                let mut layers = chain(a + b / (*points).max(1), hidden);
                layers.extend(chain(b, context));
                layers
            }
            Architecture::Separable { points, hidden, rank } => {
                let to = |inputs: usize, outputs: usize| {
                    let mut layers = chain(inputs, hidden);
                    if let Some(last) = layers.last_mut() {
                        last[1] = outputs;
                    }
                    layers
                };
                let mut layers = to(a, rank + 1);
                layers.extend(to(b / (*points).max(1), *rank));
                layers.extend(chain(*rank, hidden.last().map_or(&[], std::slice::from_ref)));
                layers
            }
        }
    }

    /// Names and shapes of the parameters.
    pub fn layout(&self) -> Layout {
        let mut layout = Layout::default();
        for (i, [inputs, outputs]) in self.layers().into_iter().enumerate() {
            layout.push(format!("linear_{i}/w"), [inputs, outputs]);
            layout.push(format!("linear_{i}/b"), [outputs]);
        }
        layout
    }

    /// Initial parameters: weights normal with variance `1/inputs` (twice that for ReLU and SiLU), truncated at
    /// two deviations; biases 0.
    pub fn init<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = self.layout();
        let mut flat = vec![E::of(0.0); layout.len()];
        let gain = if self.nonlinearity == Nonlinearity::Selu { 1.0 } else { 2f64.sqrt() };
        for (i, e) in layout.entries().iter().enumerate().filter(|(_, e)| e.shape.len() == 2) {
            let sigma = gain / (e.shape[0] as f64).sqrt();
            key.fold_in(i as u64).fill_truncated_normal(&mut flat[e.range()], sigma);
        }
        flat
    }

    /// Logits `[n, columns]` of data `x`, `[n, inputs[1]]`, each with `columns` rows of `theta`,
    /// `[n columns, inputs[0]]`, which carries the tape.
    pub fn logits<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        theta: Rows<E, B, M>,
        x: &Rows<E, B, outerloop_core::tensor::NoneTape>,
        columns: usize,
    ) -> Rows<E, B, M> {
        let n = dfdx::prelude::HasShape::shape(x).0;
        let rows = n * columns;
        let f = match &self.architecture {
            Architecture::Mlp { hidden } => {
                let h = beside(theta, x, &repeated(n, columns));
                self.dense(params, 0, h, hidden)
            }
            Architecture::Residual { blocks, .. } => {
                let h = beside(theta, x, &repeated(n, columns));
                let layer = |i: usize, h| self.linear(params, i, h);
                let mut h = layer(0, h);
                for k in 0..*blocks {
                    let inner = layer(1 + 2 * k, self.act(h.clone()));
                    h = ops::add(h, &layer(2 + 2 * k, self.act(inner)).split_tape_off());
                }
                layer(1 + 2 * blocks, self.act(h))
            }
            Architecture::Iid { points, hidden, context } => {
                let p = *points;
                let parts = ops::reshape(x.clone(), (n * p, self.inputs[1] / p));
                let theta = ops::embedding(theta, &repeated(rows, p));
                let which: Vec<u32> = (0..rows * p).map(|r| (r / p / columns * p + r % p) as u32).collect();
                let g = self.dense(params, 0, beside(theta, &parts, &which), hidden);
                let g = ops::sum_axis1(ops::reshape(g, (rows, p)));
                let c = self.dense(params, hidden.len() + 1, x.clone().put_tape(M::default()), context);
                let c = ops::embedding(c, &repeated(n, columns));
                ops::add(ops::reshape(g, (rows, 1usize)), &c.split_tape_off())
            }
            Architecture::Separable { .. } => {
                let left = self.of_theta(params, theta);
                let right: Rows<E, B, M> = self.of_data(params, x);
                let right = ops::embedding(right, &repeated(n, columns));
                ops::reshape(ops::sum_axis1(ops::mul(left, &right.split_tape_off())), (rows, 1usize))
            }
        };
        ops::reshape(f, (n, columns))
    }

    /// Logits `[n, m]` of all pairs of data `x`, `[n, inputs[1]]`, and `theta`, `[m, inputs[0]]`, which carries the tape.
    /// Cost: that of `n m` rows of the network; of [`Architecture::Separable`] `n + m` rows and a product.
    pub fn all_pairs<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        theta: Rows<E, B, M>,
        x: &Rows<E, B, NoneTape>,
    ) -> Rows<E, B, M> {
        let (n, m) = (dfdx::prelude::HasShape::shape(x).0, dfdx::prelude::HasShape::shape(&theta).0);
        if matches!(self.architecture, Architecture::Separable { .. }) {
            let left = ops::transpose(self.of_theta(params, theta));
            return ops::matmul(self.of_data(params, x), &left.split_tape_off());
        }
        let each: Vec<u32> = (0..n).flat_map(|_| 0..m as u32).collect();
        self.logits(params, ops::embedding(theta, &each), x, m)
    }

    /// `[ψ/√rank, a, 1]` of every row.
    fn of_theta<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        theta: Rows<E, B, M>,
    ) -> Rows<E, B, M> {
        let Architecture::Separable { hidden, rank, .. } = &self.architecture else {
            panic!("asked of separable networks only")
        };
        let m = dfdx::prelude::HasShape::shape(&theta).0;
        let ones = theta.device().filled((m, 1usize), |y| y.fill(E::of(1.0)));
        let out = self.dense(params, 0, theta, hidden);
        let psi = ops::scale(ops::columns(out.clone(), 0, *rank), 1.0 / (*rank as f64).sqrt());
        let a = ops::columns(out, *rank, 1);
        ops::concat(ops::concat(psi, &a.split_tape_off()), &ones)
    }

    /// `[φ, 1, c]` of every row, φ summed over the points.
    fn of_data<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        x: &Rows<E, B, NoneTape>,
    ) -> Rows<E, B, M> {
        let Architecture::Separable { points, hidden, rank } = &self.architecture else {
            panic!("asked of separable networks only")
        };
        let (n, p, first) = (dfdx::prelude::HasShape::shape(x).0, *points, hidden.len() + 1);
        let ones = x.device().filled((n, 1usize), |y| y.fill(E::of(1.0)));
        let parts = ops::reshape(x.clone(), (n * p, self.inputs[1] / p)).put_tape(M::default());
        let phi = self.dense(params, first, parts, hidden);
        // [n, points, rank] as [points, n rank], summed over rows.
        let by_point: Vec<u32> = (0..p).flat_map(|i| (0..n).map(move |r| (r * p + i) as u32)).collect();
        let phi = match p {
            1 => phi,
            _ => {
                let by_point = ops::reshape(ops::embedding(phi, &by_point), (p, n * rank));
                ops::reshape(ops::sum_axis0(by_point), (n, *rank))
            }
        };
        let last = hidden.last().map_or(&[][..], std::slice::from_ref);
        let c = self.dense(params, 2 * first, phi.clone(), last);
        ops::concat(ops::concat(phi, &ones), &c.split_tape_off())
    }

    fn linear<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        layer: usize,
        h: Rows<E, B, M>,
    ) -> Rows<E, B, M> {
        let [inputs, outputs] = self.layers()[layer];
        let (w, b) = (params.get(2 * layer, (inputs, outputs)), params.get(2 * layer + 1, (outputs,)));
        ops::linear(h, &w, &b, Activation::Identity)
    }

    /// Hidden layers from number `first` on, then one without nonlinearity.
    fn dense<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        first: usize,
        mut h: Rows<E, B, M>,
        hidden: &[usize],
    ) -> Rows<E, B, M> {
        for i in 0..hidden.len() {
            h = self.act(self.linear(params, first + i, h));
        }
        self.linear(params, first + hidden.len(), h)
    }

    fn act<E: Float, B: Backend<E>, M: Mode<E, B>>(&self, h: Rows<E, B, M>) -> Rows<E, B, M> {
        match self.nonlinearity {
            Nonlinearity::Selu => ops::selu(h),
            Nonlinearity::Relu => ops::relu(h),
            Nonlinearity::Silu => ops::silu(h),
        }
    }
}

/// `0, 0, ..., 1, 1, ...`: each of `n` numbers `times` times.
fn repeated(n: usize, times: usize) -> Vec<u32> {
    (0..n as u32).flat_map(|i| std::iter::repeat_n(i, times)).collect()
}

/// Each row of `theta` with the row of `x` that `which` names.
fn beside<E: Float, B: Backend<E>, M: Mode<E, B>>(
    theta: Rows<E, B, M>,
    x: &Rows<E, B, NoneTape>,
    which: &[u32],
) -> Rows<E, B, M> {
    ops::concat(theta, &ops::embedding(x.clone(), which))
}

/// A computed tensor as an operand behind the first: the recording knows it.
trait SplitTapeOff {
    type Off;
    fn split_tape_off(self) -> Self::Off;
}

impl<E: Float, B: Backend<E>, M: Mode<E, B>> SplitTapeOff for Rows<E, B, M> {
    type Off = Rows<E, B, NoneTape>;
    fn split_tape_off(self) -> Self::Off {
        dfdx::prelude::SplitTape::split_tape(self).0
    }
}

/// A network with its weights on one thread: log ratios of many parameters for one data row.
pub struct NetEvaluator<E: Float>
where
    Cpu: Host<E>,
{
    net: RatioNet,
    dev: Cpu,
    params: DynParams<E, Cpu>,
}

impl<E: Float> NetEvaluator<E>
where
    Cpu: Host<E>,
{
    /// With weights of the network's layout.
    ///
    /// # Panics
    /// If there is another number of weights.
    #[track_caller]
    pub fn new(net: &RatioNet, weights: &[E]) -> Self {
        let dev = Cpu::default();
        let params = DynTree::new(&dev, Arc::new(net.layout()), weights);
        NetEvaluator { net: net.clone(), dev, params }
    }

    /// The logits of inputs `theta`, `[n, inputs[0]]`, for inputs `x`, `[inputs[1]]`.
    pub fn log_ratio(&mut self, theta: &[E], x: &[E]) -> Vec<E> {
        let [a, b] = self.net.inputs;
        let n = theta.len() / a;
        let theta = self.dev.filled((n, a), |y| y.copy_from_slice(theta));
        let x = self.dev.filled((1usize, b), |y| y.copy_from_slice(x));
        <Cpu as Backend<E>>::host(&self.net.logits(&self.params, theta, &x, n)).to_vec()
    }

    /// The same, and overwrites `grad`, as long as `theta`, with each logit's gradient by its own inputs.
    pub fn log_ratio_grad(&mut self, theta: &[E], x: &[E], grad: &mut [E]) -> Vec<E> {
        let [a, b] = self.net.inputs;
        let n = theta.len() / a;
        let x = self.dev.filled((1usize, b), |y| y.copy_from_slice(x));
        let layout = Arc::new(Layout::new([("theta", [n, a])]));
        let tree: DynParams<E, Cpu> = DynTree::new(&self.dev, layout, theta);
        let mut logits = Vec::new();
        let mut r = record(&tree.ids(), |m| {
            let f = self.net.logits(&self.params, tree.get(0, (n, a)).put_tape(m), &x, n);
            logits = <Cpu as Backend<E>>::host(&f).to_vec();
            ops::sum(f)
        });
        tree.read_grads(&self.dev, &mut r.grads, grad);
        logits
    }

    /// Loss and gradient by the weights on an explicit batch: `theta` `[n columns, inputs[0]]`, rows of one `x`
    /// side by side, own parameters first; `x` `[n, inputs[1]]`.
    pub fn loss_and_grad(&mut self, loss: RatioLoss, theta: &[E], x: &[E], grad: &mut [E]) -> E {
        let [a, b] = self.net.inputs;
        let (rows, n) = (theta.len() / a, x.len() / b);
        let theta = self.dev.filled((rows, a), |y| y.copy_from_slice(theta));
        let x = self.dev.filled((n, b), |y| y.copy_from_slice(x));
        let mut r = record(&self.params.ids(), |m| {
            loss.value(self.net.logits(&self.params, theta.put_tape(m), &x, loss.columns()))
        });
        self.params.read_grads(&self.dev, &mut r.grads, grad);
        <Cpu as Backend<E>>::host(&r.value)[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architectures() -> [Architecture; 5] {
        [
            Architecture::Separable { points: 1, hidden: vec![6, 5], rank: 3 },
            Architecture::Separable { points: 2, hidden: vec![6], rank: 4 },
            Architecture::Mlp { hidden: vec![7, 5] },
            Architecture::Residual { width: 6, blocks: 2 },
            Architecture::Iid { points: 2, hidden: vec![6], context: vec![5] },
        ]
    }

    #[test]
    fn gradients_are_slopes_for_every_architecture() {
        let [a, b, n] = [3, 4, 5];
        let draw = |n: usize, name: &str| {
            let mut v = vec![0.0f64; n];
            Key::new(4).named(name).fill_normal(&mut v);
            v
        };
        let (theta, x) = (draw(n * a, "theta"), draw(b, "x"));
        for architecture in architectures() {
            for act in [Nonlinearity::Selu, Nonlinearity::Relu, Nonlinearity::Silu] {
                let net = RatioNet::new(architecture.clone(), act, [a, b]).unwrap();
                let weights: Vec<f64> = net.init(Key::new(1));
                let mut e = NetEvaluator::new(&net, &weights);
                let mut grad = vec![0.0; n * a];
                let f = e.log_ratio_grad(&theta, &x, &mut grad);
                assert_eq!(f, e.log_ratio(&theta, &x));
                assert!(f.iter().any(|f| f.abs() > 1e-3));
                for i in 0..n * a {
                    let mut at = |h: f64| {
                        let mut t = theta.clone();
                        t[i] += h;
                        e.log_ratio(&t, &x)[i / a]
                    };
                    let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                    assert!((grad[i] - slope).abs() < 1e-7 * (1.0 + slope.abs()), "{architecture:?} {act:?}");
                }
            }
        }
    }

    #[test]
    fn all_pairs_are_the_pairs_one_by_one() {
        let dev = Cpu::default();
        let (mut theta, mut x) = (vec![0.0f64; 3 * 3], vec![0.0f64; 2 * 4]);
        Key::new(1).fill_normal(&mut theta);
        Key::new(2).fill_normal(&mut x);
        for architecture in architectures() {
            let net = RatioNet::new(architecture, Nonlinearity::Silu, [3, 4]).unwrap();
            let weights: Vec<f64> = net.init(Key::new(3));
            let params: DynParams<f64, Cpu> = DynTree::new(&dev, Arc::new(net.layout()), &weights);
            let t = dev.filled((3usize, 3usize), |y| y.copy_from_slice(&theta));
            let rows = dev.filled((2usize, 4usize), |y| y.copy_from_slice(&x));
            let all = <Cpu as Backend<f64>>::host(&net.all_pairs(&params, t, &rows)).to_vec();
            let mut e = NetEvaluator::new(&net, &weights);
            let each: Vec<f64> = x.chunks(4).flat_map(|x| e.log_ratio(&theta, x)).collect();
            assert!(all.iter().zip(&each).all(|(a, b)| (a - b).abs() < 1e-12), "{all:?} {each:?}");
        }
    }

    #[test]
    fn independent_points_may_be_swapped_and_sum() {
        let iid = Architecture::Iid { points: 2, hidden: vec![6], context: vec![5] };
        let net = RatioNet::new(iid, Nonlinearity::Silu, [1, 4]).unwrap();
        let mut e = NetEvaluator::new(&net, &net.init::<f64>(Key::new(2)));
        // The difference between two parameters does not see the context.
        let difference = |e: &mut NetEvaluator<f64>, x: &[f64]| {
            let f = e.log_ratio(&[0.3, -1.0], x);
            f[0] - f[1]
        };
        let (p, q) = ([0.1, 0.2], [1.5, -0.7]);
        let [pq, qp, pp, qq] = [[p, q], [q, p], [p, p], [q, q]].map(|x| difference(&mut e, &x.concat()));
        assert!((pq - qp).abs() < 1e-12 && (2.0 * pq - pp - qq).abs() < 1e-12);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let error = |a, inputs| RatioNet::new(a, Nonlinearity::Selu, inputs).unwrap_err().to_string();
        assert!(error(Architecture::Mlp { hidden: vec![3, 0] }, [1, 1]).contains("at least 1"));
        let iid = Architecture::Iid { points: 3, hidden: vec![6], context: vec![5] };
        assert!(error(iid, [1, 4]).contains("3 equal parts"));
    }
}
