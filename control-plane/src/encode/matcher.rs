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
            ListMatcher, MetadataMatcher as ProtoMetadataMatcher, OrMatcher,
            PathMatcher as ProtoPathMatcher, RegexMatcher, StringMatcher as ProtoStringMatcher,
            ValueMatcher as ProtoValueMatcher, list_matcher, metadata_matcher, path_matcher,
            string_matcher::MatchPattern, value_matcher,
        },
        v3::Int64Range,
    },
};
use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, MetadataMatcher, PathMatcher, PathPattern, QueryMatcher, Regex,
    StringMatcher, StringPattern, ValueMatcher,
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

/// Lists of matchers, of which any must match in full, that mean what `matchers` do to a client that
/// does not know `treat_missing_header_as_empty`, as no gRPC does: it never takes a missing header
/// for a match, inverted or not, unless presence is asked for (gRFC A28).
pub(super) fn without_missing_as_empty(matchers: &[HeaderMatcher]) -> Vec<Vec<HeaderMatcher>> {
    let mut all: Vec<Vec<HeaderMatcher>> = vec![Vec::new()];
    for matcher in matchers {
        let plain = HeaderMatcher {
            treat_missing_as_empty: false,
            ..matcher.clone()
        };
        let takes_missing = matcher.treat_missing_as_empty && matcher.is_match(None);
        let is_about_presence = matches!(matcher.predicate, HeaderPredicate::Present(_));
        match (matcher.treat_missing_as_empty, takes_missing) {
            // Every header is there, then: it always matches, or never.
            (true, true) if is_about_presence => {}
            (true, false) if is_about_presence => return Vec::new(),
            (_, false) => all.iter_mut().for_each(|list| list.push(plain.clone())),
            (_, true) => {
                let absent = HeaderMatcher::new(&matcher.name, HeaderPredicate::Present(false));
                let with = |other: &HeaderMatcher| {
                    let lists = all.iter().cloned();
                    let other = other.clone();
                    lists.map(move |mut list| {
                        list.push(other.clone());
                        list
                    })
                };
                all = with(&plain).chain(with(&absent)).collect();
            }
        }
    }
    all
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

pub(super) fn metadata(matcher: &MetadataMatcher) -> ProtoMetadataMatcher {
    use metadata_matcher::{PathSegment, path_segment::Segment};
    let segment = |key: &String| PathSegment {
        segment: Some(Segment::Key(key.clone())),
    };
    ProtoMetadataMatcher {
        filter: matcher.filter.clone(),
        path: matcher.path.iter().map(segment).collect(),
        value: Some(value(&matcher.value)),
        invert: matcher.invert,
    }
}

fn value(matcher: &ValueMatcher) -> ProtoValueMatcher {
    use value_matcher::{MatchPattern as Pattern, NullMatch};
    let pattern = match matcher {
        ValueMatcher::Present => Pattern::PresentMatch(true),
        ValueMatcher::Null => Pattern::NullMatch(NullMatch {}),
        ValueMatcher::Bool(wanted) => Pattern::BoolMatch(*wanted),
        ValueMatcher::String(text) => Pattern::StringMatch(string(text)),
        ValueMatcher::ListContains(one) => Pattern::ListMatch(Box::new(ListMatcher {
            match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(value(one)))),
        })),
        ValueMatcher::Or(any) => Pattern::OrMatch(OrMatcher {
            value_matchers: any.iter().map(value).collect(),
        }),
    };
    ProtoValueMatcher {
        match_pattern: Some(pattern),
    }
}
