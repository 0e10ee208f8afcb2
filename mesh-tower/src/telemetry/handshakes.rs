//! TLS handshakes of the client that failed, by reason and by who refused whom.
//!
//! Stage 13. A server may refuse our certificate after its own part of the handshake was done (TLS
//! 1.3); then the first reading fails, which counts here, too. Nothing is counted for what works.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::tls::TlsErrorKind;

/// Name of the counter, to which `_total` is added.
const NAME: &str = "mesh_client_tls_handshake_failures";

/// The counter. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct HandshakeFailures {
    counter: Family<[(&'static str, &'static str); 2], Counter>,
}

impl HandshakeFailures {
    /// A counter in a registry.
    pub(super) fn new(registry: &mut Registry) -> Self {
        let failures = Self::default();
        let help = "TLS handshakes of the client that failed: refused by us, or by the peer";
        registry.register(NAME, help, failures.counter.clone());
        failures
    }

    /// Counts one. `by_peer` says whether it was the peer who refused us.
    #[cold]
    pub(crate) fn count(&self, kind: TlsErrorKind, by_peer: bool) {
        let by = if by_peer { "peer" } else { "us" };
        self.counter
            .get_or_create_owned(&[("reason", kind.as_str()), ("refused_by", by)])
            .inc();
    }
}
