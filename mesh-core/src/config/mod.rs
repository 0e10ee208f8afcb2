//! What the control plane declared, already valid.
//!
//! Plain data with public fields, comparable. Stage: the output of decode (client side) and of
//! compile (control plane side); it is never read on the request path, only through the tables
//! compiled from it. Constructors parse: a value of these types needs no further validation.

mod balance;
mod cluster;
mod endpoint;
mod listener;
mod matcher;
mod outlier;
mod route;
mod security;

pub use balance::{
    ClientSideWrr, CommonLbConfig, LbPolicy, LeastRequest, MAGLEV_TABLE_SIZE_DEFAULT,
    MAGLEV_TABLE_SIZE_MAX, PeakEwma, Prequal, RING_SIZE_CAP, RING_SIZE_MAX, RingHash, SlowStart,
    WEIGHT_UPDATE_PERIOD_MIN,
};
pub use cluster::{
    CircuitBreakers, Cluster, DEFAULT_CONNECT_TIMEOUT, Discovery, HttpVersion, RetryBudget,
};
pub use endpoint::{
    ClusterEndpoints, DropOverload, Endpoint, HealthStatus, LocalityEndpoints, LocalityId,
    OVERPROVISIONING_FACTOR_DEFAULT,
};
pub use listener::{
    ApiListener, FilterChain, InboundListener, Listener, ListenerKind, RouteSource, TransportMatch,
};
pub(crate) use matcher::joined;
pub use matcher::{
    Fraction, HeaderMatcher, HeaderPredicate, PathMatcher, PathPattern, REGEX_SIZE_MAX, Regex,
    StringMatcher, StringPattern,
};
pub use outlier::{Consecutive, FailurePercentage, OutlierDetection, SuccessRate};
pub use route::{
    Backoff, Forward, MaxStreamDuration, RETRIES_MAX, RetryOn, RetryPolicy, Route, RouteAction,
    RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
};
pub use security::{
    CertificateSource, DownstreamTls, Permission, Principal, Rbac, RbacAction, RbacPolicy, Secret,
    TrustBundle, TrustSource, UpstreamTls,
};
