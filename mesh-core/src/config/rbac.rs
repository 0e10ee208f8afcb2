//! Authorisation rules, as declared (gRFC A41; Envoy `config.rbac.v3.RBAC`).

use std::{collections::BTreeMap, sync::Arc};

use super::{Cel, HeaderMatcher, IpRange, MetadataMatcher, PathTemplate, StringMatcher};

/// An authorisation filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rbac {
    /// What a match means.
    pub action: RbacAction,
    /// By name. `Allow` without any policy refuses everything.
    pub policies: BTreeMap<String, RbacPolicy>,
    /// Rules that are only reported on.
    pub shadow: Option<Box<ShadowRules>>,
}

/// Rules that never decide: what they would have said is counted and written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowRules {
    /// What is said about them begins with this (`shadow_rules_stat_prefix`).
    pub stat_prefix: String,
    /// What a match would mean.
    pub action: RbacAction,
    /// By name.
    pub policies: BTreeMap<String, RbacPolicy>,
}

/// Prefix of what is said about rules that select the requests that another service must permit
/// (Istio's `CUSTOM` policies): they would refuse nothing.
pub const SELECTION_PREFIX: &str = "istio_ext_authz_";

impl ShadowRules {
    /// Whether they select requests for another service, instead of being tried.
    pub fn is_selection(&self) -> bool {
        self.stat_prefix.starts_with(SELECTION_PREFIX)
    }
}

impl Rbac {
    /// A filter without shadow rules.
    pub fn new(action: RbacAction, policies: BTreeMap<String, RbacPolicy>) -> Self {
        Self {
            action,
            policies,
            shadow: None,
        }
    }

    /// A filter that decides nothing: it writes nothing down and lets everything pass.
    pub fn without_rules() -> Self {
        Self::new(RbacAction::Log, BTreeMap::new())
    }
}

/// What a matching policy of an [`Rbac`] filter means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacAction {
    /// Permit if and only if a policy matches.
    Allow,
    /// Refuse if a policy matches.
    Deny,
    /// Write an audit line if a policy matches; never refuses.
    Log,
}

impl RbacAction {
    /// `ALLOW`, `DENY` or `LOG`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Log => "LOG",
        }
    }
}

/// Matches when any principal and any permission match, and the condition holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RbacPolicy {
    /// Who.
    pub principals: Vec<Principal>,
    /// What.
    pub permissions: Vec<Permission>,
    /// What else must hold; `None` asks for nothing.
    pub condition: Option<Arc<Cel>>,
}

/// A predicate over the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Everybody.
    Any,
    /// All of them.
    And(Vec<Self>),
    /// One of them.
    Or(Vec<Self>),
    /// Not this.
    Not(Box<Self>),
    /// Authenticated by mTLS, and one of its names matches where a matcher is given.
    Authenticated(Option<StringMatcher>),
    /// The address at the other end of the connection (`direct_remote_ip`, `source_ip`).
    DirectRemoteIp(IpRange),
    /// The caller's address. `x-forwarded-for` is not believed, so that it is the same.
    RemoteIp(IpRange),
    /// A header of the request.
    Header(HeaderMatcher),
    /// The path, without its query.
    Path(StringMatcher),
    /// What filters found out, such as the claims of a token.
    Metadata(MetadataMatcher),
}

/// A predicate over what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Everything.
    Any,
    /// All of them.
    And(Vec<Self>),
    /// One of them.
    Or(Vec<Self>),
    /// Not this.
    Not(Box<Self>),
    /// The path, without its query.
    Path(StringMatcher),
    /// The path, without its query (`uri_template`).
    Template(PathTemplate),
    /// A header of the request; `:method` and `:authority` too.
    Header(HeaderMatcher),
    /// The address the request arrived on.
    DestinationIp(IpRange),
    /// The port the request arrived on.
    DestinationPort(u16),
    /// That port is in `[start, end)`.
    DestinationPorts {
        /// First port inside.
        start: u32,
        /// First port past the end.
        end: u32,
    },
    /// The name that the caller asked for in its TLS handshake; empty without one.
    RequestedServerName(StringMatcher),
    /// What filters found out.
    Metadata(MetadataMatcher),
}
