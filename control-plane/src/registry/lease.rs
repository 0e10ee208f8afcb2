//! Registration over gRPC: a stream that lives is a lease.
//!
//! Each message renews; a stream that breaks lets the lease run out, so that a process that was killed
//! is gone after it, and one that lost its connection is not gone at once.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Place, Registration, Registry, Source, Weights};
use crate::model::DEFAULT_NAMESPACE;
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
}

impl LeaseService {
    /// A service of this registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }
}

#[tonic::async_trait]
impl RegistryService for LeaseService {
    type RegisterStream = ReceiverStream<Result<RegisterResponse, Status>>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let peer = peer(&request);
        let requests = request.into_inner();
        let (answers, rx) = mpsc::channel(1);
        let registry = self.registry.clone();
        tokio::spawn(async move {
            if let Err(status) = follow(registry, requests, peer, &answers).await {
                _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

/// Where a request came from, if that is known.
fn peer<T>(request: &Request<T>) -> Option<IpAddr> {
    let address = request.extensions().get::<SocketAddr>();
    address.map(SocketAddr::ip)
}

async fn follow(
    registry: Registry,
    mut requests: Streaming<RegisterRequest>,
    peer: Option<IpAddr>,
    answers: &mpsc::Sender<Result<RegisterResponse, Status>>,
) -> Result<(), Status> {
    let mut id = None;
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            // The call ended: the lease runs out.
            () = answers.closed() => return Ok(()),
        };
        let Some(Ok(RegisterRequest { instance, leave })) = request else {
            return Ok(());
        };
        if let Some(instance) = instance {
            let registration = registration(instance, peer).map_err(Status::invalid_argument)?;
            let lease = registration.lease.unwrap_or(LEASE_DEFAULT);
            if id.as_ref().is_some_and(|id| *id != registration.id) {
                let message = "instance.id: one stream is one instance: open another";
                return Err(Status::invalid_argument(message));
            }
            id = Some(registration.id.clone());
            let kept = registry.register(registration).await;
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

fn registration(instance: Instance, peer: Option<IpAddr>) -> Result<Registration, String> {
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
