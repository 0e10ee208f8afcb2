//! Cross-origin requests (Envoy `CorsPolicy`; Fetch standard, CORS protocol).

use crate::config::{Fraction, StringMatcher};

/// What browsers may do from pages of other origins. What is empty or `None` is taken from the next
/// less specific level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsPolicy {
    /// Origins, any of them.
    pub allow_origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`; `*` repeats what is asked for.
    pub allow_methods: String,
    /// `access-control-allow-headers`; `*` repeats what is asked for.
    pub allow_headers: String,
    /// `access-control-expose-headers`.
    pub expose_headers: String,
    /// `access-control-max-age`, in seconds.
    pub max_age: String,
    /// `access-control-allow-credentials`.
    pub allow_credentials: Option<bool>,
    /// `access-control-allow-private-network`.
    pub allow_private_network_access: Option<bool>,
    /// Whether preflight requests of other origins reach the application. Default true.
    pub forward_not_matching_preflights: Option<bool>,
    /// Share of the requests that the policy holds for; `None` for all.
    pub enabled: Option<Fraction>,
}
