//! Predicates over dynamic metadata (Envoy `MetadataMatcher`, `ValueMatcher`).
//!
//! Stage 3. A number is refused: no filter of ours says one that a rule could compare exactly.

use envoy_types::pb::envoy::{
    config::rbac::v3::{MetadataSource, SourcedMetadata},
    r#type::matcher::v3::{
        MetadataMatcher as MetadataProto, ValueMatcher as ValueProto,
        list_matcher::MatchPattern as ListPattern, metadata_matcher::path_segment::Segment,
        value_matcher::MatchPattern,
    },
};
use mesh_core::config::{MetadataMatcher, ValueMatcher};

use super::{path::Sink, route::matcher as text};

pub(crate) fn matcher(sink: &mut Sink, proto: &MetadataProto) -> Option<MetadataMatcher> {
    if proto.filter.is_empty() {
        return sink.error_at("filter", "is missing");
    }
    let path = sink.each("path", &proto.path, |sink, segment| {
        match &segment.segment {
            Some(Segment::Key(key)) if !key.is_empty() => Some(key.clone()),
            _ => sink.error_at("key", "is missing"),
        }
    });
    if path.is_empty() {
        return sink.error_at("path", "must not be empty");
    }
    let value = sink.field("value", |sink| match &proto.value {
        Some(value) => decode_value(sink, value),
        None => sink.error("is missing"),
    })?;
    Some(MetadataMatcher {
        invert: proto.invert,
        ..MetadataMatcher::new(proto.filter.clone(), path, value)
    })
}

/// A matcher that says whose metadata it is about: what filters found out is known, what a route was
/// declared with is not.
pub(crate) fn sourced(sink: &mut Sink, proto: &SourcedMetadata) -> Option<MetadataMatcher> {
    if proto.metadata_source != MetadataSource::Dynamic as i32 {
        let message = "is not supported; use DYNAMIC";
        return sink.error_at("metadata_source", message);
    }
    sink.field("metadata_matcher", |sink| match &proto.metadata_matcher {
        Some(proto) => matcher(sink, proto),
        None => sink.error("is missing"),
    })
}

fn decode_value(sink: &mut Sink, proto: &ValueProto) -> Option<ValueMatcher> {
    match &proto.match_pattern {
        Some(MatchPattern::NullMatch(_)) => Some(ValueMatcher::Null),
        Some(MatchPattern::BoolMatch(value)) => Some(ValueMatcher::Bool(*value)),
        Some(MatchPattern::PresentMatch(true)) => Some(ValueMatcher::Present),
        Some(MatchPattern::PresentMatch(false)) => sink.error_at("present_match", "must be true"),
        Some(MatchPattern::StringMatch(proto)) => sink
            .field("string_match", |sink| text::string(sink, proto))
            .map(ValueMatcher::String),
        Some(MatchPattern::ListMatch(list)) => match &list.match_pattern {
            Some(ListPattern::OneOf(one)) => sink
                .field("list_match.one_of", |sink| decode_value(sink, one))
                .map(|one| ValueMatcher::ListContains(Box::new(one))),
            None => sink.error_at("list_match", "holds no pattern"),
        },
        Some(MatchPattern::OrMatch(any)) => {
            let name = "or_match.value_matchers";
            let kept = sink.each(name, &any.value_matchers, decode_value);
            (kept.len() == any.value_matchers.len()).then_some(ValueMatcher::Or(kept))
        }
        Some(MatchPattern::DoubleMatch(_)) => sink.error_at("double_match", "is not supported"),
        None => sink.error("holds no pattern"),
    }
}
