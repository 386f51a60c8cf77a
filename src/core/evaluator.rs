//! Which batch, and what is computed on it: [`BatchKey`] and [`Evaluator`].

use crate::tensor::Curvature;
use crate::{same, Float, Key};
use serde::{Deserialize, Serialize};
use std::any::TypeId;
use std::ops::Range;

/// The four parts of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Split {
    /// Inner training.
    Train,
    /// Validation seen by the inner optimizer.
    InnerValid,
    /// Validation for the meta-loss.
    OuterValid,
    /// Final evaluation only.
    Test,
}

impl Split {
    /// All splits, in order.
    pub const ALL: [Split; 4] = [Split::Train, Split::InnerValid, Split::OuterValid, Split::Test];
}

/// Which batch: a batch is a pure function of this, so nothing about data needs to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchKey {
    /// The part of the data.
    pub split: Split,
    /// Position in the stream of batches, from 0.
    pub step: u64,
    /// The stream: the order of a training run.
    pub key: Key,
}

impl BatchKey {
    /// Batch `step` of the training split in the stream `key`.
    pub fn train(step: u64, key: Key) -> Self {
        BatchKey { split: Split::Train, step, key }
    }
    /// This batch's own key, for augmentation, dropout or noise.
    pub fn noise(self) -> Key {
        self.key.fold_in(self.split as u64).fold_in(self.step)
    }
}

/// Evaluates one task's loss and derivatives on flat buffers. `params`, `grad`, `v` and `hvp` have
/// the layout's length; `state` that of [`FlatTask::init_state`](crate::FlatTask::init_state).
pub trait Evaluator<E: Float = f32>: Send {
    /// The loss on the batch that `at` names. Leaves `state` alone.
    fn loss(&mut self, params: &[E], state: &[E], at: BatchKey) -> E;

    /// The loss; overwrites `grad` with its gradient and updates `state`.
    fn loss_and_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut [E]) -> E;

    /// The loss; overwrites `grad` with its gradient and `hvp` with the Hessian times `v`, at the
    /// given `state`, which it leaves alone. Exact if the loss is made of [`crate::ops`] or has a
    /// closed form, else central differences in f64.
    fn loss_grad_hvp(
        &mut self,
        params: &[E],
        state: &[E],
        at: BatchKey,
        v: &[E],
        grad: &mut [E],
        hvp: &mut [E],
    ) -> E;

    /// The loss and the gradient by the leading parameters, as many as `grad` has elements (all elements of a
    /// number of tensors); the others are data. Updates `state`. By default the whole gradient is computed.
    fn loss_and_leading_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut [E]) -> E {
        if grad.len() == params.len() {
            return self.loss_and_grad(params, state, at, grad);
        }
        let mut all = vec![E::of(0.0); params.len()];
        let loss = self.loss_and_grad(params, state, at, &mut all);
        grad.copy_from_slice(&all[..grad.len()]);
        loss
    }

    /// [`Self::loss_and_grad`] without storing zeros: `grad` becomes as long as the leading parameters of which the last
    /// one takes part in the loss. By default it is the whole gradient.
    fn loss_and_used_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut Vec<E>) -> E {
        grad.resize(params.len(), E::of(0.0));
        self.loss_and_grad(params, state, at, grad)
    }

    /// [`Self::loss_and_grad`] (or of leading parameters: `grad` may be shorter) with the linearization there, for
    /// many products with the Hessian at one point and batch. `None`: this evaluator keeps none, and
    /// [`Self::loss_grad_hvp`] is the way; so by default.
    fn linearize(
        &mut self,
        params: &[E],
        state: &mut [E],
        at: BatchKey,
        grad: &mut [E],
    ) -> (E, Option<Box<dyn Linearization<E>>>) {
        (self.loss_and_leading_grad(params, state, at, grad), None)
    }
}

/// A loss at one point and batch, with its forward pass and gradient kept: each product with the Hessian costs
/// its own two passes only, about half of [`Evaluator::loss_grad_hvp`], and gives the same bits. Holds the
/// intermediate results of the loss; it stays on its thread.
pub trait Linearization<E: Float = f32> {
    /// `out = H v`. Both may be shorter than the parameters and end where a tensor ends: `v` is zero behind its
    /// end, and `out` is the leading part of the product. So with `v` and `out` of the leading block's length the
    /// rest of the parameters are data, and cost nothing.
    fn hvp(&mut self, v: &[E], out: &mut [E]) {
        self.product(Curvature::Hessian, v, out);
    }

    /// [`Self::hvp`] with the given curvature matrix in place of `H`.
    fn product(&mut self, curvature: Curvature, v: &[E], out: &mut [E]);

    /// [`Self::product`] of several directions, all of one length, as all results are; equal up to rounding. Dense layers
    /// with few outputs take them together, which is faster. By default one after the other.
    fn products(&mut self, curvature: Curvature, v: &[&[E]], out: &mut [&mut [E]]) {
        for (v, out) in v.iter().zip(out) {
            self.product(curvature, v, out);
        }
    }

    /// What it holds in memory, in bytes, about.
    fn bytes(&self) -> usize;

    /// What is cheaply known of the Gauss-Newton matrix's largest directions, for preconditioners: of every dense layer
    /// whose weight is in one place of the loss. `key`: of random signs. None by default.
    fn layers(&mut self, key: Key) -> Vec<LayerCurvature> {
        let _ = key;
        Vec::new()
    }
}

/// The block of the Gauss-Newton matrix that belongs to a dense layer `z = x w + b`, by moments of its factors. With
/// `x̂ = (x, 1)`, and `Sᵢ` the curvature of the loss by the outputs `zᵢ` of row i alone, it is `Σᵢ x̂ᵢ x̂ᵢᵀ ⊗ Sᵢ`; taking
/// both factors for independent, as K-FAC does, `E[x̂ x̂ᵀ] ⊗ Σᵢ Sᵢ`.
///
/// Reference: Martens, Grosse 2015, arXiv:1503.05671, without what links a row's outputs to other rows'.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerCurvature {
    /// Where the weight `[inputs, outputs]` is in the parameters.
    pub weight: Range<usize>,
    /// Where the bias `[outputs]` is, if it is a parameter.
    pub bias: Option<Range<usize>>,
    /// Mean and variance of every input over the rows.
    pub inputs: Vec<[f64; 2]>,
    /// `Σᵢ Sᵢ`, `[outputs, outputs]`, where losses alone read the layer and it has [`LayerCurvature::FULL`] outputs at
    /// most: as many passes through the losses. Of other layers the diagonal alone, `[outputs]`, estimated without bias
    /// by random signs, in a pass to the loss and back.
    pub outputs: Vec<f64>,
}

impl LayerCurvature {
    /// The most outputs whose whole matrix is computed.
    pub const FULL: usize = 32;
}

/// The evaluator that `make` builds, if `E` is f32: for kernels of one dtype.
pub fn in_f32<E: Float, V: Evaluator<f32> + 'static>(
    make: impl FnOnce() -> V,
) -> Option<Box<dyn Evaluator<E>>> {
    if TypeId::of::<E>() != TypeId::of::<f32>() {
        return None;
    }
    let evaluator: Box<dyn Evaluator<f32>> = Box::new(make());
    same(evaluator).ok()
}
