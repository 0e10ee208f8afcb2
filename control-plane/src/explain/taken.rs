//! What a route does to a request, and by which objects.

use mesh_core::config::{Cluster, Forward, Route, RouteAction, UpstreamTls};
use serde::{Deserialize, Serialize};

use super::Origin;
use crate::compile::{Compiled, Viewer};

/// What a route does.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Taken {
    /// The route's name.
    pub route: String,
    /// What it answers with, when it forwards nothing.
    pub answer: Option<String>,
    /// Where it forwards to.
    pub clusters: Vec<TakenCluster>,
    /// Limit over all attempts, in seconds; `None` is no limit.
    pub timeout: Option<f64>,
    /// When it tries again; `None` is never.
    pub retries: Option<TakenRetries>,
    /// What else happens on the way: what, and how.
    pub changes: Vec<(String, String)>,
}

/// A cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakenCluster {
    /// Its name.
    pub name: String,
    /// Its share.
    pub weight: u32,
    /// Of all shares.
    pub of: u64,
    /// Endpoints, whatever their health.
    pub endpoints: usize,
    /// What holds for calls to it: what, and how.
    pub policies: Vec<(String, String)>,
    /// The objects that it is made of.
    pub objects: Vec<Origin>,
}

/// Retries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakenRetries {
    /// After the first attempt.
    pub count: u32,
    /// Conditions.
    pub on: String,
    /// HTTP codes, if the conditions ask for some.
    pub status_codes: Vec<u16>,
    /// First pause, in seconds.
    pub backoff: f64,
    /// Longest pause, in seconds.
    pub backoff_max: f64,
    /// Limit of each attempt, in seconds.
    pub timeout: Option<f64>,
}

impl Taken {
    pub(super) fn new(compiled: &Compiled, route: &Route, viewer: Viewer<'_>) -> Self {
        let mut taken = Self {
            route: route.name.clone(),
            ..Self::default()
        };
        if let Some(changes) = &route.headers {
            taken.changed("headers", format!("{changes:?}"));
        }
        match &route.action {
            RouteAction::Forward(forward) => taken.forward(compiled, forward, viewer),
            RouteAction::Redirect(redirect) => taken.answer = Some(format!("{redirect:?}")),
            RouteAction::DirectResponse(direct) => {
                taken.answer = Some(format!("{} {:?}", direct.status, direct.body));
            }
            RouteAction::NonForwarding => taken.answer = Some("served here".to_owned()),
            RouteAction::Unsupported(reason) => taken.answer = Some(format!("500: {reason}")),
        }
        taken
    }

    fn changed(&mut self, what: &str, how: String) {
        self.changes.push((what.to_owned(), how));
    }

    fn forward(&mut self, compiled: &Compiled, forward: &Forward, viewer: Viewer<'_>) {
        let of: u64 = forward.clusters.iter().map(|c| u64::from(c.weight)).sum();
        for weighted in &forward.clusters {
            let name = weighted.name.as_str();
            let held = compiled.endpoints(name, viewer).map(|(_, held)| held);
            let localities = held.as_ref().map_or(&[][..], |held| &held.localities);
            let cluster = compiled.cluster(name, viewer).map(|(_, cluster)| cluster);
            self.clusters.push(TakenCluster {
                name: name.to_owned(),
                weight: weighted.weight,
                of,
                endpoints: localities.iter().map(|l| l.endpoints.len()).sum(),
                policies: cluster.map_or_else(Vec::new, |cluster| policies(cluster)),
                objects: compiled
                    .origins_of_cluster(name)
                    .iter()
                    .map(Origin::from)
                    .collect(),
            });
        }
        self.timeout = forward.timeout.map(|timeout| timeout.as_secs_f64());
        self.retries = forward.retry.as_ref().map(|retry| TakenRetries {
            count: retry.num_retries,
            on: retry.retry_on.to_string(),
            status_codes: retry.retriable_status_codes.clone(),
            backoff: retry.backoff.base.as_secs_f64(),
            backoff_max: retry.backoff.max.as_secs_f64(),
            timeout: retry.per_try_timeout.map(|limit| limit.as_secs_f64()),
        });
        let Some(extras) = &forward.extras else {
            return;
        };
        if let Some(rewrite) = &extras.path_rewrite {
            self.changed("path", format!("{rewrite:?}"));
        }
        if let Some(rewrite) = &extras.host_rewrite {
            self.changed("authority", format!("{rewrite:?}"));
        }
        if let Some(limit) = extras.idle_timeout {
            self.changed("idle timeout", format!("{limit:?}"));
        }
        for policy in &extras.hash_policy {
            self.changed("hash", format!("{policy:?}"));
        }
        for mirror in &extras.mirrors {
            self.changed("copy", format!("{mirror:?}"));
        }
    }
}

/// What holds for calls to a cluster.
fn policies(cluster: &Cluster) -> Vec<(String, String)> {
    let tls = match &cluster.tls {
        Some(tls) if tls.roots.is_of_mesh() => format!("mTLS, as one of {:?}", names(tls)),
        Some(tls) => format!("TLS to {:?}, by {:?}", names(tls), tls.roots),
        None if cluster.has_tls() => "mTLS where endpoints take it, plaintext else".to_owned(),
        None => "none: plaintext".to_owned(),
    };
    let mut policies = vec![
        ("balancing".to_owned(), format!("{:?}", cluster.lb_policy)),
        ("TLS".to_owned(), tls),
        (
            "connect timeout".to_owned(),
            format!("{:?}", cluster.connect_timeout),
        ),
        (
            "requests in flight".to_owned(),
            format!("at most {}", cluster.circuit_breakers.max_requests),
        ),
    ];
    if let Some(outliers) = &cluster.outlier_detection {
        policies.push(("outlier detection".to_owned(), format!("{outliers:?}")));
    }
    policies
}

/// Names that are expected of the server.
fn names(tls: &UpstreamTls) -> Vec<String> {
    let listed = tls.subject_alt_names.iter();
    let listed = listed.map(|name| format!("{:?}", name.matcher));
    let sent = tls.sni.clone().filter(|_| tls.auto_sni_san_validation);
    sent.map_or_else(|| listed.collect(), |name| vec![name])
}
