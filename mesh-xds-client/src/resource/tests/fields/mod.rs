//! Every field of every supported resource has a fate, and docs/xds-fields.md says which.

mod clusters;
mod dns;
mod filters;
mod messages;
mod probe;
mod routes;
mod tls;
mod tokens;
mod values;

use std::fmt::Write as _;

use self::{messages::table, probe::Fate};

/// Why a field has no visible effect, where that is in order.
const NOTES: &[(&str, &[&str])] = &[
    (
        HONOURED,
        &[
            "Listener address",
            "Listener default_filter_chain",
            "Listener (server) default_filter_chain",
            "FilterChain filter_chain_match",
            "FilterChain transport_socket",
            "HttpConnectionManager (client) common_http_protocol_options",
            "HttpConnectionManager (server) common_http_protocol_options",
            "HttpConnectionManager (server) path_with_escaped_slashes_action",
            "HttpConnectionManager (server) set_current_client_cert_details",
            "HttpConnectionManager.SetCurrentClientCertDetails subject",
            "HttpFilter (client) disabled",
            "HttpFilter (client) is_optional",
            "HttpFilter (client) name",
            "RouteMatch case_sensitive",
            "QueryParameterMatcher query_parameter_match_specifier.PresentMatch",
            "HeaderValueOption append",
            "HedgePolicy initial_requests",
            "InternalRedirectPolicy max_internal_redirects",
            "RetryPolicy host_selection_retry_max_attempts",
            "RetryPolicy num_retries",
            "RetryPolicy per_try_idle_timeout",
            "RetryPolicy per_try_timeout",
            "RetryPolicy retriable_status_codes",
            "WeightedCluster clusters",
            "Cluster circuit_breakers",
            "RouteAction max_internal_redirects",
            "Cluster transport_socket",
            "RouteAction metadata_match",
            "WeightedCluster.ClusterWeight metadata_match",
            "Cluster common_http_protocol_options",
            "Cluster upstream_connection_options",
            "HttpProtocolOptions common_http_protocol_options",
            "Cluster lb_config.LeastRequestLbConfig",
            "Cluster lb_config.RoundRobinLbConfig",
            "Cluster common_lb_config",
            "Cluster outlier_detection",
            "Cluster.CommonLbConfig locality_config_specifier.LocalityWeightedLbConfig",
            "RoundRobin locality_lb_config",
            "RoundRobin slow_start_config",
            "LeastRequest locality_lb_config",
            "LeastRequest slow_start_config",
            "Random locality_lb_config",
            "RingHash hash_function",
            "RingHash locality_weighted_lb_config",
            "Maglev locality_weighted_lb_config",
            "Maglev consistent_hashing_lb_config",
            "RingHash consistent_hashing_lb_config",
            "ClientSideWeightedRoundRobin slow_start_config",
            "ClientSideWeightedRoundRobin weight_update_period",
            "Cluster lb_subset_config",
            "Cluster typed_extension_protocol_options",
            "CircuitBreakers.Thresholds priority",
            "CircuitBreakers.Thresholds retry_budget",
            "HttpProtocolOptions upstream_protocol_options.AutoConfig",
            "HttpProtocolOptions upstream_protocol_options.UseDownstreamProtocolConfig",
            "CommonTlsContext (of clusters) tls_certificate_certificate_provider_instance",
            "CommonTlsContext (of clusters) tls_certificate_sds_secret_configs",
            "TlsParameters (of clusters) tls_maximum_protocol_version",
            "Cluster (of hosts) load_assignment",
            "DnsCluster all_addresses_in_single_endpoint",
            "DnsCluster dns_lookup_family",
            "Cluster.TransportSocketMatch r#match",
            "Cluster.TransportSocketMatch transport_socket",
            "ClusterLoadAssignment policy",
            "LbEndpoint load_balancing_weight",
            "LocalRateLimit always_consume_default_token_bucket",
            "LocalRateLimit status",
            "TokenBucket tokens_per_fill",
            "RateLimit.Action.HeaderValueMatch expect_match",
            "AdaptiveConcurrency concurrency_limit_exceeded_status",
            "AdaptiveConcurrency enabled",
            "StatefulSession session_state",
            "RBAC shadow_rules_stat_prefix",
            "ExtAuthz deny_at_disable",
            "ExtAuthz disallowed_headers",
            "ExtAuthz enable_dynamic_metadata_ingestion",
            "ExtAuthz validate_mutations",
            "AuthorizationResponse allowed_client_headers",
            "AuthorizationResponse allowed_client_headers_on_success",
            "AuthorizationResponse allowed_upstream_headers",
            "AuthorizationResponse allowed_upstream_headers_to_append",
            "AuthorizationResponse dynamic_metadata_from_headers",
            "HttpService authorization_request",
            "HttpService authorization_response",
            "JwtAuthentication providers",
            "JwksAsyncFetch failed_refetch_duration",
            "JwksAsyncFetch fast_listener",
            "RemoteJwks retry_policy",
        ],
    ),
    (
        OTHER_SIDE,
        &[
            "Listener filter_chain_matcher",
            "Listener filter_chains",
            "Listener listener_filters",
            "Listener use_original_dst",
            "Listener (server) api_listener",
        ],
    ),
    (
        DESCRIBES,
        &[
            "Listener deprecated_v1",
            "Listener metadata",
            "Listener stat_prefix",
            "Listener stats_matcher",
            "Listener traffic_direction",
            "FilterChain metadata",
            "HttpConnectionManager stat_prefix",
            "HttpConnectionManager access_log_flush_interval",
            "HttpConnectionManager access_log_options",
            "HttpConnectionManager flush_access_log_on_new_request",
            "Router dynamic_stats",
            "Router start_child_span",
            "Router suppress_grpc_request_failure_code_stats",
            "Router upstream_log_options",
            "RBAC rules_stat_prefix",
            "RBAC track_per_rule_stats",
            "RouteConfiguration metadata",
            "VirtualHost metadata",
            "VirtualHost virtual_clusters",
            "Route decorator",
            "Route metadata",
            "Route stat_prefix",
            "Cluster alt_stat_name",
            "Cluster metadata",
            "Cluster stats_matcher",
            "Cluster track_cluster_stats",
            "Cluster track_timeout_budgets",
            "CircuitBreakers.Thresholds track_remaining",
            "WeightedCluster runtime_key_prefix",
            "LocalityLbEndpoints metadata",
            "LbEndpoint metadata",
            "Endpoint observability_name",
        ],
    ),
    (
        ENVOY_INSIDE,
        &[
            "Listener bind_to_port",
            "Listener bypass_overload_manager",
            "Listener continue_on_listener_filters_timeout",
            "Listener drain_type",
            "Listener enable_mptcp",
            "Listener enable_reuse_port",
            "Listener ignore_global_conn_limit",
            "Listener max_connections_to_accept_per_socket_event",
            "Listener per_connection_buffer_high_watermark_timeout",
            "Listener per_connection_buffer_limit_bytes",
            "Listener reuse_port",
            "Listener tcp_backlog_size",
            "Listener tcp_fast_open_queue_length",
            "HttpConnectionManager drain_timeout_jitter",
            "HttpConnectionManager generate_request_id",
            "HttpConnectionManager http1_safe_max_connection_duration",
            "HttpConnectionManager represent_ipv4_remote_address_as_ipv4_mapped_ipv6",
            "HttpConnectionManager stream_flush_timeout",
            "HttpProtocolOptions max_connection_duration_jitter",
            "HttpProtocolOptions max_response_headers_kb",
            "Router reject_connect_request_early_data",
            "DownstreamTlsContext disable_stateful_session_resumption",
            "RouteConfiguration max_direct_response_body_size_bytes",
            "RouteConfiguration validate_clusters",
            "Http2ProtocolOptions (of clusters) disallow_obs_text",
            "Http2ProtocolOptions (of clusters) enable_huffman_encoding",
            "Http2ProtocolOptions (of clusters) hpack_table_size",
            "Http2ProtocolOptions (of clusters) max_consecutive_inbound_frames_with_empty_payload",
            "Http2ProtocolOptions (of clusters) max_header_field_size_kb",
            "Http2ProtocolOptions (of clusters) max_inbound_priority_frames_per_stream",
            "Http2ProtocolOptions (of clusters) max_inbound_window_update_frames_per_data_frame_sent",
            "Http2ProtocolOptions (of clusters) max_metadata_size",
            "Http2ProtocolOptions (of clusters) max_outbound_control_frames",
            "Http2ProtocolOptions (of clusters) max_outbound_frames",
            "Http2ProtocolOptions (of clusters) override_stream_error_on_invalid_http_message",
            "Http2ProtocolOptions (of clusters) stream_error_on_invalid_http_messaging",
            "Http2ProtocolOptions (of clusters) stream_reset_burst",
            "Http2ProtocolOptions (of clusters) stream_reset_rate",
            "Http2ProtocolOptions (of clusters) use_oghttp2_codec",
            "Cluster per_connection_buffer_high_watermark_timeout",
            "Cluster per_connection_buffer_limit_bytes",
            "Cluster wait_for_warm_on_init",
            "UpstreamTlsContext max_session_keys",
            "CommonTlsContext (of clusters) alpn_protocols",
            "CertificateValidationContext (of clusters) suppress_client_ca_list",
            "CertificateValidationContext (of secrets) suppress_client_ca_list",
            "LocalityLbEndpoints proximity",
        ],
    ),
    (
        NOT_READ,
        &[
            "RouteConfiguration route_specifiers",
            "VirtualHost route_specifiers",
            "Route route_specifiers",
            "RouteAction cluster_not_found_response_code",
            "WeightedCluster total_weight",
            "HttpProtocolOptions http_filters",
            "ClusterLoadAssignment named_endpoints",
            "Cluster (of hosts) eds_cluster_config",
        ],
    ),
    (ORIGINAL_DST_ONLY, &["Cluster cleanup_interval"]),
];

const HONOURED: &str = "honoured";
const OTHER_SIDE: &str = "no effect: belongs to the other side";
const ORIGINAL_DST_ONLY: &str = "honoured where the type is ORIGINAL_DST, no effect else";
const DESCRIBES: &str = "no effect: names, describes or counts";
const ENVOY_INSIDE: &str = "no effect: tunes the inside of Envoy";
const NOT_READ: &str = "no effect: says nothing by itself";

/// The note for a silent field. A note without a side stands for both.
fn note(message: &str, field: &str) -> Option<&'static str> {
    let short = message
        .rsplit_once(".v3.")
        .map_or(message, |(_, short)| short);
    let full = format!("{short} {field}");
    let (bare, _) = short.split_once(" (").unwrap_or((short, ""));
    let bare = format!("{bare} {field}");
    let find = |key: &str| {
        let mut notes = NOTES.iter();
        notes.find_map(|(note, keys)| keys.contains(&key).then_some(*note))
    };
    find(&full).or_else(|| find(&bare))
}

const HEAD: &str = "# Fields of xDS resources

The fate of every field of every message that is read, as the decoders have it. Written by the test
`every_field_has_a_fate`, which sets each field and looks at what comes of it; run it with
`MESH_UPDATE_DOCS=1` after a change.

* **honoured**: does what it says.
* **reported**: the resource is taken, the field has no effect, and that is said: in the log, in the
  counters and in the list of ignored fields that CSDS and `XdsClient::dump` show.
* **refused**: the resource is refused (NACK) with the field's path when the field is set to something
  that cannot be honoured. Of any field, what is no value of its kind is refused.
* **no effect**: nothing that calls could notice depends on it here.

Policies that are in no extension of xDS come in `load_balancing_policy` as an `xds.type.v3.TypedStruct`
whose `type_url` ends in their name: `mesh.v1.PeakEwma` (`decay`, `default_rtt`, `failure_penalty`),
`mesh.v1.Prequal` (`choice_count`, `rif_quantile`, `max_age`, `failure_penalty`,
`oob_reporting_period`; times such as `1.5s`), and
any name that the application has given to `MeshBuilder::lb_policy`.
";

#[test]
fn every_field_has_a_fate() {
    let mut text = HEAD.to_owned();
    let mut silent = Vec::new();
    for (message, fields) in table() {
        _ = write!(text, "\n## {message}\n\n| field | fate |\n|---|---|\n");
        for (field, fate) in fields {
            let fate = match fate {
                Fate::Refused => "refused",
                Fate::Reported => "reported",
                Fate::Honoured => HONOURED,
                Fate::Silent => match note(&message, &field) {
                    Some(note) => note,
                    None => {
                        silent.push(format!("{message} {field}"));
                        continue;
                    }
                },
            };
            _ = writeln!(text, "| {field} | {fate} |");
        }
    }
    assert!(
        silent.is_empty(),
        "taken in silence:\n{}",
        silent.join("\n")
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/xds-fields.md");
    if std::env::var_os("MESH_UPDATE_DOCS").is_some() {
        std::fs::write(path, &text).expect("a writable file");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    let differs = text.lines().zip(written.lines()).find(|(a, b)| a != b);
    assert!(
        text == written,
        "docs/xds-fields.md is out of date at {differs:?}; run this test with MESH_UPDATE_DOCS=1"
    );
}
