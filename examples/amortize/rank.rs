//! Learning to rank: scores of items from features, trained on true ranks through a perturbed ranking.

use crate::{mean, table, Options};
use outerloop::amortized::net::Mlp;
use outerloop::amortized::perturbed::{oracle, Perturbed, Variance};
use outerloop::amortized::problem::Rows;
use outerloop::core::ops;
use outerloop::core::tensor::{
    host_data, Backend, Cpu, DynParams, DynTree, Float, Mode, PutTape, Rank0, Tensor, TensorFromVec,
};
use outerloop::core::{BatchKey, Key, Layout, Result, Split, Task, Typed};
use std::sync::Arc;

/// Items per list, features per item, lists per batch.
const SHAPE: [usize; 3] = [6, 5, 32];

/// What is trained on.
#[derive(Clone, Copy, PartialEq)]
enum By {
    FenchelYoung,
    SquaredRanks,
}

#[derive(Clone)]
struct Ranking {
    by: By,
    net: Mlp,
}

impl Ranking {
    /// Features `[N D, F]` of a key, and true ranks `[N, D]`: of a hidden nonlinear score, with noise.
    fn draw(&self, key: Key) -> (Vec<f64>, Vec<f64>) {
        let [items, features, lists] = SHAPE;
        let (mut x, mut e) = (vec![0.0; lists * items * features], vec![0.0; lists * items]);
        key.named("x").fill_normal(&mut x);
        key.named("noise").fill_normal(&mut e);
        let score = |(x, e): (&[f64], &f64)| x[0] - 0.7 * x[1] + (x[2] * x[3]).tanh() + 0.1 * e;
        let scores: Vec<f64> = x.chunks(features).zip(&e).map(score).collect();
        let ranks = scores.chunks(items).flat_map(|s| oracle::ranking()(s)).collect();
        (x, ranks)
    }
    fn scores<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        p: &DynParams<E, B>,
        x: &Rows<E, B>,
        m: M,
    ) -> Rows<E, B, M> {
        let [items, _, lists] = SHAPE;
        ops::reshape(self.net.forward(p, 0, x.clone().put_tape(m)), (lists, items))
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for Ranking {
    type Params = DynParams<E, B>;
    type Batch = (Rows<E, B>, Rows<E, B>, Key);
    fn name(&self) -> String {
        "ranking".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let mut layout = Layout::default();
        self.net.push(&mut layout, "");
        let mut flat = vec![0.0; layout.len()];
        self.net.fill(key, &mut flat);
        DynParams::<E, B>::new(dev, Arc::new(layout), &flat.into_iter().map(E::of).collect::<Vec<E>>())
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let [items, features, lists] = SHAPE;
        let (x, y) = self.draw(at.noise());
        let of =
            |v: Vec<f64>, shape| dev.tensor_from_vec(v.into_iter().map(E::of).collect::<Vec<E>>(), shape);
        (of(x, (lists * items, features)), of(y, (lists, items)), at.noise().named("perturbation"))
    }
    fn loss<M: Mode<E, B>>(
        &self,
        p: &Self::Params,
        (x, y, key): &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let settings =
            Perturbed { sigma: 0.5, samples: 20, variance: Variance::LeaveOneOut, ..Perturbed::default() };
        let scores = self.scores(p, x, m);
        match self.by {
            By::FenchelYoung => settings.fenchel_young(scores, y, &oracle::ranking(), *key),
            By::SquaredRanks => {
                let ranks = settings.output(scores, &oracle::ranking(), *key);
                ops::mean(ops::square(ops::sub(ranks, y)))
            }
        }
    }
}

pub fn run(o: &Options) -> Result<()> {
    let net = Mlp::new([SHAPE[1], 32, 1]);
    let mut rows = Vec::new();
    for (name, by) in [("fenchel-young", By::FenchelYoung), ("squared-ranks", By::SquaredRanks)] {
        let task = Ranking { by, net: net.clone() };
        let theta = o.train(&format!("rank-{name}"), Arc::new(Typed::new(task.clone())), 5e-3, 800)?;
        rows.push((name.to_string(), agreement(&task, &theta, o.seed)));
    }
    let untrained = Ranking { by: By::FenchelYoung, net };
    let start: Vec<f32> = {
        let p = Task::<f32, Cpu>::init(&untrained, &Cpu::default(), Key::new(o.seed));
        let mut flat = vec![0.0; untrained.net.len()];
        outerloop::core::tensor::ParamTree::write_flat(&p, &mut flat);
        flat
    };
    rows.push(("untrained".into(), agreement(&untrained, &start, o.seed)));
    table("unseen lists of 6 items: pairs in the right order, lists right from first to last", &rows);
    Ok(())
}

fn agreement(task: &Ranking, theta: &[f32], seed: u64) -> String {
    let [items, features, lists] = SHAPE;
    let dev = Cpu::default();
    let p = Task::<f32, Cpu>::init(task, &dev, Key::new(0));
    let mut p = p;
    outerloop::core::tensor::ParamTree::read_flat(&mut p, theta);
    let (mut pairs, mut whole) = (Vec::new(), Vec::new());
    for step in 0..30 {
        let at = BatchKey { split: Split::Test, step, key: Key::new(1 + seed) };
        let (x, y) = task.draw(at.noise());
        let x = x.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
        let x: Rows<f32, Cpu> = dev.tensor_from_vec(x, (lists * items, features));
        let s = task.scores(&p, &x, outerloop::core::tensor::NoneTape);
        for (s, y) in host_data(&s).chunks(items).zip(y.chunks(items)) {
            let ordered = |i: usize, j: usize| (s[i] > s[j]) == (y[i] > y[j]);
            let all: Vec<bool> =
                (0..items).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| ordered(i, j)).collect();
            pairs.extend(all.iter().map(|b| f64::from(u8::from(*b))));
            whole.push(f64::from(u8::from(all.iter().all(|b| *b))));
        }
    }
    format!("{:.1} %   {:.1} %", 100.0 * mean(&pairs).0, 100.0 * mean(&whole).0)
}
