//! What the control plane declared, already valid.
//!
//! Plain data with public fields, comparable. Stage: the output of decode (client side) and of
//! compile (control plane side); it is never read on the request path, only through the tables
//! compiled from it. Constructors parse: a value of these types needs no further validation.

mod balance;
mod cel;
mod chain_match;
mod client_cert;
mod cluster;
mod connection;
mod endpoint;
mod filter;
mod forward;
mod hash_policy;
mod headers;
mod health_check;
mod http_limits;
mod internal_redirect;
mod ip_range;
mod jwt;
mod listener;
mod matcher;
mod metadata;
mod normalize;
mod original_dst;
mod outlier;
mod path_template;
mod rbac;
mod retry;
mod rewrite;
mod route;
mod security;
mod subset;
mod upstream_tls;
mod value_template;
mod words;
mod zone;

pub use balance::{
    ClientPosition, ClientSideWrr, CommonLbConfig, ConsistentHashing, LbPolicy, LeastRequest,
    MAGLEV_TABLE_SIZE_DEFAULT, MAGLEV_TABLE_SIZE_MAX, OOB_REPORTING_PERIOD_DEFAULT, PeakEwma,
    Prequal, RING_SIZE_CAP, RING_SIZE_MAX, RingHash, SlowStart, Subsetting,
    WEIGHT_UPDATE_PERIOD_MIN,
};
pub use cel::{CEL_DEPTH_MAX, CEL_NODES_MAX, Cel, CelAttribute, CelComparison, CelTextTest};
pub use chain_match::{Arrival, ChainMatch, SourceType, choose_chain};
pub use client_cert::{ClientCertDetails, ForwardClientCert, ForwardMode};
pub use cluster::{
    CircuitBreakers, Cluster, DEFAULT_CONNECT_TIMEOUT, Discovery, DnsHost, HTTP2_CONNECTIONS_MAX,
    HttpVersion, RetryBudget,
};
pub use connection::{
    ConnectionOptions, HTTP2_KEEPALIVE_MIN, Http2Keepalive, Http2Options, TcpKeepalive,
};
pub use endpoint::{
    ClusterEndpoints, DropOverload, Endpoint, EndpointDetails, HealthStatus, LocalityEndpoints,
    LocalityId, OVERPROVISIONING_FACTOR_DEFAULT,
};
pub use filter::{
    Abort, AdaptiveConcurrency, CheckBody, CorsPolicy, DYNAMIC_DESCRIPTORS_DEFAULT,
    DYNAMIC_DESCRIPTORS_MAX, Delay, DescriptorEntry, DescriptorSource,
    EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT, EXT_AUTHZ_TIMEOUT_DEFAULT, ExtAuthz, ExtAuthzSettings,
    Fault, FaultAbort, FaultDelay, FilterConfig, FilterOverride, FilterOverrides, HeaderMutation,
    HttpCheck, HttpFilter, LocalRateLimit, RateLimit, RateLimitDescriptor, SessionCookieConfig,
    SessionState, StatefulSession, TokenBucket,
};
pub use forward::{
    BodyBuffer, ClusterExtras, Forward, ForwardExtras, HEDGE_ATTEMPTS_MAX, HedgeDelay, HedgePolicy,
    MaxStreamDuration, Mirror, MirrorTarget, Percentile, WeighBy, WeightedCluster,
};
pub use hash_policy::{HashPolicy, HashSource};
pub use headers::{AppendAction, HeaderChanges, HeaderMutations, HeaderValue};
pub use health_check::{
    HealthCheck, HealthCheckKind, HttpHealthCheck, NO_TRAFFIC_INTERVAL_DEFAULT,
};
pub use http_limits::{HttpLimits, Underscores};
pub use internal_redirect::{InternalRedirectPolicy, REDIRECT_CODES, RedirectPredicate};
pub use ip_range::IpRange;
pub use jwt::{
    ClaimToHeader, HeaderLocation, JWKS_CACHE_DURATION_DEFAULT, JWKS_CACHE_DURATION_MIN,
    JWKS_FAILED_REFETCH_DEFAULT, JWKS_FAILED_REFETCH_MIN, JWKS_RETRIES_MAX,
    JWKS_RETRY_PAUSE_DEFAULT, JWT_CLOCK_SKEW_DEFAULT, Jwks, JwtAuthn, JwtProvider, RemoteJwks,
};
pub use listener::{
    ApiListener, FilterChain, InboundListener, Listener, ListenerKind, RouteSource, RouterOptions,
    StrictHeaders, TransportMatch,
};
pub use matcher::{
    Fraction, HeaderMatcher, HeaderPredicate, PathMatcher, PathPattern, QueryMatcher,
    REGEX_SIZE_MAX, Regex, StringMatcher, StringPattern,
};
pub(crate) use matcher::{joined, query_parameter};
pub use metadata::{DynamicMetadata, MetadataMatcher, ValueMatcher};
pub use normalize::{EscapedSlashes, NormalizedPath, PathNormalization};
pub use original_dst::{CLEANUP_INTERVAL_DEFAULT, ORIGINAL_DST_HEADER, OriginalDst};
pub use outlier::{Consecutive, FailurePercentage, OutlierDetection, SuccessRate};
pub use path_template::{PathTemplate, TemplateRewrite};
pub use rbac::{
    Permission, Principal, Rbac, RbacAction, RbacPolicy, SELECTION_PREFIX, ShadowRules,
};
pub use retry::{
    Backoff, RETRIES_MAX, RateLimitedBackoff, ResetHeader, RetryExtras, RetryOn, RetryPolicy,
};
pub use rewrite::{DirectResponse, HostRewrite, PathRewrite, Redirect, RedirectPath, RegexRewrite};
pub use route::{AttemptCounts, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost};
pub use security::{
    CertificateSource, DownstreamTls, OWN_CERTIFICATE, OWN_TRUST_BUNDLE, Secret, SpiffeBundleMap,
    TrustBundle, TrustSource,
};
pub use subset::{LbMetadata, MetadataValue, SubsetFallback, SubsetSelector, Subsets};
pub use upstream_tls::{SanMatcher, SanType, SocketMatch, TlsVersion, UpstreamTls};
pub use value_template::{HeaderCommand, ValueCommand, ValuePart, ValueTemplate};
pub use zone::{HEALTHY_PANIC_THRESHOLD_DEFAULT, LocalZones, LocalityBasis, ZoneAware, ZoneSize};
