//! Who decides about requests besides the mesh (`extensionProviders` of MeshPolicies).
//!
//! A provider that cannot be used, or whose name stands for two, closes what policies give it to
//! decide.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::{
    ClusterName,
    config::{
        CheckBody, EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT, ExtAuthz, HttpCheck, Regex, StringMatcher,
        StringPattern,
    },
};

use super::{
    clusters::cluster_name,
    services::{self, ServiceInfo},
};
use crate::{
    diagnostic::{BAD_VALUE, DUPLICATE, Diagnostic, FAILS_CLOSED},
    model::{CheckedRequestBody, ExtAuthzGrpc, ExtAuthzHttp, MeshPolicy, Object},
    value,
};

/// How long a provider may take to decide where nobody says: Istio's ten minutes would keep callers
/// of a provider that hangs for as long.
pub(super) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Providers by name; `None` for one that cannot be used.
pub(super) type Providers = BTreeMap<String, Option<Arc<ExtAuthz>>>;

/// Adds what an object declares.
pub(super) fn add(
    providers: &mut Providers,
    object: &Object,
    spec: &MeshPolicy,
    services: &BTreeMap<String, ServiceInfo>,
    cluster_domain: &str,
    findings: &mut Vec<Diagnostic>,
) {
    for (index, declared) in spec.extension_providers.iter().enumerate() {
        let field = format!("spec.extensionProviders[{index}]");
        let around = (services, cluster_domain);
        let compiled = match (
            &declared.envoy_ext_authz_grpc,
            &declared.envoy_ext_authz_http,
        ) {
            (Some(grpc), None) => Some(("envoyExtAuthzGrpc", over_grpc(object, grpc, around))),
            (None, Some(http)) => Some(("envoyExtAuthzHttp", over_http(object, http, around))),
            (Some(_), Some(_)) | (None, None) => None,
        };
        let mut found = None;
        match compiled {
            Some((_, Ok(provider))) => found = Some(Arc::new(provider)),
            Some((how, Err((part, message)))) => {
                let field = format!("{field}.{how}.{part}");
                let help = "what policies give it to decide is closed";
                findings.push(object.diagnose(FAILS_CLOSED, &field, message, help));
            }
            None => {
                let help = "write one of envoyExtAuthzGrpc and envoyExtAuthzHttp; until then what it \
                            has to decide is closed";
                let message = "says not who decides".to_owned();
                findings.push(object.diagnose(FAILS_CLOSED, &field, message, help));
            }
        }
        if declared.name.is_empty() {
            let field = format!("{field}.name");
            findings.push(object.diagnose(BAD_VALUE, &field, "is missing".to_owned(), ""));
            continue;
        }
        match providers.get_mut(&declared.name) {
            Some(held) if *held == found => {}
            Some(held) => {
                *held = None;
                let field = format!("{field}.name");
                let message = format!("{:?} is declared twice, differently", declared.name);
                let help = "what it has to decide is closed until one of them goes";
                findings.push(object.diagnose(DUPLICATE, &field, message, help));
            }
            None => _ = providers.insert(declared.name.clone(), found),
        }
    }
}

type Around<'c> = (&'c BTreeMap<String, ServiceInfo>, &'c str);
type Wrong = (&'static str, String);

fn over_grpc(object: &Object, spec: &ExtAuthzGrpc, around: Around<'_>) -> Result<ExtAuthz, Wrong> {
    let (cluster, host) = service(object, (&spec.service, spec.port), around)?;
    Ok(ExtAuthz {
        timeout: timeout(spec.timeout.as_deref())?,
        status_on_error: status_on_error(spec.status_on_error.as_deref())?,
        failure_mode_allow: spec.fail_open,
        authority: Some(host),
        body: body(spec.include_request_body_in_check.as_ref())?,
        ..ExtAuthz::new(cluster)
    })
}

fn over_http(object: &Object, spec: &ExtAuthzHttp, around: Around<'_>) -> Result<ExtAuthz, Wrong> {
    let (cluster, _) = service(object, (&spec.service, spec.port), around)?;
    let prefix = &spec.path_prefix;
    let is_path = prefix.is_empty()
        || prefix.starts_with('/') && prefix.parse::<http::uri::PathAndQuery>().is_ok();
    if !is_path {
        let message = format!("{prefix:?} is not the beginning of a path");
        return Err(("pathPrefix", message));
    }
    let denied = matchers(
        "headersToDownstreamOnDeny",
        &spec.headers_to_downstream_on_deny,
    )?;
    let http = HttpCheck {
        path_prefix: prefix.clone(),
        headers_to_add: headers(&spec.include_additional_headers_in_check)?,
        upstream_headers: matchers(
            "headersToUpstreamOnAllow",
            &spec.headers_to_upstream_on_allow,
        )?,
        client_headers: (!denied.is_empty()).then_some(denied),
        client_headers_on_success: matchers(
            "headersToDownstreamOnAllow",
            &spec.headers_to_downstream_on_allow,
        )?,
        ..HttpCheck::default()
    };
    let told = matchers(
        "includeRequestHeadersInCheck",
        &spec.include_request_headers_in_check,
    )?;
    Ok(ExtAuthz {
        timeout: timeout(spec.timeout.as_deref())?,
        status_on_error: status_on_error(spec.status_on_error.as_deref())?,
        failure_mode_allow: spec.fail_open,
        allowed_headers: (!told.is_empty()).then_some(told),
        body: body(spec.include_request_body_in_check.as_ref())?,
        http: Some(Arc::new(http)),
        ..ExtAuthz::new(cluster)
    })
}

/// The cluster of a service, and its full name.
fn service(
    object: &Object,
    (name, port): (&str, u16),
    (known, cluster_domain): Around<'_>,
) -> Result<(ClusterName, String), Wrong> {
    let own = object.key.namespace.as_str();
    let (namespace, host) = name.split_once('/').unwrap_or((own, name));
    let service = services::find(known, host, namespace, cluster_domain)
        .ok_or_else(|| ("service", format!("there is no service {name:?}")))?;
    if !service.ports.iter().any(|known| known.number == port) {
        let message = format!("{} has no port {port}", service.fqdn);
        return Err(("port", message));
    }
    let cluster = cluster_name(port, "", &service.fqdn);
    Ok((cluster.into(), service.fqdn.clone()))
}

fn timeout(declared: Option<&str>) -> Result<Duration, Wrong> {
    let timeout = declared.map_or(Ok(TIMEOUT_DEFAULT), value::duration);
    match timeout.map_err(|message| ("timeout", message))? {
        Duration::ZERO => Err(("timeout", "must be greater than 0".to_owned())),
        timeout => Ok(timeout),
    }
}

fn status_on_error(declared: Option<&str>) -> Result<u16, Wrong> {
    let Some(text) = declared else {
        return Ok(EXT_AUTHZ_STATUS_ON_ERROR_DEFAULT);
    };
    let status = text.parse().ok().filter(|code| (200..600).contains(code));
    status.ok_or_else(|| ("statusOnError", format!("{text:?} is not 200 to 599")))
}

fn body(declared: Option<&CheckedRequestBody>) -> Result<Option<CheckBody>, Wrong> {
    let Some(spec) = declared else {
        return Ok(None);
    };
    if spec.max_request_bytes == 0 {
        let message = "must be greater than 0".to_owned();
        return Err(("includeRequestBodyInCheck.maxRequestBytes", message));
    }
    Ok(Some(CheckBody {
        max_request_bytes: spec.max_request_bytes,
        allow_partial: spec.allow_partial_message,
        pack_as_bytes: spec.pack_as_bytes,
    }))
}

fn headers(
    declared: &BTreeMap<String, String>,
) -> Result<Vec<(http::HeaderName, http::HeaderValue)>, Wrong> {
    let pairs = declared.iter().map(|(name, value)| {
        let header = (
            http::HeaderName::from_bytes(name.as_bytes()),
            http::HeaderValue::from_str(value),
        );
        match header {
            // Envoy would look for commands behind it.
            (Ok(name), Ok(header)) if !value.contains('%') => Ok((name, header)),
            _ => {
                let message = format!("{name:?}: {value:?} is not a plain header");
                Err(("includeAdditionalHeadersInCheck", message))
            }
        }
    });
    pairs.collect()
}

/// Names of headers, with `*` first, last or alone, as in Istio.
fn matchers(field: &'static str, names: &[String]) -> Result<Vec<StringMatcher>, Wrong> {
    let matchers = names.iter().map(|name| {
        let pattern = match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(""), _) => {
                // Envoy takes no empty prefix.
                let any = Regex::new(".+").map_err(|message| (field, message))?;
                return Ok(StringMatcher {
                    pattern: StringPattern::Regex(any),
                    ignore_case: false,
                });
            }
            (Some(suffix), _) => StringPattern::Suffix(suffix.to_owned()),
            (None, Some(prefix)) => StringPattern::Prefix(prefix.to_owned()),
            (None, None) => StringPattern::Exact(name.clone()),
        };
        let inner = name.trim_matches('*');
        if inner.is_empty() || inner.contains('*') {
            let message = format!("{name:?} is not the name of a header, with * first or last");
            return Err((field, message));
        }
        Ok(StringMatcher {
            pattern,
            ignore_case: true,
        })
    });
    matchers.collect()
}
