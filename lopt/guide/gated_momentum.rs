use outerloop_core::{Float, Key, Layout};
use outerloop_lopt::{learned_optimizer, StepVars, Theta, UpdateRule, Var};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Momentum behind a learned gate: `m ← 0.9 m + 0.1 g`, then `p ← p − lr · exp(a) · m`, where a
/// network of one hidden layer gives `a` per parameter from how g and m agree.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct GatedMomentum {
    learning_rate: f64,
    hidden_size: usize,
}

impl UpdateRule for GatedMomentum {
    fn name(&self) -> String {
        "GatedMomentum".into()
    }

    fn theta_layout(&self) -> Arc<Layout> {
        let h = self.hidden_size;
        Arc::new(Layout::new([("w0", vec![2, h]), ("b0", vec![h]), ("w1", vec![h, 1]), ("b1", vec![1])]))
    }

    /// Small random weights: the rule starts as plain momentum.
    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let mut theta = vec![E::of(0.0); UpdateRule::theta_layout(self).len()];
        key.fill_normal(&mut theta);
        theta.iter_mut().for_each(|t| *t *= E::of(0.1));
        theta
    }

    fn init_slots<E: Float>(
        &self,
        _theta: &Theta<E>,
        layout: &Layout,
        _num_steps: Option<u64>,
    ) -> Vec<(&'static str, Var<E>)> {
        vec![("momentum", Var::constant(vec![E::of(0.0); layout.len()]))]
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let momentum = now.slots[0].scale(0.9) + now.grad.scale(0.1);
        let params: Vec<Var<E>> = now
            .tensors()
            .map(|(_shape, range)| {
                let n = range.len();
                let (g, m) = (now.grad.slice(range.clone()), momentum.slice(range.clone()));
                // Both divided by the tensor's root mean square: features [2, n] of every scale.
                let unit = |x: &Var<E>| x * x.square().mean().shift(1e-12).rsqrt();
                let x = Var::concat(&[unit(&g), unit(&m)]);
                let bias = |name: &str, units| theta.get(name).expand_axis([units, n, 1]);
                let hidden = x.linear(&theta.get("w0"), self.hidden_size) + bias("b0", self.hidden_size);
                let gate = hidden.tanh().linear(&theta.get("w1"), 1) + bias("b1", 1);
                now.params.slice(range) - (gate.exp() * m).scale(self.learning_rate)
            })
            .collect();
        (Var::concat(&params), vec![momentum])
    }
}

learned_optimizer!(GatedMomentum);
