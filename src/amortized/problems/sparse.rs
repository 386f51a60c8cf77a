//! Sparse coding: ISTA, FISTA, the exact optimum by coordinate descent, and learned ISTA.
//!
//! `E(y; x) = ½ |x − D y|² + α |y|₁`. ISTA with step `1/L` is `y ← h_{α/L}(Dᵀx/L + (I − DᵀD/L) y)` with the shrinkage
//! `h_b(v) = sign(v) max(|v| − b, 0)`; learned ISTA (LISTA) is `y ← h_β(F x + G y)` with learned `F`, `G` and `β`,
//! which at `F = Dᵀ/L`, `G = I − DᵀD/L`, `β = α/L` is ISTA. Predictive sparse decomposition (PSD) is `D tanh(F x)`.
//!
//! References: Gregor, LeCun 2010; Beck, Teboulle 2009; Kavukcuoglu, Ranzato, LeCun 2010, arXiv:1010.3467.

use crate::matrix::{dot, Matrix};
use crate::model::{Model, Weights};
use crate::problem::{Optimum, Own, Problem, Query, Rows};
use crate::rows::shrink as shrink_rows;
use dfdx::prelude::Merge;
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, DynParams, DynTree, Float, HasShape, Mode, PutTape, Tensor};
use outerloop_core::{BatchKey, Key, Layout};

/// `sign(v) max(|v| − b, 0)`
pub fn shrink<E: Float>(v: E, b: E) -> E {
    let zero = E::of(0.0);
    if v > b {
        v - b
    } else if v < -b {
        v + b
    } else {
        zero
    }
}

/// A dictionary with its penalty.
#[derive(Clone, Debug)]
pub struct Dictionary<E = f64> {
    /// `[P, N]`
    pub d: Matrix<E>,
    /// The weight of the absolute values.
    pub alpha: E,
    /// An upper bound of the largest eigenvalue of `DᵀD`: the inverse of the step.
    pub lipschitz: E,
}

impl<E: Float> Dictionary<E> {
    /// `E(y; x)`.
    pub fn energy(&self, x: &[E], y: &[E]) -> E {
        let gap: Vec<E> = self.d.apply(y).iter().zip(x).map(|(a, b)| *b - *a).collect();
        E::of(0.5) * dot(&gap, &gap) + self.alpha * y.iter().map(|y| y.abs()).sum::<E>()
    }

    /// `h_{α/L}(z − Dᵀ(D z − x)/L)`
    fn step(&self, x: &[E], z: &[E]) -> Vec<E> {
        let gap: Vec<E> = self.d.apply(z).iter().zip(x).map(|(a, b)| *a - *b).collect();
        let back = self.d.t().apply(&gap);
        let move_to = |(z, b): (&E, &E)| shrink(*z - *b / self.lipschitz, self.alpha / self.lipschitz);
        z.iter().zip(&back).map(move_to).collect()
    }

    /// The iterates of ISTA from 0, which comes first.
    pub fn ista(&self, x: &[E], steps: usize) -> Vec<Vec<E>> {
        let mut path = vec![vec![E::of(0.0); self.d.cols]];
        for t in 0..steps {
            path.push(self.step(x, &path[t]));
        }
        path
    }

    /// The iterates of FISTA from 0, which comes first.
    pub fn fista(&self, x: &[E], steps: usize) -> Vec<Vec<E>> {
        let mut path = vec![vec![E::of(0.0); self.d.cols]];
        let (mut z, mut t) = (path[0].clone(), E::of(1.0));
        for i in 0..steps {
            let y = self.step(x, &z);
            let next = (E::of(1.0) + (E::of(1.0) + E::of(4.0) * t * t).sqrt()) / E::of(2.0);
            z = y
                .iter()
                .zip(&path[i])
                .map(|(y, before)| *y + (t - E::of(1.0)) / next * (*y - *before))
                .collect();
            t = next;
            path.push(y);
        }
        path
    }

    /// The weights with which LISTA is ISTA: `F` `[N, P]`, `G` `[N, N]`, `β` `[N]`.
    pub fn ista_weights(&self) -> (Matrix<E>, Matrix<E>, Vec<E>) {
        let f = Matrix { data: self.d.t().data.iter().map(|d| *d / self.lipschitz).collect(), ..self.d.t() };
        let g = Matrix::identity(self.d.cols).plus(-1.0, &f.mul(&self.d));
        (f, g, vec![self.alpha / self.lipschitz; self.d.cols])
    }
}

impl Dictionary<f64> {
    /// The exact optimum, by coordinate descent until no coordinate moves.
    pub fn optimum(&self, x: &[f64]) -> Optimum {
        let (n, gram) = (self.d.cols, self.d.t().mul(&self.d));
        let target = self.d.t().apply(x);
        let mut y = vec![0.0; n];
        for _ in 0..100_000 {
            let mut moved = 0.0f64;
            for i in 0..n {
                let others = dot(&gram.data[i * n..][..n], &y) - gram.at(i, i) * y[i];
                let next = shrink(target[i] - others, self.alpha) / gram.at(i, i);
                moved = moved.max((next - y[i]).abs());
                y[i] = next;
            }
            if moved < 1e-16 {
                break;
            }
        }
        Optimum { value: self.energy(x, &y), y }
    }

    /// How far `y` is from the conditions of an optimum: the largest violation of `|Dᵀ(x − D y)| ≤ α`, with equality
    /// and the sign of `y` where it is not 0.
    pub fn kkt_residual(&self, x: &[f64], y: &[f64]) -> f64 {
        let gap: Vec<f64> = x.iter().zip(self.d.apply(y)).map(|(x, d)| x - d).collect();
        let slope = self.d.t().apply(&gap);
        let off = |(s, y): (&f64, &f64)| {
            if *y == 0.0 {
                (s.abs() - self.alpha).max(0.0)
            } else {
                (s - self.alpha * y.signum()).abs()
            }
        };
        slope.iter().zip(y).map(off).fold(0.0, f64::max)
    }
}

/// LISTA's outputs after each layer, `K` matrices `[N, D]`, from 0. Shapes: `x` `[N, P]`, `f` `[D, P]`, `g` `[D, D]`,
/// `beta` `[D]`.
pub fn lista<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Rows<E, B, M>,
    [f, g]: [&Rows<E, B, M>; 2],
    beta: &Tensor<(usize,), E, B>,
    layers: usize,
) -> Vec<Rows<E, B, M>> {
    lista_layers(x, &[Layer { f: f.clone(), g: g.clone(), beta: beta.clone() }], layers)
}

/// The weights of a layer: `f` `[D, P]`, `g` `[D, D]`, `beta` `[D]`.
struct Layer<E: Float, B: Backend<E>, M: Mode<E, B>> {
    f: Rows<E, B, M>,
    g: Rows<E, B, M>,
    beta: Tensor<(usize,), E, B>,
}

/// [`lista`] with the weights of every layer; the last ones serve all further layers.
fn lista_layers<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Rows<E, B, M>,
    weights: &[Layer<E, B, M>],
    layers: usize,
) -> Vec<Rows<E, B, M>> {
    // The drive `F x`, `[N, D]`.
    let each: Vec<_> = weights.iter().map(|w| (times_transposed(x.clone(), &w.f), w)).collect();
    let mut out: Vec<Rows<E, B, M>> = Vec::with_capacity(layers);
    for k in 0..layers {
        let Some((drive, w)) = each.get(k).or(each.last()) else { break };
        out.push(match out.last() {
            None => shrink_rows(drive.clone(), None, &w.beta),
            Some(y) => shrink_rows(drive.clone(), Some(&times_transposed(y.clone(), &w.g)), &w.beta),
        });
    }
    out
}

/// `a bᵀ`. Shapes: `a` `[N, K]`, `b` `[D, K]`.
fn times_transposed<E: Float, B: Backend<E>, M: Mode<E, B> + Merge<R>, R: Mode<E, B>>(
    a: Rows<E, B, M>,
    b: &Rows<E, B, R>,
) -> Rows<E, B, M> {
    let ((n, k), (d, _)) = (*a.shape(), *b.shape());
    let b = ops::reshape(b.clone(), (1usize, d, k));
    ops::reshape(ops::batch_matmul_transposed(ops::reshape(a, (1usize, n, k)), &b), (n, d))
}

/// PSD's prediction `D tanh(F x)`. Shapes: `x` `[N, P]`, `f` `[D, P]`, `d` `[D, D]`.
pub fn psd<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Rows<E, B, M>,
    f: &Rows<E, B, M>,
    d: &Rows<E, B, M>,
) -> Rows<E, B, M> {
    times_transposed(ops::tanh(times_transposed(x, f)), d)
}

/// The energy of every row, `[N]`. Shapes: `x` `[N, P]`, `y` `[N, D]`, `dictionary` `[P, D]`.
pub fn energies<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: &Rows<E, B>,
    y: Rows<E, B, M>,
    dictionary: &Rows<E, B>,
    alpha: f64,
) -> Tensor<(usize,), E, B, M> {
    let shown = times_transposed(y.clone(), dictionary);
    let fit = ops::scale(ops::sum_axis1(ops::square(ops::sub(shown, x))), 0.5);
    ops::add(fit, &ops::scale(ops::sum_axis1(ops::abs(y)), alpha))
}

/// Sparse coding of signals that a dictionary made, as a [`Problem`].
///
/// Context: `x = D y₀ + 0.05 e`, `y₀` with each entry normal with probability `density`, else 0.
#[derive(Clone, Debug)]
pub struct SparseCoding {
    /// Dictionary and penalty.
    pub dictionary: Dictionary,
    /// Part of the entries that are not 0; default 0.2.
    pub density: f64,
}

impl SparseCoding {
    /// Random unit columns, `[signal, code]`.
    pub fn random(signal: usize, code: usize, alpha: f64, key: Key) -> Self {
        let mut d = vec![0.0; signal * code];
        key.fill_normal(&mut d);
        let mut d = Matrix::new(signal, code, d);
        for j in 0..code {
            let norm = (0..signal).map(|i| d.at(i, j) * d.at(i, j)).sum::<f64>().sqrt();
            (0..signal).for_each(|i| d.data[i * code + j] /= norm);
        }
        let lipschitz = d.mul(&d.t()).spectral_radius() * (1.0 + 1e-9);
        SparseCoding { dictionary: Dictionary { d, alpha, lipschitz }, density: 0.2 }
    }
    /// Signals from one key, as many as fit.
    fn draw(&self, key: Key, out: &mut [f64]) {
        let d = &self.dictionary.d;
        let mut codes = vec![0.0; out.len() / d.rows.max(1) * d.cols];
        key.named("size").fill_normal(&mut codes);
        let mut rng = key.named("support").rng();
        key.named("noise").fill_normal(out);
        for (signal, code) in out.chunks_exact_mut(d.rows).zip(codes.chunks_exact(d.cols)) {
            signal.iter_mut().for_each(|s| *s *= 0.05);
            for (j, c) in code.iter().enumerate() {
                if rand::Rng::gen::<f64>(&mut rng) < self.density {
                    signal.iter_mut().enumerate().for_each(|(i, s)| *s += c * d.at(i, j));
                }
            }
        }
    }
    /// The dictionary as a tensor, `[P, D]`.
    pub fn tensor<E: Float, B: Backend<E>>(&self, dev: &B) -> Rows<E, B> {
        let d = &self.dictionary.d;
        dev.tensor_from_vec(d.data.iter().map(|x| E::of(*x)).collect(), (d.rows, d.cols))
    }
}

impl Problem for SparseCoding {
    fn name(&self) -> String {
        format!("sparse{}x{}", self.dictionary.d.rows, self.dictionary.d.cols)
    }
    fn dim(&self) -> usize {
        self.dictionary.d.cols
    }
    fn context_dim(&self) -> usize {
        self.dictionary.d.rows
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        self.draw(key, out);
    }
    fn contexts(&self, at: BatchKey, out: &mut [f64]) {
        self.draw(at.noise(), out);
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let dictionary = self.tensor(&at.x.device().clone());
        energies(at.x, y, &dictionary, self.dictionary.alpha)
    }
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        Some(self.dictionary.optimum(context))
    }
}

/// Learned ISTA as a model, initially ISTA.
#[derive(Clone, Debug)]
pub struct Lista {
    /// Layers K.
    pub layers: usize,
    /// Whose ISTA it starts as.
    pub dictionary: Dictionary,
    /// Whether all layers share `F`, `G` and `β`, as in the original, or have their own.
    pub weights: Weights,
}

impl Lista {
    /// Sets of weights.
    fn sets(&self) -> usize {
        match self.weights {
            Weights::Shared => 1,
            Weights::PerStep => self.layers,
        }
    }
}

impl Model for Lista {
    fn name(&self) -> String {
        let own = if self.weights == Weights::PerStep { "-per-layer" } else { "" };
        format!("lista{}{own}", self.layers)
    }
    fn layout<P: Problem>(&self, _: &P) -> Layout {
        let (p, n) = (self.dictionary.d.rows, self.dictionary.d.cols);
        let tensors = |k: usize| {
            let name = |t: &str| if self.sets() == 1 { t.to_string() } else { format!("{t}{k}") };
            [(name("F"), vec![n, p]), (name("G"), vec![n, n]), (name("beta"), vec![n])]
        };
        Layout::new((0..self.sets()).flat_map(tensors))
    }
    fn init<P: Problem>(&self, _: &P, _: Key, out: &mut [f64]) {
        let (f, g, beta) = self.dictionary.ista_weights();
        let set = [f.data, g.data, beta].concat();
        out.chunks_exact_mut(set.len()).for_each(|out| out.copy_from_slice(&set));
    }
    fn predict<P: Problem, E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        _: &P,
        at: &Query<'_, E, B>,
        params: &DynParams<E, B>,
        m: M,
    ) -> Vec<Rows<E, B, M>> {
        let (p, n) = (self.dictionary.d.rows, self.dictionary.d.cols);
        let layer = |k| Layer {
            f: params.traced(3 * k, (n, p), m),
            g: params.traced(3 * k + 1, (n, n), m),
            beta: params.get(3 * k + 2, (n,)),
        };
        let layers: Vec<_> = (0..self.sets()).map(layer).collect();
        lista_layers(at.x.clone().put_tape(m), &layers, self.layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{AmortizedTask, Training};
    use outerloop_core::contract::check_task;
    use outerloop_core::{BatchKey, FlatTask, Typed};

    #[test]
    fn lista_starts_as_ista_and_is_a_task() {
        let problem = SparseCoding::random(6, 9, 0.1, Key::new(1));
        [Weights::Shared, Weights::PerStep].into_iter().for_each(|w| starts_as_ista(&problem, w));
    }

    fn starts_as_ista(problem: &SparseCoding, weights: Weights) {
        let model = Lista { layers: 4, dictionary: problem.dictionary.clone(), weights };
        let training = Training { batch_size: 3, ..Training::default() };
        let task = AmortizedTask::new(problem.clone(), model, training).expect("valid settings");
        let typed: Box<dyn FlatTask<f64>> = Box::new(Typed::new(task.clone()));
        let theta = typed.init(Key::new(0)).data;
        let mut x = vec![0.0; 12];
        problem.contexts(BatchKey::train(0, Key::new(5)), &mut x);
        let layers = task.predict(&theta, &x, Key::new(0));
        for (i, x) in x.chunks(6).enumerate() {
            for (t, y) in problem.dictionary.ista(x, 4).into_iter().skip(1).enumerate() {
                let got = &layers[t][9 * i..][..9];
                assert!(got.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-12), "{t}: {got:?}, not {y:?}");
            }
            let best = problem.dictionary.optimum(x);
            assert!(problem.dictionary.kkt_residual(x, &best.y) < 1e-12);
        }
        check_task(&Typed::new(task.clone()), &Typed::new(task)).expect("the contract");
    }
}
