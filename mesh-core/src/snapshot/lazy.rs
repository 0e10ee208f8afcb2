//! A cluster snapshot that is compiled when somebody looks at it.
//!
//! Stage 6. A process that knows ten thousand clusters calls a few of them: endpoints, counters and
//! pickers of the others are never made, and a change to one of them costs a pointer.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{
    ClusterSnapshot,
    compile::{ClusterTree, Kept},
};
use crate::{balance::LbPolicyFactories, config::LocalZones, name::ClusterName};

/// A version of a cluster. Dereferences to its [`ClusterSnapshot`], which the first look compiles.
pub struct LazySnapshot {
    compiled: OnceLock<Arc<ClusterSnapshot>>,
    pub(super) source: Source,
}

/// What a snapshot is compiled from.
pub(super) struct Source {
    pub(super) name: ClusterName,
    pub(super) tree: ClusterTree,
    pub(super) generation: u64,
    pub(super) start: u64,
    /// Where the caller is, for clusters that want to know.
    pub(super) local: Option<Arc<LocalZones>>,
    pub(super) kept: Arc<Mutex<Kept>>,
    pub(super) factories: Arc<LbPolicyFactories>,
}

impl LazySnapshot {
    pub(super) fn new(source: Source) -> Self {
        Self {
            compiled: OnceLock::new(),
            source,
        }
    }

    /// The snapshot.
    pub fn get(&self) -> &Arc<ClusterSnapshot> {
        self.compiled.get_or_init(|| {
            let source = &self.source;
            let mut kept = source.kept.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::new(kept.compile(source))
        })
    }

    /// The snapshot, if somebody has looked at it.
    pub fn compiled(&self) -> Option<&Arc<ClusterSnapshot>> {
        self.compiled.get()
    }
}

impl Deref for LazySnapshot {
    type Target = ClusterSnapshot;

    fn deref(&self) -> &ClusterSnapshot {
        self.get()
    }
}

impl fmt::Debug for LazySnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazySnapshot")
            .field("name", &self.source.name)
            .field("generation", &self.source.generation)
            .field("compiled", &self.compiled())
            .finish()
    }
}
