//! The hyper tasks: classifiers of digits whose training has hyperparameters.

use outerloop::core::ops;
use outerloop::prelude::*;
use std::sync::Arc;

/// Images with labels.
#[derive(Clone, Default)]
pub struct Set {
    /// `[n, pixels]`.
    pub x: Vec<f32>,
    /// `[n]`.
    pub y: Vec<u32>,
}

impl Set {
    /// The digits of these indices.
    pub fn digits(index: &[usize]) -> Self {
        let data = digits();
        Set {
            x: index.iter().flat_map(|i| data.image(*i)).copied().collect(),
            y: index.iter().map(|i| data.labels[*i]).collect(),
        }
    }

    /// The digits in an order of this key, in parts of the given sizes; the last part is the rest.
    pub fn parts<const N: usize>(sizes: [usize; N], key: Key) -> Vec<Self> {
        let mut order: Vec<usize> = (0..digits().labels.len()).collect();
        order.sort_by_key(|i| key.fold_in(*i as u64).bits());
        let mut rest = &order[..];
        let mut parts = Vec::new();
        for size in sizes {
            let (part, others) = rest.split_at(size);
            parts.push(Set::digits(part));
            rest = others;
        }
        parts.push(Set::digits(rest));
        parts
    }
}

/// [`Set::parts`] made another number of parts than it was asked for.
pub fn unreachable_parts() -> Error {
    Error::invalid("digits", "expected a part per size and the rest")
}

/// What is a hyperparameter.
pub enum Tuned {
    /// The logarithm of a decay per weight; the initial one for all.
    Decays(f32),
    /// The training images themselves, one per class.
    Images,
    /// The logarithm of a weight per training example.
    Weights,
    /// A network of one hidden layer of this width, which changes the training images.
    Augmentation(usize),
}

/// A network of tanh layers with softmax cross entropy.
pub struct Classifier {
    /// Inputs, hidden widths, classes.
    pub widths: Vec<usize>,
    /// What is tuned.
    pub tuned: Tuned,
    /// The weight decay that is not tuned.
    pub decay: f64,
    /// Training, validation and test data.
    pub sets: [Set; 3],
    /// Training examples per batch; all of them if there are no more.
    pub batch: usize,
}

/// Images and labels, with what else a loss sees.
pub struct Batch<E: Float, B: Backend<E>> {
    split: Split,
    x: Tensor<(usize, usize), E, B>,
    y: Vec<u32>,
    noise: Tensor<(usize, usize), E, B>,
}

fn dense_layout(widths: &[usize]) -> Layout {
    let layers = widths.windows(2).enumerate();
    Layout::new(
        layers.flat_map(|(i, w)| [(format!("w{i}"), vec![w[0], w[1]]), (format!("b{i}"), vec![w[1]])]),
    )
}

impl Classifier {
    fn params(&self) -> Layout {
        dense_layout(&self.widths)
    }

    fn hyper(&self) -> Layout {
        let pixels = self.widths[0];
        match self.tuned {
            Tuned::Decays(_) => self.params(),
            Tuned::Images => Layout::new([("images", vec![self.sets[0].y.len(), pixels])]),
            Tuned::Weights => Layout::new([("log_weights", vec![self.sets[0].y.len()])]),
            Tuned::Augmentation(hidden) => dense_layout(&[pixels + 1, hidden, pixels]),
        }
    }

    fn set(&self, split: Split) -> &Set {
        match split {
            Split::Train => &self.sets[0],
            Split::InnerValid | Split::OuterValid => &self.sets[1],
            Split::Test => &self.sets[2],
        }
    }

    /// Normal weights of standard deviation `scale / √inputs`, biases of 0.
    fn draw<E: Float>(layout: &Layout, scale: f64, key: Key) -> Vec<E> {
        let mut all = vec![E::of(0.0); layout.len()];
        for (i, e) in layout.entries().iter().enumerate().filter(|(_, e)| e.shape.len() == 2) {
            let weights = &mut all[e.range()];
            key.fold_in(i as u64).fill_normal(weights);
            let scale = E::of(scale / (e.shape[0] as f64).sqrt());
            weights.iter_mut().for_each(|w| *w *= scale);
        }
        all
    }

    /// The part of right answers of weights `w` on a set.
    pub fn accuracy(&self, w: &[f32], set: &Set) -> f64 {
        let layout = self.params();
        let right = set.y.iter().zip(set.x.chunks_exact(self.widths[0])).filter(|(label, x)| {
            let mut a = x.to_vec();
            for pair in layout.entries().chunks(2) {
                let (weights, bias) = (&w[pair[0].range()], &w[pair[1].range()]);
                let mut z = bias.to_vec();
                for (a, row) in a.iter().zip(weights.chunks_exact(z.len())) {
                    z.iter_mut().zip(row).for_each(|(z, w)| *z += a * w);
                }
                let is_last = pair[1].range().end == layout.len();
                a = if is_last { z } else { z.into_iter().map(f32::tanh).collect() };
            }
            let best = (0..a.len()).max_by(|i, j| a[*i].total_cmp(&a[*j]));
            best == Some(**label as usize)
        });
        right.count() as f64 / set.y.len() as f64
    }
}

/// Weights and biases of a layer in turn.
fn forward<E: Float, B: Backend<E>, M: Mode<E, B>>(
    w: &DynParams<E, B>,
    layout: &Layout,
    mut x: Tensor<(usize, usize), E, B, M>,
) -> Tensor<(usize, usize), E, B, M> {
    let shapes: Vec<&[usize]> = layout.entries().iter().map(|e| &e.shape[..]).collect();
    for i in (0..shapes.len()).step_by(2) {
        let act = if i + 2 < shapes.len() { Activation::Tanh } else { Activation::Identity };
        x = linear(x, &w.get(i, (shapes[i][0], shapes[i][1])), &w.get(i + 1, (shapes[i][1],)), act);
    }
    x
}

impl<E: Float, B: Backend<E>> HyperTask<E, B> for Classifier {
    type Params = DynParams<E, B>;
    type Hyper = DynParams<E, B>;
    type Batch = Batch<E, B>;

    fn name(&self) -> String {
        "digits".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        // A linear model starts at zero, a deep one must not.
        let scale = if self.widths.len() > 2 { 1.0 } else { 0.0 };
        DynTree::new(dev, Arc::new(self.params()), &Self::draw(&self.params(), scale, key))
    }
    fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper {
        let layout = Arc::new(self.hyper());
        let data: Vec<E> = match self.tuned {
            Tuned::Decays(initial) => vec![E::of(f64::from(initial)); layout.len()],
            Tuned::Images => {
                let mut noise = vec![E::of(0.0); layout.len()];
                key.fill_normal(&mut noise);
                noise.iter().map(|z| E::of(0.5 + 0.1 * z.f64())).collect()
            }
            Tuned::Weights => vec![E::of(0.0); layout.len()],
            // The last layer is zero: at first, nothing is changed.
            Tuned::Augmentation(_) => {
                let mut all = Self::draw::<E>(&layout, 1.0, key);
                all[layout.entries()[2].offset..].fill(E::of(0.0));
                all
            }
        };
        DynTree::new(dev, layout, &data)
    }
    fn log_decays(&self) -> Vec<String> {
        match self.tuned {
            Tuned::Decays(_) => self.hyper().entries().iter().map(|e| e.name.clone()).collect(),
            _ => Vec::new(),
        }
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let (set, pixels) = (self.set(at.split), self.widths[0]);
        let all = set.y.len();
        let index: Vec<usize> = if at.split == Split::Train && self.batch < all {
            (0..self.batch as u64).map(|i| (at.noise().fold_in(i).uniform() * all as f64) as usize).collect()
        } else {
            (0..all).collect()
        };
        let n = index.len();
        let x = match self.tuned {
            Tuned::Images if at.split == Split::Train => dev.filled((0, pixels), |_| {}),
            _ => dev.filled((n, pixels), |out| {
                for (row, i) in out.chunks_exact_mut(pixels).zip(&index) {
                    let image = &set.x[i * pixels..][..pixels];
                    row.iter_mut().zip(image).for_each(|(o, x)| *o = E::of(f64::from(*x)));
                }
            }),
        };
        let noise = match self.tuned {
            Tuned::Augmentation(_) => dev.normal_like((n, 1), at.noise()),
            _ => dev.filled((0, 1), |_| {}),
        };
        Batch { split: at.split, x, y: index.iter().map(|i| set.y[*i]).collect(), noise }
    }
    fn refill(&self, dev: &B, at: BatchKey, batch: &mut Self::Batch) {
        let is_drawn = at.split == Split::Train && self.batch < self.sets[0].y.len();
        let is_noisy = matches!(self.tuned, Tuned::Augmentation(_));
        if at.split != batch.split || is_drawn || is_noisy {
            *batch = self.batch(dev, at);
        }
    }
    fn train_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        hyper: &Self::Hyper,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let (params, tuned) = (self.params(), self.hyper());
        let pixels = self.widths[0];
        let images = || batch.x.clone().put_tape(m);
        let x = match self.tuned {
            Tuned::Images => hyper.traced(0, (batch.y.len(), pixels), m),
            Tuned::Augmentation(_) => {
                let change = forward(hyper, &tuned, ops::concat(images(), &batch.noise));
                ops::add(images(), &ops::tanh(change))
            }
            _ => images(),
        };
        let logits = forward(w, &params, x);
        let loss = match self.tuned {
            Tuned::Weights => {
                let weights = ops::exp(hyper.traced(0, (batch.y.len(),), m));
                ops::mean(ops::mul(ops::softmax_cross_entropies(logits, &batch.y), &weights))
            }
            _ => softmax_cross_entropy(logits, &batch.y),
        };
        let tensors = params.entries().iter().enumerate();
        tensors.fold(loss, |loss, (i, e)| {
            let weights = w.traced(i, (e.numel(),), m);
            let decay = match self.tuned {
                Tuned::Decays(_) => ops::weight_decay(weights, &hyper.get(i, (e.numel(),))),
                _ => ops::scale(ops::sum(ops::square(weights)), 0.5 * self.decay),
            };
            ops::add(loss, &decay)
        })
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        _: &Self::Hyper,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        softmax_cross_entropy(forward(w, &self.params(), batch.x.clone().put_tape(m)), &batch.y)
    }
}
