//! Requests that are held back until their bodies are there (Envoy `Buffer`).

use envoy_types::pb::{
    envoy::extensions::filters::http::buffer::v3::{
        Buffer, BufferPerRoute, buffer_per_route::Override,
    },
    google::protobuf::Any,
};
use mesh_core::config::{FilterConfig, FilterOverride};

use super::{BOTH, FilterType};
use crate::resource::{
    path::Sink,
    route::Side,
    value::{is, parse, uint32},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<Buffer>,
    is_override: is::<BufferPerRoute>,
    sides: BOTH,
    decode,
    decode_override,
};

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    let proto: Buffer = parse(sink, any)?;
    limit(sink, &proto)
}

fn limit(sink: &mut Sink, proto: &Buffer) -> Option<FilterConfig> {
    match uint32(proto.max_request_bytes.as_ref()) {
        None | Some(0) => sink.error_at("max_request_bytes", "is missing"),
        Some(max_request_bytes) => Some(FilterConfig::Buffer { max_request_bytes }),
    }
}

fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    if !is::<BufferPerRoute>(any) {
        return sink.error("must be a BufferPerRoute");
    }
    let proto: BufferPerRoute = parse(sink, any)?;
    match &proto.r#override {
        Some(Override::Disabled(true)) => Some(FilterOverride::off()),
        Some(Override::Buffer(buffer)) => {
            let config = sink.field("buffer", |sink| limit(sink, buffer))?;
            Some(FilterOverride::with(config))
        }
        Some(Override::Disabled(false)) | None => {
            sink.error("must disable the filter or hold a buffer")
        }
    }
}
