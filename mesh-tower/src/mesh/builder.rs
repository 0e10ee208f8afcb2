//! How a process joins the mesh.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use mesh_core::{balance::LbPolicyFactory, config::ClientPosition};
use mesh_xds_client::{Bootstrap, Driver, XdsClient};
use tokio::sync::watch;

use super::{DRAIN_TIMEOUT, Inner, Mesh, SetupError, identity::identity_from_bootstrap};
use crate::{
    call::CallOptions,
    cluster::ClusterRegistry,
    connect::HyperConnector,
    identity::Identity,
    registration::Registrations,
    telemetry::{ControlPlaneRows, Labels, Telemetry},
};

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
