//! Authorisation filters.

use envoy_types::pb::envoy::{
    config::rbac::v3::{
        Permission as ProtoPermission, Policy, Principal as ProtoPrincipal, Rbac as ProtoRules,
        permission, principal, rbac,
    },
    extensions::filters::http::rbac::v3::Rbac as ProtoFilter,
};
use mesh_core::config::{Permission, Principal, Rbac, RbacAction};

use super::matcher;

/// Encodes a filter. One without policies is encoded too: with `ALLOW` it refuses everything.
pub(super) fn filter(config: &Rbac) -> ProtoFilter {
    let action = match config.action {
        RbacAction::Allow => rbac::Action::Allow,
        RbacAction::Deny => rbac::Action::Deny,
        RbacAction::Log => rbac::Action::Log,
    };
    let policies = config.policies.iter().map(|(name, policy)| {
        let policy = Policy {
            permissions: policy.permissions.iter().map(encode_permission).collect(),
            principals: policy.principals.iter().map(encode_principal).collect(),
            ..Policy::default()
        };
        (name.clone(), policy)
    });
    ProtoFilter {
        rules: Some(ProtoRules {
            action: action as i32,
            policies: policies.collect(),
            ..ProtoRules::default()
        }),
        ..ProtoFilter::default()
    }
}

fn encode_permission(config: &Permission) -> ProtoPermission {
    use permission::{Rule, Set};
    let set = |rules: &[Permission]| Set {
        rules: rules.iter().map(encode_permission).collect(),
    };
    let rule = match config {
        Permission::Any => Rule::Any(true),
        Permission::And(all) => Rule::AndRules(set(all)),
        Permission::Or(any) => Rule::OrRules(set(any)),
        Permission::Not(inner) => Rule::NotRule(Box::new(encode_permission(inner))),
        Permission::Path(path) => Rule::UrlPath(matcher::url_path(path)),
        Permission::Header(header) => Rule::Header(matcher::header(header)),
        Permission::DestinationPort(port) => Rule::DestinationPort((*port).into()),
    };
    ProtoPermission { rule: Some(rule) }
}

fn encode_principal(config: &Principal) -> ProtoPrincipal {
    use principal::{Authenticated, Identifier, Set};
    let set = |ids: &[Principal]| Set {
        ids: ids.iter().map(encode_principal).collect(),
    };
    let identifier = match config {
        Principal::Any => Identifier::Any(true),
        Principal::And(all) => Identifier::AndIds(set(all)),
        Principal::Or(any) => Identifier::OrIds(set(any)),
        Principal::Not(inner) => Identifier::NotId(Box::new(encode_principal(inner))),
        Principal::Authenticated(name) => Identifier::Authenticated(Authenticated {
            principal_name: name.as_ref().map(matcher::string),
        }),
        Principal::Header(header) => Identifier::Header(matcher::header(header)),
    };
    ProtoPrincipal {
        identifier: Some(identifier),
    }
}
