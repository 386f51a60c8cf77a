//! [`Backward`]: what the derivatives of kernels on these features are made of.

use super::accumulators::{cut, Accumulators, Averages, Means, Repeated};
use super::factored_vjp::{AllFeatures, MeansVjp};
use super::tensor_vjp::{TensorVjp, MOST};
use crate::kernel::net::Net;
use crate::kernel::net_vjp::NetVjp;
use outerloop_core::{OptState, UpdateAdjoint};
use pulp::Simd;

/// A network on these features, of which a derivative is wanted.
pub(crate) struct Wanted<'a> {
    pub(crate) net: &'a Net,
    /// `[exp_mult, step_mult]`.
    pub(crate) mults: [f64; 2],
    /// Rates of momenta, RMS averages and factored second moments.
    pub(crate) rates: &'a [Vec<f32>; 3],
    /// Added under roots: to RMS averages, and to second moments of vectors under momenta.
    pub(crate) epsilons: [f32; 2],
    /// The state before the update.
    pub(crate) before: &'a OptState<f32>,
}

/// Network and features backwards.
pub(crate) struct Backward<'a> {
    pub(crate) net: NetVjp<'a>,
    pub(crate) tensors: TensorVjp<'a>,
    /// Scratch of [`MeansVjp`].
    sums: &'a mut [f32],
}

impl<'a> Wanted<'a> {
    fn averages(&self) -> Averages<'a> {
        let (rates, [rms_epsilon, moment_epsilon]) = (self.rates, self.epsilons);
        Averages { rates, rms_epsilon, moment_epsilon, repeated: Repeated::Means, vectors: MOST }
    }

    fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.rates[i].len())
    }

    /// The adjoint `after` the update, to become that before it.
    pub(crate) fn adjoint(&self, after: &OptState<f32>) -> UpdateAdjoint<f32> {
        let (mut state, grad) = (after.clone(), vec![0.0; after.params.len()]);
        state.step = self.before.step;
        UpdateAdjoint { state, grad, loss: 0.0 }
    }

    /// Lengths of the parts of the scratch.
    pub(crate) fn scratch(&self) -> [usize; 7] {
        let (layout, features) = (&self.before.layout, self.net.layers[0].inputs);
        let [expanded, row, col] = self.averages().scratch(layout);
        [
            NetVjp::scratch(self.net).iter().sum(),
            TensorVjp::scratch(self.counts(), features, layout),
            expanded,
            row,
            col,
            // More than three arrays of a table.
            row.max(col),
            self.before.slots.iter().map(|slot| slot.data.len()).sum(),
        ]
    }

    /// Both passes on the gradient that the features are made of, with scratch as long as [`Self::scratch`] says.
    pub(crate) fn passes(
        &self,
        grad: &'a [f32],
        adjoint: &'a mut UpdateAdjoint<f32>,
        mut scratch: &'a mut [f32],
    ) -> (Accumulators<'a>, Backward<'a>) {
        let (before, features) = (self.before, self.net.layers[0].inputs);
        let [net, tensors, expanded, row_table, col_table, sums, mut slots] =
            self.scratch().map(|len| cut(&mut scratch, len));
        let net = NetVjp::new(self.net, self.mults, before.step, net);
        let adjoints = (&mut adjoint.state, &mut adjoint.grad[..]);
        let tensors = TensorVjp::new(self.rates, features, before, adjoints, tensors);
        let slots = [0, 1, 2, 3].map(|i| {
            let old = &before.slots[i].data;
            let slot = cut(&mut slots, old.len());
            slot.copy_from_slice(old);
            slot
        });
        let scratch = [expanded, row_table, col_table];
        (Accumulators { averages: self.averages(), grad, slots, scratch }, Backward { net, tensors, sums })
    }
}

impl Backward<'_> {
    /// Before the first tensor.
    #[inline(always)]
    pub(crate) fn start<S: Simd>(&mut self, s: S) {
        self.net.start(s);
        self.tensors.rate_sums.clear(s);
    }

    /// What comes through the means of rows and columns, after all else of this tensor. `USED`: whether features
    /// depend on them.
    #[inline(always)]
    pub(crate) fn means<S: Simd, const USED: bool>(
        &mut self,
        s: S,
        tensor: &mut AllFeatures<'_>,
        means: &Means<'_>,
    ) {
        for which in [0, 1] {
            let vjp = MeansVjp::new(&mut self.tensors, means, which, self.sums);
            tensor.pull_back_means::<S, USED>(s, which, means.axes, vjp);
        }
        tensor.add_to_gradient(s, &mut self.tensors.grad[tensor.range()]);
    }
}
