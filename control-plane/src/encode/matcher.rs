//! Text, header and path matchers.

use envoy_types::pb::envoy::{
    config::{
        core::v3::TypedExtensionConfig,
        route::v3::{
            HeaderMatcher as ProtoHeaderMatcher, QueryParameterMatcher, header_matcher,
            query_parameter_matcher, route_match,
        },
    },
    extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig,
    r#type::{
        matcher::v3::{
            PathMatcher as ProtoPathMatcher, RegexMatcher, StringMatcher as ProtoStringMatcher,
            path_matcher, string_matcher::MatchPattern,
        },
        v3::Int64Range,
    },
};
use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, PathMatcher, PathPattern, QueryMatcher, Regex, StringMatcher,
    StringPattern,
};

use super::{ClientClass, any};

pub(super) fn string(matcher: &StringMatcher) -> ProtoStringMatcher {
    let pattern = match &matcher.pattern {
        StringPattern::Exact(text) => MatchPattern::Exact(text.clone()),
        StringPattern::Prefix(text) => MatchPattern::Prefix(text.clone()),
        StringPattern::Suffix(text) => MatchPattern::Suffix(text.clone()),
        StringPattern::Contains(text) => MatchPattern::Contains(text.clone()),
        StringPattern::Regex(source) => MatchPattern::SafeRegex(regex(source)),
    };
    ProtoStringMatcher {
        // Envoy refuses a regex that asks for it.
        ignore_case: matcher.ignore_case && !matches!(matcher.pattern, StringPattern::Regex(_)),
        match_pattern: Some(pattern),
    }
}

pub(super) fn regex(regex: &Regex) -> RegexMatcher {
    RegexMatcher {
        regex: regex.as_str().to_owned(),
        ..RegexMatcher::default()
    }
}

pub(super) fn header(matcher: &HeaderMatcher) -> ProtoHeaderMatcher {
    use header_matcher::HeaderMatchSpecifier as Specifier;
    let specifier = match &matcher.predicate {
        HeaderPredicate::String(text) => Specifier::StringMatch(string(text)),
        HeaderPredicate::Range { start, end } => Specifier::RangeMatch(Int64Range {
            start: *start,
            end: *end,
        }),
        HeaderPredicate::Present(present) => Specifier::PresentMatch(*present),
    };
    ProtoHeaderMatcher {
        name: matcher.name.clone(),
        invert_match: matcher.invert,
        treat_missing_header_as_empty: matcher.treat_missing_as_empty,
        header_match_specifier: Some(specifier),
    }
}

pub(super) fn path(path: &PathMatcher, class: ClientClass) -> route_match::PathSpecifier {
    use route_match::PathSpecifier as Specifier;
    match &path.pattern {
        // gRPC refuses a specifier that it does not know, and with it all routes (gRFC A28).
        PathPattern::SeparatedPrefix(text) if class.is_grpc() => {
            let case = if path.case_sensitive { "" } else { "(?i)" };
            Specifier::SafeRegex(RegexMatcher {
                regex: format!("{case}{}(/.*)?", Regex::escaped(text)),
                ..RegexMatcher::default()
            })
        }
        PathPattern::Prefix(text) => Specifier::Prefix(text.clone()),
        PathPattern::SeparatedPrefix(text) => Specifier::PathSeparatedPrefix(text.clone()),
        PathPattern::Exact(text) => Specifier::Path(text.clone()),
        PathPattern::Regex(source) => Specifier::SafeRegex(regex(source)),
        PathPattern::Template(template) => Specifier::PathMatchPolicy(TypedExtensionConfig {
            name: "envoy.path.match.uri_template.uri_template_matcher".to_owned(),
            typed_config: Some(any(&UriTemplateMatchConfig {
                path_template: template.as_str().to_owned(),
            })),
        }),
    }
}

pub(super) fn query(matcher: &QueryMatcher) -> QueryParameterMatcher {
    use query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    QueryParameterMatcher {
        name: matcher.name.clone(),
        query_parameter_match_specifier: Some(match &matcher.value {
            Some(value) => Specifier::StringMatch(string(value)),
            None => Specifier::PresentMatch(matcher.present),
        }),
    }
}

pub(super) fn url_path(matcher: &StringMatcher) -> ProtoPathMatcher {
    ProtoPathMatcher {
        rule: Some(path_matcher::Rule::Path(string(matcher))),
    }
}
