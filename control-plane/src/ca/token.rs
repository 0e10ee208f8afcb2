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
use crate::audit::{self, Audit, Event};

/// Random bytes in a token.
const TOKEN_BYTES: usize = 32;
/// Hexadecimal digits of its hash that a token is called by.
const NAME_DIGITS: usize = 12;
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
    /// Whether it is good for one certificate alone.
    #[serde(default)]
    once: bool,
    /// When it was used up, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
}

/// How often a token is good for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// Once; what follows is authenticated by the certificate, over TLS.
    Once,
    /// Until it expires: whoever reads it can be this workload until then.
    Reusable,
}

/// Makes a token for an identity that can be used until it expires; see [`create_token_for`].
///
/// # Errors
/// When a name is not a DNS label, `ttl` is zero or absurd, or the file cannot be read or written.
pub fn create_token(
    data_dir: &Path,
    namespace: &str,
    service_account: &str,
    ttl: Duration,
) -> Result<String, CaError> {
    let identity = Identity::new(namespace, service_account)?;
    create_token_for(data_dir, &identity, ttl, TokenUse::Reusable)
}

/// Makes a token for an identity, valid for `ttl`, and returns it; only its hash is kept. Running
/// control planes accept it at once. Expired entries are dropped. Who made it is written down in the
/// data directory's audit log.
///
/// # Errors
/// When `identity` is not valid, `ttl` is zero or absurd, or the file cannot be read or written.
pub fn create_token_for(
    data_dir: &Path,
    identity: &Identity,
    ttl: Duration,
    r#use: TokenUse,
) -> Result<String, CaError> {
    identity.validate()?;
    let Identity {
        namespace,
        service_account,
    } = identity.clone();
    let now = unix_now();
    let expires = now.checked_add(ttl.as_secs()).filter(|end| *end > now);
    let expires = expires.ok_or(CaError::InvalidTtl)?;
    let token = secret()?;

    let _lock = files::lock(data_dir)?;
    let path = file_in(data_dir);
    let mut entries = read(&path)?;
    entries.retain(|entry| entry.expires > now);
    let object = format!("{} of {identity}", name_of(&token));
    entries.push(Entry {
        sha256: hash(&token),
        namespace,
        service_account,
        expires,
        once: r#use == TokenUse::Once,
        used: None,
    });
    write(&path, &entries)?;
    Audit::open(&data_dir.join(audit::FILE)).record(&Event {
        principal: &audit::owner(&path),
        object: &object,
        action: "token.create",
        result: "ok",
    });
    Ok(token)
}

/// What a token is called where people read it: the same for the same token, and no help to whoever would
/// like to have it.
pub(super) fn name_of(bearer: &str) -> String {
    match bearer.len() {
        1..=MAX_BEARER => format!("join_token {}", &hash(bearer)[..NAME_DIGITS]),
        _ => "join_token".to_owned(),
    }
}

/// Why a token stands for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenRefusal {
    /// It was never made here, or was removed.
    Unknown,
    /// Its time is over.
    Expired,
    /// It was good for one certificate, which was issued.
    Used,
    /// The file of tokens cannot be read or written.
    Unreadable,
}

impl TokenRefusal {
    /// For people; says nothing of the token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "the join token is not known",
            Self::Expired => "the join token has expired",
            Self::Used => {
                "the join token was used already: make another, or renew over TLS with the \
                 certificate"
            }
            Self::Unreadable => "join tokens cannot be read now",
        }
    }
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

    /// The identity a bearer token stands for, or nothing. When the file cannot be read, no token is
    /// accepted.
    pub fn authenticate(&self, bearer: &str) -> Option<Identity> {
        self.identify(bearer).ok()
    }

    /// The identity a bearer token stands for, or why there is none. Does not use it up.
    ///
    /// # Errors
    /// The reason.
    pub fn identify(&self, bearer: &str) -> Result<Identity, TokenRefusal> {
        if bearer.is_empty() || bearer.len() > MAX_BEARER {
            return Err(TokenRefusal::Unknown);
        }
        let presented = hash(bearer);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = held.refresh(&self.path) {
            *held = Held::default();
            tracing::error!(%error, "no join token is accepted until the file is readable");
            return Err(TokenRefusal::Unreadable);
        }
        judge(&held.entries, &presented).and_then(|i| identity_of(&held.entries[i]))
    }

    /// Uses up a token that is good for one certificate; nothing happens to another. To be called
    /// before the certificate is signed: of two that come at once, one is refused.
    ///
    /// # Errors
    /// When it was used or has expired in the meantime, or the use cannot be written down.
    pub fn redeem(&self, bearer: &str) -> Result<Identity, TokenRefusal> {
        let presented = hash(bearer);
        let unreadable = |error: CaError| {
            tracing::error!(%error, "a join token's use cannot be written down");
            TokenRefusal::Unreadable
        };
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        let _lock = files::lock(dir).map_err(unreadable)?;
        let mut entries = read(&self.path).map_err(unreadable)?;
        let found = judge(&entries, &presented)?;
        let identity = identity_of(&entries[found])?;
        if entries[found].once {
            entries[found].used = Some(unix_now());
            write(&self.path, &entries).map_err(unreadable)?;
        }
        Ok(identity)
    }
}

/// The entry of a token. All are looked at, so that the time does not tell which one matched.
fn judge(entries: &[Entry], presented: &str) -> Result<usize, TokenRefusal> {
    let mut found = None;
    for (i, entry) in entries.iter().enumerate() {
        if is_equal(entry.sha256.as_bytes(), presented.as_bytes()) {
            found = Some(i);
        }
    }
    let found = found.ok_or(TokenRefusal::Unknown)?;
    match &entries[found] {
        entry if entry.used.is_some() => Err(TokenRefusal::Used),
        entry if entry.expires <= unix_now() => Err(TokenRefusal::Expired),
        _ => Ok(found),
    }
}

/// The file may have been edited by hand; an invalid name is nobody's identity.
fn identity_of(entry: &Entry) -> Result<Identity, TokenRefusal> {
    Identity::new(entry.namespace.as_str(), entry.service_account.as_str())
        .map_err(|_| TokenRefusal::Unknown)
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

fn write(path: &Path, entries: &[Entry]) -> Result<(), CaError> {
    let text = serde_json::to_vec_pretty(entries).map_err(|error| CaError::Corrupt {
        path: path.into(),
        reason: error.to_string(),
    })?;
    files::replace(path, &text)
}

fn hash(token: &str) -> String {
    hex(digest(&SHA256, token.as_bytes()).as_ref())
}

/// A new secret in hex.
pub(super) fn secret() -> Result<String, CaError> {
    let mut secret = [0; TOKEN_BYTES];
    SystemRandom::new()
        .fill(&mut secret)
        .map_err(CaError::crypto)?;
    Ok(hex(&secret))
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
pub(crate) fn is_equal(a: &[u8], b: &[u8]) -> bool {
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
    fn a_one_time_token_is_good_once_also_for_two_at_once_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::new("default", "a").unwrap();
        let token = create_token_for(dir.path(), &identity, HOUR, TokenUse::Once).unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        assert_eq!(tokens.identify(&token), Ok(identity.clone()));
        let redeemed: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| tokens.redeem(&token)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let (good, bad): (Vec<_>, Vec<_>) = redeemed.into_iter().partition(Result::is_ok);
        assert_eq!(good, [Ok(identity)]);
        assert_eq!(bad, vec![Err(TokenRefusal::Used); 7]);
        for tokens in [tokens, Tokens::open(dir.path()).unwrap()] {
            assert_eq!(tokens.identify(&token), Err(TokenRefusal::Used));
            assert_eq!(tokens.redeem(&token), Err(TokenRefusal::Used));
        }
        let reusable = create_token(dir.path(), "default", "b", HOUR).unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        for _ in 0..2 {
            assert!(tokens.redeem(&reusable).is_ok());
        }
        assert_eq!(tokens.identify("x"), Err(TokenRefusal::Unknown));
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
