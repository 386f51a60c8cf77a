//! Gradients changed on their way to the optimizer.

use super::{Augmentation, Wrapped, Wrapper};
use outerloop_core::{BatchKey, FlatTask, Float, Key};
use std::sync::Arc;

/// A function of the gradient, and its derivative.
pub trait GradientMap<E: Float = f32>: Clone + Send + Sync + 'static {
    /// Short name for reports.
    fn name(&self) -> String;
    /// Replaces `grad` by its image. The key is the batch's: the same for every evaluation of a batch.
    fn apply(&self, grad: &mut [E], key: Key);
    /// Overwrites `out` with the transposed derivative at `grad` times `v`, for the same key.
    fn pull_back(&self, grad: &[E], key: Key, v: &[E], out: &mut [E]);
}

/// The same losses with gradients changed by a [`GradientMap`].
#[derive(Clone, Copy, Debug)]
pub struct ModifyGradient<G>(pub G);

impl<E: Float, G: GradientMap<E>> Augmentation<E> for ModifyGradient<G> {
    fn name(&self) -> String {
        self.0.name()
    }
    fn apply(&self, task: Arc<dyn FlatTask<E>>, _: Key) -> Arc<dyn FlatTask<E>> {
        Arc::new(Wrapped { task, augmentation: self.0.name(), wrapper: self.clone() })
    }
}

impl<E: Float, G: GradientMap<E>> Wrapper<E> for ModifyGradient<G> {
    fn gradient(&self, grad: &mut [E], at: BatchKey) {
        self.0.apply(grad, key(at));
    }
    fn is_linear(&self) -> bool {
        false
    }
    fn pull_back<'a>(&self, grad: &[E], at: BatchKey, v: &'a [E], room: &'a mut Vec<E>) -> &'a [E] {
        room.resize(v.len(), E::of(0.0));
        self.0.pull_back(grad, key(at), v, room);
        room
    }
}

fn key(at: BatchKey) -> Key {
    at.noise().named("gradient map")
}

/// `a · b`
pub(super) fn dot<E: Float>(a: &[E], b: &[E]) -> E {
    a.iter().zip(b).map(|(a, b)| *a * *b).sum()
}
