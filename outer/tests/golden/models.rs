//! The language models of kind D, read off the names and shapes of a file's tensors.

use crate::losses::read;
use dfdx::prelude::PutTape;
use outerloop_core::ops::{self, Activation};
use outerloop_core::tensor::{Backend, DynParams, DynTree, HasShape, Mode, NoneTape, Rank0, Shape, Tensor};
use outerloop_core::{BatchKey, Float, Key, Layout, Task};
use safetensors::SafeTensors;
use serde_json::Value;
use std::sync::Arc;

use Activation::Identity;

#[derive(Clone, Copy)]
enum Core {
    Gru,
    Lstm,
    /// `relu(x w + b + h w + b)`: the vanilla RNN, and IRNN, under this name.
    Relu(&'static str),
}

#[derive(Clone, Copy)]
enum Kind {
    Rnn(Core),
    /// Number of heads.
    Transformer(usize),
}

/// A language model whose only batch comes from a file.
#[derive(Clone)]
pub struct TextModel {
    kind: Kind,
    layout: Arc<Layout>,
    rows: usize,
    steps: usize,
    /// `[rows, steps]`
    labels: Vec<u32>,
    /// `[rows, steps]`
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
}

impl<E: Float, B: Backend<E>> Task<E, B> for TextModel {
    type Params = DynParams<E, B>;
    type Batch = ();

    fn name(&self) -> String {
        "golden".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        DynTree::new(dev, self.layout.clone(), &vec![E::of(0.0); self.layout.len()])
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, p: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        let p = Named { params: p, layout: &self.layout };
        match self.kind {
            Kind::Rnn(core) => self.rnn(&p, core, m),
            Kind::Transformer(heads) => self.transformer(&p, heads, m),
        }
    }
}

impl TextModel {
    /// The model of a file; none if its parameters are those of no known model.
    pub fn of(file: &SafeTensors<'_>, description: &str) -> Option<Self> {
        let layout = file_layout(file);
        let has = |name: &str| layout.entries().iter().any(|e| e.name == name);
        let kind = if has("transformer/embed/embeddings") {
            Kind::Transformer(heads(&layout, description))
        } else if has("gru/w_i") {
            Kind::Rnn(Core::Gru)
        } else if has("lstm/linear/w") {
            Kind::Rnn(Core::Lstm)
        } else {
            let relu = ["vanilla_rnn", "irnn"].into_iter();
            Kind::Rnn(Core::Relu(relu.into_iter().find(|n| has(&format!("{n}/linear_1/w")))?))
        };
        let ids = |name: &str| -> (Vec<u32>, Vec<usize>) {
            let (ids, shape) = read(file, name).unwrap_or_else(|| panic!("the case has no `{name}`"));
            (ids.into_iter().map(|x| x as u32).collect(), shape)
        };
        let ((tokens, shape), (labels, _)) = (ids("batch/obs"), ids("batch/target"));
        let &[rows, steps] = &shape[..] else { panic!("tokens of shape {shape:?}") };
        Some(TextModel { kind, layout: Arc::new(layout), rows, steps, labels, tokens })
    }

    /// Names and shapes of the file.
    pub fn layout(&self) -> Arc<Layout> {
        self.layout.clone()
    }

    /// Mean cross entropy where the input token is not padding (0). Rows of `logits` are `[T, N]` if
    /// `time_major`, else `[N, T]`.
    fn masked_loss<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        logits: Matrix<E, B, M>,
        time_major: bool,
    ) -> Tensor<Rank0, E, B, M> {
        let (n, t) = (self.rows, self.steps);
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
        let (n, steps) = (self.rows, self.steps);
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
        let (n, t) = (self.rows, self.steps);
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

/// Names and shapes of a file's parameters, sorted.
pub fn file_layout(file: &SafeTensors<'_>) -> Layout {
    let mut names: Vec<&str> = file.names().into_iter().filter_map(|n| n.strip_prefix("params/")).collect();
    names.sort_unstable();
    let shape = |name: &str| file.tensor(&format!("params/{name}")).map(|t| t.shape().to_vec());
    Layout::new(names.iter().map(|n| (*n, shape(n).expect("a tensor of the file"))))
}

/// The number of heads: of the configuration that the description quotes, else by the library's key
/// size of 32.
fn heads(layout: &Layout, description: &str) -> usize {
    let quoted = description.find('{').zip(description.rfind('}')).map(|(from, to)| &description[from..=to]);
    let config: Option<Value> = quoted.and_then(|text| serde_json::from_str(text).ok());
    let named = config.and_then(|c| c["num_heads"].as_u64()).map(|n| n as usize);
    named.unwrap_or_else(|| {
        let query = layout.entries().iter().find(|e| e.name == "transformer/h0_attn/query/b");
        query.map_or(1, |e| e.numel() / 32)
    })
}
