//! [`PackedScheduler`]: [`Scheduler`] in f32 at one theta, without a tape, and its derivative.

use super::layer::Layer;
use super::scheduler::{Scheduler, SLOTS};
use crate::features::{loss, time};
use crate::kernel::Path;
use crate::learned::velo::{MIX, STEP_SIZE};
use crate::rule::{Tape, Var};
use outerloop_core::{Layout, OptState, Slot};

/// Takes the same steps as the scheduler on the tape, to the bit.
pub(super) struct PackedScheduler {
    config: Scheduler,
    path: Path,
    mix: Option<[Layer; 2]>,
    lstm: Layer,
    rate: Layer,
}

/// What one step of the network computed.
struct Pass {
    /// The features that the first layers read.
    x: Vec<f32>,
    /// The first shared layer's outputs before the maximum with 0; empty without these layers.
    shared: Vec<f32>,
    /// What the LSTM reads: its input and the state before.
    input: Vec<f32>,
    /// `σ(i)`, `tanh(g)`, `σ(f + 1)`, `σ(o)`, `[4, hidden]`.
    gates: Vec<f32>,
    /// The new cell.
    cell: Vec<f32>,
    /// The new output.
    output: Vec<f32>,
    /// The learning rate's factor.
    rate: f32,
}

/// A step with what its derivative needs.
pub(super) struct Recorded<'a> {
    scheduler: &'a PackedScheduler,
    before: &'a OptState<f32>,
    /// Of the loss features.
    tape: Tape<f32>,
    /// The loss and the two slots of its averages.
    leaves: [Var<f32>; 3],
    averages: [Var<f32>; 2],
    features: Var<f32>,
    pass: Pass,
}

fn sigmoid(x: f32) -> f32 {
    ((-x).exp() + 1.0).recip()
}

impl PackedScheduler {
    pub(super) fn new(config: Scheduler, layout: &Layout, theta: &[f32], path: Path) -> Self {
        let layer = |name: &str| Layer::new(layout, theta, name);
        let mix = config.mix_layers.then(|| [layer(MIX[1]), layer(MIX[2])]);
        PackedScheduler { mix, lstm: layer("rnn_params/rnn/linear"), rate: layer(STEP_SIZE), config, path }
    }

    /// The next averages of the loss, and their features.
    fn loss_features(
        &self,
        averages: [&Var<f32>; 2],
        loss: &Var<f32>,
        state: &OptState<f32>,
    ) -> ([Var<f32>; 2], Var<f32>) {
        let decays = loss::decays(state.num_steps.unwrap_or(1));
        let one = Var::constant(vec![1.0]);
        let loss = if self.config.constant_loss { &one } else { loss };
        let next = loss::update(averages, &decays, loss, state.step);
        let features = loss::features([&next[0], &next[1]], &decays, state.step + 1);
        (next, features)
    }

    /// The network, given the loss features.
    fn pass(&self, features: &[f32], state: &OptState<f32>) -> Pass {
        let [hidden, cell, ..] = &state.slots[state.slots.len() - SLOTS..] else {
            unreachable!("four slots")
        };
        let done = state.step as f64 / state.num_steps.unwrap_or(1) as f64;
        let mut x: Vec<f32> = time::of_fraction(done).map(|x| x as f32).to_vec();
        x.extend_from_slice(features);
        x.extend(self.config.validation.map(|on| f32::from(u8::from(on))));
        let (mut input, mut shared) = (x.clone(), Vec::new());
        if let Some([first, own]) = &self.mix {
            shared = first.forward(self.path, &x);
            input = own.forward(self.path, &x);
            input.iter_mut().zip(&shared).for_each(|(x, y)| *x += outerloop_core::nan::max(*y, 0.0));
        }
        input.extend_from_slice(&hidden.data);
        let mut gates = self.lstm.forward(self.path, &input);
        let n = self.config.hidden;
        let (mut new, mut output) = (vec![0.0; n], vec![0.0; n]);
        for j in 0..n {
            let [i, g, f, o] = [0, 1, 2, 3].map(|k| k * n + j);
            for (k, gate) in [(i, sigmoid(gates[i])), (f, sigmoid(gates[f] + 1.0)), (o, sigmoid(gates[o]))] {
                gates[k] = gate;
            }
            gates[g] = gates[g].tanh();
            new[j] = gates[f] * cell.data[j] + gates[i] * gates[g];
            output[j] = gates[o] * new[j].tanh();
        }
        let rate = self.rate.forward(self.path, &output)[0].exp() * 0.1;
        Pass { x, shared, input, gates, cell: new, output, rate }
    }

    /// One step: changes the last four slots of a state before its update, and gives the learning rate's factor.
    pub(super) fn step(&self, state: &mut OptState<f32>, loss: f32) -> f32 {
        let first = state.slots.len() - SLOTS;
        let old = [2, 3].map(|i| Var::constant(state.slots[first + i].data.clone()));
        let (next, features) = self.loss_features([&old[0], &old[1]], &Var::constant(vec![loss]), state);
        let pass = self.pass(features.data(), state);
        let kept = (1.0 - self.config.state_decay) as f32;
        let [hidden, cell, means, lowest] = &mut state.slots[first..] else { unreachable!("four slots") };
        for (slot, new) in [(hidden, &pass.output), (cell, &pass.cell)] {
            slot.data.iter_mut().zip(new).for_each(|(to, x)| *to = x * kept);
        }
        means.data.copy_from_slice(next[0].data());
        lowest.data.copy_from_slice(next[1].data());
        pass.rate
    }

    /// The step from `before`, for its derivative.
    pub(super) fn record<'a>(&'a self, before: &'a OptState<f32>, loss: f32) -> Recorded<'a> {
        let tape = Tape::default();
        let slots = &before.slots[before.slots.len() - SLOTS..];
        let leaves = [&[loss][..], &slots[2].data, &slots[3].data].map(|x| tape.leaf(x));
        let (averages, features) = self.loss_features([&leaves[1], &leaves[2]], &leaves[0], before);
        let pass = self.pass(features.data(), before);
        Recorded { scheduler: self, before, tape, leaves, averages, features, pass }
    }
}

impl Recorded<'_> {
    /// The learning rate's factor.
    pub(super) fn rate(&self) -> f32 {
        self.pass.rate
    }

    /// Given the adjoints of the rate's factor and of the four next slots: adds theta's adjoint to `theta` and returns
    /// those of the loss and of the slots before.
    pub(super) fn pull_back(
        &self,
        rate: f32,
        after: &[Slot<f32>],
        theta: &mut [f32],
    ) -> (f32, [Vec<f32>; SLOTS]) {
        let Recorded { scheduler, before, pass, .. } = self;
        let PackedScheduler { config, path, mix, lstm, .. } = scheduler;
        let Pass { gates, output, .. } = pass;
        let old_cell = &before.slots[before.slots.len() - SLOTS + 1].data;
        let (n, kept) = (config.hidden, (1.0 - config.state_decay) as f32);
        // rate = 0.1 exp(wᵀ h + b)
        let mut output_adjoint = vec![0.0; n];
        scheduler.rate.backward(*path, output, &[rate * pass.rate], theta, &mut output_adjoint);
        let (mut z, mut cell_adjoint) = (vec![0.0; 4 * n], vec![0.0; n]);
        for j in 0..n {
            let [i, g, f, o] = [0, 1, 2, 3].map(|k| gates[k * n + j]);
            let tanh = pass.cell[j].tanh();
            let h = output_adjoint[j] + kept * after[0].data[j];
            let c = h * o * (1.0 - tanh * tanh) + kept * after[1].data[j];
            z[j] = c * g * i * (1.0 - i);
            z[n + j] = c * i * (1.0 - g * g);
            z[2 * n + j] = c * old_cell[j] * f * (1.0 - f);
            z[3 * n + j] = h * tanh * o * (1.0 - o);
            cell_adjoint[j] = c * f;
        }
        let mut input = vec![0.0; pass.input.len()];
        lstm.backward(*path, &pass.input, &z, theta, &mut input);
        let hidden_adjoint = input.split_off(pass.input.len() - n);
        let x = match mix {
            None => input,
            Some([shared, own]) => {
                let mut x = vec![0.0; pass.x.len()];
                own.backward(*path, &pass.x, &input, theta, &mut x);
                let slopes = input.iter_mut().zip(&pass.shared);
                slopes.filter(|(_, y)| **y <= 0.0).for_each(|(a, _)| *a = 0.0);
                shared.backward(*path, &pass.x, &input, theta, &mut x);
                x
            }
        };
        let features = &x[time::FRACTIONS.len()..][..loss::COUNT];
        let [means, lowest] = &self.averages;
        let seeds = [(&self.features, features), (means, &after[2].data[..]), (lowest, &after[3].data[..])];
        let leaves = self.leaves.each_ref();
        let mut pulled = self.tape.pull_back(&seeds, &leaves);
        let (lowest, means) = (pulled.pop().unwrap_or_default(), pulled.pop().unwrap_or_default());
        (pulled[0][0], [hidden_adjoint, cell_adjoint, means, lowest])
    }
}
