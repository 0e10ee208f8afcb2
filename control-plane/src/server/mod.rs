//! The xDS server: one task a stream, both variants over one set of rules.
//!
//! `sotw` and `delta` are the rules of the variants, `session` what both do in which order; they
//! are sans-IO: requests in, responses out, no clock. `stream` drives a session, `service` is what
//! tonic serves, `listen` the connections below it, `admit` their limits, `wire` the bytes.
//! `registry` knows who is connected and what each has.

mod admit;
mod delta;
mod fit;
#[cfg(test)]
mod fit_tests;
mod listen;
mod registry;
mod sent;
mod service;
mod session;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod sim_tests;
mod sotw;
mod status;
mod stream;
#[cfg(test)]
mod stream_tests;
mod subscription;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod wire;

pub use admit::Limits;
pub(crate) use listen::ConnectionEnd;
pub use listen::{CONNECTION_AGE_MAX, serve, serve_https};
pub use registry::Clients;
pub use service::AdsService;
pub use status::{ClientStatus, Progress, ResourceStatus, TypeStatus, Unfinished, Waited};
pub use tls::{ServerTls, is_local};

use std::sync::Arc;

use crate::{
    cache::{Client, Resource, ResourceType, World},
    class::Feature,
};
use sent::Verdict;
use subscription::Subscriptions;
use wire::Response;

/// What a stream's rules see of the mesh.
pub(crate) struct View<'w> {
    pub(crate) world: &'w World,
    pub(crate) client: &'w Client,
    /// The client's own certificate, if it may have one from here.
    pub(crate) leaf: Option<&'w Arc<Resource>>,
    /// What the client takes in one message, in bytes.
    pub(crate) message_max: usize,
}

impl View<'_> {
    fn resource(&self, kind: ResourceType, name: &str) -> Option<Arc<Resource>> {
        if kind == ResourceType::Secret && name == crate::cache::OWN_CERTIFICATE {
            return self.leaf.cloned();
        }
        self.world.resource(self.client, kind, name)
    }

    fn wildcard(&self, kind: ResourceType) -> Vec<String> {
        self.world.wildcard(self.client, kind)
    }
}

/// What a client is to have of a type now.
enum Found {
    /// It exists.
    Resource(Arc<Resource>),
    /// It is gone, and the client keeps what it has until the removals.
    Kept,
    /// There is none.
    Missing,
    /// It alone is more than the client takes, which keeps what it has.
    TooLarge(usize),
    /// The client lacks what would make it safe: there is none for it.
    Unsafe(Feature),
}

impl View<'_> {
    /// Looks up a subscribed name. With `may_keep` the client was sent one, and removals are not
    /// due yet.
    fn find(&self, kind: ResourceType, name: &str, may_keep: bool) -> Found {
        if let Some(feature) = self.world.lacks(self.client, kind, name) {
            return Found::Unsafe(feature);
        }
        match self.resource(kind, name) {
            Some(resource) if fit::alone(&resource) > self.message_max => {
                Found::TooLarge(fit::alone(&resource))
            }
            Some(resource) => Found::Resource(resource),
            None if may_keep => Found::Kept,
            None => World::placeholder(kind, name).map_or(Found::Missing, Found::Resource),
        }
    }
}

/// What a request said.
#[derive(Debug, PartialEq)]
pub(crate) struct Heard {
    pub(crate) kind: ResourceType,
    /// What the client says of a response that waited for it.
    pub(crate) verdict: Option<Verdict>,
    /// Whether an answer may be due.
    pub(crate) is_changed: bool,
    /// Whether it was about a response that is not the last one.
    pub(crate) is_stale: bool,
    /// Whether the client has something of the type from an earlier stream.
    pub(crate) inherits: bool,
}

/// Whether a client has something that is gone, and was not told yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kept {
    /// Nothing.
    #[default]
    Nothing,
    /// By a wildcard, which the client does not end by itself.
    ByWildcard,
    /// By its name: the client ends the subscription when nothing refers to it any more.
    ByName,
}

impl Kept {
    fn add(&mut self, is_by_name: bool) {
        *self = (*self).max(if is_by_name {
            Self::ByName
        } else {
            Self::ByWildcard
        });
    }
}

/// The rules of one variant.
pub(crate) trait Variant: Default + Send + 'static {
    type Request: prost::Message + Default + Send + 'static;

    fn node(request: &mut Self::Request) -> Option<envoy_types::pb::envoy::config::core::v3::Node>;

    /// The names in a request.
    fn names(request: &Self::Request) -> impl Iterator<Item = &str>;

    /// Applies a request; `None` for one of a type that is not served.
    fn hear(&mut self, request: Self::Request) -> Option<Heard>;

    /// The response that is due for `kind`, if any; to be asked until there is none. With
    /// `keeps_removed` nothing is taken away yet.
    fn answer(
        &mut self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Option<Response>;

    /// What the client subscribes to, and has.
    fn subscriptions(&self) -> &Subscriptions;

    fn subscriptions_mut(&mut self) -> &mut Subscriptions;
}
