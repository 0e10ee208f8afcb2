//! One running control plane: sources, compile, servers, and their end.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use mesh_core::config::TrustBundle;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;

use crate::{
    admin::{self, AdminState},
    ca::{Authority, CertificateService, IstioCertificateServiceServer, Tokens},
    cache::{TRUST_BUNDLE, World},
    compile::{CompileOptions, compile},
    diagnostic::{Diagnostic, Severity},
    metrics::Metrics,
    server::{AdsService, Clients},
    source::{FileSource, Loaded},
};

/// Default of [`ControlPlaneBuilder::xds_listen`].
pub const XDS_PORT: u16 = 18_000;
/// Default of [`ControlPlaneBuilder::http_listen`].
pub const HTTP_PORT: u16 = 18_001;
/// Default of [`ControlPlaneBuilder::cert_ttl`].
pub const CERT_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// A client that is silent for so long is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long [`Running::shutdown`] waits for streams to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A control plane in this process.
#[derive(Debug)]
pub struct ControlPlane;

impl ControlPlane {
    /// A control plane that reads `config_dir` and keeps its state in `data_dir`.
    pub fn builder(
        config_dir: impl Into<PathBuf>,
        data_dir: impl Into<PathBuf>,
    ) -> ControlPlaneBuilder {
        ControlPlaneBuilder {
            config_dir: config_dir.into(),
            data_dir: data_dir.into(),
            xds_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, XDS_PORT)),
            http_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT)),
            cert_ttl: CERT_TTL,
            options: CompileOptions::default(),
        }
    }
}

/// Configures a [`ControlPlane`].
#[derive(Debug)]
#[must_use]
pub struct ControlPlaneBuilder {
    config_dir: PathBuf,
    data_dir: PathBuf,
    xds_listen: SocketAddr,
    http_listen: SocketAddr,
    cert_ttl: Duration,
    options: CompileOptions,
}

impl ControlPlaneBuilder {
    /// Where xDS, certificates and gRPC health are served. Default `127.0.0.1:18000`; port 0 takes
    /// a free one.
    pub fn xds_listen(mut self, address: SocketAddr) -> Self {
        self.xds_listen = address;
        self
    }

    /// Where REST, metrics and health are served. Default `127.0.0.1:18001`.
    pub fn http_listen(mut self, address: SocketAddr) -> Self {
        self.http_listen = address;
        self
    }

    /// Longest life of a certificate. Default [`CERT_TTL`].
    pub fn cert_ttl(mut self, ttl: Duration) -> Self {
        self.cert_ttl = ttl;
        self
    }

    /// Trust domain of identities. Default `cluster.local`.
    pub fn trust_domain(mut self, domain: impl Into<String>) -> Self {
        self.options.trust_domain = domain.into();
        self
    }

    /// Starts it; returns when it listens.
    ///
    /// # Errors
    /// When a directory or an address cannot be used.
    pub async fn start(self) -> anyhow::Result<Running> {
        let Self {
            config_dir,
            data_dir,
            cert_ttl,
            options,
            ..
        } = self;
        let authority = Authority::open(&data_dir, &options.trust_domain, cert_ttl)
            .with_context(|| format!("certificate authority in {}", data_dir.display()))?;
        let tokens = Tokens::open(&data_dir)
            .with_context(|| format!("join tokens in {}", data_dir.display()))?;
        let (authority, tokens) = (Arc::new(authority), Arc::new(tokens));
        let (source, loaded) = FileSource::open(&config_dir)
            .with_context(|| format!("configuration directory {}", config_dir.display()))?;
        let xds = TcpListener::bind(self.xds_listen)
            .await
            .with_context(|| format!("xDS address {}", self.xds_listen))?;
        let http = TcpListener::bind(self.http_listen)
            .await
            .with_context(|| format!("HTTP address {}", self.http_listen))?;
        let (xds_addr, http_addr) = (xds.local_addr()?, http.local_addr()?);

        let (metrics, clients) = (Metrics::new(), Clients::default());
        let (shutdown, is_shutdown) = watch::channel(false);
        let (world, worlds) = watch::channel(None);
        let (ready, is_ready) = watch::channel(false);
        let diagnostics = Arc::<Mutex<Vec<Diagnostic>>>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(
            loaded,
            source,
            Follower {
                options,
                trust: trust_bundle(&authority),
                world,
                ready: ready.clone(),
                metrics: metrics.clone(),
                diagnostics: Arc::clone(&diagnostics),
                shutdown: is_shutdown.clone(),
            },
        ));
        let mut probes = JoinSet::new();
        probes.spawn(serve_http(
            http,
            admin_state(metrics.clone(), is_ready, diagnostics, clients.clone()),
        ));
        let ads = AdsService::new(
            worlds,
            is_shutdown.clone(),
            (Arc::clone(&authority), Arc::clone(&tokens), cert_ttl),
            metrics.clone(),
            clients.clone(),
        );
        let csr = CertificateService::new(authority, tokens, metrics.clone());
        tasks.spawn(serve_xds(xds, ads, csr, is_shutdown));
        tracing::info!(%xds_addr, %http_addr, config = %config_dir.display(), "control plane started");
        Ok(Running {
            xds_addr,
            http_addr,
            shutdown,
            ready,
            clients,
            metrics,
            tasks,
            probes,
        })
    }
}

fn admin_state(
    metrics: Metrics,
    ready: watch::Receiver<bool>,
    diagnostics: Arc<Mutex<Vec<Diagnostic>>>,
    clients: Clients,
) -> AdminState {
    AdminState {
        metrics,
        ready,
        diagnostics: Arc::new(move || {
            let held = diagnostics.lock().unwrap_or_else(PoisonError::into_inner);
            serde_json::to_value(&*held).unwrap_or_default()
        }),
        clients: Arc::new(move || serde_json::to_value(clients.list()).unwrap_or_default()),
    }
}

async fn serve_http(listener: TcpListener, state: AdminState) {
    if let Err(error) = axum::serve(listener, admin::router(state)).await {
        tracing::error!(%error, "HTTP server ended");
    }
}

fn trust_bundle(authority: &Authority) -> TrustBundle {
    let root = bytes::Bytes::copy_from_slice(authority.root_der());
    TrustBundle {
        name: TRUST_BUNDLE.into(),
        roots: vec![root],
    }
}

async fn serve_xds(
    listener: TcpListener,
    ads: AdsService,
    csr: CertificateService,
    mut shutdown: watch::Receiver<bool>,
) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<AggregatedDiscoveryServiceServer<AdsService>>()
        .await;
    let stop = async move { _ = shutdown.wait_for(|shutdown| *shutdown).await };
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .tcp_nodelay(true)
        .add_service(AggregatedDiscoveryServiceServer::new(ads))
        .add_service(IstioCertificateServiceServer::new(csr))
        .add_service(health_service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop);
    if let Err(error) = served.await {
        tracing::error!(%error, "xDS server ended");
    }
}

/// Turns what the source loads into worlds.
struct Follower {
    options: CompileOptions,
    trust: TrustBundle,
    world: watch::Sender<Option<Arc<World>>>,
    ready: watch::Sender<bool>,
    metrics: Metrics,
    diagnostics: Arc<Mutex<Vec<Diagnostic>>>,
    shutdown: watch::Receiver<bool>,
}

async fn follow(
    mut loaded: watch::Receiver<Arc<Loaded>>,
    source: FileSource,
    mut follower: Follower,
) {
    loop {
        let current = loaded.borrow_and_update().clone();
        follower.publish(&current);
        tokio::select! {
            changed = loaded.changed() => if changed.is_err() { break },
            _ = follower.shutdown.wait_for(|shutdown| *shutdown) => break,
        }
    }
    // The files are watched as long as somebody wants to know.
    drop(source);
}

impl Follower {
    fn publish(&self, loaded: &Loaded) {
        let (compiled, found) = compile(&loaded.objects, &self.options);
        let all: Vec<_> = loaded.diagnostics.iter().chain(&found).cloned().collect();
        for diagnostic in &all {
            match diagnostic.severity {
                Severity::Error => tracing::error!("{diagnostic}"),
                Severity::Warning => tracing::warn!("{diagnostic}"),
            }
        }
        let errors = all
            .iter()
            .filter(|found| found.severity == Severity::Error)
            .count();
        self.metrics.diagnostics(errors, all.len() - errors);
        *self
            .diagnostics
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = all;
        let before = self.world.borrow().clone();
        let trust = self.trust.clone();
        let world = match before {
            Some(before) => World::following(compiled, trust, &before),
            None => World::new(compiled, trust),
        };
        self.world.send_replace(Some(Arc::new(world)));
        self.ready.send_replace(true);
    }
}

/// A control plane that runs.
#[derive(Debug)]
pub struct Running {
    xds_addr: SocketAddr,
    http_addr: SocketAddr,
    shutdown: watch::Sender<bool>,
    ready: watch::Sender<bool>,
    clients: Clients,
    metrics: Metrics,
    tasks: JoinSet<()>,
    /// Answered until the very end, so that probes see that it drains.
    probes: JoinSet<()>,
}

impl Running {
    /// Where xDS, certificates and gRPC health are served.
    pub fn xds_addr(&self) -> SocketAddr {
        self.xds_addr
    }

    /// Where REST, metrics and health are served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// How many clients have a stream open, as it changes.
    pub fn streams(&self) -> watch::Receiver<usize> {
        self.clients.count()
    }

    /// The clients that are connected now.
    pub fn clients(&self) -> Vec<crate::server::ClientStatus> {
        self.clients.list()
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Ends the streams, waits for them for a bounded time, and stops.
    pub async fn shutdown(mut self) {
        self.ready.send_replace(false);
        self.shutdown.send_replace(true);
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!("connections were still open at the drain timeout");
        }
        self.probes.shutdown().await;
    }
}
