//! Endpoints of a cluster (xDS EDS).

use std::net::SocketAddr;

use crate::name::EndpointsName;

/// A cluster load assignment resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterEndpoints {
    /// Resource name (`cluster_name`).
    pub name: EndpointsName,
    /// Endpoints by locality; may be empty, which means: fail at once.
    pub localities: Vec<LocalityEndpoints>,
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

/// One address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// Share inside its locality; not 0. Default 1.
    pub weight: u32,
    /// As the control plane sees it.
    pub health: HealthStatus,
    /// Name of the host, empty if none.
    pub hostname: String,
}

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
    /// Used.
    Degraded,
}

impl HealthStatus {
    /// Whether new requests may go there.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Unknown | Self::Healthy | Self::Degraded)
    }
}
