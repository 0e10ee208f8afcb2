//! What goes wrong, in words: which resource, which node and control plane, the last refusal, and
//! what to do.
//!
//! Stage 5. A failure of a resource goes to the cache, which knows whether a good value stands
//! against it. An outage is not about a resource: it only fails those that have nothing yet and wait
//! for a name of an authority that cannot be reached. Control planes' codes end here (gRFC A54): what
//! calls see is text.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use mesh_core::{ConfigError, ListenerName};

use super::{Graph, Watch, WatchId};
use crate::{
    cache::{Cause, ErrorPolicy, Failure, Reference},
    resource::{Kind, authority},
    watch::InboundState,
    watcher::Gate,
};

/// The server that something comes from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    pub(crate) server: Arc<str>,
    pub(crate) policy: ErrorPolicy,
    /// Closed while watchers are busy with what came from it.
    pub(crate) gate: Gate,
}

/// Longest text of the last refusal in an error of a call.
const NACK_TEXT_MAX: usize = 300;

/// Who asks whom, for error texts.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) node: String,
    /// The first control plane, for what no single one is the source of.
    pub(super) server: String,
    pub(super) last_nack: Option<String>,
}

impl Origin {
    /// As [`annotate`](Self::annotate), for what all control planes say together.
    pub(super) fn annotate_any(&self, error: ConfigError, advice: &str) -> ConfigError {
        self.annotate(error, &self.server, advice)
    }

    /// What an outage means for a resource; `error` names it.
    pub(super) fn away(&self, mut error: ConfigError, outage: &Outage) -> ConfigError {
        error.reason.clone_from(&outage.reason);
        let advice = "check that it runs and that its address is right";
        self.annotate(error, &outage.server, advice)
    }

    /// The same error, saying where it comes from and what to do.
    fn annotate(&self, mut error: ConfigError, server: &str, advice: &str) -> ConfigError {
        let node = &self.node;
        error.reason = format!("{} (node {node:?}, control plane {server}", error.reason);
        if let Some(nack) = &self.last_nack {
            error.reason.push_str("; last NACK: ");
            error.reason.push_str(cut(nack, NACK_TEXT_MAX));
        }
        error.reason.push(')');
        if !advice.is_empty() {
            error.reason.push_str("; ");
            error.reason.push_str(advice);
        }
        error
    }
}

/// The beginning of `text`.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev();
    let mut ends = end.filter(|end| text.is_char_boundary(*end));
    &text[..ends.next().unwrap_or(0)]
}

/// Why an authority cannot be reached.
#[derive(Debug)]
pub(super) struct Outage {
    server: String,
    reason: String,
}

impl Graph {
    /// A resource that no control plane can be asked for.
    pub(crate) fn refuse_name(&mut self, kind: Kind, name: &str, reason: &str, now: SystemTime) {
        let source = Source::default();
        let error = named(kind, name, reason);
        let changed = self.fail(kind, name, error, Cause::Missing, &source, now);
        self.propagate(changed.into_iter().collect(), None);
    }

    pub(super) fn fail(
        &mut self,
        kind: Kind,
        name: &str,
        error: ConfigError,
        cause: Cause,
        source: &Source,
        now: SystemTime,
    ) -> Option<Reference> {
        let advice = match cause {
            Cause::Rejected => "correct it at the control plane",
            Cause::Removed | Cause::Missing | Cause::DataError => {
                "check that the control plane has it and shows it to this node"
            }
            Cause::ServerError | Cause::TimedOut | Cause::Expired => {
                "check the health and the log of the control plane"
            }
        };
        let failure = Failure {
            cause,
            error: self.origin.annotate(error, &source.server, advice),
            since: now,
        };
        self.cache.fail(kind, name, failure, source.policy)
    }

    /// None of an authority's control planes can be reached. Those that have nothing yet fail until
    /// one can.
    pub(crate) fn disconnected(&mut self, authority: Option<&str>, server: &str, error: &str) {
        let outage = Outage {
            server: server.to_owned(),
            reason: format!("the control plane cannot be reached: {error}"),
        };
        self.outages.insert(authority.map(str::to_owned), outage);
        let ids: Vec<_> = self.watches.keys().copied().collect();
        for id in ids {
            self.fail_for_outage(id);
        }
        self.tell_of_outage(authority);
    }

    /// One of an authority's control planes can be reached.
    pub(crate) fn connected(&mut self, authority: Option<&str>) {
        let was_away = self.outages.remove(&authority.map(str::to_owned));
        if was_away.is_some() {
            self.tell_of_outage(authority);
        }
    }

    pub(super) fn fail_for_outage(&mut self, id: WatchId) {
        if self.outages.is_empty() {
            return;
        }
        let Some(watch) = self.watches.get(&id) else {
            return;
        };
        let missing = self.missing(watch);
        let hit = missing
            .iter()
            .find_map(|name| self.outages.get(&authority(name).map(str::to_owned)));
        let Some(outage) = hit else {
            return;
        };
        let describe = |listener: &ListenerName| {
            let error = ConfigError::new(format!("listener {listener}"), "", "");
            self.origin.away(error, outage)
        };
        match self.watches.get_mut(&id) {
            Some(Watch::Client(watch)) => {
                let error = describe(&watch.listener);
                watch.fail_for_outage(error);
            }
            Some(Watch::Inbound(watch)) => {
                let error = describe(&watch.listener);
                let is_pending = |state: &InboundState| matches!(state, InboundState::Pending);
                watch.tx.send_if_modified(|state| {
                    let is_changed = is_pending(state);
                    if is_changed {
                        *state = InboundState::Failed(error);
                    }
                    is_changed
                });
            }
            Some(Watch::TrustBundle { .. } | Watch::Resource(_)) | None => {}
        }
    }

    /// Names that a watch waits for.
    fn missing(&self, watch: &Watch) -> Vec<String> {
        let (listener, route, clusters) = match watch {
            Watch::Client(watch) if !watch.has_listener() => {
                let clusters = watch.awaited().2;
                let missing = clusters
                    .iter()
                    .filter_map(|name| self.clusters.awaited(name));
                return missing.collect();
            }
            Watch::Client(watch) => watch.awaited(),
            Watch::Inbound(watch) => (&watch.listener, None, BTreeSet::new()),
            Watch::TrustBundle { .. } | Watch::Resource(_) => return Vec::new(),
        };
        let mut missing = Vec::new();
        if self.cache.listeners.resolved(listener).is_none() {
            missing.push(listener.to_string());
        }
        if let Some(route) = route
            && self.cache.routes.resolved(route).is_none()
        {
            missing.push(route.to_string());
        }
        for cluster in clusters {
            missing.extend(self.clusters.awaited(&cluster));
        }
        missing
    }
}

pub(super) fn named(kind: Kind, name: &str, reason: &str) -> ConfigError {
    ConfigError::new(format!("{} {name}", kind.noun()), "", reason)
}
