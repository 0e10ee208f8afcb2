//! What servers ask of connections and requests.
//!
//! PeerAuthentication: the port beats the workload beats the namespace beats the mesh; unset is
//! PERMISSIVE, as in Istio. AuthorizationPolicy: AUDIT, then DENY, then ALLOW; as soon as one ALLOW
//! policy selects a workload, what none allows is refused. Objects that cannot be used close what
//! they select.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use mesh_core::config::{
    CertificateSource, DownstreamTls, FilterChain, HttpFilter, InboundListener, Listener,
    ListenerKind, Rbac, RbacAction, RbacPolicy, Route, RouteAction, RouteConfig, RouteMatch,
    RouteSource, TransportMatch, TrustSource, VirtualHost,
};

use super::{
    CompileOptions,
    rules::{anything, compile_rule},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, FAILS_CLOSED, Severity},
    model::{AuthorizationPolicy, Mtls, Object, ObjectKey, ObjectSet, PeerAuthentication, Spec},
};

type Labels = BTreeMap<String, String>;

/// Istio's annotation of policies that are only logged.
const DRY_RUN: &str = "istio.io/dry-run";

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
}

/// Something for the workloads that it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scoped<T> {
    name: String,
    namespace: String,
    labels: Labels,
    value: T,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Authentication {
    mode: Option<MtlsMode>,
    /// Nobody knows what it says: STRICT, whatever else is said.
    is_closed: bool,
    ports: BTreeMap<u16, Option<MtlsMode>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Authorization {
    action: RbacAction,
    rules: Vec<RbacPolicy>,
}

impl<T> Scoped<T> {
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
        options: &CompileOptions,
        findings: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut policies = Self {
            root_namespace: options.root_namespace.clone(),
            ..Self::default()
        };
        for object in objects.values() {
            match &object.spec {
                Spec::PeerAuthentication(spec) => {
                    policies
                        .authentication
                        .push(authentication(object, spec, findings));
                }
                Spec::AuthorizationPolicy(spec) => {
                    policies
                        .authorization
                        .push(authorization(object, spec, options, findings));
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
    pub(super) fn objects(&self, namespace: &str, labels: &Labels) -> Vec<ObjectKey> {
        let root = &self.root_namespace;
        let key = |kind: &str, name: &str, namespace: &str| ObjectKey {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let selected = |scoped: &&Scoped<Authentication>| scoped.selects(root, namespace, labels);
        let authentication = self.authentication.iter().filter(selected);
        let authentication =
            authentication.map(|scoped| key("PeerAuthentication", &scoped.name, &scoped.namespace));
        let selected = |scoped: &&Scoped<Authorization>| scoped.selects(root, namespace, labels);
        let authorization = self.authorization.iter().filter(selected);
        let authorization =
            authorization.map(|scoped| key("AuthorizationPolicy", &scoped.name, &scoped.namespace));
        authentication.chain(authorization).collect()
    }

    pub(super) fn inbound_listener(
        &self,
        requested: &str,
        address: SocketAddr,
        namespace: &str,
        labels: &Labels,
    ) -> Listener {
        let rbac = self.rbac(namespace, labels);
        let chain = |name: &str, transport, tls| FilterChain {
            name: name.into(),
            transport,
            tls,
            filters: HttpFilter::of_rbac(&rbac),
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
        let filter_chains = match self.mode(namespace, labels, address.port()) {
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

    fn rbac(&self, namespace: &str, labels: &Labels) -> Vec<Rbac> {
        let mut filters = Vec::new();
        for action in [RbacAction::Log, RbacAction::Deny, RbacAction::Allow] {
            let selected: Vec<_> = self
                .authorization
                .iter()
                .filter(|scoped| scoped.value.action == action)
                .filter(|scoped| scoped.selects(&self.root_namespace, namespace, labels))
                .collect();
            if selected.is_empty() {
                continue;
            }
            let mut policies = BTreeMap::new();
            for scoped in selected {
                for (index, rule) in scoped.value.rules.iter().enumerate() {
                    let name = format!("{}/{}[{index}]", scoped.namespace, scoped.name);
                    policies.insert(name, rule.clone());
                }
            }
            // Without any rule DENY and AUDIT match nothing, and ALLOW allows nothing.
            if action == RbacAction::Allow || !policies.is_empty() {
                filters.push(Rbac { action, policies });
            }
        }
        filters
    }
}

fn scoped<T>(object: &Object, labels: Labels, value: T) -> Scoped<T> {
    let (name, namespace) = (object.key.name.clone(), object.key.namespace.clone());
    Scoped {
        name,
        namespace,
        labels,
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

fn authorization(
    object: &Object,
    spec: &AuthorizationPolicy,
    options: &CompileOptions,
    findings: &mut Vec<Diagnostic>,
) -> Scoped<Authorization> {
    let labels = spec.selector.clone().unwrap_or_default().match_labels;
    if object
        .metadata
        .annotations
        .get(DRY_RUN)
        .is_some_and(|value| value == "true")
    {
        let field = format!("metadata.annotations.{DRY_RUN}");
        findings.push(Diagnostic {
            severity: Severity::Warning,
            ..object.diagnose(
                BAD_VALUE,
                &field,
                "there is no dry run: the policy is enforced",
                "",
            )
        });
    }
    let mut closed = |field: &str, message: String, help: &str| {
        findings.push(object.diagnose(FAILS_CLOSED, field, message, help));
    };
    let action = match spec.action.as_deref() {
        None | Some("ALLOW") => RbacAction::Allow,
        Some("DENY") => RbacAction::Deny,
        Some("AUDIT") => RbacAction::Log,
        Some(other) => {
            let help = "write ALLOW, DENY or AUDIT";
            closed(
                "spec.action",
                format!("{other:?} is not supported: its target is closed"),
                help,
            );
            return scoped(object, labels, closed_for_all());
        }
    };
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        match compile_rule(rule, options) {
            Ok(policy) => rules.push(policy),
            Err((part, message)) => {
                let field = format!("spec.rules[{index}].{part}");
                findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
                // A broken ALLOW rule allows nothing; a broken DENY rule refuses everything.
                if action == RbacAction::Deny {
                    rules.push(anything());
                }
            }
        }
    }
    scoped(object, labels, Authorization { action, rules })
}

/// Refuses everything, whatever other policies allow: nobody knows what this one would refuse.
fn closed_for_all() -> Authorization {
    Authorization {
        action: RbacAction::Deny,
        rules: vec![anything()],
    }
}
