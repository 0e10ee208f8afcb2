//! Limits of a server's connections and streams.

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HttpProtocolOptions, http_protocol_options::HeadersWithUnderscoresAction,
        },
        extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    },
    google::protobuf::UInt32Value,
};
use mesh_core::config::{HttpLimits, Underscores};

use super::duration;

/// Writes `limits` into `manager`, which says nothing of those that are not there.
pub(super) fn write(manager: &mut HttpConnectionManager, limits: &HttpLimits) {
    let uint32 = |value| UInt32Value { value };
    manager.stream_idle_timeout = limits.stream_idle_timeout.map(duration);
    manager.request_timeout = limits.request_timeout.map(duration);
    manager.request_headers_timeout = limits.request_headers_timeout.map(duration);
    let kilobytes = limits.max_headers_bytes.map(|bytes| bytes.div_ceil(1024));
    manager.max_request_headers_kb = kilobytes.map(uint32);
    let action = match limits.underscores {
        Underscores::Allow => HeadersWithUnderscoresAction::Allow,
        Underscores::Reject => HeadersWithUnderscoresAction::RejectRequest,
        Underscores::Drop => HeadersWithUnderscoresAction::DropHeader,
    };
    let options = HttpProtocolOptions {
        max_stream_duration: limits.max_stream_duration.map(duration),
        idle_timeout: limits.idle_timeout.map(duration),
        max_connection_duration: limits.max_connection_duration.map(duration),
        max_requests_per_connection: limits.max_requests_per_connection.map(uint32),
        max_headers_count: limits.max_headers_count.map(uint32),
        headers_with_underscores_action: action as i32,
        ..HttpProtocolOptions::default()
    };
    let says = options != HttpProtocolOptions::default();
    manager.common_http_protocol_options = says.then_some(options);
}
