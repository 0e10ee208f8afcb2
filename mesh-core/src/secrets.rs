//! Secrets that the configuration names, by name, as they are now.
//!
//! Beside stage 7: what is written here changes no snapshot, so that a rotation is seen by the next
//! handshake and by nothing else. Whoever keeps the configuration writes and decides how long a
//! secret is held; TLS reads. It neither parses a secret nor fetches one.
//!
//! ```
//! use std::sync::Arc;
//!
//! use mesh_core::{config::{Secret, TrustBundle}, secrets};
//!
//! let (writer, reader) = secrets::pair();
//! let bundle = TrustBundle { name: "partner".into(), roots: Vec::new() };
//! writer.set(&"partner".into(), Ok(Arc::new(Secret::TrustBundle(bundle))));
//! assert!(matches!(reader.get(&"partner".into()), Some(Ok(_))));
//! ```

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{ConfigError, config::Secret, name::SecretName};

/// A secret, or why there is none that may be used.
pub type SecretState = Result<Arc<Secret>, ConfigError>;

type Shared = Arc<RwLock<HashMap<SecretName, SecretState>>>;

/// A place for secrets, empty at first.
pub fn pair() -> (SecretWriter, SecretReader) {
    let shared = Shared::default();
    (SecretWriter(Arc::clone(&shared)), SecretReader(shared))
}

/// Says which secrets there are.
pub struct SecretWriter(Shared);

impl SecretWriter {
    /// The value of a name from now on.
    pub fn set(&self, name: &SecretName, state: SecretState) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        held.insert(name.clone(), state);
    }

    /// Nobody names it any more.
    pub fn remove(&self, name: &SecretName) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        held.remove(name);
    }
}

impl fmt::Debug for SecretWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        names(f, "SecretWriter", &self.0)
    }
}

/// Reads secrets. Clones share them; the default one never has any.
#[derive(Clone, Default)]
pub struct SecretReader(Shared);

impl SecretReader {
    /// The secret of handshakes that begin now; `None` when the configuration in use names none
    /// such. The pointer is the same until the value changes.
    pub fn get(&self, name: &SecretName) -> Option<SecretState> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        held.get(name).cloned()
    }
}

impl fmt::Debug for SecretReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        names(f, "SecretReader", &self.0)
    }
}

/// Never prints what is in them.
fn names(f: &mut fmt::Formatter<'_>, title: &str, shared: &Shared) -> fmt::Result {
    let held = shared.read().unwrap_or_else(PoisonError::into_inner);
    let mut names: Vec<_> = held.keys().map(SecretName::as_str).collect();
    names.sort_unstable();
    f.debug_tuple(title).field(&names).finish()
}
