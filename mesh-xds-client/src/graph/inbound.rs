//! The watch of one server listener: LDS ► RDS.
//!
//! Stages 5 to 7. Routes that the listener names are followed like a client's, and put in the place of
//! their names; secrets are fetched with them. A listener is published with all of both: until each has a
//! value or an error, what was published before stays (gRFC A36). Routes with an error and no value serve nothing, and every
//! request that needs them is refused.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{
    ConfigError, ListenerName, RouteConfigName, SecretName,
    config::{DownstreamTls, InboundListener, ListenerKind, RouteConfig, RouteSource},
};
use tokio::sync::watch;

use super::{Graph, WatchId};
use crate::{
    cache::{Reference, Resolved},
    resource::Kind,
    watch::InboundState,
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct InboundWatch {
    pub(super) listener: ListenerName,
    pub(super) tx: watch::Sender<InboundState>,
    /// Of the listener that is published, and of the one that is waited for.
    pub(super) routes: BTreeSet<RouteConfigName>,
    /// The same of secrets.
    pub(super) secrets: BTreeSet<SecretName>,
}

impl InboundWatch {
    pub(super) fn new(listener: ListenerName, tx: watch::Sender<InboundState>) -> Self {
        Self {
            listener,
            tx,
            routes: BTreeSet::new(),
            secrets: BTreeSet::new(),
        }
    }

    fn fail(&self, error: ConfigError, drops: bool) {
        self.tx.send_if_modified(|state| {
            if matches!(state, InboundState::Ready(_)) && !drops {
                return false;
            }
            *state = InboundState::Failed(error);
            true
        });
    }
}

/// The routes that the chains name.
fn named(listener: &InboundListener) -> BTreeSet<RouteConfigName> {
    let chains = listener.filter_chains.iter();
    chains
        .filter_map(|chain| match &chain.routes {
            RouteSource::Rds(name) => Some(name.clone()),
            RouteSource::Inline(_) => None,
        })
        .collect()
}

impl Graph {
    pub(super) fn evaluate_inbound(&mut self, id: WatchId, watch: &mut InboundWatch) {
        let listener = match self.cache.listeners.resolved(&watch.listener) {
            None => return,
            Some(Resolved::Value(listener)) => listener,
            Some(Resolved::Error(error)) => return watch.fail(error, false),
            Some(Resolved::Dropped(error)) => return watch.fail(error, true),
        };
        let ListenerKind::Inbound(inbound) = &listener.kind else {
            let error = self.wrong_kind(&watch.listener, "a client's, not a server's");
            return watch.fail(error, false);
        };
        let wanted = named(inbound);
        for name in &wanted {
            if watch.routes.insert(name.clone()) {
                self.hold(Reference::Route(name.clone()), id);
            }
        }
        let chains = inbound.filter_chains.iter();
        let tls = chains.filter_map(|chain| chain.tls.as_ref());
        let secrets: BTreeSet<_> = tls.flat_map(DownstreamTls::secrets).cloned().collect();
        for name in &secrets {
            if watch.secrets.insert(name.clone()) {
                self.hold(Reference::Secret(name.clone()), id);
                self.publish_secret(name);
            }
        }
        // A chain whose secret has an error refuses its handshakes, and no other chain's.
        if !secrets
            .iter()
            .all(|name| self.is_known(Kind::Secret, name.as_str()))
        {
            return;
        }
        let Some(complete) = self.with_routes(inbound) else {
            return;
        };
        watch.tx.send_if_modified(|state| {
            let is_same = matches!(&*state, InboundState::Ready(held) if **held == complete);
            if !is_same {
                *state = InboundState::Ready(Arc::new(complete));
            }
            !is_same
        });
        for name in watch
            .routes
            .difference(&wanted)
            .cloned()
            .collect::<Vec<_>>()
        {
            watch.routes.remove(&name);
            self.release(Reference::Route(name), id);
        }
        let unused: Vec<_> = watch.secrets.difference(&secrets).cloned().collect();
        for name in unused {
            watch.secrets.remove(&name);
            self.release(Reference::Secret(name), id);
        }
    }

    /// The listener with its routes; `None` while some are not known.
    fn with_routes(&self, inbound: &InboundListener) -> Option<InboundListener> {
        let mut complete = inbound.clone();
        for chain in &mut complete.filter_chains {
            let RouteSource::Rds(name) = &chain.routes else {
                continue;
            };
            chain.routes = RouteSource::Inline(match self.cache.routes.resolved(name)? {
                Resolved::Value(routes) => routes,
                Resolved::Error(error) | Resolved::Dropped(error) => {
                    tracing::warn!(chain = chain.name, %error, "requests are refused: no routes");
                    Arc::new(RouteConfig::new(name.as_str(), Vec::new()))
                }
            });
        }
        Some(complete)
    }

    pub(super) fn release_inbound(&mut self, id: WatchId, watch: InboundWatch) {
        self.release(Reference::Listener(watch.listener), id);
        for name in watch.routes {
            self.release(Reference::Route(name), id);
        }
        for name in watch.secrets {
            self.release(Reference::Secret(name), id);
        }
    }
}
