//! Loss, gradient and Hessian-vector product of whole models against JAX with haiku (f64 and f32).
//!
//! Each file in `golden` holds `params/..`, `batch/..`, `direction/..`, and the reference's `loss_*`,
//! `grad_*/..` and `hvp_f64/..` = Hessian times direction, under haiku's names. The models are read
//! off the names and shapes, so a file with other sizes needs no code.

use dfdx::prelude::PutTape;
use outerloop_core::ops::{self, Activation, Padding};
use outerloop_core::tensor::{
    Backend, Cpu, DynParams, DynTree, HasShape, Host, Mode, NoneTape, Rank0, Shape, Tensor,
};
use outerloop_core::{BatchKey, FlatTask, Float, Key, Layout, Task, Typed};
use safetensors::{Dtype, SafeTensors};
use std::sync::Arc;

use Activation::{Identity, Relu, Sigmoid, Tanh};

#[derive(Clone, Copy)]
enum Core {
    Gru,
    Lstm,
    /// `relu(x w + b + h w + b)`: the vanilla RNN, and IRNN, under this name.
    Relu(&'static str),
}

#[derive(Clone, Copy)]
enum Model {
    Mlp(Activation),
    LayerNormMlp,
    /// Mean squared error against one-hot labels.
    MseMlp,
    AutoEncoder,
    Conv(Activation, Pool),
    Rnn(Core),
    /// Number of heads.
    Transformer(usize),
}

#[derive(Clone, Copy)]
enum Pool {
    Avg,
    Max,
}

/// A task whose parameters and only batch come from a file.
struct Golden {
    model: Model,
    layout: Arc<Layout>,
    params: Vec<f64>,
    images: Vec<f64>,
    /// `[N, H, W, C]`, or `[N, T]` for text.
    shape: Vec<usize>,
    labels: Vec<u32>,
    tokens: Vec<u32>,
}

/// Parameters by name, traced or not, in the shapes of the layout.
struct Named<'a, E: Float, B: Backend<E>> {
    params: &'a DynParams<E, B>,
    layout: &'a Layout,
}

type Matrix<E, B, M = NoneTape> = Tensor<(usize, usize), E, B, M>;

impl<E: Float, B: Backend<E>> Named<'_, E, B> {
    fn find(&self, name: &str) -> Option<(usize, &[usize])> {
        let at = self.layout.entries().iter().position(|e| e.name == name)?;
        Some((at, &self.layout.entries()[at].shape))
    }
    fn at(&self, name: &str) -> (usize, &[usize]) {
        self.find(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }
    fn vector(&self, name: &str) -> Tensor<(usize,), E, B> {
        let (i, s) = self.at(name);
        self.params.get(i, (s.iter().product(),))
    }
    fn matrix(&self, name: &str) -> Matrix<E, B> {
        let (i, s) = self.at(name);
        self.params.get(i, (s[0], s[1]))
    }
    fn linear<M: Mode<E, B>>(&self, name: &str, x: Matrix<E, B, M>, act: Activation) -> Matrix<E, B, M> {
        ops::linear(x, &self.matrix(&format!("{name}/w")), &self.vector(&format!("{name}/b")), act)
    }
    fn layer_norm<M: Mode<E, B>>(&self, name: &str, x: Matrix<E, B, M>) -> Matrix<E, B, M> {
        ops::layer_norm(x, &self.vector(&format!("{name}/scale")), &self.vector(&format!("{name}/offset")))
    }
    fn embed<M: Mode<E, B>>(&self, name: &str, ids: &[u32], m: M) -> Matrix<E, B, M> {
        let (i, s) = self.at(name);
        ops::embedding(self.params.traced(i, (s[0], s[1]), m), ids)
    }
    /// The layers `prefix`, or `prefix_0`, `prefix_1`, ... as haiku numbers them.
    fn numbered(&self, prefix: &str) -> Vec<String> {
        let names = std::iter::once(prefix.to_string()).chain((0..99).map(|i| format!("{prefix}_{i}")));
        names.filter(|n| self.find(&format!("{n}/w")).is_some()).collect()
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for Golden {
    type Params = DynParams<E, B>;
    type Batch = Option<Tensor<(usize, usize, usize, usize), E, B>>;

    fn name(&self) -> String {
        "golden".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        let flat: Vec<E> = self.params.iter().map(|x| E::of(*x)).collect();
        DynTree::new(dev, self.layout.clone(), &flat)
    }
    fn batch(&self, dev: &B, _: BatchKey) -> Self::Batch {
        let &[n, h, w, c] = &self.shape[..] else { return None };
        let data = self.images.iter().map(|x| E::of(*x)).collect();
        Some(dev.tensor_from_vec(data, (n, h, w, c)))
    }
    fn loss<M: Mode<E, B>>(&self, p: &Self::Params, x: &Self::Batch, m: M) -> Tensor<Rank0, E, B, M> {
        let p = Named { params: p, layout: &self.layout };
        match (self.model, x) {
            (Model::Rnn(core), _) => self.rnn(&p, core, m),
            (Model::Transformer(heads), _) => self.transformer(&p, heads, m),
            (model, Some(x)) => self.vision(&p, model, x.clone(), m),
            _ => panic!("a vision model without images"),
        }
    }
}

impl Golden {
    fn vision<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        p: &Named<'_, E, B>,
        model: Model,
        images: Tensor<(usize, usize, usize, usize), E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let n = self.shape[0];
        let flat = ops::reshape(images.clone(), (n, self.shape[1..].iter().product::<usize>()));
        let mlp = |act: Activation, last: Activation| {
            let layers = p.numbered("mlp/~/linear");
            layers.iter().enumerate().fold(flat.clone().put_tape(m), |h, (i, name)| {
                p.linear(name, h, if i + 1 < layers.len() { act } else { last })
            })
        };
        match model {
            Model::Mlp(act) => ops::softmax_cross_entropy(mlp(act, Identity), &self.labels),
            Model::MseMlp => {
                let logits = mlp(Relu, Identity);
                let classes = p.vector(&format!("{}/b", p.numbered("mlp/~/linear").last().expect("layers")));
                let classes = classes.shape().0;
                let mut one_hot = vec![E::of(0.0); n * classes];
                self.labels
                    .iter()
                    .enumerate()
                    .for_each(|(i, &l)| one_hot[i * classes + l as usize] = E::of(1.0));
                ops::mse(logits, &images.device().tensor_from_vec(one_hot, (n, classes)))
            }
            Model::AutoEncoder => ops::mse(mlp(Relu, Sigmoid), &flat),
            Model::LayerNormMlp => {
                let layers = p.numbered("linear");
                let h = layers.iter().enumerate().fold(flat.put_tape(m), |h, (i, name)| {
                    let h = p.linear(name, h, Identity);
                    if i + 1 == layers.len() {
                        return h;
                    }
                    ops::relu(p.layer_norm(&name.replace("linear", "layer_norm"), h))
                });
                ops::softmax_cross_entropy(h, &self.labels)
            }
            Model::Conv(act, pool) => {
                let layers = p.numbered("conv2_d");
                let h = layers.iter().enumerate().fold(images.put_tape(m), |h, (i, name)| {
                    let (at, s) = p.at(&format!("{name}/w"));
                    let w = p.params.get(at, (s[0], s[1], s[2], s[3]));
                    let stride = if i == 0 { 2 } else { 1 };
                    ops::conv2d(h, &w, &p.vector(&format!("{name}/b")), [stride; 2], Padding::Same, act)
                });
                let h = match pool {
                    Pool::Avg => ops::global_avg_pool(h),
                    Pool::Max => ops::global_max_pool(h),
                };
                ops::softmax_cross_entropy(p.linear("linear", h, Identity), &self.labels)
            }
            Model::Rnn(_) | Model::Transformer(_) => unreachable!("text models"),
        }
    }

    /// Mean cross entropy where the input token is not padding (0). Rows of `logits` are `[T, N]` if
    /// `time_major`, else `[N, T]`.
    fn masked_loss<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        logits: Matrix<E, B, M>,
        time_major: bool,
    ) -> Tensor<Rank0, E, B, M> {
        let (n, t) = (self.shape[0], self.shape[1]);
        let place = |row: usize| if time_major { row % n * t + row / n } else { row };
        let labels: Vec<u32> = (0..n * t).map(|r| self.labels[place(r)]).collect();
        let mask: Vec<E> = (0..n * t).map(|r| E::of((self.tokens[place(r)] != 0).into())).collect();
        ops::weighted_softmax_cross_entropy(logits, &labels, &mask)
    }

    fn rnn<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        p: &Named<'_, E, B>,
        core: Core,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let (n, steps) = (self.shape[0], self.shape[1]);
        let initial = |i: usize| {
            let (at, s) = p.at(&format!("~/initial_state_{i}"));
            ops::repeat_row(p.params.traced(at, (s[1],), m), n)
        };
        let mut h = initial(0);
        let width = h.shape().1;
        let mut c = matches!(core, Core::Lstm).then(|| initial(1));
        let mut outputs = Vec::new();
        for t in 0..steps {
            let ids: Vec<u32> = (0..n).map(|i| self.tokens[i * steps + t]).collect();
            let x = p.embed("embed/embeddings", &ids, m);
            h = match core {
                Core::Relu(name) => ops::relu(ops::add(
                    p.linear(&format!("{name}/linear"), x, Identity),
                    &p.linear(&format!("{name}/linear_1"), h, Identity),
                )),
                Core::Gru => {
                    let x = ops::linear(x, &p.matrix("gru/w_i"), &p.vector("gru/b"), Identity);
                    let w = p.matrix("gru/w_h");
                    let part = |y: &Matrix<E, B, M>, i: usize| ops::columns(y.clone(), i * width, width);
                    let w_zr = ops::columns(traced(&w, m), 0, 2 * width);
                    let hw = ops::matmul(h.clone(), &w_zr);
                    let z = ops::sigmoid(ops::add(part(&x, 0), &part(&hw, 0)));
                    let r = ops::sigmoid(ops::add(part(&x, 1), &part(&hw, 1)));
                    let w_a = ops::columns(traced(&w, m), 2 * width, width);
                    let rh = ops::matmul(ops::mul(r, &h), &w_a);
                    let a = ops::tanh(ops::add(part(&x, 2), &rh));
                    // (1 − z) h + z a
                    ops::add(h.clone(), &ops::mul(z, &ops::sub(a, &h)))
                }
                Core::Lstm => {
                    let gates = p.linear("lstm/linear", ops::concat(x, &h), Identity);
                    let part = |i: usize| ops::columns(gates.clone(), i * width, width);
                    let (i, g, o) = (ops::sigmoid(part(0)), ops::tanh(part(1)), ops::sigmoid(part(3)));
                    let f = ops::sigmoid(ops::shift(part(2), 1.0));
                    let old = c.take().expect("a cell state");
                    let new = ops::add(ops::mul(f, &old), &ops::mul(i, &g));
                    let h = ops::mul(o, &ops::tanh(new.clone()));
                    c = Some(new);
                    h
                }
            };
            outputs.push(h.clone());
        }
        self.masked_loss(p.linear("linear", ops::concat_rows(outputs), Identity), true)
    }

    fn transformer<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        p: &Named<'_, E, B>,
        heads: usize,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let (n, t) = (self.shape[0], self.shape[1]);
        let mut h = p.embed("transformer/embed/embeddings", &self.tokens, m);
        // 0 where a key may be seen: not padding, and not later than the query.
        let mut mask = vec![E::of(-1e30); n * heads * t * t];
        for (at, m) in mask.iter_mut().enumerate() {
            let (i, q, k) = (at / (heads * t * t), at / t % t, at % t);
            if k <= q && self.tokens[i * t + k] != 0 {
                *m = E::of(0.0);
            }
        }
        let mask = h.device().tensor_from_vec(mask, (n * heads, t, t));
        for layer in 0.. {
            let name = |part: &str| format!("transformer/h{layer}_{part}");
            if p.find(&name("ln_1/scale")).is_none() {
                break;
            }
            let x = p.layer_norm(&name("ln_1"), h.clone());
            let key = p.vector(&name("attn/query/b"));
            let key = key.shape().0 / heads;
            let split = |part: &str| {
                let y = p.linear(&name(part), x.clone(), Identity);
                ops::reshape(ops::swap_middle(ops::reshape(y, (n, t, heads, key))), (n * heads, t, key))
            };
            let scores = ops::batch_matmul_transposed(split("attn/query"), &split("attn/key"));
            let scores = ops::add(ops::scale(scores, 1.0 / (key as f64).sqrt()), &mask);
            let seen = ops::batch_matmul(ops::softmax(scores), &split("attn/value"));
            let seen = ops::swap_middle(ops::reshape(seen, (n, heads, t, key)));
            let seen = ops::reshape(seen, (n * t, heads * key));
            h = ops::add(h, &p.linear(&name("attn/linear"), seen, Identity));
            let x = p.linear(&name("mlp/linear"), p.layer_norm(&name("ln_2"), h.clone()), Identity);
            h = ops::add(h, &p.linear(&name("mlp/linear_1"), ops::gelu(x), Identity));
        }
        let h = p.layer_norm("transformer/h_f", h);
        self.masked_loss(p.linear("transformer/linear", h, Identity), false)
    }
}

fn traced<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(t: &Tensor<S, E, B>, m: M) -> Tensor<S, E, B, M> {
    t.clone().put_tape(m)
}

/// A tensor of the file, widened to f64.
fn read(file: &SafeTensors<'_>, name: &str) -> Option<(Vec<f64>, Vec<usize>)> {
    let view = file.tensor(name).ok()?;
    let bytes = view.data();
    let data = match view.dtype() {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
        }
        Dtype::I32 => {
            bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
        }
        Dtype::F64 => {
            bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
        }
        other => panic!("{name}: {other:?}"),
    };
    Some((data, view.shape().to_vec()))
}

struct Case {
    task: Golden,
    direction: Vec<f64>,
    loss: f64,
    grad: Vec<f64>,
    hvp: Vec<f64>,
}

fn load(name: &str, model: Model) -> Case {
    let path = format!("{}/tests/golden/D_task_{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut names: Vec<&str> = file.names().into_iter().filter_map(|n| n.strip_prefix("params/")).collect();
    names.sort_unstable();
    let get = |name: &str| read(&file, name).unwrap_or_else(|| panic!("{path}: no {name}"));
    let flat =
        |group: &str| -> Vec<f64> { names.iter().flat_map(|n| get(&format!("{group}/{n}")).0).collect() };
    let ids = |name: &str| -> Vec<u32> {
        read(&file, name).map_or(Vec::new(), |(x, _)| x.into_iter().map(|x| x as u32).collect())
    };
    let layout = Layout::new(names.iter().map(|n| (*n, get(&format!("params/{n}")).1)));
    let (images, shape) = read(&file, "batch/image").unwrap_or_else(|| get("batch/obs"));
    let labels = [ids("batch/label"), ids("batch/target")].concat();
    let task = Golden {
        model,
        layout: Arc::new(layout),
        params: flat("params"),
        images,
        shape,
        labels,
        tokens: ids("batch/obs"),
    };
    Case {
        task,
        direction: flat("direction"),
        loss: get("loss_f64").0[0],
        grad: flat("grad_f64"),
        hvp: flat("hvp_f64"),
    }
}

/// Largest difference, NaN if there is one.
fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if m.is_nan() || d <= m { m } else { d })
}

fn evaluate<E: Float>(task: Golden, v: &[f64]) -> [Vec<f64>; 3]
where
    Cpu: Host<E>,
{
    let task: Box<dyn FlatTask<E>> = Box::new(Typed::new(task));
    let p = task.init(Key::new(0)).data;
    let v: Vec<E> = v.iter().map(|x| E::of(*x)).collect();
    let (mut g, mut h, mut plain) = (p.clone(), p.clone(), p.clone());
    let at = BatchKey::train(0, Key::new(0));
    let mut eval = task.evaluator();
    let loss = eval.loss_grad_hvp(&p, &[], at, &v, &mut g, &mut h);
    let again = eval.loss_and_grad(&p, &mut [], at, &mut plain);
    assert_eq!((loss, &g), (again, &plain), "with and without Hv");
    let wide = |x: &[E]| x.iter().map(|x| x.f64()).collect();
    [wide(&[loss]), wide(&g), wide(&h)]
}

/// Checks f64 to 1e-9, f32 to the reference's own tolerances: `grad` (absolute), loss 1e-6 relative,
/// and `hvp` ten times the reference's own distance between f32 and f64.
fn check(name: &str, model: Model, grad_f32: f64, hvp_f32: f64) {
    let case = load(name, model);
    let [loss, grad, hvp] = evaluate::<f64>(load(name, model).task, &case.direction);
    let distances = [worst(&loss, &[case.loss]), worst(&grad, &case.grad), worst(&hvp, &case.hvp)];
    assert!(distances.iter().all(|d| *d < 1e-9), "{name} in f64: loss, gradient, Hv differ by {distances:?}");
    let [loss, grad, hvp] = evaluate::<f32>(load(name, model).task, &case.direction);
    let distances =
        [worst(&loss, &[case.loss]) / case.loss, worst(&grad, &case.grad), worst(&hvp, &case.hvp)];
    let within = [1e-6, grad_f32, hvp_f32];
    assert!(
        distances.iter().zip(within).all(|(d, w)| *d < w),
        "{name} in f32: {distances:?}, allowed {within:?}"
    );
}

macro_rules! golden {
    ($($name:ident: $model:expr, $grad:expr, $hvp:expr;)+) => {$(
        #[test]
        fn $name() {
            check(stringify!($name), $model, $grad, $hvp);
        }
    )+};
}

golden! {
    mlp_relu_64_32_10: Model::Mlp(Relu), 2.1e-7, 3.1e-6;
    mlp_tanh_64_24_16_10: Model::Mlp(Tanh), 2.3e-7, 1.7e-6;
    mlp_mse_64_16_10: Model::MseMlp, 2.1e-7, 1.3e-6;
    mlp_ae: Model::AutoEncoder, 1.3e-8, 5.1e-8;
    mlp_layernorm_64_12_12_10: Model::LayerNormMlp, 5.7e-7, 7.6e-6;
    conv_relu_avg: Model::Conv(Relu, Pool::Avg), 9.1e-6, 1.7e-5;
    conv_tanh_max: Model::Conv(Tanh, Pool::Max), 9.3e-7, 6.8e-6;
    rnnlm_gru: Model::Rnn(Core::Gru), 2.4e-7, 1.0e-6;
    rnnlm_lstm: Model::Rnn(Core::Lstm), 3.4e-7, 5.1e-7;
    rnnlm_vanilla: Model::Rnn(Core::Relu("vanilla_rnn")), 1.0e-6, 2.7e-6;
    rnnlm_irnn: Model::Rnn(Core::Relu("irnn")), 3.5e-7, 1.0e-6;
    transformer_lm: Model::Transformer(2), 5.5e-6, 2.7e-4;
}
