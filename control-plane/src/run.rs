//! One running control plane: sources, compile, servers, and their end.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tonic::{server::NamedService as _, service::Routes};
use tonic_health::ServingStatus;

use crate::{
    admin::{self, AdminKey, AdminState},
    audit::{self, Audit},
    ca::{
        Authority, Callers, CertificateService, DenyList, Identity, IssuanceLimits,
        IstioCertificateServiceServer, JwksSource, JwtOptions, JwtVerifier, OwnCertificate, Tokens,
    },
    cache::Version,
    compile::{CompileOptions, key_sets},
    diagnostic::Diagnostic,
    follow::Follower,
    keys::{self, Keys, Trust},
    metrics::Metrics,
    registry::{
        FileStore, LeaseService, ProbeTls, Registry, proto::registry_server::RegistryServer,
    },
    rotate::Rotator,
    server::{self, AdsService, CONNECTION_AGE_MAX, Clients, Limits, ServerTls},
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
/// Where the keys of issuers are in it.
const KEYS: &str = "keys.json";
/// Where the keys of service account tokens are in it.
const TOKEN_KEYS: &str = "token-keys.json";
/// What services said of themselves, in the data directory.
const REGISTRATIONS: &str = "registrations.log";
/// Longest request for a certificate that is read.
const CSR_BYTES_MAX: usize = 64 * 1024;
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
            jwks_ca_file: None,
            jwks_refresh: keys::REFRESH,
            ca_dir: None,
            jwt: None,
            tls: Tls::default(),
            names: Vec::new(),
            admins: Vec::new(),
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
    jwks_ca_file: Option<PathBuf>,
    jwks_refresh: Duration,
    ca_dir: Option<PathBuf>,
    jwt: Option<JwtOptions>,
    tls: Tls,
    names: Vec<String>,
    admins: Vec<Identity>,
}

/// When the control plane's addresses speak TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Where other machines can reach them.
    #[default]
    Remote,
    /// Always.
    Always,
    /// Never: whoever is on the network reads everything, and can be any client that it hears.
    Never,
}

impl Tls {
    fn is_on(self, address: SocketAddr) -> bool {
        match self {
            Self::Remote => !server::is_local(address),
            Self::Always => true,
            Self::Never => false,
        }
    }
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

    /// PEM roots of those who serve the keys of issuers (`jwksUri`). Default: the system's.
    pub fn jwks_ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.jwks_ca_file = Some(file.into());
        self
    }

    /// How often the keys of issuers are fetched again. Default 5 minutes.
    pub fn jwks_refresh(mut self, period: Duration) -> Self {
        self.jwks_refresh = period;
        self
    }

    /// Signs with an intermediate in this directory: `ca-key.pem`, `ca-cert.pem`, `cert-chain.pem`
    /// and `root-cert.pem`. Default: a root of its own in the data directory.
    pub fn ca_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.ca_dir = Some(dir.into());
        self
    }

    /// When xDS and HTTP are served over TLS, with certificates of the mesh's own authority. Default
    /// [`Tls::Remote`]. Over TLS a stream is refused whose client does not prove who it is.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Another name or address that clients dial, for the certificate of the control plane. Those
    /// that it listens on, `localhost`, and the host's name are in it.
    pub fn dialled_as(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Whoever has this identity may ask and change everything over HTTP, as with the admin key.
    pub fn admin(mut self, identity: Identity) -> Self {
        self.admins.push(identity);
        self
    }

    /// Accepts service account tokens as proof of identity. Default: none.
    pub fn service_account_tokens(mut self, options: JwtOptions) -> Self {
        self.jwt = Some(options);
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
            mut options,
            jwks_ca_file,
            jwks_refresh,
            ca_dir,
            jwt,
            tls,
            names,
            admins,
            ..
        } = self;
        let authority = match &ca_dir {
            None => Authority::open(&data_dir, &options.trust_domain, cert_ttl)
                .with_context(|| format!("certificate authority in {}", data_dir.display()))?,
            Some(dir) => Authority::plugged_in(&data_dir, dir, &options.trust_domain, cert_ttl)
                .with_context(|| format!("certificate authority in {}", dir.display()))?,
        };
        let authority = Arc::new(authority);
        let last_good = LastGood::open(data_dir.join(OBJECTS))
            .with_context(|| format!("last good objects in {}", data_dir.display()))?;
        let (source, loaded) = FileSource::open(&config_dir, Some(last_good))
            .with_context(|| format!("configuration directory {}", config_dir.display()))?;
        let trust = Trust::open(jwks_ca_file.as_deref()).context("roots of issuers")?;
        let mut tasks = JoinSet::new();
        let jwt = match jwt {
            None => None,
            Some(jwt) => {
                let keys = Keys::open(data_dir.join(TOKEN_KEYS), trust.clone(), jwks_refresh)
                    .with_context(|| format!("keys of tokens in {}", data_dir.display()))?;
                let verifier = verifier(jwt, keys, &mut tasks).await;
                Some(verifier.context("service account tokens")?)
            }
        };
        let audit = Audit::open(&data_dir.join(audit::FILE));
        let callers = Arc::new(callers(&data_dir, jwt)?.audited(&audit));
        let mut keys = Keys::open(data_dir.join(KEYS), trust, jwks_refresh)
            .with_context(|| format!("keys of issuers in {}", data_dir.display()))?;
        // Servers that believe a token must not be told otherwise because we start.
        let wanted = key_sets(&loaded.borrow().objects);
        keys.fetch(&wanted).await;
        options.keys = keys.held().clone();
        let registrations = data_dir.join(REGISTRATIONS);
        let checks = OwnCertificate::new(Arc::clone(&authority), Vec::new())?;
        let checks = Some(ProbeTls::new(checks));
        let registry = Registry::open_with(FileStore::new(&registrations), checks)
            .with_context(|| format!("registrations in {}", registrations.display()))?;
        registry.audited(audit.clone());
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
            authority.roots(),
            world,
            (metrics.clone(), clients.clone()),
            Arc::clone(&diagnostics),
            &registry,
        );
        follower.audit = audit.clone();
        // Nobody is served before every source is read.
        follower.publish(&loaded.borrow().clone());
        ready.send_replace(true);
        let (wanted, is_wanted) = watch::channel(wanted);
        let (fetched, are_fetched) = watch::channel(keys.held().clone());
        let keys = keys.follow(is_wanted, fetched);
        tasks.spawn(keys);
        let of_issuers = (wanted, are_fetched);
        tasks.spawn(follower.follow(loaded, source, of_issuers, is_shutdown.clone()));
        let [xds_tls, http_tls] = [xds_addr, http_addr].map(|address| {
            let is_on = tls.is_on(address);
            let secured =
                is_on.then(|| ServerTls::new(Arc::clone(&authority), dialled(&names, address)));
            secured.transpose()
        });
        let (xds_tls, http_tls) = (xds_tls?, http_tls?);
        let ads = AdsService::new(
            worlds.clone(),
            is_shutdown.clone(),
            (Arc::clone(&authority), Arc::clone(&callers), cert_ttl),
            metrics.clone(),
            (clients.clone(), limits),
            xds_tls.is_some(),
        );
        let rotator = Rotator::new(Arc::clone(&authority), clients.clone(), metrics.clone())
            .audited(audit.clone());
        tasks.spawn(rotator.clone().run(is_shutdown.clone()));
        tasks.spawn(Arc::clone(&callers).follow_denied(is_shutdown.clone()));
        let mut probes = JoinSet::new();
        probes.spawn(serve_http(
            http,
            http_tls,
            AdminState {
                is_open: !tls.is_on(http_addr) && server::is_local(http_addr),
                admins,
                metrics: metrics.clone(),
                ready: is_ready,
                diagnostics,
                clients: clients.clone(),
                world: worlds,
                registry: registry.clone(),
                rotator: Some(rotator),
                key: Some(AdminKey::open(&data_dir)?),
            },
        ));
        let leases = LeaseService::new(registry, Arc::clone(&callers), xds_tls.is_some());
        let csr = CertificateService::new(
            authority,
            Arc::clone(&callers),
            IssuanceLimits::default(),
            metrics.clone(),
            audit,
        );
        let routes = routes(ads, csr, leases).await;
        tasks.spawn(server::serve(
            xds,
            routes,
            xds_tls,
            connection_age,
            is_shutdown,
        ));
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

/// What clients may dial.
fn dialled(names: &[String], address: SocketAddr) -> Vec<String> {
    let mut dialled = names.to_vec();
    dialled.push("localhost".to_owned());
    if address.ip().is_unspecified() {
        dialled.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
    } else {
        dialled.push(address.ip().to_string());
    }
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let host = host.trim();
    if !host.is_empty() && host.is_ascii() {
        dialled.push(host.to_owned());
    }
    dialled
}

/// What verifies service account tokens, with keys that are fetched where they are not in a file.
async fn verifier(
    options: JwtOptions,
    keys: Keys,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<JwtVerifier> {
    let (issuer, audience) = (&options.issuer, &options.audience);
    Ok(match options.jwks {
        JwksSource::File(path) => JwtVerifier::open(&path, issuer, audience)?,
        JwksSource::Uri(uri) => {
            let keys = keys::follow_one(keys, uri, tasks).await?;
            JwtVerifier::following(issuer, audience, keys)?
        }
    })
}

fn callers(data_dir: &Path, jwt: Option<JwtVerifier>) -> anyhow::Result<Callers> {
    let tokens =
        Tokens::open(data_dir).with_context(|| format!("join tokens in {}", data_dir.display()))?;
    let denied =
        DenyList::open(data_dir).with_context(|| format!("deny list in {}", data_dir.display()))?;
    Ok(Callers::new(tokens, jwt, denied))
}

async fn serve_http(listener: TcpListener, tls: Option<ServerTls>, state: AdminState) {
    if let Some(tls) = tls {
        return server::serve_https(listener, admin::router(state), tls).await;
    }
    let app = admin::router(state).into_make_service_with_connect_info::<SocketAddr>();
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "HTTP server ended");
    }
}

async fn routes(ads: AdsService, csr: CertificateService, leases: LeaseService) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_service_status(AdsService::NAME, ServingStatus::Serving)
        .await;
    Routes::new(ads)
        .add_service(
            IstioCertificateServiceServer::new(csr).max_decoding_message_size(CSR_BYTES_MAX),
        )
        .add_service(RegistryServer::new(leases))
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
