//! A different optimizer for every group of tensors.

use super::parts::{optimizer_of_parts, Parts};
use super::Part;
use outerloop_core::{Entry, Error, Float, Layout, Optimizer, Result};
use std::{fmt, ops::Range, sync::Arc};

/// Which group a tensor belongs to, by its name and shape.
#[derive(Clone)]
pub struct GroupRule {
    name: String,
    num_groups: usize,
    group: Arc<dyn Fn(&Entry) -> usize + Send + Sync>,
}

/// A closure cannot be shown: the name stands for it.
impl fmt::Debug for GroupRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupRule({:?}, {} groups)", self.name, self.num_groups)
    }
}

impl GroupRule {
    /// A rule of one's own: `group` gives a number below `num_groups`. Rules that differ need names that
    /// differ: a resumed run is recognized by them.
    pub fn new(
        name: impl Into<String>,
        num_groups: usize,
        group: impl Fn(&Entry) -> usize + Send + Sync + 'static,
    ) -> Self {
        GroupRule { name: name.into(), num_groups, group: Arc::new(group) }
    }

    /// Group 0: tensors of rank 2 and more; 1: scalars and vectors.
    pub fn matrices_and_vectors() -> Self {
        Self::new("matrices, vectors", 2, |e| usize::from(e.shape.len() < 2))
    }

    /// Group 0: tensors of rank 2 and more; 1: scalars and vectors; 2: tensors of rank 2 and more
    /// whose name contains `embed`.
    pub fn matrices_vectors_and_embeddings() -> Self {
        Self::new("matrices, vectors, embeddings", 3, |e| {
            match (e.shape.len() < 2, e.name.contains("embed")) {
                (true, _) => 1,
                (false, true) => 2,
                (false, false) => 0,
            }
        })
    }

    /// Number of groups.
    pub fn num_groups(&self) -> usize {
        self.num_groups
    }

    /// What it distinguishes, for reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The group of a tensor.
    ///
    /// # Panics
    /// If the rule gives a number that is not below `num_groups`.
    pub fn group(&self, entry: &Entry) -> usize {
        let group = (self.group)(entry);
        assert!(group < self.num_groups, "group rule `{}`: `{}` in group {group}", self.name, entry.name);
        group
    }

    /// Every group's tensors and their places.
    pub(super) fn split(&self, layout: &Layout) -> impl Iterator<Item = (Arc<Layout>, Vec<Range<usize>>)> {
        let mut groups = vec![(Layout::default(), Vec::new()); self.num_groups];
        for e in layout.entries() {
            let (layout, ranges) = &mut groups[self.group(e)];
            layout.push(e.name.clone(), e.shape.clone());
            ranges.push(e.range());
        }
        groups.into_iter().map(|(layout, ranges)| (Arc::new(layout), ranges))
    }
}

/// Every group of tensors is trained by its own optimizer, which sees only these tensors.
///
/// The loss goes to all of them. A group without tensors has no slots and is not updated.
///
/// ```
/// use outerloop_core::Optimizer;
/// use outerloop_lopt::{hand::{Adam, Muon}, wrap::{GroupRule, Grouped}};
/// # use outerloop_core::Result;
///
/// let rule = GroupRule::matrices_and_vectors();
/// let opt = Grouped::<f32>::new(rule, vec![Box::new(Muon::default()), Box::new(Adam::new(1e-3))])?;
/// assert_eq!(opt.name(), "grouped(muon, adam)");
/// # Result::Ok(())
/// ```
#[derive(Debug)]
pub struct Grouped<E: Float = f32>(Parts<E>);

impl<E: Float> Grouped<E> {
    /// One optimizer per group; for parts with theta see [`super::Combined`].
    ///
    /// # Errors
    /// If there are not as many optimizers as groups.
    pub fn new(rule: GroupRule, parts: Vec<Box<dyn Optimizer<E>>>) -> Result<Self> {
        check_count(&rule, parts.len())?;
        Ok(Self::of(rule, Part::hand(parts)))
    }

    pub(super) fn of(rule: GroupRule, parts: Vec<Part<E>>) -> Self {
        Grouped(Parts { parts, rule: Some(rule) })
    }
}

/// An error unless there is one part per group.
pub(super) fn check_count(rule: &GroupRule, parts: usize) -> Result<()> {
    if parts == rule.num_groups() {
        return Ok(());
    }
    let what = format!("number of optimizers for the groups {}", rule.name());
    Err(Error::mismatch(what, rule.num_groups(), parts))
}

optimizer_of_parts!(Grouped);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::{Adam, Momentum};
    use crate::Velo;
    use outerloop_core::{Key, LearnedOptimizer, OptState, Params};

    fn params() -> Params<f64> {
        let layout = Layout::new([("embed", vec![3, 2]), ("b", vec![2]), ("w", vec![2, 2])]);
        Params { data: (0..12).map(|i| 0.1 * f64::from(i)).collect(), layout: Arc::new(layout) }
    }

    fn run(opt: &dyn Optimizer<f64>, params: &Params<f64>, grad: &[f64]) -> OptState<f64> {
        let mut state = opt.init(params, Some(9), Key::new(0));
        for _ in 0..3 {
            opt.update(&mut state, grad, 1.0, Key::new(0));
        }
        state
    }

    #[test]
    fn every_group_is_trained_alone() {
        let grad: Vec<f64> = (0..12).map(|i| f64::from(i) - 5.5).collect();
        let rule = GroupRule::matrices_vectors_and_embeddings;
        let opts: Vec<Box<dyn Optimizer<f64>>> =
            vec![Box::new(Adam::new(0.1)), Box::new(Momentum::new(0.1, 0.9)), Box::new(Adam::new(0.3))];
        assert!(Grouped::<f64>::new(rule(), vec![]).is_err());
        let got = run(&Grouped::new(rule(), opts).unwrap(), &params(), &grad);
        let alone = |opt: &dyn Optimizer<f64>, range: Range<usize>| {
            let part = Params {
                data: params().data[range.clone()].to_vec(),
                layout: Arc::new(Layout::new([("x", vec![range.len()])])),
            };
            run(opt, &part, &grad[range]).params
        };
        assert_eq!(got.params[8..12], alone(&Adam::new(0.1), 8..12));
        assert_eq!(got.params[6..8], alone(&Momentum::new(0.1, 0.9), 6..8));
        assert_eq!(got.params[..6], alone(&Adam::new(0.3), 0..6));
        let names: Vec<&str> = got.slots.iter().map(|s| &s.name[..1]).collect();
        assert_eq!(names, ["0", "0", "1", "2", "2"]);
    }

    #[test]
    fn a_group_without_tensors_rests() {
        let velo = Velo { lstm_hidden_size: 4, param_inits: 2, ..Velo::default() };
        let resting = velo.opt_fn(&LearnedOptimizer::<f64>::init(&velo, Key::new(0)));
        let rule = GroupRule::new("all, none", 2, |_| 0);
        let opt = Grouped::new(rule, vec![Box::new(Adam::new(0.1)), resting]).unwrap();
        let (got, want) = (run(&opt, &params(), &[1.0; 12]), run(&Adam::new(0.1), &params(), &[1.0; 12]));
        assert_eq!(got.params, want.params);
    }
}
