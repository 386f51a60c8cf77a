//! [`RatioTask`]: a ratio estimator as a task that any optimizer trains.

use super::features::Features;
use super::loss::RatioLoss;
use super::net::RatioNet;
use super::simulator::{simulate_one, Simulator};
use super::{Prior, Simulations};
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, PutTape, Rank0, Tensor};
use outerloop_core::{BatchKey, Error, Float, Key, Layout, Result, Split, Task};
use outerloop_tasks::data::Permutation;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Simulations that stand in for an invalid one, before it is given up.
const REDRAWS: u64 = 1000;

/// Where pairs come from.
#[derive(Clone)]
pub enum Pairs {
    /// A fixed set of simulations, met in a new order in every epoch, each time with new contrasting
    /// parameters. A part is kept for validation.
    Fixed {
        /// The set.
        simulations: Arc<Simulations>,
        /// Its part for validation, in (0, 1). The paper of NRE-A and sbi have 0.1.
        valid: f64,
    },
    /// Every batch is simulated anew, as in the seed: no pair is met twice, nothing can be memorized.
    /// `n` batches of the training split are `n` times the batch size simulator calls. A simulation that is not finite
    /// is replaced by another one, with parameters of its own, and counted ([`RatioTask::redrawn`]): the target is then
    /// the posterior given that the simulation is valid.
    Fresh(Arc<dyn Simulator>),
}

/// Where contrasting parameters come from.
#[derive(Clone)]
pub enum Contrast {
    /// Independent draws from the prior: new ones in every batch.
    Prior(Arc<dyn Prior>),
    /// Other rows of the simulations: for those whose prior can not be sampled.
    Shuffle,
    /// All other parameters of the batch ([`RatioLoss::all_pairs`]): the most contrasts per simulation.
    Batch,
}

/// What a [`RatioTask`] is made of.
#[derive(Clone)]
pub struct RatioTaskConfig {
    /// The network.
    pub net: RatioNet,
    /// What is minimized.
    pub loss: RatioLoss,
    /// What the network sees.
    pub features: Features,
    /// The training data.
    pub pairs: Pairs,
    /// Contrasting parameters.
    pub contrast: Contrast,
    /// Simulations per batch; each has [`RatioLoss::columns`] rows, or one under [`Contrast::Batch`].
    pub batch_size: usize,
}

/// The rows of a fixed set, as the network sees them.
struct Fixed {
    theta: Vec<f32>,
    x: Vec<f32>,
    train: Vec<u32>,
    valid: Vec<u32>,
}

/// A classifier of `(theta, x)` pairs. Parameters: the network's weights. A batch: simulations with
/// contrasting parameters, a pure function of its key. [`Split::Train`] is trained on; the other splits show
/// the rows kept for validation, in order (fresh simulations, where there is no fixed set). A clone shares the data and
/// the count of [`Self::redrawn`].
#[derive(Clone)]
pub struct RatioTask {
    config: RatioTaskConfig,
    layout: Arc<Layout>,
    fixed: Option<Arc<Fixed>>,
    redrawn: Arc<AtomicU64>,
}

/// Inputs of a batch.
pub struct PairBatch<E: Float, B: Backend<E>> {
    /// `[n columns, inputs]`
    theta: Tensor<(usize, usize), E, B>,
    /// `[n, inputs]`
    x: Tensor<(usize, usize), E, B>,
}

impl RatioTask {
    /// Checks that all parts fit.
    ///
    /// # Errors
    /// Losses out of range; inputs that are not the features'; a batch size of 0, or larger than either part
    /// of the fixed set; shuffling without a fixed set.
    pub fn new(config: RatioTaskConfig) -> Result<Self> {
        config.loss.validate()?;
        let RatioTaskConfig { net, features, pairs, contrast, batch_size, .. } = &config;
        if net.inputs() != features.inputs() {
            return Err(Error::mismatch(
                "ratio task: inputs of the network",
                features.inputs(),
                net.inputs(),
            ));
        }
        if let Contrast::Prior(prior) = contrast {
            features.check_prior(&**prior)?;
        }
        let fixed = match pairs {
            Pairs::Fresh(simulator) => {
                let dims = [simulator.prior().dim(), simulator.data_dim()];
                if dims != features.dims() {
                    return Err(Error::mismatch("ratio task: sizes of theta and x", features.dims(), dims));
                }
                if matches!(contrast, Contrast::Shuffle) {
                    let why = "shuffled contrasts need a fixed set of simulations";
                    return Err(Error::invalid("ratio task", why));
                }
                None
            }
            Pairs::Fixed { simulations, valid } => Some(Fixed::new(features, simulations, *valid)?),
        };
        let smallest = fixed.as_ref().map_or(usize::MAX, |f| f.train.len().min(f.valid.len()));
        if *batch_size == 0 || *batch_size > smallest {
            let why = match &fixed {
                None => "must be at least 1, got 0".to_string(),
                Some(f) => format!(
                    "expected 1 to {smallest} ({} simulations to train on, {} for validation), got {batch_size}",
                    f.train.len(),
                    f.valid.len()
                ),
            };
            return Err(Error::invalid("ratio task: batch size", why));
        }
        if matches!(contrast, Contrast::Batch) && *batch_size < 3 {
            let why = format!("contrasts within a batch need at least 3 simulations, got {batch_size}");
            return Err(Error::invalid("ratio task: batch size", why));
        }
        let layout = Arc::new(config.net.layout());
        Ok(RatioTask { config, layout, fixed: fixed.map(Arc::new), redrawn: Arc::default() })
    }

    /// Fresh simulations so far that were not finite, and replaced. A count for reports: it starts anew in every process.
    pub fn redrawn(&self) -> u64 {
        self.redrawn.load(Ordering::Relaxed)
    }

    /// Rows of parameters per data row.
    fn columns(&self) -> usize {
        match self.config.contrast {
            Contrast::Batch => 1,
            _ => self.config.loss.columns(),
        }
    }

    /// Simulation number `i` of a batch, or the first valid one after it.
    fn fresh(&self, s: &dyn Simulator, key: Key, i: u64, theta: &mut [f64], x: &mut [f64]) {
        simulate_one(s, key, i, theta, x);
        for again in 0..REDRAWS {
            if x.iter().all(|x| (*x as f32).is_finite()) {
                return;
            }
            self.redrawn.fetch_add(1, Ordering::Relaxed);
            simulate_one(s, key.named("again").fold_in(again), i, theta, x);
        }
    }

    /// The parts.
    pub fn config(&self) -> &RatioTaskConfig {
        &self.config
    }

    /// Batches in one pass over the training data; `None`: it has no end.
    pub fn epoch(&self) -> Option<u64> {
        self.fixed.as_ref().map(|f| (f.train.len() / self.config.batch_size) as u64)
    }

    /// Batches that show all of the validation data once; `None`: it has no end.
    pub fn valid_batches(&self) -> Option<u64> {
        self.fixed.as_ref().map(|f| (f.valid.len() / self.config.batch_size) as u64)
    }

    /// Rows of the fixed set that are kept for validation; none of fresh simulations.
    pub fn held_out(&self) -> &[u32] {
        self.fixed.as_ref().map_or(&[], |f| &f.valid)
    }

    /// What a resumed run must match.
    pub fn describe(&self) -> String {
        let c = &self.config;
        let pairs = match &c.pairs {
            Pairs::Fresh(s) => format!("fresh {}", s.describe()),
            Pairs::Fixed { simulations, valid } => {
                // Any change of the data changes this sum.
                let numbers = simulations.theta().iter().chain(simulations.x());
                let sum = numbers.fold(0u64, |s, v| s.rotate_left(5) ^ u64::from(v.to_bits()));
                format!("{} simulations #{sum:016x}, {valid} for validation", simulations.len())
            }
        };
        let contrast = match &c.contrast {
            Contrast::Prior(p) => p.describe(),
            Contrast::Shuffle => "shuffled".into(),
            Contrast::Batch => "batch".into(),
        };
        format!(
            "{:?}; {:?}; {:?}; pairs: {pairs}; contrast: {contrast}; batches of {}",
            c.net, c.loss, c.features, c.batch_size
        )
    }

    /// Writes the inputs of the batch that `at` names.
    pub(super) fn fill(&self, at: BatchKey, theta: &mut [f32], x: &mut [f32]) {
        let RatioTaskConfig { features, batch_size, .. } = &self.config;
        let (columns, [a, b], [d, p]) = (self.columns(), features.inputs(), features.dims());
        let key = at.noise();
        let (mut raw, mut raw_x) = (vec![0.0; d], vec![0.0; p]);
        let contrasts = key.named("contrast");
        let rows = self.fixed.as_ref().map(|f| f.rows(at, *batch_size));
        for i in 0..*batch_size {
            let own = &mut theta[i * columns * a..];
            match (&self.config.pairs, &self.fixed, &rows) {
                (Pairs::Fixed { .. }, Some(f), Some(rows)) => {
                    let r = rows[i] as usize;
                    own[..a].copy_from_slice(&f.theta[r * a..][..a]);
                    x[i * b..][..b].copy_from_slice(&f.x[r * b..][..b]);
                }
                (Pairs::Fresh(s), ..) => {
                    self.fresh(&**s, key.named("joint"), i as u64, &mut raw, &mut raw_x);
                    features.theta_into(raw.iter().copied(), &mut own[..a]);
                    features.x_into(raw_x.iter().copied(), &mut x[i * b..][..b]);
                }
                (Pairs::Fixed { .. }, ..) => unreachable!("a fixed set has rows"),
            }
            for k in 1..columns {
                let key = contrasts.fold_in((i * columns + k) as u64);
                let out = &mut own[k * a..][..a];
                match (&self.config.contrast, &self.fixed) {
                    (Contrast::Prior(prior), _) => {
                        prior.sample(key, &mut raw);
                        features.theta_into(raw.iter().copied(), out);
                    }
                    (Contrast::Shuffle, Some(f)) => {
                        let own = rows.as_ref().map_or(0, |rows| rows[i]);
                        let r = f.other(own, at.split, key) as usize;
                        out.copy_from_slice(&f.theta[r * a..][..a]);
                    }
                    (Contrast::Shuffle, None) => unreachable!("checked by `new`"),
                    (Contrast::Batch, _) => unreachable!("it has one column"),
                }
            }
        }
    }
}

impl Fixed {
    fn new(features: &Features, s: &Simulations, valid: f64) -> Result<Self> {
        if features.dims() != s.dims() {
            return Err(Error::mismatch("ratio task: sizes of theta and x", features.dims(), s.dims()));
        }
        let n = s.len();
        let kept = (valid * n as f64).round() as usize;
        if !(valid > 0.0 && valid < 1.0) || kept == 0 || kept == n {
            let why = format!(
                "expected a part in (0, 1) that holds a simulation and leaves one, got {valid} of {n}"
            );
            return Err(Error::invalid("ratio task: part for validation", why));
        }
        let [a, b] = features.inputs();
        let (mut theta, mut x) = (vec![0.0; n * a], vec![0.0; n * b]);
        features.theta_into(s.theta().iter().map(|t| f64::from(*t)), &mut theta);
        features.x_into(s.x().iter().map(|x| f64::from(*x)), &mut x);
        // A user's simulations may be sorted.
        let order = Permutation::new(n as u32, Key::new(n as u64).named("split"));
        let mut rows = vec![0; n];
        order.each(0, n as u32, |i, r| rows[i] = r);
        let train = rows.split_off(kept);
        Ok(Fixed { theta, x, train, valid: rows })
    }

    fn part(&self, split: Split) -> &[u32] {
        if split == Split::Train {
            &self.train
        } else {
            &self.valid
        }
    }

    /// The rows of a batch: those of an epoch in a keyed order, those for validation as they lie.
    fn rows(&self, at: BatchKey, size: usize) -> Vec<u32> {
        let part = self.part(at.split);
        let per_epoch = (part.len() / size) as u64;
        let start = (at.step % per_epoch) as u32 * size as u32;
        let mut rows = part[start as usize..][..size].to_vec();
        if at.split == Split::Train {
            let key = at.key.named("epoch").fold_in(at.step / per_epoch);
            let order = Permutation::new(part.len() as u32, key);
            order.each(start, size as u32, |i, r| rows[i] = part[r as usize]);
        }
        rows
    }

    /// A row of the same part, other than `own`.
    fn other(&self, own: u32, split: Split, key: Key) -> u32 {
        let part = self.part(split);
        let pick = |u: u64| part[((u128::from(u) * part.len() as u128) >> 64) as usize];
        let mut r = pick(key.bits());
        let mut tries = 0;
        while r == own && part.len() > 1 {
            tries += 1;
            r = pick(key.fold_in(tries).bits());
        }
        r
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for RatioTask {
    type Params = DynParams<E, B>;
    type Batch = PairBatch<E, B>;

    fn name(&self) -> String {
        let loss = match self.config.loss {
            RatioLoss::NreA => "nre_a",
            RatioLoss::NreB { .. } => "nre_b",
            RatioLoss::NreC { .. } => "nre_c",
            RatioLoss::Balanced { .. } => "bnre",
        };
        format!("ratio_{loss}")
    }

    fn init(&self, dev: &B, key: Key) -> Self::Params {
        DynTree::new(dev, self.layout.clone(), &self.config.net.init::<E>(key))
    }

    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let RatioTaskConfig { features, batch_size, .. } = &self.config;
        let ([a, b], rows) = (features.inputs(), batch_size * self.columns());
        let (mut theta, mut x) = (vec![0.0; rows * a], vec![0.0; batch_size * b]);
        self.fill(at, &mut theta, &mut x);
        let tensor = |v: &[f32], shape: (usize, usize)| {
            dev.filled(shape, |y| y.iter_mut().zip(v).for_each(|(y, v)| *y = E::of(f64::from(*v))))
        };
        PairBatch { theta: tensor(&theta, (rows, a)), x: tensor(&x, (*batch_size, b)) }
    }

    fn loss<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let RatioTaskConfig { net, loss, contrast, .. } = &self.config;
        let theta = batch.theta.clone().put_tape(m);
        match contrast {
            Contrast::Batch => loss.all_pairs(net.all_pairs(params, theta, &batch.x)),
            _ => loss.value(net.logits(params, theta, &batch.x, loss.columns())),
        }
    }
}
