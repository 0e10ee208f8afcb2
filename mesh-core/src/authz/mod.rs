//! Whether a request may pass a server's authorisation filters.
//!
//! Stage: between the server's connection and the application. Compiled once per configuration,
//! asked once per request, without I/O. Semantics follow gRFC A41 and Envoy's RBAC filter; where
//! the two differ the stricter reading is taken:
//!
//! * `authenticated` needs a verified client certificate; TLS without one is not enough.
//! * `:path` is the path without its query, like `url_path`.
//! * `LOG`, which gRPC ignores, yields an audit record.
//!
//! Paths are compared as they came, without normalisation, because the application matches the
//! same bytes. It does not verify certificates and does not write audit lines.

use std::{borrow::Cow, sync::Arc};

use http::HeaderMap;

use crate::config::{Permission, Principal, Rbac, RbacAction, RbacPolicy, joined};

#[cfg(test)]
mod tests;

/// What a decision is made about.
#[derive(Clone, Copy, Debug)]
pub struct AuthzRequest<'r> {
    /// The caller's names: its URI subject alternative names; without any its DNS names; without
    /// any its subject. Empty for a caller without a certificate.
    pub principals: &'r [String],
    /// Whether the caller proved its names with a certificate that we trust.
    pub authenticated: bool,
    /// Method.
    pub method: &'r str,
    /// Path without query.
    pub path: &'r str,
    /// Authority or host header.
    pub authority: &'r str,
    /// Headers.
    pub headers: &'r HeaderMap,
    /// The port the request arrived on.
    pub destination_port: u16,
}

impl<'r> AuthzRequest<'r> {
    /// The joined value of a header or pseudo-header. `te` is never visible (gRFC A41), `-bin`
    /// headers are seen in base64 as they are sent.
    fn header(&self, name: &str) -> Option<Cow<'r, str>> {
        match name {
            ":method" => Some(Cow::Borrowed(self.method)),
            ":path" => Some(Cow::Borrowed(self.path)),
            ":authority" | "host" => Some(Cow::Borrowed(self.authority)),
            "te" => None,
            // Other pseudo-headers are refused when the configuration is decoded.
            name if name.starts_with(':') => None,
            name => joined(self.headers, name),
        }
    }
}

/// Whether a request may pass, and which policy says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Action of the filter that decided: the one that refused, otherwise the last `Allow`.
    /// `None` when no filter had a say.
    pub action: Option<RbacAction>,
    /// The policy that matched. `None` for a refusal because no `Allow` policy matched.
    pub policy: Option<Arc<str>>,
    /// One record for each `Log` filter with a matching policy. Does not allocate when empty.
    pub audit: Vec<LogMatch>,
}

/// A policy of a `Log` filter that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogMatch {
    /// Name of the policy.
    pub policy: Arc<str>,
}

/// The authorisation filters of one filter chain, ready to decide.
#[derive(Clone, Debug, Default)]
pub struct Authorizer {
    filters: Box<[Filter]>,
}

#[derive(Clone, Debug)]
struct Filter {
    action: RbacAction,
    policies: Box<[(Arc<str>, RbacPolicy)]>,
}

impl Authorizer {
    /// Compiles the filters of a chain, in order. Without filters everything is permitted.
    pub fn compile(filters: &[Rbac]) -> Self {
        let filters = filters.iter().map(|filter| Filter {
            action: filter.action,
            policies: filter
                .policies
                .iter()
                .map(|(name, policy)| (name.as_str().into(), policy.clone()))
                .collect(),
        });
        Self {
            filters: filters.collect(),
        }
    }

    /// Whether there is nothing to decide: every request passes without an audit record.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// Asks every filter in order; the first that refuses decides.
    pub fn decide(&self, request: &AuthzRequest<'_>) -> Decision {
        let mut decision = Decision {
            allowed: true,
            action: None,
            policy: None,
            audit: Vec::new(),
        };
        for filter in &self.filters {
            let matched = filter.matching(request);
            match (filter.action, matched) {
                (RbacAction::Log, Some(policy)) => decision.audit.push(LogMatch { policy }),
                (RbacAction::Log, None) | (RbacAction::Deny, None) => {}
                (RbacAction::Allow, Some(policy)) => {
                    decision.action = Some(RbacAction::Allow);
                    decision.policy = Some(policy);
                }
                (action @ RbacAction::Allow, policy @ None)
                | (action @ RbacAction::Deny, policy @ Some(_)) => {
                    decision.allowed = false;
                    decision.action = Some(action);
                    decision.policy = policy;
                    return decision;
                }
            }
        }
        decision
    }
}

impl Filter {
    fn matching(&self, request: &AuthzRequest<'_>) -> Option<Arc<str>> {
        self.policies
            .iter()
            .find(|(_, policy)| {
                policy.permissions.iter().any(|p| permits(p, request))
                    && policy.principals.iter().any(|p| is_principal(p, request))
            })
            .map(|(name, _)| Arc::clone(name))
    }
}

fn permits(permission: &Permission, request: &AuthzRequest<'_>) -> bool {
    match permission {
        Permission::Any => true,
        Permission::And(all) => all.iter().all(|p| permits(p, request)),
        Permission::Or(any) => any.iter().any(|p| permits(p, request)),
        Permission::Not(inner) => !permits(inner, request),
        Permission::Path(matcher) => matcher.is_match(request.path),
        Permission::Header(matcher) => matcher.is_match(request.header(&matcher.name).as_deref()),
        Permission::DestinationPort(port) => *port == request.destination_port,
    }
}

fn is_principal(principal: &Principal, request: &AuthzRequest<'_>) -> bool {
    match principal {
        Principal::Any => true,
        Principal::And(all) => all.iter().all(|p| is_principal(p, request)),
        Principal::Or(any) => any.iter().any(|p| is_principal(p, request)),
        Principal::Not(inner) => !is_principal(inner, request),
        Principal::Authenticated(_) if !request.authenticated => false,
        Principal::Authenticated(None) => true,
        // A certificate without any name is compared as the empty text (gRFC A41).
        Principal::Authenticated(Some(matcher)) if request.principals.is_empty() => {
            matcher.is_match("")
        }
        Principal::Authenticated(Some(matcher)) => {
            request.principals.iter().any(|name| matcher.is_match(name))
        }
        Principal::Header(matcher) => matcher.is_match(request.header(&matcher.name).as_deref()),
    }
}
