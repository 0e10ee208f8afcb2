//! What a client can take: how much in one message, and what it would misunderstand.
//!
//! A response that is larger ends the stream, and so does every one after it: it is not sent, and
//! the client keeps what it has. Where a response can be in parts it is (state of the world: not
//! listeners and clusters, where absence means deletion; incremental: everything but one resource).
//!
//! A release that does not know mTLS or authorisation ignores or refuses it. What would be less secure
//! that way it does not get at all.

use super::subscription::{Reason, Withheld};
use crate::{
    cache::{Client, Resource, ResourceType},
    class::ClientClass,
    diagnostic::{Diagnostic, LACKS, Severity, TOO_LARGE},
};

/// What gRPC's libraries take in one message, in bytes. Applications cannot raise it for the xDS
/// stream (grpc-go issue 5790).
pub(super) const GRPC_MESSAGE_MAX: usize = 4 << 20;
/// What our library takes: `RESPONSE_BYTES_MAX` of mesh-xds-client.
const RUST_MESSAGE_MAX: usize = 128 << 20;
/// Room for what stands around one resource: type, version, nonce, and its name once more.
const ENVELOPE: usize = 1024;
/// Key and length of a field, at most.
const FIELD: usize = 6;
/// The text of an error, without the name.
const ERROR: usize = 96;

/// What clients of a class take in one message, in bytes. Envoy has no limit of its own.
pub(crate) fn message_max(class: ClientClass) -> usize {
    match class {
        ClientClass::Envoy => usize::MAX,
        ClientClass::Rust => RUST_MESSAGE_MAX,
        _ => GRPC_MESSAGE_MAX,
    }
}

/// Bytes of a response with nothing but this.
pub(super) fn alone(resource: &Resource) -> usize {
    resource.any.len() + resource.name.len() + ENVELOPE
}

/// Bytes of a resource beside others.
pub(super) fn in_set(resource: &Resource) -> usize {
    resource.any.len() + FIELD
}

/// Bytes of the word that a name means nothing: the name is in it three times at most.
pub(super) fn missing(name: &str) -> usize {
    3 * name.len() + ERROR
}

impl Withheld {
    /// What is wrong.
    pub(super) fn message(&self, kind: ResourceType, client: &Client) -> String {
        let (kind, class) = (kind.as_str(), client.class);
        match (self.reason, &self.name) {
            (Reason::Size(bytes), name) => {
                let what = match name {
                    Some(name) => format!("the {kind} resource {name:?} has"),
                    None => format!("the {kind} resources of this client have"),
                };
                let most = message_max(class);
                format!(
                    "{what} {bytes} bytes, more than the {most} that a client of {class} takes: it \
                     keeps what it has"
                )
            }
            (Reason::Lacks(feature), name) => {
                let release = client
                    .release
                    .map_or_else(String::new, |(major, minor)| format!(" {major}.{minor}"));
                let (name, feature) = (name.as_deref().unwrap_or_default(), feature.as_str());
                format!(
                    "{class}{release} does not know {feature}: the {kind} resource {name:?} is \
                     kept from it, and its calls fail"
                )
            }
        }
    }

    /// The same for operators, with the way out.
    pub(super) fn diagnose(&self, kind: ResourceType, client: &Client) -> Diagnostic {
        let (code, help) = match (self.reason, &self.name) {
            (Reason::Size(_), None) if client.class == ClientClass::Rust => (
                TOO_LARGE,
                "write \"server_features\": [\"xds_delta\"] in its bootstrap: the incremental \
                 variant comes in parts"
                    .to_owned(),
            ),
            (Reason::Size(_), None) => (
                TOO_LARGE,
                "gRPC cannot take it in parts: let the process dial fewer services, or split it"
                    .to_owned(),
            ),
            (Reason::Size(_), Some(_)) => (
                TOO_LARGE,
                "split the service, or its routes, into smaller ones".to_owned(),
            ),
            (Reason::Lacks(feature), _) => match client.class.first_with(feature) {
                Some((major, minor)) => (LACKS, format!("update it to {major}.{minor} or newer")),
                None => (
                    LACKS,
                    "no release of it does: use another library".to_owned(),
                ),
            },
        };
        Diagnostic {
            code,
            severity: Severity::Error,
            file: String::new(),
            line: 0,
            object: format!("client {}", client.node_id),
            field: String::new(),
            message: self.message(kind, client),
            help,
        }
    }
}
