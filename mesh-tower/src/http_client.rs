//! A client for any `http::Request`, routed by the request's authority.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, header};
use tower::Service;

use crate::{
    Body, BoxError, Error, ErrorKind, Mesh, ResponseBody, ResponseFuture, connect::HyperConnector,
    explain::CallExplanation, service::MeshService,
};

/// Different authorities that one client talks to at most: each is a subscription.
pub const AUTHORITIES_MAX: usize = 1024;

/// Sends a request to the listener named like its authority: `http://reviews/…` goes to `reviews`,
/// `http://reviews.default:9080/…` to `reviews.default:9080`.
///
/// Cloning costs one reference count. It is always ready. Errors are [`Error`]. The subscriptions
/// end with the last clone.
#[derive(Clone)]
pub struct HttpClient {
    inner: Arc<Inner>,
}

struct Inner {
    mesh: Mesh,
    /// Copied on write: requests never meet a lock that a writer holds.
    services: ArcSwap<HashMap<Box<str>, MeshService<HyperConnector>>>,
    write: Mutex<()>,
}

impl HttpClient {
    pub(crate) fn new(mesh: Mesh) -> Self {
        Self {
            inner: Arc::new(Inner {
                mesh,
                services: ArcSwap::default(),
                write: Mutex::new(()),
            }),
        }
    }

    fn service(&self, authority: &str) -> Result<MeshService<HyperConnector>, Error> {
        let _write = self
            .inner
            .write
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let held = self.inner.services.load_full();
        if let Some(service) = held.get(authority) {
            return Ok(service.clone());
        }
        if held.len() >= AUTHORITIES_MAX {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("{authority}: this client already talks to {AUTHORITIES_MAX} authorities"),
            ));
        }
        let service = self.inner.mesh.service(authority).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, format!("{authority}: {error}"))
        })?;
        let mut services = HashMap::clone(&held);
        services.insert(authority.into(), service.clone());
        self.inner.services.store(Arc::new(services));
        Ok(service)
    }

    fn send(&self, request: Request<Body>) -> Result<ResponseFuture<HyperConnector>, Error> {
        let authority = Self::authority(&request)?;
        if let Some(service) = self.inner.services.load().get(authority) {
            return Ok(service.send(request));
        }
        let service = self.service(authority)?;
        Ok(service.send(request))
    }

    /// Why a request goes where it goes; see [`MeshService::explain`].
    ///
    /// # Errors
    /// As the call: when it names no authority, or there is no configuration.
    pub async fn explain<B>(&self, request: &Request<B>) -> Result<CallExplanation, Error> {
        let service = self.service(Self::authority(request)?)?;
        service.explain(request).await
    }

    fn authority<B>(request: &Request<B>) -> Result<&str, Error> {
        let host = || request.headers().get(header::HOST)?.to_str().ok();
        let authority = request
            .uri()
            .authority()
            .map(http::uri::Authority::as_str)
            .or_else(host);
        let authority = authority
            .filter(|authority| !authority.is_empty())
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidRequest,
                    "the request names no authority: write http://NAME/PATH or set the host header",
                )
            })?;
        Ok(authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host))
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = self.inner.services.load();
        f.debug_struct("HttpClient")
            .field("authorities", &services.keys())
            .finish()
    }
}

impl<B> Service<Request<B>> for HttpClient
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<HyperConnector>>;
    type Error = Error;
    type Future = ResponseFuture<HyperConnector>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.send(request.map(Body::new))
            .unwrap_or_else(ResponseFuture::failed)
    }
}
