//! Optimizers that scale the step of every tensor by norms: LAMB, LARS, Fromage.

use super::adam::{adam_coeffs, adam_on_graph};
use super::graph::{map, Graph, Var};
use super::tensorwise::zeros;
use super::{At, MomentumKind, Schedule, Tensorwise};
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Float, Interval, Result};
use serde::{Deserialize, Serialize};

/// `trust |p|/(|u| + ε)`; 1 if either norm is 0.
fn trust_ratio<E: Float>(graph: &mut Graph<E>, p: Var, u: Var, trust: f64, epsilon: f64) -> Var {
    let (p, u) = (graph.norm(p), graph.norm(u));
    map!(graph, [p, u], |k; p, u| {
        let ratio = k(trust) * p / (u + k(epsilon));
        Scalar::select(p.value() == 0.0 || u.value() == 0.0, k(1.0), ratio)
    })
}

/// LAMB: AdamW's direction `u = m̂/(√(v̂+ε_root)+ε) + λ p`, scaled per tensor:
/// `p ← p − lr (|p|/|u|) u` (factor 1 if either norm is 0).
///
/// Reference: You et al. 2019, arXiv:1904.00962; defaults of optax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lamb {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// Default 0.9.
    pub beta1: f64,
    /// Default 0.999.
    pub beta2: f64,
    /// Added outside the root; default 1e-6.
    pub epsilon: f64,
    /// Added inside the root; default 0.
    pub epsilon_root: f64,
    /// λ; default 0.
    pub weight_decay: f64,
}

impl Default for Lamb {
    fn default() -> Self {
        Lamb {
            learning_rate: 0.01.into(),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-6,
            epsilon_root: 0.0,
            weight_decay: 0.0,
        }
    }
}

impl Tensorwise for Lamb {
    fn name(&self) -> String {
        "lamb".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
            ("epsilon_root", self.epsilon_root, Interval::NOT_NEGATIVE),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn slots(&self, shape: &[usize]) -> Vec<(&'static str, Vec<f64>)> {
        vec![zeros("m", shape), zeros("v", shape)]
    }
    fn step<E: Float>(
        &self,
        graph: &mut Graph<E>,
        at: At,
        _: &[usize],
        p: Var,
        slots: &[Var],
        g: Var,
    ) -> (Var, Vec<Var>) {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        // Rate 1: the direction only.
        let constants = [1.0, self.beta1, self.beta2, self.epsilon, self.epsilon_root, self.weight_decay];
        let c = adam_coeffs(constants, at);
        let (u, moments) = adam_on_graph(graph, c, [slots[0], slots[1]], g);
        let u = map!(graph, [u, p], |k; u, p| u + k(self.weight_decay) * p);
        let ratio = trust_ratio(graph, p, u, 1.0, 0.0);
        (map!(graph, [p, ratio, u], |k; p, ratio, u| p - k(lr) * ratio * u), moments.to_vec())
    }
}
crate::tensorwise_optimizer!(Lamb);

/// LARS: `u = g + λ p`, scaled per tensor by `trust |p|/(|u| + ε)` (1 if either norm is 0) and the
/// rate, then momentum on the steps.
///
/// Reference: You, Gitman, Ginsburg 2017, arXiv:1708.03888; defaults of optax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lars {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// λ; default 0.
    pub weight_decay: f64,
    /// Default 0.001.
    pub trust_coefficient: f64,
    /// ε; default 0.
    pub epsilon: f64,
    /// Default 0.9.
    pub momentum: f64,
    /// Default Polyak.
    pub kind: MomentumKind,
}

impl Default for Lars {
    fn default() -> Self {
        Lars {
            learning_rate: 0.01.into(),
            weight_decay: 0.0,
            trust_coefficient: 0.001,
            epsilon: 0.0,
            momentum: 0.9,
            kind: MomentumKind::Polyak,
        }
    }
}

impl Tensorwise for Lars {
    fn name(&self) -> String {
        "lars".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
            ("trust_coefficient", self.trust_coefficient, Interval::NOT_NEGATIVE),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
            ("momentum", self.momentum, Interval::DECAY),
        ];
        check_settings(&self.name(), settings)
    }
    fn slots(&self, shape: &[usize]) -> Vec<(&'static str, Vec<f64>)> {
        vec![zeros("momentum", shape)]
    }
    fn step<E: Float>(
        &self,
        graph: &mut Graph<E>,
        at: At,
        _: &[usize],
        p: Var,
        slots: &[Var],
        g: Var,
    ) -> (Var, Vec<Var>) {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        let u = map!(graph, [g, p], |k; g, p| g + k(self.weight_decay) * p);
        let ratio = trust_ratio(graph, p, u, self.trust_coefficient, self.epsilon);
        let u = map!(graph, [ratio, u], |k; ratio, u| k(lr) * ratio * u);
        let w = map!(graph, [slots[0], u], |k; w, u| self.kind.trace(k(self.momentum), w, u).1);
        let p = map!(graph, [p, slots[0], u], |k; p, w, u| p - self.kind.trace(k(self.momentum), w, u).0);
        (p, vec![w])
    }
}
crate::tensorwise_optimizer!(Lars);

/// Fromage: `p ← c (p − lr g max(|p|, n)/max(|g|, n))` per tensor, with `c = 1/√(1 + lr²)` and the
/// least norm n.
///
/// Reference: Bernstein et al. 2020, arXiv:2002.03432; in the form of optax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fromage {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// n; default 1e-6.
    pub min_norm: f64,
}

impl Default for Fromage {
    fn default() -> Self {
        Fromage { learning_rate: 0.01.into(), min_norm: 1e-6 }
    }
}

impl Tensorwise for Fromage {
    fn name(&self) -> String {
        "fromage".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [("min_norm", self.min_norm, Interval::NOT_NEGATIVE)];
        check_settings(&self.name(), settings)
    }
    fn slots(&self, _: &[usize]) -> Vec<(&'static str, Vec<f64>)> {
        Vec::new()
    }
    fn step<E: Float>(
        &self,
        graph: &mut Graph<E>,
        at: At,
        _: &[usize],
        p: Var,
        _: &[Var],
        g: Var,
    ) -> (Var, Vec<Var>) {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        let c = 1.0 / (1.0 + lr * lr).sqrt();
        let (p_norm, g_norm) = (graph.norm(p), graph.norm(g));
        let ratio = map!(graph, [p_norm, g_norm], |k; p, g| {
            Scalar::max(p, k(self.min_norm)).over(Scalar::max(g, k(self.min_norm)))
        });
        (map!(graph, [p, ratio, g], |k; p, ratio, g| k(c) * (p - k(lr) * ratio * g)), Vec::new())
    }
}
crate::tensorwise_optimizer!(Fromage);
