//! The command line.

use clap::Parser;
use outerloop::amortized::ratio::simulators::{GaussianLinear, LotkaVolterra, Sir, Slcp, TwoMoons};
use outerloop::amortized::ratio::Simulator;
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
    /// The user's own parameters, CSV or NPY, instead of simulations (with --data; the prior is the simulator's).
    #[arg(long, requires = "data")]
    pub parameters: Option<PathBuf>,
    /// The user's own data, CSV or NPY.
    #[arg(long, requires = "parameters")]
    pub data: Option<PathBuf>,
    /// Leave simulations with NaN out: the target becomes the posterior given a valid simulation.
    #[arg(long)]
    pub drop_invalid: bool,
    /// a (the paper's), b, c or balanced.
    #[arg(long, default_value = "a")]
    pub loss: String,
    /// mlp, residual, or iid (SLCP only: its four points are independent, and two signs leave no trace).
    #[arg(long, default_value = "mlp")]
    pub net: String,
    /// Widths of the hidden layers.
    #[arg(long, default_value = "256,256,256", value_delimiter = ',')]
    pub hidden: Vec<usize>,
    /// selu, relu or silu.
    #[arg(long, default_value = "selu")]
    pub activation: String,
    /// Networks, each trained from its own start; their ratios are averaged.
    #[arg(long, default_value_t = 1)]
    pub ensemble: usize,
    /// Simulations per batch.
    #[arg(long, default_value_t = 256)]
    pub batch_size: usize,
    /// Updates at most; 0: 60 passes over a fixed set, one over fresh simulations.
    #[arg(long, default_value_t = 0)]
    pub steps: u64,
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
    /// The observation: one row of numbers, CSV or NPY; by default one is simulated.
    #[arg(long)]
    pub observation: Option<PathBuf>,
    /// Draws of the true posterior, CSV or NPY, to compare with.
    #[arg(long)]
    pub reference: Option<PathBuf>,
    /// Simulated observations for expected coverage; 0: none.
    #[arg(long, default_value_t = 100)]
    pub coverage: usize,
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
    /// The simulator, and parameters that make an observation.
    pub fn simulator(&self) -> Result<(Arc<dyn Simulator>, Vec<f64>)> {
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
}
