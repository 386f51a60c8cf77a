//! An MLP with one hidden layer whose shapes the compiler checks.

use super::{fill_truncated_normal, normalize_cross_entropy};
use crate::data::{ImageBatch, Splits};
use dfdx::prelude::PutTape;
use outerloop_core::ops::{linear, softmax_cross_entropy, Activation};
use outerloop_core::tensor::{
    Backend, Const, Device, Dtype, Mode, ModuleVisitor, Rank0, Rank1, Rank2, Tensor, TensorCollection,
};
use outerloop_core::{BatchKey, Error, Float, Key, Result, Task};

/// Parameters of [`ImageMlp`]. (`collection!` takes no const parameters, so the passage to the flat
/// buffer is written out.)
#[derive(Clone, Debug)]
pub struct MlpParams<const IN: usize, const HIDDEN: usize, const CLASSES: usize, E: Dtype, B: Device<E>> {
    /// Weights of the hidden layer.
    pub w0: Tensor<Rank2<IN, HIDDEN>, E, B>,
    /// Biases of the hidden layer.
    pub b0: Tensor<Rank1<HIDDEN>, E, B>,
    /// Weights of the output layer.
    pub w1: Tensor<Rank2<HIDDEN, CLASSES>, E, B>,
    /// Biases of the output layer.
    pub b1: Tensor<Rank1<CLASSES>, E, B>,
}

impl<const IN: usize, const HIDDEN: usize, const CLASSES: usize, E: Float, B: Backend<E>>
    TensorCollection<E, B> for MlpParams<IN, HIDDEN, CLASSES, E, B>
{
    type To<E2: Dtype, D2: Device<E2>> = MlpParams<IN, HIDDEN, CLASSES, E2, D2>;
    fn iter_tensors<V: ModuleVisitor<Self, E, B>>(
        v: &mut V,
    ) -> std::result::Result<Option<Self::To<V::E2, V::D2>>, V::Err> {
        v.visit_fields(
            (
                Self::module("w0", |s| &s.w0, |s| &mut s.w0),
                Self::module("b0", |s| &s.b0, |s| &mut s.b0),
                Self::module("w1", |s| &s.w1, |s| &mut s.w1),
                Self::module("b1", |s| &s.b1, |s| &mut s.b1),
            ),
            |(w0, b0, w1, b1)| MlpParams { w0, b0, w1, b1 },
        )
    }
}

/// Image classification by `IN → HIDDEN → CLASSES` with mean softmax cross entropy. Same task, same
/// numbers as an [`MlpTask`](super::MlpTask) with one hidden layer.
#[derive(Clone, Debug)]
pub struct ImageMlp<const IN: usize, const HIDDEN: usize, const CLASSES: usize> {
    data: Splits,
    batch_size: usize,
    activation: Activation,
}

impl ImageMlp<64, 32, 10> {
    /// The tutorial's task: 8 x 8 digits, 32 ReLU units, batches of 128.
    pub fn digits() -> Self {
        Self::new(Splits::digits(), 128, Activation::Relu).expect("the digits have 64 features, 10 classes")
    }
}

impl<const IN: usize, const HIDDEN: usize, const CLASSES: usize> ImageMlp<IN, HIDDEN, CLASSES> {
    /// A task on data with `IN` features and `CLASSES` classes.
    pub fn new(data: Splits, batch_size: usize, activation: Activation) -> Result<Self> {
        data.check_batch_size(batch_size)?;
        let got = [data.data().features(), data.data().classes];
        if got != [IN, CLASSES] {
            return Err(Error::mismatch("image mlp: features and classes", [IN, CLASSES], got));
        }
        Ok(ImageMlp { data, batch_size, activation })
    }
}

impl<const IN: usize, const HIDDEN: usize, const CLASSES: usize, E: Float, B: Backend<E>> Task<E, B>
    for ImageMlp<IN, HIDDEN, CLASSES>
{
    type Params = MlpParams<IN, HIDDEN, CLASSES, E, B>;
    type Batch = ImageBatch<Const<IN>, E, B>;

    fn name(&self) -> String {
        format!("{}_mlp{HIDDEN}_{}", self.data.data().name, format!("{:?}", self.activation).to_lowercase())
    }

    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let weights = |index: u64, inputs: usize, outputs: usize| {
            let mut w = vec![E::of(0.0); inputs * outputs];
            fill_truncated_normal(key.fold_in(index), inputs, 1.0, &mut w);
            w
        };
        MlpParams {
            w0: dev.tensor_from_vec(weights(0, IN, HIDDEN), (Const, Const)),
            b0: dev.zeros(),
            w1: dev.tensor_from_vec(weights(2, HIDDEN, CLASSES), (Const, Const)),
            b1: dev.zeros(),
        }
    }

    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        self.data.batch(dev, at, self.batch_size, Const)
    }

    fn refill(&self, _: &B, at: BatchKey, batch: &mut Self::Batch) {
        self.data.refill(at, batch);
    }

    fn loss<M: Mode<E, B>>(&self, p: &Self::Params, batch: &Self::Batch, m: M) -> Tensor<Rank0, E, B, M> {
        let x = batch.images.clone().put_tape(m); // [N, IN]
        let hidden = linear(x, &p.w0, &p.b0, self.activation); // [N, HIDDEN]
        let logits = linear(hidden, &p.w1, &p.b1, Activation::Identity); // [N, CLASSES]
        softmax_cross_entropy(logits, &batch.labels)
    }

    fn normalizer(&self, loss: f64) -> f64 {
        normalize_cross_entropy(loss, CLASSES)
    }
}
