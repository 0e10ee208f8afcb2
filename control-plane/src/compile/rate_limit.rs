//! `RateLimit` to a filter.
//!
//! All limits of a target are one filter: each is a bucket of its own, told by a descriptor that begins
//! with the limit's name. A limit without conditions is the filter's own bucket.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::HeaderName;
use mesh_core::config::{
    DescriptorEntry, DescriptorSource, FilterConfig, HeaderMatcher, HeaderPredicate, HttpFilter,
    LocalRateLimit, RateLimit, RateLimitDescriptor, Regex, StringMatcher, StringPattern,
    TokenBucket,
};

use super::{CompileOptions, route_match::Wrong, services};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{
        self, Object, ObjectKey, ObjectSet, RateLimitMatch, RateLimitPer, RateLimitRule, Spec,
    },
    value,
};

type Labels = BTreeMap<String, String>;

/// Who can have a limit of its own at a time, in each process. Whoever was not seen for the longest time
/// is forgotten first.
const CALLERS_MAX: u32 = 4096;
/// The name of the filter, in listeners and routes.
pub const FILTER: &str = "envoy.filters.http.local_ratelimit";
/// Shortest interval that a bucket is filled in (Envoy's).
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// All limits, by their targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RateLimits {
    root_namespace: String,
    servers: Vec<OfServers>,
    /// By the full name of the host.
    hosts: BTreeMap<String, Vec<Limit>>,
    /// The objects that they are from.
    host_objects: BTreeMap<String, Vec<ObjectKey>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OfServers {
    object: ObjectKey,
    namespace: String,
    labels: Labels,
    limits: Vec<Limit>,
}

/// A limit, ready to be one of several of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    name: String,
    bucket: TokenBucket,
    matchers: Vec<HeaderMatcher>,
    per: Option<(Arc<str>, DescriptorSource)>,
}

impl RateLimits {
    pub(super) fn collect(
        objects: &ObjectSet,
        known: &BTreeMap<String, services::ServiceInfo>,
        options: &CompileOptions,
        findings: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut all = Self {
            root_namespace: options.root_namespace.clone(),
            ..Self::default()
        };
        for object in objects.values() {
            let Spec::RateLimit(spec) = &object.spec else {
                continue;
            };
            let limits = limits_of(object, spec, findings);
            let (namespace, selector) = (&object.key.namespace, &spec.selector);
            match &spec.host {
                None => all.servers.push(OfServers {
                    object: object.key.clone(),
                    namespace: namespace.clone(),
                    labels: selector
                        .as_ref()
                        .map(|selector| selector.match_labels.clone())
                        .unwrap_or_default(),
                    limits,
                }),
                Some(_) if selector.is_some() => {
                    let message = "selector is for servers, host for clients: write one of them";
                    findings.push(object.diagnose(BAD_VALUE, "spec.host", message, ""));
                }
                Some(host) => {
                    match services::find(known, host, namespace, &options.cluster_domain) {
                        Some(service) => {
                            let held = all.hosts.entry(service.fqdn.clone()).or_default();
                            held.extend(limits);
                            let objects = all.host_objects.entry(service.fqdn.clone());
                            objects.or_default().push(object.key.clone());
                        }
                        None => findings.push(services::unknown_host(object, "spec.host", host)),
                    }
                }
            }
        }
        all
    }

    fn selected(&self, namespace: &str, labels: &Labels) -> impl Iterator<Item = &OfServers> {
        self.servers.iter().filter(move |held| {
            let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
            (held.namespace == namespace || held.namespace == self.root_namespace)
                && held.labels.iter().all(has)
        })
    }

    /// The objects that hold for a server.
    pub(super) fn objects(&self, namespace: &str, labels: &Labels) -> Vec<ObjectKey> {
        let selected = self.selected(namespace, labels);
        selected.map(|held| held.object.clone()).collect()
    }

    /// The objects that hold for the clients of hosts, each with the host.
    pub(super) fn of_clients(&self) -> impl Iterator<Item = (&String, &ObjectKey)> {
        let hosts = self.host_objects.iter();
        hosts.flat_map(|(fqdn, objects)| objects.iter().map(move |object| (fqdn, object)))
    }

    /// The filter of a server.
    pub(super) fn of_server(&self, namespace: &str, labels: &Labels) -> Option<HttpFilter> {
        let selected = self.selected(namespace, labels);
        let limits: Vec<_> = selected.flat_map(|held| &held.limits).collect();
        Some(HttpFilter::new(FILTER, filter(&limits)?))
    }

    /// The filter of a host's clients.
    pub(super) fn of_host(&self, fqdn: &str) -> Option<FilterConfig> {
        let limits: Vec<_> = self.hosts.get(fqdn)?.iter().collect();
        filter(&limits)
    }
}

/// One filter for all `limits`.
fn filter(limits: &[&Limit]) -> Option<FilterConfig> {
    if limits.is_empty() {
        return None;
    }
    let is_plain = |limit: &&&Limit| limit.matchers.is_empty() && limit.per.is_none();
    let plain = limits.iter().position(|limit| is_plain(&limit));
    // A filter needs a bucket; without a limit for all it is one that is never empty.
    let unlimited = TokenBucket {
        max_tokens: 1_000_000_000,
        tokens_per_fill: 50_000_000,
        fill_interval: INTERVAL_MIN,
    };
    let own = plain.map_or(unlimited, |plain| limits[plain].bucket);
    let mut config = LocalRateLimit::new("mesh", own);
    config.x_ratelimit_headers = true;
    config.retry_after_header = true;
    config.max_dynamic_descriptors = CALLERS_MAX;
    for (number, limit) in limits.iter().enumerate() {
        if Some(number) == plain {
            continue;
        }
        let constant = |text: &str| DescriptorSource::Constant(text.into());
        let mut made = vec![("limit".into(), Some(&*limit.name), constant(&limit.name))];
        if !limit.matchers.is_empty() {
            let source = DescriptorSource::HeaderMatch {
                matchers: limit.matchers.clone(),
                expect: true,
                value: "yes".into(),
            };
            made.push(("match".into(), Some("yes"), source));
        }
        if let Some((key, source)) = &limit.per {
            made.push((Arc::clone(key), None, source.clone()));
        }
        config.descriptors.push(RateLimitDescriptor {
            entries: made
                .iter()
                .map(|(key, value, _)| (Arc::clone(key), value.unwrap_or_default().into()))
                .collect(),
            token_bucket: limit.bucket,
        });
        let entries = made.into_iter();
        config.rate_limits.push(RateLimit {
            stage: 0,
            entries: entries
                .map(|(key, _, source)| DescriptorEntry { key, source })
                .collect(),
        });
    }
    Some(FilterConfig::LocalRateLimit(Arc::new(config)))
}

fn limits_of(
    object: &Object,
    spec: &model::RateLimit,
    findings: &mut Vec<Diagnostic>,
) -> Vec<Limit> {
    let mut limits = Vec::new();
    for (number, rule) in spec.limits.iter().enumerate() {
        let name = format!("{}/{}/{number}", object.key.namespace, object.key.name);
        match limit_of(name, rule) {
            Ok(limit) => limits.push(limit),
            Err((part, message)) => {
                let field = format!("spec.limits[{number}].{part}");
                findings.push(object.diagnose(BAD_VALUE, &field, message, ""));
            }
        }
    }
    limits
}

fn limit_of(name: String, rule: &RateLimitRule) -> Result<Limit, Wrong> {
    if rule.requests == 0 {
        let message = "it must be 1 or more; to refuse everything write an AuthorizationPolicy";
        return Err(("requests".to_owned(), message.to_owned()));
    }
    if rule.burst == Some(0) {
        return Err(("burst".to_owned(), "it must be 1 or more".to_owned()));
    }
    let interval = rule.interval.as_deref().map(value::duration).transpose();
    let interval = interval.map_err(|message| ("interval".to_owned(), message))?;
    let fill_interval = interval.unwrap_or(Duration::from_secs(1));
    if fill_interval < INTERVAL_MIN {
        return Err(("interval".to_owned(), "it must be 50ms or more".to_owned()));
    }
    Ok(Limit {
        name,
        bucket: TokenBucket {
            max_tokens: rule.burst.unwrap_or(rule.requests),
            tokens_per_fill: rule.requests,
            fill_interval,
        },
        matchers: match &rule.r#match {
            Some(declared) => matchers(declared)?,
            None => Vec::new(),
        },
        per: rule.per.as_ref().map(per).transpose()?,
    })
}

fn per(declared: &RateLimitPer) -> Result<(Arc<str>, DescriptorSource), Wrong> {
    let found = [
        declared.header.is_some(),
        declared.client_identity,
        declared.client_address,
    ];
    if found.iter().filter(|is_set| **is_set).count() != 1 {
        let message = "write one of header, clientIdentity and clientAddress";
        return Err(("per".to_owned(), message.to_owned()));
    }
    if declared.client_identity {
        return Ok(("client".into(), DescriptorSource::PeerIdentity));
    }
    let Some(name) = &declared.header else {
        return Ok(("remote_address".into(), DescriptorSource::RemoteAddress));
    };
    let parsed = HeaderName::from_bytes(name.as_bytes());
    let wrong = |_| {
        let message = format!("{name:?} is not the name of a header");
        ("per.header".to_owned(), message)
    };
    let source = DescriptorSource::Header {
        name: parsed.map_err(wrong)?,
        skip_if_absent: false,
    };
    Ok(("header".into(), source))
}

fn matchers(declared: &RateLimitMatch) -> Result<Vec<HeaderMatcher>, Wrong> {
    let mut matchers = Vec::new();
    let mut add = |name: &str, pattern: StringPattern| {
        let matcher = StringMatcher::new(pattern)?;
        matchers.push(HeaderMatcher::new(name, HeaderPredicate::String(matcher)));
        Ok::<_, String>(())
    };
    let at = |part: &str| {
        let part = format!("match.{part}");
        move |message| (part, message)
    };
    if let Some(path) = &declared.path {
        // `:path` has its query.
        let regex = Regex::new(&format!("{}(?:\\?.*)?", escaped(path))).map_err(at("path"))?;
        add(":path", StringPattern::Regex(regex)).map_err(at("path"))?;
    }
    if let Some(prefix) = &declared.path_prefix {
        add(":path", StringPattern::Prefix(prefix.clone())).map_err(at("pathPrefix"))?;
    }
    if let Some(method) = &declared.method {
        add(":method", StringPattern::Exact(method.clone())).map_err(at("method"))?;
    }
    for (name, value) in &declared.headers {
        let field = format!("headers.{name}");
        add(name, StringPattern::Exact(value.clone())).map_err(at(&field))?;
    }
    Ok(matchers)
}

/// Text as a regular expression that matches it alone.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\.+*?()|[]{}^$#&-~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
