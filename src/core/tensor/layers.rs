//! What a kept loss knows of its dense layers: moments of the two factors of their curvature.

use super::linear::Linear;
use super::{Buffer, Float, Tangents, Value};
use crate::math::vectorize;
use crate::ops::{Activation, KnownOp};
use crate::{Key, LayerCurvature};
use dfdx::prelude::UniqueId;
use rand::RngCore;
use std::collections::{HashMap, HashSet};

/// Rows times probes from which the outputs' curvature is estimated, at least.
const SAMPLES: usize = 256;

/// A recorded dense layer.
struct Layer {
    /// Its place among the operations.
    node: usize,
    /// Places of its weight and its bias among the parameters.
    weight: usize,
    bias: Option<usize>,
    /// Rows, inputs, outputs.
    shape: [usize; 3],
    act: Activation,
}

/// A layer's curvature; of weight and bias the places among the parameters.
pub(crate) struct LayerMoments {
    pub weight: usize,
    pub bias: Option<usize>,
    /// See [`LayerCurvature`].
    pub inputs: Vec<[f64; 2]>,
    pub outputs: Vec<f64>,
}

impl<E: Float> Linear<E> {
    /// See [`crate::Linearization::layers`].
    pub fn layers(&self, key: Key) -> Vec<LayerMoments> {
        let all = self.dense_layers();
        let is_single = |l: &&Layer| all.iter().filter(|other| other.weight == l.weight).count() == 1;
        all.iter()
            .filter(is_single)
            .map(|layer| self.moments(layer, key.fold_in(layer.node as u64)))
            .collect()
    }

    fn dense_layers(&self) -> Vec<Layer> {
        let place = |id: &UniqueId| self.params.iter().position(|param| param == id);
        let layer = |(node, op): (usize, &std::rc::Rc<dyn super::Node<E>>)| {
            let Some(KnownOp::Linear { n, i, o, act }) = op.known() else { return None };
            let &[_, weight, bias] = op.inputs().0 else { return None };
            let is_empty = n * i * o == 0;
            let weight = place(&weight).filter(|_| !is_empty)?;
            Some(Layer { node, weight, bias: place(&bias), shape: [n, i, o], act })
        };
        self.nodes.iter().enumerate().filter_map(layer).collect()
    }

    fn moments(&self, layer: &Layer, key: Key) -> LayerMoments {
        let Layer { node, weight, bias, shape: [n, i, o], act } = *layer;
        let (mut inputs, mut slope) = (Vec::new(), vec![E::of(1.0); n * o]);
        self.nodes[node].visit(&mut |x, y| {
            inputs = moments(x[0], i);
            slope.iter_mut().zip(y).for_each(|(s, y)| *s = act.d1(*y));
        });
        // The loss's curvature by z, times `tangent`.
        let curve = |mut tangent: Buffer<E>| {
            tangent.iter_mut().zip(&slope).for_each(|(t, s)| *t *= *s);
            let mut back = self.curve(node, tangent)?;
            back.iter_mut().zip(&slope).for_each(|(b, s)| *b *= *s);
            Some(back)
        };
        let outputs = if o <= LayerCurvature::FULL && self.is_output(node) {
            let mut outputs = vec![0.0; o * o];
            for c in 0..o {
                let mut unit = Buffer::zeros(n * o);
                unit.iter_mut().skip(c).step_by(o).for_each(|t| *t = E::of(1.0));
                let Some(back) = curve(unit) else { continue };
                for row in back.chunks_exact(o) {
                    let column = outputs.iter_mut().skip(c).step_by(o);
                    column.zip(row).for_each(|(s, b)| *s += b.f64());
                }
            }
            outputs
        } else {
            let mut outputs = vec![0.0; o];
            let probes = SAMPLES.div_ceil(n);
            for probe in 0..probes as u64 {
                let signs: Vec<E> = signs(key.fold_in(probe), n * o);
                let Some(back) = curve(Buffer::copy(&signs)) else { continue };
                for (back, signs) in back.chunks_exact(o).zip(signs.chunks_exact(o)) {
                    let terms = back.iter().zip(signs).map(|(b, z)| (*b * *z).f64() / probes as f64);
                    outputs.iter_mut().zip(terms).for_each(|(s, term)| *s += term);
                }
            }
            outputs
        };
        LayerMoments { weight, bias, inputs, outputs }
    }

    /// Whether losses alone read the result of operation `node`.
    fn is_output(&self, node: usize) -> bool {
        let out = self.nodes[node].out();
        self.nodes[node + 1..].iter().filter(|op| op.inputs().0.contains(&out)).all(|op| op.is_loss())
    }

    /// The Gauss-Newton matrix of what follows the result of operation `node`, times `tangent`; `None` if nothing does.
    fn curve(&self, node: usize, tangent: Buffer<E>) -> Option<Buffer<E>> {
        let start = self.nodes[node].out();
        let (tail, read) = (&self.nodes[node + 1..], &self.read[node + 1..]);
        let value = HashMap::from([(start, Value::Own(tangent))]);
        let mut t = [Tangents { value, adjoint: HashMap::new() }];
        let mut reached = HashSet::from([start]);
        let mut plan: Vec<Vec<bool>> = Vec::with_capacity(tail.len());
        for (op, is_read) in tail.iter().zip(read) {
            let active: Vec<bool> = op.inputs().0.iter().map(|id| reached.contains(id)).collect();
            if active.contains(&true) {
                reached.insert(op.out());
                match is_read {
                    true => op.push(&mut t),
                    false => op.leave(&mut t[0]),
                }
            }
            plan.push(active);
        }
        for (op, active) in tail.iter().zip(&plan).rev().filter(|(_, active)| active.contains(&true)) {
            op.pull(&mut t, op.is_loss(), active);
            t[0].value.remove(&op.out());
        }
        t[0].adjoint.remove(&start).map(|sum| Buffer::copy(&sum))
    }
}

/// Mean and variance of every column of `x` `[.., columns]`.
fn moments<E: Float>(x: &[E], columns: usize) -> Vec<[f64; 2]> {
    // Few rows at a time, whose sums have the precision of their dtype.
    const ROWS: usize = 32;
    let mut sums = vec![[0.0; 2]; columns];
    let mut block = [vec![E::of(0.0); columns], vec![E::of(0.0); columns]];
    for rows in x.chunks(ROWS * columns) {
        let [first, second] = &mut block;
        first.fill(E::of(0.0));
        second.fill(E::of(0.0));
        vectorize(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(columns) {
                    for ((first, second), x) in first.iter_mut().zip(&mut *second).zip(row) {
                        *first += *x;
                        *second += *x * *x;
                    }
                }
            },
        );
        for (sum, (first, second)) in sums.iter_mut().zip(first.iter().zip(&*second)) {
            sum[0] += first.f64();
            sum[1] += second.f64();
        }
    }
    let rows = (x.len() / columns) as f64;
    let moments = |[first, second]: [f64; 2]| {
        let mean = first / rows;
        [mean, (second / rows - mean * mean).max(0.0)]
    };
    sums.into_iter().map(moments).collect()
}

/// Random signs.
fn signs<E: Float>(key: Key, len: usize) -> Vec<E> {
    let mut rng = key.rng();
    let mut signs = Vec::with_capacity(len);
    while signs.len() < len {
        let bits = rng.next_u64();
        let some =
            (0..u64::BITS.min((len - signs.len()) as u32)).map(|i| E::of(1.0 - 2.0 * (bits >> i & 1) as f64));
        signs.extend(some);
    }
    signs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::tensor::{
        record_linear, unique_id, Backend, Cpu, Curvature, PutTape, Rank0, Rank1, Rank2, Rec, Tensor,
    };

    const ROWS: usize = 6;
    type Matrix<const I: usize, const O: usize> = Tensor<Rank2<I, O>, f64, Cpu>;

    fn linear(params: &[UniqueId], loss: impl FnOnce(Rec) -> Tensor<Rank0, f64, Cpu, Rec>) -> Linear<f64> {
        record_linear(params, params.len(), loss).linear.expect("operations of ours alone")
    }

    #[test]
    fn an_output_layer_has_its_moments() {
        let dev = Cpu::default();
        let [x, w, weights] = Key::new(1).split();
        let (x, w): (Matrix<ROWS, 3>, Matrix<3, 4>) = (dev.normal(x), dev.normal(w));
        let b: Tensor<Rank1<4>, f64, Cpu> = dev.normal(weights);
        let labels = [0, 3, 1, 1, 2, 0];
        let weights = [1.0, 2.0, 0.0, 1.0, 4.0, 2.0];
        let probs = ops::softmax(ops::linear(x.clone(), &w, &b, Activation::Identity)).as_vec();
        let linear = linear(&[unique_id(&w), unique_id(&b)], |m| {
            let z = ops::linear(x.clone().put_tape(m), &w, &b, Activation::Identity);
            ops::scale(ops::weighted_softmax_cross_entropy(z, &labels, &weights), 3.0)
        });
        let layers = linear.layers(Key::new(0));
        let [LayerMoments { weight: 0, bias: Some(1), inputs, outputs }] = &layers[..] else {
            panic!("expected one layer");
        };
        for (c, [mean, variance]) in inputs.iter().enumerate() {
            let column: Vec<f64> = x.as_vec().iter().skip(c).step_by(3).copied().collect();
            let want = column.iter().sum::<f64>() / ROWS as f64;
            let spread = column.iter().map(|x| (x - want).powi(2)).sum::<f64>() / ROWS as f64;
            assert!((mean - want).abs() < 1e-14 && (variance - spread).abs() < 1e-14);
        }
        for (i, got) in outputs.iter().enumerate() {
            // 3 Σ c (diag p − p pᵀ)
            let of_row = |(p, c): (&[f64], f64)| {
                let diagonal = if i / 4 == i % 4 { p[i / 4] } else { 0.0 };
                3.0 * c / 10.0 * (diagonal - p[i / 4] * p[i % 4])
            };
            let want: f64 = probs.chunks(4).zip(weights).map(of_row).sum();
            assert!((got - want).abs() < 1e-14, "{i}: {got} {want}");
        }
    }

    /// With equal rows the factors are independent indeed, and the block is that of the Gauss-Newton matrix.
    #[test]
    fn with_equal_rows_the_blocks_are_exact() {
        let dev = Cpu::default();
        let [row, w, b, u, c] = Key::new(2).split();
        let row: Tensor<Rank1<3>, f64, Cpu> = dev.normal(row);
        let x = ops::repeat_row(row.clone(), ROWS);
        // One hidden unit: its random signs cancel.
        let (w, u): (Matrix<3, 1>, Matrix<1, 4>) = (dev.normal(w), dev.normal(u));
        let (b, c): (Tensor<Rank1<1>, f64, Cpu>, Tensor<Rank1<4>, f64, Cpu>) = (dev.normal(b), dev.normal(c));
        let ids = [unique_id(&w), unique_id(&b), unique_id(&u), unique_id(&c)];
        let mut linear = linear(&ids, |m| {
            let x = ops::reshape(x.clone().put_tape(m), (ROWS, 3));
            let w = ops::reshape(w.clone(), (3, 1));
            let b = ops::reshape(b.clone(), (1,));
            let h = ops::linear(x, &w, &b, Activation::Tanh);
            let (u, c) = (ops::reshape(u.clone(), (1, 4)), ops::reshape(c.clone(), (4,)));
            ops::softmax_cross_entropy(ops::linear(h, &u, &c, Activation::Identity), &[0, 3, 1, 1, 2, 0])
        });
        let layers = linear.layers(Key::new(0));
        assert_eq!(
            layers.iter().map(|l| (l.weight, l.bias)).collect::<Vec<_>>(),
            [(0, Some(1)), (2, Some(3))]
        );
        for (l, sizes) in layers.iter().zip([[3, 1], [1, 4]]) {
            let [i, o] = sizes;
            let second = |a: usize, b: usize| {
                let [mean, variance] = l.inputs[a];
                mean * l.inputs[b][0] + if a == b { variance } else { 0.0 }
            };
            for at in 0..i * o {
                let lengths = [3, 1, 4, 4];
                let mut v: Vec<Vec<f64>> = lengths.iter().map(|n| vec![0.0; *n]).collect();
                let mut out = v.clone();
                v[l.weight][at] = 1.0;
                let v: Vec<&[f64]> = v.iter().map(|v| &v[..]).collect();
                linear.products(
                    &[v],
                    vec![out.iter_mut().map(|o| &mut o[..]).collect()],
                    Curvature::GaussNewton,
                );
                for (other, got) in out[l.weight].iter().enumerate() {
                    let want = second(at / o, other / o) * l.outputs[at % o * o + other % o];
                    assert!((got - want).abs() < 1e-14, "{} {at} {other}: {got} {want}", l.weight);
                }
            }
        }
    }

    #[test]
    fn a_weight_in_two_places_is_no_layer() {
        let dev = Cpu::default();
        let [x, w, b] = Key::new(4).split();
        let (x, w): (Matrix<ROWS, 3>, Matrix<3, 3>) = (dev.normal(x), dev.normal(w));
        let b: Tensor<Rank1<3>, f64, Cpu> = dev.normal(b);
        let linear = linear(&[unique_id(&w)], |m| {
            let h = ops::linear(x.clone().put_tape(m), &w, &b, Activation::Tanh);
            ops::softmax_cross_entropy(ops::linear(h, &w, &b, Activation::Identity), &[0, 2, 1, 1, 2, 0])
        });
        assert!(linear.layers(Key::new(0)).is_empty());
    }
}
