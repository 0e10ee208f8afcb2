//! The handle an application holds.
//!
//! The one module that knows the xDS client. It starts it, feeds certificates and trust from it to
//! TLS, makes clients, and serves.

mod builder;
mod error;
mod identity;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Request;
use mesh_xds_client::{StreamStatus, XdsClient};
use tokio::{net::TcpListener, sync::watch};

pub use self::{builder::MeshBuilder, error::SetupError};
use crate::{
    Error, HttpClient, MeshService,
    call::CallOptions,
    cluster::ClusterRegistry,
    connect::HyperConnector,
    explain::CallExplanation,
    identity::{Identity, IdentityError},
    listener::ListenerRuntime,
    mesh_services::MeshServices,
    registration::{self, Registration, RegistrationHandle, Registrations},
    server::{InboundState, MeshApplication, ServeError, Server},
    telemetry::Telemetry,
};

/// How long [`Mesh::shutdown`] waits for requests in flight, unless the builder says otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A member of the mesh.
///
/// Cloning costs one reference count. The connection to the control plane closes when the last
/// clone, client and server made from it are gone.
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

struct Inner {
    xds: XdsClient,
    clusters: Arc<ClusterRegistry<HyperConnector>>,
    identity: Option<Identity>,
    telemetry: Telemetry,
    drain_timeout: Duration,
    /// Of the clients that are made.
    calls: CallOptions,
    /// Becomes true when servers shall drain.
    shutdown: watch::Sender<bool>,
    /// Servers that have not drained yet.
    servers: Arc<Servers>,
    registrations: Registrations,
}

#[derive(Default)]
struct Servers {
    running: AtomicUsize,
    changed: tokio::sync::Notify,
}

impl Mesh {
    /// Joins the mesh as the environment says; see [`MeshBuilder`].
    ///
    /// # Errors
    /// As [`MeshBuilder::build`].
    pub async fn from_env() -> Result<Self, SetupError> {
        Self::builder().build().await
    }

    /// Joins the mesh with options.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// A client of one name, for example `greeter.default` or `greeter.default:8080`. Returns at
    /// once; the first request waits for the configuration.
    ///
    /// # Errors
    /// None at present; see [`service_at`](Self::service_at).
    pub fn service(&self, name: &str) -> Result<MeshService<HyperConnector>, SetupError> {
        self.service_at("", name)
    }

    /// A client of a name that the control planes of `authority` know, one of the bootstrap's
    /// `authorities` (gRFC A47); empty for the default ones.
    ///
    /// # Errors
    /// When the bootstrap does not know the authority.
    pub fn service_at(
        &self,
        authority: &str,
        name: &str,
    ) -> Result<MeshService<HyperConnector>, SetupError> {
        let inner = &self.inner;
        let target = format!("xds://{authority}/{name}");
        let bootstrap = inner.xds.bootstrap();
        bootstrap.check_target(&target).map_err(SetupError::new)?;
        let resource = inner.xds.client_listener_name(&target);
        let reader = inner.xds.watch_listener(&resource, name);
        let clusters = Arc::clone(&inner.clusters);
        let listener = ListenerRuntime::new(name, reader, clusters, inner.telemetry.clone());
        Ok(MeshService::with_options(listener, inner.calls))
    }

    /// A client of any name, routed by the request's authority.
    pub fn http_client(&self) -> HttpClient {
        HttpClient::new(self.clone())
    }

    /// Why a request goes where it goes, as this process would send it now: which virtual host and
    /// route, why not the others, what changes on the way, and the clusters with their endpoints.
    /// Waits for the configuration of the request's authority; sends nothing. A service that is held
    /// tells of itself ([`MeshService::explain`]).
    ///
    /// # Errors
    /// When the request names no authority, or there is no configuration for it.
    pub async fn explain<B>(&self, request: &Request<B>) -> Result<CallExplanation, Error> {
        self.http_client().explain(request).await
    }

    /// Serves `application` on `listener` as the control plane says: TLS, authorisation, deadlines
    /// and telemetry. Runs until [`shutdown`](Self::shutdown), then drains.
    ///
    /// # Errors
    /// When the listener's address or the bootstrap cannot be used. What fails later, for example
    /// a connection, fails alone.
    pub async fn serve<A: MeshApplication>(
        &self,
        listener: TcpListener,
        application: A,
    ) -> Result<(), ServeError> {
        let address = listener.local_addr().map_err(ServeError::from)?;
        let server = self.server(address)?;
        let mut shutdown = self.inner.shutdown.subscribe();
        let running = Running::begin(Arc::clone(&self.inner.servers));
        let drain = async move { _ = shutdown.wait_for(|shutdown| *shutdown).await };
        let served = server.serve(listener, application, drain).await;
        drop(running);
        served
    }

    /// [`serve`](Self::serve), and registers as an instance of a service for as long as it serves. A
    /// port 0 of the registration is the listener's, as is the address where the listener has one.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub async fn serve_as<A: MeshApplication>(
        &self,
        registration: Registration,
        listener: TcpListener,
        application: A,
    ) -> Result<(), ServeError> {
        let address = listener.local_addr().map_err(ServeError::from)?;
        let _registered = self.register(&registration::at(registration, address));
        self.serve(listener, application).await
    }

    /// Registers this process as an instance of a service at the control plane, under a lease that is
    /// renewed for as long as the handle lives. [`shutdown`](Self::shutdown) leaves before it drains;
    /// a process that is killed is gone when its lease ends. A server can register by
    /// [`serve_as`](Self::serve_as).
    pub fn register(&self, registration: &Registration) -> RegistrationHandle {
        self.inner
            .registrations
            .add(self.inner.xds.register(registration))
    }

    fn server(&self, address: SocketAddr) -> Result<Server, ServeError> {
        let inner = &self.inner;
        let resource = inner
            .xds
            .server_listener_name(address)
            .map_err(|error| ServeError::config(error.to_string()))?;
        let mut inbound = inner.xds.watch_inbound(&resource);
        let (tx, state) = watch::channel(InboundState::Pending);
        tokio::spawn(async move {
            loop {
                let next = match inbound.load_and_mark() {
                    mesh_xds_client::InboundState::Pending => InboundState::Pending,
                    mesh_xds_client::InboundState::Ready(listener) => InboundState::Ready(listener),
                    mesh_xds_client::InboundState::Failed(error) => InboundState::Failed(error),
                };
                tx.send_replace(next);
                tokio::select! {
                    open = inbound.changed() => if !open { return },
                    () = tx.closed() => return,
                }
            }
        });
        let services = Arc::new(MeshServices {
            xds: inner.xds.clone(),
            clusters: Arc::clone(&inner.clusters),
            telemetry: inner.telemetry.clone(),
        });
        let mut server = Server::builder(state)
            .telemetry(inner.telemetry.clone())
            .authorization_services(Arc::clone(&services) as _)
            .key_sources(services)
            .drain_timeout(inner.drain_timeout);
        let identity = inner.identity.clone().unwrap_or_else(Identity::none);
        server = server.identity(identity.with_secrets(inner.xds.secrets()));
        Ok(server.build())
    }

    /// Waits until there is a certificate and a trust bundle; returns at once without mTLS.
    ///
    /// # Errors
    /// When one of them is missing and nothing will provide it any more.
    pub async fn ready(&self) -> Result<(), IdentityError> {
        match &self.inner.identity {
            Some(identity) => identity.ready().await,
            None => Ok(()),
        }
    }

    /// Our certificate and trust, `None` without mTLS.
    pub fn identity(&self) -> Option<&Identity> {
        self.inner.identity.as_ref()
    }

    /// Spans and metrics of this process.
    pub fn telemetry(&self) -> &Telemetry {
        &self.inner.telemetry
    }

    /// The state of the stream to the control plane.
    pub fn control_plane_status(&self) -> watch::Receiver<StreamStatus> {
        self.inner.xds.status()
    }

    /// Leaves the registry, stops taking connections, waits for requests in flight up to the drain timeout, and flushes
    /// telemetry.
    pub async fn shutdown(&self) {
        // Clients that hear of it first send elsewhere.
        self.inner.registrations.leave().await;
        self.inner.shutdown.send_replace(true);
        let servers = &self.inner.servers;
        let drained = async {
            loop {
                let changed = servers.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if servers.running.load(Relaxed) == 0 {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(self.inner.drain_timeout, drained)
            .await
            .is_err()
        {
            tracing::warn!(target: "mesh", "requests were still in flight at the drain timeout");
        }
        self.inner.telemetry.shutdown().await;
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("node", &self.inner.xds.bootstrap().node.id)
            .finish()
    }
}

/// Counts a server as running until dropped.
struct Running(Arc<Servers>);

impl Running {
    fn begin(servers: Arc<Servers>) -> Self {
        servers.running.fetch_add(1, Relaxed);
        Self(servers)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
        self.0.changed.notify_waiters();
    }
}
