//! Registration of this process as an instance of a service: a lease at the control plane.
//!
//! One stream for each registration; a message every third of the lease renews it. A stream that ends,
//! because the control plane restarts for example, is opened again, at the next server of the bootstrap
//! if that is where one can be reached. What the control plane makes of it is not known here.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use mesh_core::{config::LocalityId, rng::SplitMix64};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, metadata::MetadataValue};

use crate::{
    BACKOFF_BASE, Bootstrap,
    bootstrap::{CertificateProvider, Server},
    transport::{self, KeepAlive, backoff::Backoff, own::OwnCertificate},
};

/// Generated from `mesh/registry/v1/registry.proto`.
pub(crate) mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::pedantic,
        clippy::use_self,
        reason = "generated code"
    )]
    tonic::include_proto!("mesh.registry.v1");
}

/// How long an instance stays without a word from its process, unless it says otherwise.
pub const LEASE: Duration = Duration::from_secs(15);
/// A lease is renewed so many times in its length: two may be lost.
const RENEWALS: u32 = 3;
/// Longest pause between two attempts: short against a lease.
const BACKOFF_CAP: Duration = Duration::from_secs(5);
/// Longest wait for a connection, and for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the control plane's word that it knows that we leave.
pub const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// An instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registration {
    /// Name of the service.
    pub service: String,
    /// Its namespace. Default: that of the node's metadata (`NAMESPACE`), else `default`.
    pub namespace: String,
    /// Its own name, one in the whole mesh. Default: made of service, address and ports.
    pub id: String,
    /// Where it is. Default: where the control plane sees the process.
    pub address: Option<IpAddr>,
    /// Where it listens, by the name of the service's port; `""` is the port without a name.
    pub ports: BTreeMap<String, u16>,
    /// Labels, by which subsets and policies select.
    pub labels: BTreeMap<String, String>,
    /// Where it runs. Default: the node's.
    pub locality: Option<LocalityId>,
    /// Share of requests. Default 1.
    pub weight: u32,
    /// How long it stays without a word. Default [`LEASE`]; 1 s to 10 min.
    pub lease: Duration,
}

impl Registration {
    /// An instance of `service` that listens on `port`; 0 is that of the listener that it is served on.
    pub fn new(service: impl Into<String>, port: u16) -> Self {
        Self {
            service: service.into(),
            namespace: String::new(),
            id: String::new(),
            address: None,
            ports: [(String::new(), port)].into(),
            labels: BTreeMap::new(),
            locality: None,
            weight: 1,
            lease: LEASE,
        }
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Its own name.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Where it is.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Share of requests.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// How long it stays without a word.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    fn to_proto(&self, bootstrap: &Bootstrap) -> proto::Instance {
        let node = &bootstrap.node;
        let address = self.address.map(|address| address.to_string());
        let address = address.unwrap_or_default();
        let ports: Vec<_> = self.ports.values().map(u16::to_string).collect();
        let id = match self.id.is_empty() {
            false => self.id.clone(),
            // The node is who we are where the address is not said.
            true if address.is_empty() => {
                format!("{}-{}-{}", self.service, node.id, ports.join("-"))
            }
            true => format!("{}-{address}-{}", self.service, ports.join("-")),
        };
        let namespace = match self.namespace.is_empty() {
            false => self.namespace.clone(),
            true => {
                let own = node
                    .metadata
                    .get("NAMESPACE")
                    .and_then(|value| value.as_str());
                own.unwrap_or_default().to_owned()
            }
        };
        let place = self.locality.as_ref().unwrap_or(&node.locality);
        let locality = proto::Locality {
            region: place.region.clone(),
            zone: place.zone.clone(),
            sub_zone: place.sub_zone.clone(),
        };
        proto::Instance {
            service: self.service.clone(),
            namespace,
            id,
            address,
            ports: self
                .ports
                .iter()
                .map(|(name, port)| (name.clone(), u32::from(*port)))
                .collect(),
            labels: self.labels.clone().into_iter().collect(),
            locality: Some(locality),
            weight: self.weight,
            lease: prost_types::Duration::try_from(self.lease).ok(),
        }
    }
}

/// How a registration is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationStatus {
    /// Not known to the control plane yet.
    #[default]
    Pending,
    /// Known, and renewed.
    Registered,
    /// The stream is down; the next attempt follows by itself. Until the lease ends nothing is lost.
    Interrupted {
        /// The last error.
        error: String,
    },
    /// It left.
    Left,
}

/// A registration that is kept up. Dropping it leaves, without waiting.
#[derive(Debug)]
#[must_use = "dropping it leaves the registry"]
pub struct RegistrationHandle {
    leave: watch::Sender<bool>,
    status: watch::Receiver<RegistrationStatus>,
}

impl RegistrationHandle {
    /// How it is doing.
    pub fn status(&self) -> watch::Receiver<RegistrationStatus> {
        self.status.clone()
    }

    /// Waits until the control plane knows the instance.
    pub async fn registered(&self) {
        let mut status = self.status.clone();
        let is_there = |status: &RegistrationStatus| *status == RegistrationStatus::Registered;
        _ = status.wait_for(is_there).await;
    }

    /// Leaves, and waits for the control plane's word for at most [`LEAVE_TIMEOUT`]: no client is sent
    /// here any more soon after.
    pub async fn leave(&self) {
        self.leave.send_replace(true);
        let mut status = self.status.clone();
        let gone = status.wait_for(|status| *status == RegistrationStatus::Left);
        if timeout(LEAVE_TIMEOUT, gone).await.is_err() {
            tracing::warn!("the control plane did not say that it knows that we leave");
        }
    }
}

/// Keeps a registration up on a task of the current runtime.
///
/// # Panics
/// Outside of a tokio runtime.
pub(crate) fn start(
    bootstrap: &Bootstrap,
    registration: &Registration,
    own: OwnCertificate,
) -> RegistrationHandle {
    let (leave, leaves) = watch::channel(false);
    let (status, status_rx) = watch::channel(RegistrationStatus::Pending);
    let token_file = bootstrap
        .certificate_providers
        .values()
        .find_map(|provider| match provider {
            CertificateProvider::MeshCsr(csr) => csr.token_file.clone(),
            _ => None,
        });
    let lease = Lease {
        servers: bootstrap.servers.iter().cloned().map(Arc::new).collect(),
        token_file,
        own,
        instance: registration.to_proto(bootstrap),
        lease: registration.lease,
        leaves,
        status,
    };
    tokio::spawn(lease.run());
    RegistrationHandle {
        leave,
        status: status_rx,
    }
}

struct Lease {
    servers: Vec<Arc<Server>>,
    /// Says who we are, where the connection's own credentials do not.
    token_file: Option<std::path::PathBuf>,
    own: OwnCertificate,
    instance: proto::Instance,
    lease: Duration,
    leaves: watch::Receiver<bool>,
    status: watch::Sender<RegistrationStatus>,
}

type Requests = mpsc::Sender<proto::RegisterRequest>;
type Answers = Streaming<proto::RegisterResponse>;

impl Lease {
    async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        let mut rng = SplitMix64::new(crate::client::seed());
        let mut at = 0;
        while !self.is_leaving() {
            let server = Arc::clone(&self.servers[at % self.servers.len()]);
            let error = match self.open(&server).await {
                Ok((requests, answers)) => {
                    backoff.reset();
                    self.status.send_replace(RegistrationStatus::Registered);
                    tracing::info!(
                        service = self.instance.service, id = self.instance.id,
                        server = %server.uri, "registered"
                    );
                    match self.keep(&requests, answers).await {
                        Ok(()) => break,
                        Err(error) => error,
                    }
                }
                Err(error) => {
                    at += 1;
                    error
                }
            };
            tracing::warn!(
                service = self.instance.service, server = %server.uri, error,
                "the registration is interrupted"
            );
            self.status
                .send_replace(RegistrationStatus::Interrupted { error });
            let pause = backoff.after_failure(&mut rng);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = wait(&mut self.leaves) => {}
            }
        }
        self.status.send_replace(RegistrationStatus::Left);
    }

    fn is_leaving(&self) -> bool {
        *self.leaves.borrow() || self.leaves.has_changed().is_err()
    }

    /// Opens a stream and registers on it.
    async fn open(&mut self, server: &Arc<Server>) -> Result<(Requests, Answers), String> {
        let token = self.token().await?;
        let (requests, rx) = mpsc::channel(1);
        let instance = Some(self.instance.clone());
        let first = proto::RegisterRequest {
            instance,
            leave: false,
        };
        _ = requests.try_send(first);
        let own = self.own.clone();
        let opened = async {
            let connected = transport::connect(Arc::clone(server), KeepAlive::default(), own);
            let connected = connected.await?;
            let mut call = connected.call(ReceiverStream::new(rx));
            if let Some(token) = token
                && !call.metadata().contains_key("authorization")
            {
                call.metadata_mut().insert("authorization", token);
            }
            let mut client = proto::registry_client::RegistryClient::new(connected.channel);
            let answers = client
                .register(call)
                .await
                .map_err(|status| text(&status))?;
            let mut answers = answers.into_inner();
            match answers.message().await {
                Ok(Some(_)) => Ok(answers),
                Ok(None) => Err("the stream ended without an answer".to_owned()),
                Err(status) => Err(text(&status)),
            }
        };
        let opened = tokio::select! {
            opened = timeout(ANSWER_TIMEOUT, opened) => opened,
            () = wait(&mut self.leaves) => return Err("we leave".to_owned()),
        };
        let answers = opened.map_err(|_| format!("no answer within {ANSWER_TIMEOUT:?}"))??;
        Ok((requests, answers))
    }

    async fn token(&self) -> Result<Option<MetadataValue<tonic::metadata::Ascii>>, String> {
        let Some(path) = &self.token_file else {
            return Ok(None);
        };
        let at = |error: &dyn std::fmt::Display| format!("token file {}: {error}", path.display());
        let token = tokio::fs::read_to_string(path).await.map_err(|e| at(&e))?;
        let value = format!("Bearer {}", token.trim()).parse();
        let mut value: MetadataValue<_> = value.map_err(|_| at(&"not a token"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Renews until we leave, or the stream ends.
    async fn keep(&mut self, requests: &Requests, mut answers: Answers) -> Result<(), String> {
        let pause = self.lease / RENEWALS;
        let mut due = Instant::now() + pause;
        loop {
            tokio::select! {
                () = wait(&mut self.leaves) => {
                    let leave = proto::RegisterRequest { instance: None, leave: true };
                    if requests.send(leave).await.is_ok() {
                        let ended = async { while let Ok(Some(_)) = answers.message().await {} };
                        _ = timeout(LEAVE_TIMEOUT, ended).await;
                    }
                    return Ok(());
                }
                () = sleep_until(due) => {
                    due += pause;
                    let renewed = requests.try_send(proto::RegisterRequest::default());
                    if let Err(mpsc::error::TrySendError::Closed(_)) = renewed {
                        return Err("the stream ended".to_owned());
                    }
                }
                answer = answers.message() => match answer {
                    Ok(Some(_)) => {}
                    Ok(None) => return Err("the control plane ended the stream".to_owned()),
                    Err(status) => return Err(text(&status)),
                }
            }
        }
    }
}

/// Waits until we are to leave.
async fn wait(leaves: &mut watch::Receiver<bool>) {
    // Without a handle nobody needs the registration.
    _ = leaves.wait_for(|leave| *leave).await;
}

fn text(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
