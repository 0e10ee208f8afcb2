//! What few routes have, compiled.

use crate::config::{
    ClusterExtras, Forward, ForwardExtras, HeaderMutations, Route, RouteAction, RouteConfig,
    VirtualHost,
};
use crate::name::ClusterName;

/// What a route asks for beyond choosing a cluster.
#[derive(Debug)]
pub(super) struct RouteExtras {
    pub(super) headers: Option<Box<HeaderMutations>>,
    pub(super) forward: ForwardExtras,
    /// Names and extras of the clusters, in the order of the compiled ones.
    pub(super) clusters: Box<[(ClusterName, Option<Box<ClusterExtras>>)]>,
}

impl RouteExtras {
    /// `None` for a route that has none.
    pub(super) fn of(route: &Route) -> Option<Box<Self>> {
        let none = Forward::default();
        let forward = match &route.action {
            RouteAction::Forward(forward) => forward,
            _ => &none,
        };
        let is_plain = route.headers.is_none()
            && forward.extras.is_none()
            && forward.clusters.iter().all(|c| c.extras.is_none());
        if is_plain {
            return None;
        }
        let clusters = forward.clusters.iter().filter(|c| c.weight > 0);
        Some(Box::new(Self {
            headers: route.headers.clone(),
            forward: forward.extras.as_deref().cloned().unwrap_or_default(),
            clusters: clusters
                .map(|cluster| (cluster.name.clone(), cluster.extras.clone()))
                .collect(),
        }))
    }
}

/// Changes of headers that hold for every route of a table.
#[derive(Debug)]
pub(super) struct HeaderLevels {
    pub(super) host: Option<Box<HeaderMutations>>,
    pub(super) config: Option<Box<HeaderMutations>>,
    pub(super) most_specific_last: bool,
}

impl HeaderLevels {
    /// `None` when no order and no change is asked for.
    pub(super) fn of(config: &RouteConfig, host: &VirtualHost) -> Option<Box<Self>> {
        let is_plain = config.headers.is_none()
            && host.headers.is_none()
            && !config.most_specific_mutations_win;
        (!is_plain).then(|| {
            Box::new(Self {
                host: host.headers.clone(),
                config: config.headers.clone(),
                most_specific_last: config.most_specific_mutations_win,
            })
        })
    }

    /// Whether no header changes.
    pub(super) fn is_empty(&self) -> bool {
        self.host.is_none() && self.config.is_none()
    }
}
