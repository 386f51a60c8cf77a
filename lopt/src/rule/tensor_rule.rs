//! Update rules written in dfdx tensor operations, differentiated by the recording tape.
//!
//! For learned optimizers that are at home in dfdx: any of its operations and ours
//! ([`outerloop_core::ops`]) may be used, and the derivative comes for free. [`crate::UpdateRule`]
//! does the same over plain arrays, faster; elementwise rules are best written as
//! [`crate::hand::Elementwise`].

use outerloop_core::tensor::{
    record, Cpu, DynTensors, DynTree, Host, Mode, NoneTape, ParamTree, Rank0, Rec, Tensor,
};
use outerloop_core::{ops, Float, Key, Layout, OptState, Optimizer, Params, Slot, UpdateAdjoint, UpdateVjp};
use std::sync::Arc;

/// A flat tensor of run-time length.
pub type FlatTensor<E, M> = Tensor<(usize,), E, Cpu, M>;

/// What a [`TensorRule`] sees of one step, traced in mode `M`.
pub struct TensorStep<E: Float, M> {
    /// Theta, flat.
    pub theta: FlatTensor<E, M>,
    /// Parameters, flat; [`Self::layout`] tells where each tensor is.
    pub params: FlatTensor<E, M>,
    /// Gradient, flat.
    pub grad: FlatTensor<E, M>,
    /// The loss that the gradient belongs to.
    pub loss: Tensor<Rank0, E, Cpu, M>,
    /// The slots, in the rule's order.
    pub slots: Vec<FlatTensor<E, M>>,
    /// Updates done so far.
    pub step: u64,
    /// Planned updates, if known.
    pub num_steps: Option<u64>,
    /// Names and shapes of the parameters.
    pub layout: Arc<Layout>,
}

/// An update rule over flat tensors.
///
/// ```
/// use dfdx::prelude::*;
/// use outerloop_core::{ops, tensor::{Host, Mode}, Float};
/// use outerloop_lopt::{FlatTensor, TensorRule, TensorRuleOptimizer, TensorStep};
///
/// /// v ← v/2 + g;  p ← p − e^θ v
/// #[derive(Clone, Debug)]
/// struct Half;
///
/// impl TensorRule for Half {
///     fn name(&self) -> String { "half".into() }
///     fn slots(&self, params: usize) -> Vec<(&'static str, usize)> { vec![("v", params)] }
///     fn step<E: Float, M: Mode<E, Cpu>>(&self, mut now: TensorStep<E, M>) -> (FlatTensor<E, M>, Vec<FlatTensor<E, M>>)
///     where Cpu: Host<E> {
///         let v = now.slots.remove(0) * E::of(0.5) + now.grad;
///         let lr = ops::sum(now.theta.exp());
///         (now.params - ops::mul(v.clone(), &lr), vec![v])
///     }
/// }
/// let opt = TensorRuleOptimizer::<Half, f64>::new(Half, vec![-2.0]);
/// # outerloop_core::contract::check_optimizer(&opt)?;
/// # outerloop_core::contract::check_update_vjp(
/// #     |theta| Box::new(TensorRuleOptimizer::<Half, f64>::new(Half, theta.to_vec())), &[-2.0])?;
/// # Ok::<(), outerloop_core::Error>(())
/// ```
pub trait TensorRule: Clone + Send + Sync + 'static {
    /// Short name for reports.
    fn name(&self) -> String;
    /// Names and lengths of the slots, which start at zero, for this many parameters.
    fn slots(&self, params: usize) -> Vec<(&'static str, usize)>;
    /// One update: the next parameters and slots.
    fn step<E: Float, M: Mode<E, Cpu>>(
        &self,
        now: TensorStep<E, M>,
    ) -> (FlatTensor<E, M>, Vec<FlatTensor<E, M>>)
    where
        Cpu: Host<E>;
}

/// A [`TensorRule`] at a theta, as an optimizer with its derivative.
#[derive(Debug)]
pub struct TensorRuleOptimizer<R, E> {
    rule: R,
    theta: Vec<E>,
}

impl<R: TensorRule, E: Float> TensorRuleOptimizer<R, E> {
    /// The optimizer that `theta` describes.
    pub fn new(rule: R, theta: Vec<E>) -> Self {
        TensorRuleOptimizer { rule, theta }
    }
}

/// Everything an update depends on, as one tree of flat tensors: theta, params, grad, loss, slots.
fn inputs<E: Float>(theta: &[E], state: &OptState<E>, grad: &[E], loss: E) -> (Arc<Layout>, Vec<E>) {
    let mut layout = Layout::new([
        ("theta", vec![theta.len()]),
        ("params", vec![grad.len()]),
        ("grad", vec![grad.len()]),
        ("loss", vec![]),
    ]);
    let mut flat = [theta, &state.params, grad, &[loss]].concat();
    for s in &state.slots {
        layout.push(format!("slot {}", s.name), vec![s.data.len()]);
        flat.extend_from_slice(&s.data);
    }
    (Arc::new(layout), flat)
}

const FIRST_SLOT: usize = 4;

macro_rules! tensor_rule_optimizer {
    ($t:ty) => {
        impl<R: TensorRule> TensorRuleOptimizer<R, $t> {
            fn run<M: Mode<$t, Cpu>>(
                &self,
                tree: &DynTensors<$t, Cpu>,
                layout: &Layout,
                state: &OptState<$t>,
                m: M,
            ) -> (FlatTensor<$t, M>, Vec<FlatTensor<$t, M>>) {
                let entries = layout.entries();
                let flat = |i: usize| tree.traced(i, (entries[i].numel(),), m);
                self.rule.step(TensorStep {
                    theta: flat(0),
                    params: flat(1),
                    grad: flat(2),
                    loss: tree.traced(3, (), m),
                    slots: (FIRST_SLOT..entries.len()).map(flat).collect(),
                    step: state.step,
                    num_steps: state.num_steps,
                    layout: state.layout.clone(),
                })
            }
        }

        impl<R: TensorRule> Optimizer<$t> for TensorRuleOptimizer<R, $t> {
            fn name(&self) -> String {
                self.rule.name()
            }
            fn describe(&self) -> String {
                format!("{} {:?}", self.rule.name(), self.theta)
            }
            fn init(&self, params: &Params<$t>, num_steps: Option<u64>, _key: Key) -> OptState<$t> {
                let slots = self.rule.slots(params.data.len());
                let start = OptState::new(params, num_steps);
                slots.into_iter().fold(start, |s, (name, len)| s.with_slot(name, len, 0.0))
            }
            fn update(&self, state: &mut OptState<$t>, grad: &[$t], loss: $t, _key: Key) {
                let (layout, flat) = inputs(&self.theta, state, grad, loss);
                let tree = DynTensors::new(&Cpu::default(), layout.clone(), &flat);
                let (params, slots) = self.run(&tree, &layout, state, NoneTape);
                params.copy_into(&mut state.params);
                for (slot, next) in state.slots.iter_mut().zip(slots) {
                    next.copy_into(&mut slot.data);
                }
                state.step += 1;
            }
            fn update_vjp(&self) -> Option<&dyn UpdateVjp<$t>> {
                Some(self)
            }
        }

        impl<R: TensorRule> UpdateVjp<$t> for TensorRuleOptimizer<R, $t> {
            fn vjp(
                &self,
                before: &OptState<$t>,
                grad: &[$t],
                loss: $t,
                _key: Key,
                after: &OptState<$t>,
                theta: &mut [$t],
            ) -> UpdateAdjoint<$t> {
                let dev = Cpu::default();
                let (layout, flat) = inputs(&self.theta, before, grad, loss);
                let tree = DynTensors::new(&dev, layout.clone(), &flat);
                // The gradient of Σ adjoint · output is what the adjoints before the update are.
                let mut recorded = record(&tree.ids(), |m: Rec| {
                    let (params, slots) = self.run(&tree, &layout, before, m);
                    let dot = |x: FlatTensor<$t, Rec>, a: &[$t]| {
                        let a = dfdx::prelude::TensorFromVec::tensor_from_vec(&dev, a.to_vec(), (a.len(),));
                        ops::sum(ops::mul(x, &a))
                    };
                    let slots = slots.into_iter().zip(&after.slots);
                    slots.fold(dot(params, &after.params), |sum, (x, a)| sum + dot(x, &a.data))
                });
                let mut out = vec![0.0; flat.len()];
                tree.read_grads(&dev, &mut recorded.grads, &mut out);
                let part = |i: usize| out[layout.entries()[i].range()].to_vec();
                for (t, d) in theta.iter_mut().zip(part(0)) {
                    *t += d;
                }
                let slots = before.slots.iter().enumerate();
                let slots =
                    slots.map(|(k, s)| Slot { name: s.name.clone(), data: part(FIRST_SLOT + k) }).collect();
                let state = OptState { params: part(1), slots, ..before.zeros_like() };
                UpdateAdjoint { state, grad: part(2), loss: part(3)[0] }
            }
        }
    };
}
tensor_rule_optimizer!(f32);
tensor_rule_optimizer!(f64);
