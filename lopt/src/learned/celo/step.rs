//! [`CeloKernel`]: one [`Celo`] update, tensor by tensor, as in [`crate::learned::adafac_mlp::AdafacKernel`].
//!
//! For one set of weights, so that the network is the same at every step, and without preconditioning.

use super::packed::PackedScheduler;
use super::{Celo, RMS_EPSILON, SIZE_EPSILON};
use crate::features::{adafac, normalize};
use crate::kernel::dense::Dense;
use crate::kernel::dot::mean_square;
use crate::kernel::net::{Net, MAX_LANES};
use crate::kernel::Path;
use crate::learned::adafac_mlp::accumulators::{cut, four, Accumulators, Averages, Means, Repeated, Visit};
use crate::learned::adafac_mlp::clipped::{more_rows, network_places, Clipped};
use crate::learned::adafac_mlp::factored::FactoredTensor;
use crate::learned::adafac_mlp::features::{vector_rows, Normalizer, VectorTensor};
use crate::learned::adafac_mlp::step::{Passes, BLOCK};
use crate::learned::celo2::step::clip_all;
use crate::learned::mixed_net;
use crate::rule::{Taped, UpdateRule};
use outerloop_core::simd::with_scratch;
use outerloop_core::{Entry, Key, Layout, OptState, Optimizer, Params, Result, UpdateJvp, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// [`Celo`] in f32 at one theta, with packed weights.
pub struct CeloKernel {
    pub(super) twin: Taped<Celo, f32>,
    pub(super) path: Path,
    /// Without the third output, which nothing reads.
    pub(super) net: Net,
    /// Where the network's weights and biases lie in theta, in the order of `net.ranges`.
    pub(super) places: Vec<usize>,
    /// The first layer of a factored tensor, of the features made per element; without bias.
    per_element: Dense,
    /// The first layer's weights of the other features, `[4, decays, units]`.
    factor_weights: Vec<f32>,
    /// Rates of momenta, RMS averages and factored second moments.
    pub(super) rates: [Vec<f32>; 3],
    pub(super) schedule: PackedScheduler,
}

impl CeloKernel {
    /// Whether there is a kernel for these settings.
    pub(super) fn serves(rule: &Celo) -> bool {
        rule.param_inits == 1 && !rule.precondition_output
    }

    /// The optimizer of `theta` on a chosen path.
    ///
    /// # Panics
    /// If `theta` has not the length of the rule's layout, or the rule has several sets of weights or
    /// preconditions its step.
    #[track_caller]
    pub fn new(rule: Celo, theta: &[f32], path: Path) -> Self {
        assert!(CeloKernel::serves(&rule), "CeloKernel: needs one set of weights, without preconditioning");
        let layout = rule.theta_layout();
        let range =
            |tensor: &str| layout.get(&mixed_net::name(tensor)).expect("theta holds the network").range();
        let rates = rule.decays().map(|d| d.iter().map(|d| (1.0 - d) as f32).collect::<Vec<_>>());
        let counts = [0, 1, 2].map(|i: usize| rates[i].len());
        let (places, ranges) = network_places(&rule.net().sizes(), counts, &range);
        let packed: Vec<f32> = places.iter().map(|p| theta[*p]).collect();
        let net = Net::without_time(ranges, &packed);
        let (units, [before, after]) = (net.layers[0].outputs, FactoredTensor::parts(counts));
        let factored = 4 * counts[2];
        let row = |i: usize| if i < before { i } else { i + factored };
        let inputs = before + after + more_rows(counts);
        let per_element = Dense::new(inputs, vec![0.0; units], |i, o| packed[row(i) * units + o]);
        let factor_weights = packed[before * units..][..factored * units].to_vec();
        let schedule = PackedScheduler::new(rule.scheduler(), &layout, theta, path);
        CeloKernel {
            net,
            places,
            per_element,
            factor_weights,
            rates,
            path,
            schedule,
            twin: Taped::new(rule, theta),
        }
    }
}

/// The size S of a tensor with this mean square, and whether it is at its limit.
pub(super) fn size(rule: &Celo, mean_square: f32, n: usize) -> (f32, bool) {
    if !rule.param_scale_mult {
        return (1.0, true);
    }
    let size = (mean_square + SIZE_EPSILON as f32).sqrt();
    match rule.clip_param_scale_amount.map(|amount| (amount * (n as f64).sqrt()) as f32) {
        Some(limit) if size > limit => (limit, true),
        _ => (size, false),
    }
}

impl Optimizer<f32> for CeloKernel {
    fn name(&self) -> String {
        self.twin.name()
    }
    fn describe(&self) -> String {
        self.twin.describe()
    }
    fn init(&self, params: &Params<f32>, num_steps: Option<u64>, key: Key) -> OptState<f32> {
        self.twin.init(params, num_steps, key)
    }
    fn validate(&self) -> Result<()> {
        self.twin.validate()
    }
    fn update(&self, state: &mut OptState<f32>, grad: &[f32], loss: f32, _key: Key) {
        assert_eq!(grad.len(), state.params.len(), "Celo: length of the gradient");
        let rule = self.twin.rule();
        let rate = self.schedule.step(state, loss);
        let rate = if rule.train_phase == 1 { 1.0 } else { f64::from(rate) };
        let counts = [0, 1, 2].map(|i: usize| self.rates[i].len());
        let units = self.net.layers[0].outputs;
        let averages = Averages {
            rates: &self.rates,
            rms_epsilon: RMS_EPSILON as f32,
            moment_epsilon: 0.0,
            repeated: Repeated::Biases(units),
            vectors: BLOCK,
        };
        let rows = vector_rows(counts) + more_rows(counts);
        let features = adafac::column_count(counts) + more_rows(counts);
        let [expanded, row, col] = averages.scratch(&state.layout);
        let lens = [
            MAX_LANES * BLOCK * (rows + 2 * self.net.widest()),
            MAX_LANES * features,
            features,
            expanded,
            row,
            col,
            grad.len(),
        ];
        let OptState { layout, params, slots, .. } = state;
        with_scratch(lens.iter().sum(), |mut scratch| {
            let [block, squares, scales, expanded, row, col, clipped] =
                lens.map(|len| cut(&mut scratch, len));
            let (grad, slots, scratch) =
                (clip_all(grad, clipped), four(&mut slots[..4]), [expanded, row, col]);
            let accumulators = Accumulators { averages, grad, slots, scratch };
            let normalizer = Normalizer { block, squares, scales, epsilon: normalize::EPSILON };
            let passes = Passes { net: &self.net, rows, mults: [rule.exp_mult, 0.0], normalizer };
            let visit = Update { kernel: self, passes, params, rate: rate * rule.step_mult };
            self.path.run(Step { accumulators, layout, visit });
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
    visit: Update<'a>,
}

impl WithSimd for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Step { accumulators, layout, mut visit } = self;
        accumulators.run(s, layout, &mut visit);
    }
}

/// What an update does with a tensor.
struct Update<'a> {
    kernel: &'a CeloKernel,
    passes: Passes<'a>,
    params: &'a mut [f32],
    /// Step per size of a tensor.
    rate: f64,
}

impl Update<'_> {
    /// The factor of a tensor's step.
    #[inline(always)]
    fn factor<S: Simd>(&self, s: S, range: &Range<usize>) -> f64 {
        let square = mean_square(s, &self.params[range.clone()]);
        self.rate * f64::from(size(self.kernel.twin.rule(), square, range.len()).0)
    }
}

impl Visit for Update<'_> {
    #[inline(always)]
    fn vector<S: Simd>(&mut self, s: S, tensor: VectorTensor<'_>, _: Range<usize>) {
        let range = tensor.range.clone();
        self.passes.mults[1] = self.factor(s, &range);
        let (mut tensor, params) = (Clipped(tensor), &mut self.params[range]);
        self.passes.normalizer.run::<S, _, true>(s, &mut tensor, params, 0);
        let first = &self.kernel.net.layers[0];
        self.passes.apply(s, &mut tensor, (first, Some(&first.bias)), params);
    }

    #[inline(always)]
    fn factored<S: Simd>(&mut self, s: S, _: &Entry, mut tensor: FactoredTensor<'_>, means: Means<'_>) {
        let (kernel, range) = (self.kernel, tensor.range.clone());
        self.passes.mults[1] = self.factor(s, &range);
        tensor.biases(s, means.new, &kernel.net.layers[0].bias, &kernel.factor_weights);
        let (mut tensor, params) = (Clipped(tensor), &mut self.params[range]);
        self.passes.normalizer.run::<S, _, true>(s, &mut tensor, params, 0);
        self.passes.apply(s, &mut tensor, (&kernel.per_element, None), params);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::learned::adafac_mlp::step::tests::layouts;
    use crate::learned::derivative::bits;
    use outerloop_core::LearnedOptimizer;
    use std::sync::Arc;

    /// Both phases, other sizes, several averages, limits and switches.
    pub(crate) fn rules() -> [Celo; 4] {
        let rule = Celo {
            lstm_hidden_size: 6,
            param_inits: 1,
            train_phase: 2,
            exp_mult: 0.1,
            step_mult: 0.1,
            ..Celo::default()
        };
        let several = Celo {
            initial_momentum_decays: vec![0.5, 0.9],
            initial_rms_decays: vec![0.9, 0.95],
            initial_adafactor_decays: vec![0.8, 0.9],
            ff_hidden_size: 5,
            ff_hidden_layers: 1,
            clip_param_scale_amount: Some(0.05),
            rnn_state_decay: 0.1,
            with_validation_feature_dim: true,
            validation_mode: true,
            ..rule.clone()
        };
        [
            Celo { train_phase: 1, ff_hidden_size: 8, ..rule.clone() },
            Celo { param_scale_mult: false, mix_layers: false, ff_hidden_layers: 0, ..rule.clone() },
            several,
            rule,
        ]
    }

    pub(crate) fn theta(rule: &Celo) -> Vec<f32> {
        let mut theta = LearnedOptimizer::<f32>::init(rule, Key::new(6));
        theta.iter_mut().enumerate().for_each(|(i, t)| *t += 0.05 * (i as f32).sin());
        theta
    }

    fn run(opt: &dyn Optimizer<f32>, layout: &Arc<Layout>, steps: u64) -> OptState<f32> {
        let key = Key::new(8);
        let mut params = Params::zeros(layout.clone());
        key.fill_normal(&mut params.data);
        let mut state = opt.init(&params, Some(steps), key);
        let mut grad = vec![0.0; layout.len()];
        for t in 0..steps {
            key.fold_in(t).fill_normal(&mut grad);
            if let (3, Some(first)) = (t, grad.first_mut()) {
                *first = 1e6;
            }
            opt.update(&mut state, &grad, 2.0 / (1.0 + t as f32), key);
        }
        state
    }

    #[test]
    fn fifty_steps_agree_with_the_twin() {
        let layouts = layouts();
        for rule in rules() {
            let theta = theta(&rule);
            for layout in &layouts {
                let want = run(&Taped::<_, f32>::new(rule.clone(), &theta), layout, 50);
                let mut first = None;
                for path in Path::available() {
                    let got = run(&CeloKernel::new(rule.clone(), &theta, path), layout, 50);
                    let bits = bits(&got);
                    let first = first.get_or_insert_with(|| bits.clone());
                    assert!(*first == bits, "bits on {path:?}: {rule:?} {layout:?}");
                    let close = |name: &str, a: &[f32], b: &[f32]| {
                        for (i, (a, b)) in a.iter().zip(b).enumerate() {
                            let error = (a - b).abs();
                            assert!(
                                error <= 3e-4 * (0.1 + b.abs()),
                                "{rule:?} {path:?} {layout:?} {name} {i}: {a} {b}"
                            );
                        }
                    };
                    close("params", &got.params, &want.params);
                    for (got, want) in got.slots.iter().zip(&want.slots) {
                        close(&got.name, &got.data, &want.data);
                        if got.name.starts_with("lstm") || got.name.starts_with("loss") {
                            assert_eq!(got.data, want.data, "{}", got.name);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nan_spreads_in_its_own_tensor_only() {
        let rule = Celo::published();
        let theta = theta(&rule);
        let layout = Arc::new(Layout::new([("a", vec![5, 4]), ("b", vec![30])]));
        for path in Path::available() {
            let opt = CeloKernel::new(rule.clone(), &theta, path);
            let mut state = opt.init(&Params::zeros(layout.clone()), Some(9), Key::new(0));
            let mut grad = vec![1.0; 50];
            grad[2] = f32::NAN;
            opt.update(&mut state, &grad, 0.0, Key::new(0));
            assert!(state.params[..20].iter().all(|p| p.is_nan()), "{path:?}");
            assert!(state.params[20..].iter().all(|p| p.is_finite()), "{path:?}");
        }
    }
}
