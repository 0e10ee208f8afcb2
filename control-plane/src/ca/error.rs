//! What can go wrong in the certificate authority.

use std::{error::Error, fmt, io, path::PathBuf};

/// An error of the certificate authority or its join tokens. Never carries a key or a token.
#[derive(Debug)]
#[non_exhaustive]
pub enum CaError {
    /// A file or directory could not be read or written.
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the data directory does not hold what it should.
    Corrupt {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A namespace, service account or trust domain is not a valid name.
    InvalidName {
        /// Which of them.
        what: &'static str,
        /// What was given.
        name: String,
    },
    /// The certificate signing request is malformed, too large, or not signed by its own key.
    InvalidCsr(String),
    /// A duration is zero, or too long to compute with.
    InvalidTtl,
    /// The root certificate has expired; nothing signed by it would be accepted.
    RootExpired,
    /// The identity is on the deny list, or the list cannot be read.
    Denied(String),
    /// A change of roots cannot do what it is asked to.
    Rotation(&'static str),
    /// Key generation or signing failed.
    Crypto(String),
}

impl CaError {
    pub(super) fn crypto(error: impl fmt::Display) -> Self {
        Self::Crypto(error.to_string())
    }

    pub(super) fn csr(error: impl fmt::Display) -> Self {
        Self::InvalidCsr(error.to_string())
    }
}

impl fmt::Display for CaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Corrupt { path, reason } => write!(f, "{}: {reason}", path.display()),
            Self::InvalidName { what, name } => write!(f, "{name:?} is not a valid {what}"),
            Self::InvalidCsr(reason) => write!(f, "certificate signing request: {reason}"),
            Self::InvalidTtl => f.write_str("the time to live is zero or too long"),
            Self::Denied(who) => write!(f, "{who} is on the deny list"),
            Self::Rotation(reason) => f.write_str(reason),
            Self::RootExpired => f.write_str("the root certificate has expired"),
            Self::Crypto(reason) => write!(f, "cryptography: {reason}"),
        }
    }
}

impl Error for CaError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
