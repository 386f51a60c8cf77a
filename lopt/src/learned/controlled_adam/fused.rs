//! The f32 update of [`ControlledAdam`] in plain loops over slices, compiled for the best instructions
//! of the machine. Multiply-adds are not fused and sums have a fixed order, so all of them give the same
//! bits.

use super::{constant_features, ControlledAdam, EPSILON};
use crate::rule::{limit, Taped, UpdateRule};
use outerloop_core::{nan, Entry, Key, OptState, Optimizer, Params, UpdateVjp};
use std::borrow::Cow;
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
        let rule = self.twin.rule();
        let num_steps = rule.planned(state.num_steps);
        // 1 / (1 − dᵗ)
        let t = (state.step + 1) as f32;
        let correction = |rate: f32| 1.0 / (1.0 - ((1.0 - rate).ln() * t).exp());
        let [momentum, square, average @ ..] = &mut state.slots[..] else { unreachable!("two slots") };
        let mut rows: Vec<&mut [f32]> =
            momentum.data.chunks_exact_mut(n).map(|row| &mut row[at.clone()]).collect();
        let (grad, params) = (&grad[at.clone()], &mut state.params[at.clone()]);
        let len = grad.len();
        if rsqrt.len() < len {
            rsqrt.resize(len, 0.0);
        }
        let rsqrt = &mut rsqrt[..len];

        let unbiased = correction(self.square_rate);
        let mut sums = Sums::new(rows.len());
        self.first_pass(grad, params, &mut rows, [&mut square.data[at.clone()], rsqrt], unbiased, &mut sums);
        let mean = |lanes: &[f32; LANES]| lanes.iter().sum::<f32>() / len as f32;
        let mut features = vec![0.5 * (mean(&sums.grad) + 1e-6).ln()];
        let mut scales = vec![1.0];
        for (sum, &rate) in sums.momenta.iter().zip(&self.momentum_rates) {
            let c = correction(rate);
            features.push(0.5 * (c * c * mean(sum) + 1e-6).ln());
            scales.push(c);
        }
        features.push(0.15 * (mean(&sums.params) + 1e-8).ln());
        let constant = constant_features(&entry.shape, place, state.step, num_steps);
        features.extend(constant.map(|f| f as f32));

        let out = self.network(features);
        let step = rule.rate(state.step, num_steps) as f32 * out[0].exp();
        let share = 1.0 / rows.len() as f32;
        let factor = |k: usize| step * scales[k] * if k == 0 { out[1] } else { out[1 + k] + share };
        let factors: Vec<f32> = (0..scales.len()).map(factor).collect();
        let decay = match rule.weight_decay > 0.0 {
            true => step * (rule.weight_decay as f32 * out[1 + scales.len()].exp()),
            false => 0.0,
        };
        second_pass(params, [grad, rsqrt], &rows, &factors, decay);
        if let ([average], Some(power)) = (average, rule.average) {
            let w = ControlledAdam::average_weight(power, state.step + 1) as f32;
            for (a, p) in average.data[at].iter_mut().zip(&*params) {
                *a = (1.0 - w) * *a + w * p;
            }
        }
    }

    /// Moves the averages of a tensor on, writes `1/√v̂` and sums what the features are made of: every number
    /// is read once. `momenta`: per decay; `square`: v, and room for `1/√v̂`.
    #[inline(always)]
    fn first_pass(
        &self,
        grad: &[f32],
        params: &[f32],
        momenta: &mut [&mut [f32]],
        [square, rsqrt]: [&mut [f32]; 2],
        unbiased: f32,
        sums: &mut Sums,
    ) {
        let (rate, keep) = (self.square_rate, 1.0 - self.square_rate);
        for start in (0..grad.len()).step_by(LANES) {
            let block = start..grad.len().min(start + LANES);
            let (g, p) = (lanes(&grad[block.clone()]), lanes(&params[block.clone()]));
            let (mut v, mut w) = (lanes(&square[block.clone()]), [0.0; LANES]);
            for i in 0..LANES {
                v[i] = keep * v[i] + rate * (g[i] * g[i]);
                w[i] = 1.0 / (v[i] * unbiased + EPSILON as f32).sqrt();
                sums.params[i] += p[i] * p[i];
                let u = g[i] * w[i];
                sums.grad[i] += u * u;
            }
            square[block.clone()].copy_from_slice(&v[..block.len()]);
            rsqrt[block.clone()].copy_from_slice(&w[..block.len()]);
            for ((row, sum), rate) in momenta.iter_mut().zip(&mut sums.momenta).zip(&self.momentum_rates) {
                let mut m = lanes(&row[block.clone()]);
                for i in 0..LANES {
                    m[i] = (1.0 - rate) * m[i] + rate * g[i];
                    let u = m[i] * w[i];
                    sum[i] += u * u;
                }
                row[block.clone()].copy_from_slice(&m[..block.len()]);
            }
        }
    }
}

/// Sums of squares over a tensor, [`LANES`] side by side: of its parameters and of its directions.
struct Sums {
    params: [f32; LANES],
    grad: [f32; LANES],
    momenta: Vec<[f32; LANES]>,
}

impl Sums {
    fn new(momenta: usize) -> Self {
        Sums { params: [0.0; LANES], grad: [0.0; LANES], momenta: vec![[0.0; LANES]; momenta] }
    }
}

/// A block of at most [`LANES`] numbers, filled up with zeros, which add nothing to a sum of squares.
#[inline(always)]
fn lanes(block: &[f32]) -> [f32; LANES] {
    <[f32; LANES]>::try_from(block).unwrap_or_else(|_| {
        let mut padded = [0.0; LANES];
        padded[..block.len()].copy_from_slice(block);
        padded
    })
}

/// `p ← p − decay p − (c₀ g + Σ cₖ mₖ) / √v̂`
#[inline(always)]
fn second_pass(
    params: &mut [f32],
    [grad, rsqrt]: [&[f32]; 2],
    momenta: &[&mut [f32]],
    factors: &[f32],
    decay: f32,
) {
    for start in (0..grad.len()).step_by(LANES) {
        let block = start..grad.len().min(start + LANES);
        let (g, w) = (lanes(&grad[block.clone()]), lanes(&rsqrt[block.clone()]));
        let mut p = lanes(&params[block.clone()]);
        for i in 0..LANES {
            p[i] = p[i] - decay * p[i] - factors[0] * g[i] * w[i];
        }
        for (row, c) in momenta.iter().zip(&factors[1..]) {
            let m = lanes(&row[block.clone()]);
            for i in 0..LANES {
                p[i] -= c * m[i] * w[i];
            }
        }
        params[block.clone()].copy_from_slice(&p[..block.len()]);
    }
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
    fn evaluation_params<'a>(&self, state: &'a OptState<f32>) -> Cow<'a, [f32]> {
        self.twin.evaluation_params(state)
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
        let rule = ControlledAdam { weight_decay: 0.1, average: Some(2.0), ..ControlledAdam::default() };
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
