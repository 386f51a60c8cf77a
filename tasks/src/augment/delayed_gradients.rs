//! Gradients at parameters of some steps ago, as an asynchronous worker would send them.

use super::{Augmentation, Wrapped, Wrapper};
use outerloop_core::{FlatTask, Float, Key};
use std::sync::Arc;

/// Training step `t` sees loss and gradient at the parameters of step `max(0, t − delay)`, on the batch
/// of step `t`. The model state holds the last `delay` parameters.
///
/// The derivatives are those at the old parameters, so a gradient through an unroll treats them as if
/// they belonged to the present ones, and is biased; estimators that only need losses are not.
///
/// Reference: `AsyncDelayedGradients`, whose actual staleness is `delay − 1` (1 for a delay of 1).
#[derive(Clone, Copy, Debug)]
pub struct DelayedGradients {
    /// Steps; 0 changes nothing.
    pub delay: u32,
}

impl<E: Float> Augmentation<E> for DelayedGradients {
    fn name(&self) -> String {
        format!("delayed{}", self.delay)
    }
    fn apply(&self, task: Arc<dyn FlatTask<E>>, _: Key) -> Arc<dyn FlatTask<E>> {
        Arc::new(Wrapped { task, augmentation: Augmentation::<E>::name(self), wrapper: *self })
    }
}

/// A place in the ring, stored as a float; at most `delay`, so exact in f32 up to 2^24.
fn index<E: Float>(x: E) -> usize {
    x.f64() as usize
}

impl<E: Float> Wrapper<E> for DelayedGradients {
    /// The history: next place, places filled, the places.
    fn state_len(&self, params: usize) -> usize {
        2 + self.delay as usize * params
    }

    /// The parameters that step `t` sees, from the present ones and the history.
    fn seen<'a>(&self, params: &'a [E], history: &'a [E], _: &'a mut Vec<E>) -> &'a [E] {
        let (head, places) = history.split_at(2);
        let (next, filled) = (index(head[0]), index(head[1]));
        let place = |i: usize| &places[i * params.len()..(i + 1) * params.len()];
        match filled {
            0 => params,
            n if n < self.delay as usize => place(0),
            _ => place(next),
        }
    }

    /// Puts the present parameters where the oldest were.
    fn advance(&self, params: &[E], history: &mut [E]) {
        let delay = self.delay as usize;
        if delay == 0 {
            return;
        }
        let (head, places) = history.split_at_mut(2);
        let (next, filled) = (index(head[0]), index(head[1]));
        places[next * params.len()..(next + 1) * params.len()].copy_from_slice(params);
        head[0] = E::of(((next + 1) % delay) as f64);
        head[1] = E::of((filled + 1).min(delay) as f64);
    }
}
