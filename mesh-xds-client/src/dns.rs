//! Names of hosts to addresses, again and again.
//!
//! Beside stage 1, for clusters of type LOGICAL_DNS and STRICT_DNS. A name is looked up again when its
//! time to live is over, within bounds, and after a failure with backoff. Who keeps the last good
//! answer is the graph.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use mesh_core::rng::Rng;
use tokio::{sync::OnceCell, time::Instant};

use crate::transport::backoff::Backoff;

/// Shortest time from one lookup to the next, however short the time to live.
pub(crate) const LOOKUP_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest time from one lookup to the next, however long the time to live.
pub(crate) const LOOKUP_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Addresses and how long they hold.
pub(crate) type Answer = Result<(Vec<IpAddr>, Duration), String>;

/// Looks a name up.
#[derive(Clone)]
pub(crate) struct Lookup(Arc<dyn Fn(String) -> BoxFuture<'static, Answer> + Send + Sync>);

impl Lookup {
    pub(crate) fn new(
        lookup: impl Fn(String) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(lookup))
    }

    /// As the system is configured.
    pub(crate) fn system() -> Self {
        Self::with(|| TokioResolver::builder_tokio().map_err(|e| e.to_string()))
    }

    /// By these servers, over UDP and TCP, as the system is configured in all else.
    pub(crate) fn by(servers: &[SocketAddr]) -> Self {
        let servers = servers.iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            let connections = connections.map(|connection| {
                let mut connection = connection;
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.to_vec())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        Self::with(move || {
            let runtime = TokioRuntimeProvider::default();
            Ok(TokioResolver::builder_with_config(config.clone(), runtime))
        })
    }

    fn with(
        builder: impl Fn() -> Result<ResolverBuilder<TokioRuntimeProvider>, String>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let shared: Arc<OnceCell<TokioResolver>> = Arc::default();
        let builder = Arc::new(builder);
        Self::new(move |name| {
            let (shared, builder) = (Arc::clone(&shared), Arc::clone(&builder));
            async move {
                let make = || async {
                    let mut builder = builder()?;
                    // When to ask again is decided here.
                    builder.options_mut().cache_size = 0;
                    builder.build().map_err(|e| e.to_string())
                };
                let resolver = shared.get_or_try_init(make).await?;
                let found = resolver.lookup_ip(name).await.map_err(|e| e.to_string())?;
                let ttl = found
                    .valid_until()
                    .saturating_duration_since(StdInstant::now());
                Ok((found.iter().collect(), ttl))
            }
            .boxed()
        })
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup")
    }
}

/// All names that are wanted.
pub(crate) struct Resolver {
    lookup: Lookup,
    backoff: Backoff,
    /// With the number of the task that is in charge.
    wanted: BTreeMap<String, (u64, Backoff)>,
    tasks: FuturesUnordered<BoxFuture<'static, (String, u64, Answer)>>,
    next_task: u64,
}

impl Resolver {
    pub(crate) fn new(lookup: Lookup, backoff: Backoff) -> Self {
        Self {
            lookup,
            backoff,
            wanted: BTreeMap::new(),
            tasks: FuturesUnordered::new(),
            next_task: 0,
        }
    }

    /// Wants a name from now on.
    pub(crate) fn want(&mut self, name: &str) {
        if !self.wanted.contains_key(name) {
            self.schedule(name, self.backoff.clone(), Duration::ZERO);
        }
    }

    /// Does not want it any more.
    pub(crate) fn unwant(&mut self, name: &str) {
        self.wanted.remove(name);
        if self.wanted.is_empty() {
            self.tasks.clear();
        }
    }

    fn schedule(&mut self, name: &str, backoff: Backoff, pause: Duration) {
        self.next_task += 1;
        let task = self.next_task;
        self.wanted.insert(name.to_owned(), (task, backoff));
        let at = Instant::now() + pause;
        let (lookup, name) = (self.lookup.clone(), name.to_owned());
        self.tasks.push(
            async move {
                tokio::time::sleep_until(at).await;
                let answer = match name.parse() {
                    Ok(address) => Ok((vec![address], LOOKUP_PAUSE_MAX)),
                    Err(_) => (lookup.0)(name.clone()).await,
                };
                (name, task, answer)
            }
            .boxed(),
        );
    }

    /// The next answer. Can be dropped and called again without losing anything.
    pub(crate) async fn next(
        &mut self,
        rng: &mut impl Rng,
    ) -> (String, Result<Vec<IpAddr>, String>) {
        loop {
            let Some((name, task, answer)) = self.tasks.next().await else {
                std::future::pending::<()>().await;
                continue;
            };
            let Some((current, backoff)) = self.wanted.get(&name) else {
                continue;
            };
            if *current != task {
                continue;
            }
            let mut backoff = backoff.clone();
            let (pause, answer) = match answer {
                Ok((addresses, _)) if addresses.is_empty() => {
                    let error = Err("the name has no address".to_owned());
                    (backoff.after_failure(rng), error)
                }
                Ok((addresses, ttl)) => {
                    backoff = self.backoff.clone();
                    (ttl.clamp(LOOKUP_PAUSE_MIN, LOOKUP_PAUSE_MAX), Ok(addresses))
                }
                Err(error) => (backoff.after_failure(rng), Err(error)),
            };
            self.schedule(&name, backoff, pause);
            return (name, answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use mesh_core::rng::SplitMix64;

    use super::*;

    /// A resolver with scripted answers, and when each was asked for.
    fn scripted(answers: Vec<Answer>) -> (Resolver, Arc<Mutex<Vec<Instant>>>) {
        let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (seen, script) = (Arc::clone(&asked), Mutex::new(answers.into_iter()));
        let lookup = Lookup::new(move |_| {
            seen.lock().unwrap().push(Instant::now());
            let answer = script.lock().unwrap().next();
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
            .boxed()
        });
        let second = Duration::from_secs(1);
        let backoff = Backoff::new(second, second * 120);
        (Resolver::new(lookup, backoff), asked)
    }

    fn good(ttl: u64) -> Answer {
        Ok((vec![[10, 0, 0, 1].into()], Duration::from_secs(ttl)))
    }

    async fn pauses(answers: Vec<Answer>) -> Vec<f64> {
        let mut rng = SplitMix64::new(1);
        let count = answers.len();
        let (mut resolver, asked) = scripted(answers);
        resolver.want("name");
        for _ in 0..count {
            _ = resolver.next(&mut rng).await;
        }
        let next = resolver.next(&mut rng);
        assert!(
            tokio::time::timeout(Duration::from_secs(900), next)
                .await
                .is_err()
        );
        let asked = asked.lock().unwrap();
        let pairs = asked.windows(2);
        pairs
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_to_live_is_honoured_within_bounds() {
        let pauses = pauses(vec![good(30), good(0), good(100_000)]).await;
        assert_eq!(
            pauses.iter().map(|p| p.round()).collect::<Vec<_>>(),
            [30.0, 1.0, 300.0]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_retried_with_backoff_that_starts_over() {
        let no = || Err("no".to_owned());
        let pauses = pauses(vec![no(), no(), no(), good(5), no()]).await;
        for (pause, expected) in pauses.iter().zip([1.0, 1.6, 2.56, 5.0, 1.0]) {
            assert!((pause / expected - 1.0).abs() < 0.21, "{pauses:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_answer_is_a_failure_and_an_address_is_its_own_answer() {
        let mut rng = SplitMix64::new(1);
        let (mut resolver, asked) = scripted(vec![Ok((vec![], Duration::from_secs(9)))]);
        resolver.want("10.0.0.7");
        let (name, answer) = resolver.next(&mut rng).await;
        assert_eq!(
            (&*name, answer),
            ("10.0.0.7", Ok(vec![[10, 0, 0, 7].into()]))
        );
        assert!(asked.lock().unwrap().is_empty(), "nobody was asked");
        resolver.unwant("10.0.0.7");
        resolver.want("name");
        assert!(resolver.next(&mut rng).await.1.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_not_wanted_any_more_is_not_looked_up() {
        let mut rng = SplitMix64::new(1);
        let (mut resolver, asked) = scripted(vec![good(1), good(1)]);
        resolver.want("name");
        resolver.want("name");
        _ = resolver.next(&mut rng).await;
        resolver.unwant("name");
        let next = resolver.next(&mut rng);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), next)
                .await
                .is_err()
        );
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
}
