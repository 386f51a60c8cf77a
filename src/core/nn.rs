//! Layers: parameters with haiku's names and initial values, applied by [`crate::ops`]. They are dfdx
//! tensor collections, so tuples and [`collection!`](crate::collection) structs of them are a task's
//! parameters.
//!
//! ```
//! use outerloop_core::{collection, nn::Dense, ops::Activation, tensor::*, Float, Key};
//! # use dfdx::prelude::PutTape;
//! collection! {
//!     struct Mlp<E, B> { hidden: Dense<64, 32, E, B>, out: Dense<32, 10, E, B> }
//! }
//! fn init<E: Float, B: Backend<E>>(dev: &B, key: Key) -> Mlp<E, B> {
//!     let [k0, k1] = key.split();
//!     Mlp { hidden: Dense::init(dev, k0), out: Dense::init(dev, k1) }
//! }
//! fn logits<E: Float, B: Backend<E>, N: Dim, M: Mode<E, B>>(
//!     net: &Mlp<E, B>,
//!     x: Tensor<(N, Const<64>), E, B, M>,
//! ) -> Tensor<(N, Const<10>), E, B, M> {
//!     net.out.forward(net.hidden.forward(x, Activation::Relu), Activation::Identity)
//! }
//! ```

use crate::collection;
use crate::ops::{self, Activation, Padding};
use crate::tensor::{Backend, Const, ConstShape, Dim, Float, Mode, Rank1, Rank2, Rank4, Shape, Tensor};
use crate::Key;

/// Weights as haiku draws them: normal with standard deviation `sigma`, truncated at `2 sigma`.
pub fn truncated_normal<S: ConstShape, E: Float, B: Backend<E>>(
    dev: &B,
    key: Key,
    sigma: f64,
) -> Tensor<S, E, B> {
    let shape = S::default();
    let mut v = vec![E::of(0.0); shape.num_elements()];
    key.fill_truncated_normal(&mut v, sigma);
    dev.tensor_from_vec(v, shape)
}

fn constant<S: ConstShape, E: Float, B: Backend<E>>(dev: &B, value: f64) -> Tensor<S, E, B> {
    let shape = S::default();
    dev.tensor_from_vec(vec![E::of(value); shape.num_elements()], shape)
}

collection! {
    /// A fully connected layer, `act(x w + b)`.
    pub struct Dense<const I: usize, const O: usize; E, B> {
        /// Weights `[I, O]`.
        pub w: Tensor<Rank2<I, O>, E, B>,
        /// Bias `[O]`.
        pub b: Tensor<Rank1<O>, E, B>,
    }
}

impl<const I: usize, const O: usize, E: Float, B: Backend<E>> Dense<I, O, E, B> {
    /// `w` truncated normal with sigma `1/√I`, `b` zero.
    pub fn init(dev: &B, key: Key) -> Self {
        Dense { w: truncated_normal(dev, key, 1.0 / (I as f64).sqrt()), b: constant(dev, 0.0) }
    }
    /// Shapes: `[N, I]` to `[N, O]`.
    pub fn forward<N: Dim, M: Mode<E, B>>(
        &self,
        x: Tensor<(N, Const<I>), E, B, M>,
        act: Activation,
    ) -> Tensor<(N, Const<O>), E, B, M> {
        ops::linear(x, &self.w, &self.b, act)
    }
}

collection! {
    /// Layer norm over the last axis, see [`ops::layer_norm`].
    pub struct LayerNorm<const C: usize; E, B> {
        /// `[C]`
        pub offset: Tensor<Rank1<C>, E, B>,
        /// `[C]`
        pub scale: Tensor<Rank1<C>, E, B>,
    }
}

impl<const C: usize, E: Float, B: Backend<E>> LayerNorm<C, E, B> {
    /// `scale` one, `offset` zero.
    pub fn init(dev: &B) -> Self {
        LayerNorm { offset: constant(dev, 0.0), scale: constant(dev, 1.0) }
    }
    /// Shapes: `[.., C]` to the same.
    pub fn forward<S: Shape, M: Mode<E, B>>(&self, x: Tensor<S, E, B, M>) -> Tensor<S, E, B, M> {
        ops::layer_norm(x, &self.scale, &self.offset)
    }
}

collection! {
    /// A table of `V` rows of `D` numbers, see [`ops::embedding`].
    pub struct Embedding<const V: usize, const D: usize; E, B> {
        /// `[V, D]`
        pub embeddings: Tensor<Rank2<V, D>, E, B>,
    }
}

impl<const V: usize, const D: usize, E: Float, B: Backend<E>> Embedding<V, D, E, B> {
    /// Truncated normal with sigma 1.
    pub fn init(dev: &B, key: Key) -> Self {
        Embedding { embeddings: truncated_normal(dev, key, 1.0) }
    }
    /// The rows of `ids`, traced in mode `m`. Shape: `[ids, D]`.
    pub fn forward<M: Mode<E, B>>(&self, ids: &[u32], m: M) -> Tensor<(usize, Const<D>), E, B, M> {
        use dfdx::prelude::PutTape;
        ops::embedding(self.embeddings.clone().put_tape(m), ids)
    }
}

collection! {
    /// A `K` by `K` convolution from `I` to `O` channels, see [`ops::conv2d`].
    pub struct Conv2d<const K: usize, const I: usize, const O: usize; E, B> {
        /// `[K, K, I, O]`
        pub w: Tensor<Rank4<K, K, I, O>, E, B>,
        /// `[O]`
        pub b: Tensor<Rank1<O>, E, B>,
    }
}

impl<const K: usize, const I: usize, const O: usize, E: Float, B: Backend<E>> Conv2d<K, I, O, E, B> {
    /// `w` truncated normal with sigma `1/√(K² I)`, `b` zero.
    pub fn init(dev: &B, key: Key) -> Self {
        let sigma = 1.0 / ((K * K * I) as f64).sqrt();
        Conv2d { w: truncated_normal(dev, key, sigma), b: constant(dev, 0.0) }
    }
    /// Shapes: `[N, H, W, I]` to `[N, OH, OW, O]`, see [`Padding`].
    #[allow(clippy::type_complexity)]
    pub fn forward<N: Dim, H: Dim, W: Dim, M: Mode<E, B>>(
        &self,
        x: Tensor<(N, H, W, Const<I>), E, B, M>,
        stride: usize,
        padding: Padding,
        act: Activation,
    ) -> Tensor<(N, usize, usize, Const<O>), E, B, M> {
        ops::conv2d(x, &self.w, &self.b, [stride; 2], padding, act)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::contract::check_task;
    use crate::tensor::{NoneTape, Rank0};
    use crate::{BatchKey, Task, Typed};
    use dfdx::prelude::PutTape;

    /// A convolution, pooled and normalized, next to an embedded label, into a classifier.
    pub(crate) struct Everything;

    type Net<E, B> = ((Conv2d<3, 2, 4, E, B>, LayerNorm<4, E, B>), Embedding<5, 3, E, B>, Dense<7, 5, E, B>);

    impl<E: Float, B: Backend<E>> Task<E, B> for Everything {
        type Params = Net<E, B>;
        type Batch = (Tensor<(usize, Const<6>, Const<6>, Const<2>), E, B>, Vec<u32>);
        fn name(&self) -> String {
            "everything".into()
        }
        fn init(&self, dev: &B, key: Key) -> Self::Params {
            let [a, b, c] = key.split();
            ((Conv2d::init(dev, a), LayerNorm::init(dev)), Embedding::init(dev, b), Dense::init(dev, c))
        }
        fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
            let shape = (3, Const, Const, Const);
            (dev.normal_like(shape, at.noise()), (0..3).map(|i| (at.step as u32 + i) % 5).collect())
        }
        fn loss<M: Mode<E, B>>(&self, p: &Self::Params, x: &Self::Batch, m: M) -> Tensor<Rank0, E, B, M> {
            let ((conv, norm), table, out) = p;
            let h = conv.forward(x.0.clone().put_tape(m), 2, Padding::Same, Activation::Tanh);
            let h = norm.forward(ops::global_avg_pool(h));
            let h = ops::concat(h, &table.forward(&x.1, m));
            let h = ops::reshape(h, (3, Const::<7>));
            ops::softmax_cross_entropy(out.forward(h, Activation::Identity), &x.1)
        }
    }

    #[test]
    fn layers_make_a_task() {
        check_task(&Typed::new(Everything), &Typed::new(Everything)).expect("the contract");
    }

    #[test]
    fn initial_values_are_haikus() {
        let dev = crate::tensor::Cpu::default();
        let p: Net<f64, _> = Task::<f64, _>::init(&Everything, &dev, Key::new(1));
        assert!(p.0 .0.w.as_vec().iter().all(|w| w.abs() <= 2.0 / 18f64.sqrt() && *w != 0.0));
        assert!(p.2.w.as_vec().iter().all(|w| w.abs() <= 2.0 / 7f64.sqrt() && *w != 0.0));
        assert_eq!((p.2.b.as_vec(), p.0 .1.scale.as_vec()), (vec![0.0; 5], vec![1.0; 4]));
        let ids = p.1.forward(&[4, 4], NoneTape).as_vec();
        assert_eq!(ids[..3], p.1.embeddings.as_vec()[12..]);
        assert_eq!(ids[..3], ids[3..]);
    }
}
