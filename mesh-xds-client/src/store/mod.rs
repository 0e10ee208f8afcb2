//! The last good state on disk.
//!
//! Beside stage 4. A process that starts while its control plane is down serves what it served
//! before. The file holds the resources as received, so that reading it goes through the same decode
//! as the wire does. It is written whole, to the side, and renamed; it carries a version, its length
//! and a checksum, belongs to its owner alone, and has a largest size. A file that is not exactly
//! right is not used at all, and says so in the log. No private key is ever in it.

mod format;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;

use crate::resource::Kind;
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
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        check_owner_only(&file)?;
        let mut content = Vec::new();
        let limit = STATE_BYTES_MAX as u64 + 1;
        file.take(limit)
            .read_to_end(&mut content)
            .map_err(|e| e.to_string())?;
        if content.len() > STATE_BYTES_MAX {
            return Err(format!("it is larger than {STATE_BYTES_MAX} bytes"));
        }
        decode(&content, &self.fingerprint).map(Some)
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
        let mut side = self.path.clone().into_os_string();
        side.push(format!(".{}.new", std::process::id()));
        let side = PathBuf::from(side);
        let written = self.write(&side, &content);
        if written.is_err() {
            _ = fs::remove_file(&side);
        }
        written.map_err(|e| e.to_string())
    }

    fn write(&self, side: &Path, content: &[u8]) -> io::Result<()> {
        match fs::remove_file(side) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(side)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(side, &self.path)?;
        // The rename itself must survive a power cut; not every file system can sync a folder.
        if let Some(folder) = self.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }
}

/// What others may write, others may route.
#[cfg(unix)]
fn check_owner_only(file: &File) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = file.metadata().map_err(|e| e.to_string())?.permissions();
    let mode = mode.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(format!(
            "its mode is {mode:o}: others may write it; make it 600"
        ));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner_only(_: &File) -> Result<(), String> {
    Ok(())
}
