//! Names of hosts to addresses, again and again.
//!
//! Beside stage 1, for clusters of type LOGICAL_DNS and STRICT_DNS. A name is looked up again when its
//! time to live is over, or as often as its cluster says, within bounds, and after a failure with backoff.
//! Who keeps the last good answer is the graph.

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
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use mesh_core::rng::Rng;
use tokio::{sync::OnceCell, time::Instant};

use crate::{
    graph::HostQuery,
    resource::{DnsFamily, DnsLookup},
    transport::backoff::Backoff,
};

/// Shortest time from one lookup to the next, however short the time to live.
pub(crate) const LOOKUP_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest time from one lookup to the next, however long the time to live; a cluster may say more.
pub(crate) const LOOKUP_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Addresses and how long they hold.
pub(crate) type Answer = Result<(Vec<IpAddr>, Duration), String>;

/// Looks a name up.
#[derive(Clone)]
pub(crate) struct Lookup(
    Arc<dyn Fn(String, DnsFamily) -> BoxFuture<'static, Answer> + Send + Sync>,
);

impl Lookup {
    pub(crate) fn new(
        lookup: impl Fn(String, DnsFamily) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
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
        // One for each family, made when it is first wanted.
        let shared: Arc<[OnceCell<TokioResolver>; 4]> = Arc::default();
        let builder = Arc::new(builder);
        Self::new(move |name, family| {
            let (shared, builder) = (Arc::clone(&shared), Arc::clone(&builder));
            async move {
                let make = || async {
                    let mut builder = builder()?;
                    // When to ask again is decided here.
                    builder.options_mut().cache_size = 0;
                    builder.options_mut().ip_strategy = strategy(family);
                    builder.build().map_err(|e| e.to_string())
                };
                let resolver = shared[family as usize].get_or_try_init(make).await?;
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

fn strategy(family: DnsFamily) -> LookupIpStrategy {
    match family {
        DnsFamily::All => LookupIpStrategy::Ipv6AndIpv4,
        DnsFamily::V4 => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6 => LookupIpStrategy::Ipv6Only,
        DnsFamily::PreferV4 => LookupIpStrategy::Ipv4thenIpv6,
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
    wanted: BTreeMap<HostQuery, (u64, Backoff)>,
    tasks: FuturesUnordered<BoxFuture<'static, (HostQuery, u64, Answer)>>,
    next_task: u64,
}

impl Resolver {
    /// `backoff` is for clusters that say nothing of failures.
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
    pub(crate) fn want(&mut self, query: &HostQuery) {
        if !self.wanted.contains_key(query) {
            self.schedule(query.clone(), self.backoff(&query.lookup), Duration::ZERO);
        }
    }

    /// Does not want it any more.
    pub(crate) fn unwant(&mut self, query: &HostQuery) {
        self.wanted.remove(query);
        if self.wanted.is_empty() {
            self.tasks.clear();
        }
    }

    fn backoff(&self, lookup: &DnsLookup) -> Backoff {
        match lookup.failure {
            Some((base, max)) => {
                let base = base.max(LOOKUP_PAUSE_MIN);
                Backoff::new(base, max.max(base))
            }
            None => self.backoff.clone(),
        }
    }

    fn schedule(&mut self, query: HostQuery, backoff: Backoff, pause: Duration) {
        self.next_task += 1;
        let task = self.next_task;
        self.wanted.insert(query.clone(), (task, backoff));
        let at = Instant::now() + pause;
        let lookup = self.lookup.clone();
        self.tasks.push(
            async move {
                tokio::time::sleep_until(at).await;
                let answer = match query.name.parse() {
                    Ok(address) => Ok((vec![address], LOOKUP_PAUSE_MAX)),
                    Err(_) => (lookup.0)(query.name.clone(), query.lookup.family).await,
                };
                (query, task, answer)
            }
            .boxed(),
        );
    }

    /// The next answer. Can be dropped and called again without losing anything.
    pub(crate) async fn next(
        &mut self,
        rng: &mut impl Rng,
    ) -> (HostQuery, Result<Vec<IpAddr>, String>) {
        loop {
            let Some((query, task, answer)) = self.tasks.next().await else {
                std::future::pending::<()>().await;
                continue;
            };
            let Some((current, backoff)) = self.wanted.get(&query) else {
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
                    backoff = self.backoff(&query.lookup);
                    (pause_after(ttl, &query.lookup), Ok(addresses))
                }
                Err(error) => (backoff.after_failure(rng), Err(error)),
            };
            let jitter = query.lookup.jitter.mul_f64(rng.unit());
            self.schedule(query.clone(), backoff, pause + jitter);
            return (query, answer);
        }
    }
}

/// From an answer to the next question.
fn pause_after(ttl: Duration, lookup: &DnsLookup) -> Duration {
    match lookup.refresh_rate {
        Some(rate) if !lookup.respects_ttl || ttl.is_zero() => rate.max(LOOKUP_PAUSE_MIN),
        _ => {
            let least = lookup.min_refresh_rate.unwrap_or_default();
            let least = least.max(LOOKUP_PAUSE_MIN);
            ttl.clamp(least, LOOKUP_PAUSE_MAX.max(least))
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
        let lookup = Lookup::new(move |_, _| {
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

    fn query(name: &str, lookup: DnsLookup) -> HostQuery {
        HostQuery {
            name: name.to_owned(),
            lookup,
        }
    }

    async fn pauses(answers: Vec<Answer>) -> Vec<f64> {
        pauses_of(DnsLookup::default(), answers).await
    }

    async fn pauses_of(lookup: DnsLookup, answers: Vec<Answer>) -> Vec<f64> {
        let mut rng = SplitMix64::new(1);
        let count = answers.len();
        let (mut resolver, asked) = scripted(answers);
        resolver.want(&query("name", lookup));
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
    async fn a_refresh_rate_holds_and_the_time_to_live_where_it_is_respected() {
        let seconds = Duration::from_secs;
        let rate = |rate, respects_ttl| DnsLookup {
            refresh_rate: Some(rate),
            respects_ttl,
            ..DnsLookup::default()
        };
        for (lookup, expected) in [
            (rate(seconds(7), false), [7.0, 7.0, 7.0]),
            (rate(seconds(7), true), [30.0, 7.0, 300.0]),
            (rate(Duration::from_millis(1), false), [1.0, 1.0, 1.0]),
            (rate(seconds(400), false), [400.0, 400.0, 400.0]),
            (
                DnsLookup {
                    min_refresh_rate: Some(seconds(40)),
                    ..DnsLookup::default()
                },
                [40.0, 40.0, 300.0],
            ),
        ] {
            let pauses = pauses_of(lookup, vec![good(30), good(0), good(100_000)]).await;
            let pauses: Vec<_> = pauses.iter().map(|p| p.round()).collect();
            assert_eq!(pauses, expected, "{lookup:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_a_cluster_with_a_rate_for_them_are_retried_by_it() {
        let no = || Err("no".to_owned());
        let lookup = DnsLookup {
            failure: Some((Duration::from_secs(10), Duration::from_secs(20))),
            ..DnsLookup::default()
        };
        let pauses = pauses_of(lookup, vec![no(), no(), no(), good(5), no()]).await;
        for (pause, expected) in pauses.iter().zip([10.0, 16.0, 20.0, 5.0, 10.0]) {
            assert!((pause / expected - 1.0).abs() < 0.21, "{pauses:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_is_added_and_is_below_its_bound() {
        let lookup = DnsLookup {
            refresh_rate: Some(Duration::from_secs(10)),
            jitter: Duration::from_secs(5),
            ..DnsLookup::default()
        };
        let pauses = pauses_of(lookup, (0..20).map(|_| good(1)).collect()).await;
        assert!(
            pauses.iter().all(|pause| (10.0..15.0).contains(pause)),
            "{pauses:?}"
        );
        assert!(pauses.iter().any(|pause| *pause > 11.0), "{pauses:?}");
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
        let literal = query("10.0.0.7", DnsLookup::default());
        resolver.want(&literal);
        let (of, answer) = resolver.next(&mut rng).await;
        assert_eq!((&of, answer), (&literal, Ok(vec![[10, 0, 0, 7].into()])));
        assert!(asked.lock().unwrap().is_empty(), "nobody was asked");
        resolver.unwant(&literal);
        resolver.want(&query("name", DnsLookup::default()));
        assert!(resolver.next(&mut rng).await.1.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_not_wanted_any_more_is_not_looked_up() {
        let mut rng = SplitMix64::new(1);
        let (mut resolver, asked) = scripted(vec![good(1), good(1)]);
        let name = query("name", DnsLookup::default());
        resolver.want(&name);
        resolver.want(&name);
        _ = resolver.next(&mut rng).await;
        resolver.unwant(&name);
        let next = resolver.next(&mut rng);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), next)
                .await
                .is_err()
        );
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
}
