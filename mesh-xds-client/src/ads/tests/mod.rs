//! The rules of the protocol, one test each, over both variants.

mod both;
mod delta;
mod fuzz;
mod sim;
mod sotw;
mod timer;

use std::time::Instant;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                AggregatedConfigSource, ConfigSource, Node, config_source::ConfigSourceSpecifier,
            },
            endpoint::v3::ClusterLoadAssignment,
        },
        service::discovery::v3::{Resource, ResourceError, ResourceName},
    },
    google::{protobuf::Any, protobuf::Duration as DurationProto, rpc::Status},
};
use prost::{Message, Name};

use super::*;
use crate::resource::{DecodeContext, NothingKnown};

pub(super) const BOTH: [Variant; 2] = [Variant::StateOfTheWorld, Variant::Incremental];

/// What a request says, in either variant.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Names that are wanted, for the first time or in change.
    Names(Vec<String>),
    /// An answer with its nonce.
    Ack(String),
    Nack(String, String),
}

pub(super) struct Rig {
    pub(super) machine: Machine,
    pub(super) now: Instant,
    /// A server's memory of what the client wants, by kind.
    known: std::collections::BTreeMap<String, std::collections::BTreeSet<String>>,
    nonce: u32,
}

impl Rig {
    /// A machine with an open stream.
    pub(super) fn open(variant: Variant) -> Self {
        let node = Node {
            id: "me".into(),
            ..Node::default()
        };
        let mut machine = Machine::new(variant, node);
        machine.stream_opened();
        Self {
            machine,
            now: Instant::now(),
            known: Default::default(),
            nonce: 0,
        }
    }

    pub(super) fn subscribe(&mut self, kind: Kind, names: &[&str]) {
        for name in names {
            self.machine.subscribe(kind, *name);
        }
    }

    pub(super) fn requests(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.machine.poll_request(self.now)).collect()
    }

    #[track_caller]
    pub(super) fn request(&mut self) -> Request {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    /// What all requests say, and what the server knows by them.
    pub(super) fn said(&mut self) -> Vec<Said> {
        let requests = self.requests();
        requests.into_iter().map(|r| self.hear(&r)).collect()
    }

    fn hear(&mut self, request: &Request) -> Said {
        let (type_url, nonce, detail) = match request {
            Request::Sotw(SotwRequest { head: r, .. }) => {
                (&r.type_url, &r.response_nonce, &r.error_detail)
            }
            Request::Delta(r) => (&r.type_url, &r.response_nonce, &r.error_detail),
        };
        let known = self.known.entry(type_url.clone()).or_default();
        let before = known.clone();
        match request {
            Request::Sotw(r) => *known = r.read().resource_names.into_iter().collect(),
            Request::Delta(r) => {
                for name in &r.resource_names_unsubscribe {
                    known.remove(name);
                }
                known.extend(r.resource_names_subscribe.iter().cloned());
            }
        }
        let is_answer = !nonce.is_empty() && *known == before;
        match detail {
            Some(status) => Said::Nack(nonce.clone(), status.message.clone()),
            None if is_answer => Said::Ack(nonce.clone()),
            None => Said::Names(known.iter().cloned().collect()),
        }
    }

    pub(super) fn known(&self, kind: Kind) -> Vec<&str> {
        let known = self.known.get(kind.type_url()).into_iter().flatten();
        known.map(String::as_str).collect()
    }

    /// A response of whichever variant, with the resources wrapped or not as it demands.
    pub(super) fn response(
        &mut self,
        kind: Kind,
        version: &str,
        resources: Vec<Any>,
        removed: &[&str],
        errors: Vec<ResourceError>,
    ) -> Response {
        self.nonce += 1;
        let nonce = format!("n{}", self.nonce);
        let removed_resources = removed.iter().map(|name| (*name).to_owned()).collect();
        match self.machine.variant() {
            Variant::StateOfTheWorld => Response::Sotw(DiscoveryResponse {
                version_info: version.into(),
                nonce,
                type_url: kind.type_url().into(),
                resources,
                resource_errors: errors,
                ..DiscoveryResponse::default()
            }),
            Variant::Incremental => Response::Delta(DeltaDiscoveryResponse {
                system_version_info: version.into(),
                nonce,
                type_url: kind.type_url().into(),
                resources: resources.into_iter().map(|r| wrap(r, version)).collect(),
                removed_resources,
                resource_errors: errors,
                ..DeltaDiscoveryResponse::default()
            }),
        }
    }

    pub(super) fn take(&mut self, response: Response) -> Option<Update> {
        let context = DecodeContext::default();
        self.machine
            .receive(response, &context, &NothingKnown, self.now)
    }

    pub(super) fn serve(
        &mut self,
        kind: Kind,
        version: &str,
        resources: Vec<Any>,
    ) -> Option<Update> {
        let response = self.response(kind, version, resources, &[], vec![]);
        self.take(response)
    }

    /// Takes `removed` away, in the way of the variant: `rest` is what is left.
    pub(super) fn remove(&mut self, version: &str, removed: &str, rest: Vec<Any>) -> Update {
        let rest = match self.machine.variant() {
            Variant::StateOfTheWorld => rest,
            Variant::Incremental => vec![],
        };
        let response = self.response(Kind::Cluster, version, rest, &[removed], vec![]);
        self.take(response).unwrap()
    }

    pub(super) fn reconnect(&mut self) {
        self.machine.stream_closed();
        self.machine.stream_opened();
        self.known.clear();
    }

    /// Resources that have been waited for long enough.
    pub(super) fn missing(&mut self) -> Vec<String> {
        let expired = self.machine.expire(self.now);
        expired.missing.into_iter().map(|(_, name)| name).collect()
    }
}

/// As the incremental variant carries it; the name is read from the content.
fn wrap(any: Any, version: &str) -> Resource {
    if any.type_url == Resource::type_url()
        && let Ok(resource) = Resource::decode(&*any.value)
    {
        return Resource {
            version: version.into(),
            ..resource
        };
    }
    // Field 1 of every type that is used here is its name.
    let name = Named::decode(&*any.value).map_or_else(|_| String::new(), |named| named.name);
    Resource {
        name,
        version: version.into(),
        resource: Some(any),
        ..Resource::default()
    }
}

/// Any message whose first field is its name.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

/// A resource with a time to live; without content it is a heartbeat.
pub(super) fn living(name: &str, seconds: Option<i64>, resource: Option<Any>) -> Any {
    any(&Resource {
        name: name.into(),
        resource,
        ttl: seconds.map(|seconds| DurationProto { seconds, nanos: 0 }),
        ..Resource::default()
    })
}

pub(super) fn any<T: Message + Name>(value: &T) -> Any {
    Any {
        type_url: T::type_url(),
        value: value.encode_to_vec(),
    }
}

pub(super) fn endpoints(name: &str) -> Any {
    any(&ClusterLoadAssignment {
        cluster_name: name.into(),
        ..ClusterLoadAssignment::default()
    })
}

pub(super) fn cluster(name: &str) -> Any {
    any(&Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(
                    AggregatedConfigSource {},
                )),
                ..ConfigSource::default()
            }),
            ..EdsClusterConfig::default()
        }),
        ..Cluster::default()
    })
}

/// A cluster of a type that is not supported.
pub(super) fn bad_cluster(name: &str) -> Any {
    any(&Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(0)),
        ..Cluster::default()
    })
}

pub(super) fn server_error(name: &str, code: i32) -> ResourceError {
    ResourceError {
        resource_name: Some(ResourceName {
            name: name.into(),
            ..ResourceName::default()
        }),
        error_detail: Some(Status {
            code,
            message: "no such thing".into(),
            details: vec![],
        }),
    }
}

pub(super) fn names(update: &Update) -> Vec<&str> {
    let accepted = update.accepted.iter();
    accepted.map(|accepted| accepted.name.as_str()).collect()
}
