//! When the last certificate ends that was signed so far, which a change of roots must wait for.
//!
//! Kept on disk a little ahead of the truth, so that not every signature costs a write, and what
//! was signed before a restart is known after it.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use super::{
    CaError,
    authority::{system_time, unix_seconds, whole_seconds},
    files,
};

/// How far ahead of the truth the file may be, as a part of the longest life.
const AHEAD: u32 = 10;

/// The file, and what is in it.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    ahead: Duration,
    latest: Mutex<SystemTime>,
}

impl Ledger {
    /// The ledger in `dir`, whose caller holds the lock.
    pub(super) fn open(dir: &Path, max_ttl: Duration) -> Result<Self, CaError> {
        let ledger = Self {
            path: dir.join("last-leaf-ends"),
            ahead: (max_ttl / AHEAD).max(Duration::from_secs(1)),
            latest: Mutex::new(SystemTime::UNIX_EPOCH),
        };
        let latest = ledger.read()?;
        *ledger.latest.lock().unwrap_or_else(PoisonError::into_inner) = latest;
        Ok(ledger)
    }

    fn read(&self) -> Result<SystemTime, CaError> {
        let Some(text) = files::read(&self.path)? else {
            return Ok(SystemTime::UNIX_EPOCH);
        };
        let seconds = text.trim().parse::<u32>();
        seconds
            .map(|s| system_time(s.into()))
            .map_err(|_| CaError::Corrupt {
                path: self.path.clone(),
                reason: "it does not hold a time in seconds since the epoch".to_owned(),
            })
    }

    /// A certificate will be signed that ends then.
    pub(super) fn will_end(&self, at: SystemTime) -> Result<(), CaError> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if at <= *latest {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        let _lock = files::lock(dir)?;
        // Another process may have gone further.
        let ahead = whole_seconds(at + self.ahead).max(self.read()?);
        files::replace(&self.path, unix_seconds(ahead).to_string().as_bytes())?;
        *latest = ahead;
        Ok(())
    }

    /// When everything that was signed so far has ended.
    pub(super) fn latest_end(&self) -> SystemTime {
        let latest = *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        // What another process signed is in the file alone. One that cannot be read stops nothing:
        // what this process signed is known.
        self.read().unwrap_or(latest).max(latest)
    }
}
