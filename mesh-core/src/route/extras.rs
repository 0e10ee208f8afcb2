//! What few routes have, compiled.

use std::sync::Arc;

use super::StreamLimits;
use crate::config::{
    AttemptCounts, ClusterExtras, Forward, ForwardExtras, HeaderMutations, LbMetadata, Route,
    RouteAction, RouteConfig, VirtualHost,
};
use crate::name::ClusterName;

/// What a route asks for beyond choosing a cluster.
#[derive(Debug)]
pub(super) struct RouteExtras {
    pub(super) headers: Option<Box<HeaderMutations>>,
    pub(super) forward: ForwardExtras,
    /// Names and extras of the clusters, in the order of the compiled ones.
    pub(super) clusters: Box<[(ClusterName, Option<Box<ClusterExtras>>)]>,
    /// The metadata that endpoints must have, for each of the clusters; for those that a header names
    /// there is one.
    pub(super) metadata: Box<[Option<Arc<LbMetadata>>]>,
}

impl RouteExtras {
    /// `None` for a route that has none.
    pub(super) fn of(route: &Route, limits: &StreamLimits) -> Option<Box<Self>> {
        let none = Forward::default();
        let forward = match &route.action {
            RouteAction::Forward(forward) => forward,
            _ => &none,
        };
        let idle = limits
            .idle
            .filter(|_| matches!(route.action, RouteAction::Forward(_)));
        let is_plain = route.headers.is_none()
            && idle.is_none()
            && forward.extras.is_none()
            && forward.clusters.iter().all(|c| c.extras.is_none());
        if is_plain {
            return None;
        }
        let clusters = forward.clusters.iter().filter(|c| c.weight > 0);
        let mut extras = forward.extras.as_deref().cloned().unwrap_or_default();
        extras.idle_timeout = extras.idle_timeout.or(idle);
        let mut metadata: Vec<_> = clusters
            .clone()
            .map(|cluster| metadata_match(&extras, cluster.extras.as_deref()))
            .collect();
        if metadata.is_empty() {
            metadata.push(metadata_match(&extras, None));
        }
        Some(Box::new(Self {
            headers: route.headers.clone(),
            forward: extras,
            metadata: metadata.into(),
            clusters: clusters
                .map(|cluster| (cluster.name.clone(), cluster.extras.clone()))
                .collect(),
        }))
    }
}

/// What the cluster asks for wins over what the route does.
fn metadata_match(
    route: &ForwardExtras,
    cluster: Option<&ClusterExtras>,
) -> Option<Arc<LbMetadata>> {
    let mut wanted = route.metadata_match.clone();
    wanted.extend(cluster.into_iter().flat_map(|c| c.metadata_match.clone()));
    (!wanted.is_empty()).then(|| Arc::new(wanted))
}

/// Changes of headers that hold for every route of a table.
#[derive(Debug)]
pub(super) struct HeaderLevels {
    pub(super) host: Option<Box<HeaderMutations>>,
    pub(super) config: Option<Box<HeaderMutations>>,
    pub(super) most_specific_last: bool,
    pub(super) attempts: AttemptCounts,
}

impl HeaderLevels {
    /// `None` when no order and no change is asked for.
    pub(super) fn of(config: &RouteConfig, host: &VirtualHost) -> Option<Box<Self>> {
        let is_plain = config.headers.is_none()
            && host.headers.is_none()
            && host.attempt_counts == AttemptCounts::default()
            && !config.most_specific_mutations_win;
        (!is_plain).then(|| {
            Box::new(Self {
                host: host.headers.clone(),
                config: config.headers.clone(),
                most_specific_last: config.most_specific_mutations_win,
                attempts: host.attempt_counts,
            })
        })
    }

    /// Whether no header changes.
    pub(super) fn is_empty(&self) -> bool {
        self.host.is_none() && self.config.is_none() && self.attempts == AttemptCounts::default()
    }
}
