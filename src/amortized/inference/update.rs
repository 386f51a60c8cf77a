//! The network that moves λ: two highway layers, a head per parameter and per gate.
//!
//! `h₀ = s₀ (W e) + (1 − s₀) elu(W₀ e)` with the gate `s₀ = σ(V₀ e)`, `h₁ = s₁ h₀ + (1 − s₁) elu(W₁ h₀)`, `s₁ = σ(V₁ h₀)`.
//! Gated: `μ ← a μ + (1 − a) m(h₁)`, `a = σ(gate(h₁))`; likewise `ln σ²`, clamped. Learned SGD: `μ ← μ − a g + m(h₁)`.

use crate::net::{linear, Act, Init};
use crate::problem::Rows;
use crate::rows::mix;
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, DynParams, Float, Mode};
use outerloop_core::{Key, Layout};

/// How the network's outputs move λ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// A gated mixture of the old value and the network's.
    #[default]
    Gated,
    /// A gated gradient step plus the network's offset.
    LearnedSgd,
}

/// Where log-variances are clamped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Lowest; default −15.
    pub low: f64,
    /// Highest; default 15.
    pub high: f64,
    /// Whether the network's own output is clamped before it is mixed, too; default true.
    pub inner: bool,
}

impl Default for Clamp {
    fn default() -> Self {
        Clamp { low: -15.0, high: 15.0, inner: true }
    }
}

/// The network: 18 tensors, `init`, `layer0`, `gate0`, `layer1`, `gate1`, `mean`, `logvar`, `mean_gate`, `logvar_gate`,
/// each `w` `[I, O]` and `b` `[O]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateNet {
    /// Length of the encoding.
    pub inputs: usize,
    /// Width of the two layers.
    pub hidden: usize,
    /// Latent dimensions Z.
    pub latent: usize,
    /// Default: gated.
    pub rule: Rule,
    /// Default: ±15, both.
    pub clamp: Clamp,
}

/// The layers' names and whether they read the encoding, and write hidden units.
const LAYERS: [(&str, bool, bool); 9] = [
    ("init", true, true),
    ("layer0", true, true),
    ("gate0", true, true),
    ("layer1", false, true),
    ("gate1", false, true),
    ("mean", false, false),
    ("logvar", false, false),
    ("mean_gate", false, false),
    ("logvar_gate", false, false),
];

impl UpdateNet {
    /// Number of parameter tensors.
    pub const TENSORS: usize = 2 * LAYERS.len();

    /// A gated network.
    pub fn new(inputs: usize, hidden: usize, latent: usize) -> Self {
        UpdateNet { inputs, hidden, latent, rule: Rule::Gated, clamp: Clamp::default() }
    }

    fn shape(&self, layer: usize) -> [usize; 2] {
        let (_, reads_encoding, writes_hidden) = LAYERS[layer];
        let inputs = if reads_encoding { self.inputs } else { self.hidden };
        [inputs, if writes_hidden { self.hidden } else { self.latent }]
    }

    /// Appends the parameters, names after a prefix.
    pub fn push(&self, layout: &mut Layout, prefix: &str) {
        for (i, (name, ..)) in LAYERS.iter().enumerate() {
            let [inputs, outputs] = self.shape(i);
            layout.push(format!("{prefix}{name}/w"), vec![inputs, outputs]);
            layout.push(format!("{prefix}{name}/b"), vec![outputs]);
        }
    }
    /// Number of parameters.
    pub fn len(&self) -> usize {
        (0..LAYERS.len()).map(|i| (self.shape(i)[0] + 1) * self.shape(i)[1]).sum()
    }
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Writes initial values, [`Self::len`] of them: Glorot uniform, biases 0.
    pub fn fill(&self, key: Key, out: &mut [f64]) {
        let mut rest = out;
        for i in 0..LAYERS.len() {
            let [inputs, outputs] = self.shape(i);
            let (w, tail) = rest.split_at_mut(inputs * outputs);
            let (b, tail) = tail.split_at_mut(outputs);
            Init::Glorot.fill([inputs, outputs], key.fold_in(i as u64), w, b);
            rest = tail;
        }
    }

    /// The next `[μ, ln σ²]`, each `[N, Z]`. `encoding` `[N, I]`; `gradient`: those of the objective by μ and `ln σ²`, which
    /// only [`Rule::LearnedSgd`] reads; `first`: position of `init/w`.
    pub fn update<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        first: usize,
        encoding: Rows<E, B, M>,
        [mu, log_variance]: [Rows<E, B, M>; 2],
        gradient: Option<[Rows<E, B, M>; 2]>,
    ) -> [Rows<E, B, M>; 2] {
        let layer = |i: usize, x: &Rows<E, B, M>, act: Act| {
            linear(params, first + 2 * i, x.clone(), self.shape(i)[1], act)
        };
        let gate = |i: usize, x: &Rows<E, B, M>| layer(i, x, Act::Sigmoid);
        let h = mix(gate(2, &encoding), &layer(0, &encoding, Act::Identity), &layer(1, &encoding, Act::Elu));
        let h = mix(gate(4, &h), &h, &layer(3, &h, Act::Elu));
        let (mean, spread) = (layer(5, &h, Act::Identity), layer(6, &h, Act::Identity));
        let (a, b) = (gate(7, &h), gate(8, &h));
        let clamp = |x| ops::clip(x, self.clamp.low, self.clamp.high);
        match (self.rule, gradient) {
            (Rule::LearnedSgd, Some([g_mu, g_spread])) => {
                let next = |x, gate, g, offset| ops::add(ops::sub(x, &ops::mul(gate, &g)), &offset);
                [next(mu, a, g_mu, mean), clamp(next(log_variance, b, g_spread, spread))]
            }
            (Rule::LearnedSgd, None) => panic!("learned SGD needs gradients"),
            (Rule::Gated, _) => {
                let spread = if self.clamp.inner { clamp(spread) } else { spread };
                [mix(a, &mu, &mean), clamp(mix(b, &log_variance, &spread))]
            }
        }
    }
}
