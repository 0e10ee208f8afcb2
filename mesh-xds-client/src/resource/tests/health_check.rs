//! Health checks, subsets and policies of our own.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::{
        cluster::v3::{
            LoadBalancingPolicy,
            cluster::{LbSubsetConfig, lb_subset_config::LbSubsetSelector},
            load_balancing_policy::Policy,
        },
        core::v3::{
            HealthCheck, Metadata, TypedExtensionConfig,
            health_check::{
                GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
            },
        },
    },
    google::protobuf::{
        Duration as DurationProto, Struct, UInt32Value, Value, value::Kind as ValueKind,
    },
};
use mesh_core::config::{HealthCheckKind, LbPolicy, MetadataValue, SubsetFallback};

use super::{connection::decoded, connection::proto, *};
use crate::resource::own_policy::TypedStruct;

fn check(checker: HealthChecker) -> HealthCheck {
    let seconds = |seconds| Some(DurationProto { seconds, nanos: 0 });
    let number = |value| Some(UInt32Value { value });
    HealthCheck {
        timeout: seconds(1),
        interval: seconds(10),
        unhealthy_threshold: number(3),
        healthy_threshold: number(2),
        health_checker: Some(checker),
        ..HealthCheck::default()
    }
}

fn http() -> HealthCheck {
    check(HealthChecker::HttpHealthCheck(HttpHealthCheck {
        path: "/healthz".into(),
        ..HttpHealthCheck::default()
    }))
}

fn with(check: HealthCheck) -> ClusterProto {
    ClusterProto {
        health_checks: vec![check],
        ..proto()
    }
}

#[test]
fn checks_by_http_grpc_and_tcp_are_read() {
    let config = decoded(&with(http())).unwrap();
    let [found] = &config.health_checks[..] else {
        panic!("{config:?}")
    };
    assert_eq!(found.interval, Duration::from_secs(10));
    assert_eq!((found.unhealthy_threshold, found.healthy_threshold), (3, 2));
    assert!(found.reuse_connection, "by default");
    let HealthCheckKind::Http(http) = &found.kind else {
        panic!("{found:?}")
    };
    assert_eq!(
        (http.path.as_str(), &http.method),
        ("/healthz", &http::Method::GET)
    );

    let grpc = check(HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
        service_name: "s".into(),
        ..GrpcHealthCheck::default()
    }));
    let config = decoded(&with(grpc)).unwrap();
    let kind = &config.health_checks[0].kind;
    assert!(matches!(kind, HealthCheckKind::Grpc { service_name, .. } if service_name == "s"));

    let tcp = check(HealthChecker::TcpHealthCheck(TcpHealthCheck {
        send: Some(Payload {
            payload: Some(payload::Payload::Text("00ff".into())),
        }),
        ..TcpHealthCheck::default()
    }));
    let config = decoded(&with(tcp)).unwrap();
    let kind = &config.health_checks[0].kind;
    assert!(matches!(kind, HealthCheckKind::Tcp { send, .. } if *send == [0, 0xff]));
}

#[test]
fn checks_that_cannot_be_made_are_refused_with_their_path() {
    type Change = fn(&mut HealthCheck);
    let wrong: [(&str, Change); 5] = [
        ("timeout", |check| check.timeout = None),
        ("interval", |check| {
            check.interval = Some(DurationProto::default())
        }),
        ("healthy_threshold", |check| check.healthy_threshold = None),
        ("alt_port", |check| {
            check.alt_port = Some(UInt32Value { value: 1 })
        }),
        ("http_health_check.path", |check| {
            check.health_checker = Some(HealthChecker::HttpHealthCheck(HttpHealthCheck::default()));
        }),
    ];
    for (path, change) in wrong {
        let mut check = http();
        change(&mut check);
        let error = decoded(&with(check)).unwrap_err();
        assert!(
            error.contains(&format!("health_checks[0].{path}")),
            "{path}: {error}"
        );
    }
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(ValueKind::StringValue(value.into())),
    }
}

fn fields<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    let fields = fields
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value));
    Struct {
        fields: fields.collect(),
    }
}

#[test]
fn subsets_are_read_and_what_they_cannot_be_is_refused() {
    let config = |selector: LbSubsetSelector| ClusterProto {
        lb_subset_config: Some(LbSubsetConfig {
            fallback_policy: 2,
            default_subset: Some(fields([("version", text("v1"))])),
            subset_selectors: vec![selector],
            ..LbSubsetConfig::default()
        }),
        ..proto()
    };
    let selector = LbSubsetSelector {
        keys: vec!["version".into(), "stage".into()],
        fallback_policy: 4,
        fallback_keys_subset: vec!["version".into()],
        ..LbSubsetSelector::default()
    };
    let subsets = decoded(&config(selector.clone())).unwrap().subsets.unwrap();
    assert_eq!(subsets.fallback, SubsetFallback::DefaultSubset);
    assert_eq!(subsets.default_subset["version"], MetadataValue::text("v1"));
    assert_eq!(
        subsets.selectors[0].fallback,
        Some(SubsetFallback::KeysSubset)
    );
    let endless = LbSubsetSelector {
        fallback_keys_subset: selector.keys.clone(),
        ..selector.clone()
    };
    let error = decoded(&config(endless)).unwrap_err();
    assert!(error.contains("fallback_keys_subset"), "{error}");
    let single = LbSubsetSelector {
        single_host_per_subset: true,
        ..selector
    };
    let error = decoded(&config(single)).unwrap_err();
    assert!(error.contains("single_host_per_subset"), "{error}");
}

#[test]
fn metadata_is_that_of_the_balancer_and_equal_values_are_equal() {
    let list = |values: &[f64]| Value {
        kind: Some(ValueKind::ListValue(
            envoy_types::pb::google::protobuf::ListValue {
                values: values
                    .iter()
                    .map(|value| Value {
                        kind: Some(ValueKind::NumberValue(*value)),
                    })
                    .collect(),
            },
        )),
    };
    let under = |name: &str, value: Value| Metadata {
        filter_metadata: [(name.to_owned(), fields([("k", value)]))].into(),
        ..Metadata::default()
    };
    let of_lb = |value: Value| lb_metadata::of_lb(Some(&under("envoy.lb", value)));
    assert_eq!(of_lb(text("a\"b"))["k"], MetadataValue::text("a\"b"));
    assert_eq!(of_lb(list(&[1.0, 2.5])), of_lb(list(&[1.0, 2.5])));
    assert_ne!(of_lb(text("1")), of_lb(list(&[1.0])));
    let other = under("istio", text("x"));
    assert!(lb_metadata::of_lb(Some(&other)).is_empty());
}

fn with_policy(name: &str, value: Option<Struct>) -> ClusterProto {
    let typed = TypedStruct {
        type_url: format!("type.googleapis.com/{name}"),
        value,
    };
    ClusterProto {
        load_balancing_policy: Some(LoadBalancingPolicy {
            policies: vec![Policy {
                typed_extension_config: Some(TypedExtensionConfig {
                    name: "p".into(),
                    typed_config: Some(any(&typed)),
                }),
            }],
        }),
        ..proto()
    }
}

#[test]
fn our_own_policies_come_as_typed_structs_and_others_are_the_applications() {
    let settings = Some(fields([("decay", text("1.5s"))]));
    let config = decoded(&with_policy("mesh.v1.PeakEwma", settings)).unwrap();
    let LbPolicy::PeakEwma(config) = config.lb_policy else {
        panic!("{config:?}")
    };
    assert_eq!(config.decay, Duration::from_millis(1500));
    let config = decoded(&with_policy("mesh.v1.Prequal", None)).unwrap();
    assert_eq!(config.lb_policy, LbPolicy::Prequal(Default::default()));
    let settings = Some(fields([("depth", text("3"))]));
    let config = decoded(&with_policy("acme.Nearest", settings)).unwrap();
    let expected = LbPolicy::Custom {
        name: "acme.Nearest".into(),
        config: "{\"depth\":\"3\"}".into(),
    };
    assert_eq!(config.lb_policy, expected);
    for (name, setting) in [("mesh.v1.PeakEwma", "dekay"), ("mesh.v1.Prequal", "decay")] {
        let settings = Some(fields([(setting, text("1s"))]));
        let error = decoded(&with_policy(name, settings)).unwrap_err();
        assert!(error.contains(&format!("value.{setting}")), "{error}");
    }
}
