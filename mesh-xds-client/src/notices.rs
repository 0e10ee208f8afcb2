//! Says once what is received and has no effect.
//!
//! Beside stage 3. Every resource of a fleet carries the same fields, so each field is logged once per
//! process; the list per resource is in the dump, and all are counted.

use std::collections::BTreeSet;

use crate::resource::Kind;

/// Fields that are remembered as told; beyond that they are told again.
const TOLD_MAX: usize = 1024;

/// What has been told.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    told: BTreeSet<String>,
}

impl Notices {
    /// Tells about the fields of a resource. Returns how many were news.
    pub(crate) fn tell(&mut self, kind: Kind, resource: &str, fields: &[String]) -> usize {
        let mut news = 0;
        for field in fields {
            let text = format!("{}: {}", kind.noun(), general(field));
            if self.told.contains(&text) {
                continue;
            }
            if self.told.len() < TOLD_MAX {
                self.told.insert(text);
            }
            news += 1;
            tracing::warn!(
                kind = kind.noun(),
                resource,
                field,
                "a field is set that has no effect here; said once, see docs/xds-fields.md"
            );
        }
        news
    }
}

/// A path without indexes and keys.
fn general(path: &str) -> String {
    let mut text = String::new();
    let mut depth = 0usize;
    for c in path.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => text.push(c),
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_told_once_whichever_resource_has_it() {
        let mut notices = Notices::default();
        let route = |i: u32| vec![format!("virtual_hosts[{i}].routes[0].tracing")];
        assert_eq!(notices.tell(Kind::Route, "a", &route(0)), 1);
        assert_eq!(notices.tell(Kind::Route, "b", &route(7)), 0);
        assert_eq!(notices.tell(Kind::Cluster, "b", &route(7)), 1);
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut notices = Notices::default();
        for i in 0..3000 {
            assert_eq!(notices.tell(Kind::Route, "a", &[format!("field{i}")]), 1);
        }
        assert_eq!(notices.told.len(), TOLD_MAX);
    }
}
