//! What a client's transport takes in one message.
//!
//! A response that is larger ends the stream, and so does every one after it: it is not sent, and
//! the client keeps what it has. Where a response can be in parts it is (state of the world: not
//! listeners and clusters, where absence means deletion; incremental: everything but one resource).

use crate::{
    cache::{Resource, ResourceType},
    class::ClientClass,
    diagnostic::{Diagnostic, Severity, TOO_LARGE},
    server::subscription::Withheld,
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
    pub(super) fn message(&self, kind: ResourceType, class: ClientClass) -> String {
        let what = match &self.name {
            Some(name) => format!("the {} resource {name:?} has", kind.as_str()),
            None => format!("the {} resources of this client have", kind.as_str()),
        };
        format!(
            "{what} {} bytes, more than the {} that a client of {class} takes: it keeps what it has",
            self.bytes,
            message_max(class)
        )
    }

    /// The same for operators, with the way out.
    pub(super) fn diagnose(
        &self,
        kind: ResourceType,
        node: &str,
        class: ClientClass,
    ) -> Diagnostic {
        let help = match (&self.name, class) {
            (None, ClientClass::Rust) => {
                "write \"server_features\": [\"xds_delta\"] in its bootstrap: the incremental \
                 variant comes in parts"
            }
            (None, _) => {
                "gRPC cannot take it in parts: let the process dial fewer services, or split it"
            }
            (Some(_), _) => "split the service, or its routes, into smaller ones",
        };
        Diagnostic {
            code: TOO_LARGE,
            severity: Severity::Error,
            file: String::new(),
            line: 0,
            object: format!("client {node}"),
            field: String::new(),
            message: self.message(kind, class),
            help: help.to_owned(),
        }
    }
}
