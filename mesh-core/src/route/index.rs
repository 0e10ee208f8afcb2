//! From a path to the few routes that it may match, in their order.
//!
//! Stage 6 builds it, stage 8 reads it. Routes by exact path and by prefix are found by hashing:
//! prefixes that end with a slash, or that a slash must follow, at each slash of the path, others at
//! each of their lengths. Every other route is a candidate for every path. What is a candidate is
//! still matched in full, so an index can never change which route is first.

use hashbrown::HashMap;

use crate::config::{PathMatcher, PathPattern};

/// Tables below this size are read from their beginning, which is faster.
const ROUTES_MIN: usize = 8;

/// Lists of candidates that are merged at most. A path that has more, with that many slashes or
/// nested prefixes, is looked up from the beginning.
const LISTS_MAX: usize = 24;

type Lists = HashMap<Box<str>, Vec<u32>>;

/// Candidates by path; every list is in ascending order.
#[derive(Debug, Default)]
pub(super) struct RouteIndex {
    exact: Lists,
    /// By prefixes that end with a slash.
    segments: Lists,
    /// By prefixes that end before a slash, or with the path.
    separated: Lists,
    /// By other prefixes, and their different lengths.
    prefixes: Lists,
    lengths: Vec<usize>,
    /// Matched by something else than an exact path or a prefix.
    others: Vec<u32>,
}

impl RouteIndex {
    /// An index of `matchers`; `None` when there is nothing to win.
    pub(super) fn new<'m>(
        matchers: impl ExactSizeIterator<Item = &'m PathMatcher>,
    ) -> Option<Self> {
        if matchers.len() < ROUTES_MIN {
            return None;
        }
        let mut index = Self::default();
        for (number, matcher) in (0..).zip(matchers) {
            let list = match &matcher.pattern {
                _ if !matcher.case_sensitive => None,
                PathPattern::Exact(path) => Some((&mut index.exact, path)),
                PathPattern::Prefix(prefix) if prefix.ends_with('/') => {
                    Some((&mut index.segments, prefix))
                }
                PathPattern::SeparatedPrefix(prefix) => Some((&mut index.separated, prefix)),
                PathPattern::Prefix(prefix) => {
                    if let Err(at) = index.lengths.binary_search(&prefix.len()) {
                        index.lengths.insert(at, prefix.len());
                    }
                    Some((&mut index.prefixes, prefix))
                }
                _ => None,
            };
            match list {
                Some((lists, key)) => lists.entry_ref(key.as_str()).or_default().push(number),
                None => index.others.push(number),
            }
        }
        (index.lengths.len() < LISTS_MAX).then_some(index)
    }

    /// The routes that may match `path`, ascending; `None` when they are too many lists.
    pub(super) fn candidates(&self, path: &str) -> Option<Candidates<'_>> {
        let mut candidates = Candidates {
            lists: [&[]; LISTS_MAX],
            count: 0,
        };
        candidates.add(&self.others)?;
        if !self.exact.is_empty()
            && let Some(list) = self.exact.get(path)
        {
            candidates.add(list)?;
        }
        if !self.segments.is_empty() {
            for (at, _) in path.match_indices('/') {
                if let Some(list) = self.segments.get(&path[..=at]) {
                    candidates.add(list)?;
                }
            }
        }
        if !self.separated.is_empty() {
            // Where a prefix may end: before each slash, and at the end.
            let slashes = path.match_indices('/').map(|(at, _)| at);
            for at in slashes.chain([path.len()]) {
                if let Some(list) = self.separated.get(&path[..at]) {
                    candidates.add(list)?;
                }
            }
        }
        for length in &self.lengths {
            let Some(prefix) = path.get(..*length) else {
                // Longer than the path, or not at the end of a character: then it matches nothing.
                continue;
            };
            if let Some(list) = self.prefixes.get(prefix) {
                candidates.add(list)?;
            }
        }
        Some(candidates)
    }

    /// Lists that are asked for at most, and candidates in them.
    #[cfg(test)]
    pub(super) fn steps(&self, path: &str) -> usize {
        let slashes = path.matches('/').count();
        let asked = 1 + self.lengths.len() + 2 * (slashes + 1);
        asked
            + self
                .candidates(path)
                .map_or(usize::MAX / 2, Iterator::count)
    }
}

/// See [`RouteIndex::candidates`].
pub(super) struct Candidates<'i> {
    lists: [&'i [u32]; LISTS_MAX],
    count: usize,
}

impl<'i> Candidates<'i> {
    fn add(&mut self, list: &'i [u32]) -> Option<()> {
        if list.is_empty() {
            return Some(());
        }
        *self.lists.get_mut(self.count)? = list;
        self.count += 1;
        Some(())
    }
}

impl Iterator for Candidates<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let lists = self.lists[..self.count].iter_mut();
        let next = lists
            .filter(|list| !list.is_empty())
            .min_by_key(|list| list[0])?;
        let (first, rest) = next.split_first()?;
        *next = rest;
        Some(*first)
    }
}
