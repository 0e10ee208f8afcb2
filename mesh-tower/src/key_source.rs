//! Keys of issuers that are fetched through the mesh.
//!
//! Beside the server's filters: when keys are fetched is decided in `mesh_core`, what they are is read by
//! [`jwt`](crate::jwt). They are asked for like every call of this process, of a cluster that is
//! followed by itself, with the TLS that it has: whether the issuer is who it says is the cluster's
//! `UpstreamTlsContext` to ask for. Redirects are not followed.

use std::sync::Arc;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use mesh_core::config::RemoteJwks;

use crate::{
    Body, MeshService,
    connect::HyperConnector,
    mesh_services::MeshServices,
    server::{JWKS_BYTES_MAX, KeySource, KeySources, KeysFuture},
};

impl KeySources for MeshServices {
    fn source(&self, config: &Arc<RemoteJwks>) -> Arc<dyn KeySource> {
        Arc::new(Issuer {
            calls: self.calls(&config.cluster),
            config: Arc::clone(config),
        })
    }
}

/// An issuer that is asked through the mesh.
struct Issuer {
    calls: MeshService<HyperConnector>,
    config: Arc<RemoteJwks>,
}

impl KeySource for Issuer {
    fn fetch(&self) -> KeysFuture {
        let request = Request::get(&self.config.uri)
            .header(header::ACCEPT, "application/json")
            .body(Body::empty());
        let calls = self.calls.clone();
        Box::pin(async move {
            let request = request.map_err(|error| error.to_string())?;
            let response = calls.send(request).await;
            let response = response.map_err(|error| error.to_string())?;
            let status = response.status();
            if status != StatusCode::OK {
                return Err(format!("the issuer answered {status}"));
            }
            let body = Limited::new(response.into_body(), JWKS_BYTES_MAX);
            let body = body.collect().await.map_err(|error| error.to_string())?;
            Ok(body.to_bytes())
        })
    }
}
