//! Redirects of servers that are followed for the caller (`RouteAction.internal_redirect_policy`).

use http::HeaderName;

/// Which answers of servers are followed, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalRedirectPolicy {
    /// Most redirects that a request follows, over all routes. Default 1.
    pub max_redirects: u32,
    /// Status codes that are followed, of [`REDIRECT_CODES`]. Default 302.
    pub codes: Vec<u16>,
    /// All of them must hold.
    pub predicates: Vec<RedirectPredicate>,
    /// Whether `https` may follow `http`. Default false.
    pub allow_cross_scheme: bool,
    /// Headers of the answer that take the place of the request's; one that the answer does not have
    /// is removed.
    pub response_headers_to_copy: Vec<HeaderName>,
}

/// Status codes that can be followed.
pub const REDIRECT_CODES: [u16; 5] = [301, 302, 303, 307, 308];

impl Default for InternalRedirectPolicy {
    fn default() -> Self {
        Self {
            max_redirects: 1,
            codes: vec![302],
            predicates: Vec::new(),
            allow_cross_scheme: false,
            response_headers_to_copy: Vec::new(),
        }
    }
}

/// What must hold of the route that a redirect leads to (`envoy.internal_redirect_predicates.*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// The same route has not led there before.
    PreviousRoutes,
    /// It has one of these names.
    AllowListedRoutes(Vec<String>),
    /// A plaintext request does not become an `https` one.
    SafeCrossScheme,
}
