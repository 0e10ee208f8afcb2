//! Endpoints of a cluster (xDS EDS).

use std::{net::SocketAddr, sync::Arc};

use super::{Fraction, LbMetadata};
use crate::name::EndpointsName;

/// A cluster load assignment resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterEndpoints {
    /// Resource name (`cluster_name`).
    pub name: EndpointsName,
    /// Endpoints by locality; may be empty, which means: fail at once.
    pub localities: Vec<LocalityEndpoints>,
    /// Requests to refuse before anything else is decided, one after the other.
    pub drop_overloads: Vec<DropOverload>,
    /// Percentage by which the load that a priority can take exceeds its share of usable endpoints
    /// (Envoy); with it priorities share the load by health. Default none: a priority is used as long
    /// as one of its endpoints can be (gRFC A56), unless
    /// [`fail_traffic_on_panic`](super::ZoneAware::fail_traffic_on_panic) asks for Envoy's panic, and so
    /// for [`OVERPROVISIONING_FACTOR_DEFAULT`].
    pub overprovisioning_factor: Option<u32>,
}

impl ClusterEndpoints {
    /// Endpoints without further rules.
    pub fn new(name: impl Into<EndpointsName>, localities: Vec<LocalityEndpoints>) -> Self {
        Self {
            name: name.into(),
            localities,
            drop_overloads: Vec::new(),
            overprovisioning_factor: None,
        }
    }
}

/// What Envoy takes for [`ClusterEndpoints::overprovisioning_factor`] when that is not declared.
pub const OVERPROVISIONING_FACTOR_DEFAULT: u32 = 140;

/// A share of requests that is refused (gRFC A27 `drop_overloads`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropOverload {
    /// For load reports.
    pub category: String,
    /// How many of those that earlier categories let pass.
    pub share: Fraction,
}

/// Endpoints of one locality at one priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalityEndpoints {
    /// Where.
    pub locality: LocalityId,
    /// Fail-over tier, 0 first, without gaps.
    pub priority: u32,
    /// Share among the localities of the same priority; not 0.
    pub weight: u32,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalityId {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
}

/// One address. Small, as there may be hundreds of thousands.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// Share inside its locality; not 0. Default 1.
    pub weight: u32,
    /// As the control plane sees it.
    pub health: HealthStatus,
    /// What few endpoints have; read by [`details()`](Self::details).
    pub details: Option<Box<EndpointDetails>>,
}

/// What few endpoints have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointDetails {
    /// Name of the host, empty if none.
    pub hostname: String,
    /// Where it can be reached besides, the most preferred first (gRFC A61). It is one endpoint
    /// nevertheless, whose identity is its [`address`](Endpoint::address).
    pub additional_addresses: Vec<SocketAddr>,
    /// What subsets are made by.
    pub metadata: LbMetadata,
    /// What a [`SocketMatch`](super::SocketMatch) asks for
    /// (`filter_metadata["envoy.transport_socket_match"]`). Default none.
    pub socket_labels: Option<Arc<LbMetadata>>,
}

static NO_DETAILS: EndpointDetails = EndpointDetails {
    hostname: String::new(),
    additional_addresses: Vec::new(),
    metadata: LbMetadata::new(),
    socket_labels: None,
};

impl EndpointDetails {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        let Self {
            hostname,
            additional_addresses,
            metadata,
            socket_labels,
        } = self;
        hostname.is_empty()
            && additional_addresses.is_empty()
            && metadata.is_empty()
            && socket_labels.is_none()
    }
}

impl Endpoint {
    /// An endpoint of weight 1 whose health is not known.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            health: HealthStatus::Unknown,
            details: None,
        }
    }

    /// The same with these details.
    #[must_use]
    pub fn with_details(mut self, details: EndpointDetails) -> Self {
        self.details = (!details.is_empty()).then(|| Box::new(details));
        self
    }

    /// Its details, all empty if it has none.
    pub fn details(&self) -> &EndpointDetails {
        self.details.as_deref().unwrap_or(&NO_DETAILS)
    }

    /// Its details, to change them.
    pub fn details_mut(&mut self) -> &mut EndpointDetails {
        self.details.get_or_insert_default()
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            address,
            weight,
            health,
            details: _,
        } = self;
        *address == other.address
            && *weight == other.weight
            && *health == other.health
            && self.details() == other.details()
    }
}

impl Eq for Endpoint {}

/// Health as declared by the control plane (Envoy `core.v3.HealthStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthStatus {
    /// Not known; used.
    #[default]
    Unknown,
    /// Used.
    Healthy,
    /// Not used.
    Unhealthy,
    /// Finishes what it has; gets nothing new.
    Draining,
    /// Health checks time out; not used.
    Timeout,
    /// Used when no other of any priority can be.
    Degraded,
}

impl HealthStatus {
    /// Whether new requests may go there.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Unknown | Self::Healthy | Self::Degraded)
    }

    /// Whether new requests should go there as well as anywhere.
    pub fn is_healthy(self) -> bool {
        matches!(self, Self::Unknown | Self::Healthy)
    }
}
