//! Endpoints over h2 (HTTP/2) and hyper (HTTP/1.1), over TCP or TLS.
//!
//! Stages 11 and 12. Each endpoint has one keeper task that connects, drives the HTTP/2 connection
//! and reconnects; a request becomes a stream on it, without a queue or a task of its own.

mod crowd;
mod dial;
mod driver;
mod endpoint;
mod http1;
mod http2;
mod keeper;
mod permit;
mod shared;

use std::{fmt, sync::Arc};

pub use dial::UNACKNOWLEDGED_MAX;
pub use endpoint::{HyperBody, HyperEndpoint, HyperExchange};

use mesh_core::secrets::SecretReader;

use crate::{
    cluster::{EndpointContext, MakeEndpoint},
    identity::Identity,
    tls::material::Materials,
};

/// Makes endpoints that connect over TCP, with TLS where the cluster asks for it.
#[derive(Clone)]
pub struct HyperConnector {
    identity: Option<Identity>,
    materials: Arc<Materials>,
}

impl HyperConnector {
    /// A connector; without an `identity`, clusters whose TLS needs one fail.
    pub fn new(identity: Option<Identity>) -> Self {
        Self {
            identity,
            materials: Arc::default(),
        }
    }

    /// The same, with other certificates and roots that clusters name (SDS). Default none.
    #[must_use]
    pub fn secrets(mut self, secrets: SecretReader) -> Self {
        self.materials = Arc::new(Materials::with_secrets(secrets));
        self
    }
}

impl fmt::Debug for HyperConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperConnector")
            .field("has_identity", &self.identity.is_some())
            .finish()
    }
}

impl MakeEndpoint for HyperConnector {
    type Endpoint = HyperEndpoint;

    fn make(&self, context: EndpointContext) -> HyperEndpoint {
        HyperEndpoint::new(context, self.identity.as_ref(), &self.materials)
    }
}
