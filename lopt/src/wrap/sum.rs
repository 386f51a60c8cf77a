//! The sum of several optimizers' steps.

use super::parts::{optimizer_of_parts, Parts};
use super::Part;
use outerloop_core::{Float, Optimizer};

/// `p ← p + Σᵢ dᵢ`, where `dᵢ` is optimizer i's step from the same parameters with its own slots.
///
/// A learned correction beside a trusted rule, for example. Reference: `SumOptimizer` of
/// google/learned_optimization.
#[derive(Debug)]
pub struct SumOptimizer<E: Float = f32>(Parts<E>);

impl<E: Float> SumOptimizer<E> {
    /// The sum of these optimizers' steps; for parts with theta see [`super::Combined`].
    pub fn new(parts: Vec<Box<dyn Optimizer<E>>>) -> Self {
        Self::of(Part::hand(parts))
    }

    pub(super) fn of(parts: Vec<Part<E>>) -> Self {
        SumOptimizer(Parts { parts, rule: None })
    }
}

optimizer_of_parts!(SumOptimizer);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::{Adam, Momentum, Sgd};
    use outerloop_core::{contract::awkward_params, Key};

    #[test]
    fn steps_add_up() {
        let key = Key::new(1);
        let params = awkward_params::<f64>(key);
        let run = |opt: &dyn Optimizer<f64>| {
            let mut state = opt.init(&params, None, key);
            // Gradients that do not depend on the parameters, so that steps are independent.
            for t in 0..4 {
                let mut grad = vec![0.0; params.data.len()];
                key.fold_in(t).fill_normal(&mut grad);
                opt.update(&mut state, &grad, 1.0, key);
            }
            state.params
        };
        let both = run(&SumOptimizer::new(vec![Box::new(Adam::new(0.1)), Box::new(Momentum::new(0.2, 0.5))]));
        let (a, b) = (run(&Adam::new(0.1)), run(&Momentum::new(0.2, 0.5)));
        for (i, p) in both.iter().enumerate() {
            let want = a[i] + b[i] - params.data[i];
            assert!((p - want).abs() < 1e-12, "{p}, not {want}");
        }
        assert_eq!(run(&SumOptimizer::new(vec![Box::new(Sgd::new(0.1))])), run(&Sgd::new(0.1)));
        assert_eq!(run(&SumOptimizer::new(Vec::new())), params.data);
    }
}
