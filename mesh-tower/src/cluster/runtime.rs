//! What outlives snapshots of one cluster: circuit, connections, and who waits for them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use arc_swap::ArcSwap;
use mesh_core::{
    ClusterName,
    balance::{PickContext, PickResult},
    config::{CircuitBreakers, Cluster},
    health::Circuit,
    rng::Rng,
    snapshot::{ClusterHandle, ClusterSnapshot},
    stats::EndpointStats,
};
use tokio::sync::{Notify, watch};

use super::{EndpointContext, EndpointService, MakeEndpoint};
use crate::{
    error::{Error, ErrorKind},
    telemetry::{
        Metrics,
        metrics::{CallMetrics, EndpointMetrics},
    },
};

/// One cluster of the process.
pub(crate) struct ClusterRuntime<M: MakeEndpoint> {
    name: ClusterName,
    make: Arc<M>,
    circuit: Arc<Circuit>,
    state: ArcSwap<ClusterState<M>>,
    /// Wakes requests that wait for an endpoint.
    changed: Arc<Notify>,
    /// Whether a request was ever sent: connections are made then, and kept.
    active: AtomicBool,
    metrics: Metrics,
    calls: Arc<CallMetrics>,
    /// Tells the follower which snapshots to follow; dropped with the runtime, which ends it.
    source: watch::Sender<watch::Receiver<Arc<ClusterSnapshot>>>,
}

/// A cluster snapshot with the services of its endpoints, index by index.
struct ClusterState<M: MakeEndpoint> {
    snapshot: Arc<ClusterSnapshot>,
    services: Box<[Arc<EndpointSlot<M>>]>,
}

/// The service of one address, with what decides whether it can be kept.
struct EndpointSlot<M: MakeEndpoint> {
    address: SocketAddr,
    stats: Arc<EndpointStats>,
    cluster: Arc<Cluster>,
    metrics: Arc<EndpointMetrics>,
    service: M::Endpoint,
}

impl<M: MakeEndpoint> ClusterRuntime<M> {
    /// A runtime that follows `handle`. Must be called inside a tokio runtime.
    pub(super) fn new(handle: &ClusterHandle, make: Arc<M>, metrics: &Metrics) -> Arc<Self> {
        let mut current = handle.current.clone();
        let snapshot = current.borrow_and_update().clone();
        let (source, followed) = watch::channel(current);
        let changed = Arc::new(Notify::new());
        let services = bind(&snapshot, &[], &*make, &changed, metrics);
        let runtime = Arc::new(Self {
            name: handle.name.clone(),
            make,
            circuit: Arc::default(),
            state: ArcSwap::from_pointee(ClusterState { snapshot, services }),
            changed,
            active: AtomicBool::new(false),
            metrics: metrics.clone(),
            calls: metrics.cluster(handle.name.as_str()),
            source,
        });
        tokio::spawn(follow(Arc::downgrade(&runtime), followed));
        runtime
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

    /// Counters of the calls to this cluster.
    pub(crate) fn calls(&self) -> &Arc<CallMetrics> {
        &self.calls
    }

    pub(crate) fn name(&self) -> &ClusterName {
        &self.name
    }

    /// Makes connections, now and for endpoints to come.
    pub(crate) fn activate(&self) {
        // Sequentially consistent with `update`: of the two, the later one sees the other, so that
        // no endpoint is left unconnected.
        if !self.active.load(Relaxed) && !self.active.swap(true, SeqCst) {
            for slot in &self.state.load().services {
                slot.service.connect();
            }
        }
    }

    /// Takes a permit for one request.
    ///
    /// # Errors
    /// When the cluster is not usable, or has as many requests in flight as it may have.
    pub(crate) fn permit(&self) -> Result<(CircuitPermit, CircuitBreakers), Error> {
        let state = self.state.load();
        let config = state.snapshot.config.as_ref().map_err(|error| {
            Error::new(
                ErrorKind::Unsupported,
                format!("cluster {}: {error}", self.name),
            )
        })?;
        let limits = config.circuit_breakers;
        if !self.circuit.try_acquire(&limits) {
            return Err(Error::new(
                ErrorKind::CircuitOpen,
                format!(
                    "cluster {}: {} requests are in flight, as many as circuit_breakers allows",
                    self.name, limits.max_requests
                ),
            ));
        }
        Ok((
            CircuitPermit {
                circuit: Arc::clone(&self.circuit),
            },
            limits,
        ))
    }

    /// Takes a permit for one retry, `None` when the budget is used up.
    pub(crate) fn retry_permit(&self, limits: &CircuitBreakers) -> Option<RetryPermit> {
        self.circuit
            .try_acquire_retry(&limits.retry_budget)
            .then(|| RetryPermit {
                circuit: Arc::clone(&self.circuit),
            })
    }

    /// Picks an endpoint; waits while one is connecting and none is ready.
    ///
    /// # Errors
    /// When no endpoint can be used. The caller bounds the wait.
    pub(crate) async fn pick(
        &self,
        rng: &mut impl Rng,
        previous: &[SocketAddr],
    ) -> Result<Picked<M>, Error> {
        if let Some(decided) = self.try_pick(rng, previous) {
            return decided;
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the pick, so that a change between the two is not missed.
            changed.as_mut().enable();
            if let Some(decided) = self.try_pick(rng, previous) {
                return decided;
            }
            changed.await;
        }
    }

    /// `None`: an endpoint is connecting, wait for a change.
    fn try_pick(
        &self,
        rng: &mut impl Rng,
        previous: &[SocketAddr],
    ) -> Option<Result<Picked<M>, Error>> {
        let state = self.state.load();
        let snapshot = &state.snapshot;
        let mut context = PickContext { rng, previous };
        match snapshot.picker.pick(&snapshot.endpoints, &mut context) {
            PickResult::Endpoint(index) => {
                Some(Ok(Picked::begin(Arc::clone(&state.services[index]))))
            }
            PickResult::Queue => None,
            PickResult::Fail => Some(Err(self.no_endpoint(snapshot))),
        }
    }

    fn no_endpoint(&self, snapshot: &ClusterSnapshot) -> Error {
        let reason = match (&snapshot.resolution_note, snapshot.endpoints.len()) {
            (Some(note), _) => note.to_string(),
            (None, count) => format!("none of its {count} endpoints can be reached"),
        };
        Error::new(
            ErrorKind::NoEndpoint,
            format!("cluster {}: {reason}", self.name),
        )
    }

    fn update(&self, snapshot: Arc<ClusterSnapshot>) {
        let held = self.state.load_full();
        let services = bind(
            &snapshot,
            &held.services,
            &*self.make,
            &self.changed,
            &self.metrics,
        );
        let state = Arc::new(ClusterState { snapshot, services });
        self.state.store(Arc::clone(&state));
        if self.active.load(SeqCst) {
            for slot in &state.services {
                slot.service.connect();
            }
        }
        self.changed.notify_waiters();
    }
}

/// Services for the endpoints of `snapshot`, reusing those of `held` that fit.
fn bind<M: MakeEndpoint>(
    snapshot: &ClusterSnapshot,
    held: &[Arc<EndpointSlot<M>>],
    make: &M,
    changed: &Arc<Notify>,
    metrics: &Metrics,
) -> Box<[Arc<EndpointSlot<M>>]> {
    let Ok(cluster) = &snapshot.config else {
        return Box::default();
    };
    let held: std::collections::HashMap<_, _> =
        held.iter().map(|slot| (slot.address, slot)).collect();
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
            stats.set_connectivity(mesh_core::stats::Connectivity::Idle);
            let context = EndpointContext {
                address: endpoint.address,
                cluster: Arc::clone(cluster),
                stats: Arc::clone(&stats),
                changed: Arc::clone(changed),
            };
            Arc::new(EndpointSlot {
                address: endpoint.address,
                stats,
                cluster: Arc::clone(cluster),
                metrics: metrics.endpoint(snapshot.name.as_str(), endpoint.address),
                service: make.make(context),
            })
        })
        .collect()
}

/// Whether connections made for one config serve the other.
fn connects_alike(a: &Cluster, b: &Cluster) -> bool {
    a.tls == b.tls && a.http_version == b.http_version && a.connect_timeout == b.connect_timeout
}

/// Follows the cluster's snapshots until the runtime is gone.
async fn follow<M: MakeEndpoint>(
    runtime: Weak<ClusterRuntime<M>>,
    mut source: watch::Receiver<watch::Receiver<Arc<ClusterSnapshot>>>,
) {
    let mut current = source.borrow_and_update().clone();
    let mut is_open = true;
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
        }
        let snapshot = current.borrow_and_update().clone();
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        runtime.update(snapshot);
    }
}

/// A picked endpoint with one request in flight; ends it when dropped.
pub(crate) struct Picked<M: MakeEndpoint> {
    slot: Arc<EndpointSlot<M>>,
    success: bool,
}

impl<M: MakeEndpoint> Picked<M> {
    fn begin(slot: Arc<EndpointSlot<M>>) -> Self {
        slot.stats.begin();
        Self {
            slot,
            success: true,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.slot.address
    }

    pub(crate) fn service(&self) -> &M::Endpoint {
        &self.slot.service
    }

    /// Records that the request failed on this endpoint.
    pub(crate) fn fail(&mut self) {
        self.success = false;
    }
}

impl<M: MakeEndpoint> Drop for Picked<M> {
    fn drop(&mut self) {
        self.slot.stats.end(self.success);
        self.slot.metrics.record(self.success);
    }
}

/// A request's permit; given back when dropped.
pub(crate) struct CircuitPermit {
    circuit: Arc<Circuit>,
}

impl Drop for CircuitPermit {
    fn drop(&mut self) {
        self.circuit.release();
    }
}

/// A retry's permit; given back when dropped.
pub(crate) struct RetryPermit {
    circuit: Arc<Circuit>,
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.circuit.release_retry();
    }
}
