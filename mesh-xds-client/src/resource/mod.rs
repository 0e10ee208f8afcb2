//! From xDS protobuf to [`mesh_core::config`], collecting every error.
//!
//! Stage 3. Pure functions over one response. It decides what is valid; which resources were asked
//! for and what is done about a refusal belong to [`crate::ads`], references between resources to
//! [`crate::graph`]. Rules: gRFC A27, A28, A29, A31, A32, A36, A41, A44, A46, A48. Unknown fields
//! are ignored; a known field with a value that cannot be honoured refuses the resource where
//! traffic or security depends on it, and is noted in the log where nothing does.

mod balance;
mod chain_match;
mod client_cert;
mod cluster;
mod connection;
mod discovery;
mod dns;
mod endpoint;
mod filter;
mod health_check;
mod http_limits;
mod known;
mod lb_metadata;
mod listener;
mod metadata;
mod name;
mod original_dst;
mod outlier;
mod own_policy;
pub(crate) mod path;
mod raw;
mod report;
mod route;
mod security;
#[cfg(test)]
mod tests;
mod value;
mod wire;
mod zone_aware;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as RbacProto;
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster as ClusterProto, listener::v3::Listener as ListenerProto,
        route::v3::RouteConfiguration as RouteProto,
    },
    extensions::transport_sockets::tls::v3::Secret as SecretProto,
};
use mesh_core::{ConfigError, config};
use prost::Message;

use crate::bootstrap::{CertificateProvider, Server, ServerUri};
pub use discovery::{ClusterSource, ClusterSpec, LoadReports};
pub use dns::{DnsFamily, DnsHost, DnsLookup, DnsSource};
pub(crate) use known::{Known, NothingKnown, Same};
pub(crate) use name::{authority, canonical, is_glob_collection};
use path::{Sink, combine};
pub(crate) use raw::Raw;

/// The provider that is this process's own identity, by convention (gRFC A29).
const IDENTITY_PROVIDER: &str = "default";

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Route,
    Secret,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::Route,
        Self::Secret,
    ];

    /// The type URL on the wire.
    pub(crate) const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    pub(crate) fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a state-of-the-world response holds all resources of the type, so that absence
    /// means deletion (LDS and CDS only).
    pub(crate) fn is_complete_in_sotw(self) -> bool {
        matches!(self, Self::Listener | Self::Cluster)
    }

    /// For people.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
            Self::Route => "route configuration",
            Self::Secret => "secret",
        }
    }
}

/// A decoded resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Config {
    Cluster(Arc<ClusterSpec>),
    Endpoints(Arc<config::ClusterEndpoints>),
    Listener(Arc<config::Listener>),
    Route(Arc<config::RouteConfig>),
    Secret(Arc<config::Secret>),
}

/// What decode must know besides the bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct DecodeContext {
    providers: BTreeMap<String, CertificateProvider>,
    /// Addresses of the bootstrap's servers.
    servers: BTreeSet<Arc<str>>,
}

impl DecodeContext {
    pub(crate) fn new(providers: &BTreeMap<String, CertificateProvider>) -> Self {
        Self {
            providers: providers.clone(),
            servers: BTreeSet::new(),
        }
    }

    /// Whether `name` is what the bootstrap calls the roots of our own identity over SDS.
    pub(crate) fn is_own_trust_bundle(&self, name: &str) -> bool {
        let own = self.providers.get(IDENTITY_PROVIDER);
        own.and_then(CertificateProvider::trust_bundle) == Some(name)
    }

    /// The same, where resources may name these servers for load reports.
    pub(crate) fn with_servers<'s>(mut self, servers: impl Iterator<Item = &'s Server>) -> Self {
        self.servers = servers
            .map(|server| server.uri.to_string().into())
            .collect();
        self
    }

    /// The address of a known server, in its one spelling.
    fn server(&self, target: &str) -> Option<Arc<str>> {
        let uri = ServerUri::parse(target).ok()?.to_string();
        self.servers.get(&*uri).cloned()
    }
}

/// A refused resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// `None` when it cannot even be named.
    pub(crate) name: Option<String>,
    /// Why, at least one.
    pub(crate) errors: Vec<ConfigError>,
}

impl Rejected {
    /// All of it in one error.
    pub(crate) fn combined(&self, kind: Kind) -> ConfigError {
        let name = self.name.as_deref().unwrap_or("without a name");
        combine(&format!("{} {name}", kind.noun()), self.errors.clone())
    }
}

/// A valid resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Accepted {
    pub(crate) name: String,
    pub(crate) config: Config,
    /// Of this resource, or of the response it came in.
    pub(crate) version: Arc<str>,
    /// As received, for people and for storage.
    pub(crate) raw: Bytes,
    /// How long it may be used.
    pub(crate) ttl: Option<Duration>,
    /// Fields that are set and have no effect here.
    pub(crate) ignored: Vec<String>,
}

/// A response, resource by resource.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Decoded {
    pub(crate) accepted: Vec<Accepted>,
    pub(crate) rejected: Vec<Rejected>,
    /// Resources of which the response only says that they live, and for how much longer.
    pub(crate) heartbeats: Vec<(String, Option<Duration>)>,
    /// Every name in the response, of good and bad resources.
    pub(crate) present: BTreeSet<String>,
}

/// Decodes all resources of a response that `is_wanted`; the others are skipped silently.
pub(crate) fn decode_all(
    kind: Kind,
    resources: Vec<Raw>,
    context: &DecodeContext,
    is_wanted: impl Fn(&str) -> bool,
) -> Decoded {
    decode_new(kind, resources, context, is_wanted, &NothingKnown)
}

/// The same, but what was `known` before is taken from there.
pub(crate) fn decode_new(
    kind: Kind,
    resources: Vec<Raw>,
    context: &DecodeContext,
    is_wanted: impl Fn(&str) -> bool,
    known: &impl Known,
) -> Decoded {
    let mut decoded = Decoded::default();
    let mut twice = BTreeSet::new();
    for (i, resource) in resources.into_iter().enumerate() {
        let known_as = resource.name.clone();
        let guarded = AssertUnwindSafe(|| decode_one(kind, resource, context, &is_wanted, known));
        // A resource that finds a defect in decode must not take the process down.
        let outcome = catch_unwind(guarded).unwrap_or_else(|_| {
            let reason = "decoding it panicked; please report this";
            Outcome::Rejected(known_as, vec![unnamed(kind, reason)])
        });
        let name = match &outcome {
            Outcome::Skipped => continue,
            Outcome::Accepted(Accepted { name, .. })
            | Outcome::Heartbeat(name, _)
            | Outcome::Rejected(Some(name), _) => Some(name.clone()),
            Outcome::Rejected(None, _) => None,
        };
        if let Some(name) = &name
            && !decoded.present.insert(name.clone())
        {
            twice.insert(name.clone());
            continue;
        }
        match outcome {
            Outcome::Accepted(accepted) => decoded.accepted.push(accepted),
            Outcome::Heartbeat(name, ttl) => decoded.heartbeats.push((name, ttl)),
            Outcome::Rejected(name, mut errors) => {
                for error in &mut errors {
                    match &name {
                        None => error.resource = format!("{} at resources[{i}]", kind.noun()),
                        Some(name) => error.resource = format!("{} {name}", kind.noun()),
                    }
                }
                decoded.rejected.push(Rejected { name, errors });
            }
            Outcome::Skipped => {}
        }
    }
    for name in twice {
        decoded.accepted.retain(|accepted| accepted.name != name);
        decoded.heartbeats.retain(|(alive, _)| *alive != name);
        decoded
            .rejected
            .retain(|rejected| rejected.name.as_ref() != Some(&name));
        let reason = "is in the response twice";
        let errors = vec![ConfigError::new(
            format!("{} {name}", kind.noun()),
            "",
            reason,
        )];
        decoded.rejected.push(Rejected {
            name: Some(name),
            errors,
        });
    }
    decoded
}

enum Outcome {
    Skipped,
    Accepted(Accepted),
    Heartbeat(String, Option<Duration>),
    Rejected(Option<String>, Vec<ConfigError>),
}

fn unnamed(kind: Kind, reason: impl Into<String>) -> ConfigError {
    ConfigError::new(kind.noun(), "", reason)
}

fn decode_one(
    kind: Kind,
    raw: Raw,
    context: &DecodeContext,
    is_wanted: &impl Fn(&str) -> bool,
    known: &impl Known,
) -> Outcome {
    let Raw {
        name,
        aliases,
        version,
        ttl,
        body,
    } = raw;
    let any = match body {
        Ok(Some(any)) => any,
        Ok(None) => {
            return match name.filter(|name| is_wanted(name)) {
                Some(name) => Outcome::Heartbeat(name, ttl),
                None => Outcome::Skipped,
            };
        }
        Err(error) => return Outcome::Rejected(name, vec![error]),
    };
    if any.type_url != kind.type_url() {
        let reason = format!(
            "type_url is {:?}, expected {:?}",
            any.type_url,
            kind.type_url()
        );
        return Outcome::Rejected(name, vec![unnamed(kind, reason)]);
    }
    if let Some(hint) = known::first_name(&any.value)
        && aliases.is_empty()
        && name.as_ref().is_none_or(|name| name == hint)
        && is_wanted(hint)
        && let Some(same) = known.known(kind, hint, &any.value)
    {
        return Outcome::Accepted(Accepted {
            name: hint.to_owned(),
            config: same.config,
            version,
            raw: same.raw,
            ttl,
            ignored: same.ignored,
        });
    }
    let bytes = Bytes::from(any.value);
    match decode_body(kind, name, &aliases, &bytes, context, is_wanted) {
        Body::Skipped => Outcome::Skipped,
        Body::Rejected(name, errors) => Outcome::Rejected(name, errors),
        Body::Accepted(name, config, ignored) => Outcome::Accepted(Accepted {
            name,
            config,
            version,
            raw: bytes,
            ttl,
            ignored,
        }),
    }
}

enum Body {
    Skipped,
    Accepted(String, Config, Vec<String>),
    Rejected(Option<String>, Vec<ConfigError>),
}

fn decode_body(
    kind: Kind,
    wrapper: Option<String>,
    aliases: &[String],
    bytes: &[u8],
    context: &DecodeContext,
    is_wanted: &impl Fn(&str) -> bool,
) -> Body {
    let wanted_as = |name: &str| {
        let names = std::iter::once(name).chain(aliases.iter().map(String::as_str));
        names
            .into_iter()
            .find(|name| is_wanted(name))
            .map(str::to_owned)
    };
    match kind {
        Kind::Cluster => decode_as(
            kind,
            wrapper,
            bytes,
            wanted_as,
            parse::<ClusterProto>,
            |proto| &proto.name,
            |sink, proto| cluster::decode(sink, context, &proto).map(|c| Config::Cluster(c.into())),
        ),
        Kind::Endpoints => decode_as(
            kind,
            wrapper,
            bytes,
            wanted_as,
            endpoint::ClusterLoadAssignment::read,
            |proto| proto.cluster_name,
            |sink, proto| endpoint::decode(sink, proto).map(|c| Config::Endpoints(c.into())),
        ),
        Kind::Listener => decode_as(
            kind,
            wrapper,
            bytes,
            wanted_as,
            parse::<ListenerProto>,
            |proto| &proto.name,
            |sink, proto| {
                listener::decode(sink, context, &proto).map(|c| Config::Listener(c.into()))
            },
        ),
        Kind::Route => decode_as(
            kind,
            wrapper,
            bytes,
            wanted_as,
            parse::<RouteProto>,
            |proto| &proto.name,
            |sink, proto| {
                route::decode(sink, route::Side::Client, &proto).map(|c| Config::Route(c.into()))
            },
        ),
        Kind::Secret => decode_as(
            kind,
            wrapper,
            bytes,
            wanted_as,
            parse::<SecretProto>,
            |proto| &proto.name,
            |sink, proto| security::secret::decode(sink, &proto).map(|c| Config::Secret(c.into())),
        ),
    }
}

/// Reads a generated message; the error is prost's.
fn parse<P: Message + Default>(bytes: &[u8]) -> Result<P, String> {
    P::decode(bytes).map_err(|error| error.to_string())
}

fn decode_as<'a, P: 'a>(
    kind: Kind,
    wrapper: Option<String>,
    bytes: &'a [u8],
    wanted_as: impl Fn(&str) -> Option<String>,
    parse: impl FnOnce(&'a [u8]) -> Result<P, String>,
    name_of: impl Fn(&P) -> &str,
    decode: impl FnOnce(&mut Sink, P) -> Option<Config>,
) -> Body {
    let proto = match parse(bytes) {
        Ok(proto) => proto,
        Err(e) => {
            let error = unnamed(kind, format!("cannot be parsed: {e}"));
            return Body::Rejected(wrapper, vec![error]);
        }
    };
    let name = canonical(name_of(&proto).to_owned());
    if name.is_empty() {
        return Body::Rejected(wrapper, vec![unnamed(kind, "has no name")]);
    }
    if let Some(outer) = wrapper.filter(|outer| *outer != name) {
        let reason = format!("is wrapped under another name, {outer:?}");
        let error = ConfigError::new(format!("{} {name}", kind.noun()), "", reason);
        return Body::Rejected(Some(name), vec![error]);
    }
    let Some(name) = wanted_as(&name) else {
        return Body::Skipped;
    };
    let mut sink = Sink::new(format!("{} {name}", kind.noun()));
    let value = decode(&mut sink, proto);
    match sink.finish(value) {
        Ok((config, ignored)) => Body::Accepted(name, config, ignored),
        Err(errors) => Body::Rejected(Some(name), errors),
    }
}

/// What the client makes of a route configuration in protobuf (`RouteConfiguration`), and the fields
/// of it that are set and have no effect. For tools that explain or compare; the client itself
/// decodes what it subscribes to.
///
/// # Errors
/// Why it would be refused, each with its field's path.
pub fn decode_route_config(
    bytes: &[u8],
) -> Result<(config::RouteConfig, Vec<String>), Vec<ConfigError>> {
    let proto = RouteProto::decode(bytes)
        .map_err(|e| vec![unnamed(Kind::Route, format!("cannot be parsed: {e}"))])?;
    let mut sink = Sink::new(format!("{} {}", Kind::Route.noun(), proto.name));
    let value = route::decode(&mut sink, route::Side::Client, &proto);
    sink.finish(value)
}

/// What the client makes of an authorisation filter in protobuf (`envoy.extensions.filters.http.rbac.v3.RBAC`);
/// `None` is one without rules. For tools that explain or compare.
///
/// # Errors
/// Why it would be refused, each with its field's path.
pub fn decode_rbac_filter(bytes: &[u8]) -> Result<Option<config::Rbac>, Vec<ConfigError>> {
    let mut sink = Sink::new("authorisation filter");
    let value = match RbacProto::decode(bytes) {
        Ok(proto) => security::rbac::decode_filter(&mut sink, &proto),
        Err(error) => sink.error(format!("cannot be parsed: {error}")),
    };
    sink.finish(value).map(|(rules, _)| rules)
}
