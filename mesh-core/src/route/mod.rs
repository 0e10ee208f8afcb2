//! From a request's head to a route.
//!
//! Stage 8. The virtual host of a client listener is chosen once, at compile time, by the
//! authority that the application dials (gRFC A27, A47); per request the routes are tried in
//! order and the first that matches wins (gRFC A28); an index leaves out those that cannot match. Clusters are indexes, never names.

mod domain;
mod index;
mod table;
#[cfg(test)]
mod tests;

pub use domain::virtual_host;
pub use table::{CompiledAction, CompiledRoute, ForwardAction, RequestView, RouteTable};
