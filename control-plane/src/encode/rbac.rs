//! Authorisation filters.
//!
//! gRPC has no templates of paths, no server names and no metadata. There a policy that needs one
//! of them does what is safe: one that would allow allows nothing, one that would deny refuses
//! everything.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{CidrRange, TypedExtensionConfig},
        rbac::v3::{
            Permission as ProtoPermission, Policy, Principal as ProtoPrincipal, Rbac as ProtoRules,
            permission, principal, rbac,
        },
    },
    extensions::{
        filters::http::rbac::v3::Rbac as ProtoFilter,
        path::r#match::uri_template::v3::UriTemplateMatchConfig,
    },
    r#type::v3::Int32Range,
};
use mesh_core::config::{
    IpRange, PathTemplate, Permission, Principal, Rbac, RbacAction, RbacPolicy,
};

use super::{ClientClass, any, matcher, uint32};

/// Encodes a filter. One without policies is encoded too: with `ALLOW` it refuses everything.
/// Rules that select what another service decides are DENY rules for a class that cannot ask it.
pub(super) fn filter(config: &Rbac, class: ClientClass) -> ProtoFilter {
    let shadow = config.shadow.as_ref();
    if let Some(selection) = shadow.filter(|shadow| shadow.is_selection() && class.is_grpc()) {
        return ProtoFilter {
            rules: Some(rules(RbacAction::Deny, &selection.policies, class)),
            ..ProtoFilter::default()
        };
    }
    ProtoFilter {
        rules: Some(rules(config.action, &config.policies, class)),
        shadow_rules: shadow.map(|shadow| rules(shadow.action, &shadow.policies, class)),
        shadow_rules_stat_prefix: shadow.map_or_else(String::new, |s| s.stat_prefix.clone()),
        ..ProtoFilter::default()
    }
}

fn rules(
    action: RbacAction,
    policies: &BTreeMap<String, RbacPolicy>,
    class: ClientClass,
) -> ProtoRules {
    let proto_action = match action {
        RbacAction::Allow => rbac::Action::Allow,
        RbacAction::Deny => rbac::Action::Deny,
        RbacAction::Log => rbac::Action::Log,
    };
    let policies = policies.iter().filter_map(|(name, policy)| {
        // No source of intent makes conditions.
        let is_known = policy.condition.is_none() && (!class.is_grpc() || grpc_knows(policy));
        let policy = if !is_known {
            match action {
                RbacAction::Deny => everything(),
                RbacAction::Allow | RbacAction::Log => return None,
            }
        } else {
            Policy {
                permissions: policy.permissions.iter().map(encode_permission).collect(),
                principals: policy.principals.iter().map(encode_principal).collect(),
                ..Policy::default()
            }
        };
        Some((name.clone(), policy))
    });
    ProtoRules {
        action: proto_action as i32,
        policies: policies.collect(),
        ..ProtoRules::default()
    }
}

fn everything() -> Policy {
    Policy {
        permissions: vec![encode_permission(&Permission::Any)],
        principals: vec![encode_principal(&Principal::Any)],
        ..Policy::default()
    }
}

/// Whether gRPC evaluates all parts of a policy as it is meant (gRFC A41).
fn grpc_knows(policy: &RbacPolicy) -> bool {
    fn knows_principal(principal: &Principal) -> bool {
        match principal {
            Principal::And(all) | Principal::Or(all) => all.iter().all(knows_principal),
            Principal::Not(inner) => knows_principal(inner),
            Principal::Metadata(_) => false,
            _ => true,
        }
    }
    fn knows_permission(permission: &Permission) -> bool {
        match permission {
            Permission::And(all) | Permission::Or(all) => all.iter().all(knows_permission),
            Permission::Not(inner) => knows_permission(inner),
            Permission::Metadata(_)
            | Permission::Template(_)
            | Permission::RequestedServerName(_)
            | Permission::DestinationPorts { .. } => false,
            _ => true,
        }
    }
    policy.principals.iter().all(knows_principal) && policy.permissions.iter().all(knows_permission)
}

fn range(range: &IpRange) -> CidrRange {
    CidrRange {
        address_prefix: range.address().to_string(),
        prefix_len: Some(uint32(range.prefix_len().into())),
    }
}

fn template(template: &PathTemplate) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: "envoy.path.match.uri_template.uri_template_matcher".to_owned(),
        typed_config: Some(any(&UriTemplateMatchConfig {
            path_template: template.as_str().to_owned(),
        })),
    }
}

#[expect(deprecated, reason = "gRPC and older Envoys know no other metadata")]
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
        Permission::DestinationIp(ip) => Rule::DestinationIp(range(ip)),
        Permission::DestinationPort(port) => Rule::DestinationPort((*port).into()),
        Permission::DestinationPorts { start, end } => Rule::DestinationPortRange(Int32Range {
            start: i32::try_from(*start).unwrap_or(i32::MAX),
            end: i32::try_from(*end).unwrap_or(i32::MAX),
        }),
        Permission::Template(path) => Rule::UriTemplate(template(path)),
        Permission::RequestedServerName(name) => Rule::RequestedServerName(matcher::string(name)),
        Permission::Metadata(metadata) => Rule::Metadata(matcher::metadata(metadata)),
    };
    ProtoPermission { rule: Some(rule) }
}

#[expect(deprecated, reason = "gRPC and older Envoys know no other metadata")]
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
        Principal::DirectRemoteIp(ip) => Identifier::DirectRemoteIp(range(ip)),
        Principal::RemoteIp(ip) => Identifier::RemoteIp(range(ip)),
        Principal::Header(header) => Identifier::Header(matcher::header(header)),
        Principal::Path(path) => Identifier::UrlPath(matcher::url_path(path)),
        Principal::Metadata(metadata) => Identifier::Metadata(matcher::metadata(metadata)),
    };
    ProtoPrincipal {
        identifier: Some(identifier),
    }
}
