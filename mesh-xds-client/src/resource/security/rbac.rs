//! `envoy.config.rbac.v3.RBAC` to [`Rbac`].
//!
//! Stage 3. Fails closed: a rule that cannot be evaluated exactly refuses the listener, because a
//! rule left out of a DENY policy admits what it should keep out. Refused are matcher trees,
//! filter state, custom rules, static metadata of routes, and conditions with what is not known here.
//! Deviation from gRFC A41: metadata rules (`metadata`, `sourced_metadata`) see what the filters before
//! found out, as in Envoy, where gRPC lets them never match.

use std::{collections::BTreeMap, sync::Arc};

use envoy_types::pb::envoy::{
    config::core::v3::TypedExtensionConfig,
    config::rbac::v3::{
        Permission as PermissionProto, Policy, Principal as PrincipalProto, Rbac as RulesProto,
        permission::Rule,
        principal::Identifier,
        rbac::{Action, AuditLoggingOptions},
    },
    config::route::v3::HeaderMatcher as HeaderProto,
    extensions::{
        filters::http::rbac::v3::Rbac as FilterProto,
        path::r#match::uri_template::v3::UriTemplateMatchConfig,
    },
    r#type::matcher::v3::{PathMatcher as PathProto, path_matcher::Rule as PathRule},
};
use mesh_core::config::{
    HeaderMatcher, PathTemplate, Permission, Principal, Rbac, RbacAction, RbacPolicy, ShadowRules,
    StringMatcher,
};

use super::{address, cel};
use crate::resource::{
    metadata,
    path::Sink,
    report::report,
    route::matcher,
    value::{is, parse},
};

/// A filter's rules: what a match means, and the policies by name.
type Rules = (RbacAction, BTreeMap<String, RbacPolicy>);

/// The outer `None` is an error; the inner one a filter without rules, which admits everybody.
pub(crate) fn decode_filter(sink: &mut Sink, proto: &FilterProto) -> Option<Option<Rbac>> {
    sink.refuse(
        "matcher",
        proto.matcher.is_some(),
        "is not supported; use rules",
    );
    report!(sink, proto, [shadow_matcher, track_per_rule_stats]);
    report!(sink, proto, [rules_stat_prefix]);
    let shadow = proto.shadow_rules.as_ref().map(|rules| {
        sink.field("shadow_rules", |sink| decode_rules(sink, rules))
            .map(|(action, policies)| {
                Box::new(ShadowRules {
                    stat_prefix: proto.shadow_rules_stat_prefix.clone(),
                    action,
                    policies,
                })
            })
    });
    let rules = proto
        .rules
        .as_ref()
        .map(|rules| sink.field("rules", |sink| decode_rules(sink, rules)));
    let rbac = match rules {
        Some(rules) => {
            let (action, policies) = rules?;
            Rbac::new(action, policies)
        }
        None if shadow.is_none() => return Some(None),
        None => Rbac::without_rules(),
    };
    let shadow = match shadow {
        Some(shadow) => Some(shadow?),
        None => None,
    };
    Some(Some(Rbac { shadow, ..rbac }))
}

fn decode_rules(sink: &mut Sink, proto: &RulesProto) -> Option<Rules> {
    let action = match Action::try_from(proto.action) {
        Ok(Action::Allow) => RbacAction::Allow,
        Ok(Action::Deny) => RbacAction::Deny,
        Ok(Action::Log) => RbacAction::Log,
        Err(_) => return sink.error_at("action", format!("{} is not known", proto.action)),
    };
    if let Some(audit) = &proto.audit_logging_options {
        check_audit(sink, audit);
    }
    // In order of name, so that errors are the same each time.
    let sorted: BTreeMap<&String, &Policy> = proto.policies.iter().collect();
    let mut policies = BTreeMap::new();
    for (name, policy) in sorted {
        let policy = sink.field(&format!("policies[{name:?}]"), |sink| {
            decode_policy(sink, policy)
        });
        if let Some(policy) = policy {
            policies.insert(name.clone(), policy);
        }
    }
    Some((action, policies))
}

fn check_audit(sink: &mut Sink, audit: &AuditLoggingOptions) {
    let is_needed = audit
        .logger_configs
        .iter()
        .any(|logger| !logger.is_optional);
    sink.refuse(
        "audit_logging_options",
        audit.audit_condition != 0 && is_needed,
        "audit loggers are not supported; mark them is_optional to go without",
    );
}

fn decode_policy(sink: &mut Sink, proto: &Policy) -> Option<RbacPolicy> {
    sink.refuse(
        "checked_condition",
        proto.checked_condition.is_some(),
        "is not supported; use condition",
    );
    sink.refuse("cel_config", proto.cel_config.is_some(), "is not supported");
    let condition = match &proto.condition {
        Some(condition) => Some(sink.field("condition", |sink| cel::decode(sink, condition))?),
        None => None,
    };
    sink.refuse(
        "permissions",
        proto.permissions.is_empty(),
        "must not be empty",
    );
    sink.refuse(
        "principals",
        proto.principals.is_empty(),
        "must not be empty",
    );
    Some(RbacPolicy {
        principals: sink.each("principals", &proto.principals, decode_principal),
        permissions: sink.each("permissions", &proto.permissions, decode_permission),
        condition: condition.map(Arc::new),
    })
}

fn decode_permission(sink: &mut Sink, proto: &PermissionProto) -> Option<Permission> {
    let Some(rule) = &proto.rule else {
        return sink.error("holds no rule");
    };
    match rule {
        Rule::Any(true) => Some(Permission::Any),
        Rule::Any(false) => sink.error_at("any", "must be true"),
        Rule::AndRules(set) => {
            let rules = decode_set(sink, "and_rules.rules", &set.rules, decode_permission)?;
            Some(Permission::And(rules))
        }
        Rule::OrRules(set) => {
            let rules = decode_set(sink, "or_rules.rules", &set.rules, decode_permission)?;
            Some(Permission::Or(rules))
        }
        Rule::NotRule(rule) => sink
            .field("not_rule", |sink| decode_permission(sink, rule))
            .map(|rule| Permission::Not(Box::new(rule))),
        Rule::Header(header) => sink
            .field("header", |sink| decode_header(sink, header))
            .map(Permission::Header),
        Rule::UrlPath(path) => decode_path(sink, path).map(Permission::Path),
        Rule::DestinationIp(range) => sink
            .field("destination_ip", |sink| address::range(sink, range))
            .map(Permission::DestinationIp),
        Rule::DestinationPort(port) => match u16::try_from(*port) {
            Ok(port) => Some(Permission::DestinationPort(port)),
            Err(_) => sink.error_at("destination_port", format!("{port} is not a port")),
        },
        Rule::DestinationPortRange(range) => {
            let bound = |value: i32| u32::try_from(value).ok().filter(|value| *value <= 65_536);
            match (bound(range.start), bound(range.end)) {
                (Some(start), Some(end)) if start < end => {
                    Some(Permission::DestinationPorts { start, end })
                }
                _ => sink.error_at(
                    "destination_port_range",
                    format!("[{}, {}) holds no ports", range.start, range.end),
                ),
            }
        }
        Rule::RequestedServerName(name) => sink
            .field("requested_server_name", |sink| matcher::string(sink, name))
            .map(Permission::RequestedServerName),
        Rule::Metadata(rule) => sink
            .field("metadata", |sink| metadata::matcher(sink, rule))
            .map(Permission::Metadata),
        Rule::UriTemplate(extension) => sink.field("uri_template", |sink| {
            decode_template(sink, extension).map(Permission::Template)
        }),
        Rule::Matcher(_) => sink.error_at("matcher", "is not supported"),
        Rule::SourcedMetadata(rule) => sink
            .field("sourced_metadata", |sink| metadata::sourced(sink, rule))
            .map(Permission::Metadata),
    }
}

fn decode_path(sink: &mut Sink, proto: &PathProto) -> Option<StringMatcher> {
    sink.field("url_path", |sink| match &proto.rule {
        Some(PathRule::Path(path)) => sink.field("path", |sink| matcher::string(sink, path)),
        None => sink.error_at("path", "is missing"),
    })
}

fn decode_template(sink: &mut Sink, extension: &TypedExtensionConfig) -> Option<PathTemplate> {
    match &extension.typed_config {
        Some(any) if is::<UriTemplateMatchConfig>(any) => {
            let proto: UriTemplateMatchConfig = parse(sink, any)?;
            match PathTemplate::new(&proto.path_template) {
                Ok(template) => Some(template),
                Err(reason) => sink.error_at("typed_config.path_template", reason),
            }
        }
        _ => sink.error_at("typed_config", "is not a path template"),
    }
}

fn decode_principal(sink: &mut Sink, proto: &PrincipalProto) -> Option<Principal> {
    let Some(identifier) = &proto.identifier else {
        return sink.error("holds no identifier");
    };
    match identifier {
        Identifier::Any(true) => Some(Principal::Any),
        Identifier::Any(false) => sink.error_at("any", "must be true"),
        Identifier::AndIds(set) => {
            let ids = decode_set(sink, "and_ids.ids", &set.ids, decode_principal)?;
            Some(Principal::And(ids))
        }
        Identifier::OrIds(set) => {
            let ids = decode_set(sink, "or_ids.ids", &set.ids, decode_principal)?;
            Some(Principal::Or(ids))
        }
        Identifier::NotId(id) => sink
            .field("not_id", |sink| decode_principal(sink, id))
            .map(|id| Principal::Not(Box::new(id))),
        Identifier::Authenticated(authenticated) => match &authenticated.principal_name {
            None => Some(Principal::Authenticated(None)),
            Some(name) => sink
                .field("authenticated.principal_name", |sink| {
                    matcher::string(sink, name)
                })
                .map(|name| Principal::Authenticated(Some(name))),
        },
        Identifier::Header(header) => sink
            .field("header", |sink| decode_header(sink, header))
            .map(Principal::Header),
        Identifier::SourceIp(range) => sink
            .field("source_ip", |sink| address::range(sink, range))
            .map(Principal::DirectRemoteIp),
        Identifier::DirectRemoteIp(range) => sink
            .field("direct_remote_ip", |sink| address::range(sink, range))
            .map(Principal::DirectRemoteIp),
        Identifier::RemoteIp(range) => sink
            .field("remote_ip", |sink| address::range(sink, range))
            .map(Principal::RemoteIp),
        Identifier::UrlPath(path) => decode_path(sink, path).map(Principal::Path),
        Identifier::Metadata(rule) => sink
            .field("metadata", |sink| metadata::matcher(sink, rule))
            .map(Principal::Metadata),
        Identifier::FilterState(_) => sink.error_at("filter_state", "is not supported"),
        Identifier::SourcedMetadata(rule) => sink
            .field("sourced_metadata", |sink| metadata::sourced(sink, rule))
            .map(Principal::Metadata),
        _ => sink.error_at("custom", "is not supported"),
    }
}

/// An empty set is refused: as AND it would match everything, as OR nothing.
fn decode_set<P, T>(
    sink: &mut Sink,
    name: &str,
    items: &[P],
    decode: fn(&mut Sink, &P) -> Option<T>,
) -> Option<Vec<T>> {
    if items.is_empty() {
        return sink.error_at(name, "must not be empty");
    }
    let kept = sink.each(name, items, decode);
    (kept.len() == items.len()).then_some(kept)
}

fn decode_header(sink: &mut Sink, proto: &HeaderProto) -> Option<HeaderMatcher> {
    let name = proto.name.to_ascii_lowercase();
    if name == ":scheme" || name.starts_with("grpc-") {
        return sink.error_at(
            "name",
            format!("{name:?} may not be used in a rule (gRFC A41)"),
        );
    }
    matcher::header(sink, proto)
}
