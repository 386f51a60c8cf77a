//! Full amortization: a network from features to the solution.

use super::Model;
use crate::net::{Act, Init, Mlp};
use crate::problem::{Problem, Query, Rows};
use outerloop_core::tensor::{Backend, DynParams, Float, Mode, PutTape};
use outerloop_core::{Key, Layout};

/// A fully connected network; one prediction, no question to the objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Full {
    /// Widths of the hidden layers; default 128, 128.
    pub hidden: Vec<usize>,
    /// Default: ReLU.
    pub act: Act,
    /// Default: torch's.
    pub init: Init,
}

impl Default for Full {
    fn default() -> Self {
        Full { hidden: vec![128, 128], act: Act::Relu, init: Init::Torch }
    }
}

impl Full {
    /// A ReLU network of these hidden widths.
    pub fn new(hidden: impl Into<Vec<usize>>) -> Self {
        Full { hidden: hidden.into(), ..Self::default() }
    }
    /// The network for a problem.
    pub fn net<P: Problem>(&self, problem: &P) -> Mlp {
        let mut widths = vec![problem.features_dim()];
        widths.extend(&self.hidden);
        widths.push(problem.dim());
        Mlp { widths, act: self.act, init: self.init }
    }
}

impl Model for Full {
    fn name(&self) -> String {
        let widths: Vec<String> = self.hidden.iter().map(usize::to_string).collect();
        format!("full{}", widths.join("-"))
    }
    fn layout<P: Problem>(&self, problem: &P) -> Layout {
        let mut layout = Layout::default();
        self.net(problem).push(&mut layout, "");
        layout
    }
    fn init<P: Problem>(&self, problem: &P, key: Key, out: &mut [f64]) {
        self.net(problem).fill(key, out);
    }
    fn predict<P: Problem, E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        problem: &P,
        at: &Query<'_, E, B>,
        params: &DynParams<E, B>,
        m: M,
    ) -> Vec<Rows<E, B, M>> {
        let features = problem.features(at.x).put_tape(m);
        vec![self.net(problem).forward(params, 0, features)]
    }
}
