//! [`Frozen`]: a learned optimizer of which only a part of theta is learned.

use outerloop_core::{
    Error, Float, Key, Layout, LearnedOptimizer, MemberUpdate, OptState, Optimizer, OptimizerGroup, Params,
    Result, UpdateAdjoint, UpdateVjp,
};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// The learned optimizer `inner` whose tensors with these names keep their values: theta is the others, so that
/// nothing perturbs or moves what is frozen, whatever the estimator and the outer optimizer.
///
/// The meta-gradient of the free part is that of the whole, and so are its bias and variance but for one gain:
/// evolution strategies perturb fewer directions, and the variance of their estimates falls with their number.
/// Reference: the two phases of Celo, Moudgil et al. 2025, arXiv:2501.12670.
///
/// ```
/// use outerloop_core::{Key, LearnedOptimizer};
/// use outerloop_lopt::{wrap::Frozen, LearnableAdam};
/// use std::sync::Arc;
/// let adam = LearnableAdam::default();
/// let theta: Vec<f32> = LearnedOptimizer::init(&adam, Key::new(0));
/// let frozen = Frozen::new(Arc::new(adam), &["log_lr"], theta.clone())?;
/// assert_eq!(frozen.theta_layout().len(), theta.len() - 1);
/// assert_eq!(frozen.whole(&frozen.init(Key::new(0))), theta);
/// # Ok::<(), outerloop_core::Error>(())
/// ```
pub struct Frozen<E: Float = f32> {
    inner: Arc<dyn LearnedOptimizer<E>>,
    /// Whether the free part begins where `inner` begins.
    is_fresh: bool,
    /// Initial theta of `inner`; its frozen tensors keep these values.
    start: Vec<E>,
    /// The free tensors.
    layout: Arc<Layout>,
    /// Where they lie in the inner theta, in order.
    free: Vec<Range<usize>>,
    /// Names of the frozen tensors and a hash of their values.
    description: String,
}

impl<E: Float> Frozen<E> {
    /// Freezes the tensors whose names are one of `names` or lie below it (`rnn_params` freezes
    /// `rnn_params/linear/w`), at their values in `start`, the theta from which the others begin. No name: nothing
    /// is frozen, and meta-training begins at `start`.
    ///
    /// # Errors
    /// If `start` is no theta of `inner`, a name is that of no tensor, or all are frozen.
    pub fn new(inner: Arc<dyn LearnedOptimizer<E>>, names: &[&str], start: Vec<E>) -> Result<Self> {
        let whole = inner.theta_layout();
        whole.check_len("theta", start.len())?;
        let is_below = |tensor: &str, name: &str| {
            tensor.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let entries = whole.entries();
        if let Some(name) = names.iter().find(|n| !entries.iter().any(|e| is_below(&e.name, n))) {
            let allowed = entries.iter().map(|e| e.name.clone()).collect();
            return Err(Error::Unknown { what: "tensor of theta to freeze", got: name.to_string(), allowed });
        }
        let (mut layout, mut free, mut hash) = (Layout::default(), Vec::new(), Xxh3::new());
        for entry in entries {
            if names.iter().any(|name| is_below(&entry.name, name)) {
                hash.update(entry.name.as_bytes());
                start[entry.range()].iter().for_each(|x| hash.update(&x.f64().to_le_bytes()));
            } else {
                layout.push(&entry.name, entry.shape.clone());
                free.push(entry.range());
            }
        }
        if layout.is_empty() {
            return Err(Error::invalid("tensors of theta to freeze", "are all: nothing is left to learn"));
        }
        let description = match names {
            [] => String::new(),
            _ => format!(" ({} frozen at {:016x})", names.join(", "), hash.digest()),
        };
        Ok(Frozen { inner, is_fresh: false, start, layout: Arc::new(layout), free, description })
    }

    /// Lets the free part begin where the learned optimizer begins by itself, at a theta of its key.
    #[must_use]
    pub fn with_fresh_start(self) -> Self {
        Frozen { is_fresh: true, ..self }
    }

    /// The inner theta for the free part `theta`.
    ///
    /// # Panics
    /// If `theta` has not the length of [`LearnedOptimizer::theta_layout`].
    #[track_caller]
    pub fn whole(&self, theta: &[E]) -> Vec<E> {
        assert_eq!(theta.len(), self.layout.len(), "Frozen: length of theta");
        let mut whole = self.start.clone();
        let mut rest = theta;
        for range in &self.free {
            let (part, more) = rest.split_at(range.len());
            whole[range.clone()].copy_from_slice(part);
            rest = more;
        }
        whole
    }

    /// The learned optimizer with all of theta.
    pub fn inner(&self) -> &dyn LearnedOptimizer<E> {
        &*self.inner
    }
}

impl<E: Float> LearnedOptimizer<E> for Frozen<E> {
    fn name(&self) -> String {
        self.inner.name()
    }
    /// The inner one's with what is frozen: a free part fits no other values.
    fn architecture(&self) -> String {
        self.inner.architecture() + &self.description
    }
    fn validate(&self) -> Result<()> {
        self.inner.validate()
    }
    fn theta_layout(&self) -> Arc<Layout> {
        self.layout.clone()
    }
    /// The free part of the start, whatever the key, if it is not to be fresh.
    fn init(&self, key: Key) -> Vec<E> {
        let fresh = self.is_fresh.then(|| self.inner.init(key));
        let start = fresh.as_ref().unwrap_or(&self.start);
        self.free.iter().flat_map(|range| start[range.clone()].iter().copied()).collect()
    }
    fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        let (whole, free) = (self.whole(theta), self.free.clone());
        Box::new(Part { whole: whole.len(), opt: self.inner.opt_fn(&whole), free })
    }
    fn group_size(&self, layout: &Layout) -> usize {
        self.inner.group_size(layout)
    }
    fn group(&self, thetas: Vec<Vec<E>>) -> Box<dyn OptimizerGroup<E>> {
        let free = |theta: &Vec<E>| self.opt_fn(theta);
        let members = thetas.iter().map(free).collect();
        let group = self.inner.group(thetas.iter().map(|theta| self.whole(theta)).collect());
        Box::new(FrozenGroup { members, group })
    }
}

/// The members alone, which know the free part, and the inner group that steps them.
struct FrozenGroup<E: Float> {
    members: Vec<Box<dyn Optimizer<E>>>,
    group: Box<dyn OptimizerGroup<E>>,
}

impl<E: Float> OptimizerGroup<E> for FrozenGroup<E> {
    fn member(&self, i: usize) -> &dyn Optimizer<E> {
        &*self.members[i]
    }
    fn update(&self, updates: &mut [MemberUpdate<'_, E>]) {
        self.group.update(updates);
    }
}

/// An optimizer whose derivative gives the adjoint of a part of its theta.
#[derive(Debug)]
struct Part<E: Float> {
    opt: Box<dyn Optimizer<E>>,
    /// Length of its theta.
    whole: usize,
    free: Vec<Range<usize>>,
}

impl<E: Float> Part<E> {
    /// Adds to the adjoint of the free part what `f` adds to that of the whole.
    fn gather<T>(&self, theta: &mut [E], f: impl FnOnce(&dyn UpdateVjp<E>, &mut [E]) -> T) -> T {
        let mut whole = vec![E::of(0.0); self.whole];
        let result = f(crate::hand::vjp_of(&*self.opt), &mut whole);
        let parts = self.free.iter().flat_map(|range| &whole[range.clone()]);
        theta.iter_mut().zip(parts).for_each(|(t, a)| *t += *a);
        result
    }
}

impl<E: Float> Optimizer<E> for Part<E> {
    fn name(&self) -> String {
        self.opt.name()
    }
    fn describe(&self) -> String {
        self.opt.describe()
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        self.opt.init(params, num_steps, key)
    }
    fn validate(&self) -> Result<()> {
        self.opt.validate()
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        self.opt.update(state, grad, loss, key);
    }
    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        self.opt.observe_validation(state, loss);
    }
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        self.opt.evaluation_params(state)
    }
    fn clipped(&self, grad: &[E]) -> f64 {
        self.opt.clipped(grad)
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        self.opt.update_vjp().map(|_| self as _)
    }
}

impl<E: Float> UpdateVjp<E> for Part<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        self.gather(theta, |vjp, whole| vjp.vjp(before, grad, loss, key, after, whole))
    }
    fn init_vjp(&self, start: &OptState<E>, adjoint: &OptState<E>, theta: &mut [E]) {
        self.gather(theta, |vjp, whole| vjp.init_vjp(start, adjoint, whole));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{init_vjp_gap, vjp_gap, warm_state};
    use crate::learned::{Celo, MlpLopt};
    use outerloop_core::contract::check_learned_optimizer;

    fn small() -> Celo {
        Celo { lstm_hidden_size: 3, param_inits: 2, train_phase: 2, step_mult: 0.1, ..Celo::default() }
    }

    fn frozen(names: &[&str]) -> Frozen<f64> {
        let start = crate::learned::golden::noisy_theta(&small(), 0.1);
        Frozen::new(Arc::new(small()), names, start).unwrap()
    }

    #[test]
    fn theta_is_the_free_part_and_the_rest_stays() {
        let lopt = frozen(&["ff_mod_stack", "rnn_params/step_size/b"]);
        let names: Vec<String> = lopt.theta_layout().entries().iter().map(|e| e.name.clone()).collect();
        assert!(names.iter().all(|n| !n.starts_with("ff_mod") && n != "rnn_params/step_size/b"));
        let mut theta = lopt.init(Key::new(0));
        theta.iter_mut().for_each(|t| *t += 1.0);
        let layout = LearnedOptimizer::<f64>::theta_layout(&small());
        for entry in layout.entries() {
            let moved = f64::from(u8::from(names.contains(&entry.name)));
            for i in entry.range() {
                assert_eq!(lopt.whole(&theta)[i], lopt.start[i] + moved, "{}", entry.name);
            }
        }
    }

    #[test]
    fn keeps_its_contract_and_differentiates_the_free_part() {
        check_learned_optimizer(&frozen(&["ff_mod_stack"])).unwrap();
        let mlp = MlpLopt { hidden_size: 4, ..MlpLopt::default() };
        let theta: Vec<f32> = LearnedOptimizer::init(&mlp, Key::new(1));
        check_learned_optimizer(&Frozen::new(Arc::new(mlp), &["mlp/~/linear_0"], theta).unwrap()).unwrap();
        for names in [&["ff_mod_stack"][..], &["rnn_params", "ff_mod_stack/~/w1"]] {
            let lopt = frozen(names);
            let theta = lopt.init(Key::new(0));
            let gap = vjp_gap(&lopt, &theta, &warm_state(&lopt, &theta));
            assert!(gap < 1e-6, "{names:?}: {gap:e}");
            let gap = init_vjp_gap(&lopt, &theta);
            assert!(gap < 1e-6, "{names:?}: {gap:e}");
        }
    }

    #[test]
    fn other_values_are_another_architecture_and_unknown_names_are_refused() {
        let theta: Vec<f64> = LearnedOptimizer::init(&small(), Key::new(1));
        let make = |names: &[&str], theta: &[f64]| Frozen::new(Arc::new(small()), names, theta.to_vec());
        let one = make(&["ff_mod_stack"], &theta).unwrap();
        let mut other = theta.clone();
        other[0] += 1e-9;
        let other = make(&["ff_mod_stack"], &other).unwrap();
        assert!(one.architecture().contains("ff_mod_stack frozen at"), "{}", one.architecture());
        assert_ne!(one.architecture(), other.architecture());
        // Of `rnn_params` no tensor is called so, but many lie below it; of `rnn` none.
        assert!(make(&["rnn_params"], &theta).is_ok());
        let error = make(&["rnn"], &theta).err().unwrap().to_string();
        assert!(
            error.contains("tensor of theta to freeze") && error.contains("rnn_params/step_size/b"),
            "{error}"
        );
        assert!(make(&["ff_mod_stack", "rnn_params", "lstm_init_state"], &theta).is_err());
        assert!(make(&[], &theta[1..]).is_err());
        // Nothing frozen: another start of the same.
        let none = make(&[], &theta).unwrap();
        assert_eq!(none.architecture(), LearnedOptimizer::<f64>::architecture(&small()));
        assert_eq!(none.init(Key::new(7)), theta);
        let fresh = make(&["ff_mod_stack"], &theta).unwrap().with_fresh_start();
        let want: Vec<f64> = LearnedOptimizer::init(&small(), Key::new(7));
        let at = LearnedOptimizer::<f64>::theta_layout(&small()).get("rnn_params/linear/w").unwrap().range();
        assert_eq!(fresh.whole(&fresh.init(Key::new(7)))[at.clone()], want[at]);
    }
}
