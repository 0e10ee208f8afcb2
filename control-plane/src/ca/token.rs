//! Join tokens: secrets that stand for an identity until they expire.
//!
//! The file holds SHA-256 hashes alone, so reading it gives nobody an identity. A token is 32
//! random bytes; guessing is out of the question, hence a plain hash without salt or stretching.

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Serialize};

use super::{CaError, Identity, files};

/// Random bytes in a token.
const TOKEN_BYTES: usize = 32;
/// Longest bearer that is hashed.
const MAX_BEARER: usize = 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Lower-case hex.
    sha256: String,
    namespace: String,
    service_account: String,
    /// Seconds since the epoch.
    expires: u64,
}

/// Makes a token for an identity, valid for `ttl`, and returns it; only its hash is kept. Running
/// control planes accept it at once. Expired entries are dropped.
///
/// # Errors
/// When a name is not a DNS label, `ttl` is zero or absurd, or the file cannot be read or written.
pub fn create_token(
    data_dir: &Path,
    namespace: &str,
    service_account: &str,
    ttl: Duration,
) -> Result<String, CaError> {
    let Identity {
        namespace,
        service_account,
    } = Identity::new(namespace, service_account)?;
    let now = unix_now();
    let expires = now.checked_add(ttl.as_secs()).filter(|end| *end > now);
    let expires = expires.ok_or(CaError::InvalidTtl)?;
    let mut secret = [0; TOKEN_BYTES];
    SystemRandom::new()
        .fill(&mut secret)
        .map_err(CaError::crypto)?;
    let token = hex(&secret);

    let _lock = files::lock(data_dir)?;
    let path = file_in(data_dir);
    let mut entries = read(&path)?;
    entries.retain(|entry| entry.expires > now);
    entries.push(Entry {
        sha256: hash(&token),
        namespace,
        service_account,
        expires,
    });
    let text = serde_json::to_vec_pretty(&entries).map_err(|error| CaError::Corrupt {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    files::replace(&path, &text)?;
    Ok(token)
}

/// The join tokens of a data directory, followed as the file changes.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    stamp: Option<Stamp>,
    entries: Vec<Entry>,
}

/// Tells one version of the file from another. Every write makes a new inode.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    len: u64,
    inode: u64,
}

impl Tokens {
    /// The tokens in `data_dir`; there may be none yet.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn open(data_dir: &Path) -> Result<Self, CaError> {
        let tokens = Self {
            path: file_in(data_dir),
            held: Mutex::default(),
        };
        tokens
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .refresh(&tokens.path)?;
        Ok(tokens)
    }

    /// The identity a bearer token stands for, or nothing when it is unknown or expired. When the
    /// file cannot be read, no token is accepted.
    pub fn authenticate(&self, bearer: &str) -> Option<Identity> {
        if bearer.is_empty() || bearer.len() > MAX_BEARER {
            return None;
        }
        let presented = hash(bearer);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = held.refresh(&self.path) {
            *held = Held::default();
            tracing::error!(%error, "no join token is accepted until the file is readable");
            return None;
        }
        let mut found = None;
        // All entries are looked at, so that the time does not tell which one matched.
        for entry in &held.entries {
            if is_equal(entry.sha256.as_bytes(), presented.as_bytes()) {
                found = Some(entry);
            }
        }
        let entry = found.filter(|entry| entry.expires > unix_now())?;
        // The file may have been edited by hand; an invalid name is nobody's identity.
        Identity::new(entry.namespace.as_str(), entry.service_account.as_str()).ok()
    }
}

impl Held {
    fn refresh(&mut self, path: &Path) -> Result<(), CaError> {
        let stamp = match fs::metadata(path) {
            Ok(meta) => Some(Stamp {
                modified: (meta.mtime(), meta.mtime_nsec()),
                len: meta.len(),
                inode: meta.ino(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(files::at(path)(error)),
        };
        if stamp.is_none() {
            *self = Self::default();
        } else if stamp != self.stamp {
            // A write between the two calls changes the stamp again, and is read next time.
            self.entries = read(path)?;
            self.stamp = stamp;
        }
        Ok(())
    }
}

fn file_in(data_dir: &Path) -> PathBuf {
    data_dir.join("tokens.json")
}

fn read(path: &Path) -> Result<Vec<Entry>, CaError> {
    let Some(text) = files::read(path)? else {
        return Ok(Vec::new());
    };
    serde_json::from_str(&text).map_err(|error| CaError::Corrupt {
        path: path.into(),
        reason: error.to_string(),
    })
}

fn hash(token: &str) -> String {
    hex(digest(&SHA256, token.as_bytes()).as_ref())
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            _ = write!(text, "{byte:02x}");
            text
        })
}

/// Takes the same time wherever the difference is.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differ = a
        .iter()
        .zip(b)
        .fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    a.len() == b.len() && differ == 0
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn concurrent_creation_loses_no_token() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let create = |i: usize| create_token(dir.path(), "default", &format!("sa-{i}"), HOUR);
        let created: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || create(i))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap().unwrap())
                .collect()
        });
        for (i, token) in created.iter().enumerate() {
            assert_eq!(
                tokens.authenticate(token).unwrap().service_account,
                format!("sa-{i}")
            );
        }
        let mode = fs::metadata(file_in(dir.path())).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(file_in(dir.path())).unwrap();
        assert!(created.iter().all(|token| !text.contains(token)));
    }

    #[test]
    fn expired_removed_and_unreadable_tokens_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = file_in(dir.path());
        let token = create_token(dir.path(), "default", "a", HOUR).unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        assert!(tokens.authenticate(&token).is_some());
        assert!(tokens.authenticate(&token[1..]).is_none());
        assert!(tokens.authenticate("").is_none());

        let mut entries = read(&path).unwrap();
        entries[0].expires = unix_now();
        files::replace(&path, &serde_json::to_vec(&entries).unwrap()).unwrap();
        assert!(tokens.authenticate(&token).is_none(), "expired");

        entries[0].expires = unix_now() + 60;
        files::replace(&path, &serde_json::to_vec(&entries).unwrap()).unwrap();
        assert!(tokens.authenticate(&token).is_some());
        files::replace(&path, b"{").unwrap();
        assert!(tokens.authenticate(&token).is_none(), "unreadable");
        fs::remove_file(&path).unwrap();
        assert!(tokens.authenticate(&token).is_none(), "removed");
    }

    #[test]
    fn names_and_lives_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(create_token(dir.path(), "a/b", "c", HOUR).is_err());
        assert!(create_token(dir.path(), "a", "", HOUR).is_err());
        assert!(create_token(dir.path(), "a", "b", Duration::ZERO).is_err());
        assert!(create_token(dir.path(), "a", "b", Duration::MAX).is_err());
    }
}
