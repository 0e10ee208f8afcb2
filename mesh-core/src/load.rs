//! Load of a cluster that its endpoints' counters do not tell: requests that were dropped before an
//! endpoint was picked, and metrics that backends sent with their responses.
//!
//! Stage 13. Written by the data plane, read by whoever reports load to a control plane (LRS). Belongs to
//! the cluster's name, not to a snapshot. Nothing here is on the path of a request that is served and
//! carries no metrics.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Categories of drops and names of metrics that are told apart for one cluster: names may come from
/// backends, and memory must have a bound. What is beyond is counted without its name, or not at all.
pub const NAMES_MAX: usize = 256;

/// Prefix of metrics that the application named (gRFC A85).
const NAMED: &str = "named_metrics.";

/// Counts drops by itself.
pub trait DropSource: Send + Sync {
    /// Requests dropped since the process started, without a category.
    fn dropped(&self) -> u64;
}

/// What a backend said with a response (ORCA `OrcaLoadReport`).
#[derive(Clone, Copy, Debug, Default)]
pub struct BackendMetrics<'r> {
    /// Share of its processors, 0 or more.
    pub cpu_utilization: Option<f64>,
    /// Share of its memory, 0 to 1.
    pub mem_utilization: Option<f64>,
    /// Share of its capacity by a measure of its own, 0 or more.
    pub application_utilization: Option<f64>,
    /// Metrics that it named.
    pub named: &'r [(&'r str, f64)],
}

/// One metric over several responses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MetricSum {
    /// Responses that had it.
    pub count: u64,
    /// Sum of its values.
    pub total: f64,
}

/// Requests dropped since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// All of them, those of a category too.
    pub total: u64,
    /// Those with a category.
    pub by_category: BTreeMap<String, u64>,
}

/// Metrics of one endpoint, by the names of gRFC A85.
pub type EndpointMetrics = BTreeMap<String, MetricSum>;

/// Load of one cluster in this process.
#[derive(Default)]
pub struct ClusterLoad {
    wants_metrics: AtomicBool,
    /// Made when there is something to keep: most clusters are never called by a process.
    state: Mutex<Option<Box<State>>>,
}

#[derive(Default)]
struct State {
    dropped: Dropped,
    sources: Vec<Arc<dyn DropSource>>,
    wanted: BTreeSet<String>,
    metrics: HashMap<SocketAddr, EndpointMetrics>,
}

impl ClusterLoad {
    /// A request was dropped; an empty category counts in the total alone, as circuit breakers do.
    pub fn record_drop(&self, category: &str) {
        let mut state = self.lock();
        let state = state.get_or_insert_default();
        state.dropped.total += 1;
        let categories = &mut state.dropped.by_category;
        if let Some(count) = categories.get_mut(category) {
            *count += 1;
        } else if !category.is_empty() && categories.len() < NAMES_MAX {
            categories.insert(category.to_owned(), 1);
        }
    }

    /// Counts what another part counts by itself too. The same one twice is one.
    pub fn count_drops_of(&self, source: Arc<dyn DropSource>) {
        let mut state = self.lock();
        let state = state.get_or_insert_default();
        let is_known = |known: &Arc<dyn DropSource>| Arc::ptr_eq(known, &source);
        if !state.sources.iter().any(is_known) {
            // Those that nobody else holds have counted their last.
            state.retire_sources();
            state.sources.push(source);
        }
    }

    /// Drops since the process started.
    pub fn dropped(&self) -> Dropped {
        let mut state = self.lock();
        let Some(state) = state.as_deref_mut() else {
            return Dropped::default();
        };
        state.retire_sources();
        let mut dropped = state.dropped.clone();
        dropped.total += state.sources.iter().map(|s| s.dropped()).sum::<u64>();
        dropped
    }

    /// Metrics to keep, by the names of gRFC A85: `cpu_utilization`, `mem_utilization`,
    /// `application_utilization`, `named_metrics.KEY`, `named_metrics.*`. Others are not; an unknown name
    /// means nothing.
    pub fn select_metrics(&self, names: &[String]) {
        let mut state = self.lock();
        if !names.is_empty() {
            state.get_or_insert_default().wanted = names.iter().cloned().collect();
        } else if let Some(state) = state.as_deref_mut() {
            state.wanted.clear();
            state.metrics.clear();
        }
        self.wants_metrics.store(!names.is_empty(), Relaxed);
    }

    /// Whether [`record_metrics`](Self::record_metrics) keeps anything.
    pub fn wants_metrics(&self) -> bool {
        self.wants_metrics.load(Relaxed)
    }

    /// An endpoint's response carried metrics. Cheap when none is wanted.
    pub fn record_metrics(&self, endpoint: SocketAddr, report: &BackendMetrics<'_>) {
        if !self.wants_metrics() {
            return;
        }
        let fixed = [
            ("cpu_utilization", report.cpu_utilization),
            ("mem_utilization", report.mem_utilization),
            ("application_utilization", report.application_utilization),
        ];
        let mut state = self.lock();
        let State {
            wanted, metrics, ..
        } = &mut **state.get_or_insert_default();
        let sums = metrics.entry(endpoint).or_default();
        for (name, value) in fixed {
            if let Some(value) = value.filter(|_| wanted.contains(name)) {
                add(sums, name, value);
            }
        }
        let wants_all = wanted.contains("named_metrics.*");
        for (key, value) in report.named {
            let name = format!("{NAMED}{key}");
            if wants_all || wanted.contains(&name) {
                add(sums, &name, *value);
            }
        }
    }

    /// Metrics since the last call.
    pub fn take_metrics(&self) -> HashMap<SocketAddr, EndpointMetrics> {
        let mut state = self.lock();
        let state = state.as_deref_mut();
        state.map_or_else(HashMap::new, |state| std::mem::take(&mut state.metrics))
    }

    /// The state is whole after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Option<Box<State>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn retire_sources(&mut self) {
        let Self {
            dropped, sources, ..
        } = self;
        sources.retain(|source| {
            let is_used = Arc::strong_count(source) > 1;
            if !is_used {
                dropped.total += source.dropped();
            }
            is_used
        });
    }
}

fn add(sums: &mut EndpointMetrics, name: &str, value: f64) {
    if !value.is_finite() {
        return;
    }
    if !sums.contains_key(name) {
        if sums.len() >= NAMES_MAX {
            return;
        }
        sums.insert(name.to_owned(), MetricSum::default());
    }
    if let Some(sum) = sums.get_mut(name) {
        sum.count += 1;
        sum.total += value;
    }
}

impl fmt::Debug for ClusterLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterLoad").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[derive(Default)]
    struct Circuit(AtomicU64);

    impl DropSource for Circuit {
        fn dropped(&self) -> u64 {
            self.0.load(Relaxed)
        }
    }

    #[test]
    fn drops_of_circuit_breakers_have_no_category_and_all_count_in_the_total() {
        let load = ClusterLoad::default();
        let circuit = Arc::new(Circuit::default());
        load.count_drops_of(circuit.clone());
        load.count_drops_of(circuit.clone());
        circuit.0.store(3, Relaxed);
        load.record_drop("throttle");
        load.record_drop("throttle");
        load.record_drop("");
        let expected = Dropped {
            total: 6,
            by_category: [("throttle".to_owned(), 2)].into(),
        };
        assert_eq!(load.dropped(), expected);
        // What has ended is not forgotten, and not held.
        let weak = Arc::downgrade(&circuit);
        drop(circuit);
        assert_eq!(load.dropped(), expected);
        assert!(weak.upgrade().is_none());
        assert_eq!(load.dropped(), expected);
    }

    #[test]
    fn only_selected_metrics_are_kept_and_named_ones_under_their_prefix() {
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let report = BackendMetrics {
            cpu_utilization: Some(0.5),
            mem_utilization: Some(0.25),
            application_utilization: None,
            named: &[("queue", 4.0), ("bytes", 1.0), ("odd", f64::NAN)],
        };
        let kept = |names: &[&str]| {
            let load = ClusterLoad::default();
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            load.select_metrics(&names);
            load.record_metrics(endpoint, &report);
            load.record_metrics(endpoint, &report);
            let mut metrics = load.take_metrics();
            assert!(load.take_metrics().is_empty(), "since the last call");
            let sums = metrics.remove(&endpoint).unwrap_or_default();
            sums.into_iter()
                .map(|(name, sum)| (name, sum.count, sum.total))
                .collect::<Vec<_>>()
        };
        let metric = |name: &str, total| (name.to_owned(), 2, total);
        assert!(kept(&[]).is_empty(), "none unless asked (gRFC A85)");
        assert!(kept(&["unknown"]).is_empty());
        assert_eq!(kept(&["cpu_utilization"]), [metric("cpu_utilization", 1.0)]);
        assert_eq!(
            kept(&["named_metrics.queue"]),
            [metric("named_metrics.queue", 8.0)]
        );
        assert_eq!(
            kept(&["named_metrics.*"]),
            [
                metric("named_metrics.bytes", 2.0),
                metric("named_metrics.queue", 8.0)
            ]
        );
    }

    /// ConcurrentReportLoad.
    #[test]
    fn nothing_is_lost_between_threads() {
        let load = ClusterLoad::default();
        load.select_metrics(&["cpu_utilization".to_owned()]);
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let metrics = BackendMetrics {
            cpu_utilization: Some(1.0),
            ..BackendMetrics::default()
        };
        let taken = std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        load.record_drop("lb");
                        load.record_metrics(endpoint, &metrics);
                    }
                });
            }
            (0..100)
                .map(|_| load.take_metrics())
                .filter_map(|mut taken| taken.remove(&endpoint))
                .map(|taken| taken["cpu_utilization"].count)
                .sum::<u64>()
        });
        let rest = load.take_metrics().remove(&endpoint);
        let rest = rest.map_or(0, |rest| rest["cpu_utilization"].count);
        assert_eq!(taken + rest, 4000);
        assert_eq!(load.dropped().total, 4000);
    }

    #[test]
    fn names_of_backends_have_a_bound() {
        let load = ClusterLoad::default();
        load.select_metrics(&["named_metrics.*".to_owned()]);
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        for i in 0..2 * NAMES_MAX {
            let (name, category) = (format!("m{i}"), format!("c{i}"));
            let named = [(&*name, 1.0)];
            let report = BackendMetrics {
                named: &named,
                ..BackendMetrics::default()
            };
            load.record_metrics(endpoint, &report);
            load.record_drop(&category);
        }
        assert_eq!(load.take_metrics()[&endpoint].len(), NAMES_MAX);
        let dropped = load.dropped();
        assert_eq!(dropped.by_category.len(), NAMES_MAX);
        assert_eq!(dropped.total, 2 * NAMES_MAX as u64);
    }
}
