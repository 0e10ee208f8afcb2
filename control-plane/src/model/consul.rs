//! Consul's objects, as far as they are honoured.

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
    /// Matches in full.
    pub regex: Option<String>,
    /// The contrary.
    pub invert: bool,
}

/// Where to, and how.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouterDestination {
    /// Service; default the object's own.
    pub service: Option<String>,
    /// Subset of it.
    pub service_subset: Option<String>,
    /// Takes the place of what matched of the path.
    pub prefix_rewrite: Option<String>,
    /// Limit over all attempts.
    pub request_timeout: Option<String>,
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
