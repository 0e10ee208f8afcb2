//! The last good state on disk.
//!
//! Beside stage 4. A process that starts while its control plane is down serves what it served
//! before. The file holds the resources as received, so that reading it goes through the same decode
//! as the wire does. It is written whole, to the side, and renamed; it carries a version, its length
//! and a checksum, belongs to its owner alone, and has a largest size. A file that is not exactly
//! right is not used at all, and says so in the log. No private key is ever in it.

pub(crate) mod file;
pub(crate) mod format;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;

use crate::resource::Kind;
use file::Privacy;
pub(crate) use format::{decode, encode};

/// Largest file that is written or read, in bytes: 10,000 clusters with their endpoints are about
/// 20 MB.
pub(crate) const STATE_BYTES_MAX: usize = 128 << 20;

/// Runs of a process that a resource survives without being asked for.
pub(crate) const UNUSED_RUNS_MAX: u8 = 3;

/// A resource as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredResource {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) raw: Bytes,
    /// When the control plane sent it.
    pub(crate) updated: SystemTime,
    /// Runs of the process in a row that did not ask for it.
    pub(crate) unused_runs: u8,
}

/// Where the state is kept.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// Which control planes it is from: state of another mesh must not be used.
    fingerprint: String,
}

impl Store {
    pub(crate) fn new(path: PathBuf, fingerprint: String) -> Self {
        Self { path, fingerprint }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file. `Ok(None)` when there is none.
    pub(crate) fn load(&self) -> Result<Option<Vec<StoredResource>>, String> {
        let content = file::read(&self.path, Privacy::NotWritable, STATE_BYTES_MAX)?;
        content
            .map(|content| decode(&content, &self.fingerprint))
            .transpose()
    }

    /// Replaces the file.
    pub(crate) fn save(&self, resources: &[StoredResource]) -> Result<(), String> {
        let content = encode(resources, &self.fingerprint);
        if content.len() > STATE_BYTES_MAX {
            return Err(format!(
                "{} bytes are more than {STATE_BYTES_MAX}; the file stays as it was",
                content.len()
            ));
        }
        file::replace(&self.path, &content).map_err(|e| e.to_string())
    }
}
