//! Consul's service-intentions, as its Kubernetes object.

use serde::Deserialize;

use super::consul::RouterText;

/// Who may call a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceIntentions {
    /// Which service.
    pub destination: IntentionDestination,
    /// Who.
    pub sources: Vec<IntentionSource>,
}

/// A service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntentionDestination {
    /// Its name; `*` is every one of the namespace.
    pub name: String,
    /// Its namespace; default that of the object.
    pub namespace: Option<String>,
}

/// A caller, and what it may do.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntentionSource {
    /// Its service account, which Consul gives the name of the service; `*` is every one.
    pub name: String,
    /// Its namespace; default that of the object, `*` is every one.
    pub namespace: Option<String>,
    /// `allow` or `deny`, instead of `permissions`.
    pub action: Option<String>,
    /// The first that matches decides, instead of `action`.
    pub permissions: Vec<IntentionPermission>,
}

/// What is permitted or not.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntentionPermission {
    /// `allow` or `deny`.
    pub action: String,
    /// Which requests.
    pub http: IntentionHttp,
}

/// All that are given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntentionHttp {
    /// The path.
    pub path_exact: Option<String>,
    /// The path's beginning.
    pub path_prefix: Option<String>,
    /// The path, as a regular expression.
    pub path_regex: Option<String>,
    /// Any of these; none is every one.
    pub methods: Vec<String>,
    /// All of these.
    pub header: Vec<RouterText>,
}
