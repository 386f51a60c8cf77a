//! A different optimizer for every group of tensors.

use super::{add, named_slots, part_slots, prefix, Part};
use crate::hand::vjp_of;

use outerloop_core::{Entry, Float, Key, Layout, OptState, Optimizer, Params, UpdateAdjoint, UpdateVjp};
use std::{ops::Range, sync::Arc};

/// Which group a tensor belongs to, by its name and shape.
#[derive(Clone)]
pub struct GroupRule {
    name: String,
    num_groups: usize,
    group: Arc<dyn Fn(&Entry) -> usize + Send + Sync>,
}

impl GroupRule {
    /// A rule of one's own: `group` gives a number below `num_groups`.
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
pub struct Grouped<E: Float = f32> {
    rule: GroupRule,
    parts: Vec<Part<E>>,
}

/// A group's tensors: their own layout and their places in the whole buffer.
struct Group {
    layout: Arc<Layout>,
    ranges: Vec<Range<usize>>,
}

impl Group {
    fn gather<E: Float>(&self, whole: &[E]) -> Vec<E> {
        self.ranges.iter().flat_map(|r| &whole[r.clone()]).copied().collect()
    }
    fn scatter<E: Float>(&self, part: &[E], whole: &mut [E]) {
        let mut start = 0;
        for r in &self.ranges {
            whole[r.clone()].copy_from_slice(&part[start..start + r.len()]);
            start += r.len();
        }
    }
    /// What the group's optimizer knows of a state.
    fn state<E: Float>(&self, state: &OptState<E>, i: usize) -> OptState<E> {
        OptState {
            layout: self.layout.clone(),
            params: self.gather(&state.params),
            slots: part_slots(state, &prefix(i)),
            ..*state
        }
    }
}

impl<E: Float> Grouped<E> {
    /// One optimizer per group; for parts with theta see [`super::Combined`].
    ///
    /// # Errors
    /// If there are not as many optimizers as groups.
    pub fn new(rule: GroupRule, parts: Vec<Box<dyn Optimizer<E>>>) -> outerloop_core::Result<Self> {
        check_count(&rule, parts.len())?;
        Ok(Self::of(rule, Part::hand(parts)))
    }

    pub(super) fn of(rule: GroupRule, parts: Vec<Part<E>>) -> Self {
        Grouped { rule, parts }
    }

    /// The groups that have elements: number, optimizer, tensors.
    fn groups(&self, layout: &Layout) -> impl Iterator<Item = (usize, &Part<E>, Group)> {
        let mut groups: Vec<(Layout, Vec<Range<usize>>)> =
            self.parts.iter().map(|_| Default::default()).collect();
        for e in layout.entries() {
            let (layout, ranges) = &mut groups[self.rule.group(e)];
            layout.push(e.name.clone(), e.shape.clone());
            ranges.push(e.range());
        }
        let group = |(layout, ranges)| Group { layout: Arc::new(layout), ranges };
        let groups = groups.into_iter().map(group);
        let all = self.parts.iter().zip(groups).enumerate().map(|(i, (part, group))| (i, part, group));
        all.filter(|(_, _, group)| !group.layout.is_empty())
    }
}

/// An error unless there is one part per group.
pub(super) fn check_count(rule: &GroupRule, parts: usize) -> outerloop_core::Result<()> {
    if parts == rule.num_groups() {
        return Ok(());
    }
    let what = format!("number of optimizers for the groups {}", rule.name());
    Err(outerloop_core::Error::mismatch(what, rule.num_groups(), parts))
}

impl<E: Float> Optimizer<E> for Grouped<E> {
    fn name(&self) -> String {
        format!("grouped({})", Part::names(&self.parts))
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        let mut state = OptState::new(params, num_steps);
        for (i, part, group) in self.groups(&params.layout) {
            let own = Params { data: group.gather(&params.data), layout: group.layout.clone() };
            state.slots.extend(named_slots(&prefix(i), part.opt.init(&own, num_steps, key).slots));
        }
        state
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let mut slots = Vec::new();
        for (i, part, group) in self.groups(&state.layout.clone()) {
            let mut own = group.state(state, i);
            part.opt.update(&mut own, &group.gather(grad), loss, key);
            group.scatter(&own.params, &mut state.params);
            slots.extend(named_slots(&prefix(i), own.slots));
        }
        state.slots = slots;
        state.step += 1;
    }
    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        let before = state.clone();
        state.slots.clear();
        for (i, part, group) in self.groups(&before.layout) {
            let mut own = group.state(&before, i);
            part.opt.observe_validation(&mut own, loss);
            state.step = state.step.max(own.step);
            state.slots.extend(named_slots(&prefix(i), own.slots));
        }
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        Part::all_differentiable(&self.parts).then_some(self)
    }
}

impl<E: Float> UpdateVjp<E> for Grouped<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let zero = E::of(0.0);
        let mut total =
            UpdateAdjoint { state: before.zeros_like(), grad: vec![zero; grad.len()], loss: zero };
        total.state.slots.clear();
        for (i, part, group) in self.groups(&before.layout) {
            let (own, adjoint) = (group.state(before, i), group.state(after, i));
            let theta = &mut theta[part.theta.clone()];
            let a = vjp_of(&*part.opt).vjp(&own, &group.gather(grad), loss, key, &adjoint, theta);
            group.scatter(&a.state.params, &mut total.state.params);
            group.scatter(&a.grad, &mut total.grad);
            add(std::slice::from_mut(&mut total.loss), &[a.loss]);
            total.state.slots.extend(named_slots(&prefix(i), a.state.slots));
        }
        total
    }

    fn init_vjp(&self, start: &OptState<E>, adjoint: &OptState<E>, theta: &mut [E]) {
        for (i, part, group) in self.groups(&start.layout) {
            let (start, adjoint) = (group.state(start, i), group.state(adjoint, i));
            vjp_of(&*part.opt).init_vjp(&start, &adjoint, &mut theta[part.theta.clone()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::{Adam, Momentum};
    use crate::Velo;
    use outerloop_core::LearnedOptimizer;

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
