//! What a route does to a request, and by which objects.

use mesh_core::{
    config::{
        Cluster, DirectResponse, FilterOverrides, Forward, Fraction, HeaderMutations, HedgePolicy,
        HttpFilter, Mirror, Redirect, Route, RouteAction, StringPattern, UpstreamTls,
    },
    filter::{Level, describe, header_changes},
};
use serde::{Deserialize, Serialize};

use super::{
    Origin,
    servers::{TakenServers, servers},
};
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
    /// What filters of the client do: the name of each, and what.
    #[serde(default)]
    pub filters: Vec<(String, String)>,
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
    /// What filters do for its share, where that is not what they do for the others.
    #[serde(default)]
    pub filters: Vec<(String, String)>,
    /// What its servers ask of the request.
    #[serde(default)]
    pub servers: Vec<TakenServers>,
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

/// For whom a route is taken, and what stands above it.
pub(super) struct Taking<'t> {
    pub(super) compiled: &'t Compiled,
    pub(super) viewer: Viewer<'t>,
    /// Filters of the listener.
    pub(super) listed: &'t [HttpFilter],
    /// What the configuration and the virtual host say of filters.
    pub(super) above: [Option<&'t FilterOverrides>; 2],
}

impl Taking<'_> {
    /// What filters do where `below` says more of them.
    fn filters(&self, below: &[Option<&FilterOverrides>]) -> Vec<(String, String)> {
        let said = self.above.iter().chain(below).copied();
        // Filters of every client do something only where somebody says so.
        let mut listed = self.listed.to_vec();
        let mut levels = Vec::new();
        for overrides in said {
            for (name, one) in overrides.into_iter().flat_map(|said| &said.by_name) {
                let is_listed = listed.iter().any(|held| held.name == *name);
                if let (Some(config), false) = (&one.config, is_listed) {
                    listed.push(HttpFilter::new(&**name, config.clone()));
                }
            }
            levels.push(Level {
                place: "",
                overrides,
            });
        }
        describe(&listed, &levels)
    }
}

impl Taken {
    pub(super) fn new(taking: &Taking<'_>, route: &Route) -> Self {
        let mut taken = Self {
            route: route.name.clone(),
            ..Self::default()
        };
        if let Some(changes) = &route.headers {
            taken.headers(changes);
        }
        match &route.action {
            RouteAction::Forward(forward) => taken.forward(taking, route, forward),
            RouteAction::Redirect(redirect) => taken.answer = Some(redirected(redirect)),
            RouteAction::DirectResponse(direct) => taken.answer = Some(answered(direct)),
            RouteAction::NonForwarding => taken.answer = Some("served here".to_owned()),
            RouteAction::Unsupported(reason) => taken.answer = Some(format!("500: {reason}")),
        }
        taken
    }

    fn changed(&mut self, what: &str, how: String) {
        self.changes.push((what.to_owned(), how));
    }

    fn headers(&mut self, changes: &HeaderMutations) {
        let sides = [
            ("request", &changes.request),
            ("response", &changes.response),
        ];
        for (side, changes) in sides {
            if !changes.is_empty() {
                self.changed(&format!("headers of the {side}"), header_changes(changes));
            }
        }
    }

    fn forward(&mut self, taking: &Taking<'_>, route: &Route, forward: &Forward) {
        let &Taking {
            compiled, viewer, ..
        } = taking;
        let of_route = route.filters.as_deref();
        self.filters = taking.filters(&[of_route]);
        let of: u64 = forward.clusters.iter().map(|c| u64::from(c.weight)).sum();
        for weighted in &forward.clusters {
            let name = weighted.name.as_str();
            let held = compiled.endpoints(name, viewer).map(|(_, held)| held);
            let localities = held.as_ref().map_or(&[][..], |held| &held.localities);
            let cluster = compiled.cluster(name, viewer).map(|(_, cluster)| cluster);
            let own = weighted.extras.as_ref();
            let own = own.and_then(|extras| extras.filters.as_deref());
            let filters = match own {
                Some(own) => taking.filters(&[of_route, Some(own)]),
                None => Vec::new(),
            };
            self.clusters.push(TakenCluster {
                name: name.to_owned(),
                weight: weighted.weight,
                of,
                filters,
                servers: held
                    .as_ref()
                    .map(|held| servers(compiled, held, viewer))
                    .unwrap_or_default(),
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
            self.changed("path", rewrite.to_string());
        }
        if let Some(rewrite) = &extras.host_rewrite {
            self.changed("authority", rewrite.to_string());
        }
        if let Some(limit) = extras.idle_timeout {
            self.changed("idle timeout", format!("{limit:?}"));
        }
        for policy in &extras.hash_policy {
            self.changed("hash", policy.to_string());
        }
        if let Some(hedge) = &extras.hedge {
            self.changed("hedging", hedged(hedge));
        }
        for mirror in &extras.mirrors {
            self.changed("copy", copied(mirror));
        }
    }
}

fn redirected(redirect: &Redirect) -> String {
    let part =
        |what: &str, value: &Option<String>| value.as_ref().map(|value| format!("{what} {value}"));
    let path = redirect.path.as_ref().map(ToString::to_string);
    let port = redirect.port.map(|port| format!("port {port}"));
    let parts = [
        part("scheme", &redirect.scheme),
        part("host", &redirect.host),
        port,
        path,
        redirect.strip_query.then(|| "no query".to_owned()),
    ];
    let parts = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    format!("{}, a redirect to {parts}", redirect.status)
}

fn answered(direct: &DirectResponse) -> String {
    let body = String::from_utf8_lossy(&direct.body);
    format!("{} {body:?}", direct.status)
}

fn copied(mirror: &Mirror) -> String {
    let all = mirror
        .fraction
        .is_none_or(|share| share.per_million() == 1_000_000);
    let percent = |share: Fraction| f64::from(share.per_million()) / 10_000.0;
    match mirror.fraction {
        Some(share) if !all => format!("{} % to {}", percent(share), mirror.cluster),
        _ => format!("to {}", mirror.cluster),
    }
}

fn hedged(hedge: &HedgePolicy) -> String {
    let when = match &hedge.delay {
        Some(delay) => format!("after {delay}"),
        None => "after the timeout of an attempt".to_owned(),
    };
    format!(
        "another attempt {when}, at most {} at a time",
        hedge.attempts_max
    )
}

/// What holds for calls to a cluster.
fn policies(cluster: &Cluster) -> Vec<(String, String)> {
    let tls = match &cluster.tls {
        Some(tls) if tls.roots.is_of_mesh() => format!("mTLS, to one of {}", names(tls).join(", ")),
        Some(tls) => match &names(tls)[..] {
            [] => format!("TLS, by {}", tls.roots),
            names => format!("TLS to one of {}, by {}", names.join(", "), tls.roots),
        },
        None if cluster.has_tls() => "mTLS where endpoints take it, plaintext else".to_owned(),
        None => "none: plaintext".to_owned(),
    };
    let mut policies = vec![
        ("balancing".to_owned(), cluster.lb_policy.to_string()),
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
    let budget = &cluster.circuit_breakers.retry_budget;
    policies.push((
        "retries in flight".to_owned(),
        format!(
            "at most {} % of the requests, and {} in any case",
            budget.percent, budget.min_retry_concurrency
        ),
    ));
    if let Some(outliers) = &cluster.outlier_detection {
        policies.push(("outlier detection".to_owned(), outliers.to_string()));
    }
    policies
}

/// Names that are expected of the server.
fn names(tls: &UpstreamTls) -> Vec<String> {
    let listed = tls.subject_alt_names.iter();
    let listed = listed.map(|name| match &name.matcher.pattern {
        StringPattern::Exact(text) => text.clone(),
        StringPattern::Prefix(text) => format!("{text}*"),
        _ => name.matcher.to_string(),
    });
    let sent = tls.sni.clone().filter(|_| tls.auto_sni_san_validation);
    sent.map_or_else(|| listed.collect(), |name| vec![name])
}
