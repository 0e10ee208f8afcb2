//! Why a piece of configuration cannot be used.
//!
//! Stage: decode and compile. Text here is written for the operator of the control plane: it names
//! the resource, the field path and the reason.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

/// One reason why a resource, or a part of it, cannot be used. One word, as it stands beside each value
/// that can be used.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigError(Box<ConfigErrorDetails>);

/// What a [`ConfigError`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigErrorDetails {
    /// The resource, for example `cluster outbound|8080||greeter.default.svc.cluster.local`.
    pub resource: String,
    /// Field path inside the resource, empty when the whole resource is meant.
    pub path: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl ConfigError {
    /// An error about `resource` at `path`.
    pub fn new(
        resource: impl Into<String>,
        path: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self(Box::new(ConfigErrorDetails {
            resource: resource.into(),
            path: path.into(),
            reason: reason.into(),
        }))
    }
}

impl Deref for ConfigError {
    type Target = ConfigErrorDetails;

    fn deref(&self) -> &ConfigErrorDetails {
        &self.0
    }
}

impl DerefMut for ConfigError {
    fn deref_mut(&mut self) -> &mut ConfigErrorDetails {
        &mut self.0
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigError")
            .field("resource", &self.resource)
            .field("path", &self.path)
            .field("reason", &self.reason)
            .finish()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}: {}", self.resource, self.reason)
        } else {
            write!(f, "{}: {}: {}", self.resource, self.path, self.reason)
        }
    }
}

impl std::error::Error for ConfigError {}
