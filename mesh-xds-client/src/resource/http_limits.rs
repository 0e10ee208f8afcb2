//! What an HTTP connection manager says of times and sizes, to [`HttpLimits`].
//!
//! Stage 3. Zero is no limit, as in Envoy. Deviation: Envoy's defaults are none here; a server has
//! constants of its own. Clients have no connections from downstream: what limits those is reported.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HttpProtocolOptions, http_protocol_options::HeadersWithUnderscoresAction,
        },
        extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    },
    google::protobuf::Duration as DurationProto,
};
use mesh_core::config::{HttpLimits, Underscores};

use super::{
    path::Sink,
    report::report,
    value::{duration, uint32},
};

const COMMON: &str = "common_http_protocol_options";

/// A limit of time; zero is none.
pub(super) fn limit(
    sink: &mut Sink,
    name: &str,
    proto: Option<&DurationProto>,
) -> Option<Duration> {
    duration(sink, name, proto).filter(|limit| !limit.is_zero())
}

/// The limit of a stream's life.
pub(super) fn max_stream_duration(
    sink: &mut Sink,
    manager: &HttpConnectionManager,
) -> Option<Duration> {
    let options = manager.common_http_protocol_options.as_ref()?;
    sink.field(COMMON, |sink| {
        let proto = options.max_stream_duration.as_ref();
        limit(sink, "max_stream_duration", proto)
    })
}

/// Reports what a client has nothing to limit by.
pub(super) fn report(sink: &mut Sink, manager: &HttpConnectionManager) {
    report!(
        sink,
        manager,
        [
            max_request_headers_kb,
            request_headers_timeout,
            request_timeout
        ]
    );
    if let Some(options) = &manager.common_http_protocol_options {
        sink.field(COMMON, |sink| {
            report!(
                sink,
                options,
                [
                    headers_with_underscores_action,
                    idle_timeout,
                    max_connection_duration,
                    max_headers_count,
                    max_requests_per_connection,
                ]
            );
        });
    }
}

/// The limits of a server's chain.
pub(super) fn decode(sink: &mut Sink, manager: &HttpConnectionManager) -> Option<HttpLimits> {
    let none = HttpProtocolOptions::default();
    let options = manager.common_http_protocol_options.as_ref();
    let options = options.unwrap_or(&none);
    let of_manager = [
        ("stream_idle_timeout", &manager.stream_idle_timeout),
        ("request_timeout", &manager.request_timeout),
        ("request_headers_timeout", &manager.request_headers_timeout),
    ]
    .map(|(name, proto)| limit(sink, name, proto.as_ref()));
    let kilobytes = uint32(manager.max_request_headers_kb.as_ref());
    sink.refuse(
        "max_request_headers_kb",
        kilobytes.is_some_and(|kilobytes| !(1..=HEADERS_KB_MAX).contains(&kilobytes)),
        "must be 1 to 8192",
    );
    sink.field(COMMON, |sink| {
        let of_options = [
            ("max_stream_duration", &options.max_stream_duration),
            ("idle_timeout", &options.idle_timeout),
            ("max_connection_duration", &options.max_connection_duration),
        ]
        .map(|(name, proto)| limit(sink, name, proto.as_ref()));
        let count = |sink: &mut Sink, name, proto| {
            let count = uint32(proto);
            sink.refuse(name, count == Some(0), "must be at least 1");
            count
        };
        let max_headers_count = count(
            sink,
            "max_headers_count",
            options.max_headers_count.as_ref(),
        );
        // Zero is no limit here, as in Envoy.
        let requests = uint32(options.max_requests_per_connection.as_ref());
        let [
            stream_idle_timeout,
            request_timeout,
            request_headers_timeout,
        ] = of_manager;
        let [max_stream_duration, idle_timeout, max_connection_duration] = of_options;
        Some(HttpLimits {
            stream_idle_timeout,
            request_timeout,
            request_headers_timeout,
            max_stream_duration,
            idle_timeout,
            max_connection_duration,
            max_requests_per_connection: requests.filter(|max| *max > 0),
            max_headers_bytes: kilobytes.map(|kilobytes| kilobytes.saturating_mul(1024)),
            max_headers_count,
            underscores: underscores(sink, options)?,
        })
    })
}

fn underscores(sink: &mut Sink, options: &HttpProtocolOptions) -> Option<Underscores> {
    let action = options.headers_with_underscores_action;
    Some(match HeadersWithUnderscoresAction::try_from(action) {
        Ok(HeadersWithUnderscoresAction::Allow) => Underscores::Allow,
        Ok(HeadersWithUnderscoresAction::RejectRequest) => Underscores::Reject,
        Ok(HeadersWithUnderscoresAction::DropHeader) => Underscores::Drop,
        Err(_) => {
            let name = "headers_with_underscores_action";
            return sink.error_at(name, format!("{action} is not known"));
        }
    })
}

/// Envoy's bound of `max_request_headers_kb`.
const HEADERS_KB_MAX: u32 = 8192;
