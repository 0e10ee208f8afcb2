//! What became of a route, in the conditions of Gateway API.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{Object, gateway::ParentRef};

/// What became of a route.
#[derive(Clone, Debug, Serialize)]
pub struct RouteStatus {
    /// For example `HTTPRoute default/greeter`.
    pub object: String,
    /// Where it is written.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Each parent in the mesh.
    pub parents: Vec<ParentStatus>,
    #[serde(skip)]
    rules: usize,
    #[serde(skip)]
    broken: BTreeMap<usize, String>,
    #[serde(skip)]
    unresolved: Option<(&'static str, String)>,
}

/// What a parent makes of a route.
#[derive(Clone, Debug, Serialize)]
pub struct ParentStatus {
    /// For example `Service default/greeter:8080`.
    pub parent: String,
    /// `Accepted`, `ResolvedRefs`, and `PartiallyInvalid` where a rule cannot be used.
    pub conditions: Vec<Condition>,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Which.
    pub r#type: &'static str,
    /// Whether it holds: `True` or `False`.
    pub status: &'static str,
    /// Why, in a word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl Condition {
    fn new(r#type: &'static str, holds: bool, reason: &'static str, message: String) -> Self {
        Self {
            r#type,
            status: if holds { "True" } else { "False" },
            reason,
            message,
        }
    }
}

impl ParentStatus {
    pub(super) fn new(object: &Object, parent: &ParentRef, accepted: Result<(), String>) -> Self {
        let namespace = parent.namespace.as_ref().unwrap_or(&object.key.namespace);
        let port = match (parent.port, &parent.section_name) {
            (Some(port), _) => format!(":{port}"),
            (None, Some(name)) => format!(":{name}"),
            (None, None) => String::new(),
        };
        let accepted = match accepted {
            Ok(()) => Condition::new("Accepted", true, "Accepted", String::new()),
            Err(message) => Condition::new("Accepted", false, "NoMatchingParent", message),
        };
        Self {
            parent: format!("Service {namespace}/{}{port}", parent.name),
            conditions: vec![accepted],
        }
    }
}

impl RouteStatus {
    pub(super) fn new(object: &Object, rules: usize) -> Self {
        Self {
            object: object.key.to_string(),
            file: object.place.file.to_string(),
            line: object.place.line,
            parents: Vec::new(),
            rules,
            broken: BTreeMap::new(),
            unresolved: None,
        }
    }

    pub(super) fn broken(&mut self, rule: usize, message: &str) {
        self.broken
            .entry(rule)
            .or_insert_with(|| message.to_owned());
    }

    pub(super) fn unresolved(&mut self, reason: &'static str, message: String) {
        self.unresolved.get_or_insert((reason, message));
    }

    /// Writes the conditions, when all rules are compiled.
    pub(in super::super) fn finish(&mut self) {
        let resolved = match self.unresolved.take() {
            Some((reason, message)) => Condition::new("ResolvedRefs", false, reason, message),
            None => Condition::new("ResolvedRefs", true, "ResolvedRefs", String::new()),
        };
        let said = |(rule, message): (&usize, &String)| format!("rules[{rule}]: {message}");
        let broken: Vec<_> = self.broken.iter().map(said).collect();
        let broken = broken.join("; ");
        for parent in &mut self.parents {
            let accepted = &mut parent.conditions[0];
            if accepted.status == "True" && !self.broken.is_empty() {
                let message = broken.clone();
                if self.broken.len() == self.rules {
                    *accepted = Condition::new("Accepted", false, "UnsupportedValue", message);
                } else {
                    let partly =
                        Condition::new("PartiallyInvalid", true, "UnsupportedValue", message);
                    parent.conditions.push(partly);
                }
            }
            parent.conditions.push(resolved.clone());
        }
    }
}
