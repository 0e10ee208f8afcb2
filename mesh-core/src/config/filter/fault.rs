//! Injected faults (Envoy `HTTPFault`; gRFC A33).

use std::time::Duration;

use crate::config::{Fraction, HeaderMatcher};

/// Which requests are delayed or aborted, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Before anything is sent.
    pub delay: Option<FaultDelay>,
    /// Drawn on its own, after the delay.
    pub abort: Option<FaultAbort>,
    /// Only requests to this cluster; empty for all.
    pub upstream_cluster: String,
    /// Only requests that match all of these.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests whose `x-envoy-downstream-service-node` is one of these; empty for all.
    pub downstream_nodes: Vec<String>,
    /// Most faults of the process at a time; `None` for no limit, 0 injects none.
    pub max_active_faults: Option<u32>,
}

/// A delay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultDelay {
    /// How long.
    pub delay: Delay,
    /// Share of the requests.
    pub percentage: Fraction,
    /// Out of how many the percentage of a header is (`percentage.denominator`).
    pub denominator: u32,
}

/// How long a [`FaultDelay`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// As long as this.
    Fixed(Duration),
    /// As many milliseconds as `x-envoy-fault-delay-request` says.
    Header,
}

/// An abort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultAbort {
    /// With what.
    pub abort: Abort,
    /// Share of the requests.
    pub percentage: Fraction,
    /// Out of how many the percentage of a header is.
    pub denominator: u32,
}

/// What a [`FaultAbort`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status, 200 to 599; gRPC callers see the status that gRPC maps it to.
    Http(u16),
    /// A gRPC status; HTTP callers see the status that it is mapped to.
    Grpc(u32),
    /// What `x-envoy-fault-abort-request` or `x-envoy-fault-abort-grpc-request` says.
    Header,
}
