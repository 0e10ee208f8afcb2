//! Authorization services that are asked through the mesh (gRPC, `envoy.service.auth.v3`).
//!
//! Beside the server's filters: what is asked is decided in `mesh_core`, put into protobuf by the xDS
//! client, and sent here like every call of this process, to a cluster that is followed by itself. No
//! filter of a route is in the way, so that no check causes another one.

use std::{fmt, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt, Limited};
use mesh_core::{
    config::ExtAuthz,
    filter::{CHECK_PATH, CheckRequest, CheckVerdict},
};
use mesh_xds_client::{XdsClient, check};

use crate::{
    Body, BoxError, MeshService,
    cluster::ClusterRegistry,
    connect::HyperConnector,
    context::{GRPC_TIMEOUT, format_grpc_timeout},
    listener::ListenerRuntime,
    server::{AuthorizationService, AuthorizationServices, CheckError, CheckFuture},
    telemetry::Telemetry,
};

/// Longest answer, in bytes (the default of gRPC clients).
const ANSWER_MAX: usize = 4 << 20;

/// Length of what stands before a gRPC message: a flag and its length.
const PREFIX: usize = 5;

/// Finds services in the mesh.
pub(crate) struct MeshServices {
    pub(crate) xds: XdsClient,
    pub(crate) clusters: Arc<ClusterRegistry<HyperConnector>>,
    pub(crate) telemetry: Telemetry,
}

impl AuthorizationServices for MeshServices {
    fn service(&self, config: &Arc<ExtAuthz>) -> Arc<dyn AuthorizationService> {
        let name = config.cluster.as_str();
        let reader = self.xds.watch_cluster(name);
        let clusters = Arc::clone(&self.clusters);
        let listener = ListenerRuntime::new(name, reader, clusters, self.telemetry.clone());
        Arc::new(Asked {
            calls: MeshService::of(listener),
            uri: uri(config),
            config: Arc::clone(config),
        })
    }
}

/// Names of clusters have characters that an authority must not.
fn uri(config: &ExtAuthz) -> String {
    let declared = config.authority.as_deref();
    let named = declared.or_else(|| {
        let name = config.cluster.as_str();
        // `outbound|80||authz.default.svc.cluster.local`
        let host = name.rsplit('|').next().unwrap_or(name);
        host.parse::<http::uri::Authority>().ok().map(|_| host)
    });
    format!("http://{}{CHECK_PATH}", named.unwrap_or("authorization"))
}

/// A service that is asked through the mesh.
struct Asked {
    calls: MeshService<HyperConnector>,
    uri: String,
    config: Arc<ExtAuthz>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("uri", &self.uri).finish()
    }
}

impl AuthorizationService for Asked {
    fn check(&self, request: &CheckRequest<'_>) -> CheckFuture {
        let request = match self.call(&check::encode(request)) {
            Ok(request) => request,
            Err(error) => return Box::pin(async move { Err(error) }),
        };
        let calls = self.calls.clone();
        Box::pin(async move {
            let response = calls.send(request).await.map_err(unavailable)?;
            read(response).await
        })
    }
}

impl Asked {
    fn call(&self, message: &[u8]) -> Result<Request<Body>, CheckError> {
        let length = u32::try_from(message.len()).map_err(unavailable)?;
        let mut body = BytesMut::with_capacity(PREFIX + message.len());
        body.put_u8(0);
        body.put_u32(length);
        body.put_slice(message);
        let mut request = Request::post(&self.uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(&GRPC_TIMEOUT, format_grpc_timeout(self.config.timeout))
            .body(Body::from(body.freeze()))
            .map_err(unavailable)?;
        for (name, value) in &self.config.metadata {
            request.headers_mut().append(name, value.clone());
        }
        Ok(request)
    }
}

fn unavailable(error: impl fmt::Display) -> CheckError {
    CheckError::Unavailable(error.to_string())
}

/// The verdict in a response.
async fn read<B>(response: Response<B>) -> Result<CheckVerdict, CheckError>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let status = response.status();
    let of_head = grpc_status(response.headers());
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(unavailable)?;
    let of_trailers = || grpc_status(body.trailers()?);
    match of_head.or_else(of_trailers) {
        Some(0) => {}
        Some(code) => return Err(unavailable(format!("its gRPC status is {code}"))),
        None => return Err(unavailable(format!("its answer is no gRPC ({status})"))),
    }
    let mut bytes = body.to_bytes();
    if bytes.len() < PREFIX || bytes.get_u8() != 0 {
        return Err(CheckError::Invalid("it is no message".to_owned()));
    }
    let length = bytes.get_u32();
    if usize::try_from(length) != Ok(bytes.len()) {
        return Err(CheckError::Invalid("it is not one message".to_owned()));
    }
    check::decode(&bytes).map_err(CheckError::Invalid)
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
