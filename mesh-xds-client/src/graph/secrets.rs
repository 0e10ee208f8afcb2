//! Secrets that clusters and server listeners name, put where TLS finds them.
//!
//! Stage 7, beside snapshots: a rotation changes no cluster and no listener, so that connections that live
//! go on and the next handshake uses what is new. A secret is held for as long as something names it.

use mesh_core::SecretName;

use super::Graph;
use crate::cache::Reference;

impl Graph {
    /// Shows TLS what is known of a secret.
    pub(super) fn publish_secret(&self, name: &SecretName) {
        if let Some(known) = self.cache.secrets.resolved(name) {
            self.secrets.set(name, known.into_result());
        }
    }

    /// Shows TLS those of `changed` that are used, before anything that is complete with them.
    pub(super) fn publish_secrets(&self, changed: &[Reference]) {
        for reference in changed {
            if let Reference::Secret(name) = reference
                && self.is_secret_used(name)
            {
                self.publish_secret(name);
            }
        }
    }

    /// A secret has another value or an error: those that could not do without it are looked at again.
    pub(super) fn secret_changed(&mut self, name: &SecretName) {
        for cluster in self.clusters.users_of_secret(name) {
            self.refresh(&cluster);
        }
        let reference = Reference::Secret(name.clone());
        let ids = self.users.get(&reference).cloned().unwrap_or_default();
        for id in ids {
            self.evaluate(id);
        }
    }

    /// Whether a cluster, a listener or a watch of trust wants it.
    pub(super) fn is_secret_used(&self, name: &SecretName) -> bool {
        let reference = Reference::Secret(name.clone());
        let is_watched = self
            .users
            .get(&reference)
            .is_some_and(|ids| !ids.is_empty());
        is_watched || self.clusters.is_secret_used(name)
    }
}
