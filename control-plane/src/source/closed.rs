//! What stands in the place of an object that cannot be read: its last good version, or what keeps
//! closed what it may have closed.
//!
//! A document that is not YAML is searched for what it seems to be about. Whatever is done is a
//! finding that names the file.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_norway::Value;

use super::{Loaded, fields, parse::GROUPS};
use crate::{
    diagnostic::FAILS_CLOSED,
    model::{
        DEFAULT_NAMESPACE, DestinationRule, Metadata, Object, ObjectKey, ObjectSet, Place,
        SECURITY_KINDS, Spec,
    },
};

/// Holds the place of an object that cannot be used: its last good version, or what keeps closed
/// what it may have closed.
pub(super) fn stand_in(mut object: Object, value: &Value, before: &ObjectSet, loaded: &mut Loaded) {
    if let Some(held) = before.get(&object.key) {
        loaded.objects.insert(object.key, Arc::clone(held));
    } else if let Some(kind) = security_kind(&object.key.kind) {
        object.key.kind = kind.to_owned();
        object.spec = Spec::Unreadable(selected(value));
        close(Arc::new(object), loaded);
    } else if object.key.kind == "DestinationRule"
        && let Some(rule) = asked_for_mtls(value)
    {
        object.spec = Spec::DestinationRule(rule);
        close(Arc::new(object), loaded);
    }
}

/// The labels that a security object selects by, if nothing is wrong with them; else none, which
/// select everything.
fn selected(value: &Value) -> BTreeMap<String, String> {
    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
    struct Selector {
        match_labels: BTreeMap<String, String>,
    }
    let selector = Selector::deserialize(&value["spec"]["selector"]);
    selector.unwrap_or_default().match_labels
}

/// What is left of a rule that cannot be used: that its host is called with mTLS, if any part of it
/// said anything of TLS but to disable it.
fn asked_for_mtls(value: &Value) -> Option<DestinationRule> {
    fn has_tls(value: &Value) -> bool {
        match value {
            Value::Mapping(fields) => fields.iter().any(|(key, inside)| {
                let is_tls = key.as_str() == Some("tls");
                is_tls && inside["mode"].as_str() != Some("DISABLE") || has_tls(inside)
            }),
            Value::Sequence(items) => items.iter().any(has_tls),
            _ => false,
        }
    }
    let host = value["spec"]["host"].as_str()?.to_owned();
    has_tls(&value["spec"]).then(|| DestinationRule::with_mtls(host))
}

/// The security kind that a word stands for, as it is or misspelt.
fn security_kind(kind: &str) -> Option<&'static str> {
    let known = GROUPS.iter().map(|(known, _)| *known);
    let meant = fields::nearest(kind, known)?;
    SECURITY_KINDS.into_iter().find(|known| *known == meant)
}

/// A document that is not even YAML still closes what it seems to be about, unless what its file
/// said before is known.
pub(super) fn close_guessed(place: &Place, before: &ObjectSet, loaded: &mut Loaded) {
    let text = uncommented(&place.text);
    let namespace = guess(&text, "namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let name = guess(&text, "name").unwrap_or_else(|| format!("{}:{}", place.file, place.line));
    let (kind, spec) = match guess(&text, "kind") {
        Some(kind) if kind == "DestinationRule" => match guess(&text, "host") {
            Some(host) if seems_to_ask_for_mtls(&text) => (
                kind,
                Spec::DestinationRule(DestinationRule::with_mtls(host)),
            ),
            _ => return,
        },
        kind => {
            let kind = match &kind {
                Some(kind) => security_kind(kind),
                // Even its kind is broken: the word alone must do.
                None => SECURITY_KINDS.into_iter().find(|kind| text.contains(kind)),
            };
            let Some(kind) = kind else { return };
            (kind.to_owned(), Spec::Unreadable(BTreeMap::new()))
        }
    };
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
        spec,
        limits: Vec::new(),
        refused: Vec::new(),
    };
    close(Arc::new(object), loaded);
}

fn uncommented(text: &str) -> String {
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    let lines: Vec<_> = text.lines().filter(|line| !is_comment(line)).collect();
    lines.join("\n")
}

/// The first value of a key, wherever it stands.
fn guess(text: &str, key: &str) -> Option<String> {
    let found = text.match_indices(key).find_map(|(at, _)| {
        let is_word = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '/');
        let rest = text[at + key.len()..].trim_start_matches(['"', '\'']);
        let rest = rest.strip_prefix(':').filter(|_| is_word)?;
        let rest = rest.trim_start_matches([' ', '"', '\'']);
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '-' && c != '.');
        Some(rest[..end.unwrap_or(rest.len())].to_owned())
    });
    found.filter(|value| !value.is_empty())
}

/// Whether a rule says anything of TLS but to disable it.
fn seems_to_ask_for_mtls(text: &str) -> bool {
    let modes = ["MUTUAL", "SIMPLE"];
    modes.iter().any(|mode| text.contains(mode))
        || text.contains("tls:") && !text.contains("DISABLE")
}

/// Holds an unreadable security object in the place of what it would have said.
fn close(object: Arc<Object>, loaded: &mut Loaded) {
    let namespace = &object.key.namespace;
    let message = match &object.spec {
        Spec::DestinationRule(rule) => {
            format!("clients of {:?} use mTLS until this can be read", rule.host)
        }
        Spec::Unreadable(labels) if !labels.is_empty() => {
            format!("what it selects in namespace {namespace} is closed until this can be read")
        }
        _ => format!("namespace {namespace} is closed until this can be read"),
    };
    let finding = object.diagnose(FAILS_CLOSED, "spec", message, "");
    loaded.diagnostics.push(finding);
    loaded.objects.insert(object.key.clone(), object);
}
