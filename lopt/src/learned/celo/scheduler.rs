//! [`Scheduler`]: the LSTM that gives [`super::Celo`] and [`super::CeloAdam`] their learning rate.

use crate::features::{loss, time};
use crate::learned::velo::{MIX, STEP_SIZE};
use crate::rule::lstm::Lstm;
use crate::rule::mlp::{dense, dense_tensors};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Theta, Var};
use outerloop_core::Float;

/// Reads how much of the run is done and what the loss does; one for all tensors.
///
/// `x = [tanh(10 (t/T − a)), loss features, validation]`; `y = W₂ᵀ x + b₂ + max relu(W₁ᵀ x + b₁)`, the
/// maximum over tensors, which all see the same: the reference's rows are equal, so one is enough. Then
/// `h` of [`Lstm`] on y, and the learning rate's factor `0.1 exp(wᵀ h + b)`.
///
/// Theta: [`Lstm`]'s, `rnn_params/linear`, `linear_1`, `linear_2` (the first without effect, as in the
/// reference) and `rnn_params/step_size`. Slots: `lstm_hidden` and `lstm_cell` `[hidden]`, `loss_means` and
/// `loss_min` `[10]`.
pub(crate) struct Scheduler {
    /// Units of the LSTM.
    pub(crate) hidden: usize,
    /// The validation feature, if there is one.
    pub(crate) validation: Option<bool>,
    /// Whether there are layers before the LSTM; else it reads x.
    pub(crate) mix_layers: bool,
    /// Share of the LSTM's state that is lost per step.
    pub(crate) state_decay: f64,
    /// Replaces the loss by 1.
    pub(crate) constant_loss: bool,
}

/// Number of slots, the last ones of a state.
pub(crate) const SLOTS: usize = 4;

impl Scheduler {
    fn inputs(&self) -> usize {
        time::FRACTIONS.len() + loss::COUNT + usize::from(self.validation.is_some())
    }

    fn lstm(&self) -> Lstm {
        let inputs = if self.mix_layers { self.hidden } else { self.inputs() };
        Lstm { name: "rnn_params/rnn", inputs, hidden: self.hidden }
    }

    /// Names and shapes in theta.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = self.lstm().tensors();
        all.extend(dense_tensors(STEP_SIZE, self.hidden, 1));
        if self.mix_layers {
            all.extend(MIX.iter().flat_map(|m| dense_tensors(m, self.inputs(), self.hidden)));
        }
        all
    }

    /// The slots before the first update.
    pub(crate) fn init<E: Float>(&self, theta: &Theta<E>) -> Slots<E> {
        let [hidden, cell] = self.lstm().init(theta, 1);
        let mut slots = vec![("lstm_hidden", hidden), ("lstm_cell", cell)];
        slots.extend(zero_slots([("loss_means", loss::AVERAGES)]));
        slots.push(("loss_min", Var::constant(vec![E::of(loss::NO_MINIMUM); loss::AVERAGES])));
        slots
    }

    /// One step: the LSTM's output `[hidden]`, and the next slots from the last four of `now`.
    pub(crate) fn step<E: Float>(&self, theta: &Theta<E>, now: &StepVars<E>) -> (Var<E>, [Var<E>; SLOTS]) {
        let [hidden, cell, means, lowest] = &now.slots[now.slots.len() - SLOTS..] else {
            unreachable!("four slots")
        };
        let num_steps = now.num_steps.unwrap_or(1);
        let decays = loss::decays(num_steps);
        let loss = if self.constant_loss { Var::scalar(1.0) } else { now.loss.clone() };
        let [means, lowest] = loss::update([means, lowest], &decays, &loss, now.step);
        let done = now.step as f64 / num_steps as f64;
        let mut x = vec![
            Var::constant(time::of_fraction(done).map(E::of).to_vec()),
            loss::features([&means, &lowest], &decays, now.step + 1),
        ];
        x.extend(self.validation.map(|on| Var::scalar(f64::from(u8::from(on)))));
        let mut x = Var::concat(&x);
        if self.mix_layers {
            x = dense(theta, MIX[2], &x) + dense(theta, MIX[1], &x).relu();
        }
        let [output, cell] = self.lstm().step(theta, &x, [hidden, cell]);
        let kept = 1.0 - self.state_decay;
        (output.clone(), [output.scale(kept), cell.scale(kept), means, lowest])
    }

    /// The learning rate's factor, length 1.
    pub(crate) fn rate<E: Float>(theta: &Theta<E>, output: &Var<E>) -> Var<E> {
        dense(theta, STEP_SIZE, output).exp().scale(0.1)
    }
}

#[cfg(test)]
impl Scheduler {
    /// The factor of the first update in f64, where neither losses nor the number of steps matter.
    pub(crate) fn first_rate(&self, layout: std::sync::Arc<outerloop_core::Layout>, theta: &[f32]) -> f64 {
        let flat = Var::constant(theta.iter().map(|t| f64::from(*t)).collect());
        let theta = Theta::new(layout, flat);
        let none = || Var::constant(Vec::new());
        let now = StepVars {
            layout: std::sync::Arc::default(),
            params: none(),
            slots: self.init(&theta).into_iter().map(|(_, slot)| slot).collect(),
            grad: none(),
            loss: Var::scalar(2.3),
            step: 0,
            num_steps: Some(1000),
        };
        Self::rate(&theta, &self.step(&theta, &now).0).data()[0]
    }
}
