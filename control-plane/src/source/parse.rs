//! From text to objects, with the place of every mistake.

use std::sync::Arc;

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::Loaded;
use crate::{
    diagnostic::{
        BAD_FIELD, DUPLICATE, Diagnostic, FAILS_CLOSED, Severity, UNKNOWN_KIND, UNREADABLE,
    },
    model::{
        DEFAULT_NAMESPACE, EndpointSlice, Metadata, Object, ObjectKey, ObjectSet, Place,
        SECURITY_KINDS, Service, Spec,
    },
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    kind: String,
    #[serde(default)]
    metadata: Metadata,
}

/// All that an object may have; a misspelt `spec` must not read as an empty one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WithSpec<S> {
    #[serde(default, rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(default, rename = "kind")]
    _kind: IgnoredAny,
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
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

fn read_document(place: &Place, before: &ObjectSet, loaded: &mut Loaded) {
    let header: Header = match serde_norway::from_str(&place.text) {
        Ok(header) => header,
        Err(error) => {
            loaded
                .diagnostics
                .push(found(place, UNREADABLE, "", "", &error, None));
            // Without YAML nobody knows which objects were meant: those of the file stay.
            let stays = before
                .values()
                .filter(|object| object.place.file == place.file);
            for object in stays {
                loaded
                    .objects
                    .entry(object.key.clone())
                    .or_insert_with(|| Arc::clone(object));
            }
            close_guessed(place, before, loaded);
            return;
        }
    };
    let Header { kind, metadata } = header;
    let namespace = metadata
        .namespace
        .clone()
        .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let key = ObjectKey {
        kind,
        namespace,
        name: metadata.name.clone(),
    };
    let object = |spec| {
        Arc::new(Object {
            key: key.clone(),
            metadata: metadata.clone(),
            place: place.clone(),
            spec,
        })
    };
    let is_held = |held: &Arc<Object>| {
        before
            .get(&key)
            .is_some_and(|before| Arc::ptr_eq(before, held))
    };
    match read_spec(&key.kind, &place.text) {
        Ok(spec) => {
            if loaded
                .objects
                .insert(key.clone(), object(spec))
                .is_some_and(|held| !is_held(&held))
            {
                let message = "this object is written more than once: the last one counts";
                let mut finding =
                    object(Spec::Unreadable).diagnose(DUPLICATE, "metadata", message, "");
                finding.severity = Severity::Warning;
                loaded.diagnostics.push(finding);
            }
        }
        Err(Failure::UnknownKind) => {
            let message = format!("kind {:?} is not known here", key.kind);
            let help = "known are Service, EndpointSlice, ServiceEntry, VirtualService, \
                        DestinationRule, PeerAuthentication and AuthorizationPolicy";
            let finding = object(Spec::Unreadable).diagnose(UNKNOWN_KIND, "kind", message, help);
            loaded.diagnostics.push(finding);
        }
        Err(Failure::BadField { path, error }) => {
            let name = key.to_string();
            loaded
                .diagnostics
                .push(found(place, BAD_FIELD, &name, &path, &error, Some(&path)));
            if let Some(held) = before.get(&key) {
                loaded.objects.insert(key.clone(), Arc::clone(held));
            } else if SECURITY_KINDS.contains(&key.kind.as_str()) {
                close(object(Spec::Unreadable), loaded);
            }
        }
    }
}

/// A security document that is not even YAML still closes the namespace that it seems to be for,
/// unless what its file said before is known.
fn close_guessed(place: &Place, before: &ObjectSet, loaded: &mut Loaded) {
    let value = |key: &str| {
        let text = &place.text;
        let found = text.match_indices(key).find_map(|(at, _)| {
            let is_word = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '/');
            let rest = text[at + key.len()..].trim_start_matches(['"', '\'']);
            let rest = rest.strip_prefix(':').filter(|_| is_word)?;
            let rest = rest.trim_start_matches([' ', '"', '\'']);
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '-' && c != '.');
            Some(rest[..end.unwrap_or(rest.len())].to_owned())
        });
        found.filter(|value| !value.is_empty())
    };
    let Some(kind) = value("kind").filter(|kind| SECURITY_KINDS.contains(&kind.as_str())) else {
        return;
    };
    let namespace = value("namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let name = value("name").unwrap_or_else(|| format!("{}:{}", place.file, place.line));
    let key = ObjectKey {
        kind,
        namespace,
        name,
    };
    if loaded.objects.contains_key(&key) {
        return;
    }
    if let Some(held) = before.get(&key) {
        // Its file has another name now.
        loaded.objects.insert(key, Arc::clone(held));
        return;
    }
    let object = Object {
        key,
        metadata: Metadata::default(),
        place: place.clone(),
        spec: Spec::Unreadable,
    };
    close(Arc::new(object), loaded);
}

/// Holds an unreadable security object in the place of what it would have said.
fn close(object: Arc<Object>, loaded: &mut Loaded) {
    let message = format!(
        "namespace {} is closed until this can be read",
        object.key.namespace
    );
    let finding = object.diagnose(FAILS_CLOSED, "spec", message, "");
    loaded.diagnostics.push(finding);
    loaded.objects.insert(object.key.clone(), object);
}

enum Failure {
    UnknownKind,
    BadField {
        path: String,
        error: serde_norway::Error,
    },
}

fn read_spec(kind: &str, text: &str) -> Result<Spec, Failure> {
    Ok(match kind {
        "Service" => Spec::Service(read::<WithSpec<Service>>(text)?.spec),
        "EndpointSlice" => Spec::EndpointSlice(read::<EndpointSlice>(text)?),
        "ServiceEntry" => Spec::ServiceEntry(read::<WithSpec<_>>(text)?.spec),
        "VirtualService" => Spec::VirtualService(read::<WithSpec<_>>(text)?.spec),
        "DestinationRule" => Spec::DestinationRule(read::<WithSpec<_>>(text)?.spec),
        "PeerAuthentication" => Spec::PeerAuthentication(read::<WithSpec<_>>(text)?.spec),
        "AuthorizationPolicy" => Spec::AuthorizationPolicy(read::<WithSpec<_>>(text)?.spec),
        _ => return Err(Failure::UnknownKind),
    })
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    let deserializer = serde_norway::Deserializer::from_str(text);
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        Failure::BadField {
            path,
            error: error.into_inner(),
        }
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
