//! [`HyperTask`]: a training loss with hyperparameters, and the validation loss that judges them.

use crate::device::Movable;
use crate::tensor::{Backend, Cpu, Host, Mode, PairTree, ParamTree, Rank0, Tensor};
use crate::{BatchKey, Error, FlatTask, Float, Key, Layout, Params, Result, Split, Task, Typed};
use std::ops::Range;
use std::sync::Arc;

/// A training problem whose loss has hyperparameters λ: `w*(λ) = argmin_w L_T(w, λ)`, judged by `L_V(w*(λ), λ)`.
///
/// One implementation serves f32 and f64. λ may be anything that the losses are differentiable by: weight decays,
/// weights of examples, training inputs, a network that augments them. Made of [`crate::ops`], the losses have the
/// exact products with second derivatives that hypergradients are made of; see [`HyperProblem`].
///
/// Invariants, checked by [`crate::contract::check_hyper_task`]: `init`, `init_hyper` and `batch` are pure functions
/// of their key, and the derivatives by `(w, λ)` together are those of the losses.
///
/// ```
/// use outerloop_core::{contract, ops, tensor::*, BatchKey, Float, HyperTask, Key, Split};
/// use dfdx::prelude::*;
/// use std::sync::Arc;
///
/// /// Ridge regression with a decay per weight, on 8 random examples of 3 features.
/// struct Ridge;
///
/// impl<E: Float, B: Backend<E>> HyperTask<E, B> for Ridge {
///     type Params = Tensor<Rank2<3, 1>, E, B>;
///     type Hyper = Tensor<Rank2<3, 1>, E, B>;
///     type Batch = (Tensor<Rank2<8, 3>, E, B>, Tensor<Rank2<8, 1>, E, B>);
///     fn name(&self) -> String { "ridge".into() }
///     fn init(&self, dev: &B, key: Key) -> Self::Params { dev.normal(key) }
///     fn init_hyper(&self, dev: &B, _: Key) -> Self::Hyper { dev.zeros() }
///     fn log_decays(&self) -> Vec<String> { vec!["params".into()] }
///     fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
///         let [x, y] = Key::new(0).fold_in(at.split as u64).split();
///         (dev.normal(x), dev.normal(y))
///     }
///     fn train_loss<M: Mode<E, B>>(
///         &self, w: &Self::Params, decay: &Self::Hyper, (x, y): &Self::Batch, m: M,
///     ) -> Tensor<Rank0, E, B, M> {
///         let error = ops::mse(ops::matmul(x.clone().put_tape(m), w), y);
///         ops::add(error, &ops::weight_decay(w.clone().put_tape(m), decay))
///     }
///     fn valid_loss<M: Mode<E, B>>(
///         &self, w: &Self::Params, _: &Self::Hyper, (x, y): &Self::Batch, m: M,
///     ) -> Tensor<Rank0, E, B, M> {
///         ops::mse(ops::matmul(x.clone().put_tape(m), w), y)
///     }
/// }
///
/// contract::check_hyper_task(&Arc::new(Ridge))?;
/// # Ok::<(), outerloop_core::Error>(())
/// ```
pub trait HyperTask<E: Float, B: Backend<E>>: Send + Sync + 'static {
    /// The type of what is trained, `w`.
    type Params: ParamTree<E, B>;
    /// The type of the hyperparameters, λ.
    type Hyper: ParamTree<E, B>;
    /// One batch of data; `()` if there is none.
    type Batch: Movable + 'static;

    /// Short name for reports.
    fn name(&self) -> String;

    /// Initial parameters.
    fn init(&self, dev: &B, key: Key) -> Self::Params;

    /// Initial hyperparameters.
    fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper;

    /// The batch that `at` names: of [`Split::Train`] for `train_loss`, of any other split for `valid_loss`.
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch;

    /// Overwrites `batch` with the one that `at` names; override to reuse its buffers.
    fn refill(&self, dev: &B, at: BatchKey, batch: &mut Self::Batch) {
        *batch = self.batch(dev, at);
    }

    /// The loss that `w` is trained on, `L_T(w, λ)`; give every tensor of `w` and λ the tape with `put_tape(m)`.
    fn train_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        hyper: &Self::Hyper,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M>;

    /// The loss that λ is judged by, `L_V(w, λ)`.
    fn valid_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        hyper: &Self::Hyper,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M>;

    /// Names, as in the layout of `Hyper`, of the tensors that are logarithms of weight decays
    /// (`½ e^λ w²`, [`crate::ops::weight_decay`]). Training with steps of size η diverges once `η e^λ > 2`, so those
    /// who tune λ keep these below `ln(1/η)`. Such a tensor that is named like one of `w`, and has one element or as
    /// many, must hold the decays of that tensor. Default: none.
    fn log_decays(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Both losses over the joint buffer `[w, λ]` as one [`Task`]: batches of [`Split::Train`] are judged by the training
/// loss, all others by the validation loss.
struct Joint<T>(Arc<T>);

impl<E: Float, B: Backend<E>, T: HyperTask<E, B>> Task<E, B> for Joint<T> {
    type Params = B::Pair<T::Params, T::Hyper>;
    type Batch = (bool, T::Batch);

    fn name(&self) -> String {
        self.0.name()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let w = self.0.init(dev, key.named("params"));
        PairTree::pair(w, self.0.init_hyper(dev, key.named("hyper")))
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        (at.split == Split::Train, self.0.batch(dev, at))
    }
    fn refill(&self, dev: &B, at: BatchKey, (is_train, batch): &mut Self::Batch) {
        *is_train = at.split == Split::Train;
        self.0.refill(dev, at, batch);
    }
    fn loss<M: Mode<E, B>>(
        &self,
        joint: &Self::Params,
        (is_train, batch): &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let (w, hyper) = joint.parts();
        if *is_train {
            self.0.train_loss(w, hyper, batch, m)
        } else {
            self.0.valid_loss(w, hyper, batch, m)
        }
    }
}

/// A [`HyperTask`] on flat buffers: one [`FlatTask`] over the joint buffer `[w, λ]`.
///
/// Its loss on batches of [`Split::Train`] is the training loss, on batches of other splits the validation loss. The
/// joint Hessian of the training loss times `(v, 0)` is `(H v, B(v))`, with `H = ∂²L_T/∂w²` and
/// `B(v) = ∂/∂λ ⟨∂L_T/∂w, v⟩`: both products of the implicit function theorem.
pub struct HyperProblem<E: Float = f32> {
    /// Both losses over `[w, λ]`.
    pub joint: Arc<dyn FlatTask<E>>,
    /// Names and shapes in `w`.
    pub params: Arc<Layout>,
    /// Names and shapes in λ.
    pub hyper: Arc<Layout>,
    /// Elements of λ that are logarithms of weight decays.
    pub log_decays: Vec<Range<usize>>,
}

impl<E: Float> HyperProblem<E> {
    /// A task on flat buffers.
    ///
    /// # Errors
    /// If [`HyperTask::log_decays`] names a tensor that λ does not have.
    pub fn new<T: HyperTask<E, Cpu> + HyperTask<f64, Cpu>>(task: T) -> Result<Self>
    where
        Cpu: Host<E>,
    {
        Self::of(&Arc::new(task))
    }

    /// [`Self::new`] of a shared task.
    ///
    /// # Errors
    /// As there.
    pub fn of<T: HyperTask<E, Cpu> + HyperTask<f64, Cpu>>(task: &Arc<T>) -> Result<Self>
    where
        Cpu: Host<E>,
    {
        let (dev, key) = (Cpu::default(), Key::new(0));
        let params = Arc::new(HyperTask::<f64, Cpu>::init(&**task, &dev, key).layout());
        let hyper = Arc::new(HyperTask::<f64, Cpu>::init_hyper(&**task, &dev, key).layout());
        let names = HyperTask::<f64, Cpu>::log_decays(&**task);
        let log_decays =
            names.iter().map(|n| hyper.entry(n).map(|e| e.range())).collect::<Result<Vec<_>>>()?;
        Ok(HyperProblem { joint: Arc::new(Typed::new(Joint(task.clone()))), params, hyper, log_decays })
    }

    /// Short name for reports.
    pub fn name(&self) -> String {
        self.joint.name()
    }

    /// Initial `w` and λ; a pure function of the key.
    pub fn init(&self, key: Key) -> (Params<E>, Params<E>) {
        let mut w = self.joint.init(key).data;
        let hyper = w.split_off(self.params.len());
        (Params { layout: self.params.clone(), data: w }, Params { layout: self.hyper.clone(), data: hyper })
    }

    /// Errors unless a joint buffer has the length of `[w, λ]`.
    ///
    /// # Errors
    /// Both lengths.
    pub fn check_len(&self, joint: &[E]) -> Result<()> {
        let len = self.params.len() + self.hyper.len();
        if joint.len() == len {
            return Ok(());
        }
        Err(Error::mismatch(format!("{}: elements of [w, λ]", self.name()), len, joint.len()))
    }
}
