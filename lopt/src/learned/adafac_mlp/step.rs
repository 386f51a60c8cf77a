//! [`AdafacKernel`]: one [`AdafacMlp`] update, tensor by tensor.
//!
//! The accumulators come first. Then blocks of a few vectors are turned into features twice: once for
//! the sums of squares, once for network and output rule; features live in L1 only. Tensors of rank 2
//! and more: see [`super::factored`]. Time features as in [`crate::learned::mlp_lopt::MlpKernel`].

use super::accumulators::{cut, four, Accumulators, Averages, Means, Repeated, Visit};
use super::factored::FactoredTensor;
use super::features::{load_block, vector_rows, Normalizer, Tensor, VectorTensor, RMS_EPSILON};
use super::DECAY_NAMES;
use crate::features::adafac::column_count;
use crate::features::{averages, normalize};
use crate::kernel::dense::{After, Dense};
use crate::kernel::net::{apply_step, Net, COLUMNS, MAX_LANES};
use crate::kernel::Path;
use crate::learned::AdafacMlp;
use crate::rule::{limit, Taped, UpdateRule};
use outerloop_core::simd::with_scratch;
use outerloop_core::{Entry, Key, Layout, OptState, Optimizer, Params, UpdateJvp, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Vectors per block.
pub(crate) const BLOCK: usize = COLUMNS;

/// [`AdafacMlp`] in f32 at one theta; weights are packed and decays computed once.
pub struct AdafacKernel {
    pub(crate) twin: Taped<AdafacMlp, f32>,
    pub(crate) path: Path,
    pub(crate) net: Net,
    /// The first layer of a factored tensor, of the features made per element; without bias.
    per_element: Dense,
    /// The first layer's weights of the other features, `[4, decays, units]`.
    factor_weights: Vec<f32>,
    /// Rates of momenta, RMS averages and factored second moments.
    pub(crate) rates: [Vec<f32>; 3],
    /// The rates' slopes in theta; 0 where a rate is clipped.
    pub(crate) rate_slopes: [Vec<f32>; 3],
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
        let mut rates: [Vec<f32>; 3] = [0, 1, 2].map(|i| {
            let rates = averages::learned_rates(&twin.theta(), DECAY_NAMES[i], &decays[i]);
            rates.iter().map(|r| r.data()[0]).collect()
        });
        // r = (1 − d) exp(10 θ); only the momenta's may leave [0, 1].
        let mut rate_slopes: [Vec<f32>; 3] =
            rates.clone().map(|rates| rates.iter().map(|r| 10.0 * r).collect());
        for (rates, slopes) in rates.iter_mut().zip(&mut rate_slopes).skip(1) {
            for (rate, slope) in rates.iter_mut().zip(slopes) {
                if *rate < 0.0 || *rate > 1.0 {
                    *slope = 0.0;
                }
                *rate = rate.clamp(0.0, 1.0);
            }
        }
        let counts = [0, 1, 2].map(|i: usize| rates[i].len());
        let (units, [before, after]) = (net.layers[0].outputs, FactoredTensor::parts(counts));
        let w = &theta[net.ranges[0][0].clone()];
        let factored = 4 * counts[2];
        let row = |i: usize| if i < before { i } else { i + factored };
        let per_element = Dense::new(before + after, vec![0.0; units], |i, o| w[row(i) * units + o]);
        let factor_weights = w[before * units..][..factored * units].to_vec();
        AdafacKernel { twin, path, net, per_element, factor_weights, rates, rate_slopes }
    }

    pub(crate) fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.rates[i].len())
    }

    /// Where the rates' parameters lie in theta.
    pub(crate) fn rate_places(&self) -> impl Iterator<Item = usize> {
        let layout = self.twin.rule().theta_layout();
        DECAY_NAMES.into_iter().flat_map(move |name| layout.get(name).expect("theta holds it").range())
    }
}

impl Optimizer<f32> for AdafacKernel {
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
        assert_eq!(grad.len(), state.params.len(), "AdafacMlp: length of the gradient");
        let grad = limit(grad);
        let grad = &*grad;
        let counts = self.counts();
        let units = self.net.layers[0].outputs;
        let (repeated, vectors) = (Repeated::Biases(units), BLOCK);
        let [rms_epsilon, moment_epsilon] = [RMS_EPSILON; 2];
        let averages = Averages { rates: &self.rates, rms_epsilon, moment_epsilon, repeated, vectors };
        let features = column_count(counts);
        let [expanded, row, col] = averages.scratch(&state.layout);
        let lens = [
            MAX_LANES * BLOCK * (vector_rows(counts) + 2 * self.net.widest()),
            MAX_LANES * features,
            expanded,
            row,
            col,
            features,
            units,
        ];
        let OptState { layout, params, slots, step, .. } = state;
        // The closure holds no vector code: it would not be compiled for the path's instructions.
        with_scratch(lens.iter().sum(), |mut scratch| {
            let [block, squares, expanded, row, col, scales, bias] = lens.map(|len| cut(&mut scratch, len));
            let (slots, scratch) = (four(slots), [expanded, row, col]);
            let accumulators = Accumulators { averages, grad, slots, scratch };
            let normalizer = Normalizer { block, squares, scales, epsilon: normalize::EPSILON };
            let rule = self.twin.rule();
            let (rows, mults) = (vector_rows(counts), [rule.exp_mult, rule.step_mult]);
            let passes = Passes { net: &self.net, rows, mults, normalizer };
            let visit = Update { kernel: self, passes, params, bias };
            self.path.run(Step { accumulators, layout, step: *step, visit });
        });
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<f32>> {
        Some(self)
    }
    fn update_jvp(&self) -> Option<&dyn UpdateJvp<f32>> {
        self.twin.update_jvp()
    }
}

struct Step<'a> {
    accumulators: Accumulators<'a>,
    layout: &'a Layout,
    /// Updates before this one.
    step: u64,
    visit: Update<'a>,
}

impl WithSimd for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Step { accumulators, layout, step, mut visit } = self;
        visit.kernel.net.time_bias(s, step, visit.bias);
        accumulators.run(s, layout, &mut visit);
    }
}

/// What an update does with a tensor.
struct Update<'a> {
    kernel: &'a AdafacKernel,
    passes: Passes<'a>,
    params: &'a mut [f32],
    /// The first layer's bias with its time part.
    bias: &'a mut [f32],
}

impl Visit for Update<'_> {
    #[inline(always)]
    fn vector<S: Simd>(&mut self, s: S, mut tensor: VectorTensor<'_>, _: Range<usize>) {
        let params = &mut self.params[tensor.range.clone()];
        self.passes.normalizer.run::<S, _, true>(s, &mut tensor, params, 0);
        let first = &self.kernel.net.layers[0];
        self.passes.apply(s, &mut tensor, (first, Some(self.bias)), params);
    }

    #[inline(always)]
    fn factored<S: Simd>(&mut self, s: S, _: &Entry, mut tensor: FactoredTensor<'_>, means: Means<'_>) {
        let kernel = self.kernel;
        tensor.biases(s, means.new, self.bias, &kernel.factor_weights);
        let params = &mut self.params[tensor.range.clone()];
        self.passes.normalizer.run::<S, _, true>(s, &mut tensor, params, 0);
        self.passes.apply(s, &mut tensor, (&kernel.per_element, None), params);
    }
}

/// The two passes over a tensor, and their scratch.
pub(crate) struct Passes<'a> {
    pub(crate) net: &'a Net,
    /// Rows of features and scratch in a block, at most.
    pub(crate) rows: usize,
    /// exp_mult and step_mult.
    pub(crate) mults: [f64; 2],
    /// Pass 1; its block also holds the features and activations of pass 2.
    pub(crate) normalizer: Normalizer<'a>,
}

impl Passes<'_> {
    /// Pass 2: network and output rule. `first`: the first layer, and its bias if blocks start from that.
    #[inline(always)]
    pub(crate) fn apply<S: Simd, T: Tensor>(
        &mut self,
        s: S,
        tensor: &mut T,
        first: (&Dense, Option<&[f32]>),
        params: &mut [f32],
    ) {
        let mut start = 0;
        while start < params.len() {
            let vectors = match (params.len() - start).div_ceil(S::F32_LANES) {
                1 => self.block::<S, T, 1, 1>(s, tensor, first, params, start),
                2 => self.block::<S, T, 2, 2>(s, tensor, first, params, start),
                _ => self.block::<S, T, COLUMNS, BLOCK>(s, tensor, first, params, start),
            };
            start += vectors * S::F32_LANES;
        }
    }

    /// One block of ROW vectors, V at a time through the network; returns ROW.
    #[inline(always)]
    fn block<S: Simd, T: Tensor, const V: usize, const ROW: usize>(
        &mut self,
        s: S,
        tensor: &mut T,
        (first, bias): (&Dense, Option<&[f32]>),
        params: &mut [f32],
        start: usize,
    ) -> usize {
        let net = self.net;
        let (block, _) = S::as_mut_simd_f32s(self.normalizer.block);
        let (x, units) = block.split_at_mut(self.rows * ROW);
        let units = &mut units[..2 * net.widest() * ROW];
        load_block::<S, T, ROW>(s, tensor, params, start, x, Some(&mut *units));
        for (scale, x) in self.normalizer.scales[..tensor.features()].iter().zip(x.chunks_exact_mut(ROW)) {
            let scale = s.splat_f32s(*scale);
            for x in x {
                *x = s.mul_f32s(*x, scale);
            }
        }
        let after = After::of(0, net.layers.len());
        first.forward::<S, V, ROW>(s, bias, &x[..first.inputs * ROW], units, after);
        let out = net.finish::<S, V, ROW>(s, units);
        let end = params.len().min(start + ROW * S::F32_LANES);
        apply_step::<S, ROW>(s, out, self.mults, &mut params[start..end]);
        ROW
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::learned::derivative::bits;
    use outerloop_core::contract::awkward_layout;
    use outerloop_core::{Layout, LearnedOptimizer};
    use std::sync::Arc;

    /// Sizes of the network, and several averages of each kind.
    pub(crate) fn rules() -> [AdafacMlp; 4] {
        let rule = |hidden_size, hidden_layers| AdafacMlp {
            hidden_size,
            hidden_layers,
            exp_mult: 0.1,
            step_mult: 0.02,
            ..AdafacMlp::default()
        };
        let several = AdafacMlp {
            initial_momentum_decays: vec![0.5, 0.9],
            initial_rms_decays: vec![0.9, 0.95],
            initial_adafactor_decays: vec![0.8, 0.9],
            ..rule(5, 1)
        };
        [rule(4, 2), rule(32, 2), rule(7, 0), several]
    }

    /// Shapes of many kinds.
    pub(crate) fn layouts() -> Vec<Arc<Layout>> {
        let mut layouts = vec![awkward_layout()];
        let shapes: [&[usize]; 16] = [
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
            &[5, 4, 1],
            &[64, 40],
            &[2000],
            &[0],
        ];
        layouts.extend(shapes.map(|s| Arc::new(Layout::new([("x", s.to_vec())]))));
        layouts
    }

    /// `huge`: the first gradient of the third update, whose square is infinite.
    fn run(opt: &dyn Optimizer<f32>, layout: &Arc<Layout>, steps: u64, huge: Option<f32>) -> OptState<f32> {
        let key = Key::new(8);
        let mut params = Params::zeros(layout.clone());
        key.fill_normal(&mut params.data);
        let mut state = opt.init(&params, Some(50), key);
        let mut grad = vec![0.0; layout.len()];
        for t in 0..steps {
            key.fold_in(t).fill_normal(&mut grad);
            if let (2, Some(first), Some(huge)) = (t, grad.first_mut(), huge) {
                *first = huge;
            }
            opt.update(&mut state, &grad, 0.0, key);
        }
        state
    }

    #[test]
    fn fifty_steps_agree_with_the_twin() {
        check_steps(50, None);
    }

    #[test]
    fn one_huge_gradient_does_what_it_does_to_the_twin() {
        check_steps(5, Some(1e20));
    }

    fn check_steps(steps: u64, huge: Option<f32>) {
        let layouts = layouts();
        for rule in rules() {
            let mut theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
            theta.iter_mut().enumerate().for_each(|(i, t)| *t += 0.01 * (i as f32).sin());
            for layout in &layouts {
                let want = run(&Taped::<_, f32>::new(rule.clone(), &theta), layout, steps, huge);
                let mut first = None;
                for path in Path::available() {
                    let got = run(&AdafacKernel::new(rule.clone(), &theta, path), layout, steps, huge);
                    let bits = bits(&got);
                    let first = first.get_or_insert_with(|| bits.clone());
                    assert!(*first == bits, "bits on {path:?}: {rule:?} {layout:?}");
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
