//! What servers ask of connections and requests.
//!
//! PeerAuthentication: the port beats the workload beats the namespace beats the mesh; unset is
//! PERMISSIVE, as in Istio. Requests: the path is normalised, tokens are verified, then providers are
//! asked about what CUSTOM rules match, then AUDIT, DENY and ALLOW rules; as soon as one ALLOW policy or intention is for a workload, or the mesh
//! denies by default, what none allows is refused. Objects that cannot be used close what they select.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use mesh_core::config::{
    CertificateSource, ChainMatch, DownstreamTls, ExtAuthz, FilterChain, FilterConfig, HttpFilter,
    InboundListener, JwtAuthn, JwtProvider, Listener, ListenerKind, MetadataMatcher, Rbac,
    RbacAction, RbacPolicy, Route, RouteAction, RouteConfig, RouteMatch, RouteSource,
    SELECTION_PREFIX, ShadowRules, StringMatcher, StringPattern, TransportMatch, TrustSource,
    ValueMatcher, VirtualHost,
};

use super::{
    CompileOptions,
    authorization::{self, Authorization, closed_for_all},
    intentions::{self, Intentions},
    mesh_policy::{self, MeshWide},
    provider_loop,
    providers::{self, Providers},
    request_auth,
    services::ServiceInfo,
};
use crate::{
    diagnostic::{Diagnostic, FAILS_CLOSED},
    model::{Mtls, Object, ObjectKey, ObjectSet, PeerAuthentication, SECURITY_KINDS, Spec},
};

/// Name of the filter that verifies tokens.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";

/// Names of rules that select what a provider decides begin with this, as in Istio.
const SELECTED: &str = "istio-ext-authz-";

type Labels = BTreeMap<String, String>;

/// What a server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MtlsMode {
    /// Plaintext alone.
    Disable,
    /// Both on one port.
    Permissive,
    /// mTLS alone.
    Strict,
}

/// All security objects, ready to be asked about a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SecurityPolicies {
    root_namespace: String,
    authentication: Vec<Scoped<Authentication>>,
    authorization: Vec<Scoped<Authorization>>,
    tokens: Vec<Scoped<Vec<JwtProvider>>>,
    intentions: Intentions,
    mesh: MeshWide,
}

/// Something for the workloads that it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scoped<T> {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) labels: Labels,
    /// Only workloads of these services, by full name; `None` for all.
    pub(super) services: Option<BTreeSet<String>>,
    pub(super) value: T,
}

/// The workload that a server is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) namespace: String,
    pub(super) labels: Labels,
    /// Full names of the services that it is part of.
    pub(super) services: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Authentication {
    mode: Option<MtlsMode>,
    /// Nobody knows what it says: STRICT, whatever else is said.
    is_closed: bool,
    ports: BTreeMap<u16, Option<MtlsMode>>,
}

impl<T> Scoped<T> {
    /// Whether it is about a workload, its services considered.
    pub(super) fn is_for(&self, root: &str, workload: &Judged) -> bool {
        let is_of = |services: &BTreeSet<String>| !services.is_disjoint(&workload.services);
        self.selects(root, &workload.namespace, &workload.labels)
            && self.services.as_ref().is_none_or(is_of)
    }

    fn selects(&self, root: &str, namespace: &str, labels: &Labels) -> bool {
        (self.namespace == namespace || self.namespace == root)
            && self
                .labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    }

    /// The narrower, the larger.
    fn narrowness(&self, root: &str) -> u8 {
        u8::from(self.namespace != root) + 2 * u8::from(!self.labels.is_empty())
    }
}

impl SecurityPolicies {
    pub(super) fn collect(
        objects: &ObjectSet,
        services: &BTreeMap<String, ServiceInfo>,
        options: &CompileOptions,
        findings: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut policies = Self {
            root_namespace: options.root_namespace.clone(),
            ..Self::default()
        };
        let names = |object: &Object, host: &str| -> Option<String> {
            let namespace = &object.key.namespace;
            let found = super::services::find(services, host, namespace, &options.cluster_domain);
            Some(found?.fqdn.clone())
        };
        let mut providers = Providers::new();
        for object in objects.values() {
            if let Spec::MeshPolicy(spec) = &object.spec {
                let domain = &options.cluster_domain;
                providers::add(&mut providers, object, spec, services, domain, findings);
            }
        }
        for object in objects.values() {
            match &object.spec {
                Spec::PeerAuthentication(spec) => {
                    policies
                        .authentication
                        .push(authentication(object, spec, findings));
                }
                Spec::AuthorizationPolicy(spec) => {
                    let scoped = authorization::compile(
                        object,
                        spec,
                        (options, &providers),
                        &names,
                        findings,
                    );
                    let root = &options.root_namespace;
                    findings.extend(provider_loop::find(object, &scoped, services, root));
                    policies.authorization.push(scoped);
                }
                Spec::RequestAuthentication(spec) => {
                    match request_auth::compile(object, spec, options, &names, findings) {
                        Ok(scoped) => policies.tokens.push(scoped),
                        Err(closed) => policies.authorization.push(*closed),
                    }
                }
                Spec::ServiceIntentions(spec) => {
                    let (found, closed) =
                        intentions::compile(object, spec, options, &names, findings);
                    policies.intentions.extend(found);
                    policies.authorization.extend(closed);
                }
                Spec::MeshPolicy(spec) => {
                    policies
                        .mesh
                        .add(mesh_policy::compile(object, spec, findings));
                }
                Spec::Unreadable(_) if object.key.kind == "MeshPolicy" => {
                    policies.mesh.add(MeshWide::closed());
                }
                Spec::Unreadable(labels) if object.key.kind == "PeerAuthentication" => {
                    let value = Authentication {
                        mode: Some(MtlsMode::Strict),
                        is_closed: true,
                        ports: BTreeMap::new(),
                    };
                    policies
                        .authentication
                        .push(scoped(object, labels.clone(), value));
                }
                Spec::Unreadable(labels) => {
                    policies
                        .authorization
                        .push(scoped(object, labels.clone(), closed_for_all()));
                }
                _ => {}
            }
        }
        policies
    }

    /// The mode of a port of a workload.
    pub(super) fn mode(&self, namespace: &str, labels: &Labels, port: u16) -> MtlsMode {
        let root = &self.root_namespace;
        let mut found: Vec<_> = self
            .authentication
            .iter()
            .filter(|scoped| scoped.selects(root, namespace, labels))
            .collect();
        if found.iter().any(|scoped| scoped.value.is_closed) {
            return MtlsMode::Strict;
        }
        found.sort_by_key(|scoped| scoped.narrowness(root));
        // Ports first, then from the narrowest to the widest; unset inherits.
        let by_port = found
            .iter()
            .rev()
            .find_map(|scoped| *scoped.value.ports.get(&port)?);
        let by_scope = || found.iter().rev().find_map(|scoped| scoped.value.mode);
        by_port.or_else(by_scope).unwrap_or(MtlsMode::Permissive)
    }

    /// The objects that hold for a workload.
    pub(super) fn objects(&self, workload: &Judged) -> Vec<ObjectKey> {
        fn keys<T>(list: &[Scoped<T>], root: &str, workload: &Judged) -> Vec<ObjectKey> {
            let found = list.iter().filter(|scoped| scoped.is_for(root, workload));
            let key = |scoped: &Scoped<T>| ObjectKey {
                kind: scoped.kind.to_owned(),
                namespace: scoped.namespace.clone(),
                name: scoped.name.clone(),
            };
            found.map(key).collect()
        }
        let root = &self.root_namespace;
        let mut all = keys(&self.authentication, root, workload);
        all.extend(keys(&self.tokens, root, workload));
        all.extend(keys(&self.authorization, root, workload));
        all.extend(self.intentions.objects(workload));
        all
    }

    pub(super) fn inbound_listener(
        &self,
        requested: &str,
        address: SocketAddr,
        workload: &Judged,
        limit: Option<HttpFilter>,
    ) -> Listener {
        // Who may not call is not counted.
        let mut filters = self.checks(workload);
        filters.extend(HttpFilter::of_rbac(&self.rbac(workload)));
        if let Some(tokens) = self.jwt(workload) {
            // Rules are about what tokens say.
            let tokens = FilterConfig::JwtAuthn(tokens);
            filters.insert(0, HttpFilter::new(JWT_FILTER, tokens));
        }
        filters.extend(limit);
        let chain = |name: &str, transport, tls| FilterChain {
            name: name.into(),
            transport,
            matches: ChainMatch::default(),
            tls,
            path_normalization: self.mesh.path_normalization(),
            client_cert: mesh_core::config::ForwardClientCert::default(),
            limits: mesh_core::config::HttpLimits::default(),
            filters: filters.clone(),
            routes: serve_everything(),
        };
        let mtls = || {
            Some(DownstreamTls {
                identity: CertificateSource::Provider {
                    instance: "default".into(),
                },
                roots: Some(TrustSource::Sds("ROOTCA".into())),
                require_client_certificate: true,
            })
        };
        let filter_chains = match self.mode(&workload.namespace, &workload.labels, address.port()) {
            MtlsMode::Strict => vec![chain("mtls", TransportMatch::Tls, mtls())],
            MtlsMode::Disable => vec![chain("plaintext", TransportMatch::Any, None)],
            MtlsMode::Permissive => vec![
                chain("mtls", TransportMatch::Tls, mtls()),
                chain("plaintext", TransportMatch::RawBuffer, None),
            ],
        };
        let inbound = InboundListener {
            address: Some(address),
            filter_chains,
        };
        Listener {
            name: requested.into(),
            kind: ListenerKind::Inbound(inbound),
        }
    }

    /// Whose tokens a workload believes.
    fn jwt(&self, workload: &Judged) -> Option<Arc<JwtAuthn>> {
        let selected = self.tokens.iter();
        let selected = selected.filter(|scoped| scoped.is_for(&self.root_namespace, workload));
        let providers: Vec<_> = selected.flat_map(|scoped| scoped.value.clone()).collect();
        (!providers.is_empty()).then(|| Arc::new(JwtAuthn { providers }))
    }

    /// What providers decide: for each, rules that select the requests, and the question. As Istio has
    /// it for Envoy, where the rules say in the metadata what they match.
    fn checks(&self, workload: &Judged) -> Vec<HttpFilter> {
        let mut rules: BTreeMap<&str, (&Arc<ExtAuthz>, BTreeMap<String, RbacPolicy>)> =
            BTreeMap::new();
        for scoped in &self.authorization {
            let Some((name, provider)) = &scoped.value.provider else {
                continue;
            };
            if scoped.is_for(&self.root_namespace, workload) {
                let (_, policies) = rules.entry(name).or_insert((provider, BTreeMap::new()));
                let named = named_rules(scoped).into_iter();
                policies.extend(named.map(|(name, rule)| (format!("{SELECTED}{name}"), rule)));
            }
        }
        let is_only = rules.len() == 1;
        let filters = rules
            .into_iter()
            .filter(|(_, (_, rules))| !rules.is_empty());
        let filters = filters.flat_map(|(name, (provider, policies))| {
            let stat_prefix = match is_only {
                true => SELECTION_PREFIX.to_owned(),
                false => format!("{SELECTION_PREFIX}{name}_"),
            };
            let is_selected = MetadataMatcher::new(
                "envoy.filters.http.rbac",
                [format!("{stat_prefix}shadow_effective_policy_id")],
                ValueMatcher::String(StringMatcher {
                    pattern: StringPattern::Prefix(SELECTED.to_owned()),
                    ignore_case: false,
                }),
            );
            let selection = Rbac {
                shadow: Some(Box::new(ShadowRules {
                    stat_prefix,
                    action: RbacAction::Deny,
                    policies,
                })),
                ..Rbac::without_rules()
            };
            let question = ExtAuthz {
                enabled_metadata: Some(is_selected),
                ..ExtAuthz::clone(provider)
            };
            [
                HttpFilter::new(
                    format!("envoy.filters.http.rbac.{name}"),
                    FilterConfig::Rbac(Some(selection)),
                ),
                HttpFilter::new(
                    format!("envoy.filters.http.ext_authz.{name}"),
                    FilterConfig::ExtAuthz(question.into()),
                ),
            ]
        });
        filters.collect()
    }

    fn rbac(&self, workload: &Judged) -> Vec<Rbac> {
        let mut filters = Vec::new();
        let intended = self.intentions.policies(workload);
        for action in [RbacAction::Log, RbacAction::Deny, RbacAction::Allow] {
            let selected: Vec<_> = self
                .authorization
                .iter()
                .filter(|scoped| scoped.value.action == action)
                .filter(|scoped| scoped.value.provider.is_none())
                .filter(|scoped| scoped.is_for(&self.root_namespace, workload))
                .collect();
            let rules = |is_dry_run: bool| -> BTreeMap<String, RbacPolicy> {
                let scoped = selected.iter();
                let scoped = scoped.filter(|scoped| scoped.value.is_dry_run == is_dry_run);
                scoped.flat_map(|scoped| named_rules(scoped)).collect()
            };
            let mut policies = rules(false);
            let is_enforced = selected.iter().any(|scoped| !scoped.value.is_dry_run);
            // Without any rule DENY and AUDIT match nothing, and ALLOW allows nothing.
            let mut decides = !policies.is_empty() || is_enforced && action == RbacAction::Allow;
            match (action, &intended) {
                (RbacAction::Deny, Some(intended)) => policies.extend(intended.deny.clone()),
                (RbacAction::Allow, Some(intended)) => {
                    policies.extend(intended.allow.clone());
                    decides |= intended.allows;
                }
                _ => {}
            }
            decides |= !policies.is_empty();
            decides |= action == RbacAction::Allow && self.mesh.default_deny;
            let shadow = selected.iter().any(|scoped| scoped.value.is_dry_run);
            let shadow = shadow.then(|| {
                Box::new(ShadowRules {
                    stat_prefix: String::new(),
                    action,
                    policies: rules(true),
                })
            });
            if decides {
                let rules = Rbac::new(action, policies);
                filters.push(Rbac { shadow, ..rules });
            } else if shadow.is_some() {
                let rules = Rbac::without_rules();
                filters.push(Rbac { shadow, ..rules });
            }
        }
        filters
    }
}

fn named_rules(scoped: &Scoped<Authorization>) -> Vec<(String, RbacPolicy)> {
    let rules = scoped.value.rules.iter().enumerate();
    let named = rules.map(|(index, rule)| {
        let name = format!("{}/{}[{index}]", scoped.namespace, scoped.name);
        (name, rule.clone())
    });
    named.collect()
}

pub(super) fn scoped<T>(object: &Object, labels: Labels, value: T) -> Scoped<T> {
    let (name, namespace) = (object.key.name.clone(), object.key.namespace.clone());
    let mut kinds = SECURITY_KINDS.into_iter();
    let kind = kinds.find(|kind| *kind == object.key.kind);
    Scoped {
        kind: kind.unwrap_or("AuthorizationPolicy"),
        name,
        namespace,
        labels,
        services: None,
        value,
    }
}

fn serve_everything() -> RouteSource {
    let route = Route::new("", RouteMatch::any(), RouteAction::NonForwarding);
    let host = VirtualHost::new("inbound", ["*"], vec![route]);
    RouteSource::Inline(Arc::new(RouteConfig::new("inbound", vec![host])))
}

fn authentication(
    object: &Object,
    spec: &PeerAuthentication,
    findings: &mut Vec<Diagnostic>,
) -> Scoped<Authentication> {
    let mut read = |field: &str, mtls: &Mtls| match mtls.mode.as_deref() {
        None | Some("UNSET") => None,
        Some("DISABLE") => Some(MtlsMode::Disable),
        Some("PERMISSIVE") => Some(MtlsMode::Permissive),
        Some("STRICT") => Some(MtlsMode::Strict),
        Some(other) => {
            let message = format!("{other:?} is not a mode: STRICT is used");
            let help = "write STRICT, PERMISSIVE or DISABLE";
            findings.push(object.diagnose(FAILS_CLOSED, field, message, help));
            Some(MtlsMode::Strict)
        }
    };
    let mode = spec
        .mtls
        .as_ref()
        .and_then(|mtls| read("spec.mtls.mode", mtls));
    let (mut ports, mut wrong_ports) = (BTreeMap::new(), Vec::new());
    for (port, mtls) in &spec.port_level_mtls {
        let mode = read(&format!("spec.portLevelMtls.{port}.mode"), mtls);
        match port.parse() {
            Ok(port) => drop(ports.insert(port, mode)),
            Err(_) => wrong_ports.push(port),
        }
    }
    for port in &wrong_ports {
        let field = format!("spec.portLevelMtls.{port}");
        let message = format!("{port:?} is not a port: STRICT is used for all");
        findings.push(object.diagnose(FAILS_CLOSED, &field, message, ""));
    }
    let labels = spec.selector.clone().unwrap_or_default().match_labels;
    let value = Authentication {
        mode,
        is_closed: !wrong_ports.is_empty(),
        ports,
    };
    scoped(object, labels, value)
}
