//! [`PackedScheduler`]: [`Scheduler`] in f32 at one theta, without a tape.

use super::scheduler::{Scheduler, SLOTS};
use crate::features::{loss, time};
use crate::learned::velo::{MIX, STEP_SIZE};
use crate::rule::Var;
use outerloop_core::{Layout, OptState};

/// One dense layer, `[inputs, outputs]` and `[outputs]`.
struct Layer {
    w: Vec<f32>,
    b: Vec<f32>,
}

impl Layer {
    fn new(layout: &Layout, theta: &[f32], name: &str) -> Self {
        let part = |tensor: &str| {
            let entry = layout.get(&format!("{name}/{tensor}")).expect("theta holds the schedule");
            theta[entry.range()].to_vec()
        };
        Layer { w: part("w"), b: part("b") }
    }

    /// `Wᵀ x + b`; the sum begins with the first input and ends with the bias, as on the tape.
    fn forward(&self, x: impl Iterator<Item = f32>) -> Vec<f32> {
        let mut y = vec![0.0; self.b.len()];
        for (x, w) in x.zip(self.w.chunks_exact(self.b.len())) {
            y.iter_mut().zip(w).for_each(|(y, w)| *y += w * x);
        }
        y.iter_mut().zip(&self.b).for_each(|(y, b)| *y += b);
        y
    }
}

/// Takes the same steps as the scheduler on the tape, to the bit.
pub(super) struct PackedScheduler {
    config: Scheduler,
    mix: Option<[Layer; 2]>,
    lstm: Layer,
    rate: Layer,
}

fn sigmoid(x: f32) -> f32 {
    ((-x).exp() + 1.0).recip()
}

impl PackedScheduler {
    pub(super) fn new(config: Scheduler, layout: &Layout, theta: &[f32]) -> Self {
        let layer = |name: &str| Layer::new(layout, theta, name);
        let mix = config.mix_layers.then(|| [layer(MIX[1]), layer(MIX[2])]);
        PackedScheduler { mix, lstm: layer("rnn_params/rnn/linear"), rate: layer(STEP_SIZE), config }
    }

    /// One step: changes the last four slots of a state before its update, and gives the learning rate's factor.
    pub(super) fn step(&self, state: &mut OptState<f32>, loss: f32) -> f32 {
        let (step, num_steps) = (state.step, state.num_steps.unwrap_or(1));
        let first = state.slots.len() - SLOTS;
        let [hidden, cell, means, lowest] = &mut state.slots[first..] else { unreachable!("four slots") };
        let decays = loss::decays(num_steps);
        let loss = if self.config.constant_loss { 1.0 } else { loss };
        let old = [&*means, &*lowest].map(|slot| Var::constant(slot.data.clone()));
        let next = loss::update([&old[0], &old[1]], &decays, &Var::constant(vec![loss]), step);
        let features = loss::features([&next[0], &next[1]], &decays, step + 1);
        let mut x: Vec<f32> = time::of_fraction(step as f64 / num_steps as f64).map(|x| x as f32).to_vec();
        x.extend_from_slice(features.data());
        x.extend(self.config.validation.map(|on| f32::from(u8::from(on))));
        if let Some([shared, own]) = &self.mix {
            let shared = shared.forward(x.iter().copied());
            let own = own.forward(x.iter().copied());
            x = own.iter().zip(&shared).map(|(x, y)| x + outerloop_core::nan::max(*y, 0.0)).collect();
        }
        let z = self.lstm.forward(x.iter().chain(&hidden.data).copied());
        let n = self.config.hidden;
        let kept = (1.0 - self.config.state_decay) as f32;
        let mut output = vec![0.0; n];
        for j in 0..n {
            let [i, g, f, o] = [z[j], z[n + j], z[2 * n + j], z[3 * n + j]];
            let new = sigmoid(f + 1.0) * cell.data[j] + sigmoid(i) * g.tanh();
            output[j] = sigmoid(o) * new.tanh();
            hidden.data[j] = output[j] * kept;
            cell.data[j] = new * kept;
        }
        means.data.copy_from_slice(next[0].data());
        lowest.data.copy_from_slice(next[1].data());
        self.rate.forward(output.into_iter())[0].exp() * 0.1
    }
}
