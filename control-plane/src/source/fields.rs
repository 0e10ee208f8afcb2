//! Compares what an object says with the schema, before its meaning is read.
//!
//! Every field that will not work as it is written gets a finding, and none twice in an object.

use std::collections::BTreeSet;

use serde_norway::{Mapping, Value};

use super::schema::{Fate, Node, Row, SCHEMA};
use crate::class::Classes;

/// How far a known name may be from what was written, to be suggested: 1 is equal, 0 is nothing in
/// common.
const SIMILAR_MIN: f64 = 0.7;

/// A field that does not work as it is written.
#[derive(Debug, PartialEq)]
pub(super) struct Finding {
    /// For example `spec.http[0].weigth`.
    pub(super) path: String,
    pub(super) problem: Problem,
}

#[derive(Debug, PartialEq)]
pub(super) enum Problem {
    /// There is no such field; the nearest name, if one is near.
    Unknown(Option<String>),
    /// It cannot be served, for this reason.
    Rejected(String),
    /// It has no effect, for this reason.
    Ignored(String),
    /// Only these classes honour it.
    OnlyFor(Classes, String),
}

impl Problem {
    /// Whether the object cannot be used.
    pub(super) fn is_error(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Rejected(_))
    }
}

/// What is wrong with the fields of an object of `kind`.
pub(super) fn check(kind: &str, object: &Value) -> Vec<Finding> {
    let mut walk = Walk::default();
    if let Some(node) = SCHEMA.section(kind) {
        walk.value(node, object, "");
    }
    walk.findings
}

/// The name that was probably meant.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<String> {
    let lower = name.to_lowercase().replace(['_', '-'], "");
    known
        .map(|known| {
            (
                strsim::damerau_levenshtein(&lower, &known.to_lowercase()),
                known,
            )
        })
        .filter(|(distance, known)| {
            let longest = known.chars().count().max(lower.chars().count()) as f64;
            1.0 - *distance as f64 / longest >= SIMILAR_MIN
        })
        .min()
        .map(|(_, known)| known.to_owned())
}

#[derive(Default)]
struct Walk {
    findings: Vec<Finding>,
    /// Rows that were reported; one warning for each is enough.
    seen: BTreeSet<(String, String, Option<String>)>,
}

impl Walk {
    fn value(&mut self, node: &Node, value: &Value, path: &str) {
        if value.is_null() {
            return;
        }
        if !node.values.is_empty() && self.by_value(node, value, path) {
            return;
        }
        if let Some(row) = &node.row {
            self.row(row, path);
            if matches!(row.fate, Fate::Ignored | Fate::Rejected) {
                return;
            }
        }
        let inside = match &node.link {
            Some(link) => SCHEMA.section(link).unwrap_or(node),
            None => node,
        };
        match value {
            Value::Mapping(fields) => self.mapping(inside, fields, path),
            Value::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Some(node) = &inside.items {
                        self.value(node, item, &format!("{path}[{index}]"));
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether there are rows for each item of a value, and reports them.
    fn by_value(&mut self, node: &Node, value: &Value, path: &str) -> bool {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(is) => is.to_string(),
            _ => return false,
        };
        for item in text.split(',').map(str::trim) {
            let row = node.values.get(&item.to_ascii_lowercase());
            if let Some(row) = row.or(node.row.as_ref()) {
                self.row(row, path);
            }
        }
        true
    }

    fn mapping(&mut self, node: &Node, fields: &Mapping, path: &str) {
        for (key, value) in fields {
            let key = match key {
                Value::String(key) => key.clone(),
                Value::Number(number) => number.to_string(),
                _ => continue,
            };
            let dot = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{dot}{key}");
            if let Some(child) = node.fields.get(&key).or(node.entries.as_deref()) {
                self.value(child, value, &path);
            } else if !node.fields.is_empty() {
                let near = nearest(&key, node.fields.keys().map(String::as_str));
                let problem = Problem::Unknown(near);
                self.findings.push(Finding { path, problem });
            }
        }
    }

    fn row(&mut self, row: &Row, path: &str) {
        let note = row.note.clone();
        let problem = match &row.fate {
            Fate::Honoured => return,
            Fate::HonouredFor(classes) => Problem::OnlyFor(classes.clone(), note),
            Fate::Ignored => Problem::Ignored(note),
            Fate::Rejected => Problem::Rejected(note),
        };
        let key = (row.section.clone(), row.path.clone(), row.value.clone());
        if problem.is_error() || self.seen.insert(key) {
            let path = path.to_owned();
            self.findings.push(Finding { path, problem });
        }
    }
}
