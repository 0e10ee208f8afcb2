//! The entries of one type, by name.
//!
//! Stage 4. Asks for names and gives them up on the wire, and counts entries as their state changes, so
//! that a look at the counts costs nothing.

use std::{borrow::Borrow, collections::BTreeMap, hash::Hash, sync::Arc};

use hashbrown::HashMap;

use super::{
    Change, Failure, Good, Known, Resolved,
    entry::{Effect, Entry},
};
use crate::{
    dump::ResourceDump,
    metrics::{CacheState, ResourceKey},
    resource::{Config, Kind, Same, authority},
    store::StoredResource,
};

/// Entries of one type.
#[derive(Debug)]
pub(crate) struct Table<N, T> {
    kind: Kind,
    /// Boxed, as a third of the places in a table is empty.
    entries: HashMap<N, Box<Entry<T>>>,
    /// From an earlier run, not asked for yet, with the number of runs that did not.
    pub(super) stored: HashMap<String, (Good<T>, u8)>,
    /// Entries in use that are from an earlier run.
    pub(super) stale: usize,
    /// Entries of which something is new beside the value in use.
    pub(super) beside: Vec<N>,
    /// Entries by authority and state.
    counts: BTreeMap<(Option<String>, CacheState), u64>,
}

impl<N, T> Table<N, T>
where
    N: Hash + Eq + Clone + Borrow<str> + Into<Arc<str>> + for<'n> From<&'n str>,
    T: PartialEq,
{
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            entries: HashMap::new(),
            stored: HashMap::new(),
            stale: 0,
            beside: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// What is known of `name`; `None` when neither value nor error is.
    pub(crate) fn resolved(&self, name: &N) -> Option<Resolved<T>> {
        self.entries
            .get::<str>(name.borrow())
            .and_then(|entry| entry.resolved())
    }

    /// All that is known of `name`.
    pub(crate) fn known(&self, name: &str) -> Known<'_, T> {
        let nothing = Known {
            value: None,
            error: None,
        };
        self.entries
            .get(name)
            .map_or(nothing, |entry| entry.known())
    }

    /// The last good value, if it was made of these bytes.
    pub(super) fn same(
        &self,
        name: &str,
        bytes: &[u8],
        config: impl FnOnce(Arc<T>) -> Config,
    ) -> Option<Same> {
        let good = self.entries.get(name)?.good()?;
        (good.about.raw == bytes).then(|| Same {
            config: config(Arc::clone(&good.value)),
            raw: good.about.raw.clone(),
            ignored: good.about.ignored.clone(),
        })
    }

    pub(super) fn accept(&mut self, name: &str, good: Good<T>) -> Option<N> {
        self.change(name, |entry| entry.accept(name, good))
    }

    pub(super) fn fail(&mut self, name: &str, failure: Failure, drops: bool) -> Option<N> {
        self.change(name, |entry| entry.fail(failure, drops))
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Entry<T>) -> Effect) -> Option<N> {
        let entry = self.entries.get_mut(name)?;
        let was_stale = entry.is_stale();
        let before = entry.state();
        let effect = change(entry);
        let after = entry.state();
        // A value of this run never gives way to one of an earlier run.
        self.stale -= usize::from(was_stale && !entry.is_stale());
        if before != after {
            self.uncount(name, before);
            self.count(name, after);
        }
        match effect {
            Effect::Used => Some(name.into()),
            Effect::Beside => {
                self.beside.push(name.into());
                None
            }
            Effect::Nothing => None,
        }
    }

    /// Wants `name`; records the change for the stream.
    pub(super) fn request(&mut self, name: &N, changes: &mut Vec<Change>) {
        if !self.entries.contains_key::<str>(name.borrow()) {
            let stored = self.stored.remove::<str>(name.borrow());
            let entry = Entry::requested(stored.map(|(good, _)| good));
            self.stale += usize::from(entry.is_stale());
            self.count(name.borrow(), entry.state());
            self.entries.insert(name.clone(), Box::new(entry));
            changes.push(Change::subscribe(self.kind, name.clone().into()));
        }
    }

    /// Drops `name`; records the change for the stream.
    pub(super) fn forget(&mut self, name: &N, changes: &mut Vec<Change>) {
        if let Some(entry) = self.entries.remove::<str>(name.borrow()) {
            self.stale -= usize::from(entry.is_stale());
            self.uncount(name.borrow(), entry.state());
            changes.push(Change::unsubscribe(self.kind, name.clone().into()));
        }
    }

    fn count(&mut self, name: &str, state: CacheState) {
        let key = (authority(name).map(str::to_owned), state);
        *self.counts.entry(key).or_default() += 1;
    }

    fn uncount(&mut self, name: &str, state: CacheState) {
        let key = (authority(name).map(str::to_owned), state);
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
    }

    pub(super) fn add_counts(&self, to: &mut BTreeMap<ResourceKey, u64>) {
        for ((authority, state), count) in &self.counts {
            let key = ResourceKey {
                authority: authority.clone(),
                type_url: self.kind.type_url(),
                state: *state,
            };
            to.insert(key, *count);
        }
    }

    pub(super) fn is_known(&self, name: &str) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|entry| entry.resolved().is_some())
    }

    pub(super) fn dump(&self, to: &mut Vec<ResourceDump>) {
        let url = self.kind.type_url();
        let dumps = self.entries.iter();
        to.extend(dumps.map(|(name, entry)| entry.dump(url, name.borrow())));
    }

    pub(super) fn save(&self, is_storable: impl Fn(&T) -> bool, to: &mut Vec<StoredResource>) {
        let used = self.entries.iter().filter_map(|(name, entry)| {
            let good = entry.good()?;
            Some((Borrow::<str>::borrow(name), good, 0))
        });
        let unused = self.stored.iter();
        let unused =
            unused.map(|(name, (good, runs))| (name.as_str(), good, runs.saturating_add(1)));
        for (name, good, unused_runs) in used.chain(unused) {
            if is_storable(&good.value) {
                to.push(StoredResource {
                    kind: self.kind,
                    name: name.to_owned(),
                    version: good.about.version.to_string(),
                    raw: good.about.raw.clone(),
                    updated: good.about.updated,
                    unused_runs,
                });
            }
        }
    }
}
