//! What is needed to repeat a benchmark bit for bit.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Program, inputs and machine of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Version of the library.
    pub version: String,
    /// The command line.
    pub command: String,
    /// Operating system and architecture.
    pub platform: String,
    /// The processor, as the operating system names it; empty if it does not.
    pub processor: String,
    /// XXH3-64 of inputs, and whatever else fixes the numbers: data sets, thetas, kernels.
    pub inputs: Vec<(String, String)>,
}

impl Receipt {
    /// Of this process, without inputs.
    pub fn new() -> Self {
        let mut words = std::env::args();
        // The program's own path says nothing.
        let program = words.next().unwrap_or_default();
        let program = std::path::Path::new(&program).file_name().map(|n| n.to_string_lossy().into_owned());
        let command: Vec<String> = program.into_iter().chain(words).collect();
        Receipt {
            version: env!("CARGO_PKG_VERSION").into(),
            command: command.join(" "),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: processor(),
            inputs: Vec::new(),
        }
    }

    /// Adds an input.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.inputs.push((name.into(), value.into()));
        self
    }

    /// Adds the XXH3-64 of an input's bytes.
    #[must_use]
    pub fn with_hash(self, name: impl Into<String>, bytes: &[u8]) -> Self {
        self.with(name, hash(bytes))
    }
}

impl Default for Receipt {
    fn default() -> Self {
        Self::new()
    }
}

/// XXH3-64 as 16 hexadecimal digits.
pub(super) fn hash(bytes: &[u8]) -> String {
    format!("xxh3:{:016x}", xxh3_64(bytes))
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(':'));
    name.map_or(String::new(), |(_, name)| name.trim().to_string())
}
