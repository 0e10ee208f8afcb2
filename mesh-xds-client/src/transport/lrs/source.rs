//! Which clusters are reported, handed from the driver to a reporter.
//!
//! A cluster that leaves is reported once more: what it did since the last report would be lost
//! otherwise. Few clusters leave between two reports, and one that leaves often is kept once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_core::{load::ClusterLoad, snapshot::LazySnapshot};
use tokio::sync::watch;

/// A cluster whose load is reported.
#[derive(Clone, Debug)]
pub(crate) struct LoadSource {
    pub(crate) cluster: String,
    /// Its name in EDS, empty without.
    pub(crate) service: String,
    /// Where its load is reported to, by address.
    pub(crate) server: Arc<str>,
    pub(crate) current: watch::Receiver<Arc<LazySnapshot>>,
    pub(crate) load: Arc<ClusterLoad>,
}

/// The driver's end. Dropping it asks for the last report.
#[derive(Debug)]
pub(crate) struct Sources {
    lists: Arc<Mutex<Lists>>,
    has_any: watch::Sender<bool>,
}

/// The reporter's end.
#[derive(Debug)]
pub(crate) struct SourcesReader {
    lists: Arc<Mutex<Lists>>,
    has_any: watch::Receiver<bool>,
}

/// What is reported next.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    pub(crate) current: Vec<LoadSource>,
    /// Left since the last report.
    pub(crate) gone: Vec<LoadSource>,
}

/// Both ends, without any source yet.
pub(crate) fn sources() -> (Sources, SourcesReader) {
    let lists = Arc::<Mutex<Lists>>::default();
    let (has_any, reader) = watch::channel(false);
    let sources = Sources {
        lists: Arc::clone(&lists),
        has_any,
    };
    let reader = SourcesReader {
        lists,
        has_any: reader,
    };
    (sources, reader)
}

fn lock(lists: &Mutex<Lists>) -> MutexGuard<'_, Lists> {
    lists.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sources {
    /// Other clusters than before.
    pub(crate) fn replace(&self, sources: Vec<LoadSource>) {
        let has_any = !sources.is_empty();
        let mut lists = lock(&self.lists);
        for old in std::mem::replace(&mut lists.current, sources) {
            let is_it = |other: &LoadSource| Arc::ptr_eq(&other.load, &old.load);
            if !lists.current.iter().chain(&lists.gone).any(is_it) {
                lists.gone.push(old);
            }
        }
        drop(lists);
        self.has_any.send_replace(has_any);
    }
}

impl SourcesReader {
    /// Waits until there is any; `false` when there will be none.
    pub(super) async fn any(&mut self) -> bool {
        let has_any = self.has_any.wait_for(|has_any| *has_any).await.is_ok();
        has_any || !lock(&self.lists).gone.is_empty()
    }

    /// Waits for the end of the driver.
    pub(super) async fn closed(&mut self) {
        while self.has_any.changed().await.is_ok() {}
    }

    /// What is reported now; those that are gone are told once.
    pub(super) fn take(&self) -> Lists {
        let mut lists = lock(&self.lists);
        let gone = std::mem::take(&mut lists.gone);
        Lists {
            current: lists.current.clone(),
            gone,
        }
    }
}
