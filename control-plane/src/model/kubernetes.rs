//! Kubernetes' Service and EndpointSlice.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `v1` Service. Fields that only matter to a cluster network are read and mean nothing here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its pods.
    pub selector: BTreeMap<String, String>,
    /// `PreferClose`, `PreferSameZone`, or none.
    pub traffic_distribution: Option<String>,
    /// `ClientIP` or `None`.
    pub session_affinity: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; endpoint slices refer to it. Also tells the protocol, as in `grpc-web`.
    pub name: String,
    /// Number that clients use.
    pub port: u16,
    /// Protocol above TCP, for example `grpc` or `kubernetes.io/h2c`.
    pub app_protocol: Option<String>,
    /// Number or name at WorkloadEntries; endpoint slices have their own.
    pub target_port: Option<TargetPort>,
}

impl ServicePort {
    /// The number of `targetPort`, if it is one.
    pub fn target_number(&self) -> Option<u16> {
        match self.target_port {
            Some(TargetPort::Number(number)) => Some(number),
            Some(TargetPort::Name(_)) | None => None,
        }
    }
}

/// A port by number or name.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// Number.
    Number(u16),
    /// Name, which endpoint slices and WorkloadEntries give a number.
    Name(String),
}

/// `discovery.k8s.io/v1` EndpointSlice. Its labels are its endpoints' labels.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Their ports.
    pub ports: Vec<SlicePort>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// IP addresses; the first is used.
    pub addresses: Vec<String>,
    /// What it can do.
    pub conditions: Conditions,
    /// Zone.
    pub zone: Option<String>,
    /// What it is; slices of other kinds of addresses have the same.
    pub target_ref: Option<TargetReference>,
}

/// What an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TargetReference {
    /// `Pod`, for example.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Differs from that of one of the same name before it.
    pub uid: String,
}

/// Conditions of an endpoint; absent means ready.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Takes requests.
    pub ready: Option<bool>,
    /// Finishes requests.
    pub serving: Option<bool>,
    /// Is going away.
    pub terminating: Option<bool>,
}

/// A port of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    /// The Service port's name.
    pub name: String,
    /// Number.
    pub port: Option<u16>,
}
