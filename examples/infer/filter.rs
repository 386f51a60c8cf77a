//! Filtering of sequences: which model, on which data.

use crate::{filter_linear, filter_recurrent, Options};
use outerloop::amortized::inference::kalman::LinearGaussian;
use outerloop::amortized::inference::sequences::Recorded;
use outerloop::amortized::matrix::Matrix;
use outerloop::core::{Error, Result};
use std::path::PathBuf;
use std::str::FromStr;

#[derive(clap::Args, Clone)]
pub struct FilterOptions {
    #[command(flatten)]
    pub common: Options,
    /// The model that made the data, its matrices known; or a recurrent latent variable model that is learned.
    #[arg(long, value_enum, default_value_t = ModelKind::Linear)]
    pub model: ModelKind,
    /// linear (two coupled states, seen through noise), pendulum (seen through noise), digits (moving around the edges),
    /// or a CSV file: one row per observation, its sequence's number or name first.
    #[arg(long, default_value = "linear")]
    pub data: Data,
    /// Observations per simulated sequence [default: 30 for linear and pendulum, 12 for digits].
    #[arg(long)]
    pub length: Option<usize>,
    /// Inference steps per observation in training; the recurrent model is trained with one, too.
    #[arg(long, default_value_t = 2)]
    pub steps: usize,
    /// Latents of the recurrent model [default: 4, for digits 16].
    #[arg(long)]
    pub latent: Option<usize>,
    /// Units of its state and of its networks [default: 32, for digits 64].
    #[arg(long)]
    pub hidden: Option<usize>,
    /// What the recurrent model's state remembers: its latents alone, so that all that is known of the past was inferred; or
    /// observations, too, where latents may stay unused.
    #[arg(long, value_enum, default_value_t = Remembers::Latents)]
    pub memory: Remembers,
    /// Share of a file's sequences for training, from its beginning; the others are the test.
    #[arg(long, default_value_t = 0.8)]
    pub train_share: f64,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    Linear,
    Recurrent,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum Remembers {
    Latents,
    Observations,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Linear,
    Pendulum,
    Digits,
    File(PathBuf),
}

impl std::fmt::Display for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Data::Linear => f.write_str("linear"),
            Data::Pendulum => f.write_str("pendulum"),
            Data::Digits => f.write_str("digits"),
            Data::File(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Data {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let is_csv = |p: &PathBuf| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
        match s {
            "linear" => Ok(Data::Linear),
            "pendulum" => Ok(Data::Pendulum),
            "digits" => Ok(Data::Digits),
            _ => Some(PathBuf::from(s)).filter(is_csv).map(Data::File).ok_or_else(|| Error::Unknown {
                what: "data",
                got: s.into(),
                allowed: ["linear", "pendulum", "digits", "FILE.csv"].map(String::from).to_vec(),
            }),
        }
    }
}

impl FilterOptions {
    /// Refuses settings that do not fit each other; reads a file.
    fn checked(&self) -> Result<Option<[Recorded; 2]>> {
        let sizes = [
            ("--length", self.length),
            ("--steps", Some(self.steps)),
            ("--latent", self.latent),
            ("--hidden", self.hidden),
        ];
        if let Some((name, _)) = sizes.iter().find(|s| s.1 == Some(0)) {
            return Err(Error::invalid(*name, "must be at least 1, got 0"));
        }
        if self.model == ModelKind::Linear && self.data != Data::Linear {
            let what = "--data for --model linear, whose matrices must be known";
            return Err(Error::mismatch(what, "linear", self.data.to_string()));
        }
        let Data::File(path) = &self.data else { return Ok(None) };
        if let Some(n) = self.length {
            return Err(Error::mismatch("--length for a file, whose rows say it", "none", n));
        }
        if !(self.train_share > 0.0 && self.train_share < 1.0) {
            let why = format!("must lie between 0 and 1, got {}", self.train_share);
            return Err(Error::invalid("--train-share", why));
        }
        let all = Recorded::read(path)?;
        let train = (self.train_share * all.len() as f64).round() as usize;
        all.divide(train).map(Some)
    }
}

pub fn run(o: &FilterOptions) -> Result<()> {
    let recorded = o.checked()?;
    match o.model {
        ModelKind::Linear => filter_linear::run(o),
        ModelKind::Recurrent => filter_recurrent::run(o, recorded),
    }
}

/// Two states that turn around each other, both seen through noise.
pub fn coupled() -> LinearGaussian {
    let (s, c) = 0.4f64.sin_cos();
    LinearGaussian {
        a: Matrix::new(2, 2, vec![0.97 * c, -0.97 * s, 0.97 * s, 0.97 * c]),
        c: Matrix::new(2, 2, vec![1.0, 0.4, -0.3, 0.8]),
        q: Matrix::new(2, 2, vec![0.3, 0.1, 0.1, 0.2]),
        r: Matrix::new(2, 2, vec![0.5, 0.1, 0.1, 0.4]),
        m0: vec![0.0, 0.0],
        p0: Matrix::identity(2),
    }
}
