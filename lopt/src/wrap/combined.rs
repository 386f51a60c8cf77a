//! Sums and groups of learned optimizers.

use super::grouped::check_count;
use super::{prefix, GroupRule, Grouped, Part, SumOptimizer};
use outerloop_core::{Float, Key, Layout, LearnedOptimizer, Optimizer, Result};
use std::sync::Arc;

/// Several learned optimizers as one: [`SumOptimizer`] or [`Grouped`] over their optimizers.
///
/// Theta: the parts' tensors one after the other, as `0/name`, `1/name`, ...
///
/// ```
/// use outerloop_core::LearnedOptimizer;
/// use outerloop_lopt::{hand::Adam, wrap::Combined, AdafacMlp, HandAsLearned};
///
/// // Adam, corrected by a learned optimizer.
/// let lopt = Combined::<f32>::sum(vec![
///     Box::new(HandAsLearned::new(Adam::new(1e-3))),
///     Box::new(AdafacMlp::default()),
/// ]);
/// assert_eq!(lopt.theta_layout().entries()[0].name, "1/adafactor_decays");
/// ```
pub struct Combined<E: Float = f32> {
    parts: Vec<Box<dyn LearnedOptimizer<E>>>,
    rule: Option<GroupRule>,
}

impl<E: Float> Combined<E> {
    /// The sum of the parts' steps.
    pub fn sum(parts: Vec<Box<dyn LearnedOptimizer<E>>>) -> Self {
        Combined { parts, rule: None }
    }

    /// One learned optimizer per group of tensors.
    ///
    /// # Errors
    /// If there are not as many parts as groups.
    pub fn grouped(rule: GroupRule, parts: Vec<Box<dyn LearnedOptimizer<E>>>) -> Result<Self> {
        check_count(&rule, parts.len())?;
        Ok(Combined { parts, rule: Some(rule) })
    }

    fn describe(&self, part: impl Fn(&dyn LearnedOptimizer<E>) -> String) -> String {
        let parts = self.parts.iter().map(|p| part(&**p)).collect::<Vec<_>>().join("; ");
        match &self.rule {
            None => format!("Sum({parts})"),
            Some(rule) => format!("Grouped by {}({parts})", rule.name()),
        }
    }
}

impl<E: Float> LearnedOptimizer<E> for Combined<E> {
    fn name(&self) -> String {
        self.describe(|p| p.name())
    }
    fn architecture(&self) -> String {
        self.describe(|p| p.architecture())
    }
    fn validate(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.validate())
    }
    fn theta_layout(&self) -> Arc<Layout> {
        let mut layout = Layout::default();
        for (i, part) in self.parts.iter().enumerate() {
            for e in part.theta_layout().entries() {
                layout.push(format!("{}{}", prefix(i), e.name), e.shape.clone());
            }
        }
        Arc::new(layout)
    }
    fn init(&self, key: Key) -> Vec<E> {
        self.parts.iter().enumerate().flat_map(|(i, part)| part.init(key.fold_in(i as u64))).collect()
    }
    fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        let mut start = 0;
        let mut part = |part: &dyn LearnedOptimizer<E>| {
            let range = start..start + part.theta_layout().len();
            start = range.end;
            assert!(range.end <= theta.len(), "opt_fn: theta of {} is too short", self.name());
            Part { opt: part.opt_fn(&theta[range.clone()]), theta: range }
        };
        let parts = self.parts.iter().map(|p| part(&**p)).collect();
        assert_eq!(start, theta.len(), "opt_fn: length of theta of {}", self.name());
        match &self.rule {
            None => Box::new(SumOptimizer::of(parts)),
            Some(rule) => Box::new(Grouped::of(rule.clone(), parts)),
        }
    }
}
