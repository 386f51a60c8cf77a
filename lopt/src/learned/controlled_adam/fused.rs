//! The f32 update of [`ControlledAdam`]: two passes over the parameters, in blocks that stay in the first cache.
//! Multiply-adds are not fused and sums have a fixed order, so every path gives the same bits.

use super::{constant_features, progress, ControlledAdam, EPSILON};
use crate::rule::{limit, Taped, UpdateRule};
use outerloop_core::simd::{load, parts, store, Path, Simd, WithSimd, LANES, MAX_PARTS};
use outerloop_core::{nan, Entry, Key, OptState, Optimizer, Params, UpdateJvp, UpdateVjp};
use std::borrow::Cow;
use std::ops::Range;

/// Numbers per block: eight arrays of them fit into the first cache.
const BLOCK: usize = 64 * LANES;

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

    fn run(&self, path: Path, state: &mut OptState<f32>, grad: &[f32], loss: f32) {
        let layout = state.layout.clone();
        let seen = self.twin.rule().progress.then(|| {
            let memory = state.slots.last_mut().expect("slots of the rule");
            progress::see(&mut memory.data, loss, state.step)
        });
        let mut rsqrt = Vec::new();
        let tensors = || layout.entries().iter().filter(|e| e.numel() > 0);
        let count = tensors().count();
        for (index, entry) in tensors().enumerate() {
            let place = Place { entry, place: [index, count], progress: seen };
            self.tensor(path, state, grad, &place, &mut rsqrt);
        }
    }

    fn tensor(
        &self,
        path: Path,
        state: &mut OptState<f32>,
        grad: &[f32],
        at: &Place<'_>,
        rsqrt: &mut Vec<f32>,
    ) {
        let (n, range) = (grad.len(), at.entry.range());
        let rule = self.twin.rule();
        let num_steps = rule.planned(state.num_steps);
        // 1 / (1 − dᵗ)
        let t = (state.step + 1) as f32;
        let correction = |rate: f32| 1.0 / (1.0 - ((1.0 - rate).ln() * t).exp());
        let [momentum, square, others @ ..] = &mut state.slots[..] else { unreachable!("two slots") };
        let mut momenta: Vec<&mut [f32]> =
            momentum.data.chunks_exact_mut(n).map(|row| &mut row[range.clone()]).collect();
        let (grad, params) = (&grad[range.clone()], &mut state.params[range.clone()]);
        let len = grad.len();
        if rsqrt.len() < len {
            rsqrt.resize(len, 0.0);
        }
        let rsqrt = &mut rsqrt[..len];

        let sums = path.run(Averages {
            rates: (&self.momentum_rates, self.square_rate),
            unbiased: correction(self.square_rate),
            grad,
            params,
            momenta: &mut momenta,
            square: &mut square.data[range.clone()],
            rsqrt,
        });
        let mean = |sum: f32| sum / len as f32;
        let mut features = vec![0.5 * (mean(sums[1]) + 1e-6).ln()];
        let mut scales = vec![1.0];
        for (sum, &rate) in sums[2..].iter().zip(&self.momentum_rates) {
            let c = correction(rate);
            features.push(0.5 * (c * c * mean(*sum) + 1e-6).ln());
            scales.push(c);
        }
        features.push(0.15 * (mean(sums[0]) + 1e-8).ln());
        let constant = constant_features(&at.entry.shape, at.place, state.step, num_steps);
        features.extend(constant.map(|f| f as f32));
        features.extend(at.progress.into_iter().flatten());

        let out = self.network(features);
        let step = rule.rate(state.step, num_steps) as f32 * out[0].exp();
        let share = 1.0 / momenta.len() as f32;
        let factor = |k: usize| step * scales[k] * if k == 0 { out[1] } else { out[1 + k] + share };
        let factors: Vec<f32> = (0..scales.len()).map(factor).collect();
        let decay = match rule.weight_decay > 0.0 {
            true => step * (rule.weight_decay as f32 * out[1 + scales.len()].exp()),
            false => 0.0,
        };
        let average = match (others, rule.average) {
            ([average, ..], Some(power)) => {
                Some((&mut average.data[range], ControlledAdam::average_weight(power, state.step + 1) as f32))
            }
            _ => None,
        };
        path.run(Step { params, grad, rsqrt, momenta: &momenta, factors: &factors, decay, average });
    }
}

/// A tensor, which one it is of how many, and what the network sees of the loss.
struct Place<'a> {
    entry: &'a Entry,
    place: [usize; 2],
    progress: Option<[f32; progress::COUNT]>,
}

/// Moves the averages of a tensor on and writes `1/√v̂`. Returns sums of squares over the tensor: of its
/// parameters, of `g/√v̂`, and of each `mₖ/√v̂`.
struct Averages<'a, 'b> {
    /// Of the momenta, and of the square.
    rates: (&'a [f32], f32),
    /// `1/(1 − dᵗ)` of the square.
    unbiased: f32,
    grad: &'a [f32],
    params: &'a [f32],
    momenta: &'a mut [&'b mut [f32]],
    square: &'a mut [f32],
    rsqrt: &'a mut [f32],
}

/// [`LANES`] sums side by side.
type Sums<S> = [<S as Simd>::f32s; MAX_PARTS];

impl WithSimd for Averages<'_, '_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Vec<f32> {
        let Averages { rates: (rates, rate), unbiased, grad, params, momenta, square, rsqrt } = self;
        let n = grad.len();
        let splat = |x: f32| s.splat_f32s(x);
        let (zero, one, epsilon) = (splat(0.0), splat(1.0), splat(EPSILON as f32));
        let (keep, rate, unbiased) = (splat(1.0 - rate), splat(rate), splat(unbiased));
        let mut sums: Vec<Sums<S>> = vec![[zero; MAX_PARTS]; 2 + rates.len()];
        for block in (0..n).step_by(BLOCK) {
            let block = block..n.min(block + BLOCK);
            let (mut of_params, mut of_grad) = (sums[0], sums[1]);
            for row in block.clone().step_by(LANES) {
                for part in 0..parts::<S>() {
                    let i = (row + part * S::F32_LANES).min(block.end)..block.end;
                    let (g, p, v) =
                        (load(s, &grad[i.clone()]), load(s, &params[i.clone()]), load(s, &square[i.clone()]));
                    let v = s.add_f32s(s.mul_f32s(keep, v), s.mul_f32s(rate, s.mul_f32s(g, g)));
                    let w = s.div_f32s(one, s.sqrt_f32s(s.add_f32s(s.mul_f32s(v, unbiased), epsilon)));
                    store(s, &mut square[i.clone()], v);
                    store(s, &mut rsqrt[i], w);
                    of_params[part] = s.add_f32s(of_params[part], s.mul_f32s(p, p));
                    let u = s.mul_f32s(g, w);
                    of_grad[part] = s.add_f32s(of_grad[part], s.mul_f32s(u, u));
                }
            }
            (sums[0], sums[1]) = (of_params, of_grad);
            for ((momentum, rate), sum) in momenta.iter_mut().zip(rates).zip(&mut sums[2..]) {
                let (keep, rate, mut own) = (splat(1.0 - rate), splat(*rate), *sum);
                for row in block.clone().step_by(LANES) {
                    for (part, own) in own.iter_mut().enumerate().take(parts::<S>()) {
                        let i = (row + part * S::F32_LANES).min(block.end)..block.end;
                        let (g, w) = (load(s, &grad[i.clone()]), load(s, &rsqrt[i.clone()]));
                        let m = load(s, &momentum[i.clone()]);
                        let m = s.add_f32s(s.mul_f32s(keep, m), s.mul_f32s(rate, g));
                        store(s, &mut momentum[i], m);
                        let u = s.mul_f32s(m, w);
                        *own = s.add_f32s(*own, s.mul_f32s(u, u));
                    }
                }
                *sum = own;
            }
        }
        let lanes = |sum: &Sums<S>| -> f32 {
            pulp::bytemuck::cast_slice::<S::f32s, f32>(&sum[..parts::<S>()]).iter().sum()
        };
        sums.iter().map(lanes).collect()
    }
}

/// `p ← p − decay p − (c₀ g + Σ cₖ mₖ) / √v̂`, and the average's next value.
struct Step<'a, 'b> {
    params: &'a mut [f32],
    grad: &'a [f32],
    rsqrt: &'a [f32],
    momenta: &'a [&'b mut [f32]],
    factors: &'a [f32],
    decay: f32,
    /// The average, if there is one, and the parameters' weight in it.
    average: Option<(&'a mut [f32], f32)>,
}

impl WithSimd for Step<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Step { params, grad, rsqrt, momenta, factors, decay, mut average } = self;
        let n = grad.len();
        let splat = |x: f32| s.splat_f32s(x);
        let (decay, first) = (splat(decay), splat(factors[0]));
        for block in (0..n).step_by(BLOCK) {
            let block = block..n.min(block + BLOCK);
            for i in block.clone().step_by(S::F32_LANES) {
                let i = i..block.end;
                let (p, g, w) =
                    (load(s, &params[i.clone()]), load(s, &grad[i.clone()]), load(s, &rsqrt[i.clone()]));
                let p = s.sub_f32s(p, s.mul_f32s(decay, p));
                store(s, &mut params[i], s.sub_f32s(p, s.mul_f32s(s.mul_f32s(first, g), w)));
            }
            for (momentum, factor) in momenta.iter().zip(&factors[1..]) {
                let factor = splat(*factor);
                for i in block.clone().step_by(S::F32_LANES) {
                    let i = i..block.end;
                    let (p, m, w) = (
                        load(s, &params[i.clone()]),
                        load(s, &momentum[i.clone()]),
                        load(s, &rsqrt[i.clone()]),
                    );
                    store(s, &mut params[i], s.sub_f32s(p, s.mul_f32s(s.mul_f32s(factor, m), w)));
                }
            }
            if let Some((average, weight)) = &mut average {
                let (keep, weight) = (splat(1.0 - *weight), splat(*weight));
                for i in block.clone().step_by(S::F32_LANES) {
                    let i = i..block.end;
                    let (p, a) = (load(s, &params[i.clone()]), load(s, &average[i.clone()]));
                    store(s, &mut average[i], s.add_f32s(s.mul_f32s(keep, a), s.mul_f32s(weight, p)));
                }
            }
        }
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
    fn update(&self, state: &mut OptState<f32>, grad: &[f32], loss: f32, _key: Key) {
        assert_eq!(grad.len(), state.params.len(), "ControlledAdam: length of the gradient");
        let grad = limit(grad);
        self.run(Path::best(), state, &grad, loss);
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<f32>> {
        self.twin.update_vjp()
    }
    fn update_jvp(&self) -> Option<&dyn UpdateJvp<f32>> {
        self.twin.update_jvp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::derivative::bits;
    use crate::learned::golden::noisy_theta;
    use outerloop_core::contract::awkward_params;

    #[test]
    fn all_paths_give_the_same_bits() {
        let rule = ControlledAdam {
            weight_decay: 0.1,
            average: Some(2.0),
            progress: true,
            ..ControlledAdam::default()
        };
        let theta: Vec<f32> = noisy_theta(&rule, 0.1).iter().map(|t| *t as f32).collect();
        let opt = Fused::new(rule, &theta);
        let key = Key::new(2);
        let start = opt.init(&awkward_params(key), Some(9), key);
        let run = |path: Path| {
            let mut state = start.clone();
            let mut grad = vec![0.0; state.params.len()];
            for t in 0..9 {
                key.fold_in(t).fill_normal(&mut grad);
                opt.run(path, &mut state, &grad, 2.0 - 0.1 * t as f32);
                state.step += 1;
            }
            bits(&state)
        };
        let all: Vec<_> = Path::available().into_iter().map(run).collect();
        assert!(all.iter().all(|b| *b == all[0]));
    }
}
