//! Optimizers made of optimizers, hand-designed or learned, with their derivatives.
//!
//! | wrapper | update |
//! |---|---|
//! | [`SumOptimizer`] | the sum of several optimizers' steps |
//! | [`Grouped`] | every group of tensors has its own optimizer |
//! | [`WidthScaled`] | steps of wide matrices shrink with their width (muP) |
//! | [`ParamsEma`] | the inner optimizer's; its parameters are averaged for evaluation |
//!
//! [`Frozen`] is a learned optimizer of which a part of theta stays what it is.
//! [`Combined`] and [`LearnedWidthScaled`] are the same over learned optimizers: their theta is the
//! parts' thetas one after the other. A hand-designed part enters as
//! [`HandAsLearned`](crate::HandAsLearned). The parts' slots are named `0/momentum`, `1/momentum`, ...

mod combined;
mod ema;
mod frozen;
mod grouped;
mod parts;
mod sum;
mod width;

pub use combined::Combined;
pub use ema::ParamsEma;
pub use frozen::Frozen;
pub use grouped::{GroupRule, Grouped};
pub use sum::SumOptimizer;
pub use width::{LearnedWidthScaled, WidthScaled};

use outerloop_core::{Float, OptState, Optimizer, Slot};
use std::ops::Range;

/// One of several optimizers, and where its theta lies in the whole theta.
#[derive(Debug)]
pub(crate) struct Part<E: Float> {
    pub(crate) opt: Box<dyn Optimizer<E>>,
    pub(crate) theta: Range<usize>,
}

impl<E: Float> Part<E> {
    /// Parts without theta.
    fn hand(parts: Vec<Box<dyn Optimizer<E>>>) -> Vec<Self> {
        parts.into_iter().map(|opt| Part { opt, theta: 0..0 }).collect()
    }
}

/// What the slots of part `i` begin with.
pub(crate) fn prefix(i: usize) -> String {
    format!("{i}/")
}

/// The slots that begin with `prefix`, without it.
pub(crate) fn part_slots<E: Float>(state: &OptState<E>, prefix: &str) -> Vec<Slot<E>> {
    let of = |s: &Slot<E>| {
        let name = s.name.strip_prefix(prefix)?.to_string();
        Some(Slot { name, data: s.data.clone() })
    };
    state.slots.iter().filter_map(of).collect()
}

/// The state that a part with all parameters knows.
pub(crate) fn part_state<E: Float>(state: &OptState<E>, prefix: &str) -> OptState<E> {
    OptState {
        layout: state.layout.clone(),
        params: state.params.clone(),
        slots: part_slots(state, prefix),
        ..*state
    }
}

/// A part's slots with its prefix.
pub(crate) fn named_slots<E: Float>(prefix: &str, mut slots: Vec<Slot<E>>) -> Vec<Slot<E>> {
    slots.iter_mut().for_each(|s| s.name.insert_str(0, prefix));
    slots
}
