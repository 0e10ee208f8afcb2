//! From a request's head to a route.
//!
//! Stage 8. The virtual host of a client listener is chosen once, at compile time, by the
//! authority that the application dials (gRFC A27, A47); per request the routes are tried in
//! order and the first that matches wins (gRFC A28); an index leaves out those that cannot match.
//! Clusters are indexes, never names. [`RouteTable::lookup`] finds the route;
//! [`RouteTable::decide`] also says everything else that follows from it: the rewritten path and
//! authority, changed headers, the hash, copies, or the answer. Deviations from Envoy are in
//! docs/envoy-deviations.md.

mod decide;
mod domain;
mod explain;
mod extras;
mod feature;
mod format;
mod hash;
mod index;
mod internal_redirect;
mod redirect;
mod request;
mod show;
mod table;
#[cfg(test)]
mod tests;

pub use decide::{
    Caller, ChosenCluster, Decision, DecisionAction, Forwarding, GeneratedCookie, ResponseChanges,
};
pub use domain::virtual_host;
pub use explain::{Explanation, HostTried, Mismatch, RouteTried, explain};
pub use feature::{Feature, Features};
pub(crate) use format::apply_changes;
pub(crate) use hash::find_cookie;
pub use internal_redirect::{FollowedRedirects, ORIGINAL_URL};
pub use request::RequestView;
pub use table::{CompiledAction, CompiledRoute, ForwardAction, RouteTable, StreamLimits};
