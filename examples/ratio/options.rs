//! The command line.

use clap::Parser;
use outerloop::amortized::ratio::simulators::{GaussianLinear, LotkaVolterra, Sir, Slcp, TwoMoons};
use outerloop::amortized::ratio::{Prior, RatioLoss, Simulator, UniformBox};
use outerloop::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

/// Infer parameters of a simulator without a likelihood.
#[derive(Parser)]
pub struct Options {
    /// slcp, slcp_sbibm, two_moons, gaussian_linear, lotka_volterra or sir.
    #[arg(long, default_value = "slcp")]
    pub simulator: String,
    /// Simulator calls to train on; the seed has 1000000.
    #[arg(long, default_value_t = 30_000)]
    pub simulations: usize,
    /// Simulate every batch anew, as the seed does, instead of a fixed set.
    #[arg(long)]
    pub fresh: bool,
    /// The user's own parameters, CSV or NPY, instead of simulations (with --data and --bounds).
    #[arg(long, requires_all = ["data", "bounds", "observation"])]
    pub parameters: Option<PathBuf>,
    /// The user's own data, CSV or NPY.
    #[arg(long, requires = "parameters")]
    pub data: Option<PathBuf>,
    /// The prior of the user's own parameters, uniform: LOW:HIGH of each.
    #[arg(long, requires = "parameters", value_delimiter = ',', allow_hyphen_values = true)]
    pub bounds: Vec<String>,
    /// Leave simulations with NaN out: the target becomes the posterior given a valid simulation.
    #[arg(long)]
    pub drop_invalid: bool,
    /// a (the paper's), b, c or balanced.
    #[arg(long, default_value = "c")]
    pub loss: String,
    /// Odds of the joint pair in loss c; large: close to b, but with logits that are log ratios.
    #[arg(long, default_value_t = 10.0)]
    pub gamma: f64,
    /// What each simulation is contrasted with: batch (all others of the batch: cheap with --net
    /// separable only), prior (new draws), or shuffle.
    #[arg(long, default_value = "batch")]
    pub contrast: String,
    /// separable (a network of parameters and one of data), mlp (the paper's), residual, or iid (with the symmetries built in).
    #[arg(long, default_value = "separable")]
    pub net: String,
    /// Widths of the hidden layers.
    #[arg(long, default_value = "128,128,128", value_delimiter = ',')]
    pub hidden: Vec<usize>,
    /// Length of the vectors whose product separable is.
    #[arg(long, default_value_t = 64)]
    pub rank: usize,
    /// selu (the paper's), relu or silu.
    #[arg(long, default_value = "silu")]
    pub activation: String,
    /// Build in what is known of SLCP: its four points are independent, and two signs leave no trace.
    #[arg(long)]
    pub symmetries: bool,
    /// Networks, each trained from its own start; their ratios are averaged.
    #[arg(long, default_value_t = 1)]
    pub ensemble: usize,
    /// Simulations per batch.
    #[arg(long, default_value_t = 256)]
    pub batch_size: usize,
    /// Updates at most; 0: --passes over a fixed set, one over fresh simulations.
    #[arg(long, default_value_t = 0)]
    pub steps: u64,
    /// Passes over a fixed set at most.
    #[arg(long, default_value_t = 20)]
    pub passes: u64,
    /// Evaluations without a better validation loss before training stops; of fresh simulations it never does.
    #[arg(long, default_value_t = 40)]
    pub patience: u64,
    /// Weight decay of the default optimizer, decoupled, per step and unit of the learning rate.
    #[arg(long, default_value_t = 1e-4)]
    pub weight_decay: f64,
    /// Train with the learned optimizer of this theta file; by default AdamW with a cosine schedule and averaged
    /// weights.
    #[arg(long)]
    pub theta: Option<PathBuf>,
    /// Learning rate of the default optimizer.
    #[arg(long, default_value_t = 1e-3)]
    pub learning_rate: f64,
    /// smc, mh, hmc, importance or grid.
    #[arg(long, default_value = "smc")]
    pub sampler: String,
    /// Posterior draws.
    #[arg(long, default_value_t = 2000)]
    pub draws: usize,
    /// Observations: files of one row of numbers, CSV or NPY; by default one is simulated.
    #[arg(long, num_args = 1.., value_delimiter = ',')]
    pub observation: Vec<PathBuf>,
    /// Draws of the true posterior of each observation, CSV or NPY, to compare with.
    #[arg(long, requires = "observation", num_args = 1.., value_delimiter = ',')]
    pub reference: Vec<PathBuf>,
    /// Simulations of the validation set to fit a power of the ratio to, at which posteriors cover what they claim;
    /// 0: the ratio as it is, and so is that of fresh simulations.
    #[arg(long, default_value_t = 200)]
    pub calibrate: usize,
    /// Simulated observations for expected coverage; 0: none.
    #[arg(long, default_value_t = 100)]
    pub coverage: usize,
    /// Simulated observations for the loss above the lowest possible one (slcp, slcp_sbibm); 0: none.
    #[arg(long, default_value_t = 100)]
    pub excess: usize,
    /// Root of all randomness.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Worker threads; 0: one per core.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Where everything goes.
    #[arg(long, default_value = "runs/ratio")]
    pub out: PathBuf,
    /// Continue the run in --out.
    #[arg(long)]
    pub resume: bool,
}

impl Options {
    /// What is minimized.
    pub fn loss(&self) -> Result<RatioLoss> {
        Ok(match RatioLoss::named(&self.loss)? {
            RatioLoss::NreC { classes, .. } => RatioLoss::NreC { classes, gamma: self.gamma },
            loss => loss,
        })
    }

    /// Whether the simulator is SLCP, of which the answers are known.
    pub fn is_slcp(&self) -> bool {
        self.simulator.starts_with("slcp") && self.data.is_none()
    }

    /// The simulator, and parameters that make an observation.
    pub fn simulator(&self) -> Result<(Arc<dyn Simulator>, Vec<f64>)> {
        if let Some(data) = &self.data {
            let columns = outerloop::amortized::ratio::files::table(data)?.1;
            return Ok((Arc::new(Tables { prior: self.prior()?, columns }), Vec::new()));
        }
        let seed = vec![0.7, -2.9, -1.0, -0.9, 0.6];
        Ok(match self.simulator.as_str() {
            "slcp" => (Arc::new(Slcp::seed()), seed),
            "slcp_sbibm" => (Arc::new(Slcp::sbibm()), seed),
            "two_moons" => (Arc::new(TwoMoons::default()), vec![0.2, -0.1]),
            "gaussian_linear" => (Arc::new(GaussianLinear::new(10)?), vec![0.2; 10]),
            "lotka_volterra" => (Arc::new(LotkaVolterra::default()), vec![-0.3, -2.8, 0.1, -3.1]),
            "sir" => (Arc::new(Sir::default()), vec![-0.9, -2.0]),
            name => {
                let names = ["slcp", "slcp_sbibm", "two_moons", "gaussian_linear", "lotka_volterra", "sir"];
                return Err(Error::Unknown {
                    what: "simulator",
                    got: name.into(),
                    allowed: names.map(String::from).to_vec(),
                });
            }
        })
    }

    /// The box of --bounds.
    fn prior(&self) -> Result<UniformBox> {
        let edges = self.bounds.iter().map(|text| {
            let parsed = text.split_once(':').and_then(|(l, h)| Some((l.parse().ok()?, h.parse().ok()?)));
            parsed.ok_or_else(|| Error::mismatch("--bounds", "LOW:HIGH for each parameter", text))
        });
        let (low, high) = edges.collect::<Result<Vec<(f64, f64)>>>()?.into_iter().unzip();
        UniformBox::new(low, high)
    }
}

/// A user's simulator, of which only files are here.
struct Tables {
    prior: UniformBox,
    columns: usize,
}

impl Simulator for Tables {
    fn name(&self) -> String {
        "files".into()
    }
    fn prior(&self) -> &dyn Prior {
        &self.prior
    }
    fn data_dim(&self) -> usize {
        self.columns
    }
    /// Not a number: it cannot be run.
    fn simulate(&self, _: &[f64], _: Key, x: &mut [f64]) {
        x.fill(f64::NAN);
    }
}
