//! Limits of a server's connections and streams.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::core::v3::{
        HttpProtocolOptions, http_protocol_options::HeadersWithUnderscoresAction,
    },
    google::protobuf::{Duration as DurationProto, UInt32Value},
};
use mesh_core::config::{HttpLimits, Underscores};

use super::{
    Kind,
    listener::{accepted, chain, inbound, manager},
    refused,
};

fn seconds(seconds: i64) -> Option<DurationProto> {
    Some(DurationProto { seconds, nanos: 0 })
}

fn uint32(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

#[test]
fn what_a_connection_manager_limits_is_taken_and_zero_is_no_limit() {
    let limits = |number: u32| {
        let resource = inbound(|listener| {
            let time = seconds(number.into());
            let limited = manager(|manager| {
                manager.stream_idle_timeout = time;
                manager.request_timeout = time;
                manager.request_headers_timeout = time;
                manager.common_http_protocol_options = Some(HttpProtocolOptions {
                    idle_timeout: time,
                    max_connection_duration: time,
                    max_stream_duration: time,
                    max_requests_per_connection: uint32(number),
                    ..HttpProtocolOptions::default()
                });
            });
            listener.filter_chains = vec![chain("", limited)];
        });
        accepted(resource).filter_chains.remove(0).limits
    };
    let time = Some(Duration::from_secs(7));
    let expected = HttpLimits {
        stream_idle_timeout: time,
        request_timeout: time,
        request_headers_timeout: time,
        max_stream_duration: time,
        idle_timeout: time,
        max_connection_duration: time,
        max_requests_per_connection: Some(7),
        ..HttpLimits::default()
    };
    assert_eq!(limits(7), expected);
    assert_eq!(limits(0), HttpLimits::default());
    assert!(!limits(0).is_any());
}

#[test]
fn the_size_of_heads_is_bounded_and_bounds_that_refuse_all_are_refused() {
    let with = |kilobytes, count, action| {
        inbound(|listener| {
            let limited = manager(|manager| {
                manager.max_request_headers_kb = uint32(kilobytes);
                manager.common_http_protocol_options = Some(HttpProtocolOptions {
                    max_headers_count: uint32(count),
                    headers_with_underscores_action: action,
                    ..HttpProtocolOptions::default()
                });
            });
            listener.filter_chains = vec![chain("", limited)];
        })
    };
    let drop = HeadersWithUnderscoresAction::DropHeader as i32;
    let limits = accepted(with(8, 50, drop)).filter_chains.remove(0).limits;
    assert_eq!(limits.max_headers_bytes, Some(8 * 1024));
    assert_eq!(limits.max_headers_count, Some(50));
    assert_eq!(limits.underscores, Underscores::Drop);
    let place = "filter_chains[0].filters[0].typed_config";
    let options = "common_http_protocol_options";
    for (resource, expected) in [
        (
            with(0, 1, 0),
            "max_request_headers_kb: must be 1 to 8192".to_owned(),
        ),
        (
            with(9000, 1, 0),
            "max_request_headers_kb: must be 1 to 8192".to_owned(),
        ),
        (
            with(1, 0, 0),
            format!("{options}.max_headers_count: must be at least 1"),
        ),
        (
            with(1, 1, 9),
            format!("{options}.headers_with_underscores_action: 9 is not known"),
        ),
    ] {
        refused(Kind::Listener, resource, &format!("{place}.{expected}"));
    }
}
