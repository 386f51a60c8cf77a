//! muP's scaling of updates by width.

use crate::hand::vjp_of;

use outerloop_core::{
    Entry, Float, Key, Layout, LearnedOptimizer, OptState, Optimizer, Params, Result, UpdateAdjoint,
    UpdateVjp,
};
use std::borrow::Cow;
use std::sync::Arc;

/// Scales the step of every matrix-like tensor by `base fan-in / fan-in`:
/// `p ← p + m (p' − p)`, where `p'` is the inner optimizer's result.
///
/// `base` holds the same tensors in a narrow model. A tensor is matrix-like if its last two axes
/// (inputs, outputs) both differ from the base's: hidden matrices. Input and output layers, of which
/// one axis grows, vectors, and tensors that the base lacks are not scaled: m = 1.
/// Reference: muP's table for Adam (Yang et al. 2022, arXiv:2203.03466) as used for learned
/// optimizers by muLO, Thérien et al. 2024, arXiv:2406.00153.
///
/// An inner optimizer that averages its iterates averages those of its own steps: put the average
/// around instead, [`super::ParamsEma`].
#[derive(Debug)]
pub struct WidthScaled<E: Float = f32> {
    inner: Box<dyn Optimizer<E>>,
    base: Arc<Layout>,
}

impl<E: Float> WidthScaled<E> {
    /// Scales relative to a model whose parameters have the layout `base`.
    pub fn new(inner: Box<dyn Optimizer<E>>, base: Arc<Layout>) -> Self {
        WidthScaled { inner, base }
    }

    /// The factor m of a tensor's step.
    pub fn factor(&self, entry: &Entry) -> f64 {
        let last = |shape: &[usize]| match shape {
            [.., inputs, outputs] => Some([*inputs, *outputs]),
            _ => None,
        };
        let base = self.base.get(&entry.name).and_then(|e| last(&e.shape));
        match (base, last(&entry.shape)) {
            (Some(base), Some(wide)) if base[0] != wide[0] && base[1] != wide[1] => {
                base[0] as f64 / wide[0] as f64
            }
            _ => 1.0,
        }
    }

    /// The tensors with factors other than 1.
    fn scaled<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = (E, &'a Entry)> + 'a {
        let factor = |e: &'a Entry| (self.factor(e), e);
        layout.entries().iter().map(factor).filter(|(m, _)| *m != 1.0).map(|(m, e)| (E::of(m), e))
    }
}

impl<E: Float> Optimizer<E> for WidthScaled<E> {
    fn name(&self) -> String {
        format!("width_scaled({})", self.inner.name())
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        self.inner.init(params, num_steps, key)
    }
    fn validate(&self) -> Result<()> {
        self.inner.validate()
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let (old, layout) = (state.params.clone(), state.layout.clone());
        self.inner.update(state, grad, loss, key);
        for (m, e) in self.scaled(&layout) {
            for (new, old) in state.params[e.range()].iter_mut().zip(&old[e.range()]) {
                *new = *old + m * (*new - *old);
            }
        }
    }
    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        self.inner.observe_validation(state, loss);
    }
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        self.inner.evaluation_params(state)
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        self.inner.update_vjp().map(|_| self as _)
    }
}

impl<E: Float> UpdateVjp<E> for WidthScaled<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let mut scaled = after.clone();
        for (m, e) in self.scaled(&before.layout) {
            scaled.params[e.range()].iter_mut().for_each(|a| *a *= m);
        }
        let mut adjoint = vjp_of(&*self.inner).vjp(before, grad, loss, key, &scaled, theta);
        for (m, e) in self.scaled(&before.layout) {
            for (to, a) in adjoint.state.params[e.range()].iter_mut().zip(&after.params[e.range()]) {
                *to += (E::ONE - m) * *a;
            }
        }
        adjoint
    }

    fn init_vjp(&self, start: &OptState<E>, adjoint: &OptState<E>, theta: &mut [E]) {
        vjp_of(&*self.inner).init_vjp(start, adjoint, theta);
    }
}

/// [`WidthScaled`] over the optimizers of a learned optimizer; theta is that one's.
pub struct LearnedWidthScaled<E: Float = f32> {
    inner: Box<dyn LearnedOptimizer<E>>,
    base: Arc<Layout>,
}

impl<E: Float> LearnedWidthScaled<E> {
    /// Scales relative to a model whose parameters have the layout `base`.
    pub fn new(inner: Box<dyn LearnedOptimizer<E>>, base: Arc<Layout>) -> Self {
        LearnedWidthScaled { inner, base }
    }
}

impl<E: Float> LearnedOptimizer<E> for LearnedWidthScaled<E> {
    fn name(&self) -> String {
        format!("WidthScaled({})", self.inner.name())
    }
    /// The inner one's: the same theta serves every width.
    fn architecture(&self) -> String {
        self.inner.architecture()
    }
    fn validate(&self) -> Result<()> {
        self.inner.validate()
    }
    fn theta_layout(&self) -> Arc<Layout> {
        self.inner.theta_layout()
    }
    fn init(&self, key: Key) -> Vec<E> {
        self.inner.init(key)
    }
    fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        Box::new(WidthScaled::new(self.inner.opt_fn(theta), self.base.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::Adam;

    #[test]
    fn only_matrices_wide_on_both_sides_are_scaled() {
        let model = |width: usize| {
            let w = width;
            Layout::new([
                ("in", vec![64, w]),
                ("hidden", vec![w, w]),
                ("bias", vec![w]),
                ("out", vec![w, 10]),
            ])
        };
        let layout = Arc::new(model(32));
        let opt = WidthScaled::new(Box::new(Adam::new(0.1)), Arc::new(model(8)));
        let params = Params::<f64>::zeros(layout.clone());
        let grad = vec![1.0; layout.len()];
        let run = |opt: &dyn Optimizer<f64>| {
            let mut state = opt.init(&params, None, Key::new(0));
            opt.update(&mut state, &grad, 0.0, Key::new(0));
            state.params
        };
        let (got, plain) = (run(&opt), run(&Adam::new(0.1)));
        for e in layout.entries() {
            let m = if e.name == "hidden" { 0.25 } else { 1.0 };
            assert!(e.range().all(|i| got[i] == m * plain[i]), "{}", e.name);
        }
    }
}
