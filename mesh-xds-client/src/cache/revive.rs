//! Stored resources, judged by this release.
//!
//! Stage 4. They go through the same decode as those from the wire; what is not asked for in several
//! runs of the process is left behind.

use std::time::SystemTime;

use mesh_core::ConfigError;

use crate::{
    resource::{Accepted, DecodeContext, Raw, decode_all},
    store::{StoredResource, UNUSED_RUNS_MAX},
};

/// Resources that can be used, with when they were received and how many runs did not ask for them.
#[derive(Debug, Default)]
pub(crate) struct Revived {
    pub(crate) usable: Vec<(Accepted, SystemTime, u8)>,
    /// Why others cannot.
    pub(crate) errors: Vec<ConfigError>,
}

/// Decodes what an earlier run stored.
pub(crate) fn revive(stored: Vec<StoredResource>, context: &DecodeContext) -> Revived {
    let mut revived = Revived::default();
    for stored in stored {
        let (kind, updated, unused_runs) = (stored.kind, stored.updated, stored.unused_runs);
        if unused_runs > UNUSED_RUNS_MAX {
            continue;
        }
        let raw = Raw::stored(kind, stored.name, stored.version.into(), stored.raw.into());
        let decoded = decode_all(kind, vec![raw], context, |_| true);
        let rejected = decoded.rejected.iter();
        revived.errors.extend(rejected.map(|r| r.combined(kind)));
        let accepted = decoded.accepted.into_iter();
        let usable = accepted.map(|accepted| (accepted, updated, unused_runs));
        revived.usable.extend(usable);
    }
    revived
}
