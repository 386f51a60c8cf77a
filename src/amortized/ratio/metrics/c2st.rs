//! The published classifier two-sample test: a multilayer perceptron.

use super::two_sample::{Accuracy, TwoSample};
use crate::ratio::train::{train, Stop, TrainConfig};
use outerloop_core::ops::{self, Activation};
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, PutTape, Rank0, Tensor};
use outerloop_core::{BatchKey, Float, Key, Layout, Result, Task, Typed};
use outerloop_lopt::hand::{Adam, LossTerm, WeightDecay};
use outerloop_outer::Workers;
use outerloop_tasks::data::Permutation;
use rand::Rng;
use std::sync::Arc;

/// Folds of the test.
const FOLDS: usize = 5;
/// Rows per batch.
const BATCH: usize = 200;
/// Passes over the data at most; without improvement before the end.
const EPOCHS: [u64; 2] = [10_000, 10];
/// Improvement of the loss that counts, in nats.
const TOLERANCE: f64 = 1e-4;
/// `α`: `α w` over the rows of a batch is added to the gradient.
const DECAY: f64 = 1e-4;

/// C2ST as published results define it: two hidden layers of `10 dim` ReLU units, Adam with learning rate 1e-3,
/// batches of 200, five shuffled folds, standardization by the first set; training ends when the loss of an
/// epoch has not improved by 1e-4 in ten epochs. 0.5: the sets can not be told apart.
///
/// `x` and `y`: `[.., dim]`. `key` fixes folds, initial weights and batches. Folds run on all threads.
/// Reference: Lueckmann et al. 2021, arXiv:2101.04653; scikit-learn's `MLPClassifier`.
///
/// # Errors
/// As [`TwoSample::new`].
pub fn c2st(x: &[f64], y: &[f64], dim: usize, key: Key, workers: &Workers) -> Result<Accuracy> {
    Ok(perceptron(x, y, dim, key, workers)?.accuracy)
}

/// What the classifiers of the folds say.
#[derive(Clone, Debug, PartialEq)]
pub struct PerceptronTest {
    /// Per fold and mean.
    pub accuracy: Accuracy,
    /// Of every point, first those of `x`, by the classifier that did not see it.
    pub logits: Vec<f64>,
}

/// [`c2st`] with the held-out logits.
///
/// # Errors
/// As [`TwoSample::new`].
pub fn perceptron(x: &[f64], y: &[f64], dim: usize, key: Key, workers: &Workers) -> Result<PerceptronTest> {
    let n = (x.len() + y.len()) / dim.max(1);
    let order = Permutation::new(n as u32, key.named("folds"));
    let mut folds = vec![0; n];
    order.each(0, n as u32, |i, r| folds[r as usize] = i * FOLDS / n);
    let test = TwoSample::new(x, y, dim, folds)?;
    let mut jobs: Vec<usize> = (0..FOLDS).collect();
    let held_out = workers.map(&mut jobs, |_, _, fold| fold_logits(&test, *fold, key.fold_in(*fold as u64)));
    let mut logits = vec![0.0; n];
    let mut scores = Vec::new();
    for (fold, held_out) in held_out.into_iter().enumerate() {
        for (i, z) in test.members(fold, true).into_iter().zip(held_out?) {
            logits[i] = f64::from(z);
        }
        scores.push(test.score(fold, |i| logits[i] > 0.0));
    }
    Ok(PerceptronTest { accuracy: Accuracy::new(scores), logits })
}

/// The logits of a fold, by a classifier trained on the others.
fn fold_logits(test: &TwoSample, fold: usize, key: Key) -> Result<Vec<f32>> {
    let train_rows = test.members(fold, false);
    let epoch = train_rows.len().div_ceil(BATCH) as u64;
    let classifier = Classifier::new(test, &train_rows);
    let layout = classifier.layout.clone();
    let widths = [classifier.dim, classifier.hidden];
    let config = TrainConfig {
        eval_every: epoch,
        eval_batches: 0,
        stop: Stop::Plateau { patience: EPOCHS[1] + 1, tolerance: TOLERANCE },
        ..TrainConfig::new(EPOCHS[0] * epoch)
    };
    let adam = Adam { epsilon_root: 0.0, ..Adam::new(1e-3) };
    let opt = WeightDecay::new(DECAY / BATCH as f64, LossTerm::None, Box::new(adam));
    let trained = train(&Typed::new(classifier), &opt, &config, key)?;
    Ok(logits(&layout, widths, &trained.params, test, &test.members(fold, true)))
}

/// The classifier of one fold.
struct Classifier {
    rows: Vec<f32>,
    labels: Vec<f32>,
    dim: usize,
    hidden: usize,
    layout: Arc<Layout>,
}

impl Classifier {
    fn new(test: &TwoSample, train: &[usize]) -> Self {
        let (dim, hidden) = (test.dim, 10 * test.dim);
        let rows = train.iter().flat_map(|&i| test.row(i).iter().map(|v| *v as f32)).collect();
        let labels = train.iter().map(|&i| f32::from(u8::from(test.labels[i]))).collect();
        let layers = [[dim, hidden], [hidden, hidden], [hidden, 1]];
        let mut layout = Layout::default();
        for (i, [inputs, outputs]) in layers.into_iter().enumerate() {
            layout.push(format!("w{i}"), [inputs, outputs]);
            layout.push(format!("b{i}"), [outputs]);
        }
        Classifier { rows, labels, dim, hidden, layout: Arc::new(layout) }
    }
}

/// `[n, 1]`
fn forward<E: Float, B: Backend<E>, M: Mode<E, B>>(
    p: &DynParams<E, B>,
    x: Tensor<(usize, usize), E, B, M>,
    [dim, hidden]: [usize; 2],
) -> Tensor<(usize, usize), E, B, M> {
    let h = ops::linear(x, &p.get(0, (dim, hidden)), &p.get(1, (hidden,)), Activation::Relu);
    let h = ops::linear(h, &p.get(2, (hidden, hidden)), &p.get(3, (hidden,)), Activation::Relu);
    ops::linear(h, &p.get(4, (hidden, 1)), &p.get(5, (1,)), Activation::Identity)
}

fn logits(
    layout: &Arc<Layout>,
    widths: [usize; 2],
    params: &[f32],
    t: &TwoSample,
    rows: &[usize],
) -> Vec<f32> {
    use outerloop_core::tensor::Cpu;
    let dev = Cpu::default();
    let p: DynParams<f32, Cpu> = DynTree::new(&dev, layout.clone(), params);
    let x: Vec<f32> = rows.iter().flat_map(|&i| t.row(i).iter().map(|v| *v as f32)).collect();
    let x = dev.filled((rows.len(), t.dim), |y| y.copy_from_slice(&x));
    <Cpu as Backend<f32>>::host(&forward(&p, x, widths)).to_vec()
}

impl<E: Float, B: Backend<E>> Task<E, B> for Classifier {
    type Params = DynParams<E, B>;
    type Batch = [Tensor<(usize, usize), E, B>; 2];

    fn name(&self) -> String {
        "two_sample".into()
    }
    /// Glorot's uniform for ReLU, biases too: ±√(6/(inputs + outputs)).
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let mut flat = vec![E::of(0.0); self.layout.len()];
        let mut bound = 0.0;
        for (i, e) in self.layout.entries().iter().enumerate() {
            if let [inputs, outputs] = e.shape[..] {
                bound = (6.0 / (inputs + outputs) as f64).sqrt();
            }
            let mut rng = key.fold_in(i as u64).rng();
            flat[e.range()].iter_mut().for_each(|w| *w = E::of(rng.gen_range(-bound..bound)));
        }
        DynTree::new(dev, self.layout.clone(), &flat)
    }
    /// Epochs in a keyed order; the last batch of an epoch may be smaller.
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let n = self.labels.len();
        let per_epoch = n.div_ceil(BATCH) as u64;
        let start = (at.step % per_epoch) as usize * BATCH;
        let size = BATCH.min(n - start);
        let order = Permutation::new(n as u32, at.key.fold_in(at.step / per_epoch));
        let mut rows = vec![0; size];
        order.each(start as u32, size as u32, |i, r| rows[i] = r as usize);
        let of = |v: f32| E::of(f64::from(v));
        let d = self.dim;
        let x = dev.filled((size, d), |y| {
            for (y, r) in y.chunks_exact_mut(d).zip(&rows) {
                y.iter_mut().zip(&self.rows[r * d..][..d]).for_each(|(y, v)| *y = of(*v));
            }
        });
        let labels = dev.filled((size, 1), |y| {
            y.iter_mut().zip(&rows).for_each(|(y, r)| *y = of(self.labels[*r]));
        });
        [x, labels]
    }
    fn loss<M: Mode<E, B>>(
        &self,
        p: &Self::Params,
        [x, labels]: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        ops::sigmoid_cross_entropy(forward(p, x.clone().put_tape(m), [self.dim, self.hidden]), labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::metrics::special::normal_cdf;

    #[test]
    fn equal_sets_cannot_be_told_apart_and_shifted_ones_can() {
        let workers = Workers::new(2).unwrap();
        for shift in [0.0, 2.0] {
            let (mut x, mut y) = (vec![0.0; 800], vec![0.0; 800]);
            Key::new(1).fill_normal(&mut x);
            Key::new(2).fill_normal(&mut y);
            y.iter_mut().step_by(2).for_each(|y| *y += shift);
            let got = c2st(&x, &y, 2, Key::new(3), &workers).unwrap();
            let bayes = normal_cdf(0.5 * shift);
            assert!((got.mean - bayes).abs() < 4.0 * 0.5 / 800f64.sqrt(), "{shift}: {got:?}");
            let alone = c2st(&x, &y, 2, Key::new(3), &Workers::new(1).unwrap()).unwrap();
            assert_eq!(got, alone);
        }
    }
}
