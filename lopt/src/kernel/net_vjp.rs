//! The derivative of a network and its output rule over blocks of parameters, shared by the kernels'
//! derivatives.
//!
//! With `e = step_mult · exp(exp_mult · b)`: `ā = −p̄′ e`, `b̄ = −p̄′ a e · exp_mult`; the network backwards
//! gives `x̄` and theta's adjoint. Blocks run through the network forwards and backwards in L1 and add
//! outer products to theta's sums.

use super::dense::After;
use super::net::{time_features, Net, COLUMNS, MAX_LANES};
use super::{apart, outer::add_outer};
use crate::features::time;
use outerloop_core::simd::{exp, load, parts, store, total};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Vectors per block: outer products load and store their sums once per block.
pub(crate) const BLOCK: usize = 12;

/// One network's derivative in progress.
pub(crate) struct NetVjp<'a> {
    net: &'a Net,
    /// `[exp_mult, step_mult]`.
    mults: [f64; 2],
    step: u64,
    /// First rows of the layers' inputs and the outputs in a block's activations (`layers + 1`), then of
    /// their adjoints, then the number of rows.
    rows: Vec<usize>,
    /// Activations and their adjoints of one block, `[rows, BLOCK]` vectors.
    block: &'a mut [f32],
    /// Per layer the weight's adjoint `[inputs, outputs, parts]`, then the bias's, in vectors; then the gain.
    sums: &'a mut [f32],
    bias: &'a mut [f32],
}

/// [`NetVjp::block`].
struct Block<'a, 'b> {
    net: &'a mut NetVjp<'b>,
    range: Range<usize>,
    params: &'a [f32],
    features: &'a mut [f32],
}

impl WithSimd for Block<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        self.net.run_block(s, self.range, self.params, self.features);
    }
}

fn block_rows(net: &Net) -> Vec<usize> {
    let sizes = || net.layers.iter().map(|l| l.inputs).take(1).chain(net.layers.iter().map(|l| l.outputs));
    let mut rows = vec![0];
    rows.extend(sizes().chain(sizes()).scan(0, |sum, n| {
        *sum += n;
        Some(*sum)
    }));
    rows
}

impl<'a> NetVjp<'a> {
    /// Numbers of scratch that a network needs: activations, sums, bias.
    pub(crate) fn scratch(net: &Net) -> [usize; 3] {
        let rows = block_rows(net);
        let sums: usize = net.layers.iter().map(|l| (l.inputs + 1) * l.outputs).sum();
        [MAX_LANES * BLOCK * rows[rows.len() - 1], MAX_LANES * (sums + 1), net.layers[0].outputs]
    }

    /// With `scratch` of the lengths [`Self::scratch`].
    pub(crate) fn new(net: &'a Net, mults: [f64; 2], step: u64, scratch: &'a mut [f32]) -> Self {
        let lens = Self::scratch(net);
        let (block, scratch) = scratch.split_at_mut(lens[0]);
        let (sums, bias) = scratch.split_at_mut(lens[1]);
        let bias = &mut bias[..lens[2]];
        NetVjp { net, mults, step, rows: block_rows(net), block, sums, bias }
    }

    /// Before the first block.
    #[inline(always)]
    pub(crate) fn start<S: Simd>(&mut self, s: S) {
        self.net.time_bias(s, self.step, self.bias);
        S::as_mut_simd_f32s(self.sums).0.fill(s.splat_f32s(0.0));
    }

    /// Where a block's normalized features go, `[features, BLOCK]`.
    #[inline(always)]
    pub(crate) fn features<S: Simd>(&mut self, _: S) -> &mut [S::f32s] {
        &mut S::as_mut_simd_f32s(self.block).0[..self.net.layers[0].inputs * BLOCK]
    }

    /// One block, whose features are loaded, through the network and back: from the adjoint of the new
    /// parameters `params` `[n]` to that of the features, `features` `[features, n]`, both at `range`.
    #[inline(always)]
    pub(crate) fn block<S: Simd>(&mut self, s: S, range: Range<usize>, params: &[f32], features: &mut [f32]) {
        apart(s, Block { net: self, range, params, features });
    }

    #[inline(always)]
    fn run_block<S: Simd>(&mut self, s: S, range: Range<usize>, params: &[f32], features: &mut [f32]) {
        let layers = &self.net.layers;
        let depth = layers.len();
        let (inputs, adjoints) = self.rows.split_at(depth + 1);
        let (block, _) = S::as_mut_simd_f32s(self.block);
        let rows = |first: usize, len: usize| first * BLOCK..(first + len) * BLOCK;
        for (i, layer) in layers.iter().enumerate() {
            let (x, y) = block.split_at_mut(inputs[i + 1] * BLOCK);
            let bias = if i == 0 { &*self.bias } else { &layer.bias };
            let x = &x[rows(inputs[i], layer.inputs)];
            layer.forward::<S, COLUMNS, BLOCK>(s, Some(bias), x, y, After::of(i, depth));
        }
        // ā = −p̄ e, b̄ = ā a exp_mult
        let (exp_mult, step_mult) = (s.splat_f32s(self.mults[0] as f32), s.splat_f32s(-self.mults[1] as f32));
        let (out, out_adjoint) = (inputs[depth] * BLOCK, adjoints[depth] * BLOCK);
        let mut gains = [s.splat_f32s(0.0); BLOCK];
        for v in 0..BLOCK {
            let (direction, magnitude) = (block[out + v], block[out + BLOCK + v]);
            let p = load(s, &params[range.end.min(range.start + v * S::F32_LANES)..range.end]);
            let e = s.mul_f32s(step_mult, exp(s, s.mul_f32s(exp_mult, magnitude)));
            let a = s.mul_f32s(p, e);
            block[out_adjoint + v] = a;
            gains[v] = s.mul_f32s(a, direction);
            block[out_adjoint + BLOCK + v] = s.mul_f32s(gains[v], exp_mult);
        }
        let zero = s.splat_f32s(0.0);
        for (i, back) in self.net.back().iter().enumerate().rev() {
            let (before, after) = block.split_at_mut(adjoints[i + 1] * BLOCK);
            let (acts, to) = before.split_at_mut(adjoints[i] * BLOCK);
            let from = &after[..back.inputs * BLOCK];
            back.forward::<S, COLUMNS, BLOCK>(s, Some(&back.bias), from, to, After::Linear);
            if i > 0 {
                for (d, x) in to.iter_mut().zip(&acts[rows(inputs[i], back.outputs)]) {
                    // Not `x > 0`: NaN must pass.
                    let masked = s.select_f32s(s.less_than_or_equal_f32s(*x, zero), zero, *d);
                    // Without the sum it is compiled to a masked store: tens of cycles on AMD.
                    *d = s.add_f32s(masked, zero);
                }
            }
        }
        let n = params.len();
        for (f, x) in block[rows(adjoints[0], layers[0].inputs)].chunks_exact(BLOCK).enumerate() {
            for (to, x) in features[f * n..][range.clone()].chunks_mut(S::F32_LANES).zip(x) {
                store(s, to, *x);
            }
        }
        let (mut sums, _) = S::as_mut_simd_f32s(self.sums);
        for (i, layer) in layers.iter().enumerate() {
            let (weight, rest) = sums.split_at_mut(layer.inputs * layer.outputs * parts::<S>());
            let (bias, rest) = rest.split_at_mut(layer.outputs * parts::<S>());
            sums = rest;
            let d = &block[rows(adjoints[i + 1], layer.outputs)];
            add_outer::<S, BLOCK>(s, &block[rows(inputs[i], layer.inputs)], d, weight);
            for (b, d) in bias.chunks_exact_mut(parts::<S>()).zip(d.chunks_exact(BLOCK)) {
                let d: &[S::f32s; BLOCK] = d.first_chunk().expect("chunks of a block");
                for (part, b) in b.iter_mut().enumerate() {
                    let mut own = *b;
                    for turn in 0..BLOCK / parts::<S>() {
                        own = s.add_f32s(own, d[turn * parts::<S>() + part]);
                    }
                    *b = own;
                }
            }
        }
        for (part, sum) in sums[..parts::<S>()].iter_mut().enumerate() {
            let mut own = *sum;
            for turn in 0..BLOCK / parts::<S>() {
                own = s.add_f32s(own, gains[turn * parts::<S>() + part]);
            }
            *sum = own;
        }
    }

    /// `Σ ā a` over the blocks since the last call: the adjoint of the logarithm of a common factor of the steps.
    #[inline(always)]
    pub(crate) fn take_gain<S: Simd>(&mut self, s: S) -> f32 {
        let place: usize = self.net.layers.iter().map(|l| (l.inputs + 1) * l.outputs).sum();
        let sums = &mut S::as_mut_simd_f32s(self.sums).0[place * parts::<S>()..][..parts::<S>()];
        let gain = total(s, sums);
        sums.fill(s.splat_f32s(0.0));
        gain
    }

    /// Adds the sums over all blocks to theta's adjoint.
    #[inline(always)]
    pub(crate) fn add_theta<S: Simd>(&mut self, s: S, theta: &mut [f32]) {
        let time = time_features(s, self.step);
        let (mut sums, _) = S::as_mut_simd_f32s(self.sums);
        for (i, (layer, [w, b])) in self.net.layers.iter().zip(&self.net.ranges).enumerate() {
            let (weight, rest) = sums.split_at_mut(layer.inputs * layer.outputs * parts::<S>());
            let (bias, rest) = rest.split_at_mut(layer.outputs * parts::<S>());
            sums = rest;
            for (t, sum) in theta[w.clone()].iter_mut().zip(weight.chunks_exact(parts::<S>())) {
                *t += total(s, sum);
            }
            for (o, (t, sum)) in theta[b.clone()].iter_mut().zip(bias.chunks_exact(parts::<S>())).enumerate()
            {
                let sum = total(s, sum);
                *t += sum;
                if i == 0 {
                    self.bias[o] = sum;
                }
            }
            if i == 0 {
                // The time features' rows, if there are any, see the same adjoint as the bias.
                let rows = &mut theta[w.clone()][layer.inputs * layer.outputs..];
                debug_assert!(rows.is_empty() || rows.len() == time::COUNT * layer.outputs);
                for (row, f) in rows.chunks_exact_mut(layer.outputs).zip(time) {
                    for (t, b) in row.iter_mut().zip(&*self.bias) {
                        *t += f * b;
                    }
                }
            }
        }
    }
}
