//! Everything that follows from a request's head.
//!
//! Stage 8, for callers that do more than choose a cluster. A route without extras costs what
//! [`RouteTable::lookup`] costs.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{
    CompiledAction, CompiledRoute, ForwardAction, RequestView, RouteTable,
    extras::RouteExtras,
    format::{Values, apply},
    hash,
    redirect::{location, rewrite_host, rewrite_path},
};
use crate::{
    config::{
        ClusterExtras, HeaderChanges, HeaderMutations, HedgePolicy, HostRewrite,
        InternalRedirectPolicy, LbMetadata, Mirror, RetryPolicy, WeighBy,
    },
    rng::Rng,
};

/// Header that tells the authority before a rewrite.
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What is known of the caller besides its request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// Its address, for `source_ip`.
    pub source_ip: Option<IpAddr>,
    /// A number that its channel keeps, for `io.grpc.channel_id`.
    pub channel: Option<u64>,
    /// The cluster of its session, by its index in the snapshot: taken if the route has it (gRFC A60).
    pub cluster: Option<u32>,
}

/// What is to be done with a request.
#[derive(Debug)]
pub struct Decision<'t> {
    /// The route, and its number in [`RouteTable::routes`].
    pub route: &'t CompiledRoute,
    /// See `route`.
    pub number: u32,
    /// What to do.
    pub action: DecisionAction<'t>,
    table: &'t RouteTable,
    /// Which of the weighted clusters.
    place: Option<usize>,
    cluster_name: String,
    /// By the route, not by the cluster.
    is_host_rewritten: bool,
}

/// What to do.
#[derive(Debug)]
pub enum DecisionAction<'t> {
    /// Send the request.
    Forward(Forwarding<'t>),
    /// Answer with another address.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// The address.
        location: String,
    },
    /// Answer without asking anybody.
    DirectResponse {
        /// Status.
        status: u16,
        /// Body.
        body: &'t bytes::Bytes,
    },
    /// Serve it here.
    NonForwarding,
    /// Fail with this reason.
    Unsupported(&'t str),
    /// The header that names the cluster is missing; Envoy answers 503.
    NoClusterHeader(&'t HeaderName),
}

/// How to send a request.
#[derive(Debug)]
pub struct Forwarding<'t> {
    /// Where to.
    pub cluster: ChosenCluster,
    /// Whether that was drawn among several, and could have been another one.
    pub is_drawn: bool,
    /// The new path with its query; `None` when it stays.
    pub path_and_query: Option<String>,
    /// The new authority; `None` when it stays.
    pub authority: Option<String>,
    /// Whether the endpoint's hostname becomes the authority.
    pub authority_of_endpoint: bool,
    /// For pickers that keep equal hashes together.
    pub hash: Option<u64>,
    /// A cookie that the response should set, so that the hash stays.
    pub cookie: Option<GeneratedCookie>,
    /// Copies to make.
    pub mirrors: Vec<&'t Mirror>,
    /// Limit over all attempts.
    pub timeout: Option<Duration>,
    /// Limit of the stream's life.
    pub stream_limit: Option<Duration>,
    /// Limit without data; zero is none, `None` the listener's.
    pub idle_timeout: Option<Duration>,
    /// When to try again.
    pub retry: Option<&'t RetryPolicy>,
    /// Attempts side by side.
    pub hedge: Option<&'t HedgePolicy>,
}

/// A cluster, by what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChosenCluster {
    /// Its index in the snapshot.
    Index(u32),
    /// The name that a header gives.
    Named(String),
}

/// A `set-cookie` value for a request that had no cookie to hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedCookie {
    /// The header's value.
    pub header: String,
}

impl GeneratedCookie {
    /// Lives for `ttl`; zero is as long as its holder.
    pub(crate) fn new(
        name: &str,
        value: &str,
        ttl: Duration,
        path: &str,
        attributes: &[(String, String)],
    ) -> Self {
        let mut header = format!("{name}=\"{value}\"");
        if !ttl.is_zero() {
            header.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !path.is_empty() {
            header.push_str(&format!("; Path={path}"));
        }
        for (key, value) in attributes {
            header.push_str("; ");
            header.push_str(key);
            if !value.is_empty() {
                header.push('=');
                header.push_str(value);
            }
        }
        header.push_str("; HttpOnly");
        Self { header }
    }
}

impl RouteTable {
    /// Decides about a request; `None` when no route matches.
    pub fn decide<'t>(
        &'t self,
        request: &RequestView<'_>,
        caller: &Caller,
        rng: &mut impl Rng,
    ) -> Option<Decision<'t>> {
        let (number, _) = self.lookup(request, rng)?;
        Some(self.decide_route(number, request, caller, rng))
    }

    /// Decides about a request that [`lookup`](Self::lookup) gave route `number`.
    ///
    /// # Panics
    /// When there is no such route.
    pub fn decide_route<'t>(
        &'t self,
        number: u32,
        request: &RequestView<'_>,
        caller: &Caller,
        rng: &mut impl Rng,
    ) -> Decision<'t> {
        let route = &self.routes()[number as usize];
        let mut decision = Decision {
            route,
            number,
            action: DecisionAction::NonForwarding,
            table: self,
            place: None,
            cluster_name: String::new(),
            is_host_rewritten: false,
        };
        decision.action = match &route.action {
            CompiledAction::Forward(forward) => decision.forward(forward, request, caller, rng),
            CompiledAction::Redirect(redirect) => DecisionAction::Redirect {
                status: redirect.status,
                location: location(redirect, &route.matcher.path, request),
            },
            CompiledAction::DirectResponse(direct) => DecisionAction::DirectResponse {
                status: direct.status,
                body: &direct.body,
            },
            CompiledAction::NonForwarding => DecisionAction::NonForwarding,
            CompiledAction::Unsupported(reason) => DecisionAction::Unsupported(reason),
        };
        decision
    }

    /// Makes the changes that the response's headers get, for a decision that is gone. `request` is
    /// as for [`Decision::apply_response_headers`].
    pub fn apply_response_changes(
        &self,
        kept: &ResponseChanges,
        request: &RequestView<'_>,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) {
        let route = &self.routes()[kept.number as usize];
        let values = Values {
            request: *request,
            status: Some(status),
            route: &route.name,
            cluster: &kept.cluster_name,
        };
        for changes in self.response_changes(route, kept.place) {
            apply(changes, headers, &values);
        }
    }

    fn response_changes<'t>(
        &'t self,
        route: &'t CompiledRoute,
        place: Option<usize>,
    ) -> impl Iterator<Item = &'t HeaderChanges> {
        let cluster = route.cluster_extras(place);
        let cluster = cluster.map(|cluster| &cluster.headers.response);
        let levels = self.levels(route, |level| &level.response);
        cluster.into_iter().chain(levels)
    }

    /// Changes in the order in which they are made: route, host, configuration, unless the most
    /// specific should win. Those of a weighted cluster are made before, as in Envoy.
    fn levels<'t>(
        &'t self,
        route: &'t CompiledRoute,
        part: impl Fn(&'t HeaderMutations) -> &'t HeaderChanges,
    ) -> impl Iterator<Item = &'t HeaderChanges> {
        let table = self.headers.as_deref();
        let mut levels = [
            route
                .extras
                .as_ref()
                .and_then(|extras| extras.headers.as_deref()),
            table.and_then(|table| table.host.as_deref()),
            table.and_then(|table| table.config.as_deref()),
        ];
        if table.is_some_and(|table| table.most_specific_last) {
            levels.reverse();
        }
        levels.into_iter().flatten().map(part)
    }
}

impl CompiledRoute {
    fn cluster_extras(&self, place: Option<usize>) -> Option<&ClusterExtras> {
        self.extras.as_ref()?.clusters[place?].1.as_deref()
    }
}

/// What a response gets, kept without the table that decided it.
#[derive(Clone, Debug)]
pub struct ResponseChanges {
    number: u32,
    place: Option<usize>,
    cluster_name: String,
    /// Whether values are made from the request.
    pub reads_request: bool,
}

impl<'t> Decision<'t> {
    /// The metadata that the endpoint must have, where the cluster has subsets.
    pub fn metadata_match(&self) -> Option<&Arc<LbMetadata>> {
        let extras = self.route.extras.as_deref()?;
        extras.metadata.get(self.place.unwrap_or(0))?.as_ref()
    }

    /// The redirects that are followed for the caller.
    pub fn internal_redirect(&self) -> Option<&InternalRedirectPolicy> {
        let extras = self.route.extras.as_deref()?;
        extras.forward.internal_redirect.as_deref()
    }

    fn forward(
        &mut self,
        forward: &'t ForwardAction,
        request: &RequestView<'_>,
        caller: &Caller,
        rng: &mut impl Rng,
    ) -> DecisionAction<'t> {
        let mut forwarding = Forwarding {
            cluster: ChosenCluster::Index(0),
            is_drawn: forward.clusters().nth(1).is_some(),
            path_and_query: None,
            authority: None,
            authority_of_endpoint: false,
            hash: None,
            cookie: None,
            mirrors: Vec::new(),
            timeout: forward.timeout,
            stream_limit: forward.stream_limit,
            idle_timeout: None,
            retry: forward.retry.as_deref(),
            hedge: None,
        };
        let Some(extras) = self.route.extras.as_deref() else {
            let index = caller.cluster.filter(|held| forward.has(*held));
            forwarding.is_drawn &= index.is_none();
            let index = index.unwrap_or_else(|| forward.cluster(rng));
            forwarding.cluster = ChosenCluster::Index(index);
            return DecisionAction::Forward(forwarding);
        };
        let declared = &extras.forward;
        (forwarding.hash, forwarding.cookie) =
            hash::hash(&declared.hash_policy, request, caller, rng);
        forwarding.idle_timeout = declared.idle_timeout;
        forwarding.hedge = declared.hedge.as_ref();
        let mut own_host = None;
        if let Some(header) = &declared.cluster_header {
            let Some(name) = request.headers.get(header).and_then(|v| v.to_str().ok()) else {
                return DecisionAction::NoClusterHeader(header);
            };
            name.clone_into(&mut self.cluster_name);
            forwarding.cluster = ChosenCluster::Named(name.to_owned());
        } else {
            let held = caller.cluster.and_then(|held| forward.place_of(held));
            let number = number(extras, forwarding.hash, request);
            forwarding.is_drawn &= held.is_none() && number.is_none();
            let total = forward.total();
            let mut draw = || number.map_or_else(|| rng.below(total), |number| number % total);
            let place = held.unwrap_or_else(|| forward.place(draw()));
            let (name, cluster) = &extras.clusters[place];
            name.as_str().clone_into(&mut self.cluster_name);
            self.place = Some(place);
            own_host = cluster
                .as_ref()
                .and_then(|extras| extras.host_rewrite.clone());
            forwarding.cluster = ChosenCluster::Index(forward.cluster_at(place));
        }
        // As in Envoy, the route's own rewrite is made last.
        let host = declared.host_rewrite.as_ref();
        let host = host.and_then(|rewrite| rewrite_host(rewrite, request));
        forwarding.authority_of_endpoint = declared.host_rewrite == Some(HostRewrite::Endpoint);
        self.is_host_rewritten = host.is_some() || forwarding.authority_of_endpoint;
        forwarding.authority = host.or(own_host);
        let path = declared.path_rewrite.as_ref();
        forwarding.path_and_query =
            path.and_then(|rewrite| rewrite_path(rewrite, &self.route.matcher.path, request));
        let mirrors = declared.mirrors.iter();
        forwarding.mirrors = mirrors
            .filter(|mirror| mirror.fraction.is_none_or(|f| f.contains(rng.next_u64())))
            .collect();
        DecisionAction::Forward(forwarding)
    }

    /// Makes the changes that the request's headers get. `request` is as it was decided on; its
    /// headers are not looked at, those in `headers` are.
    pub fn apply_request_headers(&self, request: &RequestView<'_>, headers: &mut HeaderMap) {
        let mut values = self.values(request, None);
        if let Some(cluster) = self.route.cluster_extras(self.place) {
            apply(&cluster.headers.request, headers, &values);
            if let Some(host) = &cluster.host_rewrite {
                values.request.authority = host;
            }
        }
        for changes in self.table.levels(self.route, |level| &level.request) {
            apply(changes, headers, &values);
        }
        let appends =
            self.route.extras.as_ref().is_some_and(|extras| {
                extras.forward.append_x_forwarded_host && self.is_host_rewritten
            });
        if appends && let Ok(value) = HeaderValue::from_str(values.request.authority) {
            headers.append(X_FORWARDED_HOST, value);
        }
    }

    /// Makes the changes that the response's headers get. `request` is as it was sent, or as it
    /// came if it was not.
    pub fn apply_response_headers(
        &self,
        request: &RequestView<'_>,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) {
        let values = self.values(request, Some(status));
        for changes in self.table.response_changes(self.route, self.place) {
            apply(changes, headers, &values);
        }
    }

    /// What to keep for the response; `None` when its headers stay as they are.
    pub fn response_changes(&self) -> Option<ResponseChanges> {
        let all = || {
            let changes = self.table.response_changes(self.route, self.place);
            changes.filter(|changes| !changes.is_empty())
        };
        all().next()?;
        Some(ResponseChanges {
            number: self.number,
            place: self.place,
            cluster_name: self.cluster_name.clone(),
            reads_request: all().any(HeaderChanges::reads_request),
        })
    }

    fn values<'v>(&'v self, request: &RequestView<'v>, status: Option<StatusCode>) -> Values<'v> {
        Values {
            request: *request,
            status,
            route: &self.route.name,
            cluster: &self.cluster_name,
        }
    }
}

/// What decides among weighted clusters, where it is not a draw.
fn number(extras: &RouteExtras, hash: Option<u64>, request: &RequestView<'_>) -> Option<u64> {
    match &extras.forward.weigh_by {
        WeighBy::Random => None,
        WeighBy::Hash => hash,
        WeighBy::Header(name) => request
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok()?.parse().ok()),
    }
}
