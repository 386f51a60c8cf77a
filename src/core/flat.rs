//! The flat side of a task: one `f32` (or `f64`) buffer plus a [`Layout`], behind object-safe traits.

use crate::device::{AnyDevice, Device, Open};
use crate::tensor::{
    record, record_linear, release_buffers, Backend, Cpu, Curvature, Host, LayerMoments, Linear, NoneTape,
    ParamTree, Rank0, Recorded, Tensor,
};
use crate::{
    BatchKey, Entry, Evaluator, Float, Key, LayerCurvature, Layout, Linearization, Metric, Params, Result,
    Split, Task, TaskFamily,
};
use std::marker::PhantomData;
use std::sync::Arc;

/// A task as trainers see it. Made from any [`Task`] by [`Typed`].
pub trait FlatTask<E: Float = f32>: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;
    /// Names and shapes of the parameters.
    fn layout(&self) -> Arc<Layout>;
    /// Initial parameters; a pure function of the key.
    fn init(&self, key: Key) -> Params<E>;
    /// Initial model state; often empty.
    fn init_state(&self) -> Vec<E>;
    /// An evaluator with its own device and scratch; make one per thread.
    fn evaluator(&self) -> Box<dyn Evaluator<E>>;
    /// See [`Task::normalizer`].
    fn normalizer(&self, loss: f64) -> f64;
    /// Where its evaluators compute. The CPU by default.
    fn device(&self) -> Device {
        Device::Cpu
    }
    /// Numbers beside the loss on the batch that `at` names, see [`Task::metrics`]. None by default.
    fn metrics(&self, params: &[E], state: &[E], at: BatchKey) -> Vec<Metric> {
        let _ = (params, state, at);
        Vec::new()
    }
}

/// A distribution over flat tasks, object safe. Every [`TaskFamily`] of CPU tasks is one.
pub trait FlatFamily<E: Float = f32>: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;
    /// A task; a pure function of the key.
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask<E>>;
}

impl<E: Float, F> FlatFamily<E> for F
where
    F: TaskFamily,
    F::Task: Task<E, Cpu> + Task<f64, Cpu>,
    Cpu: Host<E>,
{
    fn name(&self) -> String {
        TaskFamily::name(self)
    }
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask<E>> {
        Arc::new(Typed::new(self.task(&self.sample(key))))
    }
}

/// The family that has one task.
pub struct SingleTask<E: Float = f32>(pub Arc<dyn FlatTask<E>>);

impl<E: Float> SingleTask<E> {
    /// The family of one typed task.
    pub fn new<T: Task<E, Cpu> + Task<f64, Cpu>>(task: T) -> Self
    where
        Cpu: Host<E>,
    {
        SingleTask(Arc::new(Typed::new(task)))
    }

    /// The family of one typed task on a device.
    ///
    /// # Errors
    /// As [`AnyDevice::on`].
    pub fn on<T: AnyDevice<E>>(task: T, device: Device) -> Result<Self> {
        Ok(SingleTask(task.on(device)?))
    }
}

impl<E: Float> FlatFamily<E> for SingleTask<E> {
    fn name(&self) -> String {
        self.0.name()
    }
    fn sample_task(&self, _: Key) -> Arc<dyn FlatTask<E>> {
        self.0.clone()
    }
}

/// A typed [`Task`] as a [`FlatTask`]: on the CPU, or on another device by [`Typed::on`].
pub struct Typed<T, B = Cpu> {
    task: Arc<T>,
    layout: Arc<Layout>,
    device: Device,
    backend: PhantomData<fn() -> B>,
}

impl<T: Task<f64, Cpu>> Typed<T> {
    /// Wraps a task.
    pub fn new(task: T) -> Self {
        Typed::at(task, Device::Cpu)
    }
}

impl<T> Typed<T> {
    /// Wraps a task on a device.
    ///
    /// # Errors
    /// As [`AnyDevice::on`].
    pub fn on<E: Float>(task: T, device: Device) -> Result<Arc<dyn FlatTask<E>>>
    where
        T: AnyDevice<E>,
    {
        task.on(device)
    }
}

impl<T: Task<f64, Cpu>, B: Open> Typed<T, B> {
    /// Wraps a task on a device that is there, and of this backend.
    pub(crate) fn at(task: T, device: Device) -> Self {
        let layout = task.init(&Cpu::default(), Key::new(0)).layout();
        Typed { task: Arc::new(task), layout: Arc::new(layout), device, backend: PhantomData }
    }
}

impl<E: Float, T: Task<E, B> + Task<f64, B>, B: Backend<E> + Backend<f64> + Open> FlatTask<E>
    for Typed<T, B>
{
    fn name(&self) -> String {
        Task::<E, B>::name(&*self.task)
    }
    fn layout(&self) -> Arc<Layout> {
        self.layout.clone()
    }
    fn init(&self, key: Key) -> Params<E> {
        let mut p = Params::zeros(self.layout.clone());
        let dev = B::open(self.device);
        Task::<E, B>::init(&*self.task, &dev, key).write_flat(&mut p.data);
        dev.close(self.device);
        p
    }
    fn init_state(&self) -> Vec<E> {
        Task::<E, B>::init_state(&*self.task)
    }
    fn evaluator(&self) -> Box<dyn Evaluator<E>> {
        // A task's own is for the host.
        let own = self.device.is_cpu().then(|| Task::<E, B>::evaluator(&*self.task)).flatten();
        own.unwrap_or_else(|| Box::new(TypedEvaluator::<E, T, B>::new(self)))
    }
    fn normalizer(&self, loss: f64) -> f64 {
        Task::<E, B>::normalizer(&*self.task, loss)
    }
    fn device(&self) -> Device {
        self.device
    }
    fn metrics(&self, params: &[E], state: &[E], at: BatchKey) -> Vec<Metric> {
        let dev = B::open(self.device);
        let mut tree = Task::<E, B>::init(&*self.task, &dev, Key::new(0));
        tree.read_flat(params);
        let batch = Task::<E, B>::batch(&*self.task, &dev, at);
        let metrics = Task::<E, B>::metrics(&*self.task, &tree, state, &batch);
        drop((tree, batch));
        dev.close(self.device);
        metrics
    }
}

/// The batch that `load_batch` made; a macro, so that other fields can be borrowed beside it.
macro_rules! batch {
    ($s:ident, $at:ident) => {
        &$s.batches[place($at)].as_ref().expect("load_batch ran").1
    };
}

/// What `load_params` filled, likewise.
macro_rules! params {
    ($s:ident) => {
        $s.params.as_ref().expect("load_params ran")
    };
}

/// So many parameters that spare buffers weigh more than what they save.
const MANY: usize = 1 << 19;

struct TypedEvaluator<E: Float, T: Task<E, B>, B: Backend<E> + Open> {
    task: Arc<T>,
    layout: Arc<Layout>,
    device: Device,
    /// One per evaluator: dfdx devices must not be shared between threads.
    dev: B,
    /// Evaluations since the device's cache was emptied, if it is in use.
    cached: Option<usize>,
    /// None until the loss is traced: closed forms need no tensors.
    params: Option<T::Params>,
    /// The last training batch, and the last of another split: who trains and validates alternates.
    batches: [Option<(BatchKey, T::Batch)>; 2],
    state: Vec<E>,
    /// Differences in f64, for losses with operations that have no tangent rule.
    fallback: Option<Box<dyn Evaluator<f64>>>,
}

// SAFETY: dfdx's CUDA tensors are not `Send` only because cudarc 0.9 does not say so of streams, which may go from thread
// to thread as all that they hold may. The evaluator has its device for itself, so its cuBLAS handle is used by one thread
// at a time, and every use begins with a copy of parameters, which makes the context the thread's own. Parameters and
// batches on the CPU are `Send` where they compile without the feature, see `Movable`.
#[cfg(feature = "cuda")]
unsafe impl<E: Float, T: Task<E, B>, B: Backend<E> + Open> Send for TypedEvaluator<E, T, B> {}

impl<E: Float, T: Task<E, B>, B: Backend<E> + Open> Drop for TypedEvaluator<E, T, B> {
    fn drop(&mut self) {
        // The tensors first.
        (self.params, self.batches) = (None, [None, None]);
        self.dev.clone().close(self.device);
    }
}

impl<E: Float, T: Task<E, B>, B: Backend<E> + Open> TypedEvaluator<E, T, B> {
    fn new(typed: &Typed<T, B>) -> Self {
        Self::of(typed.task.clone(), typed.layout.clone(), typed.device)
    }

    fn of(task: Arc<T>, layout: Arc<Layout>, device: Device) -> Self {
        crate::tensor::keep_gemm_on_one_thread();
        TypedEvaluator {
            dev: B::open(device),
            cached: None,
            params: None,
            batches: [None, None],
            state: Vec::new(),
            fallback: None,
            task,
            layout,
            device,
        }
    }

    /// Fills the parameters' tensors.
    fn load_params(&mut self, flat: &[E]) {
        let params = self.params.get_or_insert_with(|| self.task.init(&self.dev, Key::new(0)));
        params.read_flat(flat);
    }

    /// Lets the buffers of one evaluation serve the next one, if some are `large` elements: such would
    /// come from the operating system page by page. The cache has no bound of its own, and data made from
    /// vectors enters it without leaving it, so it is emptied now and then.
    fn keep_buffers(&mut self, large: usize) {
        const LARGE: usize = 1 << 14;
        const EVALUATIONS: usize = 16;
        if !B::IN_HOST_MEMORY || self.layout.len() > MANY {
            return;
        }
        self.cached = match self.cached {
            None if large * size_of::<E>() < LARGE => None,
            None => {
                self.dev.enable_cache();
                Some(0)
            }
            Some(EVALUATIONS) => {
                self.dev.empty_cache();
                Some(0)
            }
            Some(n) => Some(n + 1),
        };
    }

    /// Makes `batch` the one that `at` names.
    fn load_batch(&mut self, at: BatchKey) {
        match &mut self.batches[place(at)] {
            Some((have, _)) if *have == at => {}
            Some((have, batch)) => {
                self.task.refill(&self.dev, at, batch);
                *have = at;
            }
            none => *none = Some((at, self.task.batch(&self.dev, at))),
        }
    }
}

/// Where a batch is kept.
fn place(at: BatchKey) -> usize {
    usize::from(at.split != Split::Train)
}

/// The number of a scalar.
fn number<E: Float, B: Backend<E>>(loss: &Tensor<Rank0, E, B>) -> E {
    B::host(loss)[0]
}

impl<E: Float, T, B> Evaluator<E> for TypedEvaluator<E, T, B>
where
    T: Task<E, B> + Task<f64, B>,
    B: Backend<E> + Backend<f64> + Open,
{
    fn loss(&mut self, params: &[E], state: &[E], at: BatchKey) -> E {
        self.load_batch(at);
        if let Some(loss) = Task::<E, B>::closed_form(&*self.task, params, batch!(self, at), None) {
            return loss;
        }
        self.load_params(params);
        self.state.clear();
        self.state.extend_from_slice(state);
        let l = self.task.loss_with_state(params!(self), &mut self.state, batch!(self, at), NoneTape);
        number(&l)
    }

    fn loss_and_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut [E]) -> E {
        self.load_batch(at);
        let closed = Task::<E, B>::closed_form(&*self.task, params, batch!(self, at), Some(grad));
        if let Some(loss) = closed {
            return loss;
        }
        let r = self.recorded(params, state, at);
        // Without asking for gradients that are zero: there may be millions.
        let (used, unused) = grad.split_at_mut(self.used(&r));
        unused.fill(E::of(0.0));
        self.finish(r, [params, state], at, used)
    }

    fn loss_and_used_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut Vec<E>) -> E {
        self.load_batch(at);
        let is_closed = Task::<E, B>::closed_form(&*self.task, params, batch!(self, at), None).is_some();
        if is_closed {
            grad.resize(params.len(), E::of(0.0));
            return self.loss_and_grad(params, state, at, grad);
        }
        let r = self.recorded(params, state, at);
        grad.resize(self.used(&r), E::of(0.0));
        self.finish(r, [params, state], at, grad)
    }

    fn loss_grad_hvp(
        &mut self,
        params: &[E],
        state: &[E],
        at: BatchKey,
        v: &[E],
        grad: &mut [E],
        hvp: &mut [E],
    ) -> E {
        self.load_batch(at);
        if Task::<E, B>::hvp(&*self.task, params, batch!(self, at), v, hvp) {
            let mut state = state.to_vec();
            return self.loss_and_grad(params, &mut state, at, grad);
        }
        self.load_params(params);
        let mut state = state.to_vec();
        let all = self.layout.entries().len();
        let mut r = record_linear(&params!(self).ids(), all, |m| {
            self.task.loss_with_state(params!(self), &mut state, batch!(self, at), m)
        });
        let linear = r.linear.take();
        let loss = self.finish(r, [params, &state], at, grad);
        match linear {
            Some(linear) => OnTape { linear, layout: self.layout.clone() }.hvp(v, hvp),
            None => wide_hvp(self.wide(), [params, &state, v], at, hvp),
        }
        loss
    }

    fn loss_and_leading_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut [E]) -> E {
        if grad.len() == params.len() {
            return self.loss_and_grad(params, state, at, grad);
        }
        self.load_batch(at);
        self.load_params(params);
        let leading = leading_tensors(&self.layout, grad.len());
        let r = record(&params!(self).ids()[..leading], |m| {
            self.task.loss_with_state(params!(self), state, batch!(self, at), m)
        });
        self.finish(r, [params, state], at, grad)
    }

    fn linearize(
        &mut self,
        params: &[E],
        state: &mut [E],
        at: BatchKey,
        grad: &mut [E],
    ) -> (E, Option<Box<dyn Linearization<E>>>) {
        self.load_batch(at);
        let whole = (grad.len() == params.len()).then_some(&mut *grad);
        let is_whole = whole.is_some();
        if let Some(loss) = Task::<E, B>::closed_form(&*self.task, params, batch!(self, at), whole) {
            let loss = if is_whole { loss } else { self.loss_and_leading_grad(params, state, at, grad) };
            return (loss, None);
        }
        self.load_params(params);
        let leading = leading_tensors(&self.layout, grad.len());
        let mut r = record_linear(&params!(self).ids(), leading, |m| {
            self.task.loss_with_state(params!(self), state, batch!(self, at), m)
        });
        let (linear, largest, layout) = (r.linear.take(), r.largest, self.layout.clone());
        let loss = self.finish(r, [params, state], at, grad);
        if self.cached.is_some() && layout.len() > largest {
            // Products take nothing from the device's cache, and spare gradients as large as the parameters weigh more
            // than what they save.
            self.dev.empty_cache();
            self.cached = Some(0);
        }
        let kept = linear.map(|linear| Box::new(OnTape { linear, layout }) as Box<dyn Linearization<E>>);
        (loss, kept)
    }
}

/// The number of tensors that the first `len` elements are.
#[track_caller]
fn leading_tensors(layout: &Layout, len: usize) -> usize {
    let leading = layout.entries().iter().take_while(|e| e.range().end <= len).count();
    let end = layout.entries()[..leading].last().map_or(0, |e| e.range().end);
    assert_eq!(end, len, "leading parameters: the end of a tensor");
    leading
}

/// The leading tensors that `x` holds.
fn cut<'a, E>(layout: &Layout, x: &'a [E]) -> Vec<&'a [E]> {
    let tensors = leading_tensors(layout, x.len());
    layout.entries()[..tensors].iter().map(|e| &x[e.range()]).collect()
}

/// [`cut`] of a buffer to be written.
fn cut_mut<'a, E>(layout: &Layout, x: &'a mut [E]) -> Vec<&'a mut [E]> {
    let tensors = leading_tensors(layout, x.len());
    let mut rest = x;
    let part = |e: &Entry| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(e.numel());
        rest = behind;
        part
    };
    layout.entries()[..tensors].iter().map(part).collect()
}

/// The linearization of a loss made of [`crate::ops`].
struct OnTape<E: Float> {
    linear: Linear<E>,
    layout: Arc<Layout>,
}

impl<E: Float> Drop for OnTape<E> {
    fn drop(&mut self) {
        if self.layout.len() > MANY {
            release_buffers();
        }
    }
}

impl<E: Float> Linearization<E> for OnTape<E> {
    fn bytes(&self) -> usize {
        (self.linear.numel() + self.layout.len()) * size_of::<E>()
    }
    fn product(&mut self, curvature: Curvature, v: &[E], out: &mut [E]) {
        self.products(curvature, &[v], &mut [out]);
    }
    fn products(&mut self, curvature: Curvature, v: &[&[E]], out: &mut [&mut [E]]) {
        let v: Vec<_> = v.iter().map(|v| cut(&self.layout, v)).collect();
        let out = out.iter_mut().map(|out| cut_mut(&self.layout, out)).collect();
        self.linear.products(&v, out, curvature);
    }
    fn layers(&mut self, key: Key) -> Vec<LayerCurvature> {
        let entries = self.layout.entries();
        let place = |at: usize| entries[at].range();
        let found = self.linear.layers(key).into_iter();
        let layer = |LayerMoments { weight, bias, inputs, outputs }| LayerCurvature {
            weight: place(weight),
            bias: bias.map(place),
            inputs,
            outputs,
        };
        found.map(layer).collect()
    }
}

impl<E: Float, T, B> TypedEvaluator<E, T, B>
where
    T: Task<E, B> + Task<f64, B>,
    B: Backend<E> + Backend<f64> + Open,
{
    /// The loss on the batch that `load_batch` made, with its gradients.
    fn recorded(&mut self, params: &[E], state: &mut [E], at: BatchKey) -> Recorded<E, B> {
        self.load_params(params);
        record(&params!(self).ids(), |m| self.task.loss_with_state(params!(self), state, batch!(self, at), m))
    }

    /// The loss of a recording, whose gradient by leading parameters `grad` receives.
    fn finish(
        &mut self,
        mut r: Recorded<E, B>,
        [params, state]: [&[E]; 2],
        at: BatchKey,
        grad: &mut [E],
    ) -> E {
        if r.wide && size_of::<E>() < size_of::<f64>() {
            // It holds differences, which need f64.
            let mut all = vec![0.0; params.len()];
            self.wide().loss_and_grad(&f64s(params), &mut f64s(state), at, &mut all);
            grad.iter_mut().zip(all).for_each(|(g, w)| *g = E::of(w));
        } else {
            params!(self).read_grads(&self.dev, &mut r.grads, grad);
        }
        self.keep_buffers(r.largest);
        number(&r.value)
    }

    /// Elements of the leading parameters of which the last one took part.
    fn used(&self, r: &Recorded<E, B>) -> usize {
        self.layout.entries()[..r.used].last().map_or(0, |e| e.range().end)
    }

    /// The same loss in f64.
    fn wide(&mut self) -> &mut dyn Evaluator<f64> {
        let fallback = self.fallback.get_or_insert_with(|| {
            warn_once(&Task::<E, B>::name(&*self.task));
            Box::new(TypedEvaluator::<f64, T, B>::of(self.task.clone(), self.layout.clone(), self.device))
        });
        fallback.as_mut()
    }
}

/// `H v` by differences in f64.
fn wide_hvp<E: Float>(
    f: &mut dyn Evaluator<f64>,
    [params, state, v]: [&[E]; 3],
    at: BatchKey,
    hvp: &mut [E],
) {
    let wide = hvp_by_differences(f, &f64s(params), &f64s(state), at, &f64s(v));
    hvp.iter_mut().zip(wide).for_each(|(h, w)| *h = E::of(w));
}

fn f64s<E: Float>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| x.f64()).collect()
}

fn warn_once(task: &str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        eprintln!(
            "outerloop: the loss of task `{task}` contains operations that are not in `outerloop_core::ops`, or \
             gradients of gradients; its second (of those: highest) derivatives come from central differences in \
             f64 (about 1e-9 relative, slower)"
        );
    }
}

/// `H v` by differences of the gradient in f64.
pub(crate) fn hvp_by_differences(
    f: &mut dyn Evaluator<f64>,
    params: &[f64],
    state: &[f64],
    at: BatchKey,
    v: &[f64],
) -> Vec<f64> {
    derivative_along(params, v, |p| {
        let mut g = vec![0.0; p.len()];
        f.loss_and_grad(p, &mut state.to_vec(), at, &mut g);
        g
    })
}

/// The derivative of `grad_at` along `v` at `params`, by differences. Where a ReLU kink lies between the two
/// points, the central difference is off by orders of magnitude; then the one-sided difference of smaller
/// norm, on the side without the kink, is taken. As long as what `grad_at` gives; zeros of the length of
/// `params` if `v` is 0.
pub(crate) fn derivative_along(
    params: &[f64],
    v: &[f64],
    mut grad_at: impl FnMut(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let norm = |a: &[f64]| a.iter().map(|x| x * x).sum::<f64>().sqrt();
    let vn = norm(v);
    if vn == 0.0 {
        return vec![0.0; params.len()];
    }
    let eps = 1e-6 * (norm(params) + 1e-3) / vn;
    let mut moved = |c: f64| grad_at(&params.iter().zip(v).map(|(p, v)| p + c * v).collect::<Vec<f64>>());
    let (plus, base, minus) = (moved(eps), moved(0.0), moved(-eps));
    let diff =
        |a: &[f64], b: &[f64], h: f64| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| (a - b) / h).collect() };
    let (right, left) = (diff(&plus, &base, eps), diff(&base, &minus, eps));
    let gap: Vec<f64> = right.iter().zip(&left).map(|(r, l)| r - l).collect();
    let (nr, nl) = (norm(&right), norm(&left));
    if norm(&gap) > 0.05 * nr.min(nl) && norm(&gap) > 1e-6 {
        if nr < nl {
            right
        } else {
            left
        }
    } else {
        diff(&plus, &minus, 2.0 * eps)
    }
}
