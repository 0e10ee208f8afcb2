//! Changes of headers.
//!
//! Stage 3. A value with a command that cannot be answered here is left out, and that is noted.

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValueOption, header_value_option::HeaderAppendAction,
};
use http::HeaderName;
use mesh_core::{
    config::{AppendAction, HeaderChanges, HeaderMutations, HeaderValue, ValueTemplate},
    route::Feature,
};

use crate::resource::path::Sink;

/// The four fields that many messages have. The outer `None` is an error.
pub(super) fn mutations(
    sink: &mut Sink,
    request_add: &[HeaderValueOption],
    request_remove: &[String],
    response_add: &[HeaderValueOption],
    response_remove: &[String],
) -> Option<Option<Box<HeaderMutations>>> {
    let mutations = HeaderMutations {
        request: HeaderChanges {
            remove: names(sink, "request_headers_to_remove", request_remove),
            add: values(sink, "request_headers_to_add", request_add, false),
        },
        response: HeaderChanges {
            remove: names(sink, "response_headers_to_remove", response_remove),
            add: values(sink, "response_headers_to_add", response_add, true),
        },
    };
    Some((!mutations.is_empty()).then(|| Box::new(mutations)))
}

fn names(sink: &mut Sink, field: &str, names: &[String]) -> Vec<HeaderName> {
    sink.pending(field, Feature::HeaderMutations, !names.is_empty());
    sink.each(field, names, |sink, name| changeable(sink, name))
}

fn values(
    sink: &mut Sink,
    field: &str,
    protos: &[HeaderValueOption],
    is_response: bool,
) -> Vec<HeaderValue> {
    sink.pending(field, Feature::HeaderMutations, !protos.is_empty());
    sink.each(field, protos, |sink, proto| value(sink, proto, is_response))
}

/// A header to add; `None` also for a command that has no answer here.
pub(in crate::resource) fn value(
    sink: &mut Sink,
    proto: &HeaderValueOption,
    is_response: bool,
) -> Option<HeaderValue> {
    let Some(header) = &proto.header else {
        return sink.error_at("header", "is missing");
    };
    let name = sink.field("header.key", |sink| changeable(sink, &header.key))?;
    let raw = String::from_utf8_lossy(&header.raw_value);
    let text = match header.value.as_str() {
        "" => &raw,
        text => text,
    };
    let Ok(value) = ValueTemplate::new(text, is_response) else {
        sink.ignore([("header.value (a command that has no answer here)", true)]);
        return None;
    };
    let action = match HeaderAppendAction::try_from(proto.append_action) {
        Ok(HeaderAppendAction::AppendIfExistsOrAdd) => match &proto.append {
            Some(append) if !append.value => AppendAction::Overwrite,
            _ => AppendAction::Append,
        },
        Ok(HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::Overwrite,
        Ok(HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        Err(_) => return sink.error_at("append_action", "is not known"),
    };
    Some(HeaderValue {
        name,
        value,
        action,
        keep_empty: proto.keep_empty_value,
    })
}

/// The name of a header that may be changed.
pub(in crate::resource) fn changeable(sink: &mut Sink, name: &str) -> Option<HeaderName> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if name != http::header::HOST => Some(name),
        _ => sink.error(format!(
            "{name:?} cannot be changed: it must be a header, not a pseudo-header or host"
        )),
    }
}

/// The name of a header that is read.
pub(in crate::resource) fn header_name(
    sink: &mut Sink,
    field: &str,
    name: &str,
) -> Option<HeaderName> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Some(name),
        Err(_) => sink.error_at(field, format!("{name:?} is not the name of a header")),
    }
}
