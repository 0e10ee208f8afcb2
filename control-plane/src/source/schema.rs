//! The fields of every kind and what becomes of each, read from docs/config-fields.md.
//!
//! The page is the schema: what it does not list is unknown, so that the two cannot disagree. It
//! does not look at objects; [`fields`](super::fields) does.

use std::{collections::BTreeMap, sync::LazyLock};

use crate::class::Classes;

/// The page.
pub(super) const PAGE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/config-fields.md"
));
/// The section with what every object has.
pub(super) const EVERY_KIND: &str = "Every kind";

/// What becomes of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It works for every class.
    Honoured,
    /// It works for these classes.
    HonouredFor(Classes),
    /// It has no effect, which the object is warned of.
    Ignored,
    /// The object cannot be used.
    Rejected,
}

/// A row of the page.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) section: String,
    /// Path from the section's root, for example `spec.http[].timeout`.
    pub(super) path: String,
    /// The row is about this value alone.
    pub(super) value: Option<String>,
    /// The section that describes what is inside.
    pub(super) link: Option<String>,
    pub(super) fate: Fate,
    /// YAML; empty where rows inside have examples.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests try it"))]
    pub(super) example: String,
    pub(super) note: String,
}

/// A field, and what may be inside.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) row: Option<Row>,
    pub(super) values: BTreeMap<String, Row>,
    pub(super) fields: BTreeMap<String, Self>,
    /// Any item of a list.
    pub(super) items: Option<Box<Self>>,
    /// Any value of a map.
    pub(super) entries: Option<Box<Self>>,
    /// The section that describes what is inside.
    pub(super) link: Option<String>,
}

/// The page as a tree.
#[derive(Debug)]
pub(super) struct Schema {
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests go through them"))]
    pub(super) rows: Vec<Row>,
    sections: BTreeMap<String, Node>,
}

/// The schema of the page that was compiled in.
pub(super) static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse(PAGE).expect("docs/config-fields.md is checked by a test"));

impl Schema {
    /// Reads a page.
    pub(super) fn parse(page: &str) -> Result<Self, String> {
        let (mut rows, mut section) = (Vec::new(), String::new());
        for (index, line) in page.lines().enumerate() {
            if let Some(title) = line.strip_prefix("## ") {
                title.clone_into(&mut section);
            } else if line.starts_with("| `") && !section.is_empty() {
                let row =
                    row(&section, line).map_err(|why| format!("line {}: {why}", index + 1))?;
                rows.push(row);
            }
        }
        let mut sections = BTreeMap::<String, Node>::new();
        for row in &rows {
            let mut node = sections.entry(row.section.clone()).or_default();
            for part in row.path.split('.') {
                node = node.descend(part);
            }
            if let Some(value) = &row.value {
                node.values.insert(value.to_ascii_lowercase(), row.clone());
            } else {
                node.link.clone_from(&row.link);
                node.row = Some(row.clone());
            }
        }
        // What every kind has is beside what a kind has of its own.
        let every = sections.get(EVERY_KIND).cloned().unwrap_or_default();
        for (name, node) in &mut sections {
            if is_kind(node) && name != EVERY_KIND {
                for (field, child) in &every.fields {
                    node.fields
                        .entry(field.clone())
                        .or_insert_with(|| child.clone());
                }
            }
        }
        Ok(Self { rows, sections })
    }

    /// The names of the kinds.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &str> {
        let kinds = self.sections.iter().filter(|(_, node)| is_kind(node));
        kinds.map(|(name, _)| name.as_str())
    }

    /// What the objects of a kind, or a part of several kinds, look like.
    pub(super) fn section(&self, name: &str) -> Option<&Node> {
        self.sections.get(name)
    }
}

impl Node {
    /// The node of `name`, `name[]` or `name{}`.
    fn descend(&mut self, part: &str) -> &mut Self {
        let (name, inside) = match part.find(['[', '{']) {
            Some(at) => part.split_at(at),
            None => (part, ""),
        };
        let node = self.fields.entry(name.to_owned()).or_default();
        match inside {
            "[]" => node.items.get_or_insert_default(),
            "{}" => node.entries.get_or_insert_default(),
            _ => node,
        }
    }
}

/// Kinds have a spec, except for the one that Kubernetes made without.
fn is_kind(node: &Node) -> bool {
    node.fields.contains_key("spec") || node.fields.contains_key("addressType")
}

fn row(section: &str, line: &str) -> Result<Row, String> {
    let cells: Vec<_> = line.trim_matches('|').split(" |").map(str::trim).collect();
    let [field, fate, example, note] = cells[..] else {
        return Err(format!("{} cells instead of 4", cells.len()));
    };
    let (field, link) = match field.split_once(" → ") {
        Some((field, link)) => {
            let title = link.trim_start_matches('[').split(']').next();
            (field, title.map(str::to_owned))
        }
        None => (field, None),
    };
    let code = |text: &str| text.trim_matches('`').to_owned();
    let field = code(field);
    let (path, value) = match field.split_once('=') {
        Some((path, value)) => (path.to_owned(), Some(value.to_owned())),
        None => (field, None),
    };
    Ok(Row {
        section: section.to_owned(),
        path,
        value,
        link,
        fate: read_fate(fate)?,
        example: code(example),
        note: note.to_owned(),
    })
}

fn read_fate(text: &str) -> Result<Fate, String> {
    match text.split_once(": ") {
        None => match text {
            "honoured" => Ok(Fate::Honoured),
            "ignored" => Ok(Fate::Ignored),
            "rejected" => Ok(Fate::Rejected),
            _ => Err(format!("{text:?} is not a fate")),
        },
        Some(("honoured", classes)) => {
            let classes = classes.split(", ").map(str::parse);
            Ok(Fate::HonouredFor(classes.collect::<Result<_, _>>()?))
        }
        Some(_) => Err(format!("{text:?} is not a fate")),
    }
}
