//! What a BalancerPolicy, a Service and a service-resolver say of balancing.

use super::*;

const CART: &str = "
kind: ServiceEntry
metadata: {name: cart}
spec:
  hosts: [cart.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 127.0.0.1, ports: {http: 1}, locality: eu/a, labels: {version: v1}}
  - {address: 127.0.0.1, ports: {http: 2}, locality: eu/b, labels: {version: v1}}
---
";
const CLUSTER: &str = "outbound|80||cart.default.svc.cluster.local";

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn a_balancer_policy_is_for_several_hosts_and_for_some_clients() {
    let (compiled, findings) = compile_text(&format!(
        "{CART}
kind: BalancerPolicy
metadata: {{name: all}}
spec: {{hosts: ['*.svc.cluster.local'], subsetSize: 3, maxConnectionsPerEndpoint: 2}}
---
kind: BalancerPolicy
metadata: {{name: some}}
spec:
  host: cart
  workloadSelector: {{matchLabels: {{app: batch}}}}
  panicThreshold: 10
  overprovisioningFactor: 200
---
kind: DestinationRule
metadata: {{name: own}}
spec:
  host: cart
  workloadSelector: {{matchLabels: {{tier: low}}}}
  trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: 9}}}}}}
"
    ));
    assert_eq!(findings, [""; 0]);
    // Labels, and the requests and the panic threshold that hold for a client with them.
    for (own, requests, panic) in [
        (labels(&[]), 1024, None),
        (labels(&[("app", "batch")]), 1024, Some(10)),
        (labels(&[("tier", "low")]), 9, None),
        (labels(&[("app", "batch"), ("tier", "low")]), 9, Some(10)),
    ] {
        let viewer = Viewer {
            labels: &own,
            ..Viewer::from("default")
        };
        let (_, cluster) = compiled.cluster(CLUSTER, viewer).expect("a cluster");
        assert_eq!(cluster.circuit_breakers.max_requests, requests, "{own:?}");
        let common = &cluster.common_lb_config;
        assert_eq!(common.healthy_panic_threshold, panic, "{own:?}");
        assert_eq!(common.subset_size, Some(3));
        assert_eq!(cluster.circuit_breakers.max_connections_per_host, Some(2));
        let (_, endpoints) = compiled.endpoints(CLUSTER, viewer).expect("endpoints");
        let factor = panic.map(|_| 200);
        assert_eq!(endpoints.overprovisioning_factor, factor, "{own:?}");
        assert_eq!(endpoints.localities.len(), 2);
    }
    let (_, cluster) = compiled.cluster(CLUSTER, "other").expect("a cluster");
    assert_eq!(cluster.common_lb_config.healthy_panic_threshold, None);
}

#[test]
fn an_adaptive_limit_is_a_filter_of_the_clients_of_a_host() {
    let policy = |spec: &str| {
        let text = format!(
            "{CART}kind: BalancerPolicy\nmetadata: {{name: a}}\nspec: {{host: cart, {spec}}}\n"
        );
        compile_text(&text)
    };
    let (compiled, findings) =
        policy("adaptiveConcurrency: {updateInterval: 50ms, maxConcurrency: 20}");
    assert_eq!(findings, [""; 0]);
    let listener = compiled
        .resolve_listener("cart", "default")
        .expect("a listener");
    let ListenerKind::Api(api) = listener.kind else {
        panic!()
    };
    let [HttpFilter { config, .. }] = &api.filters[..] else {
        panic!("{:?}", api.filters)
    };
    let FilterConfig::AdaptiveConcurrency(limit) = config else {
        panic!("{config:?}")
    };
    assert_eq!(limit.concurrency_update_interval.as_millis(), 50);
    assert_eq!(
        (limit.min_concurrency, limit.max_concurrency_limit),
        (3, 20)
    );
    for (spec, expected) in [
        (
            "adaptiveConcurrency: {minConcurrency: 30, maxConcurrency: 20}",
            "lowest limit",
        ),
        ("adaptiveConcurrency: {updateInterval: 0s}", "1ms or longer"),
        (
            "port: 80, adaptiveConcurrency: {}",
            "all requests to a host",
        ),
        ("subsetSize: 0", "0 is not 1 to"),
    ] {
        let (_, findings) = policy(spec);
        assert!(
            findings.len() == 1 && findings[0].contains(expected),
            "{findings:?}"
        );
    }
}

/// Priorities by port, as a client in `eu/a` gets them.
fn priorities(compiled: &Compiled, name: &str) -> Vec<(u16, u32)> {
    let locality = LocalityId {
        region: "eu".to_owned(),
        zone: "a".to_owned(),
        sub_zone: String::new(),
    };
    let nothing = BTreeMap::new();
    let viewer = Viewer {
        namespace: "default",
        labels: &nothing,
        locality: &locality,
    };
    let (_, endpoints) = compiled.endpoints(name, viewer).expect("endpoints");
    let mut found: Vec<_> = endpoints
        .localities
        .iter()
        .flat_map(|l| l.endpoints.iter().map(|e| (e.address.port(), l.priority)))
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn a_service_may_prefer_the_zone_of_the_client_and_one_endpoint_for_a_process() {
    let service = |spec: &str, rule: &str| {
        let (compiled, findings) = compile_text(&format!(
            "
kind: Service
metadata: {{name: cart}}
spec: {{ports: [{{name: http, port: 80}}]{spec}}}
---
kind: EndpointSlice
metadata: {{name: a, labels: {{kubernetes.io/service-name: cart}}}}
addressType: IPv4
endpoints: [{{addresses: [127.0.0.1], zone: a}}]
ports: [{{name: http, port: 1}}]
---
kind: EndpointSlice
metadata: {{name: b, labels: {{kubernetes.io/service-name: cart}}}}
addressType: IPv4
endpoints: [{{addresses: [127.0.0.1], zone: b}}]
ports: [{{name: http, port: 2}}]
{rule}"
        ));
        assert_eq!(findings, [""; 0]);
        compiled
    };
    let any = service("", "");
    assert_eq!(priorities(&any, CLUSTER), [(1, 0), (2, 0)]);
    let close = service(", trafficDistribution: PreferClose", "");
    assert_eq!(priorities(&close, CLUSTER), [(1, 0), (2, 1)]);

    let rule = "---\nkind: DestinationRule\nmetadata: {name: a}\n\
                spec: {host: cart, trafficPolicy: {loadBalancer: {simple: RANDOM}}}\n";
    let sticky = ", sessionAffinity: ClientIP";
    for (rule, is_ring) in [("", true), (rule, false)] {
        let compiled = service(sticky, rule);
        let policy = &compiled.clusters[CLUSTER].lb_policy;
        assert_eq!(
            matches!(policy, LbPolicy::RingHash(_)),
            is_ring,
            "{policy:?}"
        );
        let routes = compiled.view(CLUSTER, "default").expect("routes").config;
        let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else {
            panic!()
        };
        let hashed = forward
            .extras
            .as_ref()
            .map_or(0, |extras| extras.hash_policy.len());
        assert_eq!(hashed, usize::from(is_ring));
    }
}

#[test]
fn a_resolver_may_prefer_the_nearest() {
    for (mode, expected) in [("failover", [(1, 0), (2, 1)]), ("none", [(1, 0), (2, 0)])] {
        let (compiled, findings) = compile_text(&format!(
            "{CART}kind: ServiceResolver\nmetadata: {{name: cart}}\n\
             spec: {{prioritizeByLocality: {{mode: {mode}}}}}\n"
        ));
        assert_eq!(findings, [""; 0]);
        assert_eq!(priorities(&compiled, CLUSTER), expected, "{mode}");
    }
}

#[test]
fn old_forms_of_shares_and_origins_are_understood() {
    let (compiled, findings) = compile_text(&format!(
        "{CART}kind: VirtualService
metadata: {{name: v}}
spec:
  hosts: [cart]
  http:
  - fault: {{delay: {{fixedDelay: 1s, percent: 25}}}}
    corsPolicy: {{allowOrigin: [http://a.example, '*']}}
    mirror: {{host: cart}}
    mirrorPercent: 50
    route: [{{destination: {{host: cart}}}}]
"
    ));
    assert_eq!(findings, [""; 0]);
    let route = &compiled.routes[CLUSTER].virtual_hosts[0].routes[0];
    let filters = &route.filters.as_ref().expect("filters").by_name;
    let config = |name: &str| filters[name].config.as_ref().expect("a configuration");
    let FilterConfig::Fault(fault) = config(FAULT_FILTER) else {
        panic!()
    };
    let delay = fault.delay.as_ref().expect("a delay");
    assert_eq!(delay.percentage.per_million(), 250_000);
    let FilterConfig::Cors(Some(cors)) = config(CORS_FILTER) else {
        panic!()
    };
    assert_eq!(cors.allow_origins.len(), 2);
    assert!(cors.allow_origins[1].is_match("https://b.example"));
    let RouteAction::Forward(forward) = &route.action else {
        panic!()
    };
    let mirrors = &forward.extras.as_ref().expect("extras").mirrors;
    let share = mirrors[0].fraction.expect("a share");
    assert_eq!(share.per_million(), 500_000);
}

#[test]
fn zones_and_subsets_are_what_the_policy_says() {
    let policy = |spec: &str| {
        let text = format!(
            "{CART}kind: BalancerPolicy\nmetadata: {{name: a}}\nspec: {{host: cart, {spec}}}\n"
        );
        let (compiled, findings) = compile_text(&text);
        (
            compiled.clusters[CLUSTER].common_lb_config.clone(),
            findings,
        )
    };
    let (common, findings) = policy("zoneAware: {minClusterSize: 3, failTrafficOnPanic: true}");
    assert_eq!(findings, [""; 0]);
    let expected = ZoneAware {
        min_cluster_size: 3,
        fail_traffic_on_panic: true,
        ..ZoneAware::default()
    };
    assert_eq!(common.zone_aware, Some(expected));
    let (common, findings) = policy("subsetSize: 3, deterministicSubset: true");
    assert_eq!(findings, [""; 0]);
    assert_eq!(common.subsetting, Subsetting::Deterministic);
    for (spec, expected) in [
        (
            "zoneAware: {routingEnabled: 101}",
            "zoneAware.routingEnabled",
        ),
        ("zoneAware: {}, subsetSize: 3", "spec.zoneAware"),
        ("zoneAware: {}, prequal: {}", "spec.zoneAware"),
        ("deterministicSubset: true", "there is no subsetSize"),
    ] {
        let (_, findings) = policy(spec);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains(expected), "{findings:?}");
    }
}
