//! Networks that are dense layers and nothing else, evaluated in f32 by one kernel.

use super::Nonlinearity;
use crate::data::Splits;
use outerloop_core::ops::{scalar, Activation, DenseLinear, DenseNet, Elementwise, Head, Rows};
use outerloop_core::tensor::Curvature;
use outerloop_core::{BatchKey, Evaluator, Linearization};

/// A [`DenseNet`] on batches of images, which it reads where they lie.
pub(super) struct FusedNet {
    data: Splits,
    net: DenseNet,
    /// The batch that `index` holds.
    at: Option<BatchKey>,
    index: Vec<u32>,
}

impl FusedNet {
    /// Images → `hidden` layers → `outputs`.
    pub(super) fn new(
        data: &Splits,
        batch_size: usize,
        hidden: &[usize],
        outputs: usize,
        map: Elementwise,
        head: Head,
    ) -> Self {
        let widths = [&[data.data().features()], hidden, &[outputs]].concat();
        let net = DenseNet::new(&widths, map, head);
        FusedNet { data: data.clone(), net, at: None, index: vec![0; batch_size] }
    }

    /// Network and rows of the batch that `at` names.
    fn load(&mut self, at: BatchKey) -> (&mut DenseNet, Rows<'_>) {
        if self.at != Some(at) {
            self.data.indices_into(at, &mut self.index);
            self.at = Some(at);
        }
        let data = self.data.data();
        (&mut self.net, Rows { inputs: &data.images, labels: &data.labels, index: &self.index })
    }
}

impl Evaluator for FusedNet {
    fn loss(&mut self, params: &[f32], _: &[f32], at: BatchKey) -> f32 {
        let (net, rows) = self.load(at);
        net.loss(params, rows)
    }
    fn loss_and_grad(&mut self, params: &[f32], _: &mut [f32], at: BatchKey, grad: &mut [f32]) -> f32 {
        let (net, rows) = self.load(at);
        net.loss_and_grad(params, rows, grad)
    }
    fn loss_grad_hvp(
        &mut self,
        params: &[f32],
        _: &[f32],
        at: BatchKey,
        v: &[f32],
        grad: &mut [f32],
        hvp: &mut [f32],
    ) -> f32 {
        let (net, rows) = self.load(at);
        net.loss_grad_hvp(params, rows, v, grad, hvp)
    }
    fn linearize(
        &mut self,
        params: &[f32],
        _: &mut [f32],
        at: BatchKey,
        grad: &mut [f32],
    ) -> (f32, Option<Box<dyn Linearization>>) {
        let (net, rows) = self.load(at);
        let mut whole = Vec::new();
        let all = match grad.len() == params.len() {
            true => &mut *grad,
            false => {
                whole.resize(params.len(), 0.0);
                &mut whole[..]
            }
        };
        let (loss, linear) = net.linearize(params, rows, all);
        if !whole.is_empty() {
            grad.copy_from_slice(&whole[..grad.len()]);
        }
        let kept =
            FusedLinear { data: self.data.clone(), index: self.index.clone(), linear, len: params.len() };
        (loss, Some(Box::new(kept)))
    }
}

/// A [`FusedNet`] at one point and batch.
struct FusedLinear {
    data: Splits,
    index: Vec<u32>,
    linear: DenseLinear,
    /// Of all parameters.
    len: usize,
}

impl Linearization for FusedLinear {
    fn product(&mut self, curvature: Curvature, v: &[f32], out: &mut [f32]) {
        let data = self.data.data();
        let rows = Rows { inputs: &data.images, labels: &data.labels, index: &self.index };
        if v.len() == self.len && out.len() == self.len {
            return self.linear.product(rows, curvature, v, out);
        }
        let (mut all, mut product) = (v.to_vec(), vec![0.0; self.len]);
        all.resize(self.len, 0.0);
        self.linear.product(rows, curvature, &all, &mut product);
        out.copy_from_slice(&product[..out.len()]);
    }
    fn bytes(&self) -> usize {
        self.linear.bytes() + self.index.len() * size_of::<u32>()
    }
}

impl Nonlinearity {
    /// As the kernel wants it.
    pub(super) fn elementwise(self) -> Elementwise {
        match self {
            Self::Relu => Elementwise::new(scalar::relu),
            Self::Relu6 => Elementwise::new(scalar::relu6),
            Self::Selu => Elementwise::new(scalar::selu),
            Self::Tanh => Elementwise::new(scalar::tanh),
            Self::Cos => Elementwise::new(scalar::cos),
            Self::Sin => Elementwise::new(scalar::sin),
            Self::Sigmoid => Elementwise::new(scalar::sigmoid),
            Self::Silu => Elementwise::new(scalar::silu),
            Self::Gelu => Elementwise::new(scalar::gelu),
            Self::LeakyRelu => Elementwise::new(|x| scalar::leaky_relu(x, -0.5)),
        }
    }
}

/// As the kernel wants it.
pub(super) fn elementwise(activation: Activation) -> Elementwise {
    match activation {
        Activation::Identity => Elementwise::new(|x| [x, 1.0, 0.0]),
        Activation::Relu => Elementwise::new(scalar::relu),
        Activation::Tanh => Elementwise::new(scalar::tanh),
        Activation::Sigmoid => Elementwise::new(scalar::sigmoid),
    }
}
