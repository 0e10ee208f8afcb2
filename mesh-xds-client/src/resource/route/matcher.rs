//! Text, header and path matchers.
//!
//! Stage 3. Follows gRFC A28 and A63; an absent predicate is refused, not taken for "present".

use envoy_types::pb::envoy::{
    config::{
        core::v3::TypedExtensionConfig,
        route::v3::{
            HeaderMatcher as HeaderProto, QueryParameterMatcher as QueryProto,
            RouteMatch as RouteMatchProto, header_matcher::HeaderMatchSpecifier,
            query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
        },
    },
    extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig,
    r#type::matcher::v3::{
        RegexMatcher, StringMatcher as StringProto, string_matcher::MatchPattern,
    },
};
use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, PathMatcher, PathPattern, PathTemplate, QueryMatcher, Regex,
    RouteMatch, StringMatcher, StringPattern,
};

use crate::resource::{path::Sink, value};

/// Content types of gRPC, for `RouteMatch.grpc`.
const GRPC_CONTENT_TYPE: &str = r"application/grpc(\+.*)?";

pub(crate) fn string(sink: &mut Sink, proto: &StringProto) -> Option<StringMatcher> {
    let (name, pattern) = match &proto.match_pattern {
        Some(MatchPattern::Exact(text)) => ("exact", StringPattern::Exact(text.clone())),
        Some(MatchPattern::Prefix(text)) => ("prefix", StringPattern::Prefix(text.clone())),
        Some(MatchPattern::Suffix(text)) => ("suffix", StringPattern::Suffix(text.clone())),
        Some(MatchPattern::Contains(text)) => ("contains", StringPattern::Contains(text.clone())),
        Some(MatchPattern::SafeRegex(proto)) => {
            let regex = sink.field("safe_regex", |sink| regex(sink, proto))?;
            ("safe_regex", StringPattern::Regex(regex))
        }
        Some(MatchPattern::Custom(_)) => return sink.error_at("custom", "is not supported"),
        None => return sink.error("holds no pattern"),
    };
    pattern_of(sink, name, pattern).map(|matcher| matcher.ignore_case(proto.ignore_case))
}

fn pattern_of(sink: &mut Sink, name: &str, pattern: StringPattern) -> Option<StringMatcher> {
    match StringMatcher::new(pattern) {
        Ok(matcher) => Some(matcher),
        Err(reason) => sink.error_at(name, reason),
    }
}

pub(crate) fn regex(sink: &mut Sink, proto: &RegexMatcher) -> Option<Regex> {
    match Regex::new(&proto.regex) {
        Ok(regex) => Some(regex),
        Err(reason) => sink.error(reason),
    }
}

pub(crate) fn header(sink: &mut Sink, proto: &HeaderProto) -> Option<HeaderMatcher> {
    if proto.name.is_empty() {
        return sink.error_at("name", "is missing");
    }
    use HeaderMatchSpecifier as Specifier;
    let text = |sink: &mut Sink, name: &str, pattern: StringPattern| {
        pattern_of(sink, name, pattern).map(HeaderPredicate::String)
    };
    let predicate = match &proto.header_match_specifier {
        Some(Specifier::StringMatch(proto)) => sink
            .field("string_match", |sink| string(sink, proto))
            .map(HeaderPredicate::String),
        Some(Specifier::ExactMatch(value)) => {
            text(sink, "exact_match", StringPattern::Exact(value.clone()))
        }
        Some(Specifier::PrefixMatch(value)) => {
            text(sink, "prefix_match", StringPattern::Prefix(value.clone()))
        }
        Some(Specifier::SuffixMatch(value)) => {
            text(sink, "suffix_match", StringPattern::Suffix(value.clone()))
        }
        Some(Specifier::ContainsMatch(value)) => text(
            sink,
            "contains_match",
            StringPattern::Contains(value.clone()),
        ),
        Some(Specifier::SafeRegexMatch(proto)) => {
            let regex = sink.field("safe_regex_match", |sink| regex(sink, proto))?;
            text(sink, "safe_regex_match", StringPattern::Regex(regex))
        }
        Some(Specifier::RangeMatch(range)) => Some(HeaderPredicate::Range {
            start: range.start,
            end: range.end,
        }),
        Some(Specifier::PresentMatch(present)) => Some(HeaderPredicate::Present(*present)),
        None => sink.error("holds no predicate"),
    };
    let mut matcher = HeaderMatcher::new(&proto.name, predicate?);
    matcher.invert = proto.invert_match;
    matcher.treat_missing_as_empty = proto.treat_missing_header_as_empty;
    Some(matcher)
}

pub(super) fn route_match(sink: &mut Sink, proto: &RouteMatchProto) -> Option<RouteMatch> {
    // A condition left out would send other requests here, so these are refused.
    let unsupported = "is not supported";
    sink.refuse("cookies", !proto.cookies.is_empty(), unsupported);
    sink.refuse("tls_context", proto.tls_context.is_some(), unsupported);
    sink.refuse(
        "dynamic_metadata",
        !proto.dynamic_metadata.is_empty(),
        unsupported,
    );
    sink.refuse("filter_state", !proto.filter_state.is_empty(), unsupported);
    let mut headers = sink.each("headers", &proto.headers, header);
    if proto.grpc.is_some() {
        headers.extend(grpc_only(sink));
    }
    let query_parameters = sink.each("query_parameters", &proto.query_parameters, query_parameter);
    let fraction = match proto.runtime_fraction.as_ref() {
        None => None,
        Some(fraction) => sink.field("runtime_fraction.default_value", |sink| {
            match &fraction.default_value {
                Some(value) => value::fraction(sink, value),
                None => sink.error("is missing"),
            }
        }),
    };
    let path = path(sink, proto);
    Some(RouteMatch {
        path: path?,
        headers,
        query_parameters,
        fraction,
    })
}

fn query_parameter(sink: &mut Sink, proto: &QueryProto) -> Option<QueryMatcher> {
    use QueryParameterMatchSpecifier as Specifier;
    if proto.name.is_empty() {
        return sink.error_at("name", "is missing");
    }
    let mut matcher = QueryMatcher::present(proto.name.clone());
    match &proto.query_parameter_match_specifier {
        Some(Specifier::StringMatch(proto)) => {
            matcher.value = Some(sink.field("string_match", |sink| string(sink, proto))?);
        }
        Some(Specifier::PresentMatch(present)) => matcher.present = *present,
        None => {}
    }
    Some(matcher)
}

/// `RouteMatch.grpc`: requests whose content type is gRPC's.
fn grpc_only(sink: &mut Sink) -> Option<HeaderMatcher> {
    let pattern = match Regex::new(GRPC_CONTENT_TYPE) {
        Ok(regex) => StringPattern::Regex(regex),
        Err(reason) => return sink.error_at("grpc", reason),
    };
    let matcher = pattern_of(sink, "grpc", pattern)?;
    Some(HeaderMatcher::new(
        "content-type",
        HeaderPredicate::String(matcher),
    ))
}

fn template(sink: &mut Sink, policy: &TypedExtensionConfig) -> Option<PathTemplate> {
    let Some(any) = policy
        .typed_config
        .as_ref()
        .filter(|any| value::is::<UriTemplateMatchConfig>(any))
    else {
        return sink.error_at("typed_config", "only UriTemplateMatchConfig is supported");
    };
    sink.field("typed_config", |sink| {
        let proto: UriTemplateMatchConfig = value::parse(sink, any)?;
        match PathTemplate::new(&proto.path_template) {
            Ok(template) => Some(template),
            Err(reason) => sink.error_at("path_template", reason),
        }
    })
}

fn path(sink: &mut Sink, proto: &RouteMatchProto) -> Option<PathMatcher> {
    let pattern = match &proto.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathPattern::Prefix(prefix.clone()),
        Some(PathSpecifier::Path(path)) => PathPattern::Exact(path.clone()),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            if prefix.contains(['?', '#']) || prefix.ends_with('/') || !prefix.starts_with('/') {
                return sink.error_at(
                    "path_separated_prefix",
                    format!("{prefix:?} must begin with /, not end with it, and hold no ? or #"),
                );
            }
            PathPattern::SeparatedPrefix(prefix.clone())
        }
        Some(PathSpecifier::SafeRegex(proto)) => {
            PathPattern::Regex(sink.field("safe_regex", |sink| regex(sink, proto))?)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => {
            return sink.error_at("connect_matcher", "is not supported");
        }
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            PathPattern::Template(sink.field("path_match_policy", |sink| template(sink, policy))?)
        }
        None => return sink.error("names no path: prefix, path or safe_regex is needed"),
    };
    let mut matcher = PathMatcher::new(pattern);
    matcher.case_sensitive = proto
        .case_sensitive
        .as_ref()
        .is_none_or(|value| value.value);
    Some(matcher)
}
