//! What a DestinationRule says of clusters, routes and endpoints.

use std::time::Duration;

use super::*;

const CLUSTER: &str = "outbound|8080||greeter.default.svc.cluster.local";
const V1: &str = "outbound|8080|v1|greeter.default.svc.cluster.local";

/// The greeter, with endpoints in places, and a rule with this policy.
fn with(policy: &str) -> (Compiled, Vec<String>) {
    compile_text(&format!(
        "
kind: ServiceEntry
metadata: {{name: greeter}}
spec:
  hosts: [greeter.default.svc.cluster.local]
  resolution: STATIC
  ports: [{{number: 8080, name: grpc, protocol: GRPC}}, {{number: 8081, name: http, protocol: HTTP}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{grpc: 1}}, locality: eu/a/x, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{grpc: 2}}, locality: eu/a/y, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{grpc: 3}}, locality: eu/b/x, labels: {{version: v2}}}}
  - {{address: 127.0.0.1, ports: {{grpc: 4}}, locality: us/a/x, weight: 3}}
  - {{address: 127.0.0.1, ports: {{grpc: 5}}, locality: ap/a/x}}
---
kind: DestinationRule
metadata: {{name: greeter}}
spec:
  host: greeter
  {policy}
"
    ))
}

fn cluster(policy: &str) -> Cluster {
    let (compiled, findings) = with(&format!("trafficPolicy: {policy}"));
    assert_eq!(findings, [""; 0]);
    Cluster::clone(&compiled.clusters[CLUSTER])
}

#[test]
fn the_rule_that_is_in_every_tutorial_does_what_it_says() {
    let cluster = cluster(
        "{connectionPool: {tcp: {maxConnections: 100}}, outlierDetection: {consecutiveErrors: 3, \
         interval: 30s, baseEjectionTime: 30s, maxEjectionPercent: 50}}",
    );
    assert_eq!(cluster.circuit_breakers.max_connections, 100);
    let outliers = cluster.outlier_detection.unwrap();
    let any = outliers.consecutive_5xx;
    assert_eq!((any.threshold, any.enforcing), (3, 100));
    assert_eq!(outliers.consecutive_gateway_failure.enforcing, 0);
    assert_eq!(outliers.interval, Duration::from_secs(30));
    assert_eq!(outliers.base_ejection_time, Duration::from_secs(30));
    assert_eq!(outliers.max_ejection_percent, 50);
}

#[test]
fn a_connection_pool_says_how_connections_are_made_kept_and_ended() {
    let cluster = cluster(
        "{connectionPool: {tcp: {maxConnections: 2, connectTimeout: 3s, maxConnectionDuration: 1m, \
         idleTimeout: 4s, tcpKeepalive: {probes: 5, time: 6s, interval: 7s}}, \
         http: {http1MaxPendingRequests: 8, http2MaxRequests: 9, maxRequestsPerConnection: 10, \
         maxRetries: 11, maxConcurrentStreams: 12, useClientProtocol: true}}}",
    );
    let breakers = cluster.circuit_breakers;
    let limits = (
        breakers.max_connections,
        breakers.max_pending_requests,
        breakers.max_requests,
        breakers.max_retries,
    );
    assert_eq!(limits, (2, 8, 9, Some(11)));
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    let connection = cluster.connection;
    assert_eq!(cluster.connect_timeout.as_secs(), 3);
    assert_eq!(seconds(connection.max_connection_duration), Some(60));
    assert_eq!(seconds(connection.idle_timeout), Some(4));
    assert_eq!(connection.max_requests_per_connection, Some(10));
    assert_eq!(connection.http2.max_concurrent_streams, Some(12));
    let keepalive = connection.tcp_keepalive.unwrap();
    assert_eq!(keepalive.probes, Some(5));
    assert_eq!(
        (keepalive.time.as_secs(), keepalive.interval.as_secs()),
        (6, 7)
    );
    assert_eq!(cluster.http_version, HttpVersion::ByRequest);
    // A budget is a share of the requests instead of a number.
    let budget =
        self::cluster("{connectionPool: {http: {maxRetries: 3}}, retryBudget: {percent: 5}}");
    assert_eq!(budget.circuit_breakers.max_retries, None);
    assert_eq!(budget.circuit_breakers.retry_budget.percent, 5);
}

#[test]
fn what_a_subset_says_takes_the_place_of_the_hosts_section_and_a_ports_of_all_sections() {
    let (compiled, findings) = with(
        "trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {http: {http2MaxRequests: 1}, tcp: {maxConnections: 1}}
    portLevelSettings:
    - {port: {number: 8081}, connectionPool: {http: {http2MaxRequests: 2}}}
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 3}}}}",
    );
    assert_eq!(findings, [""; 0]);
    let limits = |name: &str| {
        let cluster = &compiled.clusters[name];
        let breakers = cluster.circuit_breakers;
        let is_random = cluster.lb_policy == LbPolicy::Random;
        (breakers.max_requests, breakers.max_connections, is_random)
    };
    assert_eq!(limits(CLUSTER), (1, 1, true));
    assert_eq!(limits(V1), (3, 1024, true));
    assert_eq!(limits(&CLUSTER.replace("8080", "8081")), (2, 1024, false));
    assert_eq!(limits(&V1.replace("8080", "8081")), (3, 1024, false));
}

#[test]
fn routes_to_what_balances_by_hash_say_what_is_hashed() {
    for (hash, source) in [
        (
            "httpHeaderName: X-User",
            HashSource::Header {
                name: "x-user".into(),
                rewrite: None,
            },
        ),
        (
            "httpCookie: {name: user, path: /a, ttl: 60s}",
            HashSource::Cookie {
                name: "user".into(),
                ttl: Some(Duration::from_secs(60)),
                path: "/a".into(),
                attributes: Vec::new(),
            },
        ),
        ("useSourceIp: true", HashSource::SourceIp),
        (
            "httpQueryParameterName: q",
            HashSource::QueryParameter("q".into()),
        ),
    ] {
        let policy = format!("{{loadBalancer: {{consistentHash: {{{hash}}}}}}}");
        let (compiled, findings) = with(&format!("trafficPolicy: {policy}"));
        assert_eq!(findings, [""; 0]);
        assert_eq!(
            compiled.clusters[CLUSTER].lb_policy,
            LbPolicy::RingHash(RingHash::default())
        );
        let routes = &compiled.routes[CLUSTER].virtual_hosts[0].routes;
        let RouteAction::Forward(forward) = &routes[0].action else {
            panic!("{routes:?}");
        };
        let extras = forward.extras.as_ref().expect("a hash policy");
        assert_eq!(extras.hash_policy[0].source, source);
    }
}

#[test]
fn a_table_has_a_prime_size_and_one_thing_is_hashed() {
    let balancer = |hash: &str| {
        let policy = format!("{{loadBalancer: {{consistentHash: {{{hash}}}}}}}");
        let (compiled, findings) = with(&format!("trafficPolicy: {policy}"));
        let policy = compiled.clusters[CLUSTER].lb_policy.clone();
        (policy, findings.join("\n"))
    };
    let (maglev, found) = balancer("useSourceIp: true, maglev: {tableSize: 251}");
    assert_eq!(
        (maglev, &*found),
        (LbPolicy::Maglev { table_size: 251 }, "")
    );
    let (_, found) = balancer("useSourceIp: true, maglev: {tableSize: 250}");
    assert!(
        found.contains("consistentHash.maglev.tableSize") && found.contains("prime"),
        "{found}"
    );
    let (_, found) = balancer("useSourceIp: true, httpHeaderName: a");
    assert!(found.contains("there must be one of"), "{found}");
}

/// Ports with their priorities and their locality's share, as a client in a place gets them.
fn seen(setting: &str, place: [&str; 3], labels: &[(&str, &str)]) -> Vec<(u16, u32, u32)> {
    let policy = format!("trafficPolicy: {{loadBalancer: {{localityLbSetting: {setting}}}}}");
    let (compiled, findings) = with(&policy);
    assert_eq!(findings, [""; 0]);
    let [region, zone, sub_zone] = place.map(str::to_owned);
    let locality = LocalityId {
        region,
        zone,
        sub_zone,
    };
    let labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let labels = labels.collect();
    let viewer = Viewer {
        namespace: "default",
        labels: &labels,
        locality: &locality,
    };
    let (_, endpoints) = compiled.endpoints(CLUSTER, viewer).unwrap();
    let mut found = Vec::new();
    for group in &endpoints.localities {
        for endpoint in &group.endpoints {
            found.push((endpoint.address.port(), group.priority, group.weight));
        }
    }
    found.sort_unstable();
    found
}

#[test]
fn failover_goes_to_the_nearest_and_then_to_the_region_that_is_next() {
    let priorities = |setting, place| {
        let seen = seen(setting, place, &[]);
        seen.iter()
            .map(|(_, priority, _)| *priority)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        priorities("{enabled: true}", ["eu", "a", "x"]),
        [0, 1, 2, 3, 3]
    );
    let next = "{failover: [{from: eu, to: ap}]}";
    assert_eq!(priorities(next, ["eu", "a", "x"]), [0, 1, 2, 4, 3]);
    // Without gaps: nobody is in the client's own place.
    assert_eq!(priorities(next, ["eu", "c", ""]), [0, 0, 0, 2, 1]);
    assert_eq!(priorities("{enabled: false}", ["eu", "a", "x"]), [0; 5]);
}

#[test]
fn failover_by_labels_counts_those_in_common_from_the_first_on() {
    let setting = "{failoverPriority: [topology.kubernetes.io/region, version]}";
    let priorities = |labels| {
        let seen = seen(setting, ["eu", "", ""], labels);
        seen.iter()
            .map(|(_, priority, _)| *priority)
            .collect::<Vec<_>>()
    };
    assert_eq!(priorities(&[("version", "v2")]), [1, 1, 0, 2, 2]);
    assert_eq!(priorities(&[("version", "v1")]), [0, 0, 1, 2, 2]);
}

#[test]
fn distribution_shares_by_place_and_leaves_out_what_gets_nothing() {
    let setting = "{distribute: [{from: eu/a/*, to: {eu/a/*: 80, us/*: 20}}]}";
    let shares = |place| {
        let seen = seen(setting, place, &[]);
        seen.into_iter()
            .map(|(port, _, share)| (port, share))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        shares(["eu", "a", "x"]),
        [(1, 40_000), (2, 40_000), (4, 20_000)]
    );
    assert_eq!(
        shares(["us", "a", "x"]).len(),
        5,
        "nothing is said of clients there"
    );
}

#[test]
fn a_rule_with_a_selector_is_for_clients_with_its_labels_alone() {
    let text = "trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}
---
kind: DestinationRule
metadata: {name: batch}
spec:
  host: greeter
  workloadSelector: {matchLabels: {app: batch}}
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 2}}}
";
    let (compiled, findings) = with(text);
    assert_eq!(findings, [""; 0]);
    let limit = |namespace, app: &str| {
        let labels = [("app".to_owned(), app.to_owned())].into();
        let viewer = Viewer {
            labels: &labels,
            ..Viewer::from(namespace)
        };
        let (_, cluster) = compiled.cluster(CLUSTER, viewer).unwrap();
        cluster.circuit_breakers.max_requests
    };
    assert_eq!(limit("default", "batch"), 2);
    assert_eq!(limit("default", "web"), 1);
    assert_eq!(
        limit("other", "batch"),
        1,
        "selectors are of their namespace"
    );
}

#[test]
fn a_balancer_policy_beats_a_destination_rule_for_what_it_names() {
    let (compiled, findings) = with(
        "trafficPolicy: {loadBalancer: {simple: RANDOM}}
  subsets: [{name: v1, labels: {version: v1}}]
---
kind: BalancerPolicy
metadata: {name: all}
spec: {host: greeter, port: 8080, prequal: {choiceCount: 3}, panicThreshold: 40, overprovisioningFactor: 150}
---
kind: BalancerPolicy
metadata: {name: one}
spec: {host: greeter, subset: v1, peakEwma: {decay: 5s}}
",
    );
    assert_eq!(findings, [""; 0]);
    let policy = |name: &str| compiled.clusters[name].lb_policy.clone();
    let prequal = Prequal {
        choice_count: 3,
        ..Prequal::default()
    };
    assert_eq!(policy(CLUSTER), LbPolicy::Prequal(prequal));
    let ewma = PeakEwma {
        decay: Duration::from_secs(5),
        ..PeakEwma::default()
    };
    assert_eq!(policy(V1), LbPolicy::PeakEwma(ewma));
    assert_eq!(policy(&CLUSTER.replace("8080", "8081")), LbPolicy::Random);
    let common = &compiled.clusters[V1].common_lb_config;
    assert_eq!(common.healthy_panic_threshold, Some(40));
    assert_eq!(
        compiled.endpoints[CLUSTER].overprovisioning_factor,
        Some(150)
    );
}

#[test]
fn a_balancer_policy_for_what_is_not_there_says_so() {
    for (spec, expected) in [
        ("host: nobody", "there is no host \"nobody\""),
        ("host: greeter, subset: v9", "no such subset"),
        ("host: greeter, port: 9", "no such port"),
        (
            "host: greeter, prequal: {choiceCount: 1}",
            "1 is not 2 to 16",
        ),
    ] {
        let policy =
            format!("---\nkind: BalancerPolicy\nmetadata: {{name: a}}\nspec: {{{spec}}}\n");
        let (_, findings) = with(&format!("trafficPolicy: {{}}\n{policy}"));
        assert!(
            findings.join("\n").contains(expected),
            "{spec}: {findings:?}"
        );
    }
}
