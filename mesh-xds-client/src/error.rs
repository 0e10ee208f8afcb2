//! Why a client cannot be set up.
//!
//! Set-up only: what goes wrong later is in the watched values and in the log. Text is written for
//! whoever deploys the process: it names the file or variable and the field.

use std::fmt;

/// A set-up error.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    text: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Bootstrap,
    Certificate,
}

impl Error {
    pub(crate) fn bootstrap(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Bootstrap,
            text: text.into(),
        }
    }

    pub(crate) fn certificate(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Certificate,
            text: text.into(),
        }
    }

    /// The same error, found in `place`.
    pub(crate) fn in_place(mut self, place: &str) -> Self {
        self.text = format!("{place}: {}", self.text);
        self
    }

    /// Whether the bootstrap configuration is missing or cannot be used.
    pub fn is_bootstrap(&self) -> bool {
        self.kind == Kind::Bootstrap
    }

    /// Whether a certificate provider cannot be used.
    pub fn is_certificate(&self) -> bool {
        self.kind == Kind::Certificate
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Bootstrap => "xDS bootstrap",
            Kind::Certificate => "certificate provider",
        };
        write!(f, "{what}: {}", self.text)
    }
}

impl std::error::Error for Error {}
