//! Objects of our own (`mesh/v1`), for what no other dialect can say.

mod balancer_policy;
mod filter_policy;
mod hedge_policy;
mod mesh_policy;
mod rate_limit;

pub use balancer_policy::{
    BalancerPolicy, ClientSideWrrSpec, OriginalDestinationSpec, PeakEwmaSpec, PrequalSpec,
};
pub use filter_policy::{BufferSpec, FilterPolicy, SessionCookieSpec, SessionSpec};
pub use hedge_policy::HedgePolicy;
pub use mesh_policy::{
    CheckedRequestBody, ExtAuthzGrpc, ExtAuthzHttp, ExtensionProvider, MeshPolicy, RemoteJwksPolicy,
};
pub use rate_limit::{RateLimit, RateLimitMatch, RateLimitPer, RateLimitRule};
