//! Changes of headers by a filter (Envoy `HeaderMutation`).

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::common::mutation_rules::v3::{
            HeaderMutation as MutationProto, header_mutation::Action,
        },
        extensions::filters::http::header_mutation::v3::{
            HeaderMutation as FilterProto, HeaderMutationPerRoute, Mutations,
        },
    },
    google::protobuf::Any,
};
use mesh_core::config::{FilterConfig, FilterOverride, HeaderChanges, HeaderMutation};

use super::{BOTH, FilterType};
use crate::resource::{
    path::Sink,
    report::report,
    route::{Side, headers},
    value::{is, parse},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<FilterProto>,
    is_override: is::<HeaderMutationPerRoute>,
    sides: BOTH,
    decode,
    decode_override,
};

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    let proto: FilterProto = parse(sink, any)?;
    let mut mutation = mutations(sink, proto.mutations.as_ref());
    mutation.most_specific_wins = proto.most_specific_header_mutations_wins;
    Some(FilterConfig::HeaderMutation(Arc::new(mutation)))
}

fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    if !is::<HeaderMutationPerRoute>(any) {
        return sink.error("must be a HeaderMutationPerRoute");
    }
    let proto: HeaderMutationPerRoute = parse(sink, any)?;
    let mutation = Arc::new(mutations(sink, proto.mutations.as_ref()));
    let config = FilterConfig::HeaderMutation(mutation);
    Some(FilterOverride::with(config))
}

fn mutations(sink: &mut Sink, proto: Option<&Mutations>) -> HeaderMutation {
    let Some(proto) = proto else {
        return HeaderMutation::default();
    };
    sink.field("mutations", |sink| {
        report!(
            sink,
            proto,
            [
                query_parameter_mutations,
                response_trailers_mutations,
                request_trailers_mutations,
            ]
        );
        let request = sink.each(
            "request_mutations",
            &proto.request_mutations,
            |sink, one| change(sink, one, false),
        );
        let response = &proto.response_mutations;
        HeaderMutation {
            request,
            response: sink.each("response_mutations", response, |sink, one| {
                change(sink, one, true)
            }),
            most_specific_wins: false,
        }
    })
}

fn change(sink: &mut Sink, proto: &MutationProto, is_response: bool) -> Option<HeaderChanges> {
    let mut changes = HeaderChanges::default();
    match &proto.action {
        Some(Action::Remove(name)) => {
            changes.remove = vec![sink.field("remove", |sink| headers::changeable(sink, name))?];
        }
        Some(Action::Append(option)) => {
            let value = sink.field("append", |sink| headers::value(sink, option, is_response));
            changes.add = vec![value?];
        }
        Some(Action::RemoveOnMatch(_)) => {
            return sink.error_at("remove_on_match", "is not supported; name the header");
        }
        None => return sink.error("holds no action"),
    }
    Some(changes)
}
