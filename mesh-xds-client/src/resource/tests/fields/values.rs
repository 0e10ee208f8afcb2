//! Values for fields that are refused when they hold next to nothing.
//!
//! By number, as the probes are: a message is its fields.

use Value::{Double, Message, Number, Text};

/// What a field holds.
pub(super) enum Value {
    Number(u64),
    Double(f64),
    Text(&'static str),
    Message(&'static [(u32, Self)]),
}

impl Value {
    fn wire_type(&self) -> u8 {
        match self {
            Number(_) => 0,
            Double(_) => 1,
            Text(_) | Message(_) => 2,
        }
    }

    /// The field with this number and this value.
    pub(super) fn encode(&self, number: u32, out: &mut Vec<u8>) {
        let varint = prost::encoding::encode_varint;
        varint(u64::from(number << 3 | u32::from(self.wire_type())), out);
        match self {
            Number(value) => varint(*value, out),
            Double(value) => out.extend(value.to_le_bytes()),
            Text(text) => {
                varint(text.len() as u64, out);
                out.extend(text.as_bytes());
            }
            Message(fields) => {
                let mut inner = Vec::new();
                for (number, value) in *fields {
                    value.encode(*number, &mut inner);
                }
                varint(inner.len() as u64, out);
                out.extend(inner);
            }
        }
    }
}

/// Values to try for a field, whatever message has it.
pub(super) fn values(field: &str) -> impl Iterator<Item = &'static Value> {
    let of_field = VALUES
        .iter()
        .filter(move |(fields, _)| fields.contains(&field));
    of_field.map(|(_, value)| value)
}

const SECOND: Value = Message(&[(1, Number(1))]);
const HEADER_IS_THERE: Value = Message(&[(1, Text("h")), (7, Number(1))]);
/// `RuntimeFractionalPercent` of all.
const ALWAYS: Value = Message(&[(1, Message(&[(1, Number(100))])), (2, Text("key"))]);
/// `RuntimeFractionalPercent` of a half.
const HALF: Value = Message(&[(1, Message(&[(1, Number(50))]))]);
const REGEX_REWRITE: Value = Message(&[(1, Message(&[(2, Text("a"))])), (2, Text("b"))]);
const BACK_OFF: Value = Message(&[(1, Message(&[(1, Number(2))]))]);
const BUCKET: Value = Message(&[(1, Number(1)), (2, Message(&[(1, Number(1))])), (3, SECOND)]);

#[rustfmt::skip]
const VALUES: &[(&[&str], Value)] = &[
    (&["direct_source_prefix_ranges", "prefix_ranges", "source_prefix_ranges"],
     Message(&[(1, Text("10.0.0.0")), (3, Message(&[(1, Number(8))]))])),
    (&["transport_protocol"], Text("raw_buffer")),
    (&["dns_failure_refresh_rate", "retry_back_off"], BACK_OFF),
    (&["request_headers_to_add", "response_headers_to_add"],
     Message(&[(1, Message(&[(1, Text("h")), (2, Text("v"))]))])),
    (&["typed_per_filter_config"],
     Message(&[(1, Text("f")), (2, Message(&[
         (1, Text("type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"))]))])),
    (&["headers", "retriable_headers", "retriable_request_headers"], HEADER_IS_THERE),
    (&["path_specifier.PathSeparatedPrefix", "path_prefix"], Text("/a")),
    (&["path_specifier.PathMatchPolicy"],
     Message(&[(1, Text("t")), (2, Message(&[
         (1, Text("type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig")),
         (2, Message(&[(1, Text("/a/{b}"))]))]))])),
    (&["runtime_fraction", "filter_enabled", "filter_enforced"], HALF),
    (&["runtime_fraction", "filter_enabled", "filter_enforced"], ALWAYS),
    (&["action.DirectResponse"], Message(&[(1, Number(200))])),
    (&["status", "error_type.HttpStatus"], Number(503)),
    (&["status_on_error"], Message(&[(1, Number(503))])),
    (&["regex_rewrite", "host_rewrite_specifier.HostRewritePathRegex",
       "path_rewrite_specifier.RegexRewrite"], REGEX_REWRITE),
    (&["cluster_specifier.WeightedClusters"],
     Message(&[(1, Message(&[(1, Text("other")), (2, Message(&[(1, Number(1))]))]))])),
    (&["rate_limits"], Message(&[(3, Message(&[(5, Message(&[(1, Text("a"))]))]))])),
    (&["actions"], Message(&[(5, Message(&[(1, Text("a"))]))])),
    (&["descriptors"], Message(&[(1, Message(&[(1, Text("a")), (2, Text("b"))])), (2, BUCKET)])),
    (&["action_specifier.RequestHeaders"], Message(&[(1, Text("h")), (2, Text("d"))])),
    (&["rules"], Message(&[(1, Message(&[(1, Text("/"))])), (2, Message(&[(1, Text("p"))]))])),
    (&["priority"], Number(1)),
    (&["jwks_source_specifier.RemoteJwks"],
     Message(&[(1, Message(&[(1, Text("https://a.example/keys")), (2, Text("c")), (3, SECOND)]))])),
    (&["upstream_protocol_options.ExplicitHttpConfig"], Message(&[(2, Message(&[]))])),
    (&["rate_limited_retry_back_off"], Message(&[(1, Message(&[(1, Text("retry-after"))]))])),
    (&["transport_api_version"], Number(2)),
    (&["health_checks"],
     Message(&[(1, SECOND), (2, SECOND), (4, Message(&[(1, Number(1))])),
               (5, Message(&[(1, Number(1))])), (9, Message(&[]))])),
    (&["load_balancing_policy"],
     Message(&[(1, Message(&[(4, Message(&[(1, Text("p")), (2, Message(&[
         (1, Text("type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random"))]))]))]))])),
    (&["choice_count"], Message(&[(1, Number(3))])),
    (&["hash_balance_factor"], Message(&[(1, Number(150))])),
    (&["maximum_ring_size"], Message(&[(1, Number(2048))])),
    (&["table_size"], Message(&[(1, Number(251))])),
    (&["aggression"], Message(&[(1, Double(2.0)), (2, Text("key"))])),
    (&["connection_keepalive"], Message(&[(1, Message(&[(1, Number(60))])), (2, SECOND)])),
    (&["initial_connection_window_size", "initial_stream_window_size"], Message(&[(1, Number(100_000))])),
    (&["tls_minimum_protocol_version"], Number(3)),
    (&["tls_maximum_protocol_version"], Number(4)),
    (&["drop_overloads"], Message(&[(1, Text("d")), (2, Message(&[(1, Number(5))]))])),
    (&["additional_addresses"],
     Message(&[(1, Message(&[(1, Message(&[(2, Text("10.0.0.9")), (3, Number(80))]))]))])),
    (&["match_typed_subject_alt_names"],
     Message(&[(1, Number(2)), (2, Message(&[(1, Text("a.example"))]))])),
    (&["transport_socket"],
     Message(&[(1, Text("raw")), (3, Message(&[
         (1, Text("type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"))]))])),
    (&["transport_socket_matches"],
     Message(&[(1, Text("m")), (3, Message(&[(1, Text("raw")), (3, Message(&[
         (1, Text("type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"))]))]))])),
];
