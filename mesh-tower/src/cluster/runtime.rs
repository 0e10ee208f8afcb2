//! What outlives snapshots of one cluster: circuit, connections, and who waits for them.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_core::{
    health::Circuit,
    load::{ClusterLoad, DropSource},
    rcu::Rcu,
    rng::Rng,
    shard::Sharded,
    snapshot::{ClusterHandle, ClusterSnapshot, LazySnapshot, Maintainer},
};
use tokio::{sync::watch, time::Instant};

use super::{
    ClusterState, EndpointService, MakeEndpoint,
    check::HealthChecks,
    endpoint::Signals,
    reports::LoadReports,
    slot::{EndpointSlot, bind, by_address, is_among},
    state::ClusterTotals,
};
use crate::{rng, telemetry::Metrics};

/// The newest state of a cluster: the same for all, but a call's reference count is its thread's own.
/// Clones follow it, too.
pub(super) type States<M> = Sharded<Rcu<ClusterState<M>>>;

/// One cluster of the process.
pub(crate) struct ClusterRuntime<M: MakeEndpoint> {
    totals: Arc<ClusterTotals>,
    make: Arc<M>,
    states: States<M>,
    pub(super) signals: Arc<Signals>,
    checks: HealthChecks,
    reports: LoadReports<M>,
    /// For load reports; another one, as the source is, after the cluster left and came back.
    load: Mutex<Arc<ClusterLoad>>,
    /// Tells the follower which snapshots to follow; dropped with the runtime, which ends it.
    source: watch::Sender<watch::Receiver<Arc<LazySnapshot>>>,
}

impl<M: MakeEndpoint> ClusterRuntime<M> {
    /// A runtime that follows `handle` and connects to its endpoints, now and to those to come. Must
    /// be called inside a tokio runtime.
    pub(super) fn new(handle: &ClusterHandle, make: Arc<M>, metrics: &Metrics) -> Arc<Self> {
        let mut current = handle.current.clone();
        let snapshot = Arc::clone(current.borrow_and_update().get());
        let (source, followed) = watch::channel(current);
        let signals = Arc::new(Signals::new(metrics.handshakes().clone()));
        set_limits(&signals, &snapshot);
        let services = bind(&snapshot, &[], &*make, &signals);
        let circuit = Arc::new(Circuit::new(max_requests(&snapshot).unwrap_or_default()));
        let calls = metrics.cluster(handle.name.as_str(), Arc::clone(&circuit));
        calls.set_endpoints(&snapshot);
        let totals = Arc::new(ClusterTotals {
            name: handle.name.clone(),
            circuit,
            calls,
            mirrors: AtomicU32::new(0),
            latencies: OnceLock::new(),
        });
        let runtime = Arc::new_cyclic(|runtime| {
            let load = &handle.load;
            let state =
                || ClusterState::new(&snapshot, &services, &totals, load, &signals, runtime);
            let state = || Rcu::new(Arc::new(state()));
            Self {
                states: Sharded::new(state),
                totals: Arc::clone(&totals),
                make,
                signals: Arc::clone(&signals),
                checks: HealthChecks::default(),
                reports: LoadReports::default(),
                load: Mutex::new(Arc::clone(&handle.load)),
                source,
            }
        });
        runtime.tell_load_to(&handle.load);
        let (make, signals) = (&runtime.make, &runtime.signals);
        runtime.checks.follow(&snapshot, make, signals);
        runtime.connect_all(&snapshot, &services);
        let signals = Arc::clone(&runtime.signals);
        tokio::spawn(follow(Arc::downgrade(&runtime), followed, signals));
        runtime
    }

    /// Shows load reports what the circuit breaker drops, and what backends say.
    fn tell_load_to(&self, load: &Arc<ClusterLoad>) {
        load.count_drops_of(Arc::clone(&self.totals) as Arc<dyn DropSource>);
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(load);
    }

    /// Follows another source of the same cluster, if it is another. A cluster that left the
    /// configuration and came back has one.
    pub(super) fn follow(&self, handle: &ClusterHandle) {
        self.tell_load_to(&handle.load);
        self.source.send_if_modified(|current| {
            let differs = !current.same_channel(&handle.current);
            if differs {
                *current = handle.current.clone();
                current.mark_changed();
            }
            differs
        });
    }

    /// Connects to all endpoints but those of a priority that is not needed yet; where that is done on
    /// demand, to those that were picked.
    fn connect_all(&self, snapshot: &ClusterSnapshot, services: &[Arc<EndpointSlot<M>>]) {
        for (index, slot) in services.iter().enumerate() {
            if slot.stats.take_wanted() || snapshot.picker.connects(index) {
                slot.service.connect();
            }
        }
    }

    /// Does what time does to the cluster; returns when to do so again.
    fn maintain(self: &Arc<Self>, maintainer: &mut Maintainer) -> Option<Instant> {
        let state = self.load();
        let now = Instant::now();
        let next = maintainer.advance(&state.snapshot, now.into_std());
        let next = next.map(Instant::from_std);
        let runtime = Arc::downgrade(self);
        let reports = &self.reports;
        let reports = reports.look(&state.snapshot, &state.services, &runtime);
        let swept = self.signals.destinations.sweep(&state.snapshot, now);
        if state.snapshot.wants_maintenance() {
            self.connect_all(&state.snapshot, &state.services);
            // Another priority may be in use.
            self.signals.waiting.notify_waiters();
        }
        next.into_iter().chain(reports).chain(swept).min()
    }

    /// Where the newest endpoints and policy are.
    pub(super) fn states(&self) -> &States<M> {
        &self.states
    }

    /// The newest endpoints and policy.
    pub(crate) fn load(&self) -> Arc<ClusterState<M>> {
        self.states.local().load()
    }

    fn update(self: &Arc<Self>, snapshot: &Arc<ClusterSnapshot>) {
        let held = Arc::clone(&self.load().services);
        set_limits(&self.signals, snapshot);
        if let Some(limit) = max_requests(snapshot) {
            self.totals.circuit.set_max_requests(limit);
        }
        let services = bind(snapshot, &held, &*self.make, &self.signals);
        let load = Arc::clone(&self.load.lock().unwrap_or_else(PoisonError::into_inner));
        let (totals, signals, runtime) = (&self.totals, &self.signals, &Arc::downgrade(self));
        let state = || ClusterState::new(snapshot, &services, totals, &load, signals, runtime);
        Rcu::replace_all(self.states.iter().map(|shard| (shard, Arc::new(state()))));
        self.totals.calls.set_endpoints(snapshot);
        self.checks.follow(snapshot, &self.make, &self.signals);
        self.reports.keep(&services);
        self.connect_all(snapshot, &services);
        let kept = by_address(&services);
        for gone in held.iter().filter(|slot| !is_among(slot, &kept)) {
            gone.service.disconnect();
        }
        self.signals.waiting.notify_waiters();
    }
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
            () = signals.destinations.changed.notified() => {}
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
        let snapshot = signals.destinations.snapshot(&current.borrow_and_update());
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        runtime.update(&snapshot);
        due = Some(Instant::now());
    }
}

fn set_limits(signals: &Signals, snapshot: &ClusterSnapshot) {
    if let Ok(config) = &snapshot.config {
        signals.connections.set_limits(&config.circuit_breakers);
        let is_on_demand = config.lb_policy.connects_on_demand();
        signals.is_on_demand.store(is_on_demand, Relaxed);
    }
}

/// `None` when the cluster cannot be used.
fn max_requests(snapshot: &ClusterSnapshot) -> Option<u32> {
    let config = snapshot.config.as_ref().ok()?;
    Some(config.circuit_breakers.max_requests)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
