//! The problems of kinds D, E and F, with explicit parameters and batches.

use crate::fixture::{array, get, inputs, numbers, tree_lane, tree_layout};
use outerloop_core::ops::{linear, mse, softmax_cross_entropy, Activation};
use outerloop_core::tensor::{Backend, Cpu, DynParams, DynTree, Host, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Evaluator, FlatTask, Float, Key, Layout, Params, Task, Typed};
use outerloop_tasks::data::digits;
use serde_json::Value;
use std::sync::Arc;

/// Which of a case's batches.
#[derive(Clone, Copy)]
pub struct Place {
    /// From `outer_batch_index` instead of `batch_index`.
    pub outer: bool,
    /// The truncation, where batches are listed per truncation.
    pub window: Option<usize>,
    pub step: usize,
    pub lane: usize,
}

pub type PlaceFn = dyn Fn(BatchKey) -> Place + Send + Sync;

/// What the lanes of an estimator case share.
pub struct GoldenProblem {
    layout: Arc<Layout>,
    initial: Value,
    reset: Value,
    batches: Value,
    outer_batches: Value,
    /// Targets of the quadratics; none for image tasks.
    targets: Option<(Value, Value)>,
}

impl GoldenProblem {
    pub fn of_estimator_case(case: &Value) -> Self {
        let list = |key: &str| case.get(key).cloned().unwrap_or_default();
        match case.get("initial_x") {
            Some(x) => {
                let wrap = |v: &Value| serde_json::json!({ "x": v });
                let initial = wrap(x);
                GoldenProblem {
                    layout: tree_layout(&initial, 1),
                    initial,
                    reset: wrap(get(case, "reset_x")),
                    batches: Value::Null,
                    outer_batches: Value::Null,
                    targets: Some((list("initial_targets"), list("reset_target"))),
                }
            }
            None => GoldenProblem {
                layout: tree_layout(get(case, "initial_params"), 1),
                initial: list("initial_params"),
                reset: list("reset_params"),
                batches: list("batch_index"),
                outer_batches: list("outer_batch_index"),
                targets: None,
            },
        }
    }

    fn rows(&self, p: Place) -> Vec<usize> {
        let mut v = if p.outer { &self.outer_batches } else { &self.batches };
        if let Some(w) = p.window {
            v = &array(v)[w];
        }
        numbers(&array(&array(v)[p.step])[p.lane]).into_iter().map(|x| x as usize).collect()
    }
}

/// One lane's task.
pub struct GoldenTask<E: Float> {
    start: Params<E>,
    inner: Arc<dyn FlatTask<E>>,
}

impl<E: Float> GoldenTask<E>
where
    Cpu: Host<E>,
    GoldenMlp: Task<E, Cpu>,
{
    pub fn new(problem: Arc<GoldenProblem>, lane: usize, reset: bool, place: Arc<PlaceFn>) -> Self {
        let layout = problem.layout.clone();
        let data = if reset {
            layout.entries().iter().flat_map(|e| inputs(get(&problem.reset, &e.name))).collect()
        } else {
            tree_lane(&problem.initial, &layout, lane)
        };
        let inner: Arc<dyn FlatTask<E>> = match &problem.targets {
            Some((initial, after)) => {
                let target: Vec<f64> = if reset { inputs(after) } else { inputs(&array(initial)[lane]) };
                Arc::new(Typed::new(GoldenQuadratic { layout: layout.clone(), target }))
            }
            None => {
                let batches = Arc::new(move |at: BatchKey| problem.rows(place(at)));
                let clip = Some(1.5 * 10f64.ln());
                Arc::new(Typed::new(GoldenMlp {
                    layout: layout.clone(),
                    batches,
                    loss: Loss::CrossEntropy,
                    clip,
                }))
            }
        };
        GoldenTask { start: Params { layout, data }, inner }
    }
}

impl<E: Float> FlatTask<E> for GoldenTask<E> {
    fn name(&self) -> String {
        "golden".into()
    }
    fn layout(&self) -> Arc<Layout> {
        self.start.layout.clone()
    }
    fn init(&self, _: Key) -> Params<E> {
        self.start.clone()
    }
    fn init_state(&self) -> Vec<E> {
        Vec::new()
    }
    fn evaluator(&self) -> Box<dyn Evaluator<E>> {
        self.inner.evaluator()
    }
    fn normalizer(&self, loss: f64) -> f64 {
        self.inner.normalizer(loss)
    }
}

/// Of logits and labels.
#[derive(Clone, Copy, PartialEq)]
pub enum Loss {
    CrossEntropy,
    /// Mean over batch and classes of `(logit − onehot)²`.
    SquaredError,
}

/// The rows of a batch.
pub type RowsFn = dyn Fn(BatchKey) -> Vec<usize> + Send + Sync;

/// An MLP with ReLU on digits; the layout is `b`, `w` per layer, in order.
pub struct GoldenMlp {
    pub layout: Arc<Layout>,
    pub batches: Arc<RowsFn>,
    pub loss: Loss,
    /// The normalizer clips to `[0, clip]`, and replaces what is not finite by `clip`.
    pub clip: Option<f64>,
}

impl<E: Float, B: Backend<E>> Task<E, B> for GoldenMlp {
    type Params = DynParams<E, B>;
    type Batch = (Tensor<(usize, usize), E, B>, Vec<u32>);

    fn name(&self) -> String {
        "golden mlp".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        DynParams::<E, B>::new(dev, self.layout.clone(), &vec![E::of(0.0); self.layout.len()])
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let data = digits();
        let rows = (self.batches)(at);
        let features = data.features();
        let pixel =
            |&r: &usize| data.images[r * features..(r + 1) * features].iter().map(|x| E::of(f64::from(*x)));
        let x: Vec<E> = rows.iter().flat_map(pixel).collect();
        (dev.tensor_from_vec(x, (rows.len(), features)), rows.iter().map(|&r| data.labels[r]).collect())
    }
    fn loss<M: Mode<E, B>>(
        &self,
        p: &Self::Params,
        (x, labels): &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::{HasShape, PutTape};
        let layers = self.layout.entries().len() / 2;
        let mut h = x.clone().put_tape(m);
        for l in 0..layers {
            let shape = &self.layout.entries()[2 * l + 1].shape;
            let (w, b) = (p.get(2 * l + 1, (shape[0], shape[1])), p.get(2 * l, (shape[1],)));
            let act = if l + 1 == layers { Activation::Identity } else { Activation::Relu };
            h = linear(h, &w, &b, act);
        }
        match self.loss {
            Loss::CrossEntropy => softmax_cross_entropy(h, labels),
            Loss::SquaredError => {
                let classes = h.shape().1;
                let onehot =
                    |&l: &u32| (0..classes).map(move |c| E::of(f64::from(u8::from(c == l as usize))));
                let target: Vec<E> = labels.iter().flat_map(onehot).collect();
                mse(h, &x.device().tensor_from_vec(target, (labels.len(), classes)))
            }
        }
    }
    fn normalizer(&self, loss: f64) -> f64 {
        match self.clip {
            Some(top) if loss.is_finite() => loss.clamp(0.0, top),
            Some(top) => top,
            None => loss,
        }
    }
}

/// `Σ (target − x)²`.
struct GoldenQuadratic {
    layout: Arc<Layout>,
    target: Vec<f64>,
}

impl<E: Float, B: Backend<E>> Task<E, B> for GoldenQuadratic {
    type Params = DynParams<E, B>;
    type Batch = ();

    fn name(&self) -> String {
        "golden quadratic".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        DynParams::<E, B>::new(dev, self.layout.clone(), &vec![E::of(0.0); self.layout.len()])
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, p: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::{HasShape, SumTo};
        let x = p.traced(0, (self.layout.len(),), m);
        let target: Vec<E> = self.target.iter().map(|t| E::of(*t)).collect();
        let target = p.get(0, (self.layout.len(),)).device().tensor_from_vec(target, (x.shape().0,));
        (x - target).square().sum()
    }
}
