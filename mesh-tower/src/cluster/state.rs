//! What a call keeps of its cluster: the newest endpoints and policy when it began.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, uri::Authority};
use mesh_core::{
    ClusterName,
    balance::{PickContext, PickResult, TriedPriorities},
    config::{CircuitBreakers, LbMetadata},
    health::{Circuit, Permits},
    load::{BackendMetrics, ClusterLoad, DropSource},
    observed::{LoadReport, Observation},
    outcome::Verdict,
    retry::Latencies,
    rng::Rng,
    snapshot::ClusterSnapshot,
    stats::Connectivity,
};
use tokio::time::Instant;

use super::{
    ClusterRuntime, MakeEndpoint,
    destinations::{DESTINATIONS_MAX, original_dst},
    endpoint::Signals,
    slot::{EndpointSlot, Services},
};
use crate::{
    ClusterInFlight,
    error::{Error, ErrorKind},
    telemetry::{Counts, metrics::CallMetrics},
};

/// What a call has in common with others that should go to the same endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct Affinity {
    /// The hash of its route's policies.
    pub(crate) hash: Option<u64>,
    /// The endpoint of its session, and whether no other will do.
    pub(crate) override_host: Option<(SocketAddr, bool)>,
    /// The metadata that the endpoint must have.
    pub(crate) metadata: Option<Arc<LbMetadata>>,
}

impl Affinity {
    /// That of most calls.
    pub(crate) const NONE: &'static Self = &Self {
        hash: None,
        override_host: None,
        metadata: None,
    };
}

/// What the calls of a cluster count together.
pub(crate) struct ClusterTotals {
    pub(super) name: ClusterName,
    pub(super) circuit: Arc<Circuit>,
    pub(super) calls: Arc<CallMetrics>,
    /// Copies that the cluster gets at the moment.
    pub(super) mirrors: AtomicU32,
    /// What hedge policies learn; made by the first that does.
    pub(super) latencies: OnceLock<Box<Latencies>>,
}

impl DropSource for ClusterTotals {
    fn dropped(&self) -> u64 {
        self.circuit.dropped()
    }
}

/// A cluster snapshot with the services of its endpoints, index by index: all that a call keeps. What
/// each call reads is in the first cache line.
#[repr(C, align(64))]
pub(crate) struct ClusterState<M: MakeEndpoint> {
    pub(super) snapshot: Arc<ClusterSnapshot>,
    pub(super) services: Services<M>,
    permits: Permits,
    calls: Counts,
    /// Whether it cannot be used, or refuses some requests.
    is_restricted: bool,
    /// Whether the policy wants to know how long attempts take.
    observes: bool,
    totals: Arc<ClusterTotals>,
    load: Arc<ClusterLoad>,
    pub(super) signals: Arc<Signals>,
    /// Where newer states are.
    runtime: Weak<ClusterRuntime<M>>,
}

impl<M: MakeEndpoint> ClusterState<M> {
    pub(super) fn new(
        snapshot: &Arc<ClusterSnapshot>,
        services: &Services<M>,
        totals: &Arc<ClusterTotals>,
        load: &Arc<ClusterLoad>,
        signals: &Arc<Signals>,
        runtime: &Weak<ClusterRuntime<M>>,
    ) -> Self {
        Self {
            permits: totals.circuit.permits().clone(),
            calls: totals.calls.counts().clone(),
            is_restricted: snapshot.config.is_err() || !snapshot.drops.is_empty(),
            observes: snapshot.picker.observes(),
            snapshot: Arc::clone(snapshot),
            services: Arc::clone(services),
            totals: Arc::clone(totals),
            load: Arc::clone(load),
            signals: Arc::clone(signals),
            runtime: Weak::clone(runtime),
        }
    }

    pub(crate) fn name(&self) -> &ClusterName {
        &self.totals.name
    }

    /// Counters of the calls to this cluster.
    #[inline]
    pub(crate) fn calls(&self) -> &Counts {
        &self.calls
    }

    /// What the calls hold.
    pub(crate) fn in_flight(&self) -> ClusterInFlight {
        let endpoints = self.snapshot.endpoints.iter();
        ClusterInFlight {
            requests: self.totals.circuit.requests(),
            retries: self.totals.circuit.retries(),
            mirrors: self.totals.mirrors.load(Relaxed),
            attempts: endpoints.map(|endpoint| endpoint.stats.in_flight()).sum(),
        }
    }

    /// Takes a permit for one copy, `false` when `max` are under way. Give it back with
    /// [`release_mirror`](Self::release_mirror).
    pub(crate) fn acquire_mirror(&self, max: u32) -> bool {
        let mirrors = &self.totals.mirrors;
        let is_taken = mirrors.fetch_add(1, Relaxed) < max;
        if !is_taken {
            mirrors.fetch_sub(1, Relaxed);
        }
        is_taken
    }

    /// Gives back the permit of [`acquire_mirror`](Self::acquire_mirror).
    pub(crate) fn release_mirror(&self) {
        self.totals.mirrors.fetch_sub(1, Relaxed);
    }

    /// How long the attempts of hedged calls take.
    pub(crate) fn latencies(&self) -> &Latencies {
        self.totals.latencies.get_or_init(Box::default)
    }

    /// An endpoint, by the index that [`pick`](Self::pick) gave.
    pub(crate) fn slot(&self, endpoint: u32) -> &EndpointSlot<M> {
        &self.services[endpoint as usize]
    }

    /// The hostname of an endpoint, if it has one.
    pub(crate) fn hostname(&self, endpoint: u32) -> Option<&str> {
        self.snapshot.hostname(endpoint as usize)
    }

    /// What load balancing knows of an endpoint, if anything.
    pub(crate) fn metadata(&self, endpoint: u32) -> Option<&LbMetadata> {
        self.snapshot.metadata(endpoint as usize)
    }

    /// The newest state, `None` when the cluster is not in use any more.
    pub(crate) fn newest(&self) -> Option<Arc<Self>> {
        Some(self.runtime.upgrade()?.load())
    }

    /// Takes a permit for one request; give it back with [`release`](Self::release).
    ///
    /// # Errors
    /// When the control plane wants the request dropped, the cluster is not usable, or has as many
    /// requests in flight as it may have.
    #[inline]
    pub(crate) fn acquire(&self, rng: &mut impl Rng) -> Result<(), Error> {
        // Before the circuit: what is dropped takes no permit (gRFC A27).
        if self.is_restricted {
            self.admit(rng)?;
        }
        if self.permits.try_take() || self.totals.circuit.try_acquire() {
            Ok(())
        } else {
            Err(self.circuit_open())
        }
    }

    fn admit(&self, rng: &mut impl Rng) -> Result<(), Error> {
        if let Some(category) = self.snapshot.drops.draw(rng) {
            return Err(self.dropped(category));
        }
        self.limits().map(|_| ())
    }

    #[cold]
    fn dropped(&self, category: &str) -> Error {
        self.load.record_drop(category);
        Error::new(
            ErrorKind::Dropped,
            format!(
                "cluster {}: dropped, category {category:?} of drop_overloads",
                self.name()
            ),
        )
    }

    #[cold]
    fn circuit_open(&self) -> Error {
        Error::new(
            ErrorKind::CircuitOpen,
            format!(
                "cluster {}: {} requests are in flight, as many as circuit_breakers allows",
                self.name(),
                self.totals.circuit.max_requests()
            ),
        )
    }

    fn limits(&self) -> Result<&CircuitBreakers, Error> {
        match &self.snapshot.config {
            Ok(config) => Ok(&config.circuit_breakers),
            Err(error) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("cluster {}: {error}", self.name()),
            )),
        }
    }

    /// Gives back the permit of [`acquire`](Self::acquire).
    pub(crate) fn release(&self) {
        if !self.permits.put() {
            self.totals.circuit.gather();
        }
    }

    /// Takes a permit for one retry; `false` when the budget is used up. Give it back with
    /// [`release_retry`](Self::release_retry).
    pub(crate) fn acquire_retry(&self) -> bool {
        let limits = self.limits();
        limits.is_ok_and(|limits| self.totals.circuit.try_acquire_retry(limits))
    }

    /// Gives back the permit of [`acquire_retry`](Self::acquire_retry).
    pub(crate) fn release_retry(&self) {
        self.totals.circuit.release_retry();
    }

    /// Picks an endpoint. `None`: one is connecting, [wait](pick_later) for it.
    ///
    /// # Errors
    /// When no endpoint can be used.
    pub(crate) fn pick(
        &self,
        rng: &mut impl Rng,
        previous: &[SocketAddr],
        affinity: &Affinity,
    ) -> Option<Result<u32, Error>> {
        self.pick_by(rng, previous, affinity, ClusterSnapshot::pick)
    }

    /// The same for a retry that avoids the priorities of earlier attempts.
    #[cold]
    pub(crate) fn pick_untried(
        &self,
        rng: &mut dyn Rng,
        previous: &[SocketAddr],
        affinity: &Affinity,
        tried: &TriedPriorities<'_>,
    ) -> Option<Result<u32, Error>> {
        self.pick_by(rng, previous, affinity, |snapshot, context| {
            snapshot.pick_untried(context, tried)
        })
    }

    #[inline]
    fn pick_by<R: Rng + ?Sized>(
        &self,
        rng: &mut R,
        previous: &[SocketAddr],
        affinity: &Affinity,
        pick: impl FnOnce(&ClusterSnapshot, &mut PickContext<'_, R>) -> PickResult,
    ) -> Option<Result<u32, Error>> {
        let snapshot = &self.snapshot;
        let mut context = PickContext::new(rng, previous);
        context.hash = affinity.hash;
        context.metadata = affinity.metadata.as_deref();
        if let Some((host, is_strict)) = affinity.override_host {
            if is_strict {
                return match snapshot.pick_only(host) {
                    PickResult::Endpoint(index) => Some(Ok(index as u32)),
                    PickResult::Queue => self.queued(),
                    PickResult::Fail => self.lost(host),
                };
            }
            // As in Envoy, whoever tries again goes elsewhere.
            context.override_host = previous.is_empty().then_some(host);
        }
        if self.observes() {
            context.now = Some(Instant::now().into_std());
        }
        match pick(snapshot, &mut context) {
            PickResult::Endpoint(index) => Some(Ok(index as u32)),
            PickResult::Queue => self.queued(),
            PickResult::Fail => Some(Err(self.no_endpoint())),
        }
    }

    /// Whether the policy wants to know how long attempts take.
    pub(crate) fn observes(&self) -> bool {
        self.observes
    }

    /// Whether somebody wants to know what a backend says of its load.
    pub(crate) fn wants_report(&self) -> bool {
        self.observes() || self.load.wants_metrics()
    }

    /// An attempt begins on an endpoint, by its index.
    #[inline]
    pub(crate) fn begin_attempt(&self, endpoint: u32) {
        // Not those of the slot, which are the same: the pick has just read these.
        self.snapshot.endpoints[endpoint as usize].stats.begin();
    }

    /// An attempt has ended, after `latency` where that is [wanted](Self::observes), with a `report`
    /// of its backend where that [is](Self::wants_report).
    pub(crate) fn end_attempt(
        &self,
        endpoint: u32,
        verdict: Verdict,
        latency: Option<Duration>,
        report: Option<&LoadReport>,
    ) {
        let observed = latency.filter(|_| verdict != Verdict::NotAsked);
        let observation = observed.map(|latency| Observation {
            now: Instant::now().into_std(),
            latency,
            is_success: matches!(verdict, Verdict::Success | Verdict::Abandoned),
            report,
        });
        if let Some(report) = report {
            self.record(self.slot(endpoint).address, report);
        }
        let endpoint = endpoint as usize;
        let snapshot = &self.snapshot;
        if snapshot.end_attempt(endpoint, verdict, observation.as_ref())
            && let Some(runtime) = self.runtime.upgrade()
        {
            runtime.signals.maintenance.notify_one();
        }
    }

    #[cold]
    fn record(&self, endpoint: SocketAddr, report: &LoadReport) {
        let named: Vec<_> = report
            .named_metrics
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        // Of these, 0 is what a backend sends that does not measure it (gRFC A85).
        let measured = |value: f64| Some(value).filter(|value| *value > 0.0);
        let metrics = BackendMetrics {
            cpu_utilization: measured(report.cpu_utilization),
            mem_utilization: measured(report.mem_utilization),
            application_utilization: measured(report.application_utilization),
            named: &named,
        };
        self.load.record_metrics(endpoint, &metrics);
    }

    /// Has what the pick asked for connected.
    #[cold]
    fn queued(&self) -> Option<Result<u32, Error>> {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.signals.maintenance.notify_one();
        }
        None
    }

    /// Where a request goes that names its address itself; `None` where requests do not.
    ///
    /// # Errors
    /// When it names none, or one too many.
    pub(crate) fn name_destination<B>(
        &self,
        request: &Request<B>,
    ) -> Result<Option<SocketAddr>, Error> {
        let Some(config) = original_dst(&self.snapshot) else {
            return Ok(None);
        };
        let has_tls = self.snapshot.config.as_ref().is_ok_and(|c| c.has_tls());
        let authority = request.uri().authority().map(Authority::as_str);
        let port = if has_tls { 443 } else { 80 };
        let named = config.destination(request.headers(), authority, port);
        let name = self.name();
        let address = named.map_err(|why| {
            Error::new(ErrorKind::InvalidRequest, format!("cluster {name}: {why}"))
        })?;
        if !self.signals.destinations.name(address) {
            let why = format!(
                "cluster {name}: requests name more than {DESTINATIONS_MAX} addresses at a time"
            );
            return Err(Error::new(ErrorKind::CircuitOpen, why));
        }
        Ok(Some(address))
    }

    /// The only endpoint that will do cannot be used.
    #[cold]
    fn lost(&self, host: SocketAddr) -> Option<Result<u32, Error>> {
        if original_dst(&self.snapshot).is_none() {
            return Some(Err(self.session_lost(host)));
        }
        let mut endpoints = self.snapshot.endpoints.iter();
        let is_known = endpoints.any(|endpoint| endpoint.address == host);
        if !is_known && self.signals.destinations.has(host) {
            // The follower makes an endpoint of it.
            return self.queued();
        }
        let why = self.signals.last_failure();
        let why = why.map_or_else(String::new, |why| format!("; last failure: {why}"));
        let name = self.name();
        let why =
            format!("cluster {name}: {host}, which the request names, cannot be reached{why}");
        Some(Err(Error::new(ErrorKind::NoEndpoint, why)))
    }

    #[cold]
    fn session_lost(&self, host: SocketAddr) -> Error {
        Error::new(
            ErrorKind::NoEndpoint,
            format!(
                "cluster {}: endpoint {host} of the session cannot be used, and no other will do \
                 (strict)",
                self.name()
            ),
        )
    }

    /// How many endpoints cannot be used for which reason.
    fn endpoint_states(&self) -> String {
        let mut counts = BTreeMap::<&str, usize>::new();
        for endpoint in &*self.snapshot.endpoints {
            let stats = &endpoint.stats;
            let word = match (
                stats.is_ejected(),
                stats.connectivity(),
                stats.availability(),
            ) {
                (true, ..) => "ejected by outlier detection",
                (_, Connectivity::TransientFailure, _) => "not connected",
                (_, _, Connectivity::TransientFailure) => "failing health checks",
                (_, Connectivity::Ready, Connectivity::Connecting) => "not health checked yet",
                (_, Connectivity::Connecting, _) => "connecting",
                (_, Connectivity::Idle, _) => "idle",
                (_, Connectivity::Ready, _) => "connected",
            };
            *counts.entry(word).or_default() += 1;
        }
        let counts = counts.iter().map(|(word, count)| format!("{count} {word}"));
        counts.collect::<Vec<_>>().join(", ")
    }

    fn no_endpoint(&self) -> Error {
        let snapshot = &self.snapshot;
        let reason = match (&snapshot.resolution_note, snapshot.endpoints.len()) {
            (Some(note), _) => note.to_string(),
            (None, 0) => "it has no endpoints".to_owned(),
            (None, count) => {
                let why = self.signals.last_failure();
                let why = why.map_or_else(String::new, |why| format!("; last failure: {why}"));
                let states = self.endpoint_states();
                format!("none of its {count} endpoints can be reached ({states}){why}")
            }
        };
        Error::new(
            ErrorKind::NoEndpoint,
            format!("cluster {}: {reason}", self.name()),
        )
    }
}

/// Picks an endpoint of the newest state that follows `state`, by `pick`; waits while one is
/// connecting and none is ready.
///
/// # Errors
/// When no endpoint can be used. The caller bounds the wait.
pub(crate) async fn pick_later<M: MakeEndpoint>(
    mut state: Arc<ClusterState<M>>,
    pick: impl Fn(&ClusterState<M>) -> Option<Result<u32, Error>>,
) -> Result<(Arc<ClusterState<M>>, u32), Error> {
    let signals = Arc::clone(&state.signals);
    loop {
        let changed = signals.waiting.notified();
        tokio::pin!(changed);
        // Registered before the pick, so that a change between the two is not missed.
        changed.as_mut().enable();
        // A cluster that no route names any more has nothing newer: its last endpoints still serve the
        // calls that began there.
        if let Some(newest) = state.newest() {
            state = newest;
        }
        if let Some(decided) = pick(&state) {
            let endpoint = decided?;
            return Ok((state, endpoint));
        }
        changed.await;
    }
}
