//! The policies of a filter by what they need: a caller's name, a path, both or neither.
//!
//! A policy that can only match callers with one of some names, or requests for one of some paths,
//! is looked at for those alone. What a request costs depends on the policies that are about it,
//! not on how many there are.

use std::{collections::BTreeMap, iter, sync::Arc};

use hashbrown::HashMap;

use super::{
    AuthzRequest,
    rule::{Rule, exact},
};
use crate::config::{Permission, Principal, RbacPolicy};

/// Most entries that one policy has in the index; one with more is looked at for every request.
const ENTRIES_MAX: usize = 4_096;

/// All policies of a filter; `find` gives the first by name.
#[derive(Clone, Debug)]
pub(super) struct PolicyIndex {
    rules: Box<[Rule]>,
    by_name: HashMap<Box<str>, Bucket>,
    everybody: Bucket,
}

/// Policies for the same caller, in order of their names.
#[derive(Clone, Debug, Default)]
struct Bucket {
    by_path: HashMap<Box<str>, Vec<u32>>,
    everywhere: Vec<u32>,
}

impl PolicyIndex {
    pub(super) fn compile(policies: &BTreeMap<String, RbacPolicy>) -> Self {
        let mut index = Self {
            rules: Box::default(),
            by_name: HashMap::new(),
            everybody: Bucket::default(),
        };
        let mut rules = Vec::with_capacity(policies.len());
        for (name, policy) in policies {
            let Ok(number) = u32::try_from(rules.len()) else {
                break;
            };
            index.enter(number, policy);
            rules.push(Rule::compile(name, policy));
        }
        index.rules = rules.into();
        index
    }

    fn enter(&mut self, number: u32, policy: &RbacPolicy) {
        let mut names = needed(&policy.principals, names_of);
        let mut paths = needed(&policy.permissions, paths_of);
        let entries = |texts: &Option<Vec<&str>>| texts.as_ref().map_or(1, Vec::len);
        if entries(&names).saturating_mul(entries(&paths)) > ENTRIES_MAX {
            // The longer list is left to the policy itself, which keeps it as a set.
            let longer = if entries(&names) > entries(&paths) {
                &mut names
            } else {
                &mut paths
            };
            *longer = None;
        }
        if entries(&names).max(entries(&paths)) > ENTRIES_MAX {
            (names, paths) = (None, None);
        }
        match names {
            None => self.everybody.enter(number, paths.as_deref()),
            Some(names) => {
                for name in names {
                    let bucket = self.by_name.entry_ref(name).or_default();
                    bucket.enter(number, paths.as_deref());
                }
            }
        }
    }

    /// The first policy that matches.
    pub(super) fn find(&self, request: &AuthzRequest<'_>) -> Option<Arc<str>> {
        let first = self.buckets(request).fold(None, |first, bucket| {
            bucket.find(&self.rules, request, first)
        });
        let rule = self.rules.get(usize::try_from(first?).ok()?)?;
        Some(Arc::clone(&rule.name))
    }

    /// The policies that a caller's names may match.
    fn buckets<'i>(&'i self, request: &AuthzRequest<'i>) -> impl Iterator<Item = &'i Bucket> {
        let names = match request.authenticated {
            true => request.principals,
            false => &[],
        };
        // A certificate without any name is compared as the empty text (gRFC A41).
        let nameless = (request.authenticated && names.is_empty()).then_some("");
        let names = names.iter().map(String::as_str).chain(nameless);
        iter::once(&self.everybody).chain(names.filter_map(|name| self.by_name.get(name)))
    }

    /// How many policies are looked at for a request that none matches.
    #[cfg(test)]
    pub(super) fn looked_at(&self, request: &AuthzRequest<'_>) -> usize {
        let lists = self
            .buckets(request)
            .flat_map(|bucket| bucket.lists(request.path));
        lists.map(<[u32]>::len).sum()
    }
}

impl Bucket {
    fn enter(&mut self, number: u32, paths: Option<&[&str]>) {
        let Some(paths) = paths else {
            self.everywhere.push(number);
            return;
        };
        for path in paths {
            let numbers = self.by_path.entry_ref(*path).or_default();
            // The same path twice in one policy.
            if numbers.last() != Some(&number) {
                numbers.push(number);
            }
        }
    }

    /// The policies for a path, each list in order.
    fn lists(&self, path: &str) -> [&[u32]; 2] {
        let by_path = self.by_path.get(path);
        [by_path.map_or(&[][..], Vec::as_slice), &self.everywhere]
    }

    /// The first policy before `best` that matches, else `best`.
    fn find(&self, rules: &[Rule], request: &AuthzRequest<'_>, best: Option<u32>) -> Option<u32> {
        self.lists(request.path)
            .into_iter()
            .fold(best, |best, list| {
                let is_better = |number: &&u32| best.is_none_or(|best| **number < best);
                let mut candidates = list.iter().take_while(is_better);
                let found = candidates.find(|number| {
                    let rule = usize::try_from(**number).ok().and_then(|at| rules.get(at));
                    rule.is_some_and(|rule| rule.is_match(request))
                });
                found.copied().or(best)
            })
    }
}

/// The texts of which a request must have one for any of `tests` to match; `None` when some test
/// asks for none.
fn needed<'p, P>(
    tests: &'p [P],
    texts_of: fn(&'p P) -> Option<Vec<&'p str>>,
) -> Option<Vec<&'p str>> {
    let mut all = Vec::new();
    for test in tests {
        all.extend(texts_of(test)?);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

fn names_of(principal: &Principal) -> Option<Vec<&str>> {
    match principal {
        Principal::Authenticated(Some(matcher)) => exact(matcher).map(|name| vec![name]),
        Principal::Or(any) => needed(any, names_of),
        Principal::And(all) => shortest(all.iter().filter_map(names_of)),
        _ => None,
    }
}

fn paths_of(permission: &Permission) -> Option<Vec<&str>> {
    match permission {
        Permission::Path(matcher) => exact(matcher).map(|path| vec![path]),
        Permission::Or(any) => needed(any, paths_of),
        Permission::And(all) => shortest(all.iter().filter_map(paths_of)),
        _ => None,
    }
}

fn shortest<'p>(lists: impl Iterator<Item = Vec<&'p str>>) -> Option<Vec<&'p str>> {
    lists.min_by_key(Vec::len)
}
