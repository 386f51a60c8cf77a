//! [`AdafacKernel`]: one [`AdafacMlp`] update, tensor by tensor.
//!
//! The accumulators come first. Then blocks of a few vectors are turned into features twice: once for
//! the sums of squares, once for network and output rule; features live in L1 only. Row and column
//! means and their roots are computed once per row and column and repeated into the blocks. Time
//! features as in [`super::MlpKernel`].

use super::adafac_features::{parts_lens, update_factored, Tensor};
use super::net::{apply_step, Net, COLUMNS, MAX_LANES};
use super::Path;
use crate::adafac_mlp::DECAY_NAMES;
use crate::features::adafac::column_count;
use crate::features::factored::Factored;
use crate::features::{averages, normalize};
use crate::{AdafacMlp, Taped, UpdateRule};
use outerloop_core::simd::{load, store, with_scratch};
use outerloop_core::{Entry, Key, OptState, Optimizer, Params, UpdateVjp};
use pulp::{Simd, WithSimd};

/// [`AdafacMlp`] in f32 at one theta; weights are packed and decays computed once. The derivative is
/// its twin's.
pub struct AdafacKernel {
    twin: Taped<AdafacMlp, f32>,
    path: Path,
    net: Net,
    /// Rates of momenta, RMS averages and factored second moments.
    rates: [Vec<f32>; 3],
}

impl AdafacKernel {
    /// The optimizer of `theta` on a chosen path.
    ///
    /// # Panics
    /// If `theta` has not the length of the rule's layout.
    #[track_caller]
    pub fn new(rule: AdafacMlp, theta: &[f32], path: Path) -> Self {
        let layout = rule.theta_layout();
        let net = Net::new(&rule.net().network(), &layout, theta);
        let decays = rule.net().decays.map(<[f64]>::to_vec);
        let twin = Taped::new(rule, theta);
        let rates = [0, 1, 2].map(|i| {
            let rates = averages::learned_rates(&twin.theta(), DECAY_NAMES[i], &decays[i]);
            let clipped = |r: f32| if i == 0 { r } else { r.clamp(0.0, 1.0) };
            rates.iter().map(|r| clipped(r.data()[0])).collect()
        });
        AdafacKernel { twin, path, net, rates }
    }

    fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.rates[i].len())
    }
}

impl Optimizer<f32> for AdafacKernel {
    fn name(&self) -> String {
        self.twin.name()
    }
    fn init(&self, params: &Params<f32>, num_steps: Option<u64>, key: Key) -> OptState<f32> {
        self.twin.init(params, num_steps, key)
    }
    fn update(&self, state: &mut OptState<f32>, grad: &[f32], _loss: f32, _key: Key) {
        assert_eq!(grad.len(), state.params.len(), "AdafacMlp: length of the gradient");
        let counts = self.counts();
        let lens = state.layout.entries().iter().map(|e| parts_lens(&Factored::new(&e.shape), counts[2]));
        let parts = lens.fold([0, 0], |[r, c], [row, col]| [r.max(row), c.max(col)]);
        let rows = Tensor::rows(counts) + 2 * self.net.widest();
        let lens = [MAX_LANES * COLUMNS * rows, MAX_LANES * column_count(counts)];
        let rest = parts[0] + parts[1] + self.net.layers[0].outputs;
        // The closure holds no vector code: it would not be compiled for the path's instructions.
        with_scratch(lens[0] + lens[1] + rest, |scratch| {
            let (block, scratch) = scratch.split_at_mut(lens[0]);
            let (squares, scratch) = scratch.split_at_mut(lens[1]);
            let (row_parts, scratch) = scratch.split_at_mut(parts[0]);
            let (col_parts, bias) = scratch.split_at_mut(parts[1]);
            self.path.run(Step { kernel: self, state, grad, block, squares, row_parts, col_parts, bias });
        });
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<f32>> {
        self.twin.update_vjp()
    }
}

struct Step<'a> {
    kernel: &'a AdafacKernel,
    state: &'a mut OptState<f32>,
    grad: &'a [f32],
    /// Features and activations of one block.
    block: &'a mut [f32],
    /// Sums of squares per feature, in vectors.
    squares: &'a mut [f32],
    row_parts: &'a mut [f32],
    col_parts: &'a mut [f32],
    /// The first layer's bias with its time part.
    bias: &'a mut [f32],
}

impl WithSimd for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let rates = &self.kernel.rates;
        self.kernel.net.time_bias(s, self.state.step, self.bias);
        let [momentum, rms, ..] = &mut self.state.slots[..] else { unreachable!("four slots") };
        average::<S, false>(s, &mut momentum.data, self.grad, &rates[0]);
        average::<S, true>(s, &mut rms.data, self.grad, &rates[1]);
        let layout = self.state.layout.clone();
        let mut starts = [0, 0];
        for entry in layout.entries().iter().filter(|e| e.numel() > 0) {
            self.tensor(s, entry, &mut starts);
        }
    }
}

/// `a ← (1 − r) a + r x` for every rate; x is the gradient or its square.
#[inline(always)]
fn average<S: Simd, const SQUARE: bool>(s: S, slot: &mut [f32], grad: &[f32], rates: &[f32]) {
    for (slot, rate) in slot.chunks_exact_mut(grad.len().max(1)).zip(rates) {
        let (keep, rate) = (s.splat_f32s(1.0 - rate), s.splat_f32s(*rate));
        for (a, g) in slot.chunks_mut(S::F32_LANES).zip(grad.chunks(S::F32_LANES)) {
            let g = load(s, g);
            let x = if SQUARE { s.mul_f32s(g, g) } else { g };
            let next = s.mul_add_e_f32s(rate, x, s.mul_f32s(keep, load(s, a)));
            store(s, a, next);
        }
    }
}

impl Step<'_> {
    /// Updates one tensor; `starts`: where its row and column accumulators lie.
    #[inline(always)]
    fn tensor<S: Simd>(&mut self, s: S, entry: &Entry, starts: &mut [usize; 2]) {
        let kernel = self.kernel;
        let (counts, rates) = (kernel.counts(), &kernel.rates[2]);
        let factored = Factored::new(&entry.shape);
        let lens = factored.lens().map(|len| counts[2] * len);
        let parts = parts_lens(&factored, counts[2]);
        let [momentum, rms, row, col] = &mut self.state.slots[..] else { unreachable!("four slots") };
        let row = &mut row.data[starts[0]..starts[0] + lens[0]];
        let col = &mut col.data[starts[1]..starts[1] + lens[1]];
        *starts = [starts[0] + lens[0], starts[1] + lens[1]];
        let (row_parts, col_parts) = (&mut self.row_parts[..parts[0]], &mut self.col_parts[..parts[1]]);
        let grad = &self.grad[entry.range()];
        update_factored(
            s,
            &factored,
            grad,
            rates,
            [&mut *row, &mut *col],
            [&mut *row_parts, &mut *col_parts],
        );

        let (block, _) = S::as_mut_simd_f32s(self.block);
        let (squares, _) = S::as_mut_simd_f32s(self.squares);
        let features = column_count(counts);
        squares.fill(s.splat_f32s(0.0));
        let rule = kernel.twin.rule();
        let mults = [rule.exp_mult, rule.step_mult];
        let numel = entry.numel();
        // Pass 1 sums squares, pass 2 applies the network.
        for pass in [1, 2] {
            let mut start = 0;
            while start < numel {
                let tensor = Tensor {
                    range: entry.range(),
                    counts,
                    grad: self.grad,
                    params: &self.state.params,
                    momentum: &momentum.data,
                    rms: &rms.data,
                    row,
                    col,
                    row_parts,
                    col_parts,
                    factored: &factored,
                };
                let vectors = (numel - start).div_ceil(S::F32_LANES).min(COLUMNS);
                match vectors {
                    1 => tensor.load::<S, 1>(s, start, block),
                    2 => tensor.load::<S, 2>(s, start, block),
                    _ => tensor.load::<S, COLUMNS>(s, start, block),
                }
                let end = numel.min(start + vectors * S::F32_LANES);
                let (x, rest) = block.split_at_mut(Tensor::rows(counts) * vectors);
                if pass == 1 {
                    for (sum, x) in squares[..features].iter_mut().zip(x.chunks_exact(vectors)) {
                        for x in x {
                            *sum = s.mul_add_e_f32s(*x, *x, *sum);
                        }
                    }
                } else {
                    for (scale, x) in squares[..features].iter().zip(x.chunks_exact_mut(vectors)) {
                        for x in x {
                            *x = s.mul_f32s(*x, *scale);
                        }
                    }
                    let params = &mut self.state.params[entry.range()][start..end];
                    match vectors {
                        1 => finish::<S, 1>(s, &kernel.net, self.bias, x, rest, mults, params),
                        2 => finish::<S, 2>(s, &kernel.net, self.bias, x, rest, mults, params),
                        _ => finish::<S, COLUMNS>(s, &kernel.net, self.bias, x, rest, mults, params),
                    }
                }
                start = end;
            }
            if pass == 1 {
                for sum in &mut squares[..features] {
                    let mean = s.reduce_sum_f32s(*sum) / numel as f32;
                    *sum = s.splat_f32s((mean + normalize::EPSILON as f32).sqrt().recip());
                }
            }
        }
    }
}

/// The network on one block of normalized features, and the output rule.
#[inline(always)]
fn finish<S: Simd, const V: usize>(
    s: S,
    net: &Net,
    bias: &[f32],
    x: &[S::f32s],
    units: &mut [S::f32s],
    mults: [f64; 2],
    params: &mut [f32],
) {
    let x = &x[..net.layers[0].inputs * V];
    let out = net.forward::<S, V>(s, bias, x, units);
    apply_step::<S, V>(s, out, mults, params);
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::contract::awkward_layout;
    use outerloop_core::{Layout, LearnedOptimizer};
    use std::sync::Arc;

    fn run(opt: &dyn Optimizer<f32>, layout: &Arc<Layout>, steps: u64) -> OptState<f32> {
        let key = Key::new(8);
        let mut params = Params::zeros(layout.clone());
        key.fill_normal(&mut params.data);
        let mut state = opt.init(&params, Some(50), key);
        let mut grad = vec![0.0; layout.len()];
        for t in 0..steps {
            key.fold_in(t).fill_normal(&mut grad);
            opt.update(&mut state, &grad, 0.0, key);
        }
        state
    }

    #[test]
    fn fifty_steps_agree_with_the_twin() {
        let mut layouts = vec![awkward_layout()];
        let shapes: [&[usize]; 13] = [
            &[10],
            &[],
            &[1],
            &[1, 1],
            &[1, 5],
            &[5, 1],
            &[7, 33],
            &[33, 7],
            &[6, 6],
            &[2, 3, 4, 5],
            &[5, 4, 3, 2],
            &[4, 9, 4],
            &[0],
        ];
        layouts.extend(shapes.map(|s| Arc::new(Layout::new([("x", s.to_vec())]))));
        let rule =
            |hidden_size, hidden_layers| AdafacMlp { hidden_size, hidden_layers, ..Default::default() };
        let two_rms = AdafacMlp {
            initial_momentum_decays: vec![0.5, 0.9],
            initial_rms_decays: vec![0.9, 0.95],
            initial_adafactor_decays: vec![0.8, 0.9],
            ..rule(5, 1)
        };
        for rule in [rule(4, 2), rule(32, 2), rule(7, 0), two_rms] {
            let rule = AdafacMlp { exp_mult: 0.1, step_mult: 0.02, ..rule };
            let mut theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
            theta.iter_mut().enumerate().for_each(|(i, t)| *t += 0.01 * (i as f32).sin());
            for layout in &layouts {
                let want = run(&Taped::<_, f32>::new(rule.clone(), &theta), layout, 50);
                for path in Path::available() {
                    let got = run(&AdafacKernel::new(rule.clone(), &theta, path), layout, 50);
                    let close = |name: &str, a: &[f32], b: &[f32]| {
                        for (i, (a, b)) in a.iter().zip(b).enumerate() {
                            let error = (a - b).abs();
                            assert!(
                                error <= 1e-4 * (0.1 + b.abs()),
                                "{rule:?} {path:?} {layout:?} {name} {i}: {a} {b}"
                            );
                        }
                    };
                    close("params", &got.params, &want.params);
                    for (got, want) in got.slots.iter().zip(&want.slots) {
                        close(&got.name, &got.data, &want.data);
                    }
                }
            }
        }
    }

    #[test]
    fn nan_spreads_in_its_own_tensor_only() {
        let rule = AdafacMlp::default();
        let theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
        let layout = Arc::new(Layout::new([("a", vec![5, 4]), ("b", vec![30])]));
        for path in Path::available() {
            let opt = AdafacKernel::new(rule.clone(), &theta, path);
            let mut state = opt.init(&Params::zeros(layout.clone()), None, Key::new(0));
            let mut grad = vec![1.0; 50];
            grad[2] = f32::NAN;
            opt.update(&mut state, &grad, 0.0, Key::new(0));
            assert!(state.params[..20].iter().all(|p| p.is_nan()), "{path:?}");
            assert!(state.params[20..].iter().all(|p| p.is_finite()), "{path:?}");
        }
    }
}
