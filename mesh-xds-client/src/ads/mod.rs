//! The xDS protocol, without I/O and without a clock.
//!
//! Stage 2: which names are wanted, which version and nonce to answer with, what is accepted, what
//! is refused, and when a resource counts as missing. [`Machine`] takes events and time and is
//! asked for requests; it speaks either [`Variant`], and what differs between them is in `sotw` and
//! `delta`. It keeps no resource: those go on to the cache. Rules: xDS transport protocol, gRFC A46,
//! A57 and A88, xRFC TP3. Deviation: a response that only holds heartbeats still is answered.

mod deadlines;
mod delta;
mod machine;
mod nack;
mod names;
mod sotw;
mod subscription;
#[cfg(test)]
mod tests;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryResponse, ResourceError,
};
use mesh_core::ConfigError;

use crate::resource::{Accepted, Kind, Raw};

pub(crate) use machine::Machine;
pub(crate) use names::SotwRequest;

/// Which form of the protocol a server is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Each request holds all names, each response of LDS and CDS all resources. Every control
    /// plane speaks it.
    #[default]
    StateOfTheWorld,
    /// Only changes go either way. A server that does not speak it is spoken to in the other form.
    Incremental,
}

/// What a response changed, resource by resource.
#[derive(Debug, PartialEq)]
pub(crate) struct Update {
    pub(crate) kind: Kind,
    /// Valid resources that were asked for.
    pub(crate) accepted: Vec<Accepted>,
    /// Refused resources that were asked for.
    pub(crate) rejected: Vec<(String, ConfigError)>,
    /// Resources that the server says are gone.
    pub(crate) removed: Vec<String>,
    /// Resources for which the server sent an error instead (xRFC TP3).
    pub(crate) errors: Vec<ServerError>,
    /// The whole refusal, as the server is told.
    pub(crate) nack: Option<String>,
}

/// An error in place of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) name: String,
    pub(crate) error: ConfigError,
    /// Whether it says something about the resource, rather than about the server's state: only
    /// NOT_FOUND and PERMISSION_DENIED do (gRFC A88).
    pub(crate) is_data_error: bool,
}

/// What time has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    /// Resources that did not come in time; each is named once per stream.
    pub(crate) missing: Vec<(Kind, String)>,
    /// Resources whose time to live is over.
    pub(crate) ended: Vec<(Kind, String)>,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    Sotw(SotwRequest),
    Delta(DeltaDiscoveryRequest),
}

/// What is received.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Response {
    Sotw(DiscoveryResponse),
    Delta(DeltaDiscoveryResponse),
}

impl Response {
    /// The type it is about.
    pub(crate) fn type_url(&self) -> &str {
        match self {
            Self::Sotw(response) => &response.type_url,
            Self::Delta(response) => &response.type_url,
        }
    }
}

#[cfg(feature = "test-util")]
impl Request {
    /// As it goes over the wire.
    pub(crate) fn encoded(&self) -> Vec<u8> {
        use prost::Message;
        match self {
            Self::Sotw(request) => request.encode_to_vec(),
            Self::Delta(request) => request.encode_to_vec(),
        }
    }
}

#[cfg(feature = "test-util")]
impl Response {
    /// As it comes over the wire.
    pub(crate) fn decoded(variant: Variant, bytes: &[u8]) -> Option<Self> {
        use prost::Message;
        match variant {
            Variant::StateOfTheWorld => DiscoveryResponse::decode(bytes).ok().map(Self::Sotw),
            Variant::Incremental => DeltaDiscoveryResponse::decode(bytes).ok().map(Self::Delta),
        }
    }
}

/// A response of either variant, in one form.
struct Incoming {
    version: String,
    nonce: String,
    resources: Vec<Raw>,
    removed: Vec<String>,
    errors: Vec<ResourceError>,
}

/// What a response is answered with.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    nonce: String,
    refusal: Option<String>,
}
