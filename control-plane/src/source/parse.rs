//! From text to objects, with the place of every mistake.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, de::DeserializeOwned};
use serde_norway::Value;

use super::{
    Loaded,
    closed::{close_guessed, stand_in},
    fields::{self, Finding, Problem},
    schema::SCHEMA,
};
use crate::{
    diagnostic::{
        BAD_FIELD, DUPLICATE, Diagnostic, IGNORED_FIELD, REJECTED_FIELD, Severity, UNKNOWN_KIND,
        UNREADABLE,
    },
    model::{DEFAULT_NAMESPACE, Limit, Metadata, Object, ObjectKey, ObjectSet, Place, Spec},
};

/// The part of an object that every kind has.
#[derive(Deserialize)]
struct Header {
    kind: String,
    #[serde(default)]
    metadata: Metadata,
}

/// The part where most kinds say what they mean.
#[derive(Deserialize)]
struct WithSpec<S> {
    #[serde(default)]
    spec: S,
}

/// Reads a text of several documents, without anything from before.
pub fn load_text(file: &str, text: &str) -> Loaded {
    let mut loaded = Loaded::default();
    read_text(file, text, &ObjectSet::new(), &mut loaded);
    loaded
}

/// Reads a text into `loaded`. Objects that cannot be read keep their version in `before`.
pub(super) fn read_text(file: &str, text: &str, before: &ObjectSet, loaded: &mut Loaded) {
    let file: Arc<str> = file.into();
    for (line, document) in documents(text) {
        let is_empty = document
            .lines()
            .all(|l| l.trim().is_empty() || l.trim().starts_with('#'));
        if is_empty {
            continue;
        }
        let place = Place {
            file: Arc::clone(&file),
            line,
            text: document.into(),
        };
        read_document(&place, before, loaded);
    }
}

/// The documents of a text, each with the line it begins at.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut found = vec![(1, String::new())];
    for (index, line) in text.lines().enumerate() {
        if line.trim_end() == "---" {
            found.push((index + 2, String::new()));
        } else if let Some(rest) = line.strip_prefix("--- ") {
            // What stands on the marker's line belongs to the document.
            found.push((index + 1, format!("{rest}\n")));
        } else if let Some((_, document)) = found.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    found
}

pub(super) fn read_document(place: &Place, before: &ObjectSet, loaded: &mut Loaded) {
    let read = serde_norway::from_str::<Value>(&place.text)
        .and_then(|value| Ok((Header::deserialize(&value)?, value)));
    let (Header { kind, metadata }, value) = match read {
        Ok(read) => read,
        Err(error) => {
            keep_file(place, before, loaded);
            loaded
                .diagnostics
                .push(found(place, UNREADABLE, "", "", &error, None));
            close_guessed(place, before, loaded);
            return;
        }
    };
    let namespace = metadata
        .namespace
        .clone()
        .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let key = ObjectKey {
        kind,
        namespace,
        name: metadata.name.clone(),
    };
    let mut object = Object {
        key,
        metadata,
        place: place.clone(),
        spec: Spec::Unreadable(BTreeMap::new()),
        limits: Vec::new(),
        refused: Vec::new(),
    };
    match read_spec(&mut object, &value, &mut loaded.diagnostics) {
        Ok(()) if object.refused.is_empty() || !is_held(&object, before) => {
            insert(object, before, loaded);
        }
        Ok(()) | Err(Unusable) => stand_in(object, &value, before, loaded),
    }
}

/// Whether there is a version of it from before that is all good.
fn is_held(object: &Object, before: &ObjectSet) -> bool {
    let held = before.get(&object.key);
    held.is_some_and(|held| held.refused.is_empty())
}

/// Without YAML nobody knows which objects were meant: those of the file stay.
fn keep_file(place: &Place, before: &ObjectSet, loaded: &mut Loaded) {
    let stays = before
        .values()
        .filter(|object| object.place.file == place.file);
    for object in stays {
        loaded
            .objects
            .entry(object.key.clone())
            .or_insert_with(|| Arc::clone(object));
    }
}

fn insert(object: Object, before: &ObjectSet, loaded: &mut Loaded) {
    let held = loaded.objects.get(&object.key);
    let is_twice = held.is_some_and(|held| {
        let kept = before.get(&object.key);
        !kept.is_some_and(|kept| Arc::ptr_eq(kept, held))
    });
    if is_twice {
        let message = "this object is written more than once: the last one counts";
        loaded.diagnostics.push(Diagnostic {
            severity: Severity::Warning,
            ..object.diagnose(DUPLICATE, "metadata", message, "")
        });
    }
    loaded.objects.insert(object.key.clone(), Arc::new(object));
}

/// The object cannot be used; why is said already.
struct Unusable;

/// Reads what `object` says, and what is wrong with it.
fn read_spec(
    object: &mut Object,
    value: &Value,
    findings: &mut Vec<Diagnostic>,
) -> Result<(), Unusable> {
    check_group(object, value, findings)?;
    check_fields(object, value, findings)?;
    let kind = object.key.kind.as_str();
    let read = match kind {
        "Service" => read::<WithSpec<_>>(value).map(|object| Spec::Service(object.spec)),
        "EndpointSlice" => read(value).map(Spec::EndpointSlice),
        "ServiceEntry" => read::<WithSpec<_>>(value).map(|object| Spec::ServiceEntry(object.spec)),
        "BalancerPolicy" => {
            read::<WithSpec<_>>(value).map(|object| Spec::BalancerPolicy(object.spec))
        }
        "WorkloadEntry" => {
            read::<WithSpec<_>>(value).map(|object| Spec::WorkloadEntry(object.spec))
        }
        "VirtualService" => {
            read::<WithSpec<_>>(value).map(|object| Spec::VirtualService(object.spec))
        }
        "HTTPRoute" => read::<WithSpec<_>>(value).map(|object| Spec::HttpRoute(object.spec)),
        "GRPCRoute" => read::<WithSpec<_>>(value).map(|object| Spec::GrpcRoute(object.spec)),
        "ReferenceGrant" => {
            read::<WithSpec<_>>(value).map(|object| Spec::ReferenceGrant(object.spec))
        }
        "ServiceRouter" => {
            read::<WithSpec<_>>(value).map(|object| Spec::ServiceRouter(object.spec))
        }
        "XBackendTrafficPolicy" => {
            read::<WithSpec<_>>(value).map(|object| Spec::BackendTrafficPolicy(object.spec))
        }
        "Sidecar" => read::<WithSpec<_>>(value).map(|object| Spec::Sidecar(object.spec)),
        "ServiceSplitter" => {
            read::<WithSpec<_>>(value).map(|object| Spec::ServiceSplitter(object.spec))
        }
        "ServiceResolver" => {
            read::<WithSpec<_>>(value).map(|object| Spec::ServiceResolver(object.spec))
        }
        "DestinationRule" => {
            read::<WithSpec<_>>(value).map(|object| Spec::DestinationRule(object.spec))
        }
        "HedgePolicy" => read::<WithSpec<_>>(value).map(|object| Spec::HedgePolicy(object.spec)),
        "FilterPolicy" => read::<WithSpec<_>>(value).map(|object| Spec::FilterPolicy(object.spec)),
        "RateLimit" => read::<WithSpec<_>>(value).map(|object| Spec::RateLimit(object.spec)),
        "PeerAuthentication" => {
            read::<WithSpec<_>>(value).map(|object| Spec::PeerAuthentication(object.spec))
        }
        "RequestAuthentication" => {
            read::<WithSpec<_>>(value).map(|object| Spec::RequestAuthentication(object.spec))
        }
        "ServiceIntentions" => {
            read::<WithSpec<_>>(value).map(|object| Spec::ServiceIntentions(object.spec))
        }
        "MeshPolicy" => read::<WithSpec<_>>(value).map(|object| Spec::MeshPolicy(object.spec)),
        _ => read::<WithSpec<_>>(value).map(|object| Spec::AuthorizationPolicy(object.spec)),
    };
    match read {
        Ok(spec) => {
            if let Spec::AuthorizationPolicy(policy) = &spec {
                object.limits.extend(policy.limits());
            }
            object.spec = spec;
        }
        Err((path, error)) => {
            let name = object.key.to_string();
            let place = &object.place;
            findings.push(found(place, BAD_FIELD, &name, &path, &error, Some(&path)));
            return Err(Unusable);
        }
    }
    Ok(())
}

/// Whether the kind is known, and of the group that it should be.
fn check_group(
    object: &Object,
    value: &Value,
    findings: &mut Vec<Diagnostic>,
) -> Result<(), Unusable> {
    let kind = object.key.kind.as_str();
    let Some((_, group)) = GROUPS.iter().find(|(known, _)| *known == kind) else {
        let near = fields::nearest(kind, SCHEMA.kinds());
        let message = format!("kind {kind:?} is not known here");
        let known: Vec<_> = SCHEMA.kinds().collect();
        let help = near.map_or_else(
            || format!("known are {}", known.join(", ")),
            |near| format!("did you mean {near}?"),
        );
        findings.push(object.diagnose(UNKNOWN_KIND, "kind", message, &help));
        return Err(Unusable);
    };
    let declared = value["apiVersion"].as_str();
    let declared = declared.map(|version| version.rsplit_once('/').map_or("", |(group, _)| group));
    if declared.is_some_and(|declared| declared != *group) {
        let message = format!("{kind} is read from the group {group:?}");
        findings.push(object.diagnose(UNKNOWN_KIND, "apiVersion", message, ""));
        return Err(Unusable);
    }
    Ok(())
}

/// What docs/config-fields.md says of the fields.
fn check_fields(
    object: &mut Object,
    value: &Value,
    findings: &mut Vec<Diagnostic>,
) -> Result<(), Unusable> {
    let mut is_usable = true;
    for Finding { path, problem } in fields::check(&object.key.kind, value) {
        // A rule of a route that cannot be served fails what it matches, and that alone.
        let is_rule = GATEWAY_ROUTES.contains(&object.key.kind.as_str())
            && matches!(problem, Problem::Rejected(_))
            && path.starts_with("spec.rules[");
        if is_rule {
            object.refused.push(path.clone());
        }
        is_usable &= is_rule || !problem.is_error();
        let name = path.rsplit('.').next().unwrap_or_default();
        findings.push(match problem {
            Problem::Unknown(near) => {
                let help = near.map_or_else(
                    || "docs/config-fields.md lists the fields".to_owned(),
                    |near| format!("did you mean {near}?"),
                );
                object.diagnose(BAD_FIELD, &path, format!("unknown field {name:?}"), &help)
            }
            Problem::Rejected(note) => {
                let message = format!("{name} is not supported as it is written");
                object.diagnose(REJECTED_FIELD, &path, message, &note)
            }
            Problem::Ignored(note) => Diagnostic {
                severity: Severity::Warning,
                ..object.diagnose(IGNORED_FIELD, &path, format!("{name} is ignored"), &note)
            },
            Problem::OnlyFor(honoured_by, note) => {
                let field = path;
                object.limits.push(Limit {
                    honoured_by,
                    field,
                    note,
                });
                continue;
            }
        });
    }
    if is_usable { Ok(()) } else { Err(Unusable) }
}

/// Routes of Gateway API, of which a rule can fail by itself.
const GATEWAY_ROUTES: [&str; 2] = ["HTTPRoute", "GRPCRoute"];

/// The group of each kind.
pub(super) const GROUPS: [(&str, &str); 23] = [
    ("Service", ""),
    ("EndpointSlice", "discovery.k8s.io"),
    ("ServiceEntry", "networking.istio.io"),
    ("WorkloadEntry", "networking.istio.io"),
    ("BalancerPolicy", "mesh"),
    ("VirtualService", "networking.istio.io"),
    ("HTTPRoute", "gateway.networking.k8s.io"),
    ("GRPCRoute", "gateway.networking.k8s.io"),
    ("ReferenceGrant", "gateway.networking.k8s.io"),
    ("ServiceRouter", "consul.hashicorp.com"),
    ("XBackendTrafficPolicy", "gateway.networking.x-k8s.io"),
    ("Sidecar", "networking.istio.io"),
    ("ServiceSplitter", "consul.hashicorp.com"),
    ("ServiceResolver", "consul.hashicorp.com"),
    ("DestinationRule", "networking.istio.io"),
    ("HedgePolicy", "mesh"),
    ("RateLimit", "mesh"),
    ("FilterPolicy", "mesh"),
    ("PeerAuthentication", "security.istio.io"),
    ("AuthorizationPolicy", "security.istio.io"),
    ("RequestAuthentication", "security.istio.io"),
    ("ServiceIntentions", "consul.hashicorp.com"),
    ("MeshPolicy", "mesh"),
];

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, (String, serde_norway::Error)> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        (path, error.into_inner())
    })
}

fn found(
    place: &Place,
    code: &'static str,
    object: &str,
    field: &str,
    error: &serde_norway::Error,
    path: Option<&str>,
) -> Diagnostic {
    let line = match (error.location(), path) {
        (Some(location), _) => place.line + location.line() - 1,
        (None, Some(path)) => place.line_of(path),
        (None, None) => place.line,
    };
    Diagnostic {
        code,
        severity: Severity::Error,
        file: place.file.to_string(),
        line,
        object: object.to_owned(),
        field: field.to_owned(),
        message: error.to_string(),
        help: String::new(),
    }
}
