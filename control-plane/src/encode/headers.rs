//! Changes of headers.

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue as ProtoHeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use mesh_core::config::{AppendAction, HeaderChanges, HeaderMutations};

type Mutations<'m> = Option<&'m HeaderMutations>;

pub(super) fn request_add(mutations: Mutations<'_>) -> Vec<HeaderValueOption> {
    mutations.map_or_else(Vec::new, |mutations| add(&mutations.request))
}

pub(super) fn request_remove(mutations: Mutations<'_>) -> Vec<String> {
    mutations.map_or_else(Vec::new, |mutations| remove(&mutations.request))
}

pub(super) fn response_add(mutations: Mutations<'_>) -> Vec<HeaderValueOption> {
    mutations.map_or_else(Vec::new, |mutations| add(&mutations.response))
}

pub(super) fn response_remove(mutations: Mutations<'_>) -> Vec<String> {
    mutations.map_or_else(Vec::new, |mutations| remove(&mutations.response))
}

pub(super) fn add(changes: &HeaderChanges) -> Vec<HeaderValueOption> {
    let values = changes.add.iter().map(|header| HeaderValueOption {
        header: Some(ProtoHeaderValue {
            key: header.name.to_string(),
            value: header.value.as_str().to_owned(),
            ..ProtoHeaderValue::default()
        }),
        append_action: match header.action {
            AppendAction::Append => HeaderAppendAction::AppendIfExistsOrAdd,
            AppendAction::AddIfAbsent => HeaderAppendAction::AddIfAbsent,
            AppendAction::Overwrite => HeaderAppendAction::OverwriteIfExistsOrAdd,
            AppendAction::OverwriteIfExists => HeaderAppendAction::OverwriteIfExists,
        } as i32,
        keep_empty_value: header.keep_empty,
        ..HeaderValueOption::default()
    });
    values.collect()
}

pub(super) fn remove(changes: &HeaderChanges) -> Vec<String> {
    changes.remove.iter().map(ToString::to_string).collect()
}
