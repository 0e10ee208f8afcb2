//! Consul's objects, as far as they are honoured.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::HeaderOperations;

/// Routes of the service that has the object's name; what none of them takes goes to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceRouter {
    /// The first that matches.
    pub routes: Vec<RouterRoute>,
}

/// A route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouterRoute {
    /// When; none is always.
    pub r#match: Option<RouterMatch>,
    /// Where to; none is the service itself.
    pub destination: RouterDestination,
}

/// When a route applies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouterMatch {
    /// Of HTTP requests.
    pub http: RouterHttpMatch,
}

/// All of these.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouterHttpMatch {
    /// The path.
    pub path_exact: Option<String>,
    /// The path's beginning.
    pub path_prefix: Option<String>,
    /// The path, as a regular expression.
    pub path_regex: Option<String>,
    /// Compare the path without case.
    pub case_insensitive: bool,
    /// Any of these; none is every one.
    pub methods: Vec<String>,
    /// All of these.
    pub header: Vec<RouterText>,
    /// All of these.
    pub query_param: Vec<RouterParameter>,
}

/// A query parameter, and one predicate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouterParameter {
    /// Its name.
    pub name: String,
    /// It is there.
    pub present: bool,
    /// Equal.
    pub exact: Option<String>,
    /// Matches in full.
    pub regex: Option<String>,
}

/// A header, and one predicate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouterText {
    /// Its name.
    pub name: String,
    /// It is there.
    pub present: bool,
    /// Equal.
    pub exact: Option<String>,
    /// Begins with.
    pub prefix: Option<String>,
    /// Ends with.
    pub suffix: Option<String>,
    /// Contains.
    pub contains: Option<String>,
    /// Matches in full.
    pub regex: Option<String>,
    /// Compares without case; not for `regex`.
    pub ignore_case: bool,
    /// The contrary.
    pub invert: bool,
}

/// The name of a service in `namespace`, where one is said; `own` is meant without a name.
pub fn service_in(service: Option<&str>, namespace: Option<&str>, own: &str) -> Option<String> {
    let namespace = namespace.filter(|namespace| !namespace.is_empty());
    match (service, namespace) {
        (service, Some(namespace)) => Some(format!("{}.{namespace}", service.unwrap_or(own))),
        (service, None) => service.map(str::to_owned),
    }
}

/// Where to, and how.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouterDestination {
    /// Service; default the object's own.
    pub service: Option<String>,
    /// Subset of it.
    pub service_subset: Option<String>,
    /// Namespace of it; default the object's.
    pub namespace: Option<String>,
    /// Takes the place of what matched of the path.
    pub prefix_rewrite: Option<String>,
    /// Limit over all attempts.
    pub request_timeout: Option<String>,
    /// Limit of a stream without data.
    pub idle_timeout: Option<String>,
    /// Retries.
    pub num_retries: Option<u32>,
    /// Retry when no connection can be made.
    pub retry_on_connect_failure: bool,
    /// Retry on these conditions.
    pub retry_on: Vec<String>,
    /// Retry on these codes.
    pub retry_on_status_codes: Vec<u16>,
    /// Changes of the request's headers.
    pub request_headers: Option<HeaderOperations>,
    /// Changes of the response's headers.
    pub response_headers: Option<HeaderOperations>,
}

object! {
    /// Shares of the requests to the service that has the object's name.
    ServiceSplitter {
        /// Their weights sum up to 100.
        splits: Vec<Split>,
    }
}
object! {
    /// A share.
    Split {
        /// Percentage, in steps of 0.01.
        weight: f64,
        /// Service; default the object's own.
        service: Option<String>,
        /// Subset of it.
        service_subset: Option<String>,
        /// Namespace of it; default the object's.
        namespace: Option<String>,
        /// Changes of the request's headers.
        request_headers: Option<HeaderOperations>,
        /// Changes of the response's headers.
        response_headers: Option<HeaderOperations>,
    }
}
object! {
    /// What the name of a service stands for.
    ServiceResolver {
        /// Limit of connecting.
        connect_timeout: Option<String>,
        /// Limit over all attempts, unless a route says another.
        request_timeout: Option<String>,
        /// Subset of those that ask for none.
        default_subset: Option<String>,
        /// Parts by name.
        subsets: BTreeMap<String, ResolverSubset>,
        /// Another service in its place.
        redirect: Option<ResolverRedirect>,
        /// Where requests go when a subset has no healthy endpoint, by subset; `*` is all.
        failover: BTreeMap<String, ResolverFailover>,
        /// Balancing.
        load_balancer: Option<ResolverBalancer>,
        /// What places mean.
        prioritize_by_locality: Option<ResolverLocality>,
    }
}
object! {
    /// What places mean.
    ResolverLocality {
        /// `failover`, which prefers the nearest, or `none`.
        mode: Option<String>,
    }
}
object! {
    /// A part of a service.
    ResolverSubset {
        /// Expression over `Service.Meta`; none is everything.
        filter: Option<String>,
        /// Leave out what is draining.
        only_passing: bool,
    }
}
object! {
    /// Another service.
    ResolverRedirect {
        /// Service; default the object's own.
        service: Option<String>,
        /// Subset of it.
        service_subset: Option<String>,
        /// Namespace of it; default the object's.
        namespace: Option<String>,
    }
}
object! {
    /// Other services, in order.
    ResolverFailover {
        /// Service; default the object's own.
        service: Option<String>,
        /// Subset of it.
        service_subset: Option<String>,
        /// Namespace of it; default the object's.
        namespace: Option<String>,
        /// Several, instead of one.
        targets: Vec<ResolverRedirect>,
    }
}
object! {
    /// Balancing.
    ResolverBalancer {
        /// `random`, `round_robin`, `least_request`, `ring_hash` or `maglev`.
        policy: Option<String>,
        /// Of `ring_hash`.
        ring_hash_config: Option<RingHashConfig>,
        /// Of `least_request`.
        least_request_config: Option<LeastRequestConfig>,
        /// What requests have in common that go to one endpoint.
        hash_policies: Vec<ResolverHash>,
    }
}
object! {
    /// Size of the ring.
    RingHashConfig {
        /// Fewest entries.
        minimum_ring_size: Option<u64>,
        /// Most entries.
        maximum_ring_size: Option<u64>,
    }
}
object! {
    /// Choices.
    LeastRequestConfig {
        /// How many endpoints are compared; default 2.
        choice_count: Option<u32>,
    }
}
object! {
    /// A part of a request.
    ResolverHash {
        /// `header`, `cookie` or `query_parameter`.
        field: Option<String>,
        /// Its name.
        field_value: Option<String>,
        /// The cookie that is made for who has none.
        cookie_config: Option<CookieConfig>,
        /// The client's address.
        #[serde(rename = "sourceIP")]
        source_ip: bool,
        /// Whether what comes behind is left out when there is this.
        terminal: bool,
    }
}
object! {
    /// A cookie.
    CookieConfig {
        /// It lives as long as the client.
        session: bool,
        /// How long it lives.
        ttl: Option<String>,
        /// Its path.
        path: Option<String>,
    }
}
