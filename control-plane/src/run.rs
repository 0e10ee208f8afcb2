//! One running control plane: sources, compile, servers, and their end.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use mesh_core::config::TrustBundle;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tonic::{server::NamedService as _, service::Routes};
use tonic_health::ServingStatus;

use crate::{
    admin::{self, AdminState},
    ca::{Authority, CertificateService, IstioCertificateServiceServer, Tokens},
    cache::{TRUST_BUNDLE, Version},
    compile::CompileOptions,
    diagnostic::Diagnostic,
    follow::Follower,
    metrics::Metrics,
    server::{self, AdsService, CONNECTION_AGE_MAX, Clients, Limits},
    source::{FileSource, LastGood},
};

/// Default of [`ControlPlaneBuilder::xds_listen`].
pub const XDS_PORT: u16 = 18_000;
/// Default of [`ControlPlaneBuilder::http_listen`].
pub const HTTP_PORT: u16 = 18_001;
/// Default of [`ControlPlaneBuilder::cert_ttl`].
pub const CERT_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Where the last good objects are in the data directory.
const OBJECTS: &str = "objects";
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
            connection_age: CONNECTION_AGE_MAX,
            limits: Limits::default(),
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
    connection_age: Duration,
    limits: Limits,
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

    /// Longest life of a connection; each ends at 80 % to 100 % of it, and clients come back at
    /// once, perhaps to another replica. Default 1 hour.
    pub fn connection_age(mut self, age: Duration) -> Self {
        self.connection_age = age;
        self
    }

    /// How many streams there may be.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
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
            connection_age,
            limits,
            options,
            ..
        } = self;
        let authority = Authority::open(&data_dir, &options.trust_domain, cert_ttl)
            .with_context(|| format!("certificate authority in {}", data_dir.display()))?;
        let tokens = Tokens::open(&data_dir)
            .with_context(|| format!("join tokens in {}", data_dir.display()))?;
        let (authority, tokens) = (Arc::new(authority), Arc::new(tokens));
        let last_good = LastGood::open(data_dir.join(OBJECTS))
            .with_context(|| format!("last good objects in {}", data_dir.display()))?;
        let (source, loaded) = FileSource::open(&config_dir, Some(last_good))
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
        let mut follower = Follower::new(
            options,
            trust_bundle(&authority),
            world,
            (metrics.clone(), clients.clone()),
            Arc::clone(&diagnostics),
        );
        // Nobody is served before every source is read.
        follower.publish(&loaded.borrow().clone());
        ready.send_replace(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.follow(loaded, source, is_shutdown.clone()));
        let mut probes = JoinSet::new();
        probes.spawn(serve_http(
            http,
            AdminState {
                metrics: metrics.clone(),
                ready: is_ready,
                diagnostics,
                clients: clients.clone(),
                world: worlds.clone(),
            },
        ));
        let ads = AdsService::new(
            worlds,
            is_shutdown.clone(),
            (Arc::clone(&authority), Arc::clone(&tokens), cert_ttl),
            metrics.clone(),
            (clients.clone(), limits),
        );
        let csr = CertificateService::new(authority, tokens, metrics.clone());
        let routes = routes(ads, csr).await;
        tasks.spawn(server::serve(xds, routes, connection_age, is_shutdown));
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

async fn routes(ads: AdsService, csr: CertificateService) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_service_status(AdsService::NAME, ServingStatus::Serving)
        .await;
    Routes::new(ads)
        .add_service(IstioCertificateServiceServer::new(csr))
        .add_service(health_service)
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
    pub fn clients(&self) -> Vec<server::ClientStatus> {
        self.clients.list()
    }

    /// Waits until every client has answered a version, the newest if none is given.
    pub async fn wait(&self, version: Option<Version>, timeout: Duration) -> server::Waited {
        let deadline = tokio::time::Instant::now() + timeout;
        self.clients.wait(version, deadline).await
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
