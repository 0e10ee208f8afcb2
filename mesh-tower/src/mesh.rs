//! The handle an application holds.
//!
//! The one module that knows the xDS client. It starts it, feeds certificates and trust from it to
//! TLS, makes clients, and serves.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Request;
use mesh_core::{
    balance::LbPolicyFactory,
    config::{ClientPosition, TrustBundle},
};
use mesh_xds_client::{Bootstrap, Driver, StreamStatus, TrustBundleWatch, XdsClient};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    Error, HttpClient, MeshService,
    call::CallOptions,
    cluster::ClusterRegistry,
    connect::HyperConnector,
    explain::CallExplanation,
    identity::{Certificate, Identity, IdentityError, vouched_for},
    listener::ListenerRuntime,
    mesh_services::MeshServices,
    registration::{self, Registration, RegistrationHandle, Registrations},
    server::{InboundState, MeshApplication, ServeError, Server},
    telemetry::{ControlPlaneRows, Labels, Telemetry},
};

/// How long [`Mesh::shutdown`] waits for requests in flight, unless the builder says otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The SDS name of the trust bundle when the bootstrap names no other.
const TRUST_BUNDLE: &str = "ROOTCA";

/// The certificate provider that is this process's own identity (gRFC A29 `default` by convention).
const IDENTITY_PROVIDER: &str = "default";

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

/// Configures a [`Mesh`].
#[derive(Debug, Default)]
#[must_use]
pub struct MeshBuilder {
    bootstrap: Option<Bootstrap>,
    identity: Option<Identity>,
    telemetry: Option<Telemetry>,
    drain_timeout: Option<Duration>,
    state_file: Option<PathBuf>,
    identity_file: Option<PathBuf>,
    dns_servers: Vec<SocketAddr>,
    lb_policies: Vec<(String, Arc<dyn LbPolicyFactory>)>,
    calls: CallOptions,
    local_cluster: Option<String>,
    client_position: Option<ClientPosition>,
}

impl MeshBuilder {
    /// The bootstrap. Default: gRPC's environment variables `GRPC_XDS_BOOTSTRAP` (a path) and
    /// `GRPC_XDS_BOOTSTRAP_CONFIG` (JSON).
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.bootstrap = Some(bootstrap);
        self
    }

    /// Our certificate and trust. Default: the bootstrap's certificate provider `default`, or none.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Spans and metrics. Default: [`Telemetry::from_env`].
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.telemetry = Some(telemetry);
        self
    }

    /// Keeps the last good configuration in this file, so that a process that starts while the
    /// control plane is down routes as it did before. It holds no private key and is readable by its
    /// owner only; its folder must exist. Default none. Where calls need a certificate of ours, they
    /// wait until one has been issued, unless [`identity_file`](Self::identity_file) is set too.
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_file = Some(path.into());
        self
    }

    /// Keeps our certificate **with its private key** in this file, beside
    /// [`state_file`](Self::state_file): with both, a process that starts while the control plane is
    /// down calls and serves over mutual TLS until the certificate ends. The price is a key on disk:
    /// whoever reads the file is us until then, so that it belongs where other secrets of the process
    /// are, if possible in memory (tmpfs). The file is readable by its owner only, is used by the same
    /// node with the same signer alone, only while valid and vouched for by the stored trust bundle,
    /// and is replaced by each new certificate. Its folder must exist. Default none.
    pub fn identity_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.identity_file = Some(path.into());
        self
    }

    /// Asks these servers for the addresses of hosts that the control plane leaves to us to look up.
    /// Default: those of the system.
    pub fn dns_servers(mut self, servers: impl Into<Vec<SocketAddr>>) -> Self {
        self.dns_servers = servers.into();
        self
    }

    /// Gives clusters a load balancing policy of the application's own: those for which the control
    /// plane says so by `name`, in a `TypedStruct` (gRFC A52), with settings that `factory` gets.
    /// Default none; a cluster with a name that is not known cannot be used, and says so.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use mesh_core::{
    ///     balance::{ClusterEndpoint, LbPolicyFactory, LoadBalancer, PickContext, PickResult},
    ///     rng::Rng,
    /// };
    /// use mesh_tower::Mesh;
    ///
    /// /// The one with the fewest requests in flight, of all.
    /// #[derive(Debug)]
    /// struct LeastOfAll;
    ///
    /// impl LoadBalancer for LeastOfAll {
    ///     fn pick(
    ///         &self,
    ///         endpoints: &[ClusterEndpoint],
    ///         context: &mut PickContext<'_, dyn Rng + '_>,
    ///     ) -> PickResult {
    ///         let ready = endpoints.iter().enumerate().filter(|(_, endpoint)| {
    ///             // A retry goes elsewhere.
    ///             endpoint.stats.is_ready() && !context.previous.contains(&endpoint.address)
    ///         });
    ///         let least = ready.min_by_key(|(_, endpoint)| endpoint.stats.in_flight());
    ///         // With none the request waits until one is connected.
    ///         least.map_or(PickResult::Queue, |(index, _)| PickResult::Endpoint(index))
    ///     }
    /// }
    ///
    /// #[derive(Debug)]
    /// struct Factory;
    ///
    /// impl LbPolicyFactory for Factory {
    ///     fn build(
    ///         &self,
    ///         config: &str,
    ///         _: &[ClusterEndpoint],
    ///     ) -> Result<Box<dyn LoadBalancer>, String> {
    ///         match config {
    ///             "{}" => Ok(Box::new(LeastOfAll)),
    ///             other => Err(format!("it has no settings, not {other}")),
    ///         }
    ///     }
    /// }
    ///
    /// let builder = Mesh::builder().lb_policy("example.LeastOfAll", Arc::new(Factory));
    /// # _ = builder;
    /// ```
    pub fn lb_policy(mut self, name: impl Into<String>, factory: Arc<dyn LbPolicyFactory>) -> Self {
        self.lb_policies.push((name.into(), factory));
        self
    }

    /// Whether clients do what requests ask for in headers, as Envoy's router does: timeouts
    /// (`x-envoy-upstream-rq-timeout-ms`, `-rq-per-try-timeout-ms`, `-stream-duration-ms`,
    /// `-rq-timeout-alt-response`), retries (`x-envoy-retry-on`, `-retry-grpc-on`, `-max-retries`,
    /// `-retriable-status-codes`, `-retriable-header-names`) and hedging
    /// (`x-envoy-hedge-on-per-try-timeout`). They win over the route's settings or add to them, and are
    /// removed; servers are told in `x-envoy-expected-rq-timeout-ms` how long they are waited for.
    ///
    /// Default false: they are headers as any other. Whoever passes on headers of callers that are not
    /// trusted lets these choose timeouts and retries with it.
    pub fn read_caller_headers(mut self, reads: bool) -> Self {
        self.calls.reads_caller_headers = reads;
        self
    }

    /// How many bytes of a streaming request body are kept, for each call that may be tried again or
    /// hedged. A body of which more was sent is not sent again. A route may say something else
    /// (`request_body_buffer_limit`) or less (`per_request_buffer_limit_bytes`). Default
    /// [`REPLAY_BYTES_MAX`](crate::REPLAY_BYTES_MAX). Bodies of one buffer, as of unary gRPC calls, cost
    /// nothing to send again, and have no limit.
    pub fn replay_bytes_max(mut self, bytes: u32) -> Self {
        self.calls.replay_bytes_max = bytes;
        self
    }

    /// The cluster of this process's own service, for example
    /// `outbound|8080||frontend.default.svc.cluster.local` of our control plane, or Envoy's
    /// `local_cluster_name`. Clusters with zone-aware routing keep requests in the zone of this process
    /// (`locality` of the bootstrap's node), as many as it can take if all instances of this service do the
    /// same: for that they want to know where these are. Default none; such clusters use endpoints of all
    /// zones alike then.
    pub fn local_cluster(mut self, name: impl Into<String>) -> Self {
        self.local_cluster = Some(name.into());
        self
    }

    /// Which of all instances of its own service this process is, such as the ordinal of its pod. Services
    /// whose clients use a part of the endpoints each (`deterministicSubset` of a BalancerPolicy) are used
    /// evenly then: each endpoint by as many clients as any other, or one more. Default none; it uses a
    /// random part then.
    pub fn client_position(mut self, position: ClientPosition) -> Self {
        self.client_position = Some(position);
        self
    }

    /// How long [`Mesh::shutdown`] waits for requests in flight. Default [`DRAIN_TIMEOUT`].
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain_timeout = Some(limit);
        self
    }

    /// Joins the mesh. Does not wait for the control plane. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the bootstrap is missing or unusable, telemetry cannot be set up, or an option lacks
    /// another one that it needs.
    pub async fn build(self) -> Result<Mesh, SetupError> {
        let bootstrap = match self.bootstrap {
            Some(bootstrap) => bootstrap,
            None => Bootstrap::from_env().map_err(SetupError::new)?,
        };
        let telemetry = match self.telemetry {
            Some(telemetry) => telemetry,
            None => Telemetry::from_env().map_err(SetupError::new)?,
        };
        if self.identity_file.is_some() && self.state_file.is_none() {
            return Err(SetupError::new(
                "identity_file is set without state_file: a certificate of an earlier run is used only \
                 with the routes and the trust bundle of one; set both, or neither",
            ));
        }
        let mut xds = XdsClient::builder(bootstrap);
        if let Some(path) = self.identity_file {
            xds = xds.identity_file(path);
        }
        if let Some(path) = self.state_file {
            xds = xds.state_file(path);
        }
        if !self.dns_servers.is_empty() {
            xds = xds.dns_servers(&self.dns_servers);
        }
        for (name, factory) in self.lb_policies {
            xds = xds.lb_policy(name, factory);
        }
        if let Some(name) = self.local_cluster {
            xds = xds.local_cluster(name);
        }
        if let Some(position) = self.client_position {
            if position.index >= position.count {
                let ClientPosition { index, count } = position;
                return Err(SetupError::new(format!(
                    "client_position: index {index} of {count} clients; the first one is 0"
                )));
            }
            xds = xds.client_position(position);
        }
        let (xds, driver) = xds.build_with_driver().map_err(SetupError::new)?;
        run_apart(driver).map_err(SetupError::new)?;
        show(&telemetry, &xds);
        let identity = match self.identity {
            Some(identity) => Some(identity),
            None => identity_from_bootstrap(&xds)?,
        };
        let connector = HyperConnector::new(identity.clone()).secrets(xds.secrets());
        let clusters = Arc::new(ClusterRegistry::new(
            Arc::new(connector),
            telemetry.metrics().clone(),
        ));
        let (shutdown, _) = watch::channel(false);
        let inner = Arc::new(Inner {
            xds,
            clusters,
            identity,
            telemetry,
            drain_timeout: self.drain_timeout.unwrap_or(DRAIN_TIMEOUT),
            calls: self.calls,
            shutdown,
            servers: Arc::default(),
            registrations: Registrations::default(),
        });
        let of = Arc::downgrade(&inner);
        inner.telemetry.metrics().certificates().add(move || {
            let inner = of.upgrade()?;
            Some(inner.identity.as_ref().and_then(Identity::certificate))
        });
        Ok(Mesh { inner })
    }
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

/// Runs the driver on a thread of its own: decoding ten thousand clusters must not hold a request up
/// that waits for the same worker. It ends with the last handle.
fn run_apart(driver: Driver) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("mesh-xds".to_owned())
        .spawn(move || {
            // Requests go first where processors are scarce.
            #[cfg(target_os = "linux")]
            let _ = rustix::process::nice(DRIVER_NICENESS);
            runtime.block_on(driver.run());
        })?;
    Ok(())
}

/// Niceness of the thread that reads the configuration (Linux, where a thread has its own): with all
/// processors busy it gets a third of what a request's thread gets.
#[cfg(target_os = "linux")]
const DRIVER_NICENESS: i32 = 5;

/// Shows the streams to control planes among the metrics, until the client has ended.
fn show(telemetry: &Telemetry, xds: &XdsClient) {
    let metrics = xds.metrics();
    let status = xds.status();
    let target = xds.bootstrap().node.id.clone();
    telemetry.metrics().control_planes().add(move || {
        // Its sender goes with the driver.
        status.has_changed().ok()?;
        let metrics = metrics.load();
        let mut rows = ControlPlaneRows::default();
        let target = ("grpc_target", target.clone());
        for server in metrics.servers {
            let labels = vec![target.clone(), ("grpc_xds_server", server.server)];
            let connected = (labels.clone(), u64::from(server.connected));
            rows.connected.push(connected);
            rows.failures.push((labels.clone(), server.failures));
            for (type_url, updates) in server.updates {
                let mut labels = labels.clone();
                labels.push(("grpc_xds_resource_type", type_url.to_owned()));
                rows.valid.push((labels.clone(), updates.valid));
                rows.invalid.push((labels, updates.invalid));
            }
        }
        for (key, count) in metrics.resources {
            let authority = key.authority.unwrap_or_else(|| "#old".to_owned());
            let labels: Labels = vec![
                target.clone(),
                ("grpc_xds_authority", authority),
                ("grpc_xds_resource_type", key.type_url.to_owned()),
                ("grpc_xds_cache_state", key.state.as_str().to_owned()),
            ];
            rows.resources.push((labels, count));
        }
        Some(rows)
    });
}

/// The identity that the bootstrap's certificate provider `default` describes.
fn identity_from_bootstrap(xds: &XdsClient) -> Result<Option<Identity>, SetupError> {
    let bootstrap = xds.bootstrap();
    let Some(provider) = bootstrap.certificate_providers.get(IDENTITY_PROVIDER) else {
        return Ok(None);
    };
    let (mut certificates, trust, bundles) = if let Some(files) = xds.start_files(provider) {
        (files.certificate, files.roots, files.bundles)
    } else if let Some(workload) = xds.start_workload(provider) {
        let workload = workload.map_err(SetupError::new)?;
        let none = watch::channel(None).1;
        (workload.certificate, none, Some(workload.bundles))
    } else {
        let certificates = xds.start_certificate(provider).map_err(SetupError::new)?;
        let name = provider.trust_bundle().unwrap_or(TRUST_BUNDLE);
        (
            certificates,
            follow_trust(xds.watch_trust_bundle(name)),
            None,
        )
    };
    let (tx, certificate) = watch::channel(None);
    let mut roots = trust.clone();
    tokio::spawn(async move {
        loop {
            let current = certificates.borrow_and_update().clone();
            if let Some(held) = current {
                if held.is_stored {
                    tokio::select! {
                        () = vouched_for(&held.chain, &mut roots) => {}
                        changed = certificates.changed() => match changed {
                            Ok(()) => continue,
                            Err(_) => return,
                        },
                        () = tx.closed() => return,
                    }
                }
                match Certificate::new(held.chain.clone(), held.key.clone_key()) {
                    Ok(certificate) => {
                        tx.send_replace(Some(Arc::new(certificate)));
                    }
                    // The one that is held stays in use until its end.
                    Err(error) => tracing::error!(
                        target: "mesh::identity", %error, "the new certificate cannot be used"
                    ),
                }
            }
            tokio::select! {
                changed = certificates.changed() => if changed.is_err() { return },
                () = tx.closed() => return,
            }
        }
    });
    Ok(Some(match bundles {
        Some(bundles) => Identity::with_bundle_map(certificate, bundles),
        None => Identity::new(certificate, trust),
    }))
}

/// A trust bundle of the control plane, watched for as long as anybody reads it.
fn follow_trust(mut bundles: TrustBundleWatch) -> watch::Receiver<Option<Arc<TrustBundle>>> {
    let (tx, trust) = watch::channel(None::<Arc<TrustBundle>>);
    tokio::spawn(async move {
        loop {
            tx.send_replace(bundles.load_and_mark());
            tokio::select! {
                open = bundles.changed() => if !open { return },
                () = tx.closed() => return,
            }
        }
    });
    trust
}

/// Why a process cannot join the mesh.
pub struct SetupError {
    source: crate::BoxError,
}

impl SetupError {
    fn new(source: impl Into<crate::BoxError>) -> Self {
        Self {
            source: source.into(),
        }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot join the mesh: {}", self.source)
    }
}

impl fmt::Debug for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for SetupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}
