//! Consul's service-intentions: who may call a service.
//!
//! Of all intentions for a service the most specific decides: an exact destination before `*`, then
//! an exact source before `*`. Consul gives a service and its service account the same name, so that
//! a source is `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/NAME`. A service with an intention that allows
//! refuses whom none allows; with denials alone everybody else passes, unless the mesh denies by
//! default (in Consul: the default of its ACLs).

use std::collections::BTreeMap;

use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, Permission, Principal, RbacPolicy, Regex, StringMatcher,
    StringPattern,
};

use super::{
    CompileOptions,
    authorization::{Authorization, closed_namespace},
    consul::predicate,
    security::{Judged, Scoped},
    services,
    target::Names,
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{IntentionHttp, IntentionSource, Object, ObjectKey, ServiceIntentions},
};

/// All intentions of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intentions {
    all: Vec<Intention>,
}

/// What one source may do with one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Intention {
    object: ObjectKey,
    /// `None` is every service of the namespace.
    service: Option<String>,
    /// Of the destination; `None` is every one.
    namespace: Option<String>,
    name: String,
    source: SourceName,
    /// The first that matches decides.
    permissions: Vec<(bool, Permission)>,
}

/// Names that a source stands for; the most specific first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SourceName {
    Account(String),
    Namespace(String),
    Anybody,
}

/// What the intentions for a workload say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intended {
    pub(super) allow: BTreeMap<String, RbacPolicy>,
    pub(super) deny: BTreeMap<String, RbacPolicy>,
    /// Whether any allows, so that what none allows is refused.
    pub(super) allows: bool,
}

impl Intention {
    fn is_for(&self, workload: &Judged) -> bool {
        let is_there = self.namespace.as_ref();
        is_there.is_none_or(|namespace| *namespace == workload.namespace)
            && match &self.service {
                Some(service) => workload.services.contains(service),
                None => true,
            }
    }

    /// The more specific, the smaller.
    fn precedence(&self) -> (bool, bool, &SourceName) {
        (
            self.service.is_none(),
            self.namespace.is_none(),
            &self.source,
        )
    }
}

impl SourceName {
    /// Whether all that the other stands for is inside of this.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anybody, _) => true,
            (Self::Namespace(prefix), Self::Account(name) | Self::Namespace(name)) => {
                name.starts_with(prefix.as_str())
            }
            (Self::Account(a), Self::Account(b)) => a == b,
            _ => false,
        }
    }

    /// Callers with this name, for what is allowed: only those who proved it.
    fn principal(&self) -> Principal {
        let matcher = match self {
            Self::Account(name) => Some(StringMatcher::exact(name.as_str())),
            Self::Namespace(prefix) => Some(StringMatcher {
                pattern: StringPattern::Prefix(prefix.clone()),
                ignore_case: false,
            }),
            Self::Anybody => None,
        };
        Principal::Authenticated(matcher)
    }

    /// The same, for what is refused: those without a name are anybody, too.
    fn refused(&self) -> Principal {
        match self {
            Self::Anybody => Principal::Any,
            named => named.principal(),
        }
    }
}

impl Intentions {
    pub(super) fn extend(&mut self, more: Vec<Intention>) {
        self.all.extend(more);
    }

    /// The objects that are about a workload.
    pub(super) fn objects(&self, workload: &Judged) -> Vec<ObjectKey> {
        let found = self.all.iter().filter(|one| one.is_for(workload));
        let mut keys: Vec<_> = found.map(|one| one.object.clone()).collect();
        keys.dedup();
        keys
    }

    /// What they say of a workload; `None` when none is about it.
    pub(super) fn policies(&self, workload: &Judged) -> Option<Intended> {
        let mut found: Vec<_> = self.all.iter().filter(|one| one.is_for(workload)).collect();
        if found.is_empty() {
            return None;
        }
        found.sort_by_key(|one| one.precedence());
        let mut intended = Intended::default();
        for (index, one) in found.iter().enumerate() {
            // Whom a more specific intention is about, this one is not.
            let before = found[..index].iter().map(|more| &more.source);
            if before.clone().any(|more| more.covers(&one.source)) {
                continue;
            }
            let before = before.filter(|more| one.source.covers(more));
            let others: Vec<_> = before.map(SourceName::principal).collect();
            intended.enter(one, &others);
        }
        Some(intended)
    }
}

impl Intended {
    fn enter(&mut self, one: &Intention, others: &[Principal]) {
        let mut earlier = Vec::new();
        for (index, (allows, permission)) in one.permissions.iter().enumerate() {
            let caller = if *allows {
                one.source.principal()
            } else {
                one.source.refused()
            };
            let who = match others {
                [] => caller,
                others => {
                    let others = Principal::Or(others.to_vec());
                    Principal::And(vec![caller, Principal::Not(Box::new(others))])
                }
            };
            let what = match earlier.as_slice() {
                [] => permission.clone(),
                earlier => {
                    let earlier = Permission::Or(earlier.to_vec());
                    Permission::And(vec![permission.clone(), Permission::Not(Box::new(earlier))])
                }
            };
            earlier.push(permission.clone());
            let policy = RbacPolicy {
                principals: vec![who],
                permissions: vec![what],
                condition: None,
            };
            let name = format!("{}[{index}]", one.name);
            self.allows |= *allows;
            let policies = if *allows {
                &mut self.allow
            } else {
                &mut self.deny
            };
            policies.insert(name, policy);
        }
    }
}

/// The intentions of an object, and what closes a target of one that cannot be used.
pub(super) fn compile(
    object: &Object,
    spec: &ServiceIntentions,
    options: &CompileOptions,
    names: &Names<'_>,
    findings: &mut Vec<Diagnostic>,
) -> (Vec<Intention>, Option<Scoped<Authorization>>) {
    let own = &object.key.namespace;
    let namespace = spec.destination.namespace.as_ref().unwrap_or(own);
    let name = &spec.destination.name;
    let service = match name.as_str() {
        "*" => None,
        name => {
            let full = format!("{name}.{namespace}.svc.{}", options.cluster_domain);
            let found = names(object, &full).or_else(|| names(object, name));
            if found.is_none() {
                let field = "spec.destination.name";
                findings.push(services::unknown_host(object, field, name));
                return (Vec::new(), None);
            }
            found
        }
    };
    let mut found = Vec::new();
    for (index, source) in spec.sources.iter().enumerate() {
        let field = format!("spec.sources[{index}]");
        match permissions(source) {
            Ok(permissions) => found.push(Intention {
                object: object.key.clone(),
                service: service.clone(),
                namespace: Some(namespace.clone()).filter(|namespace| namespace != "*"),
                name: format!("{own}/{}/sources[{index}]", object.key.name),
                source: source_name(source, own, options),
                permissions,
            }),
            Err((part, message)) => {
                let field = format!("{field}.{part}");
                let help = "its destination is closed";
                findings.push(object.diagnose(BAD_VALUE, &field, message, help));
                let mut closed = closed_namespace(object);
                closed.namespace.clone_from(namespace);
                closed.services = service.map(|service| [service].into());
                return (Vec::new(), Some(closed));
            }
        }
    }
    (found, None)
}

fn source_name(source: &IntentionSource, own: &str, options: &CompileOptions) -> SourceName {
    let domain = &options.trust_domain;
    let inside = |namespace: &str| format!("spiffe://{domain}/ns/{namespace}/sa/");
    match (source.namespace.as_deref(), source.name.as_str()) {
        (None | Some("*"), "*") => SourceName::Anybody,
        (Some(namespace), "*") => SourceName::Namespace(inside(namespace)),
        (namespace, name) => SourceName::Account(inside(namespace.unwrap_or(own)) + name),
    }
}

type Wrong = (String, String);

fn allows(text: &str, field: &str) -> Result<bool, Wrong> {
    match text {
        "allow" => Ok(true),
        "deny" => Ok(false),
        other => Err((
            field.to_owned(),
            format!("{other:?} is not an action: write allow or deny"),
        )),
    }
}

fn permissions(source: &IntentionSource) -> Result<Vec<(bool, Permission)>, Wrong> {
    let wrong = |field: &str, message: &str| (field.to_owned(), message.to_owned());
    if source.name.is_empty() {
        return Err(wrong("name", "is missing; * is everybody"));
    }
    if source.namespace.as_deref() == Some("*") && source.name != "*" {
        return Err(wrong("namespace", "* goes with the name * only"));
    }
    match (&source.action, source.permissions.as_slice()) {
        (Some(action), []) => Ok(vec![(allows(action, "action")?, Permission::Any)]),
        (None, []) => Err(wrong("action", "is missing; so are permissions")),
        (Some(_), _) => Err(wrong("action", "and permissions exclude each other")),
        (None, permissions) => {
            let each = permissions.iter().enumerate().map(|(index, permission)| {
                let field = format!("permissions[{index}]");
                let is_allowed = allows(&permission.action, &format!("{field}.action"))?;
                let what = http(&permission.http)
                    .map_err(|(part, message)| (format!("{field}.http.{part}"), message))?;
                Ok((is_allowed, what))
            });
            each.collect()
        }
    }
}

fn http(declared: &IntentionHttp) -> Result<Permission, Wrong> {
    let mut all = Vec::new();
    let wrong = |field: &str, message: String| (field.to_owned(), message);
    let paths = [
        (&declared.path_exact, "pathExact"),
        (&declared.path_prefix, "pathPrefix"),
        (&declared.path_regex, "pathRegex"),
    ];
    if paths.iter().filter(|(path, _)| path.is_some()).count() > 1 {
        let message = "pathExact, pathPrefix and pathRegex exclude each other";
        return Err(wrong("pathExact", message.to_owned()));
    }
    for (path, field) in paths {
        let Some(text) = path else { continue };
        let pattern = match field {
            "pathExact" => StringPattern::Exact(text.clone()),
            "pathPrefix" => StringPattern::Prefix(text.clone()),
            _ => StringPattern::Regex(Regex::new(text).map_err(|why| wrong(field, why))?),
        };
        let matcher = StringMatcher::new(pattern).map_err(|why| wrong(field, why))?;
        all.push(Permission::Path(matcher));
    }
    if !declared.methods.is_empty() {
        let methods = declared.methods.iter().map(|method| {
            let exact = HeaderPredicate::String(StringMatcher::exact(method.as_str()));
            Permission::Header(HeaderMatcher::new(":method", exact))
        });
        all.push(Permission::Or(methods.collect()));
    }
    for (index, header) in declared.header.iter().enumerate() {
        let field = format!("header[{index}]");
        let wrong = |message| wrong(&field, message);
        let predicate = predicate(header).map_err(wrong)?;
        all.push(Permission::Header(HeaderMatcher {
            invert: header.invert,
            ..HeaderMatcher::new(&header.name, predicate)
        }));
    }
    Ok(match all.len() {
        0 => Permission::Any,
        _ => Permission::And(all),
    })
}
