//! Who may sign tokens for whom, as declared (Envoy `jwt_authn`; RFC 7519, 7517).

use std::{sync::Arc, time::Duration};

/// How far clocks may differ, unless a provider says otherwise (Envoy's default).
pub const JWT_CLOCK_SKEW_DEFAULT: Duration = Duration::from_secs(60);

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
    /// The issuer's keys, a JSON Web Key Set (RFC 7517). One that cannot be used verifies nothing.
    pub jwks: Arc<str>,
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
    pub fn new(
        name: impl Into<String>,
        issuer: impl Into<String>,
        jwks: impl Into<Arc<str>>,
    ) -> Self {
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
