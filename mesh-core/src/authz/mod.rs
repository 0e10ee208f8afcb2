//! Whether a request may pass a server's authorisation filters.
//!
//! Stage: between the server's connection and the application. Compiled once per configuration,
//! asked once per request, without I/O. Semantics follow gRFC A41 and Envoy's RBAC filter; where
//! the two differ the stricter reading is taken:
//!
//! * `authenticated` needs a verified client certificate; TLS without one is not enough.
//! * `:path` is the path without its query, like `url_path`.
//! * `LOG`, which gRPC ignores, yields an audit record.
//! * `remote_ip` is the peer of the connection: `x-forwarded-for` is the caller's own claim.
//! * A value that is not there matches no metadata rule, so that its negation holds (Envoy).
//!
//! The path is compared as the server normalised it ([`PathNormalization`]), which is how routes and
//! the application see it. It does not verify certificates or tokens, and writes no audit lines.
//!
//! [`PathNormalization`]: crate::config::PathNormalization

mod attribute;
mod cel;
mod index;
mod needs;
mod request;
mod rule;
mod texts;

use std::sync::Arc;

use crate::config::{DynamicMetadata, Rbac, RbacAction, ShadowRules};
use index::PolicyIndex;
pub use request::{AuthzRequest, RequestDetails};

#[cfg(test)]
mod tests;

/// Whether a request may pass, and which policy says so. It borrows their names from the [`Authorizer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Action of the filter that decided: the one that refused, otherwise the last `Allow`.
    /// `None` when no filter had a say.
    pub action: Option<RbacAction>,
    /// The policy that matched, the first by name. `None` for a refusal because no `Allow` policy
    /// matched.
    pub policy: Option<&'a Arc<str>>,
    /// One record for each `Log` filter with a matching policy. Does not allocate when empty.
    pub audit: Vec<LogMatch<'a>>,
    /// What the shadow rules of the filters that were asked would have said. Does not allocate when
    /// empty.
    pub shadow: Vec<ShadowDecision<'a>>,
}

/// A policy of a `Log` filter that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogMatch<'a> {
    /// Name of the policy.
    pub policy: &'a Arc<str>,
}

/// What shadow rules would have said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowDecision<'a> {
    /// Whether the request would have passed.
    pub allowed: bool,
    /// Their action.
    pub action: RbacAction,
    /// The policy that matched.
    pub policy: Option<&'a Arc<str>>,
    /// What is said about them begins with this.
    pub stat_prefix: &'a str,
    /// Whether the rules select requests for another service, instead of being tried.
    pub is_selection: bool,
}

impl Decision<'_> {
    /// Says in `metadata` what shadow rules would have said, under Envoy's names.
    pub fn tell(&self, metadata: &mut DynamicMetadata) {
        for shadow in &self.shadow {
            let prefix = shadow.stat_prefix;
            if let Some(policy) = &shadow.policy {
                let key = format!("{prefix}shadow_effective_policy_id");
                metadata.set(NAMESPACE, &key, (&***policy).into());
            }
            let result = if shadow.allowed { "allowed" } else { "denied" };
            let key = format!("{prefix}shadow_engine_result");
            metadata.set(NAMESPACE, &key, result.into());
        }
    }
}

/// The authorisation filters of one filter chain, ready to decide.
#[derive(Clone, Debug, Default)]
pub struct Authorizer {
    filters: Box<[Filter]>,
}

#[derive(Clone, Debug)]
struct Filter {
    action: RbacAction,
    policies: PolicyIndex,
    shadow: Option<Box<Shadow>>,
}

#[derive(Clone, Debug)]
struct Shadow {
    action: RbacAction,
    policies: PolicyIndex,
    stat_prefix: Box<str>,
    is_selection: bool,
}

impl Authorizer {
    /// Compiles the filters of a chain, in order. Without filters everything is permitted.
    pub fn compile<'c>(filters: impl IntoIterator<Item = &'c Rbac>) -> Self {
        let filters = filters.into_iter().map(|filter| Filter {
            action: filter.action,
            policies: PolicyIndex::compile(&filter.policies),
            shadow: filter.shadow.as_deref().map(Shadow::compile).map(Box::new),
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
    pub fn decide(&self, request: &AuthzRequest<'_>) -> Decision<'_> {
        let mut decision = Decision {
            allowed: true,
            action: None,
            policy: None,
            audit: Vec::new(),
            shadow: Vec::new(),
        };
        for filter in &self.filters {
            if let Some(shadow) = &filter.shadow {
                decision.shadow.push(shadow.would_say(request));
            }
            let matched = filter.policies.find(request);
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

impl Shadow {
    fn compile(rules: &ShadowRules) -> Self {
        Self {
            action: rules.action,
            policies: PolicyIndex::compile(&rules.policies),
            stat_prefix: rules.stat_prefix.as_str().into(),
            is_selection: rules.is_selection(),
        }
    }

    fn would_say(&self, request: &AuthzRequest<'_>) -> ShadowDecision<'_> {
        let policy = self.policies.find(request);
        let allowed = match self.action {
            RbacAction::Allow => policy.is_some(),
            RbacAction::Deny => policy.is_none(),
            RbacAction::Log => true,
        };
        ShadowDecision {
            allowed,
            action: self.action,
            policy,
            stat_prefix: &self.stat_prefix,
            is_selection: self.is_selection,
        }
    }
}

/// The namespace of what shadow rules say in the dynamic metadata, as in Envoy.
const NAMESPACE: &str = "envoy.filters.http.rbac";
