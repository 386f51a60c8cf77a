//! An MLP with one hidden layer whose shapes the compiler checks.

use super::fused::{elementwise, FusedNet};
use super::{error_rate, normalize_cross_entropy};
use crate::data::{ImageBatch, Splits};
use dfdx::prelude::PutTape;
use outerloop_core::ops::{linear, softmax_cross_entropy, Activation, Head};
use outerloop_core::tensor::{Backend, Const, Mode, Rank0, Rank1, Rank2, Tensor};
use outerloop_core::{
    collection, in_f32, nn::truncated_normal, BatchKey, Error, Evaluator, Float, Key, Metric, Result, Task,
};

collection! {
    /// Parameters of [`ImageMlp`].
    pub struct MlpParams<const IN: usize, const HIDDEN: usize, const CLASSES: usize; E, B> {
        /// Weights of the hidden layer.
        pub w0: Tensor<Rank2<IN, HIDDEN>, E, B>,
        /// Biases of the hidden layer.
        pub b0: Tensor<Rank1<HIDDEN>, E, B>,
        /// Weights of the output layer.
        pub w1: Tensor<Rank2<HIDDEN, CLASSES>, E, B>,
        /// Biases of the output layer.
        pub b1: Tensor<Rank1<CLASSES>, E, B>,
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
        // The key numbers are those of an `MlpTask`: positions in the layout.
        MlpParams {
            w0: truncated_normal(dev, key.fold_in(0), 1.0 / (IN as f64).sqrt()),
            b0: dev.zeros(),
            w1: truncated_normal(dev, key.fold_in(2), 1.0 / (HIDDEN as f64).sqrt()),
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

    fn metrics(&self, p: &Self::Params, _: &[E], batch: &Self::Batch) -> Vec<Metric> {
        let hidden = linear(batch.images.clone(), &p.w0, &p.b0, self.activation); // [N, HIDDEN]
        let logits = linear(hidden, &p.w1, &p.b1, Activation::Identity); // [N, CLASSES]
        error_rate(&logits.as_vec(), &batch.labels)
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator<E>>> {
        in_f32(|| {
            let map = elementwise(self.activation);
            FusedNet::new(&self.data, self.batch_size, &[HIDDEN], CLASSES, map, Head::CrossEntropy)
        })
    }

    fn normalizer(&self, loss: f64) -> f64 {
        normalize_cross_entropy(loss, CLASSES)
    }
}
