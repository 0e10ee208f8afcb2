//! What outlives snapshots of one cluster: circuit, connections, and who waits for them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_core::{
    ClusterName,
    balance::{PickContext, PickResult},
    config::{CircuitBreakers, Cluster},
    health::Circuit,
    load::{ClusterLoad, DropSource},
    observed::Observation,
    outcome::Verdict,
    rng::Rng,
    shard::Sharded,
    snapshot::{ClusterHandle, ClusterSnapshot, LazySnapshot, Maintainer},
    stats::{Connectivity, EndpointStats},
};
use tokio::{sync::watch, time::Instant};

use super::{EndpointContext, EndpointService, MakeEndpoint, endpoint::Signals};
use crate::{
    error::{Error, ErrorKind},
    rng,
    telemetry::{Metrics, metrics::CallMetrics},
};

/// One cluster of the process.
pub(crate) struct ClusterRuntime<M: MakeEndpoint> {
    totals: Arc<ClusterTotals>,
    make: Arc<M>,
    /// The same for all, but a call's reference count is its thread's own.
    state: Sharded<ArcSwap<ClusterState<M>>>,
    signals: Arc<Signals>,
    /// Tells the follower which snapshots to follow; dropped with the runtime, which ends it.
    source: watch::Sender<watch::Receiver<Arc<LazySnapshot>>>,
}

/// What the calls of a cluster count together.
pub(crate) struct ClusterTotals {
    name: ClusterName,
    circuit: Circuit,
    calls: Arc<CallMetrics>,
}

impl DropSource for ClusterTotals {
    fn dropped(&self) -> u64 {
        self.circuit.dropped()
    }
}

/// A cluster snapshot with the services of its endpoints, index by index: all that a call keeps.
#[repr(align(64))]
pub(crate) struct ClusterState<M: MakeEndpoint> {
    snapshot: Arc<ClusterSnapshot>,
    services: Services<M>,
    totals: Arc<ClusterTotals>,
    /// Where newer states are.
    runtime: Weak<ClusterRuntime<M>>,
}

type Services<M> = Arc<[Arc<EndpointSlot<M>>]>;

/// The service of one address, with what decides whether it can be kept.
pub(crate) struct EndpointSlot<M: MakeEndpoint> {
    address: SocketAddr,
    stats: Arc<EndpointStats>,
    cluster: Arc<Cluster>,
    service: M::Endpoint,
}

impl<M: MakeEndpoint> EndpointSlot<M> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn service(&self) -> &M::Endpoint {
        &self.service
    }

    /// A request begins.
    pub(crate) fn begin(&self) {
        self.stats.begin();
    }
}

impl<M: MakeEndpoint> ClusterRuntime<M> {
    /// A runtime that follows `handle` and connects to its endpoints, now and to those to come. Must
    /// be called inside a tokio runtime.
    pub(super) fn new(handle: &ClusterHandle, make: Arc<M>, metrics: &Metrics) -> Arc<Self> {
        let mut current = handle.current.clone();
        let snapshot = Arc::clone(current.borrow_and_update().get());
        let (source, followed) = watch::channel(current);
        let signals = Arc::<Signals>::default();
        let services = bind(&snapshot, &[], &*make, &signals);
        let calls = metrics.cluster(handle.name.as_str());
        calls.set_endpoints(&snapshot);
        let totals = Arc::new(ClusterTotals {
            name: handle.name.clone(),
            circuit: Circuit::default(),
            calls,
        });
        let runtime = Arc::new_cyclic(|runtime| {
            let state = || {
                ArcSwap::from_pointee(ClusterState {
                    snapshot: Arc::clone(&snapshot),
                    services: Arc::clone(&services),
                    totals: Arc::clone(&totals),
                    runtime: Weak::clone(runtime),
                })
            };
            Self {
                state: Sharded::new(state),
                totals: Arc::clone(&totals),
                make,
                signals,
                source,
            }
        });
        runtime.connect_all(&snapshot, &services);
        let signals = Arc::clone(&runtime.signals);
        tokio::spawn(follow(Arc::downgrade(&runtime), followed, signals));
        runtime
    }

    /// Shows load reports what the circuit breaker drops.
    pub(super) fn tell_drops_to(&self, load: &ClusterLoad) {
        load.count_drops_of(Arc::clone(&self.totals) as Arc<dyn DropSource>);
    }

    /// Follows another source of the same cluster, if it is another. A cluster that left the
    /// configuration and came back has one.
    pub(super) fn follow(&self, handle: &ClusterHandle) {
        self.source.send_if_modified(|current| {
            let differs = !current.same_channel(&handle.current);
            if differs {
                *current = handle.current.clone();
                current.mark_changed();
            }
            differs
        });
    }

    /// Connects to all endpoints but those of a priority that is not needed yet.
    fn connect_all(&self, snapshot: &ClusterSnapshot, services: &[Arc<EndpointSlot<M>>]) {
        for (index, slot) in services.iter().enumerate() {
            if snapshot.picker.connects(index) {
                slot.service.connect();
            }
        }
    }

    /// Does what time does to the cluster; returns when to do so again.
    fn maintain(&self, maintainer: &mut Maintainer) -> Option<Instant> {
        let state = self.load();
        let now = Instant::now();
        let next = maintainer.advance(&state.snapshot, now.into_std());
        if state.snapshot.wants_maintenance() {
            self.connect_all(&state.snapshot, &state.services);
            // Another priority may be in use.
            self.signals.waiting.notify_waiters();
        }
        next.map(Instant::from_std)
    }

    /// The newest endpoints and policy.
    pub(crate) fn load(&self) -> Arc<ClusterState<M>> {
        self.state.local().load_full()
    }

    fn update(self: &Arc<Self>, snapshot: &Arc<ClusterSnapshot>) {
        let held = Arc::clone(&self.load().services);
        let services = bind(snapshot, &held, &*self.make, &self.signals);
        for shard in self.state.iter() {
            shard.store(Arc::new(ClusterState {
                snapshot: Arc::clone(snapshot),
                services: Arc::clone(&services),
                totals: Arc::clone(&self.totals),
                runtime: Arc::downgrade(self),
            }));
        }
        self.totals.calls.set_endpoints(snapshot);
        self.connect_all(snapshot, &services);
        let kept = by_address(&services);
        for gone in held.iter().filter(|slot| !is_among(slot, &kept)) {
            gone.service.disconnect();
        }
        self.signals.waiting.notify_waiters();
    }
}

impl<M: MakeEndpoint> ClusterState<M> {
    pub(crate) fn name(&self) -> &ClusterName {
        &self.totals.name
    }

    /// Counters of the calls to this cluster.
    pub(crate) fn calls(&self) -> &CallMetrics {
        &self.totals.calls
    }

    /// An endpoint, by the index that [`pick`](Self::pick) gave.
    pub(crate) fn slot(&self, endpoint: u32) -> &EndpointSlot<M> {
        &self.services[endpoint as usize]
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
        if let Some(category) = self.snapshot.drops.draw(rng) {
            return Err(self.dropped(category));
        }
        match self.limits() {
            Ok(limits) if self.totals.circuit.try_acquire(limits) => Ok(()),
            Ok(limits) => Err(self.circuit_open(limits)),
            Err(error) => Err(error),
        }
    }

    #[cold]
    fn dropped(&self, category: &str) -> Error {
        Error::new(
            ErrorKind::Dropped,
            format!(
                "cluster {}: dropped, category {category:?} of drop_overloads",
                self.name()
            ),
        )
    }

    #[cold]
    fn circuit_open(&self, limits: &CircuitBreakers) -> Error {
        Error::new(
            ErrorKind::CircuitOpen,
            format!(
                "cluster {}: {} requests are in flight, as many as circuit_breakers allows",
                self.name(),
                limits.max_requests
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
        self.totals.circuit.release();
    }

    /// Takes a permit for one retry; `false` when the budget is used up. Give it back with
    /// [`release_retry`](Self::release_retry).
    pub(crate) fn acquire_retry(&self) -> bool {
        let limits = self.limits();
        limits.is_ok_and(|limits| self.totals.circuit.try_acquire_retry(&limits.retry_budget))
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
    ) -> Option<Result<u32, Error>> {
        let snapshot = &self.snapshot;
        let mut context = PickContext::new(rng, previous);
        if self.observes() {
            context.now = Some(Instant::now().into_std());
        }
        match snapshot.pick(&mut context) {
            PickResult::Endpoint(index) => Some(Ok(index as u32)),
            PickResult::Queue => None,
            PickResult::Fail => Some(Err(self.no_endpoint())),
        }
    }

    /// Whether the policy wants to know how long attempts take.
    pub(crate) fn observes(&self) -> bool {
        self.snapshot.picker.observes()
    }

    /// An attempt has ended, after `latency` where that is [wanted](Self::observes).
    pub(crate) fn end_attempt(&self, endpoint: u32, verdict: Verdict, latency: Option<Duration>) {
        let observation = latency.map(|latency| Observation {
            now: Instant::now().into_std(),
            latency,
            is_success: verdict == Verdict::Success,
            report: None,
        });
        let endpoint = endpoint as usize;
        let snapshot = &self.snapshot;
        if snapshot.end_attempt(endpoint, verdict, observation.as_ref())
            && let Some(runtime) = self.runtime.upgrade()
        {
            runtime.signals.maintenance.notify_one();
        }
    }

    fn no_endpoint(&self) -> Error {
        let snapshot = &self.snapshot;
        let reason = match (&snapshot.resolution_note, snapshot.endpoints.len()) {
            (Some(note), _) => note.to_string(),
            (None, count) => format!("none of its {count} endpoints can be reached"),
        };
        Error::new(
            ErrorKind::NoEndpoint,
            format!("cluster {}: {reason}", self.name()),
        )
    }
}

/// Picks an endpoint of the newest state that follows `state`; waits while one is connecting and none
/// is ready.
///
/// # Errors
/// When no endpoint can be used. The caller bounds the wait.
pub(crate) async fn pick_later<M: MakeEndpoint>(
    mut state: Arc<ClusterState<M>>,
    rng: &mut impl Rng,
    previous: &[SocketAddr],
) -> Result<(Arc<ClusterState<M>>, u32), Error> {
    let Some(runtime) = state.runtime.upgrade() else {
        return Err(state.no_endpoint());
    };
    loop {
        let changed = runtime.signals.waiting.notified();
        tokio::pin!(changed);
        // Registered before the pick, so that a change between the two is not missed.
        changed.as_mut().enable();
        state = runtime.load();
        if let Some(decided) = state.pick(rng, previous) {
            let endpoint = decided?;
            return Ok((state, endpoint));
        }
        changed.await;
    }
}

fn by_address<M: MakeEndpoint>(
    services: &[Arc<EndpointSlot<M>>],
) -> HashMap<SocketAddr, &Arc<EndpointSlot<M>>> {
    services.iter().map(|slot| (slot.address, slot)).collect()
}

/// Whether `slot` is one of `services`, by identity.
fn is_among<M: MakeEndpoint>(
    slot: &Arc<EndpointSlot<M>>,
    services: &HashMap<SocketAddr, &Arc<EndpointSlot<M>>>,
) -> bool {
    services
        .get(&slot.address)
        .is_some_and(|held| Arc::ptr_eq(held, slot))
}

/// Services for the endpoints of `snapshot`, reusing those of `held` that fit.
fn bind<M: MakeEndpoint>(
    snapshot: &ClusterSnapshot,
    held: &[Arc<EndpointSlot<M>>],
    make: &M,
    signals: &Arc<Signals>,
) -> Services<M> {
    let Ok(cluster) = &snapshot.config else {
        return Arc::new([]);
    };
    let held = by_address(held);
    snapshot
        .endpoints
        .iter()
        .map(|endpoint| {
            if let Some(slot) = held.get(&endpoint.address)
                && Arc::ptr_eq(&slot.stats, &endpoint.stats)
                && connects_alike(&slot.cluster, cluster)
            {
                return Arc::clone(slot);
            }
            let stats = Arc::clone(&endpoint.stats);
            // A service that is replaced may have left its last state behind.
            stats.set_connectivity(Connectivity::Idle);
            let context = EndpointContext {
                address: endpoint.address,
                cluster: Arc::clone(cluster),
                stats: Arc::clone(&stats),
                signals: Arc::clone(signals),
            };
            Arc::new(EndpointSlot {
                address: endpoint.address,
                stats,
                cluster: Arc::clone(cluster),
                service: make.make(context),
            })
        })
        .collect()
}

/// Whether connections made for one config serve the other.
fn connects_alike(a: &Cluster, b: &Cluster) -> bool {
    a.tls == b.tls && a.http_version == b.http_version && a.connect_timeout == b.connect_timeout
}

/// Shortest time between two looks at what endpoints have come to: thousands may change at once.
const MAINTENANCE_PAUSE: Duration = Duration::from_millis(10);

/// Follows the cluster's snapshots, and maintains what they hold, until the runtime is gone.
async fn follow<M: MakeEndpoint>(
    runtime: Weak<ClusterRuntime<M>>,
    mut source: watch::Receiver<watch::Receiver<Arc<LazySnapshot>>>,
    signals: Arc<Signals>,
) {
    let mut current = source.borrow_and_update().clone();
    let mut is_open = true;
    let mut maintainer = Maintainer::new(rng::fork().next_u64());
    let mut looked = Instant::now();
    let mut due = Some(looked);
    loop {
        tokio::select! {
            switched = source.changed() => {
                if switched.is_err() {
                    return;
                }
                current = source.borrow_and_update().clone();
                is_open = true;
            }
            changed = current.changed(), if is_open => {
                // The writer forgot the cluster: the last value stays for requests in flight.
                is_open = changed.is_ok();
                if !is_open {
                    continue;
                }
            }
            () = signals.maintenance.notified() => {
                if current.borrow().wants_maintenance() {
                    due = due.into_iter().chain([looked + MAINTENANCE_PAUSE]).min();
                }
                continue;
            }
            () = sleep_until(due) => {
                let Some(runtime) = runtime.upgrade() else {
                    return;
                };
                due = runtime.maintain(&mut maintainer);
                looked = Instant::now();
                continue;
            }
        }
        let snapshot = Arc::clone(current.borrow_and_update().get());
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        runtime.update(&snapshot);
        due = Some(Instant::now());
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
