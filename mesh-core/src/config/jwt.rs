//! Who may sign tokens for whom, as declared (Envoy `jwt_authn`; RFC 7519, 7517).

use std::{sync::Arc, time::Duration};

use http::Uri;

use super::Backoff;
use crate::name::ClusterName;

/// How far clocks may differ, unless a provider says otherwise (Envoy's default).
pub const JWT_CLOCK_SKEW_DEFAULT: Duration = Duration::from_secs(60);

/// How long fetched keys are used before they are fetched again, unless a provider says otherwise (Envoy's
/// default).
pub const JWKS_CACHE_DURATION_DEFAULT: Duration = Duration::from_secs(600);

/// The pause after a fetch that failed, unless a provider says otherwise (Envoy's default).
pub const JWKS_FAILED_REFETCH_DEFAULT: Duration = Duration::from_secs(1);

/// The pause before the first retry of a fetch, unless a provider says otherwise (Envoy's default); it
/// doubles up to ten times as much.
pub const JWKS_RETRY_PAUSE_DEFAULT: Duration = Duration::from_secs(1);

/// The shortest `cache_duration`; shorter ones count as this.
pub const JWKS_CACHE_DURATION_MIN: Duration = Duration::from_secs(1);

/// The shortest pause after a fetch that failed; shorter ones count as this.
pub const JWKS_FAILED_REFETCH_MIN: Duration = Duration::from_millis(100);

/// Most retries of a fetch that a provider may ask for.
pub const JWKS_RETRIES_MAX: u32 = 16;

/// Verifies tokens. A request without any passes; one with tokens needs one that a provider
/// verifies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwtAuthn {
    /// In order: the first that verifies a token says whose request it is.
    pub providers: Vec<JwtProvider>,
}

/// An issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtProvider {
    /// For people.
    pub name: String,
    /// `iss` must be equal; empty asks nothing of it.
    pub issuer: String,
    /// One of these must be in `aud`; empty asks nothing of it.
    pub audiences: Vec<String>,
    /// The issuer's keys.
    pub jwks: Jwks,
    /// Headers that may hold a token, with what stands before it.
    pub from_headers: Vec<HeaderLocation>,
    /// Query parameters that may hold one.
    pub from_params: Vec<String>,
    /// Cookies that may hold one.
    pub from_cookies: Vec<String>,
    /// Whether the application sees a token in a header or a parameter. Default false.
    pub forward: bool,
    /// The application gets the payload in this header, base64url; what callers say there is dropped.
    pub forward_payload_header: Option<String>,
    /// Claims that the application gets in headers.
    pub claim_to_headers: Vec<ClaimToHeader>,
    /// Key of the payload in the dynamic metadata of `envoy.filters.http.jwt_authn`; empty for none.
    pub payload_in_metadata: String,
    /// How far clocks may differ. Default [`JWT_CLOCK_SKEW_DEFAULT`].
    pub clock_skew: Duration,
}

impl JwtProvider {
    /// A provider with Envoy's defaults, whose tokens are where RFC 6750 has them: in
    /// `authorization: Bearer …` and in the parameter `access_token`.
    pub fn new(name: impl Into<String>, issuer: impl Into<String>, jwks: impl Into<Jwks>) -> Self {
        Self {
            name: name.into(),
            issuer: issuer.into(),
            audiences: Vec::new(),
            jwks: jwks.into(),
            from_headers: Vec::new(),
            from_params: Vec::new(),
            from_cookies: Vec::new(),
            forward: false,
            forward_payload_header: None,
            claim_to_headers: Vec::new(),
            payload_in_metadata: String::new(),
            clock_skew: JWT_CLOCK_SKEW_DEFAULT,
        }
    }
}

/// Where an issuer's keys are: a JSON Web Key Set (RFC 7517).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Jwks {
    /// These. A set that cannot be read verifies nothing.
    Inline(Arc<str>),
    /// The server fetches them.
    Remote(Arc<RemoteJwks>),
}

impl From<Arc<str>> for Jwks {
    fn from(text: Arc<str>) -> Self {
        Self::Inline(text)
    }
}

impl From<&str> for Jwks {
    fn from(text: &str) -> Self {
        Self::Inline(text.into())
    }
}

impl From<String> for Jwks {
    fn from(text: String) -> Self {
        Self::Inline(text.into())
    }
}

impl From<RemoteJwks> for Jwks {
    fn from(remote: RemoteJwks) -> Self {
        Self::Remote(Arc::new(remote))
    }
}

/// Keys that the server fetches from their issuer (Envoy `RemoteJwks`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteJwks {
    /// Where they are: its path is asked for, with its authority.
    pub uri: Uri,
    /// Who is asked, with the TLS that this cluster has.
    pub cluster: ClusterName,
    /// How long an answer may take, each try for itself.
    pub timeout: Duration,
    /// How long they are used before they are fetched again. Default
    /// [`JWKS_CACHE_DURATION_DEFAULT`].
    pub cache_duration: Duration,
    /// Whether they are fetched before a token asks for them, and again before anybody waits
    /// (`async_fetch`). Default false. Listeners do not wait for them (as with `fast_listener`), tokens
    /// do.
    pub prefetch: bool,
    /// The pause after a fetch that failed. Default [`JWKS_FAILED_REFETCH_DEFAULT`].
    pub failed_refetch: Duration,
    /// How often a fetch is tried again before it has failed, at most [`JWKS_RETRIES_MAX`]. Default 0.
    pub retries: u32,
    /// The pauses before that.
    pub backoff: Backoff,
}

impl RemoteJwks {
    /// Keys at `uri`, asked for through `cluster`, with Envoy's defaults.
    pub fn new(uri: Uri, cluster: impl Into<ClusterName>, timeout: Duration) -> Self {
        Self {
            uri,
            cluster: cluster.into(),
            timeout,
            cache_duration: JWKS_CACHE_DURATION_DEFAULT,
            prefetch: false,
            failed_refetch: JWKS_FAILED_REFETCH_DEFAULT,
            retries: 0,
            backoff: Backoff {
                base: JWKS_RETRY_PAUSE_DEFAULT,
                max: JWKS_RETRY_PAUSE_DEFAULT * 10,
            },
        }
    }
}

/// A header that may hold a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderLocation {
    /// Lower-case name.
    pub name: String,
    /// What stands before the token, for example `Bearer `; may be empty.
    pub value_prefix: String,
}

/// A claim that the application gets in a header; what callers say there is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimToHeader {
    /// Lower-case name.
    pub header: String,
    /// Claim; parts of nested ones are joined with `.`.
    pub claim: String,
}
