//! The assembled client: one `Service` over one listener.
//!
//! It is a leaf: it owns everything beneath it, down to the connections. The order inside is in
//! [`call`](crate::call).

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use mesh_core::snapshot::SnapshotReader;
use tower::Service;

use crate::{
    Body, BoxError, ClusterInFlight, Error, Outgoing, ResponseBody, ResponseFuture, ShowError,
    call::{CallOptions, start},
    cluster::{ClusterRegistry, MakeEndpoint},
    explain::{CallExplanation, explain},
    listener::ListenerRuntime,
    telemetry::Telemetry,
};

/// Sends requests the way one listener's configuration says.
///
/// Cloning costs a reference count, and clones share everything. It is always ready; a limit that is
/// reached fails the call instead. Errors are [`Error`].
pub struct MeshService<M: MakeEndpoint> {
    listener: Arc<ListenerRuntime<M>>,
    options: CallOptions,
}

impl<M: MakeEndpoint> MeshService<M> {
    /// A service over the snapshots of `reader`; endpoints are made by `make`. Must be called
    /// inside a tokio runtime.
    pub fn new(name: &str, reader: SnapshotReader, make: M) -> Self {
        Self::with_telemetry(name, reader, make, Telemetry::disabled())
    }

    /// The same with spans and metrics.
    pub fn with_telemetry(
        name: &str,
        reader: SnapshotReader,
        make: M,
        telemetry: Telemetry,
    ) -> Self {
        let clusters = ClusterRegistry::new(Arc::new(make), telemetry.metrics().clone());
        Self::of(ListenerRuntime::new(
            name,
            reader,
            Arc::new(clusters),
            telemetry,
        ))
    }

    pub(crate) fn of(listener: Arc<ListenerRuntime<M>>) -> Self {
        Self::with_options(listener, CallOptions::default())
    }

    pub(crate) fn with_options(listener: Arc<ListenerRuntime<M>>, options: CallOptions) -> Self {
        Self { listener, options }
    }

    /// Whether responses carry a [`SelectedEndpoint`](crate::SelectedEndpoint) in their extensions.
    /// Off by default: it costs more than everything else that a call does here.
    #[must_use]
    pub fn report_endpoint(mut self, reports: bool) -> Self {
        self.options.reports_endpoint = reports;
        self
    }

    /// Whether what callers ask for in headers is done, see
    /// [`MeshBuilder::read_caller_headers`](crate::MeshBuilder::read_caller_headers). Off by default.
    #[must_use]
    pub fn read_caller_headers(mut self, reads: bool) -> Self {
        self.options.reads_caller_headers = reads;
        self
    }

    /// How many bytes of a streaming body are kept for other attempts, see
    /// [`MeshBuilder::replay_bytes_max`](crate::MeshBuilder::replay_bytes_max).
    #[must_use]
    pub fn replay_bytes_max(mut self, bytes: u32) -> Self {
        self.options.replay_bytes_max = bytes;
        self
    }

    /// The dialled name.
    pub fn name(&self) -> &str {
        self.listener.name()
    }

    /// What a cluster's calls hold at the moment, those of other services of the same
    /// [`Mesh`](crate::Mesh) included; `None` when no route of this service names the cluster.
    pub fn in_flight(&self, cluster: &str) -> Option<ClusterInFlight> {
        self.listener.read(|live| {
            let live = live.ready()?;
            let state = live.clusters.get(live.find(cluster)?).load();
            Some(state.in_flight())
        })
    }

    /// Waits for the first configuration.
    ///
    /// # Errors
    /// When there is none, with the reason.
    pub async fn ready(&self) -> Result<(), Error> {
        self.listener.ready().await.map(|_| ())
    }

    /// Why a request goes where it goes, as it would be sent now. Waits for the first configuration;
    /// sends nothing.
    ///
    /// # Errors
    /// When there is no configuration, with the reason.
    pub async fn explain<B>(&self, request: &Request<B>) -> Result<CallExplanation, Error> {
        let live = self.listener.ready().await?;
        let Some(live) = live.ready() else {
            unreachable!("ready() returns only usable ones")
        };
        let mut copy = Request::new(());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        let outgoing = Outgoing::new(copy.map(|()| Body::empty()));
        let authority = outgoing.authority_or(self.listener.name());
        Ok(explain(&self.listener, live, outgoing.head(), authority))
    }

    /// Sends a request, without the `&mut` that [`Service::call`] takes.
    #[inline]
    pub fn send(&self, request: Request<Body>) -> ResponseFuture<M> {
        let mut outgoing = Outgoing::new(request);
        start(&self.listener, &mut outgoing, self.options)
    }

    /// Sends a request to the name that was dialled, unless its URI names another authority. Its body is
    /// one that can be moved, see [`Body::eager`]; its errors are shown as `S` says.
    #[inline]
    pub fn send_dialled<B, S>(&self, request: Request<B>) -> ResponseFuture<M, S>
    where
        S: ShowError,
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        let mut outgoing = Outgoing::from_parts(head, Body::eager(body), self.listener.authority());
        start(&self.listener, &mut outgoing, self.options)
    }
}

impl<M: MakeEndpoint> Clone for MeshService<M> {
    fn clone(&self) -> Self {
        Self {
            listener: Arc::clone(&self.listener),
            options: self.options,
        }
    }
}

impl<M: MakeEndpoint> fmt::Debug for MeshService<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshService")
            .field("listener", &self.listener.name())
            .finish()
    }
}

impl<M, B> Service<Request<B>> for MeshService<M>
where
    M: MakeEndpoint,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<M>>;
    type Error = Error;
    type Future = ResponseFuture<M>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture<M> {
        self.send(request.map(Body::new))
    }
}
