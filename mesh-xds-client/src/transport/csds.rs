//! The client status discovery service: what this process knows, for tools such as grpcdebug.
//!
//! Stage 1, the way out. Serves the dump as it is (gRFC A40): resources as received, and for each what
//! became of it. Changes nothing, and does not keep the client alive. Deviation: the fields of an
//! accepted resource that have no effect here stand in its `error_state.details`, as there is no other
//! place for them.

use std::{
    convert::Infallible,
    fmt,
    task::{Context, Poll},
    time::SystemTime,
};

use envoy_types::pb::{
    envoy::{
        admin::v3::{ClientResourceStatus, UpdateFailureState},
        config::core::v3::Node,
        service::status::v3::{
            ClientConfig, ClientStatusRequest, ClientStatusResponse,
            client_config::GenericXdsConfig,
            client_status_discovery_service_server::{
                ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
            },
        },
    },
    google::protobuf::{Any, Timestamp},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming, body::Body, server::NamedService};
use tower::Service;

use crate::{
    driver::Command,
    dump::{ClientDump, ResourceDump, ResourceStatus},
};

/// Serves a client's state to tools; add it to any tonic server.
#[derive(Clone)]
pub struct StatusService {
    inner: ClientStatusDiscoveryServiceServer<Csds>,
}

impl StatusService {
    pub(crate) fn new(node: Node, commands: mpsc::WeakUnboundedSender<Command>) -> Self {
        Self {
            inner: ClientStatusDiscoveryServiceServer::new(Csds { node, commands }),
        }
    }
}

impl fmt::Debug for StatusService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusService").finish_non_exhaustive()
    }
}

impl NamedService for StatusService {
    const NAME: &'static str = "envoy.service.status.v3.ClientStatusDiscoveryService";
}

impl Service<http::Request<Body>> for StatusService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.inner.call(request).boxed()
    }
}

struct Csds {
    node: Node,
    commands: mpsc::WeakUnboundedSender<Command>,
}

impl Csds {
    async fn status(&self, request: ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        if !request.node_matchers.is_empty() {
            return Err(Status::invalid_argument("node_matchers are not supported"));
        }
        let ended = || Status::unavailable("the xDS client has ended");
        let (tx, rx) = oneshot::channel();
        let commands = self.commands.upgrade().ok_or_else(ended)?;
        commands.send(Command::Dump(tx)).map_err(|_| ended())?;
        drop(commands);
        let dump = rx.await.map_err(|_| ended())?;
        let config = client_config(&self.node, dump, !request.exclude_resource_contents);
        Ok(ClientStatusResponse {
            config: vec![config],
        })
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = BoxStream<'static, Result<ClientStatusResponse, Status>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let node = self.node.clone();
        let commands = self.commands.clone();
        // One answer per request; nothing is watched.
        let answers = request.into_inner().then(move |request| {
            let csds = Self {
                node: node.clone(),
                commands: commands.clone(),
            };
            async move { csds.status(request?).await }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.status(request.into_inner()).await.map(Response::new)
    }
}

fn client_config(node: &Node, dump: ClientDump, with_contents: bool) -> ClientConfig {
    let servers: Vec<_> = dump.servers.into_iter().map(|server| server.uri).collect();
    let resources = dump.resources.into_iter();
    ClientConfig {
        node: Some(node.clone()),
        generic_xds_configs: resources.map(|r| resource(r, with_contents)).collect(),
        client_scope: servers.join(","),
        ..ClientConfig::default()
    }
}

fn resource(dump: ResourceDump, with_contents: bool) -> GenericXdsConfig {
    let status = match dump.status {
        ResourceStatus::Requested => ClientResourceStatus::Requested,
        ResourceStatus::DoesNotExist => ClientResourceStatus::DoesNotExist,
        ResourceStatus::Acked => ClientResourceStatus::Acked,
        ResourceStatus::Nacked => ClientResourceStatus::Nacked,
        ResourceStatus::ReceivedError => ClientResourceStatus::ReceivedError,
        ResourceStatus::Timeout => ClientResourceStatus::Timeout,
    };
    let mut details = Vec::new();
    details.extend(dump.error.map(|error| error.to_string()));
    if dump.is_stored {
        details.push("from an earlier run, not confirmed since".into());
    }
    if !dump.ignored_fields.is_empty() {
        let fields = dump.ignored_fields.join(", ");
        details.push(format!("fields without effect here: {fields}"));
    }
    let error_state = (!details.is_empty()).then(|| UpdateFailureState {
        details: details.join("; "),
        last_update_attempt: dump.failed_at.map(timestamp),
        ..UpdateFailureState::default()
    });
    let config = dump.config.filter(|_| with_contents);
    GenericXdsConfig {
        type_url: dump.type_url.into(),
        name: dump.name,
        version_info: dump.version,
        xds_config: config.map(|bytes| Any {
            type_url: dump.type_url.into(),
            value: bytes.to_vec(),
        }),
        last_updated: dump.updated.map(timestamp),
        client_status: status as i32,
        error_state,
        ..GenericXdsConfig::default()
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}
