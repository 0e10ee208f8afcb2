//! How a host is balanced, where a DestinationRule cannot say it.

use serde::Deserialize;

use crate::model::ClientSelector;

object! {
    /// How a host is balanced; what it says beats what a DestinationRule says.
    BalancerPolicy {
        /// Name, short or full.
        host: String,
        /// Further names, or `*` and the end of full names.
        hosts: Vec<String>,
        /// Clients of its namespace that follow it; none is all.
        workload_selector: Option<ClientSelector>,
        /// Only this port.
        port: Option<u16>,
        /// Only this subset.
        subset: Option<String>,
        /// The lower product of latency and requests in flight; one of this and `prequal`.
        peak_ewma: Option<PeakEwmaSpec>,
        /// The fastest that is not hot.
        prequal: Option<PrequalSpec>,
        /// Below this percentage of usable endpoints all are used, 0 to 100.
        panic_threshold: Option<u32>,
        /// How much more than its share of usable endpoints a priority takes, in percent, at least 100;
        /// the rest goes to the next.
        overprovisioning_factor: Option<u32>,
        /// Of many endpoints each client uses so many, and others other ones.
        subset_size: Option<u32>,
        /// With `subset_size`: by each client's place among all of them, instead of chance.
        deterministic_subset: Option<bool>,
        /// As much as it can take stays in the client's zone.
        zone_aware: Option<ZoneAwareSpec>,
        /// Connections to one endpoint.
        max_connections_per_endpoint: Option<u32>,
        /// A limit of requests in flight that follows their latency.
        adaptive_concurrency: Option<AdaptiveSpec>,
    }
}
object! {
    /// A limit of requests in flight that follows their latency.
    AdaptiveSpec {
        /// How often it is calculated; default 100ms.
        update_interval: Option<String>,
        /// How often the latency without load is measured; default 60s.
        min_rtt_interval: Option<String>,
        /// Requests that such a measurement takes; default 50.
        min_rtt_requests: Option<u32>,
        /// The limit is never lower; default 3.
        min_concurrency: Option<u32>,
        /// The limit is never higher; default 1000.
        max_concurrency: Option<u32>,
    }
}
object! {
    /// Settings of zone-aware routing.
    ZoneAwareSpec {
        /// Percentage of requests for which zones count, 0 to 100; default 100.
        routing_enabled: Option<f64>,
        /// With fewer endpoints zones say nothing; default 6.
        min_cluster_size: Option<u32>,
        /// Whether requests fail when most endpoints are unusable, instead of going to any.
        fail_traffic_on_panic: Option<bool>,
    }
}
object! {
    /// Settings of peak EWMA.
    PeakEwmaSpec {
        /// In this time the weight of an old latency falls to 1/e; default 10s.
        decay: Option<String>,
        /// Latency of an endpoint that has not answered; default 30ms.
        default_rtt: Option<String>,
        /// Latency of a failed request; default 5s.
        failure_penalty: Option<String>,
    }
}
object! {
    /// Settings of Prequal.
    PrequalSpec {
        /// Endpoints that are compared, 2 to 16; default 5.
        choice_count: Option<u32>,
        /// What is hot, as a share of recent reports, 0 to 1; default 0.84.
        rif_quantile: Option<f64>,
        /// How long a report is used; default 1s.
        max_age: Option<String>,
        /// Latency of a failed request; default 5s.
        failure_penalty: Option<String>,
    }
}
