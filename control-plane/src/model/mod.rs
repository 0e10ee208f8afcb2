//! The operator's objects, one type per kind, as they are written.
//!
//! Which fields there are is in docs/config-fields.md: `source` compares every object with it, so that
//! fields which are not here are never passed over in silence. What the fields mean together is
//! compile's.

/// A type that is read from YAML: what is absent is the default, and names are in camel case.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
    };
}

mod authorization;
mod consul;
mod destination_rule;
pub mod gateway;
mod intentions;
mod istio;
mod kubernetes;
mod mesh;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::Deserialize;

use crate::{
    class::Classes,
    diagnostic::{CLASS_LIMIT, Diagnostic, Severity},
};

pub use authorization::{
    AuthorizationPolicy, ClaimToHeader, Condition, From, JwtHeader, JwtRule, Operation,
    ProviderRef, RequestAuthentication, Rule, Source, TargetRef, To,
};
pub use consul::{
    ResolverBalancer, ResolverFailover, ResolverHash, ResolverRedirect, ResolverSubset,
    RouterDestination, RouterHttpMatch, RouterMatch, RouterParameter, RouterRoute, RouterText,
    ServiceResolver, ServiceRouter, ServiceSplitter, Split,
};
pub use destination_rule::{
    BudgetSpec, ClientSelector, ConnectionPool, ConsistentHash, DestinationRule, LoadBalancer,
    LocalityLbSpec, OutlierSpec, PingSpec, PortPolicy, Subset, TlsSpec, TrafficPolicy,
};
pub use intentions::{
    IntentionDestination, IntentionHttp, IntentionPermission, IntentionSource, ServiceIntentions,
};
pub use istio::{
    CorsSpec, DelegateRef, FaultSpec, HeaderOperations, HeadersSpec, HttpDirectResponse, HttpMatch,
    HttpRedirect, HttpRewrite, HttpRoute, Mtls, PeerAuthentication, Percent, Retries,
    RouteDestination, Selector, ServiceEntry, ServiceEntryPort, Sidecar, StringMatch,
    VirtualService, Weighted, WorkloadEntry,
};
pub use kubernetes::{EndpointSlice, Service, ServicePort, SliceEndpoint, TargetReference};
pub use mesh::{
    BalancerPolicy, ExtAuthzGrpc, ExtensionProvider, HedgePolicy, MeshPolicy, PeakEwmaSpec,
    PrequalSpec, RateLimit, RateLimitMatch, RateLimitPer, RateLimitRule,
};

/// Namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What an object is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// `metadata` of an object. Other fields of it mean nothing to the mesh.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace; default `default`.
    pub namespace: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was made, in RFC 3339; the older of two that contradict each other wins.
    pub creation_timestamp: Option<String>,
}

/// Where an object is written.
#[derive(Clone, Debug)]
pub struct Place {
    /// File.
    pub file: Arc<str>,
    /// Line of its first line, from 1.
    pub line: usize,
    /// Its text.
    pub text: Arc<str>,
}

impl Place {
    /// The line of a field, as near as the text tells: each part is looked for behind the one
    /// before it, and `[n]` is the n-th item of the list that begins there.
    pub fn line_of(&self, field: &str) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let mut at = 0;
        for part in field.split('.') {
            let (name, index) = match part.split_once('[') {
                Some((name, index)) => (name, index.trim_end_matches(']').parse().ok()),
                None => (part, None),
            };
            let Some(found) = lines[at..].iter().position(|line| has_key(line, name)) else {
                break;
            };
            at += found;
            if let Some(index) = index {
                at = item(&lines, at, index).unwrap_or(at);
            }
        }
        self.line + at
    }
}

/// Whether a line has the key `name`, plain or quoted.
fn has_key(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + name.len()..].trim_start_matches(['"', '\'']);
        after.starts_with(':') && !before.is_some_and(|c| c.is_alphanumeric() || "-_./".contains(c))
    })
}

/// The line of item `index` of the list behind the key at line `at`.
fn item(lines: &[&str], at: usize, index: usize) -> Option<usize> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_item = |line: &str| line.trim_start().starts_with("- ");
    let first = (at + 1..lines.len()).find(|i| !lines[*i].trim().is_empty())?;
    let depth = indent(lines[first]);
    if !is_item(lines[first]) {
        return None;
    }
    let mut items = (first..lines.len())
        .take_while(|i| lines[*i].trim().is_empty() || indent(lines[*i]) >= depth)
        .filter(|i| indent(lines[*i]) == depth && is_item(lines[*i]));
    items.nth(index)
}

/// An object and where it is from.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it is called.
    pub key: ObjectKey,
    /// Its metadata.
    pub metadata: Metadata,
    /// Where it is written.
    pub place: Place,
    /// What it says.
    pub spec: Spec,
    /// What only some classes of clients honour.
    pub limits: Vec<Limit>,
    /// Fields of routes that cannot be served; requests that such a route takes fail.
    pub refused: Vec<String>,
}

/// A field that only some classes of clients honour.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Those that do.
    pub honoured_by: Classes,
    /// The field.
    pub field: String,
    /// What happens with the others; may be empty.
    pub note: String,
}

impl Object {
    /// What clients of `classes` do not honour.
    pub fn limits_for(&self, classes: &Classes) -> impl Iterator<Item = Diagnostic> {
        self.limits.iter().filter_map(move |limit| {
            let others: Vec<_> = classes.difference(&limit.honoured_by).collect();
            if others.is_empty() {
                return None;
            }
            let names: Vec<_> = others.iter().map(ToString::to_string).collect();
            let message = format!("clients of {} do not honour this", names.join(", "));
            Some(Diagnostic {
                severity: Severity::Warning,
                ..self.diagnose(CLASS_LIMIT, &limit.field, message, &limit.note)
            })
        })
    }

    /// A finding about this object.
    pub fn diagnose(
        &self,
        code: &'static str,
        field: &str,
        message: impl Into<String>,
        help: &str,
    ) -> Diagnostic {
        Diagnostic {
            code,
            severity: Severity::Error,
            file: self.place.file.to_string(),
            line: self.place.line_of(field),
            object: self.key.to_string(),
            field: field.to_owned(),
            message: message.into(),
            help: help.to_owned(),
        }
    }
}

/// What an object says.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "an object is behind a pointer of its own, and few are moved"
)]
pub enum Spec {
    /// Kubernetes Service.
    Service(Service),
    /// Kubernetes EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// Istio ServiceEntry.
    ServiceEntry(ServiceEntry),
    /// Istio WorkloadEntry.
    WorkloadEntry(WorkloadEntry),
    /// Our own balancers.
    BalancerPolicy(BalancerPolicy),
    /// Istio VirtualService.
    VirtualService(VirtualService),
    /// Gateway API HTTPRoute.
    HttpRoute(gateway::HttpRoute),
    /// Gateway API GRPCRoute.
    GrpcRoute(gateway::GrpcRoute),
    /// Gateway API XBackendTrafficPolicy.
    BackendTrafficPolicy(gateway::BackendTrafficPolicy),
    /// Istio Sidecar.
    Sidecar(Sidecar),
    /// Gateway API ReferenceGrant.
    ReferenceGrant(gateway::ReferenceGrant),
    /// Our RateLimit.
    RateLimit(RateLimit),
    /// Consul service-router.
    ServiceRouter(ServiceRouter),
    /// Consul service-splitter.
    ServiceSplitter(ServiceSplitter),
    /// Consul service-resolver.
    ServiceResolver(ServiceResolver),
    /// Istio DestinationRule.
    DestinationRule(DestinationRule),
    /// Istio PeerAuthentication.
    PeerAuthentication(PeerAuthentication),
    /// Our HedgePolicy.
    HedgePolicy(HedgePolicy),
    /// Istio AuthorizationPolicy.
    AuthorizationPolicy(AuthorizationPolicy),
    /// Istio RequestAuthentication.
    RequestAuthentication(RequestAuthentication),
    /// Consul service-intentions.
    ServiceIntentions(ServiceIntentions),
    /// Our MeshPolicy.
    MeshPolicy(MeshPolicy),
    /// A security object that cannot be read: what these labels select is closed.
    Unreadable(BTreeMap<String, String>),
}

/// Kinds whose loss would open what they close.
pub const SECURITY_KINDS: [&str; 5] = [
    "PeerAuthentication",
    "AuthorizationPolicy",
    "RequestAuthentication",
    "ServiceIntentions",
    "MeshPolicy",
];

/// All objects, by key.
pub type ObjectSet = BTreeMap<ObjectKey, Arc<Object>>;
