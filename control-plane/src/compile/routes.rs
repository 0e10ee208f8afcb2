//! Routes of each service port.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{
    Backoff, ClusterEndpoints, Forward, HeaderMatcher, HeaderPredicate, PathMatcher, PathPattern,
    RETRIES_MAX, Regex, RetryOn, RetryPolicy, Route, RouteAction, RouteConfig, RouteMatch,
    StringMatcher, StringPattern, VirtualHost, WeightedCluster,
};

use super::{
    CompileOptions, Compiled,
    clusters::cluster_name,
    services::{PortInfo, ServiceInfo, find, unknown_host},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, UNKNOWN_REFERENCE},
    model::{
        HttpMatch, HttpRoute, Object, ObjectSet, Retries, RouteDestination, Spec, StringMatch,
        VirtualService,
    },
    value,
};

/// Istio's retries for routes that say nothing.
const DEFAULT_RETRIES: u32 = 2;
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

pub(super) fn compile(
    objects: &ObjectSet,
    services: &BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let mut virtual_services = BTreeMap::new();
    for object in objects.values() {
        let Spec::VirtualService(spec) = &object.spec else {
            continue;
        };
        let is_for_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == "mesh");
        if !is_for_mesh {
            continue;
        }
        for (index, host) in spec.hosts.iter().enumerate() {
            match find(
                services,
                host,
                &object.key.namespace,
                &options.cluster_domain,
            ) {
                Some(service) => {
                    compiled.made_of(&service.fqdn, &object.key);
                    virtual_services
                        .entry(service.fqdn.clone())
                        .or_insert((object, spec));
                }
                None => {
                    findings.push(unknown_host(object, &format!("spec.hosts[{index}]"), host));
                }
            }
        }
    }
    for service in services.values() {
        let declared = virtual_services.get(&service.fqdn).copied();
        for (number, port) in service.ports.iter().enumerate() {
            let mut context = Context {
                services,
                options,
                compiled,
                // One report is enough, whatever the number of ports.
                findings: if number == 0 {
                    findings
                } else {
                    &mut Vec::new()
                },
                service,
                port,
            };
            let routes = context.routes(declared);
            let name = format!("outbound|{}||{}", port.number, service.fqdn);
            let host = format!("{}:{}", service.fqdn, port.number);
            let host = VirtualHost::new(host, domains(service, port, options), routes);
            let config = RouteConfig::new(name.as_str(), vec![host]);
            compiled.routes.insert(name.into(), Arc::new(config));
        }
    }
}

/// All spellings, with and without the port; a client that dials the listener by another name
/// still finds its one virtual host.
fn domains(service: &ServiceInfo, port: &PortInfo, options: &CompileOptions) -> Vec<String> {
    let is_default = service
        .port(None)
        .is_some_and(|default| default.number == port.number);
    let mut spellings = service.spellings(&options.cluster_domain);
    if spellings.len() > 1 {
        spellings.push((service.name.clone(), 2));
    }
    let mut domains = Vec::new();
    for (spelling, _) in spellings {
        domains.push(format!("{spelling}:{}", port.number));
        if is_default {
            domains.push(spelling);
        }
    }
    domains.push("*".to_owned());
    domains
}

struct Context<'c> {
    services: &'c BTreeMap<String, ServiceInfo>,
    options: &'c CompileOptions,
    compiled: &'c mut Compiled,
    findings: &'c mut Vec<Diagnostic>,
    service: &'c ServiceInfo,
    port: &'c PortInfo,
}

type Declared<'d> = Option<(&'d Arc<Object>, &'d VirtualService)>;

impl Context<'_> {
    fn routes(&mut self, declared: Declared<'_>) -> Vec<Route> {
        let Some((object, spec)) = declared else {
            return vec![self.default_route()];
        };
        let mut routes = Vec::new();
        for (index, http) in spec.http.iter().enumerate() {
            self.route(object, http, &format!("spec.http[{index}]"), &mut routes);
        }
        if spec.http.is_empty() {
            routes.push(self.default_route());
        }
        routes
    }

    fn default_route(&self) -> Route {
        let name = cluster_name(self.port.number, "", &self.service.fqdn);
        let forward = Forward {
            retry: Some(default_retries()),
            ..Forward::to(name)
        };
        Route::new("default", RouteMatch::any(), RouteAction::Forward(forward))
    }

    fn route(&mut self, object: &Object, http: &HttpRoute, field: &str, routes: &mut Vec<Route>) {
        let action = match self.forward(object, http, field) {
            Ok(forward) => RouteAction::Forward(forward),
            Err(reason) => RouteAction::Unsupported(reason),
        };
        let mut matches = Vec::new();
        for (index, declared) in http.r#match.iter().enumerate() {
            if declared.port.is_some_and(|port| port != self.port.number) {
                continue;
            }
            match compile_match(declared) {
                Ok(matcher) => matches.push(matcher),
                Err((part, message)) => {
                    let field = format!("{field}.match[{index}].{part}");
                    self.findings
                        .push(object.diagnose(BAD_VALUE, &field, message, ""));
                }
            }
        }
        if http.r#match.is_empty() {
            matches.push(RouteMatch::any());
        }
        let count = matches.len();
        for (index, matcher) in matches.into_iter().enumerate() {
            let base = if http.name.is_empty() {
                let number = field.trim_start_matches("spec.");
                format!("{}/{number}", object.key.name)
            } else {
                http.name.clone()
            };
            let name = if count > 1 {
                format!("{base}.{index}")
            } else {
                base
            };
            routes.push(Route::new(name, matcher, action.clone()));
        }
    }

    fn forward(
        &mut self,
        object: &Object,
        http: &HttpRoute,
        field: &str,
    ) -> Result<Forward, String> {
        if http.route.is_empty() {
            let message = "a route needs a destination";
            let field = format!("{field}.route");
            self.findings
                .push(object.diagnose(BAD_VALUE, &field, message, ""));
            return Err(message.to_owned());
        }
        let mut clusters = Vec::new();
        for (index, destination) in http.route.iter().enumerate() {
            let field = format!("{field}.route[{index}]");
            let name = self.destination(object, destination, &field);
            let only = http.route.len() == 1;
            let weight = destination.weight.unwrap_or_else(|| u32::from(only));
            clusters.push(WeightedCluster::new(name, weight));
        }
        let sum: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
        if sum == 0 || sum > u64::from(u32::MAX) {
            let message = format!("the weights sum up to {sum}, not to 1 to {}", u32::MAX);
            let field = format!("{field}.route");
            let help = "give at least one destination a weight";
            self.findings
                .push(object.diagnose(BAD_VALUE, &field, message.clone(), help));
            return Err(message);
        }
        clusters.retain(|cluster| cluster.weight > 0);
        let mut wrong = |part: &str, message: String| {
            let field = format!("{field}.{part}");
            self.findings
                .push(object.diagnose(BAD_VALUE, &field, message, ""));
        };
        let timeout = match http.timeout.as_deref().map(value::duration) {
            Some(Ok(timeout)) => Some(timeout).filter(|timeout| !timeout.is_zero()),
            Some(Err(message)) => {
                wrong("timeout", message);
                None
            }
            None => None,
        };
        let retry = match &http.retries {
            None => Some(default_retries()),
            Some(retries) => compile_retries(retries, &mut wrong),
        };
        Ok(Forward {
            clusters,
            timeout,
            retry,
            ..Forward::default()
        })
    }

    /// The cluster of a destination; one that is not there becomes a cluster without endpoints, so
    /// that only its share fails.
    fn destination(&mut self, object: &Object, declared: &RouteDestination, field: &str) -> String {
        let destination = &declared.destination;
        let namespace = &object.key.namespace;
        let subset = destination.subset.as_deref().unwrap_or_default();
        let found = find(
            self.services,
            &destination.host,
            namespace,
            &self.options.cluster_domain,
        );
        let asked = destination.port.as_ref().map(|port| port.number);
        let name = match found {
            Some(service) => {
                let port = match asked {
                    Some(number) => number,
                    None if service.port(Some(self.port.number)).is_some() => self.port.number,
                    None => service
                        .port(None)
                        .map_or(self.port.number, |port| port.number),
                };
                cluster_name(port, subset, &service.fqdn)
            }
            None => {
                let field = format!("{field}.destination.host");
                self.findings
                    .push(unknown_host(object, &field, &destination.host));
                cluster_name(asked.unwrap_or(self.port.number), subset, &destination.host)
            }
        };
        if self.compiled.clusters.contains_key(name.as_str()) {
            return name;
        }
        if found.is_some() {
            let field = format!("{field}.destination.subset");
            let message = format!("{} has no subset {subset:?} on that port", destination.host);
            let help = "add the subset to the host's DestinationRule";
            self.findings
                .push(object.diagnose(UNKNOWN_REFERENCE, &field, message, help));
        }
        self.add_empty_cluster(&name);
        name
    }

    fn add_empty_cluster(&mut self, name: &str) {
        let own = cluster_name(self.port.number, "", &self.service.fqdn);
        let Some(template) = self.compiled.clusters.get(own.as_str()) else {
            return;
        };
        let mut cluster = (**template).clone();
        cluster.name = name.into();
        cluster.discovery = mesh_core::config::Discovery::Eds(name.into());
        self.compiled
            .clusters
            .insert(name.into(), Arc::new(cluster));
        let empty = ClusterEndpoints {
            name: name.into(),
            localities: Vec::new(),
        };
        self.compiled.endpoints.insert(name.into(), Arc::new(empty));
    }
}

fn default_retries() -> RetryPolicy {
    RetryPolicy {
        retry_on: RetryOn::parse(DEFAULT_RETRY_ON).0,
        num_retries: DEFAULT_RETRIES,
        ..RetryPolicy::default()
    }
}

fn compile_retries(
    declared: &Retries,
    wrong: &mut impl FnMut(&str, String),
) -> Option<RetryPolicy> {
    let mut policy = default_retries();
    policy.num_retries = declared.attempts.min(RETRIES_MAX);
    if declared.attempts > RETRIES_MAX {
        let message = format!(
            "{} is more than {RETRIES_MAX}, which is used",
            declared.attempts
        );
        wrong("retries.attempts", message);
    }
    if let Some(list) = &declared.retry_on {
        let (mut retry_on, rest) = RetryOn::parse(list);
        for token in rest {
            // Istio takes HTTP codes in the same list.
            match token.parse::<u16>() {
                Ok(code) if (100..600).contains(&code) => {
                    retry_on |= RetryOn::RETRIABLE_STATUS_CODES;
                    policy.retriable_status_codes.push(code);
                }
                _ => wrong(
                    "retries.retryOn",
                    format!("{token:?} is not a known condition"),
                ),
            }
        }
        policy.retry_on = retry_on;
    }
    match declared.per_try_timeout.as_deref().map(value::duration) {
        Some(Ok(limit)) => policy.per_try_timeout = Some(limit).filter(|limit| !limit.is_zero()),
        Some(Err(message)) => wrong("retries.perTryTimeout", message),
        None => {}
    }
    match declared.backoff.as_deref().map(value::duration) {
        Some(Ok(base)) if !base.is_zero() => {
            policy.backoff = Backoff {
                base,
                max: base * 10,
            }
        }
        Some(Ok(_)) => wrong("retries.backoff", "it must be more than zero".into()),
        Some(Err(message)) => wrong("retries.backoff", message),
        None => {}
    }
    (policy.num_retries > 0).then_some(policy)
}

type Wrong = (String, String);

fn compile_match(declared: &HttpMatch) -> Result<RouteMatch, Wrong> {
    let mut path = match &declared.uri {
        None => PathMatcher::any(),
        Some(StringMatch {
            exact: Some(text), ..
        }) => PathMatcher::new(PathPattern::Exact(text.clone())),
        Some(StringMatch {
            prefix: Some(text), ..
        }) => PathMatcher::new(PathPattern::Prefix(text.clone())),
        Some(StringMatch {
            regex: Some(text), ..
        }) => {
            let regex = Regex::new(text).map_err(|message| ("uri.regex".to_owned(), message))?;
            PathMatcher::new(PathPattern::Regex(regex))
        }
        Some(_) => PathMatcher::any(),
    };
    path.case_sensitive = !declared.ignore_uri_case;
    let mut headers = Vec::new();
    let pseudo = [
        (":method", &declared.method),
        (":authority", &declared.authority),
    ];
    for (name, text) in pseudo {
        if let Some(text) = text {
            headers.push(header(name, text).map_err(|m| (name[1..].to_owned(), m))?);
        }
    }
    for (name, text) in &declared.headers {
        headers.push(header(name, text).map_err(|m| (format!("headers.{name}"), m))?);
    }
    for (name, text) in &declared.without_headers {
        let mut matcher = header(name, text).map_err(|m| (format!("withoutHeaders.{name}"), m))?;
        matcher.invert = true;
        // A header that is missing is one that does not match.
        matcher.treat_missing_as_empty = !matches!(matcher.predicate, HeaderPredicate::Present(_));
        headers.push(matcher);
    }
    Ok(RouteMatch {
        headers,
        ..RouteMatch::path(path)
    })
}

fn header(name: &str, text: &StringMatch) -> Result<HeaderMatcher, String> {
    let pattern = match text {
        StringMatch {
            exact: Some(text), ..
        } => StringPattern::Exact(text.clone()),
        StringMatch {
            prefix: Some(text), ..
        } => StringPattern::Prefix(text.clone()),
        StringMatch {
            regex: Some(text), ..
        } => StringPattern::Regex(Regex::new(text)?),
        StringMatch { .. } => {
            return Ok(HeaderMatcher::new(name, HeaderPredicate::Present(true)));
        }
    };
    Ok(HeaderMatcher::new(
        name,
        HeaderPredicate::String(StringMatcher::new(pattern)?),
    ))
}
