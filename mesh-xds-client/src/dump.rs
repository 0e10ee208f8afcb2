//! What the client knows, for people.
//!
//! A copy of the state at one moment: every resource as received, what became of it, and which of
//! its fields have no effect here. Served to tools by CSDS; changes nothing.

use std::time::SystemTime;

use bytes::Bytes;
use mesh_core::ConfigError;

use crate::{Variant, transport::StreamStatus};

/// What became of a resource (gRFC A40, A88; the states of CSDS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ResourceStatus {
    /// Asked for, and nothing has come yet.
    Requested,
    /// There is none, or it did not come in time, or its time to live is over.
    DoesNotExist,
    /// In use as the control plane sent it last.
    Acked,
    /// What the control plane sent last was refused.
    Nacked,
    /// The control plane sent an error in its place.
    ReceivedError,
    /// It did not come in time, which with this control plane does not mean that there is none.
    Timeout,
}

impl ResourceStatus {
    /// The name used in metrics and text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::DoesNotExist => "does_not_exist",
            Self::Acked => "acked",
            Self::Nacked => "nacked",
            Self::ReceivedError => "received_error",
            Self::Timeout => "timeout",
        }
    }
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResourceDump {
    /// Its type.
    pub type_url: &'static str,
    /// Its name.
    pub name: String,
    /// What became of what the control plane sent last.
    pub status: ResourceStatus,
    /// Version of what is in use; empty when nothing is.
    pub version: String,
    /// What is in use, as received.
    pub config: Option<Bytes>,
    /// When that was received.
    pub updated: Option<SystemTime>,
    /// The last failure. With a `config`, that stays in use.
    pub error: Option<ConfigError>,
    /// When the failure came.
    pub failed_at: Option<SystemTime>,
    /// Fields of `config` that are set and have no effect here.
    pub ignored_fields: Vec<String>,
    /// Whether `config` is from an earlier run and not confirmed since.
    pub is_stored: bool,
}

/// One control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerDump {
    /// Where it is.
    pub uri: String,
    /// How its stream is doing.
    pub status: StreamStatus,
    /// The form of the protocol that it is spoken to in.
    pub variant: Variant,
    /// The last refusal sent to it.
    pub last_nack: Option<String>,
}

/// The whole client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientDump {
    /// Who we are.
    pub node_id: String,
    /// Control planes in order.
    pub servers: Vec<ServerDump>,
    /// Every wanted resource, by type and name.
    pub resources: Vec<ResourceDump>,
    /// Answers for which no resource is known, for example one that cannot be named.
    pub counters: Counters,
}

/// What has happened since the client started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Valid resources received (gRFC A78 `resource_updates_valid`).
    pub updates_valid: u64,
    /// Refused resources received (gRFC A78 `resource_updates_invalid`).
    pub updates_invalid: u64,
    /// Responses refused.
    pub nacks: u64,
    /// Streams lost or not made without a response (gRFC A78 `server_failure`).
    pub server_failures: u64,
    /// Fields received that have no effect here.
    pub ignored_fields: u64,
}

/// How much of what is served the control plane has confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Freshness {
    /// Resources in use that are from an earlier run, and not confirmed since. 0 is fresh.
    pub stored_in_use: usize,
}

impl Freshness {
    /// Whether anything in use is from an earlier run.
    pub fn is_stale(&self) -> bool {
        self.stored_in_use > 0
    }
}
