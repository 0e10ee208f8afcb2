//! One rule of an AuthorizationPolicy: who may do what.
//!
//! What becomes of a rule that cannot be compiled is decided by the policy it is in.

use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, Permission, Principal, RbacPolicy, StringMatcher, StringPattern,
};

use super::CompileOptions;
use crate::model::{Operation, Rule, Source};

/// Everybody, everything.
pub(super) fn anything() -> RbacPolicy {
    RbacPolicy {
        principals: vec![Principal::Any],
        permissions: vec![Permission::Any],
    }
}

type Wrong = (String, String);
type Compile<'c> = dyn Fn(&String) -> Result<Permission, Wrong> + 'c;

/// What a rule says; else the part of it that is wrong, and why.
pub(super) fn compile_rule(rule: &Rule, options: &CompileOptions) -> Result<RbacPolicy, Wrong> {
    let mut policy = anything();
    if !rule.from.is_empty() {
        policy.principals = rule
            .from
            .iter()
            .map(|from| principal(&from.source, options))
            .collect::<Result<_, _>>()?;
    }
    if !rule.to.is_empty() {
        policy.permissions = rule
            .to
            .iter()
            .map(|to| permission(&to.operation))
            .collect::<Result<_, _>>()?;
    }
    Ok(policy)
}

fn principal(source: &Source, options: &CompileOptions) -> Result<Principal, Wrong> {
    let mut all = Vec::new();
    let by_name = |name: &String| match name.as_str() {
        "*" => Ok(Principal::Authenticated(None)),
        name => {
            let name = match name.strip_prefix('*') {
                Some(_) => name.to_owned(),
                None => format!("spiffe://{name}"),
            };
            let matcher = pattern(&name).map_err(|m| ("from.source.principals".to_owned(), m))?;
            Ok(Principal::Authenticated(Some(matcher)))
        }
    };
    let by_namespace = |namespace: &String| {
        let text = match namespace.as_str() {
            "*" => return Ok(Principal::Authenticated(None)),
            namespace => format!("spiffe://{}/ns/{namespace}/sa/*", options.trust_domain),
        };
        if namespace.contains('*') {
            let message = format!("{namespace:?}: wildcards inside a namespace are not supported");
            return Err(("from.source.namespaces".to_owned(), message));
        }
        let matcher = pattern(&text).map_err(|m| ("from.source.namespaces".to_owned(), m))?;
        Ok(Principal::Authenticated(Some(matcher)))
    };
    let any = |names: &[String], one: &dyn Fn(&String) -> Result<Principal, Wrong>| {
        names
            .iter()
            .map(one)
            .collect::<Result<Vec<_>, _>>()
            .map(Principal::Or)
    };
    let not = |principal| Principal::Not(Box::new(principal));
    if !source.principals.is_empty() {
        all.push(any(&source.principals, &by_name)?);
    }
    if !source.not_principals.is_empty() {
        all.push(not(any(&source.not_principals, &by_name)?));
    }
    if !source.namespaces.is_empty() {
        all.push(any(&source.namespaces, &by_namespace)?);
    }
    if !source.not_namespaces.is_empty() {
        all.push(not(any(&source.not_namespaces, &by_namespace)?));
    }
    // A source that says nothing is everybody, as Istio has it.
    Ok(if all.is_empty() {
        Principal::Any
    } else {
        Principal::And(all)
    })
}

fn permission(operation: &Operation) -> Result<Permission, Wrong> {
    let header = |header: &'static str, field: &'static str| {
        move |text: &String| {
            let predicate = match text.as_str() {
                "*" => HeaderPredicate::Present(true),
                text => HeaderPredicate::String(
                    pattern(text)
                        .map_err(|m| (format!("to.operation.{field}"), m))?
                        // Hosts are compared without case.
                        .ignore_case(header == ":authority"),
                ),
            };
            Ok(Permission::Header(HeaderMatcher::new(header, predicate)))
        }
    };
    let path = |text: &String| match text.as_str() {
        "*" => Ok(Permission::Any),
        text if text.contains("{*}") || text.contains("{**}") => Err((
            "to.operation.paths".to_owned(),
            format!("{text:?}: path templates are not supported yet"),
        )),
        text => {
            Ok(Permission::Path(pattern(text).map_err(|message| {
                ("to.operation.paths".to_owned(), message)
            })?))
        }
    };
    let port = |text: &String| match text.parse() {
        Ok(port) => Ok(Permission::DestinationPort(port)),
        Err(_) => Err((
            "to.operation.ports".to_owned(),
            format!("{text:?} is not a port"),
        )),
    };
    let hosts = header(":authority", "hosts");
    let methods = header(":method", "methods");
    let mut all = Vec::new();
    let fields: [(&[String], &[String], &Compile<'_>); 4] = [
        (&operation.hosts, &operation.not_hosts, &hosts),
        (&operation.ports, &operation.not_ports, &port),
        (&operation.methods, &operation.not_methods, &methods),
        (&operation.paths, &operation.not_paths, &path),
    ];
    for (is, is_not, one) in fields {
        let any = |texts: &[String]| {
            texts
                .iter()
                .map(one)
                .collect::<Result<Vec<_>, _>>()
                .map(Permission::Or)
        };
        if !is.is_empty() {
            all.push(any(is)?);
        }
        if !is_not.is_empty() {
            all.push(Permission::Not(Box::new(any(is_not)?)));
        }
    }
    Ok(if all.is_empty() {
        Permission::Any
    } else {
        Permission::And(all)
    })
}

/// Istio's text patterns: exact, `prefix*` or `*suffix`.
fn pattern(text: &str) -> Result<StringMatcher, String> {
    let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(suffix), _) => StringPattern::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => StringPattern::Prefix(prefix.to_owned()),
        (None, None) => StringPattern::Exact(text.to_owned()),
    };
    StringMatcher::new(pattern)
}
