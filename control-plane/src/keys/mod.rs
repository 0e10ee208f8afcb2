//! The keys of issuers that RequestAuthentications name by address (`jwksUri`).
//!
//! Fetched here and sent inside the configuration, as Istio does by default: servers need no way to
//! the issuer, and all of them believe the same keys. Fetched again every [`REFRESH`], which is the
//! longest that a new key is not believed and a revoked one still is; issuers announce keys long
//! before they use them. What was fetched last stays when the issuer cannot be reached, and over a
//! restart (`DATA_DIR/keys.json`); an issuer whose keys never came is believed nothing.

mod fetch;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::compile::KeySets;
pub(crate) use fetch::Trust;

/// How often keys are fetched again.
pub(crate) const REFRESH: Duration = Duration::from_secs(5 * 60);
/// How soon after a failure.
const RETRY: Duration = Duration::from_secs(15);
/// How long fetching may take, where no rule says more or less (Istio's default).
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a rule may give it.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// Addresses, each with how long fetching may take.
pub(crate) type Wanted = BTreeMap<String, Option<Duration>>;

/// Fetches what is wanted, again and again.
#[derive(Debug)]
pub(crate) struct Keys {
    trust: Trust,
    refresh: Duration,
    file: PathBuf,
    held: KeySets,
}

impl Keys {
    /// Keys that are kept in `file`, with what was kept there before.
    ///
    /// # Errors
    /// When the file is there and cannot be read: what it kept believed would not be any more.
    pub(crate) fn open(file: PathBuf, trust: Trust, refresh: Duration) -> io::Result<Self> {
        let held: BTreeMap<String, String> = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let held = held.into_iter().map(|(uri, keys)| (uri, Ok(keys.into())));
        Ok(Self {
            trust,
            refresh,
            file,
            held: held.collect(),
        })
    }

    /// What is known.
    pub(crate) fn held(&self) -> &KeySets {
        &self.held
    }

    /// Fetches all that is wanted. Whether everything came.
    pub(crate) async fn fetch(&mut self, wanted: &Wanted) -> bool {
        let fetches = wanted.iter().map(|(uri, limit)| async {
            let limit = limit.unwrap_or(TIMEOUT).min(TIMEOUT_MAX);
            let fetched = timeout(limit, fetch::keys(uri, &self.trust)).await;
            let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
            (uri.clone(), fetched)
        });
        let fetched = join_all(fetches).await;
        let is_complete = fetched.iter().all(|(_, keys)| keys.is_ok());
        let mut now = KeySets::new();
        for (uri, keys) in fetched {
            let keys = match (keys, self.held.get(&uri).cloned()) {
                (Ok(keys), _) => Ok(Arc::from(keys)),
                (Err(why), Some(Ok(held))) => {
                    tracing::warn!(uri, why, "keys cannot be fetched: those from before stay");
                    Ok(held)
                }
                (Err(why), _) => Err(why),
            };
            now.insert(uri, keys);
        }
        if now != self.held {
            keep(&self.file, &now);
        }
        self.held = now;
        is_complete
    }

    /// Fetches until nobody wants to know any more.
    pub(crate) async fn follow(
        mut self,
        mut wanted: watch::Receiver<Wanted>,
        keys: watch::Sender<KeySets>,
    ) {
        loop {
            let current = wanted.borrow_and_update().clone();
            let is_complete = self.fetch(&current).await;
            keys.send_if_modified(|sent| {
                let is_new = *sent != self.held;
                sent.clone_from(&self.held);
                is_new
            });
            let pause = if is_complete {
                self.refresh
            } else {
                self.refresh.min(RETRY)
            };
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = sleep(pause), if !current.is_empty() => {}
            }
        }
    }
}

/// Fetches the keys at one address until nobody wants to know any more; for callers of the certificate
/// authority, as others are for requests.
///
/// # Errors
/// When the address is not https, or what was kept cannot be read.
pub(crate) async fn follow_one(
    mut keys: Keys,
    uri: String,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<watch::Receiver<Result<Arc<str>, String>>> {
    anyhow::ensure!(
        uri.starts_with("https://"),
        "{uri}: keys come over https alone"
    );
    let wanted = Wanted::from([(uri.clone(), None)]);
    let mut is_complete = keys.fetch(&wanted).await;
    let of = move |keys: &Keys| {
        let held = keys.held.get(&uri).cloned();
        held.unwrap_or_else(|| Err("it was not asked yet".to_owned()))
    };
    let (tx, rx) = watch::channel(of(&keys));
    if let Err(reason) = &*rx.borrow() {
        tracing::warn!(
            reason,
            "service account tokens are refused until there are keys"
        );
    }
    tasks.spawn(async move {
        loop {
            let pause = match is_complete {
                true => keys.refresh,
                false => keys.refresh.min(RETRY),
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = tx.closed() => return,
            }
            is_complete = keys.fetch(&wanted).await;
            let current = of(&keys);
            tx.send_if_modified(|sent| {
                let is_new = *sent != current;
                *sent = current;
                is_new
            });
        }
    });
    Ok(rx)
}

/// Keeps what is known over a restart; that it cannot be kept is no reason not to use it.
fn keep(file: &Path, keys: &KeySets) {
    let known = keys.iter().filter_map(|(uri, keys)| {
        let keys = keys.as_ref().ok()?;
        Some((uri.as_str(), &**keys))
    });
    let known: BTreeMap<&str, &str> = known.collect();
    let draft = file.with_extension("new");
    let written = serde_json::to_vec(&known)
        .map_err(io::Error::from)
        .and_then(|bytes| fs::write(&draft, bytes))
        .and_then(|()| fs::rename(&draft, file));
    if let Err(error) = written {
        let file = file.display();
        tracing::warn!(%file, %error, "keys of issuers are not kept over a restart");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody answers there.
    const AWAY: &str = "https://127.0.0.1:1/keys";

    fn open(file: &Path) -> Keys {
        let trust = Trust::open(None).expect("roots, or none");
        Keys::open(file.to_owned(), trust, REFRESH).expect("a file, or none")
    }

    fn wanted() -> Wanted {
        BTreeMap::from([(AWAY.to_owned(), None)])
    }

    #[tokio::test]
    async fn keys_stay_when_their_issuer_is_away_also_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        let known = r#"{"keys":[]}"#;
        fs::write(&file, serde_json::json!({AWAY: known}).to_string()).unwrap();
        let mut keys = open(&file);
        assert!(!keys.fetch(&wanted()).await, "it is tried again soon");
        assert_eq!(keys.held()[AWAY], Ok(known.into()));
        assert_eq!(open(&file).held()[AWAY], Ok(known.into()));
    }

    #[tokio::test]
    async fn an_issuer_whose_keys_never_came_has_none_and_nothing_is_kept_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        let mut keys = open(&file);
        assert!(!keys.fetch(&wanted()).await);
        assert!(keys.held()[AWAY].is_err());
        assert!(open(&file).held().is_empty());
        // Those that nobody wants any more are forgotten.
        assert!(keys.fetch(&Wanted::new()).await);
        assert!(keys.held().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_read_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        fs::write(&file, "{").unwrap();
        let trust = Trust::open(None).expect("roots, or none");
        assert!(Keys::open(file, trust, REFRESH).is_err());
    }
}
