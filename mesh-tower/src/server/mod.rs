//! The serving side: connections, identity, authorisation, deadline, then the application.
//!
//! ```text
//! accept ─► first byte ─► filter chain ─► TLS ─► HTTP ─► authority ─► route ─► HTTP filters
//!                                                  ─► deadline ─► span ─► application
//! ```
//!
//! The TLS mode is chosen for each new connection, policies are read for each request; a live
//! connection that no longer fits any filter chain is drained. What cannot be decided is refused:
//! without configuration connections wait, then close; a configuration that cannot be used closes
//! them. It does not read xDS: configuration and identity come in as watched values.
//!
//! Spec: gRFC A36 (listeners, filter chains), A41 (authorisation). Deviation: a chain for plaintext
//! and one for TLS may share a port, told apart by the first byte (Istio's `PERMISSIVE`).

mod application;
mod audit;
mod audit_file;
mod body;
mod check;
mod client_cert;
mod connection;
mod filter;
mod inbound;
mod life;
mod record;
mod refusal;
mod request;
mod request_body;
mod stream_watch;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_core::{
    ConfigError,
    config::{Fraction, HttpLimits, InboundListener},
    filter::FilterStates,
    rng::Rng as _,
};
use rustls_pki_types::CertificateDer;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

pub use application::MeshApplication;
pub use audit::{AuditRecord, AuditSink};
pub use audit_file::{AUDIT_WAITING_MAX, AuditFile};
pub use body::ServedBody;
pub use check::{AuthorizationService, AuthorizationServices, CheckError, CheckFuture};
use client_cert::ClientCert;
pub use connection::ConnectionInfo;
use inbound::{Inbound, With};
pub use request_body::RequestBody;

use crate::{identity::Identity, rng, telemetry::Telemetry};

/// Longest time from the first byte of a connection to the end of its TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for the first configuration.
pub const CONFIG_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests in flight may go on after the shutdown signal.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Most connections at a time; more are closed at once.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Pause after the listening socket failed, for example because there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is known of the configuration of a listening address.
#[derive(Clone, Debug, Default)]
pub enum InboundState {
    /// Nothing yet. After another state it changes nothing: the last good one stays.
    #[default]
    Pending,
    /// Serve as this says. Routes by name must have been resolved into it; a name that is left
    /// refuses the chain's requests.
    Ready(Arc<InboundListener>),
    /// There is no usable configuration: refuse everything.
    Failed(ConfigError),
}

/// A server of one listening address.
#[derive(Debug)]
#[must_use]
pub struct Server {
    state: watch::Receiver<InboundState>,
    options: Options,
}

/// Configures a [`Server`].
#[derive(Debug)]
#[must_use]
pub struct ServerBuilder {
    server: Server,
}

#[derive(Clone)]
struct Options {
    identity: Identity,
    telemetry: Telemetry,
    audit: Option<Arc<dyn AuditSink>>,
    audit_allowed: Option<Fraction>,
    services: Option<Arc<dyn AuthorizationServices>>,
    handshake_timeout: Duration,
    config_timeout: Duration,
    drain_timeout: Duration,
    connections_max: usize,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("identity", &self.identity)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("drain_timeout", &self.drain_timeout)
            .field("connections_max", &self.connections_max)
            .finish_non_exhaustive()
    }
}

impl ServerBuilder {
    /// Our certificate and trust. Default: none, so that TLS connections are refused.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.server.options.identity = identity;
        self
    }

    /// Spans and metrics. Default: metrics alone, in a registry of its own.
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.server.options.telemetry = telemetry;
        self
    }

    /// Also hands audit records to `sink`, for example an [`AuditFile`]; they are always logged with target
    /// `mesh::audit`.
    pub fn audit(mut self, sink: Arc<dyn AuditSink>) -> Self {
        self.server.options.audit = Some(sink);
        self
    }

    /// Share of the requests that authorisation let pass that has an audit record, too. Default none;
    /// refusals always have one.
    pub fn audit_allowed(mut self, share: Fraction) -> Self {
        self.server.options.audit_allowed = Some(share);
        self
    }

    /// Who finds the authorization services that the configuration names. Default none: what one of them
    /// would have to permit is refused. A [`Mesh`](crate::Mesh)'s server asks them through the mesh.
    pub fn authorization_services(mut self, services: Arc<dyn AuthorizationServices>) -> Self {
        self.server.options.services = Some(services);
        self
    }

    /// Longest time from accepting a connection to the end of its handshake. Default
    /// [`HANDSHAKE_TIMEOUT`].
    pub fn handshake_timeout(mut self, limit: Duration) -> Self {
        self.server.options.handshake_timeout = limit;
        self
    }

    /// How long a connection waits for the first configuration. Default [`CONFIG_TIMEOUT`].
    pub fn config_timeout(mut self, limit: Duration) -> Self {
        self.server.options.config_timeout = limit;
        self
    }

    /// How long requests in flight may go on after the shutdown signal. Default [`DRAIN_TIMEOUT`].
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.server.options.drain_timeout = limit;
        self
    }

    /// Most connections at a time, at least 1; more are closed at once. Default
    /// [`CONNECTIONS_MAX`].
    pub fn max_connections(mut self, limit: usize) -> Self {
        self.server.options.connections_max = limit.max(1);
        self
    }

    /// Builds the server.
    pub fn build(self) -> Server {
        self.server
    }
}

impl Server {
    /// A server that follows `state`.
    pub fn builder(state: watch::Receiver<InboundState>) -> ServerBuilder {
        let options = Options {
            identity: Identity::none(),
            telemetry: Telemetry::disabled(),
            audit: None,
            audit_allowed: None,
            services: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            config_timeout: CONFIG_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
            connections_max: CONNECTIONS_MAX,
        };
        ServerBuilder {
            server: Self { state, options },
        }
    }

    /// Serves `application` until `shutdown` is ready, then lets requests in flight finish within
    /// the drain timeout. Dropping the future closes everything at once.
    ///
    /// # Errors
    /// When the listening socket has no address. What a connection does wrong ends that connection.
    pub async fn serve<A: MeshApplication>(
        self,
        listener: TcpListener,
        application: A,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let Self { mut state, options } = self;
        let local = listener.local_addr()?;
        let drain_timeout = options.drain_timeout;
        let shared = Arc::new(Shared::new(local, options));
        shared.apply(&state.borrow_and_update());
        let (drain, draining) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut has_source = true;
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                changed = state.changed(), if has_source => match changed {
                    Ok(()) => shared.apply(&state.borrow_and_update()),
                    // Nobody will change it any more: what was said last stays.
                    Err(_) => has_source = false,
                },
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok(_) if connections.len() >= shared.options.connections_max => {
                        shared.refused(&connection::Refused::new("too_many_connections"));
                    }
                    Ok((stream, remote)) => {
                        let serving = connection::serve(
                            Arc::clone(&shared),
                            application.clone(),
                            stream,
                            remote,
                            draining.clone(),
                        );
                        connections.spawn(serving);
                    }
                    Err(error) => {
                        tracing::warn!(target: "mesh::server", %local, %error, "cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        drain.send_replace(true);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(drain_timeout, all).await.is_err() {
            let left = connections.len();
            tracing::warn!(target: "mesh::server", %local, left, "closed before requests ended");
        }
        Ok(())
    }
}

/// What the connections of a server share.
struct Shared {
    local: SocketAddr,
    options: Options,
    inbound: ArcSwap<Inbound>,
    /// What filters count; held while a configuration is compiled.
    filters: Mutex<FilterStates>,
    /// Moves after each swap of `inbound`.
    generation: watch::Sender<u64>,
}

impl Shared {
    fn new(local: SocketAddr, options: Options) -> Self {
        Self {
            local,
            options,
            inbound: ArcSwap::from_pointee(Inbound::Pending),
            filters: Mutex::new(FilterStates::new(rng::fork().next_u64())),
            generation: watch::Sender::new(0),
        }
    }

    /// Compiles `state` and makes it current.
    fn apply(&self, state: &InboundState) {
        let previous = self.inbound.load();
        let with = With {
            identity: &self.options.identity,
            services: self.options.services.as_deref(),
        };
        let compiled = {
            let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
            Inbound::compile(state, &previous, self.local, &with, &mut filters)
        };
        let Some(next) = compiled else {
            return;
        };
        match &next {
            Inbound::Refusing(reason) => {
                tracing::error!(target: "mesh::server", local = %self.local, reason, "refusing");
            }
            Inbound::Serving(_) | Inbound::Pending => {
                tracing::info!(target: "mesh::server", local = %self.local, "configuration applied");
            }
        }
        self.inbound.store(Arc::new(next));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// The limits of a new connection.
    fn limits(&self, seen: &inbound::Seen) -> Option<Arc<HttpLimits>> {
        self.inbound.load().chain(seen)?.limits.clone()
    }

    /// What requests of a new connection say of who called, who showed `chain`.
    fn client_cert(
        &self,
        seen: &inbound::Seen,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> ClientCert {
        let inbound = self.inbound.load();
        let taken = inbound.chain(seen);
        taken.map_or_else(ClientCert::default, |taken| taken.client_cert(chain))
    }

    fn accepted(&self, security: &str) {
        let metrics = self.options.telemetry.metrics();
        metrics.server().connection_accepted(security);
    }

    fn refused(&self, refused: &connection::Refused) {
        self.options
            .telemetry
            .metrics()
            .server()
            .connection_refused(refused.reason());
    }
}

/// Why a server ended.
#[derive(Debug)]
pub struct ServeError {
    reason: String,
    source: Option<io::Error>,
}

impl ServeError {
    /// The server cannot be set up for `reason`.
    pub fn config(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            source: None,
        }
    }
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        Self {
            reason: "the listening socket cannot be used".into(),
            source: Some(error),
        }
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot serve: {}", self.reason)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ServeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|e| e as &(dyn std::error::Error + 'static))
    }
}
