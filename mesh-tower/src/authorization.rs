//! Authorization services that are asked through the mesh, over gRPC (`envoy.service.auth.v3`) or HTTP.
//!
//! Beside the server's filters: what is asked is decided in `mesh_core`, put into protobuf by the xDS
//! client, and sent here like every call of this process, to a cluster that is followed by itself. No
//! filter of a route is in the way, so that no check causes another one.

use std::{fmt, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, Uri, header};
use http_body_util::{BodyExt, Limited};
use mesh_core::{
    config::{ExtAuthz, HttpCheck},
    filter::{CHECK_PATH, CheckRequest, CheckVerdict, HttpAnswer, check_head, verdict_of_http},
};
use mesh_xds_client::check;

use crate::{
    Body, BoxError, MeshService,
    connect::HyperConnector,
    context::{GRPC_TIMEOUT, format_grpc_timeout},
    mesh_services::MeshServices,
    server::{AuthorizationService, AuthorizationServices, CheckError, CheckFuture},
};

/// Longest answer, in bytes (the default of gRPC clients).
const ANSWER_MAX: usize = 4 << 20;

/// Length of what stands before a gRPC message: a flag and its length.
const PREFIX: usize = 5;

impl AuthorizationServices for MeshServices {
    fn service(&self, config: &Arc<ExtAuthz>) -> Arc<dyn AuthorizationService> {
        if let Some(http) = &config.http {
            return Arc::new(AskedOverHttp {
                calls: self.calls(&config.cluster),
                authority: host_of(config.cluster.as_str()).map(str::to_owned),
                http: Arc::clone(http),
            });
        }
        Arc::new(Asked {
            calls: self.calls(&config.cluster),
            uri: uri(config),
            config: Arc::clone(config),
        })
    }
}

/// Names of clusters have characters that an authority must not.
fn uri(config: &ExtAuthz) -> String {
    let declared = config.authority.as_deref();
    let named = declared.or_else(|| host_of(config.cluster.as_str()));
    format!("http://{}{CHECK_PATH}", named.unwrap_or("authorization"))
}

/// The host of a cluster like `outbound|80||authz.default.svc.cluster.local`.
fn host_of(cluster: &str) -> Option<&str> {
    let host = cluster.rsplit('|').next().unwrap_or(cluster);
    host.parse::<http::uri::Authority>().ok().map(|_| host)
}

/// A service that is asked over HTTP.
struct AskedOverHttp {
    calls: MeshService<HyperConnector>,
    /// Where a request has none.
    authority: Option<String>,
    http: Arc<HttpCheck>,
}

impl AuthorizationService for AskedOverHttp {
    fn check(&self, request: &CheckRequest<'_>) -> CheckFuture {
        let call = self.call(request);
        let (calls, http) = (self.calls.clone(), Arc::clone(&self.http));
        Box::pin(async move {
            let response = calls.send(call?).await.map_err(unavailable)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await;
            let body = body.map_err(unavailable)?.to_bytes();
            let answer = HttpAnswer {
                status: head.status,
                headers: head.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            };
            verdict_of_http(&http, answer).map_err(CheckError::Unavailable)
        })
    }
}

impl AskedOverHttp {
    fn call(&self, request: &CheckRequest<'_>) -> Result<Request<Body>, CheckError> {
        let head = check_head(&self.http, request).map_err(CheckError::Invalid)?;
        let (method, path, mut authority, headers) = head;
        if authority.is_empty() {
            authority = self
                .authority
                .clone()
                .unwrap_or_else(|| "authorization".to_owned());
        }
        let uri = Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query(path)
            .build();
        let mut call = Request::new(match &request.body {
            Some(body) => Body::from(body.data.clone()),
            None => Body::empty(),
        });
        *call.method_mut() = method;
        *call.uri_mut() = uri.map_err(|error| CheckError::Invalid(error.to_string()))?;
        *call.headers_mut() = headers;
        Ok(call)
    }
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
