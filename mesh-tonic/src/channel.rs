//! The channel that generated clients take.

use std::{
    fmt,
    task::{Context, Poll},
};

use http::{Request, Response, uri};
#[cfg(feature = "xds")]
use mesh_tower::Mesh;
use mesh_tower::{MakeEndpoint, MeshService, connect::HyperConnector};
use tonic::Status;
use tower::Service;

use crate::{AsStatus, to_status};
#[cfg(feature = "xds")]
use crate::{Target, TargetError};

/// A gRPC channel over the mesh.
///
/// Cloning is cheap and clones share everything. It is always ready; a limit that is reached fails
/// the call instead. Errors are [`tonic::Status`] whose source is a [`mesh_tower::Error`].
pub struct Channel<M: MakeEndpoint = HyperConnector> {
    service: MeshService<M>,
}

impl<M: MakeEndpoint> Channel<M> {
    /// A channel over `service`. Calls carry the dialled name as their authority.
    ///
    /// # Errors
    /// When the service's name is not usable as an authority.
    pub fn new(service: MeshService<M>) -> Result<Self, uri::InvalidUri> {
        service.name().parse::<uri::Authority>()?;
        Ok(Self { service })
    }

    /// Whether responses carry a [`SelectedEndpoint`](mesh_tower::SelectedEndpoint) in their
    /// extensions. Off by default.
    #[must_use]
    pub fn report_endpoint(mut self, reports: bool) -> Self {
        self.service = self.service.report_endpoint(reports);
        self
    }

    /// Whether what callers ask for in headers (`x-envoy-max-retries` and the like) is done, see
    /// [`MeshBuilder::read_caller_headers`](mesh_tower::MeshBuilder::read_caller_headers). As the mesh
    /// says by default.
    #[must_use]
    pub fn read_caller_headers(mut self, reads: bool) -> Self {
        self.service = self.service.read_caller_headers(reads);
        self
    }

    /// Waits for the first configuration.
    ///
    /// # Errors
    /// When there is none, with the reason.
    pub async fn ready(&self) -> Result<(), Status> {
        self.service.ready().await.map_err(to_status)
    }
}

impl<M: MakeEndpoint> Clone for Channel<M> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
        }
    }
}

impl<M: MakeEndpoint> fmt::Debug for Channel<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("authority", &self.service.name())
            .finish()
    }
}

impl<M: MakeEndpoint> Service<Request<tonic::body::Body>> for Channel<M> {
    type Response = Response<ResponseBody<M>>;
    type Error = Status;
    type Future = ResponseFuture<M>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> ResponseFuture<M> {
        self.service.send_dialled(request)
    }
}

/// The response to come, or the status of the call.
pub type ResponseFuture<M = HyperConnector> = mesh_tower::ResponseFuture<M, AsStatus>;

/// The body of a response; errors are statuses.
pub type ResponseBody<M = HyperConnector> = mesh_tower::ResponseBody<M, AsStatus>;

#[cfg(feature = "xds")]
/// Makes channels from a [`Mesh`].
pub trait MeshExt {
    /// A channel to `target`, for example `xds:///greeter.default`. Returns at once; the first
    /// call waits for the configuration.
    ///
    /// # Errors
    /// When the target is not of the form `xds:///NAME` or `xds://AUTHORITY/NAME`, or the bootstrap
    /// does not know the authority.
    fn channel(&self, target: &str) -> Result<Channel, TargetError>;
}

#[cfg(feature = "xds")]
impl MeshExt for Mesh {
    fn channel(&self, target: &str) -> Result<Channel, TargetError> {
        let parsed: Target = target.parse()?;
        self.service_at(parsed.authority(), parsed.name())
            .map_err(|_| {
                TargetError::new(
                    target,
                    "its authority is not among the bootstrap's authorities",
                )
            })
            .and_then(|service| {
                Channel::new(service)
                    .map_err(|_| TargetError::new(target, "the name is not a valid authority"))
            })
    }
}
