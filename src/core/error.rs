//! The one error type of the workspace.

use std::path::PathBuf;

/// `Result` with [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong. Messages say what was expected and what came.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A shape, length or count does not match.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// The quantity that was checked, with its name.
        what: String,
        /// What it should have been.
        expected: String,
        /// What it was.
        got: String,
    },
    /// A name is not one of the known ones.
    #[error("unknown {what} `{got}`, expected one of: {}", allowed.join(", "))]
    Unknown {
        /// The kind of name.
        what: &'static str,
        /// The name that came.
        got: String,
        /// All names that are accepted.
        allowed: Vec<String>,
    },
    /// A setting is outside its range.
    #[error("{what}: {why}")]
    Invalid {
        /// The setting.
        what: String,
        /// Why it is refused.
        why: String,
    },
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file exists but is not what it should be (truncated, foreign, corrupt, newer).
    #[error("{}: {why}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what came.
        why: String,
    },
    /// A contract check failed; see [`crate::contract`].
    #[error("{subject} breaks its contract: {why}")]
    Contract {
        /// The implementor that was checked.
        subject: String,
        /// The broken rule, with numbers.
        why: String,
    },
    /// An optional part was not compiled in.
    #[error("this build lacks the feature `{0}`; rebuild with `--features {0}`")]
    FeatureDisabled(&'static str),
    /// A device is not there, or is full.
    #[error("device {device}: {why}")]
    Device {
        /// Its name.
        device: String,
        /// What came, and what helps.
        why: String,
    },
    /// Training left the finite numbers and stopped; what was good is saved.
    #[error("{what} became NaN or infinite: {why}")]
    NonFinite {
        /// What, and when.
        what: String,
        /// What is left, and what to do.
        why: String,
    },
    /// The work was interrupted on request; what was finished is saved.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A length or shape that differs from what was expected.
    pub fn mismatch(
        what: impl Into<String>,
        expected: impl std::fmt::Debug,
        got: impl std::fmt::Debug,
    ) -> Self {
        Self::Mismatch { what: what.into(), expected: format!("{expected:?}"), got: format!("{got:?}") }
    }

    /// A setting outside its range.
    pub fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }

    /// An I/O error with the path it happened on.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// A file that is not what it should be.
    pub fn format(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self::Format { path: path.into(), why: why.into() }
    }
}
