//! The handle of an application.
//!
//! Clonable; every call returns at once and talks to the [`Driver`] by a command. It holds no
//! configuration itself.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_core::{
    ConfigError,
    balance::LbPolicyFactory,
    config::ClientPosition,
    secrets::{self, SecretReader},
    snapshot::{self, SnapshotReader},
};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Error, Variant,
    bootstrap::{Bootstrap, CertificateProvider},
    certificate::{self, CertificateClient, CertificateWatch, FileIdentity, WorkloadIdentity},
    connection::ConnectionOptions,
    dns::Lookup,
    driver::{Command, Driver, DriverOptions, Reports},
    dump::{ClientDump, Freshness},
    graph::{Follower, Resource, WatchId, Watcher},
    metrics::MetricsReader,
    registry::{self, Registration, RegistrationHandle},
    resource::canonical,
    transport::{KeepAlive, StreamStatus, csds::StatusService, node, own::OwnCertificate},
    watch::{InboundState, InboundWatch, TrustBundleWatch, Watch},
    watcher::{ResourceWatcher, watcher},
};

/// First pause before a new connection attempt (gRPC connection backoff).
pub const BACKOFF_BASE: Duration = Duration::from_secs(1);

/// Longest pause before a new connection attempt (gRPC connection backoff).
pub const BACKOFF_CAP: Duration = Duration::from_secs(120);

/// A client of one control plane. Clones share one stream; it closes when the last clone and the
/// last watch are dropped.
#[derive(Clone)]
pub struct XdsClient {
    shared: Arc<Shared>,
}

struct Shared {
    commands: mpsc::UnboundedSender<Command>,
    status: watch::Receiver<StreamStatus>,
    freshness: watch::Receiver<Freshness>,
    metrics: MetricsReader,
    secrets: SecretReader,
    bootstrap: Bootstrap,
    identity_file: Option<PathBuf>,
    /// What connections to control planes show.
    own: OwnCertificate,
    next_id: AtomicU64,
}

/// Ends a watch when dropped.
pub(crate) struct Subscription {
    id: WatchId,
    /// Keeps the driver alive too.
    commands: mpsc::UnboundedSender<Command>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // It fails when the driver has ended, and the watch with it.
        _ = self.commands.send(Command::Unwatch(self.id));
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&self.id).finish()
    }
}

/// Options of an [`XdsClient`].
#[derive(Clone, Debug)]
#[must_use]
pub struct XdsClientBuilder {
    bootstrap: Bootstrap,
    options: DriverOptions,
    identity_file: Option<PathBuf>,
}

impl XdsClientBuilder {
    /// Pauses between connection attempts: the first one, and the longest. They grow by 1.6 and
    /// vary by 20 %. Default [`BACKOFF_BASE`] and [`BACKOFF_CAP`].
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.options.connection.backoff_base = base;
        self.options.connection.backoff_cap = cap;
        self
    }

    /// HTTP/2 pings: how often, and how long to wait for the answer. Default 5 min and 20 s, as
    /// many servers close connections that ping more often.
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.options.connection.keep_alive = KeepAlive { interval, timeout };
        self
    }

    /// Seed of jitter and of where round robin starts. Default random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Speaks this variant of the protocol with every server. Default: the incremental one with
    /// servers whose bootstrap features include [`feature::DELTA`](crate::bootstrap::feature::DELTA),
    /// state of the world with all others. A server that does not know the incremental one is spoken
    /// to in the other.
    pub fn variant(mut self, variant: Variant) -> Self {
        self.options.connection.variant = Some(variant);
        self
    }

    /// Keeps the last good state in this file, so that a process that starts while the control plane
    /// is down serves what it served before. Its folder must exist. The file is readable by its owner
    /// only, holds no private key, is written at most every 15 s and at the end, and has at most 128 MiB. Default
    /// none.
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.state_file = Some(path.into());
        self
    }

    /// Keeps the certificate of [`XdsClient::start_certificate`] with its key in this file: see
    /// [`CertificateConfig::file`](crate::certificate::CertificateConfig::file). Default none.
    pub fn identity_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.identity_file = Some(path.into());
        self
    }

    /// Asks these servers for the addresses of DNS clusters. Default: those of the system.
    pub fn dns_servers(mut self, servers: &[SocketAddr]) -> Self {
        self.options.lookup = Lookup::by(servers);
        self
    }

    /// Gives clusters a load balancing policy of the application's own: those whose
    /// `load_balancing_policy` has a `TypedStruct` whose `type_url` ends in `name` (gRFC A52). Default
    /// none; a cluster with another name cannot be used, and says so.
    pub fn lb_policy(mut self, name: impl Into<String>, factory: Arc<dyn LbPolicyFactory>) -> Self {
        self.options.lb_policies.push((name.into(), factory));
        self
    }

    /// The cluster of this process's own service, Envoy's `local_cluster_name`. It is followed as any
    /// other is, but not connected to: with it and with the `locality` of the bootstrap's node, clusters
    /// with zone-aware routing know how many callers there are in which zone. Default none; zones say
    /// nothing then.
    pub fn local_cluster(mut self, name: impl Into<String>) -> Self {
        self.options.local_cluster = Some(canonical(name.into()).into());
        self
    }

    /// Which of all clients of the same services this process is, for clusters of which each client uses a
    /// part ([`Subsetting::Deterministic`](mesh_core::config::Subsetting::Deterministic)). Default none;
    /// it uses a random part then.
    pub fn client_position(mut self, position: ClientPosition) -> Self {
        self.options.client_position = Some(position);
        self
    }

    /// Starts the client on a task of the current runtime.
    ///
    /// # Errors
    /// When the bootstrap names no server.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn build(self) -> Result<XdsClient, Error> {
        let (client, driver) = self.build_with_driver()?;
        tokio::spawn(driver.run());
        Ok(client)
    }

    /// Makes the client and its driver; the caller runs [`Driver::run`], for example on a thread
    /// of its own, so that a large push never takes a worker of requests.
    ///
    /// # Errors
    /// When the bootstrap names no server.
    pub fn build_with_driver(self) -> Result<(XdsClient, Driver), Error> {
        let Self {
            bootstrap,
            options,
            identity_file,
        } = self;
        if bootstrap.servers.is_empty() {
            return Err(Error::bootstrap("xds_servers: at least one is needed"));
        }
        let (commands, queue) = mpsc::unbounded_channel();
        let (status, status_rx) = watch::channel(StreamStatus::Connecting);
        let (freshness, freshness_rx) = watch::channel(Freshness::default());
        let metrics = MetricsReader::default();
        let (secret_writer, secrets) = secrets::pair();
        let reports = Reports {
            status,
            freshness,
            metrics: metrics.clone(),
        };
        let own = options.connection.own.clone();
        let driver = Driver::new(&bootstrap, queue, reports, secret_writer, options);
        let shared = Arc::new(Shared {
            commands,
            status: status_rx,
            freshness: freshness_rx,
            metrics,
            secrets,
            bootstrap,
            identity_file,
            own,
            next_id: AtomicU64::new(0),
        });
        Ok((XdsClient { shared }, driver))
    }
}

impl XdsClient {
    /// Starts a client with the default options on a task of the current runtime.
    ///
    /// # Errors
    /// When the bootstrap names no server.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(bootstrap: Bootstrap) -> Result<Self, Error> {
        Self::builder(bootstrap).build()
    }

    /// A client with options.
    pub fn builder(bootstrap: Bootstrap) -> XdsClientBuilder {
        XdsClientBuilder {
            bootstrap,
            options: DriverOptions {
                connection: ConnectionOptions {
                    backoff_base: BACKOFF_BASE,
                    backoff_cap: BACKOFF_CAP,
                    keep_alive: KeepAlive::default(),
                    own: OwnCertificate::default(),
                    variant: None,
                },
                seed: seed(),
                state_file: None,
                lookup: Lookup::system(),
                lb_policies: Vec::new(),
                local_cluster: None,
                client_position: None,
            },
            identity_file: None,
        }
    }

    /// Follows a client's listener with all it refers to. `authority` is what the application
    /// dials; it selects the virtual host. Dropping the last clone of the reader ends the watch.
    pub fn watch_listener(&self, resource_name: &str, authority: &str) -> SnapshotReader {
        let (writer, reader) = snapshot::pair();
        let subscription = self.subscribe(|| Watcher::Client {
            listener: canonical(resource_name.into()).into(),
            authority: authority.into(),
            writer,
        });
        let (id, commands) = (subscription.id, subscription.commands.clone());
        let requests = move |cluster| _ = commands.send(Command::NameCluster(id, cluster));
        let reader = reader.with_cluster_requests(Arc::new(requests));
        reader.keep_alive(subscription)
    }

    /// Follows a cluster by itself, without a listener: everything goes there, without limits or
    /// retries. Dropping the last clone of the reader ends the watch.
    pub fn watch_cluster(&self, name: &str) -> SnapshotReader {
        let (writer, reader) = snapshot::pair();
        let name = canonical(name.into()).into();
        reader.keep_alive(self.subscribe(|| Watcher::Cluster { name, writer }))
    }

    /// Follows a server's listener.
    pub fn watch_inbound(&self, resource_name: &str) -> InboundWatch {
        let (tx, rx) = watch::channel(InboundState::Pending);
        let listener = canonical(resource_name.into()).into();
        Watch::new(rx, self.subscribe(|| Watcher::Inbound { listener, tx }))
    }

    /// Certificates and roots that clusters and listeners name beside the process's own
    /// ([`OWN_CERTIFICATE`](mesh_core::config::OWN_CERTIFICATE) and
    /// [`OWN_TRUST_BUNDLE`](mesh_core::config::OWN_TRUST_BUNDLE)). Each is fetched with what names it, and
    /// held for as long. The reader does not keep the client alive.
    pub fn secrets(&self) -> SecretReader {
        self.shared.secrets.clone()
    }

    /// Follows a trust bundle, `ROOTCA` by convention.
    pub fn watch_trust_bundle(&self, name: &str) -> TrustBundleWatch {
        let (tx, rx) = watch::channel(None);
        let name = canonical(name.into()).into();
        Watch::new(rx, self.subscribe(|| Watcher::TrustBundle { name, tx }))
    }

    /// Follows one resource by itself, with its errors (gRFC A88). See [`watcher`](crate::watcher)
    /// for what it costs to be slow.
    ///
    /// ```no_run
    /// use futures_util::StreamExt;
    /// use mesh_core::config::ClusterEndpoints;
    /// use mesh_xds_client::{XdsClient, watcher::News};
    ///
    /// # async fn example(client: XdsClient) {
    /// let mut endpoints = client.watch::<ClusterEndpoints>("greeter");
    /// while let Some(event) = endpoints.next().await {
    ///     match event.news {
    ///         News::Changed(Ok(endpoints)) => println!("use {endpoints:?}"),
    ///         News::Changed(Err(error)) => println!("stop using what there was: {error}"),
    ///         News::AmbientError(Some(error)) => println!("go on, but: {error}"),
    ///         News::AmbientError(None) => println!("all is well again"),
    ///     }
    ///     // Here `event.done` is dropped, and the next response may be read.
    /// }
    /// # }
    /// ```
    pub fn watch<T: Resource>(&self, name: &str) -> ResourceWatcher<T> {
        let name = canonical(name.into());
        watcher(|teller| {
            let follower = Follower::<T>::new(name, teller);
            self.subscribe(|| Watcher::Resource(Box::new(follower)))
        })
    }

    /// Whether what is served is from an earlier run (see [`XdsClientBuilder::state_file`]).
    pub fn freshness(&self) -> watch::Receiver<Freshness> {
        self.shared.freshness.clone()
    }

    /// What an operator watches (gRFC A78). The reader does not keep the client alive.
    pub fn metrics(&self) -> MetricsReader {
        self.shared.metrics.clone()
    }

    /// All that the client knows, for people. `None` when its driver has ended.
    pub async fn dump(&self) -> Option<ClientDump> {
        let (tx, rx) = oneshot::channel();
        self.shared.commands.send(Command::Dump(tx)).ok()?;
        rx.await.ok()
    }

    /// A service that shows all that the client knows to tools such as grpcdebug. It does not keep
    /// the client alive.
    pub fn status_service(&self) -> StatusService {
        let node = node::node(&self.shared.bootstrap.node);
        StatusService::new(node, self.shared.commands.downgrade())
    }

    fn subscribe(&self, watcher: impl FnOnce() -> Watcher) -> Arc<Subscription> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let commands = self.shared.commands.clone();
        if let Err(refused) = commands.send(Command::Watch(id, watcher()))
            && let Command::Watch(_, watcher) = refused.0
        {
            fail(watcher);
        }
        Arc::new(Subscription { id, commands })
    }

    /// Gets and renews a certificate from a provider of the bootstrap.
    ///
    /// # Errors
    /// When the provider's plugin is not supported.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_certificate(
        &self,
        provider: &CertificateProvider,
    ) -> Result<CertificateWatch, Error> {
        let mut config = self.shared.bootstrap.config_of(provider)?;
        config.file.clone_from(&self.shared.identity_file);
        config.owner.clone_from(&self.shared.bootstrap.node.id);
        let certificate = CertificateClient::start(config);
        self.shared.own.set(certificate.clone());
        Ok(certificate)
    }

    /// Reads the files of a provider of the bootstrap, again and again; `None` when it has none
    /// ([`start_certificate`](Self::start_certificate)).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_files(&self, provider: &CertificateProvider) -> Option<FileIdentity> {
        match provider {
            CertificateProvider::FileWatcher(config) => {
                Some(certificate::files::start(config.clone()))
            }
            CertificateProvider::MeshCsr(_)
            | CertificateProvider::WorkloadApi(_)
            | CertificateProvider::Unsupported { .. } => None,
        }
    }

    /// Follows the Workload API of a provider of the bootstrap; `None` when it has none. Connections
    /// to control planes show the certificate.
    ///
    /// # Errors
    /// When it is not known where the Workload API is.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_workload(
        &self,
        provider: &CertificateProvider,
    ) -> Option<Result<WorkloadIdentity, Error>> {
        let name = provider.trust_bundle()?.into();
        let started = Bootstrap::workload_socket(provider)?.map(|socket| {
            let identity = certificate::workload::start(socket, name);
            self.shared.own.set(identity.certificate.clone());
            identity
        });
        Some(started)
    }

    /// Registers this process as an instance of a service, until the handle is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn register(&self, registration: &Registration) -> RegistrationHandle {
        registry::start(
            &self.shared.bootstrap,
            registration,
            self.shared.own.clone(),
        )
    }

    /// How the stream is doing.
    pub fn status(&self) -> watch::Receiver<StreamStatus> {
        self.shared.status.clone()
    }

    /// What the client was made from.
    pub fn bootstrap(&self) -> &Bootstrap {
        &self.shared.bootstrap
    }

    /// See [`Bootstrap::client_listener_name`].
    pub fn client_listener_name(&self, target: &str) -> String {
        self.shared.bootstrap.client_listener_name(target)
    }

    /// See [`Bootstrap::server_listener_name`].
    ///
    /// # Errors
    /// When the bootstrap has no `server_listener_resource_name_template`.
    pub fn server_listener_name(&self, address: SocketAddr) -> Result<String, Error> {
        self.shared.bootstrap.server_listener_name(address)
    }
}

impl fmt::Debug for XdsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdsClient")
            .field("node", &self.shared.bootstrap.node.id)
            .field("status", &*self.shared.status.borrow())
            .finish_non_exhaustive()
    }
}

/// The driver has ended: nothing will ever come.
fn fail(watcher: Watcher) {
    let error = |listener: &dyn fmt::Display| {
        let reason = "the xDS client's driver has ended";
        ConfigError::new(format!("listener {listener}"), "", reason)
    };
    match watcher {
        Watcher::Client {
            listener, writer, ..
        } => writer.fail(error(&listener), false),
        Watcher::Cluster { name, writer } => {
            let reason = "the xDS client's driver has ended";
            writer.fail(
                ConfigError::new(format!("cluster {name}"), "", reason),
                false,
            );
        }
        Watcher::Inbound { listener, tx } => {
            tx.send_replace(InboundState::Failed(error(&listener)));
        }
        Watcher::TrustBundle { name, .. } => {
            tracing::warn!(%name, "no trust bundle: the xDS client's driver has ended");
        }
        // Its stream ends with it.
        Watcher::Resource(_) => {}
    }
}

/// A random number for jitter. Not a secret: without a source of randomness the time will do.
pub(crate) fn seed() -> u64 {
    let mut bytes = [0; 8];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => std::time::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_nanos() as u64),
    }
}
