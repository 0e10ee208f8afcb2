//! `envoy.config.rbac.v3.RBAC` to [`Rbac`].
//!
//! Stage 3. Fails closed: a rule that cannot be evaluated exactly refuses the listener, because a
//! rule left out of a DENY policy admits what it should keep out. Deviation from gRFC A41: IP,
//! server name and metadata rules are refused, where gRPC lets some of them never match.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::{
    config::rbac::v3::{
        Permission as PermissionProto, Policy, Principal as PrincipalProto, Rbac as RulesProto,
        permission::Rule,
        principal::Identifier,
        rbac::{Action, AuditLoggingOptions},
    },
    config::route::v3::HeaderMatcher as HeaderProto,
    extensions::filters::http::rbac::v3::Rbac as FilterProto,
};
use mesh_core::config::{HeaderMatcher, Permission, Principal, Rbac, RbacAction, RbacPolicy};

use crate::resource::{path::Sink, report::report, route::matcher};

/// The outer `None` is an error; the inner one a filter without rules, which admits everybody.
pub(crate) fn decode_filter(sink: &mut Sink, proto: &FilterProto) -> Option<Option<Rbac>> {
    sink.refuse(
        "matcher",
        proto.matcher.is_some(),
        "is not supported; use rules",
    );
    report!(sink, proto, [shadow_rules, shadow_matcher]);
    match &proto.rules {
        Some(rules) => sink
            .field("rules", |sink| decode_rules(sink, rules))
            .map(Some),
        None => Some(None),
    }
}

fn decode_rules(sink: &mut Sink, proto: &RulesProto) -> Option<Rbac> {
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
    Some(Rbac { action, policies })
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
    let unsupported = "CEL is not supported";
    sink.refuse("condition", proto.condition.is_some(), unsupported);
    sink.refuse(
        "checked_condition",
        proto.checked_condition.is_some(),
        unsupported,
    );
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
        Rule::UrlPath(path) => sink.field("url_path", |sink| {
            use envoy_types::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;
            match &path.rule {
                Some(PathRule::Path(path)) => sink
                    .field("path", |sink| matcher::string(sink, path))
                    .map(Permission::Path),
                None => sink.error_at("path", "is missing"),
            }
        }),
        Rule::DestinationPort(port) => match u16::try_from(*port) {
            Ok(port) => Some(Permission::DestinationPort(port)),
            Err(_) => sink.error_at("destination_port", format!("{port} is not a port")),
        },
        other => {
            let name = match other {
                Rule::DestinationIp(_) => "destination_ip",
                Rule::DestinationPortRange(_) => "destination_port_range",
                Rule::Metadata(_) => "metadata",
                Rule::RequestedServerName(_) => "requested_server_name",
                Rule::Matcher(_) => "matcher",
                Rule::UriTemplate(_) => "uri_template",
                _ => "sourced_metadata",
            };
            sink.error_at(name, "is not supported")
        }
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
        other => {
            let name = match other {
                Identifier::SourceIp(_) => "source_ip",
                Identifier::DirectRemoteIp(_) => "direct_remote_ip",
                Identifier::RemoteIp(_) => "remote_ip",
                Identifier::UrlPath(_) => "url_path",
                Identifier::Metadata(_) => "metadata",
                Identifier::FilterState(_) => "filter_state",
                Identifier::SourcedMetadata(_) => "sourced_metadata",
                _ => "custom",
            };
            sink.error_at(name, "is not supported")
        }
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
