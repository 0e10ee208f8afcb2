//! Versions: hashes of content, equal for equal input on every replica and after a restart.

use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::Resource;
use crate::model::ObjectSet;

/// Hash of a content: equal for equal content, in every process. Its text has 16 hex digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u64);

impl Version {
    /// The version that a client says it has; what no control plane of ours made differs from all
    /// that it makes.
    pub fn of_client(text: &str) -> Self {
        let is_ours = text.len() == VERSION_DIGITS;
        let parsed = u64::from_str_radix(text, 16).ok().filter(|_| is_ours);
        Self(parsed.unwrap_or_default())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Digits of a version's text.
const VERSION_DIGITS: usize = 16;

/// A version: equal for equal content, in every process.
///
/// The hash is over the text of the config, whose maps are ordered, because the order of a
/// protobuf map differs from process to process. The release is in it, as another one may encode the
/// same config in another way, which a client that says it has this version would never get.
pub(super) fn hash(content: &dyn Debug) -> Version {
    hash_by(env!("CARGO_PKG_VERSION"), content)
}

pub(super) fn hash_by(release: &str, content: &dyn Debug) -> Version {
    Version(xxh3_64(format!("{release} {content:?}").as_bytes()))
}

/// One version for a set of resources.
pub fn combined_version<'r>(resources: impl Iterator<Item = &'r Arc<Resource>>) -> Version {
    let mut all = Xxh3Default::new();
    for Resource { name, version, .. } in resources.map(|resource| &**resource) {
        all.update(&(name.len() as u64).to_le_bytes());
        all.update(name.as_bytes());
        all.update(&version.0.to_le_bytes());
    }
    Version(all.digest())
}

/// One version for a set of objects: what an operator wrote, whatever the order of the files.
pub fn input_version(objects: &ObjectSet) -> Version {
    let mut all = Xxh3Default::new();
    for (key, object) in objects {
        for text in [&*key.to_string(), &*object.place.text] {
            all.update(&(text.len() as u64).to_le_bytes());
            all.update(text.as_bytes());
        }
    }
    Version(all.digest())
}
