//! The f32 update of [`ControlledAdam`] in plain loops over slices, compiled for the best instructions
//! of the machine. Multiply-adds are not fused and sums have a fixed order, so all of them give the same
//! bits.

use super::{constant_features, ControlledAdam, EPSILON};
use crate::rule::{limit, Taped, UpdateRule};
use outerloop_core::{nan, Entry, Key, OptState, Optimizer, Params, UpdateVjp};
use std::ops::Range;

/// Numbers that are summed side by side.
const LANES: usize = 16;

/// [`ControlledAdam`] in f32 at one theta. The derivative is its twin's.
pub(super) struct Fused {
    twin: Taped<ControlledAdam, f32>,
    theta: Vec<f32>,
    /// Weight and bias of each layer in theta.
    layers: Vec<[Range<usize>; 2]>,
    momentum_rates: Vec<f32>,
    square_rate: f32,
}

impl Fused {
    #[track_caller]
    pub(super) fn new(rule: ControlledAdam, theta: &[f32]) -> Self {
        let layout = UpdateRule::theta_layout(&rule);
        let twin = Taped::new(rule, theta);
        let range = |name| layout.get(name).expect("theta holds the network").range();
        let layers = twin.rule().network().layers().map(|(_, _, w, b)| [range(w), range(b)]).collect();
        let (momentum, square) = twin.rule().rates(&twin.theta());
        let momentum_rates = momentum.iter().map(|r| r.data()[0]).collect();
        Fused { theta: theta.to_vec(), layers, momentum_rates, square_rate: square.data()[0], twin }
    }

    /// The network's outputs.
    fn network(&self, mut x: Vec<f32>) -> Vec<f32> {
        for (i, [w, b]) in self.layers.iter().enumerate() {
            let mut y = self.theta[b.clone()].to_vec();
            for (x, w) in x.iter().zip(self.theta[w.clone()].chunks_exact(y.len().max(1))) {
                y.iter_mut().zip(w).for_each(|(y, w)| *y += x * w);
            }
            if i + 1 < self.layers.len() {
                y.iter_mut().for_each(|y| *y = nan::max(*y, 0.0));
            }
            x = y;
        }
        x
    }

    #[inline(always)]
    fn run(&self, state: &mut OptState<f32>, grad: &[f32]) {
        let layout = state.layout.clone();
        let mut rsqrt = Vec::new();
        let tensors = || layout.entries().iter().filter(|e| e.numel() > 0);
        let count = tensors().count();
        for (index, entry) in tensors().enumerate() {
            self.tensor(state, grad, entry, [index, count], &mut rsqrt);
        }
    }

    #[inline(always)]
    fn tensor(
        &self,
        state: &mut OptState<f32>,
        grad: &[f32],
        entry: &Entry,
        place: [usize; 2],
        rsqrt: &mut Vec<f32>,
    ) {
        let (n, at) = (grad.len(), entry.range());
        let rows = |k: usize| k * n + at.start..k * n + at.end;
        let grad = &grad[at.clone()];
        let [momentum, square] = &mut state.slots[..] else { unreachable!("two slots") };
        let params = &mut state.params[at.clone()];
        // 1 / (1 − dᵗ)
        let t = (state.step + 1) as f32;
        let correction = |rate: f32| 1.0 / (1.0 - ((1.0 - rate).ln() * t).exp());

        let (rate, keep) = (self.square_rate, 1.0 - self.square_rate);
        let unbiased = correction(rate);
        let len = grad.len();
        rsqrt.resize(len, 0.0);
        let rsqrt = &mut rsqrt[..len];
        for ((v, g), w) in square.data[at.clone()].iter_mut().zip(grad).zip(rsqrt.iter_mut()) {
            *v = keep * *v + rate * (g * g);
            *w = 1.0 / (*v * unbiased + EPSILON as f32).sqrt();
        }

        let numel = len as f32;
        let mut features = vec![0.5 * (squares(len, |i| grad[i] * rsqrt[i]) / numel + 1e-6).ln()];
        let mut scales = vec![1.0];
        for (k, &rate) in self.momentum_rates.iter().enumerate() {
            let m = &mut momentum.data[rows(k)];
            for (m, g) in m.iter_mut().zip(grad) {
                *m = (1.0 - rate) * *m + rate * g;
            }
            let c = correction(rate);
            features.push(0.5 * (c * c * (squares(len, |i| m[i] * rsqrt[i]) / numel) + 1e-6).ln());
            scales.push(c);
        }
        features.push(0.15 * (squares(len, |i| params[i]) / numel + 1e-8).ln());
        let constant = constant_features(&entry.shape, place, state.step, state.num_steps);
        features.extend(constant.map(|f| f as f32));

        let out = self.network(features);
        let step = self.twin.rule().rate(state.step, state.num_steps) as f32 * out[0].exp();
        let share = 1.0 / self.momentum_rates.len() as f32;
        let factor = |k: usize| step * scales[k] * if k == 0 { out[1] } else { out[1 + k] + share };
        let c = factor(0);
        for ((p, g), w) in params.iter_mut().zip(grad).zip(rsqrt.iter()) {
            *p -= c * g * w;
        }
        for k in 1..scales.len() {
            let c = factor(k);
            for ((p, m), w) in params.iter_mut().zip(&momentum.data[rows(k - 1)]).zip(rsqrt.iter()) {
                *p -= c * m * w;
            }
        }
    }
}

/// `Σ f(i)²` for i below `n`, in a fixed order.
#[inline(always)]
fn squares(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let whole = n - n % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, s) in sums.iter_mut().enumerate() {
            let y = f(start + lane);
            *s += y * y;
        }
    }
    for (lane, s) in sums[..n - whole].iter_mut().enumerate() {
        let y = f(whole + lane);
        *s += y * y;
    }
    sums.iter().sum()
}

impl Optimizer<f32> for Fused {
    fn name(&self) -> String {
        self.twin.name()
    }
    fn describe(&self) -> String {
        self.twin.describe()
    }
    fn init(&self, params: &Params<f32>, num_steps: Option<u64>, key: Key) -> OptState<f32> {
        self.twin.init(params, num_steps, key)
    }
    fn update(&self, state: &mut OptState<f32>, grad: &[f32], _loss: f32, _key: Key) {
        assert_eq!(grad.len(), state.params.len(), "ControlledAdam: length of the gradient");
        let grad = limit(grad);
        pulp::Arch::new().dispatch(|| self.run(state, &grad));
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<f32>> {
        self.twin.update_vjp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::derivative::bits;
    use crate::learned::golden::noisy_theta;
    use outerloop_core::contract::awkward_params;

    #[test]
    fn all_instructions_give_the_bits_of_the_portable_ones() {
        let rule = ControlledAdam::default();
        let theta: Vec<f32> = noisy_theta(&rule, 0.1).iter().map(|t| *t as f32).collect();
        let opt = Fused::new(rule, &theta);
        let key = Key::new(2);
        let mut best = opt.init(&awkward_params(key), Some(9), key);
        let mut portable = best.clone();
        let mut grad = vec![0.0; best.params.len()];
        for t in 0..9 {
            key.fold_in(t).fill_normal(&mut grad);
            opt.update(&mut best, &grad, 0.0, key);
            opt.run(&mut portable, &grad);
            portable.step += 1;
        }
        assert_eq!(bits(&best), bits(&portable));
    }
}
