//! The xDS server: one task a stream, both variants over one set of rules.
//!
//! `sotw` and `delta` are sans-IO: requests in, responses out, no clock. `stream` drives one of
//! them; `service` is what tonic serves.

mod delta;
mod service;
mod sotw;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

pub use service::{AdsService, ClientStatus, Clients};

use std::sync::Arc;

use crate::cache::{Client, Resource, ResourceType, World};

/// What a stream's rules see of the mesh.
pub(crate) struct View<'w> {
    pub(crate) world: &'w World,
    pub(crate) client: &'w Client,
    /// The client's own certificate, if it may have one from here.
    pub(crate) leaf: Option<&'w Arc<Resource>>,
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
}

impl View<'_> {
    /// Looks up a subscribed name. With `may_keep` the client was sent one, and removals are not
    /// due yet.
    fn find(&self, kind: ResourceType, name: &str, may_keep: bool) -> Found {
        match self.resource(kind, name) {
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
    /// The client refuses what it was sent, with this text.
    pub(crate) nack: Option<String>,
    /// The client accepts what it was sent.
    pub(crate) ack: bool,
}

/// The rules of one variant.
pub(crate) trait Variant: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    fn node(request: &mut Self::Request) -> Option<envoy_types::pb::envoy::config::core::v3::Node>;

    /// Applies a request; `None` for one that must be ignored.
    fn hear(&mut self, request: Self::Request) -> Option<Heard>;

    /// The response that is due for `kind`, if any; to be asked until there is none. With
    /// `keeps_removed` nothing is taken away yet.
    fn answer(
        &mut self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Option<Self::Response>;

    /// Makes the endpoints of these clusters due again: Envoy waits for them after a change of a
    /// cluster, even when they are the same.
    fn endpoints_again(&mut self, names: &[String]);

    /// Whether the client still has something that is gone.
    fn keeps_some(&self) -> bool;

    /// Clusters in `response`, when it is about clusters.
    fn clusters_in(response: &Self::Response) -> Vec<String>;

    /// Whether the client subscribes to its own certificate.
    fn wants_leaf(&self) -> bool;

    /// Version of what was last sent.
    fn sent_version(&self, kind: ResourceType) -> Option<String>;
}
