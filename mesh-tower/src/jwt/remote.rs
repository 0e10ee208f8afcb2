//! An issuer's keys that the server fetches (Envoy `RemoteJwks`).
//!
//! When they are fetched is decided by [`KeyRefresh`]; a task of each set of keys does it, for as long as a
//! configuration has them. A token that needs keys which are not there waits for a fetch that began
//! after it came, so that its verdict is the issuer's of that moment. Fails closed: no keys, no belief.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use mesh_core::{
    config::RemoteJwks,
    filter::{KeyRefresh, Standing},
    retry,
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, sleep_until, timeout},
};

use super::keys::KeySet;
use crate::{rng, telemetry::Metrics};

/// Longest key set that is fetched, in bytes.
pub const JWKS_BYTES_MAX: usize = 1 << 20;

/// Longest time that a token waits for keys; it is refused then.
pub const JWKS_WAIT_MAX: Duration = Duration::from_secs(30);

/// Most tokens of an issuer that wait for its keys at a time; more are refused at once.
pub const JWKS_WAITING_MAX: usize = 1024;

/// Keys on their way: the body of the issuer's answer, or why there is none.
pub type KeysFuture = Pin<Box<dyn Future<Output = Result<Bytes, String>> + Send>>;

/// Fetches the keys of one issuer.
pub trait KeySource: Send + Sync {
    /// Asks once for a JSON Web Key Set of at most [`JWKS_BYTES_MAX`]. The server waits for as long as
    /// the configuration says.
    fn fetch(&self) -> KeysFuture;
}

/// Where a server finds the issuers that its configuration names.
pub trait KeySources: Send + Sync {
    /// The source of a configuration. Called when the configuration comes, not for each fetch.
    fn source(&self, config: &Arc<RemoteJwks>) -> Arc<dyn KeySource>;
}

/// The keys of an issuer, as they were fetched last.
pub(crate) struct RemoteKeys {
    config: Arc<RemoteJwks>,
    held: ArcSwapOption<HeldKeys>,
    refresh: Mutex<KeyRefresh>,
    /// Something is wanted of the task, or nothing any more.
    wake: Arc<Notify>,
    ended: watch::Sender<Option<Ended>>,
    waiting: AtomicUsize,
}

/// Keys, and when they were asked for.
#[derive(Debug)]
pub(super) struct HeldKeys {
    pub(super) keys: KeySet,
    pub(super) asked: Instant,
    /// Up to when nobody needs to ask whether they are believed.
    fresh: Instant,
}

/// What came of a fetch.
#[derive(Clone, Copy, Debug)]
struct Ended {
    begun: Instant,
    succeeded: bool,
}

/// What a token lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// Keys, or fresh ones.
    Keys,
    /// Its own key.
    Unknown,
}

/// What a token may be judged by.
pub(super) enum Usable {
    Keys(Arc<HeldKeys>),
    /// A fetch would help.
    Awaited,
    Missing,
}

impl std::fmt::Debug for RemoteKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteKeys")
            .field("uri", &self.config.uri)
            .finish_non_exhaustive()
    }
}

impl RemoteKeys {
    /// Begins to follow the issuer of `config`. Must be called inside a tokio runtime.
    pub(crate) fn start(
        config: Arc<RemoteJwks>,
        source: Option<Arc<dyn KeySource>>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let wake = Arc::new(Notify::new());
        let keys = Arc::new(Self {
            refresh: Mutex::new(KeyRefresh::new(&config, now())),
            config: Arc::clone(&config),
            held: ArcSwapOption::empty(),
            wake: Arc::clone(&wake),
            ended: watch::Sender::new(None),
            waiting: AtomicUsize::new(0),
        });
        let follower = Follower {
            keys: Arc::downgrade(&keys),
            config,
            source,
            metrics,
            wake,
        };
        tokio::spawn(follower.run());
        keys
    }

    pub(crate) fn config(&self) -> &RemoteJwks {
        &self.config
    }

    /// What a token that came now is judged by.
    pub(super) fn usable(&self) -> Usable {
        let now = now();
        let held = self.held.load_full();
        if let Some(held) = &held
            && now < held.fresh
        {
            return Usable::Keys(Arc::clone(held));
        }
        match (self.refresh().standing(now), held) {
            (Standing::Held, Some(held)) => {
                // Nobody waits for it; it is fetched all the same.
                self.want(Lack::Keys);
                Usable::Keys(held)
            }
            (Standing::Missing, _) => Usable::Missing,
            (Standing::Held | Standing::Awaited, _) => Usable::Awaited,
        }
    }

    /// Waits for a fetch, for a token that came at `came`. Returns whether it may be judged once more
    /// (`Some(false)`: for the last time).
    pub(super) async fn fetched(&self, lack: Lack, came: Instant) -> Option<bool> {
        let _waiting = Waiting::begin(&self.waiting)?;
        let mut ended = self.ended.subscribe();
        if !self.lacks(lack, came) {
            // One has just ended.
            return Some(true);
        }
        self.want(lack);
        timeout(JWKS_WAIT_MAX, ended.changed()).await.ok()?.ok()?;
        let ended = (*ended.borrow())?;
        Some(ended.succeeded && ended.begun < came)
    }

    /// Whether a token that came at `came` is still without what it lacks.
    fn lacks(&self, lack: Lack, came: Instant) -> bool {
        let held = self.held.load();
        match lack {
            Lack::Keys => self.refresh().standing(now()) == Standing::Awaited,
            Lack::Unknown => held.as_ref().is_none_or(|held| held.asked < came),
        }
    }

    fn want(&self, lack: Lack) {
        match lack {
            Lack::Keys => self.refresh().want(),
            Lack::Unknown => self.refresh().want_unknown(),
        }
        self.wake.notify_one();
    }

    fn refresh(&self) -> MutexGuard<'_, KeyRefresh> {
        self.refresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, fetched: Result<KeySet, String>) {
        let succeeded = fetched.is_ok();
        let uri = &self.config.uri;
        // Keys first: whoever is told that they came must find them.
        let mut refresh = self.refresh();
        let begun = refresh.end(now(), succeeded);
        match fetched {
            Ok(keys) => {
                tracing::debug!(target: "mesh::server", %uri, ?keys, "keys fetched");
                let fresh = begun + self.config.cache_duration;
                self.held.store(Some(Arc::new(HeldKeys {
                    keys,
                    asked: begun,
                    fresh,
                })));
            }
            Err(error) => {
                let cluster = &self.config.cluster;
                let keeps = self.held.load().is_some();
                tracing::warn!(target: "mesh::server", %uri, %cluster, error, keeps, "an issuer's keys cannot be fetched");
            }
        }
        drop(refresh);
        self.ended.send_replace(Some(Ended { begun, succeeded }));
    }
}

impl Drop for RemoteKeys {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// One of those that wait.
struct Waiting<'w>(&'w AtomicUsize);

impl<'w> Waiting<'w> {
    fn begin(waiting: &'w AtomicUsize) -> Option<Self> {
        let counted = Self(waiting);
        (waiting.fetch_add(1, Relaxed) < JWKS_WAITING_MAX).then_some(counted)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Fetches keys while somebody has them.
struct Follower {
    keys: Weak<RemoteKeys>,
    config: Arc<RemoteJwks>,
    source: Option<Arc<dyn KeySource>>,
    metrics: Metrics,
    wake: Arc<Notify>,
}

impl Follower {
    async fn run(self) {
        loop {
            let Some(due) = self.keys.upgrade().map(|keys| keys.refresh().due()) else {
                return;
            };
            let begins = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => continue,
                () = begins => {}
            }
            let Some(keys) = self.keys.upgrade() else {
                return;
            };
            keys.refresh().begin(now());
            drop(keys);
            let fetched = self.fetch().await;
            self.metrics
                .keys_fetched(self.config.cluster.as_str(), fetched.is_ok());
            let Some(keys) = self.keys.upgrade() else {
                return;
            };
            keys.end(fetched);
        }
    }

    /// One fetch, with its retries.
    async fn fetch(&self) -> Result<KeySet, String> {
        let mut retries = 0;
        let mut rng = rng::fork();
        loop {
            let error = match self.try_once().await {
                Ok(keys) => return Ok(keys),
                Err(error) => error,
            };
            retries += 1;
            if retries > self.config.retries || self.keys.strong_count() == 0 {
                return Err(error);
            }
            sleep(retry::backoff(&self.config.backoff, retries, &mut rng)).await;
        }
    }

    async fn try_once(&self) -> Result<KeySet, String> {
        let Some(source) = &self.source else {
            return Err("this server was given nobody who fetches keys".to_owned());
        };
        let limit = self.config.timeout;
        let fetched = timeout(limit, source.fetch()).await;
        let body = fetched.map_err(|_| format!("no answer within {limit:?}"))??;
        if body.len() > JWKS_BYTES_MAX {
            return Err(format!("they are longer than {JWKS_BYTES_MAX} bytes"));
        }
        let text = std::str::from_utf8(&body).map_err(|error| error.to_string())?;
        let keys = KeySet::parse(text)?;
        // As in Envoy: an issuer without keys is one that is not ready.
        match keys.is_empty() {
            true => Err("none of them can be used".to_owned()),
            false => Ok(keys),
        }
    }
}

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
