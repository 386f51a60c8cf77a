//! How [`MlpKernel`]'s update moves along a direction.
//!
//! With normalized features `x = s f`, `s = (ε + mean f²)^-½`: `ẋ = s ḟ + ṡ f` with `ṡ = −s³ mean(f ḟ)`. A layer takes
//! three products, `z = Wᵀ x + b` and `ż = Ẇᵀ x + ḃ + Wᵀ ẋ`; then
//! `ṗ′ = ṗ − step_mult (ȧ + exp_mult a ḃ) exp(exp_mult b)` for the outputs a, b. `ṁ′ = d ṁ + (1 − d) ġ`.

use super::features::{Features, Position};
use super::step::MlpKernel;
use super::{DECAYS, TENSOR_FEATURES};
use crate::kernel::dense::After;
use crate::kernel::dot::dot;
use crate::kernel::net::{Net, COLUMNS, MAX_LANES};
use outerloop_core::simd::{exp, load, store, with_scratch};
use outerloop_core::{Key, Layout, OptState, UpdateJvp, UpdateTangent};
use pulp::{Simd, WithSimd};

impl UpdateJvp<f32> for MlpKernel {
    fn jvp(
        &self,
        before: &OptState<f32>,
        grad: &[f32],
        _loss: f32,
        _key: Key,
        tangent: UpdateTangent<'_, f32>,
    ) -> OptState<f32> {
        let n = before.params.len();
        let rule = self.twin.rule();
        let moved_net = Net::new(&rule.network(), self.twin.layout(), tangent.theta);
        let mut after = tangent.state.clone();
        after.step = before.step + 1;
        let rows = self.net.widest().max(TENSOR_FEATURES);
        let bias = self.net.layers[0].outputs;
        let scales = before.layout.entries().len() * TENSOR_FEATURES;
        let block = 4 * rows * COLUMNS * MAX_LANES;
        with_scratch(block + 2 * bias + DECAYS.len() * n + 3 * scales, |scratch| {
            let (block, scratch) = scratch.split_at_mut(block);
            let (bias, scratch) = scratch.split_at_mut(bias);
            let (moved_bias, scratch) = scratch.split_at_mut(bias.len());
            let (momentum, scratch) = scratch.split_at_mut(DECAYS.len() * n);
            let (scale, scratch) = scratch.split_at_mut(scales);
            let (moved_scale, slopes) = scratch.split_at_mut(scales);
            momentum.copy_from_slice(&before.slots[0].data);
            let layout: &Layout = &before.layout;
            let (params, moved) = (&before.params, tangent.state);
            self.path.run(Jvp {
                features: Features { layout, params, grad, momentum, scales: scale },
                moved: Features {
                    layout,
                    params: &moved.params,
                    grad: tangent.grad,
                    momentum: &mut after.slots[0].data,
                    scales: moved_scale,
                },
                slopes,
                nets: [&self.net, &moved_net],
                biases: [bias, moved_bias],
                block,
                rows,
                mults: [rule.exp_mult, rule.step_mult],
                step: before.step,
                params: &mut after.params,
            });
        });
        after
    }
}

struct Jvp<'a> {
    features: Features<'a>,
    /// Their tangents, with the same normalizers.
    moved: Features<'a>,
    /// `ṡ`, `[tensors, 8]`.
    slopes: &'a mut [f32],
    /// The network, and its tangent.
    nets: [&'a Net; 2],
    /// Of the first layers, with their time parts.
    biases: [&'a mut [f32]; 2],
    /// Values and tangents of two layers, `rows` rows of [`COLUMNS`] vectors each.
    block: &'a mut [f32],
    rows: usize,
    /// `[exp_mult, step_mult]`
    mults: [f64; 2],
    step: u64,
    /// The tangent of the parameters after the update.
    params: &'a mut [f32],
}

impl WithSimd for Jvp<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        self.features.accumulate(s);
        self.move_momentum(s);
        self.move_normalizers(s);
        for (net, bias) in self.nets.iter().zip(&mut self.biases) {
            net.time_bias(s, self.step, bias);
        }
        let mut at = Position::FIRST;
        while at.start < self.params.len() {
            self.move_block(s, &mut at);
        }
    }
}

impl Jvp<'_> {
    #[inline(always)]
    fn move_momentum<S: Simd>(&mut self, s: S) {
        let n = self.params.len();
        for (k, d) in DECAYS.iter().enumerate() {
            let (keep, new) = (s.splat_f32s(*d as f32), s.splat_f32s((1.0 - d) as f32));
            let momentum = self.moved.momentum[k * n..][..n].chunks_mut(S::F32_LANES);
            for (m, g) in momentum.zip(self.moved.grad.chunks(S::F32_LANES)) {
                let next = s.mul_add_e_f32s(new, load(s, g), s.mul_f32s(keep, load(s, m)));
                store(s, m, next);
            }
        }
    }

    #[inline(always)]
    fn move_normalizers<S: Simd>(&mut self, s: S) {
        self.moved.scales.copy_from_slice(self.features.scales);
        for (t, entry) in self.features.layout.entries().iter().enumerate() {
            let range = entry.range();
            for f in 0..TENSOR_FEATURES {
                let products =
                    dot(s, &self.features.raw(f)[range.clone()], &self.moved.raw(f)[range.clone()]);
                let scale = self.features.scales[t * TENSOR_FEATURES + f];
                self.slopes[t * TENSOR_FEATURES + f] = -scale.powi(3) * products / range.len().max(1) as f32;
            }
        }
    }

    /// One block of [`COLUMNS`] vectors of parameters; moves `at` behind it.
    #[inline(always)]
    fn move_block<S: Simd>(&mut self, s: S, at: &mut Position) {
        const V: usize = COLUMNS;
        let block = S::as_mut_simd_f32s(&mut *self.block).0;
        let (values, rest) = block.split_at_mut(2 * self.rows * V);
        let tangents = &mut rest[..2 * self.rows * V];
        let (mut x, mut y) = values.split_at_mut(self.rows * V);
        let (mut tx, mut ty) = tangents.split_at_mut(self.rows * V);
        // ẋ = s ḟ + ṡ f, the latter by way of `ty`.
        let (inputs, mut again, mut third) = (TENSOR_FEATURES * V, *at, *at);
        let range = self.features.load::<S, V>(s, at, &mut x[..inputs]);
        self.moved.load::<S, V>(s, &mut again, &mut tx[..inputs]);
        let Features { layout, params, grad, .. } = self.features;
        let (momentum, scales) = (&mut *self.features.momentum, &mut *self.slopes);
        let bent = Features { layout, params, grad, momentum, scales };
        bent.load::<S, V>(s, &mut third, &mut ty[..inputs]);
        tx[..inputs].iter_mut().zip(&ty[..inputs]).for_each(|(t, b)| *t = s.add_f32s(*t, *b));
        let [net, moved] = self.nets;
        let (depth, zero) = (net.layers.len(), s.splat_f32s(0.0));
        for (i, (layer, moved)) in net.layers.iter().zip(&moved.layers).enumerate() {
            let [bias, moved_bias] = match i {
                0 => [&*self.biases[0], &*self.biases[1]],
                _ => [&layer.bias[..], &moved.bias[..]],
            };
            let (inputs, outputs) = (layer.inputs * V, layer.outputs * V);
            let after = After::of(i, depth);
            layer.forward::<S, V, V>(s, Some(bias), &x[..inputs], y, after);
            moved.forward::<S, V, V>(s, Some(moved_bias), &x[..inputs], ty, After::Linear);
            layer.forward::<S, V, V>(s, None, &tx[..inputs], ty, After::Linear);
            if after == After::Relu {
                for (t, y) in ty[..outputs].iter_mut().zip(&y[..outputs]) {
                    *t = s.select_f32s(s.less_than_f32s(zero, *y), *t, zero);
                }
            }
            std::mem::swap(&mut x, &mut y);
            std::mem::swap(&mut tx, &mut ty);
        }
        let [exp_mult, step_mult] = self.mults.map(|m| s.splat_f32s(m as f32));
        let moved = self.moved.params[range.clone()].chunks(S::F32_LANES);
        for (v, (next, p)) in self.params[range].chunks_mut(S::F32_LANES).zip(moved).enumerate() {
            let factor = s.mul_f32s(step_mult, exp(s, s.mul_f32s(exp_mult, x[V + v])));
            let slope = s.mul_add_e_f32s(s.mul_f32s(exp_mult, x[v]), tx[V + v], tx[v]);
            store(s, next, s.sub_f32s(load(s, p), s.mul_f32s(slope, factor)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::derivative::check_forward;
    use crate::learned::MlpLopt;

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for (hidden_size, hidden_layers) in [(32, 2), (4, 2), (7, 3), (5, 1), (1, 1), (3, 0)] {
            let rule = MlpLopt { exp_mult: 0.1, step_mult: 0.05, hidden_size, hidden_layers };
            check_forward(&rule, 1e-4, |path, theta| Box::new(MlpKernel::new(rule.clone(), theta, path)));
        }
    }
}
