//! The derivative of [`MlpKernel`]'s update.
//!
//! With `e = step_mult · exp(exp_mult · b)`, normalized features `x = s f` and `s = (ε + mean f²)^-½`:
//! `ā = −p̄′ e`, `b̄ = −p̄′ a e · exp_mult`; the network backwards gives `x̄` and theta's adjoint;
//! `f̄ = s x̄ − s³ f mean(f x̄)`; `m̄ = d (m̄′ + f̄_m)`, `ḡ = f̄_g + Σ (1 − d) (m̄′ + f̄_m)`,
//! `p̄ = p̄′ + f̄_p`. Blocks run through the network forwards and backwards in L1 and add outer
//! products to theta's sums; a last pass over each tensor undoes the normalization.

use super::dense::After;
use super::mlp_features::{Features, Position};
use super::mlp_step::MlpKernel;
use super::net::{time_features, COLUMNS, MAX_LANES};
use super::outer::add_outer;
use crate::features::time;
use crate::mlp_lopt::{DECAYS, TENSOR_FEATURES};
use outerloop_core::simd::exp;
use outerloop_core::simd::{load, store, with_scratch};
use outerloop_core::{Key, OptState, UpdateAdjoint, UpdateVjp};
use pulp::{Simd, WithSimd};

/// Vectors per block: outer products load and store their sums once per block.
const BLOCK: usize = 6;

impl MlpKernel {
    /// First rows of the layers' inputs and the outputs in a block's activations (`layers + 1`),
    /// then of their adjoints, then the number of rows.
    fn block_rows(&self) -> Vec<usize> {
        let sizes = || std::iter::once(TENSOR_FEATURES).chain(self.net.layers.iter().map(|l| l.outputs));
        let mut rows = vec![0];
        rows.extend(sizes().chain(sizes()).scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        }));
        rows
    }
}

impl UpdateVjp<f32> for MlpKernel {
    fn vjp(
        &self,
        before: &OptState<f32>,
        grad: &[f32],
        _loss: f32,
        _key: Key,
        after: &OptState<f32>,
        theta: &mut [f32],
    ) -> UpdateAdjoint<f32> {
        let n = before.params.len();
        let rows = self.block_rows();
        let sums: usize = self.net.layers.iter().map(|l| (l.inputs + 1) * l.outputs).sum();
        let lens = [
            MAX_LANES * BLOCK * rows[rows.len() - 1],
            MAX_LANES * sums,
            DECAYS.len() * n,
            TENSOR_FEATURES * n,
            before.layout.entries().len() * TENSOR_FEATURES,
            self.net.layers[0].outputs,
        ];
        let mut adjoint = UpdateAdjoint { state: after.clone(), grad: vec![0.0; n], loss: 0.0 };
        adjoint.state.step = before.step;
        with_scratch(lens.iter().sum(), |scratch| {
            let (block, scratch) = scratch.split_at_mut(lens[0]);
            let (sums, scratch) = scratch.split_at_mut(lens[1]);
            let (momentum, scratch) = scratch.split_at_mut(lens[2]);
            let (features, scratch) = scratch.split_at_mut(lens[3]);
            let (scales, bias) = scratch.split_at_mut(lens[4]);
            momentum.copy_from_slice(&before.slots[0].data);
            self.path.run(Vjp {
                kernel: self,
                features: Features { layout: &before.layout, params: &before.params, grad, momentum, scales },
                step: before.step,
                rows: &rows,
                block,
                sums,
                feature_adjoint: features,
                bias,
                params: &mut adjoint.state.params,
                momentum: &mut adjoint.state.slots[0].data,
                grad: &mut adjoint.grad,
                theta,
            });
        });
        adjoint
    }
}

struct Vjp<'a> {
    kernel: &'a MlpKernel,
    features: Features<'a>,
    step: u64,
    rows: &'a [usize],
    /// Activations and their adjoints of one block, `[rows, BLOCK]` vectors.
    block: &'a mut [f32],
    /// Per layer the weight's adjoint `[inputs, outputs]`, then the bias's, in vectors.
    sums: &'a mut [f32],
    /// Adjoint of the normalized features, `[8, n]`.
    feature_adjoint: &'a mut [f32],
    bias: &'a mut [f32],
    /// The adjoint after the update; becomes that before it.
    params: &'a mut [f32],
    /// The same for the momenta.
    momentum: &'a mut [f32],
    grad: &'a mut [f32],
    theta: &'a mut [f32],
}

impl WithSimd for Vjp<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        self.features.accumulate(s);
        self.kernel.net.time_bias(s, self.step, self.bias);
        S::as_mut_simd_f32s(self.sums).0.fill(s.splat_f32s(0.0));
        let mut at = Position::FIRST;
        while at.start < self.params.len() {
            self.block(s, &mut at);
        }
        self.add_theta(s);
        for t in 0..self.features.layout.entries().len() {
            self.finish_tensor(s, t);
        }
    }
}

impl Vjp<'_> {
    /// One block through the network and back; moves `at` behind it.
    #[inline(always)]
    fn block<S: Simd>(&mut self, s: S, at: &mut Position) {
        let layers = &self.kernel.net.layers;
        let depth = layers.len();
        let (inputs, adjoints) = self.rows.split_at(depth + 1);
        let (block, _) = S::as_mut_simd_f32s(self.block);
        let rows = |first: usize, len: usize| first * BLOCK..(first + len) * BLOCK;
        let range = self.features.load::<S, BLOCK>(s, at, &mut block[rows(0, TENSOR_FEATURES)]);
        for (i, layer) in layers.iter().enumerate() {
            let (x, y) = block.split_at_mut(inputs[i + 1] * BLOCK);
            let bias = if i == 0 { &*self.bias } else { &layer.bias };
            let x = &x[rows(inputs[i], layer.inputs)];
            layer.forward::<S, COLUMNS, BLOCK>(s, Some(bias), x, y, After::of(i, depth));
        }
        // ā = −p̄ e, b̄ = ā a exp_mult
        let rule = self.kernel.twin.rule();
        let (exp_mult, step_mult) =
            (s.splat_f32s(rule.exp_mult as f32), s.splat_f32s(-rule.step_mult as f32));
        let (out, out_adjoint) = (inputs[depth] * BLOCK, adjoints[depth] * BLOCK);
        for v in 0..BLOCK {
            let (direction, magnitude) = (block[out + v], block[out + BLOCK + v]);
            let p = load(s, &self.params[range.end.min(range.start + v * S::F32_LANES)..range.end]);
            let e = s.mul_f32s(step_mult, exp(s, s.mul_f32s(exp_mult, magnitude)));
            let a = s.mul_f32s(p, e);
            block[out_adjoint + v] = a;
            block[out_adjoint + BLOCK + v] = s.mul_f32s(s.mul_f32s(a, direction), exp_mult);
        }
        let zero = s.splat_f32s(0.0);
        for (i, back) in self.kernel.net.back().iter().enumerate().rev() {
            let (before, after) = block.split_at_mut(adjoints[i + 1] * BLOCK);
            let (acts, to) = before.split_at_mut(adjoints[i] * BLOCK);
            let from = &after[..back.inputs * BLOCK];
            back.forward::<S, COLUMNS, BLOCK>(s, Some(&back.bias), from, to, After::Linear);
            if i > 0 {
                for (d, x) in to.iter_mut().zip(&acts[rows(inputs[i], back.outputs)]) {
                    // Not `x > 0`: NaN must pass.
                    *d = s.select_f32s(s.less_than_or_equal_f32s(*x, zero), zero, *d);
                }
            }
        }
        let n = self.params.len();
        for (f, x) in block[rows(adjoints[0], TENSOR_FEATURES)].chunks_exact(BLOCK).enumerate() {
            for (to, x) in self.feature_adjoint[f * n..][range.clone()].chunks_mut(S::F32_LANES).zip(x) {
                store(s, to, *x);
            }
        }
        let (mut sums, _) = S::as_mut_simd_f32s(self.sums);
        for (i, layer) in layers.iter().enumerate() {
            let (weight, rest) = sums.split_at_mut(layer.inputs * layer.outputs);
            let (bias, rest) = rest.split_at_mut(layer.outputs);
            sums = rest;
            let d = &block[rows(adjoints[i + 1], layer.outputs)];
            add_outer::<S, BLOCK>(s, &block[rows(inputs[i], layer.inputs)], d, weight);
            for (b, d) in bias.iter_mut().zip(d.chunks_exact(BLOCK)) {
                for d in d {
                    *b = s.add_f32s(*b, *d);
                }
            }
        }
    }

    /// Adds the sums over all parameters to theta's adjoint.
    #[inline(always)]
    fn add_theta<S: Simd>(&mut self, s: S) {
        let time = time_features(s, self.step);
        let (mut sums, _) = S::as_mut_simd_f32s(self.sums);
        for (i, (layer, [w, b])) in self.kernel.net.layers.iter().zip(&self.kernel.net.ranges).enumerate() {
            let (weight, rest) = sums.split_at_mut(layer.inputs * layer.outputs);
            let (bias, rest) = rest.split_at_mut(layer.outputs);
            sums = rest;
            for (t, sum) in self.theta[w.clone()].iter_mut().zip(weight) {
                *t += s.reduce_sum_f32s(*sum);
            }
            for (o, (t, sum)) in self.theta[b.clone()].iter_mut().zip(bias).enumerate() {
                let sum = s.reduce_sum_f32s(*sum);
                *t += sum;
                if i == 0 {
                    self.bias[o] = sum;
                }
            }
            if i == 0 {
                // The time features' rows see the same adjoint as the bias.
                let rows = &mut self.theta[w.clone()][TENSOR_FEATURES * layer.outputs..];
                debug_assert_eq!(rows.len(), time::COUNT * layer.outputs);
                for (row, f) in rows.chunks_exact_mut(layer.outputs).zip(time) {
                    for (t, b) in row.iter_mut().zip(&*self.bias) {
                        *t += f * b;
                    }
                }
            }
        }
    }

    /// From the adjoint of one tensor's normalized features to that of its state and gradient.
    #[inline(always)]
    fn finish_tensor<S: Simd>(&mut self, s: S, tensor: usize) {
        let n = self.params.len();
        let entry = &self.features.layout.entries()[tensor];
        let range = entry.range();
        let scales = &self.features.scales[tensor * TENSOR_FEATURES..][..TENSOR_FEATURES];
        // f̄ = s x̄ − c f with c = s³ mean(f x̄)
        let mut c = [0.0; TENSOR_FEATURES];
        for (f, c) in c.iter_mut().enumerate() {
            let mut sum = s.splat_f32s(0.0);
            let (x, raw) =
                (&self.feature_adjoint[f * n..][range.clone()], &self.features.raw(f)[range.clone()]);
            for (x, raw) in x.chunks(S::F32_LANES).zip(raw.chunks(S::F32_LANES)) {
                sum = s.mul_add_e_f32s(load(s, x), load(s, raw), sum);
            }
            *c = -scales[f].powi(3) * s.reduce_sum_f32s(sum) / entry.numel().max(1) as f32;
        }
        for i in range.clone().step_by(S::F32_LANES) {
            let i = i..range.end;
            let mut adjoint = [s.splat_f32s(0.0); TENSOR_FEATURES];
            for (f, a) in adjoint.iter_mut().enumerate() {
                let x = load(s, &self.feature_adjoint[f * n..][i.clone()]);
                let raw = load(s, &self.features.raw(f)[i.clone()]);
                *a = s.mul_add_e_f32s(s.splat_f32s(c[f]), raw, s.mul_f32s(s.splat_f32s(scales[f]), x));
            }
            let mut g = adjoint[0];
            for (k, d) in DECAYS.iter().enumerate() {
                let m = &mut self.momentum[k * n..][i.clone()];
                let sum = s.add_f32s(load(s, m), adjoint[2 + k]);
                g = s.mul_add_e_f32s(s.splat_f32s((1.0 - d) as f32), sum, g);
                store(s, m, s.mul_f32s(s.splat_f32s(*d as f32), sum));
            }
            store(s, &mut self.grad[i.clone()], g);
            let p = &mut self.params[i];
            let sum = s.add_f32s(load(s, p), adjoint[1]);
            store(s, p, sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Path;
    use crate::{MlpLopt, Taped};
    use outerloop_core::contract::awkward_layout;
    use outerloop_core::{Layout, LearnedOptimizer, Optimizer, Params};
    use std::sync::Arc;

    /// All adjoints in one vector: state, gradient, theta.
    fn adjoints(opt: &dyn Optimizer<f64>, state: &OptState<f64>, theta: usize) -> Vec<f64> {
        let (grad, after) = arguments(state);
        let mut theta = vec![0.0; theta];
        let a = opt.update_vjp().unwrap().vjp(state, &grad, 0.0, Key::new(0), &after, &mut theta);
        [a.state.params, a.state.slots[0].data.clone(), a.grad, theta].concat()
    }

    fn arguments(state: &OptState<f64>) -> (Vec<f64>, OptState<f64>) {
        let mut grad = vec![0.0; state.params.len()];
        Key::new(31).fill_normal(&mut grad);
        let mut after = state.zeros_like();
        Key::new(32).fill_normal(&mut after.params);
        Key::new(33).fill_normal(&mut after.slots[0].data);
        (grad.iter().map(|g| f64::from(*g as f32)).collect(), after)
    }

    fn to_f32(x: &[f64]) -> Vec<f32> {
        x.iter().map(|x| *x as f32).collect()
    }

    fn state_f32(s: &OptState<f64>) -> OptState<f32> {
        let slots =
            s.slots.iter().map(|s| outerloop_core::Slot { name: s.name.clone(), data: to_f32(&s.data) });
        OptState {
            layout: s.layout.clone(),
            params: to_f32(&s.params),
            slots: slots.collect(),
            step: s.step,
            num_steps: s.num_steps,
        }
    }

    #[test]
    fn agrees_with_the_twin_in_f64() {
        let shapes: [&[usize]; 6] = [&[10], &[], &[7, 33], &[2, 3, 4, 5], &[0], &[49]];
        let mut layouts = vec![awkward_layout()];
        layouts.extend(shapes.map(|s| Arc::new(Layout::new([("x", s.to_vec())]))));
        layouts.push(Arc::new(Layout::new((0..40).map(|i| (format!("{i:02}"), vec![i % 5])))));
        for (hidden_size, hidden_layers) in [(32, 2), (4, 2), (7, 3), (5, 1), (1, 1), (3, 0)] {
            let rule = MlpLopt { exp_mult: 0.1, step_mult: 0.05, hidden_size, hidden_layers };
            let theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
            let theta64: Vec<f64> = theta.iter().map(|t| f64::from(*t)).collect();
            let twin = Taped::<_, f64>::new(rule.clone(), &theta64);
            for layout in &layouts {
                let mut params = Params::<f64>::zeros(layout.clone());
                Key::new(9).fill_normal(&mut params.data);
                let mut state = twin.init(&params, None, Key::new(0));
                for t in 0..3 {
                    let mut grad = vec![0.0; layout.len()];
                    Key::new(t).fill_normal(&mut grad);
                    twin.update(&mut state, &grad, 0.0, Key::new(0));
                }
                // Both start from the same, rounded state.
                let rounded = state_f32(&state);
                state.params = rounded.params.iter().map(|p| f64::from(*p)).collect();
                state.slots[0].data = rounded.slots[0].data.iter().map(|p| f64::from(*p)).collect();
                let want = adjoints(&twin, &state, theta.len());
                let (grad, after) = arguments(&state);
                for path in Path::available() {
                    let kernel = MlpKernel::new(rule.clone(), &theta, path);
                    let mut theta = vec![0.0; theta.len()];
                    let after = state_f32(&after);
                    let a = kernel.vjp(&rounded, &to_f32(&grad), 0.0, Key::new(0), &after, &mut theta);
                    let got = [a.state.params, a.state.slots[0].data.clone(), a.grad, theta].concat();
                    let size = want.iter().fold(1.0f64, |a, x| a.max(x.abs()));
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error <= 1e-4 * want.abs() + 3e-6 * size,
                            "{rule:?} {path:?} {layout:?} {i}: {got} {want}"
                        );
                    }
                }
            }
        }
    }
}
