//! What filters would do, in words, for explanations.

use std::{fmt::Write as _, time::Duration};

use super::merge::{Level, merge};
use crate::config::{
    Abort, AppendAction, CorsPolicy, Delay, Fault, FilterConfig, Fraction, HeaderChanges,
    HttpFilter, LocalRateLimit, Rbac, SessionState, StatefulSession, StringPattern, TokenBucket,
};

/// The filters that do something on a route with these levels, the least specific first: the name of each,
/// and what it does.
pub fn describe(filters: &[HttpFilter], levels: &[Level<'_>]) -> Vec<(String, String)> {
    let merged = merge(filters, levels).into_iter();
    let described = merged.map(|merged| {
        let text = match merged.config {
            FilterConfig::HeaderMutation(_) => {
                let all = merged.levels.iter().map(|level| text(level));
                let all = all.filter(|text| !text.is_empty());
                all.collect::<Vec<_>>().join("; ")
            }
            config => text(config),
        };
        (merged.filter.name.to_string(), text)
    });
    described.filter(|(_, text)| !text.is_empty()).collect()
}

/// Changes of headers in words; empty where nothing changes.
pub fn header_changes(changes: &HeaderChanges) -> String {
    let removed = changes.remove.iter().map(|name| format!("removes {name}"));
    let added = changes.add.iter().map(|header| {
        let verb = match header.action {
            AppendAction::Append => "adds",
            AppendAction::AddIfAbsent => "adds, where it is absent,",
            AppendAction::Overwrite => "sets",
            AppendAction::OverwriteIfExists => "sets, where it exists,",
        };
        format!("{verb} {}: {}", header.name, header.value.as_str())
    });
    removed.chain(added).collect::<Vec<_>>().join(", ")
}

/// Empty where it does nothing.
fn text(config: &FilterConfig) -> String {
    match config {
        FilterConfig::Fault(fault) => of_fault(fault),
        FilterConfig::LocalRateLimit(limit) => of_limit(limit),
        FilterConfig::AdaptiveConcurrency(limit) if !limit.enabled => String::new(),
        FilterConfig::AdaptiveConcurrency(limit) => format!(
            "{} to {} requests at a time, by their latency; others get {}",
            limit.min_concurrency, limit.max_concurrency_limit, limit.status
        ),
        FilterConfig::Cors(policy) => policy.as_deref().map(of_cors).unwrap_or_default(),
        FilterConfig::HeaderMutation(headers) => {
            let sides = [
                ("request", &headers.request),
                ("response", &headers.response),
            ];
            let said = sides.into_iter().flat_map(|(side, changes)| {
                let changes = changes.iter().filter(|changes| !changes.is_empty());
                changes.map(move |changes| format!("of the {side} {}", header_changes(changes)))
            });
            said.collect::<Vec<_>>().join("; ")
        }
        FilterConfig::StatefulSession(session) => {
            session.as_deref().map(of_session).unwrap_or_default()
        }
        FilterConfig::Buffer { max_request_bytes } => format!(
            "waits for the request's body; one of more than {max_request_bytes} bytes gets 413"
        ),
        FilterConfig::Rbac(rules) => rules.as_ref().map(of_rbac).unwrap_or_default(),
        FilterConfig::JwtAuthn(tokens) => {
            let issuers = tokens.providers.iter().map(|provider| &*provider.issuer);
            let issuers = issuers.collect::<Vec<_>>().join(", ");
            format!("believes tokens of {issuers}; others get 401, requests without one pass")
        }
        FilterConfig::ExtAuthz(settings) => match &settings.service {
            Some(service) => format!("asks cluster {} about what is selected", service.cluster),
            None => String::new(),
        },
    }
}

/// ` for N %`, unless it is for all.
fn share(share: Fraction) -> String {
    match share.per_million() {
        1_000_000 => String::new(),
        millionths => format!(" for {} %", f64::from(millionths) / 10_000.0),
    }
}

fn of_fault(fault: &Fault) -> String {
    let delay = fault.delay.as_ref().map(|delay| match delay.delay {
        Delay::Fixed(fixed) => format!("delays by {fixed:?}{}", share(delay.percentage)),
        Delay::Header => "delays as x-envoy-fault-delay-request says".to_owned(),
    });
    let abort = fault.abort.as_ref().map(|abort| match abort.abort {
        Abort::Http(status) => format!("answers {status}{}", share(abort.percentage)),
        Abort::Grpc(status) => {
            format!("answers gRPC status {status}{}", share(abort.percentage))
        }
        Abort::Header => "answers as x-envoy-fault-abort-request says".to_owned(),
    });
    let mut text = delay
        .into_iter()
        .chain(abort)
        .collect::<Vec<_>>()
        .join(", ");
    if !text.is_empty() && !fault.headers.is_empty() {
        text.push_str(", where headers match");
    }
    text
}

fn of_limit(limit: &LocalRateLimit) -> String {
    let is_off = limit
        .filter_enabled
        .is_none_or(|share| share == Fraction::NONE);
    if is_off {
        return String::new();
    }
    let own = limit.token_bucket.as_ref().map(of_bucket);
    let of_descriptors = limit.descriptors.iter().map(|descriptor| {
        let entries = descriptor
            .entries
            .iter()
            .map(|(key, value)| match &**value {
                "" => format!("each {key}"),
                value => format!("{key} {value}"),
            });
        let entries = entries.collect::<Vec<_>>().join(", ");
        format!("{} for {entries}", of_bucket(&descriptor.token_bucket))
    });
    let mut text = own
        .into_iter()
        .chain(of_descriptors)
        .collect::<Vec<_>>()
        .join("; ");
    if !text.is_empty() {
        _ = match limit.filter_enforced {
            None => write!(text, "; only counted"),
            Some(_) => write!(text, "; over it {}", limit.status),
        };
    }
    text
}

fn of_bucket(bucket: &TokenBucket) -> String {
    let TokenBucket {
        max_tokens,
        tokens_per_fill,
        fill_interval,
    } = bucket;
    format!("{tokens_per_fill} requests in {fill_interval:?}, {max_tokens} at once")
}

fn of_cors(policy: &CorsPolicy) -> String {
    let origins = policy
        .allow_origins
        .iter()
        .map(|origin| match &origin.pattern {
            StringPattern::Exact(text) => text.clone(),
            StringPattern::Prefix(text) => format!("{text}*"),
            StringPattern::Suffix(text) => format!("*{text}"),
            StringPattern::Contains(text) => format!("*{text}*"),
            StringPattern::Regex(regex) => regex.as_str().to_owned(),
        });
    let origins = origins.collect::<Vec<_>>().join(", ");
    let mut text = format!("pages of {origins} may ask");
    if !policy.allow_methods.is_empty() {
        _ = write!(text, ", with methods {}", policy.allow_methods);
    }
    text
}

fn of_session(session: &StatefulSession) -> String {
    let mut text = match &session.state {
        SessionState::Cookie(cookie) => {
            let mut text = format!("cookie {} names the endpoint", cookie.name);
            if !matches!(&*cookie.path, "" | "/") {
                _ = write!(text, ", below {}", cookie.path);
            }
            if let Some(ttl) = cookie.ttl.filter(|ttl| *ttl > Duration::ZERO) {
                _ = write!(text, ", for {ttl:?}");
            }
            text
        }
        SessionState::Header(name) => format!("header {name} names the endpoint"),
    };
    text.push_str(match session.strict {
        true => "; without it the request fails",
        false => "; without it another one is taken",
    });
    text
}

fn of_rbac(rules: &Rbac) -> String {
    let action = rules.action.as_str();
    let names: Vec<_> = rules.policies.keys().map(|name| &**name).collect();
    match (action, &names[..]) {
        ("ALLOW", []) => "nobody is allowed".to_owned(),
        ("ALLOW", names) => format!("only what {} allows passes", names.join(" or ")),
        (_, []) => String::new(),
        ("DENY", names) => format!("what {} matches is refused", names.join(" or ")),
        (_, names) => format!("what {} matches is written down", names.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{
        FaultAbort, FaultDelay, FilterOverrides, HeaderMutation, HeaderValue, SessionCookieConfig,
        ValueTemplate,
    };

    #[test]
    fn what_does_nothing_is_left_out_and_every_level_of_headers_is_told() {
        let headers = |name: &'static str| {
            let add = HeaderValue {
                name: http::HeaderName::from_static(name),
                value: ValueTemplate::text("1"),
                action: AppendAction::Append,
                keep_empty: false,
            };
            FilterConfig::HeaderMutation(Arc::new(HeaderMutation {
                request: vec![HeaderChanges {
                    remove: vec![http::HeaderName::from_static("x-z")],
                    add: vec![add],
                }],
                ..HeaderMutation::default()
            }))
        };
        let fault = FilterConfig::Fault(Arc::new(Fault {
            delay: Some(FaultDelay {
                delay: Delay::Fixed(Duration::from_secs(5)),
                percentage: Fraction::new(1, 10).expect("a share"),
                denominator: 100,
            }),
            abort: Some(FaultAbort {
                abort: Abort::Http(503),
                percentage: Fraction::new(1, 1).expect("a share"),
                denominator: 100,
            }),
            ..Fault::default()
        }));
        let session = FilterConfig::StatefulSession(Some(Arc::new(StatefulSession {
            state: SessionState::Cookie(SessionCookieConfig {
                name: "s".into(),
                path: "/a".into(),
                ..SessionCookieConfig::default()
            }),
            strict: true,
        })));
        let filters = [
            HttpFilter::new("fault", FilterConfig::Fault(Arc::default())),
            HttpFilter::new("headers", headers("x-a")),
            HttpFilter::new("session", FilterConfig::StatefulSession(None)),
            HttpFilter::new("cors", FilterConfig::Cors(None)),
        ];
        let mut route = FilterOverrides::of("fault", fault);
        let more = [("headers", headers("x-b")), ("session", session)];
        for (name, config) in more {
            let config = crate::config::FilterOverride::with(config);
            route.by_name.insert(name.into(), config);
        }
        let level = Level {
            place: "route",
            overrides: Some(&route),
        };
        let told = describe(&filters, &[level]);
        let told: Vec<_> = told
            .iter()
            .map(|(name, text)| format!("{name}: {text}"))
            .collect();
        assert_eq!(
            told,
            [
                "fault: delays by 5s for 10 %, answers 503",
                "headers: of the request removes x-z, adds x-a: 1; of the request removes x-z, adds \
                 x-b: 1",
                "session: cookie s names the endpoint, below /a; without it the request fails",
            ]
        );
        assert_eq!(describe(&filters[..1], &[]), []);
    }
}
