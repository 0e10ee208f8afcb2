//! Registration over gRPC: a stream that lives is a lease.
//!
//! Each message renews; a stream that breaks lets the lease run out, so that a process that was killed
//! is gone after it, and one that lost its connection is not gone at once.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Place, Registration, Registry, Source, Weights};
use crate::{
    ca::{Callers, ConnectionPeer, Identity},
    compile::META_ACCOUNT,
    model::DEFAULT_NAMESPACE,
    server::ConnectionEnd,
};
use proto::{
    Instance, RegisterRequest, RegisterResponse, registry_server::Registry as RegistryService,
};

/// Generated from `mesh/registry/v1/registry.proto`.
pub(crate) mod proto {
    #![allow(
        missing_docs,
        unused_qualifications,
        unreachable_pub,
        clippy::all,
        reason = "generated code"
    )]
    tonic::include_proto!("mesh.registry.v1");
}

/// A lease of an instance that asks for none.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(15);
/// The shortest lease.
pub const LEASE_MIN: Duration = Duration::from_secs(1);
/// The longest lease.
pub const LEASE_MAX: Duration = Duration::from_secs(600);

/// Serves `mesh.registry.v1.Registry`.
#[derive(Clone, Debug)]
pub struct LeaseService {
    registry: Registry,
    callers: Arc<Callers>,
    must_identify: bool,
}

impl LeaseService {
    /// A service of this registry. `callers` knows who asks; where it `must_identify`, nobody
    /// registers who does not say who it is.
    pub fn new(registry: Registry, callers: Arc<Callers>, must_identify: bool) -> Self {
        Self {
            registry,
            callers,
            must_identify,
        }
    }

    /// Who asks: nobody in particular without a credential, where that is allowed.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let metadata = request.metadata();
        let peer = request.extensions().get::<ConnectionPeer>();
        let has_credential = peer.is_some_and(|peer| peer.identity.is_some())
            || metadata.contains_key("authorization");
        let identity = (has_credential || self.must_identify).then(|| {
            let caller = self.callers.authenticate(metadata, peer);
            caller.map_err(|error| Status::unauthenticated(error.to_string()))
        });
        Ok(Caller {
            address: peer.map(|peer| peer.address.ip()),
            identity: identity.transpose()?.map(|caller| caller.identity),
        })
    }
}

/// Who asks.
struct Caller {
    address: Option<IpAddr>,
    identity: Option<Identity>,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.identity, self.address) {
            (Some(identity), _) => identity.fmt(f),
            (None, Some(address)) => address.fmt(f),
            (None, None) => f.write_str("nobody"),
        }
    }
}

#[tonic::async_trait]
impl RegistryService for LeaseService {
    type RegisterStream = ReceiverStream<Result<RegisterResponse, Status>>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let caller = self.caller(&request)?;
        let end = request.extensions().get::<ConnectionEnd>();
        let end = end.map_or_else(|| watch::channel(false).1, |end| end.0.clone());
        let requests = request.into_inner();
        let (answers, rx) = mpsc::channel(1);
        let registry = self.registry.clone();
        tokio::spawn(async move {
            if let Err(status) = follow(registry, requests, (caller, end), &answers).await {
                _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

async fn follow(
    registry: Registry,
    mut requests: Streaming<RegisterRequest>,
    (caller, mut end): (Caller, watch::Receiver<bool>),
    answers: &mpsc::Sender<Result<RegisterResponse, Status>>,
) -> Result<(), Status> {
    let who = caller.to_string();
    let mut id = None;
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            // The call ended: the lease runs out.
            () = answers.closed() => return Ok(()),
            // It is to come back on another connection.
            true = async { end.wait_for(|end| *end).await.is_ok() } => return Ok(()),
        };
        let Some(Ok(RegisterRequest { instance, leave })) = request else {
            return Ok(());
        };
        if let Some(instance) = instance {
            let registration = registration(instance, &caller)?;
            let lease = registration.lease.unwrap_or(LEASE_DEFAULT);
            if id.as_ref().is_some_and(|id| *id != registration.id) {
                let message = "instance.id: one stream is one instance: open another";
                return Err(Status::invalid_argument(message));
            }
            id = Some(registration.id.clone());
            let object = format!(
                "{}/{} {}",
                registration.namespace, registration.service, registration.id
            );
            let kept = registry.register(registration).await;
            let action = (who.as_str(), "instance.register");
            registry.audit().outcome(action, &object, &kept);
            kept.map_err(|error| Status::unavailable(format!("cannot be kept: {error}")))?;
            let lease = prost_types::Duration::try_from(lease).ok();
            if answers.send(Ok(RegisterResponse { lease })).await.is_err() {
                return Ok(());
            }
        }
        let Some(id) = &id else {
            let message = "instance: the first message must have it";
            return Err(Status::invalid_argument(message));
        };
        if leave {
            let gone = registry.deregister(id).await;
            let gone = gone.map_err(|error| Status::unavailable(error.to_string()))?;
            let action = (who.as_str(), "instance.deregister");
            registry.audit().outcome(action, id, &gone);
            if gone.is_err() {
                tracing::debug!(id, "an instance left that was gone already");
            }
            return Ok(());
        }
        if !registry.renew(id) {
            // Its lease ended meanwhile, or somebody deregistered it.
            return Err(Status::not_found(format!(
                "{id} is not registered any more"
            )));
        }
    }
}

/// A registration by this caller, which has the caller's service account.
fn registration(mut instance: Instance, caller: &Caller) -> Result<Registration, Status> {
    // Nobody says of himself who he is.
    instance.labels.remove(META_ACCOUNT);
    if let Some(Identity {
        namespace,
        service_account,
        ..
    }) = &caller.identity
    {
        if instance.namespace.is_empty() {
            instance.namespace.clone_from(namespace);
        }
        if instance.namespace != *namespace {
            return Err(Status::permission_denied(format!(
                "instance.namespace: the token is of the namespace {namespace}"
            )));
        }
        let account = service_account.clone();
        instance.labels.insert(META_ACCOUNT.to_owned(), account);
    }
    read(instance, caller.address).map_err(Status::invalid_argument)
}

fn read(instance: Instance, peer: Option<IpAddr>) -> Result<Registration, String> {
    let Instance {
        service,
        namespace,
        id,
        address,
        ports,
        labels,
        locality,
        weight,
        lease,
    } = instance;
    for (field, value) in [("service", &service), ("id", &id)] {
        if value.is_empty() {
            return Err(format!("instance.{field} is missing"));
        }
    }
    let address = match address.is_empty() {
        true => peer.ok_or("instance.address is missing")?,
        false => address
            .parse()
            .map_err(|_| format!("instance.address: {address:?} is not an IP address"))?,
    };
    if ports.is_empty() {
        return Err("instance.ports is empty: say where it listens".to_owned());
    }
    let ports = ports.into_iter().map(|(name, number)| {
        let wrong = || format!("instance.ports[{name:?}]: {number} is not a port");
        let number = u16::try_from(number).ok().filter(|number| *number != 0);
        Ok((name.clone(), number.ok_or_else(wrong)?))
    });
    let lease = match lease {
        None => LEASE_DEFAULT,
        Some(lease) => Duration::try_from(lease)
            .ok()
            .filter(|lease| (LEASE_MIN..=LEASE_MAX).contains(lease))
            .ok_or_else(|| format!("instance.lease is not {LEASE_MIN:?} to {LEASE_MAX:?}"))?,
    };
    let weight = weight.max(1);
    let locality = locality.unwrap_or_default();
    Ok(Registration {
        namespace: match namespace.is_empty() {
            true => DEFAULT_NAMESPACE.to_owned(),
            false => namespace,
        },
        service,
        id,
        address,
        ports: ports.collect::<Result<BTreeMap<_, _>, String>>()?,
        tags: Vec::new(),
        meta: labels.into_iter().collect(),
        weights: Weights {
            passing: weight,
            warning: weight,
        },
        locality: Place {
            region: locality.region,
            zone: locality.zone,
            sub_zone: locality.sub_zone,
        },
        enable_tag_override: false,
        checks: Vec::new(),
        lease: Some(lease),
        source: Source::Lease,
    })
}
