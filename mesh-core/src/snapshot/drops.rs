//! Requests that the control plane wants refused (gRFC A27 `drop_overloads`).
//!
//! Stage 10, before anything else of the cluster. Categories are tested in order, each with its own
//! dice: two of 50 % refuse three quarters.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    config::{DropOverload, Fraction},
    rng::Rng,
};

/// The drop rules of one cluster, with how often each was used.
#[derive(Debug, Default)]
pub struct Drops {
    categories: Box<[Category]>,
}

#[derive(Debug)]
struct Category {
    share: Fraction,
    counter: Arc<DropCounter>,
}

/// Requests refused in one category. Outlives snapshots.
#[derive(Debug)]
pub struct DropCounter {
    category: Box<str>,
    dropped: AtomicU64,
}

impl DropCounter {
    /// The name of the category.
    pub fn category(&self) -> &str {
        &self.category
    }

    /// Requests refused since the process started.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// Counters by category.
pub(super) type DropCounters = BTreeMap<String, Arc<DropCounter>>;

impl Drops {
    pub(super) fn new(rules: &[DropOverload], counters: &mut DropCounters) -> Self {
        let category = |rule: &DropOverload| {
            let counter = counters.entry(rule.category.clone()).or_insert_with(|| {
                Arc::new(DropCounter {
                    category: rule.category.as_str().into(),
                    dropped: AtomicU64::new(0),
                })
            });
            Category {
                share: rule.share,
                counter: Arc::clone(counter),
            }
        };
        Self {
            categories: rules.iter().map(category).collect(),
        }
    }

    /// The name of the category in which a request is refused, which is counted; `None`: it goes on.
    pub fn draw<R: Rng + ?Sized>(&self, rng: &mut R) -> Option<&str> {
        let mut categories = self.categories.iter();
        let refusing = categories.find(|category| category.share.contains(rng.next_u64()))?;
        refusing.counter.dropped.fetch_add(1, Relaxed);
        Some(refusing.counter.category())
    }

    /// What was counted, for load reports.
    pub fn counters(&self) -> impl Iterator<Item = &DropCounter> {
        self.categories.iter().map(|category| &*category.counter)
    }
}
