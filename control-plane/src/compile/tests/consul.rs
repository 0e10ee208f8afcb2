//! Consul's chain of routers, splitters and resolvers.

use super::*;

const SERVICES: &str = "
kind: ServiceEntry
metadata: {name: web}
spec:
  hosts: [web.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 10.0.0.1, labels: {version: v1}}
  - {address: 10.0.0.2, labels: {version: v2}}
---
kind: ServiceEntry
metadata: {name: spare}
spec:
  hosts: [spare.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 10.0.1.1}, {address: 10.0.0.1}]
";

fn entry(kind: &str, name: &str, spec: &str) -> String {
    format!("---\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

const SUBSETS: &str = "subsets: {v1: {filter: Service.Meta.version == v1}, \
                       v2: {filter: 'Service.Meta[\"version\"] == \"v2\"'}}";

fn cluster(subset: &str, host: &str) -> String {
    format!("outbound|80|{subset}|{host}.default.svc.cluster.local")
}

fn forwards(compiled: &Compiled, host: &str) -> Vec<Forward> {
    let config = &compiled.routes[cluster("", host).as_str()];
    let routes = config.virtual_hosts[0].routes.iter();
    let forwards = routes.map(|route| match &route.action {
        RouteAction::Forward(forward) => forward.clone(),
        other => panic!("{other:?}"),
    });
    forwards.collect()
}

fn shares(forward: &Forward) -> Vec<(String, u32)> {
    let clusters = forward.clusters.iter();
    clusters
        .map(|cluster| (cluster.name.to_string(), cluster.weight))
        .collect()
}

/// Addresses of a cluster by priority, by their last number.
fn priorities(compiled: &Compiled, name: &str) -> Vec<(u32, Vec<String>)> {
    let localities = compiled.endpoints[name].localities.iter();
    let addresses = |locality: &LocalityEndpoints| {
        let all = locality.endpoints.iter();
        all.map(|endpoint| endpoint.address.ip().to_string())
            .collect()
    };
    localities
        .map(|locality| (locality.priority, addresses(locality)))
        .collect()
}

#[test]
fn a_router_leads_through_a_splitter_and_resolvers() {
    let text = SERVICES.to_owned()
        + &entry(
            "ServiceRouter",
            "web",
            "{routes: [{match: {http: {pathPrefix: /v2}}, destination: {serviceSubset: v2}}, \
             {match: {http: {pathPrefix: /slow}}, destination: {requestTimeout: 9s, idleTimeout: 2s}}]}",
        )
        + &entry(
            "ServiceSplitter",
            "web",
            "{splits: [{weight: 90.5}, {weight: 9.5, serviceSubset: v2, requestHeaders: {set: {x: y}}}]}",
        )
        + &entry(
            "ServiceResolver",
            "web",
            &format!("{{{SUBSETS}, defaultSubset: v1, requestTimeout: 3s, connectTimeout: 7s}}"),
        );
    let (compiled, findings) = compile_text(&text);
    assert_eq!(findings, [""; 0]);
    let [v2, slow, rest] = &forwards(&compiled, "web")[..] else {
        panic!()
    };
    let seconds = |forward: &Forward| forward.timeout.map(|timeout| timeout.as_secs());
    assert_eq!(
        shares(v2),
        [(cluster("v2", "web"), 1)],
        "a subset passes the splitter by"
    );
    assert_eq!(
        (seconds(v2), seconds(slow), seconds(rest)),
        (Some(3), Some(9), Some(3))
    );
    let idle = slow.extras.as_ref().and_then(|extras| extras.idle_timeout);
    assert_eq!(idle.map(|idle| idle.as_secs()), Some(2));
    let split = [
        (cluster("v1", "web"), 905_000),
        (cluster("v2", "web"), 95_000),
    ];
    assert_eq!(
        shares(rest),
        split,
        "the share of the service itself goes to its default subset"
    );
    assert!(rest.clusters[0].extras.is_none() && rest.clusters[1].extras.is_some());
    for (subset, address) in [("v1", "10.0.0.1"), ("v2", "10.0.0.2")] {
        let name = cluster(subset, "web");
        assert_eq!(
            priorities(&compiled, &name),
            [(0, vec![address.to_owned()])]
        );
        assert_eq!(
            compiled.clusters[name.as_str()].connect_timeout.as_secs(),
            7
        );
    }
}

#[test]
fn a_share_for_a_service_with_a_splitter_is_split_again() {
    let text = SERVICES.to_owned()
        + &entry(
            "ServiceResolver",
            "spare",
            &format!("{{{}}}", SUBSETS.replace("version", "v")),
        )
        + &entry(
            "ServiceSplitter",
            "web",
            "{splits: [{weight: 50}, {weight: 50, service: spare}]}",
        )
        + &entry(
            "ServiceSplitter",
            "spare",
            "{splits: [{weight: 20, serviceSubset: v1}, {weight: 80, serviceSubset: v2}]}",
        );
    let (compiled, findings) = compile_text(&text);
    assert_eq!(findings, [""; 0]);
    assert_eq!(
        shares(&forwards(&compiled, "web")[0]),
        [
            (cluster("", "web"), 500_000),
            (cluster("v1", "spare"), 100_000),
            (cluster("v2", "spare"), 400_000)
        ]
    );
    let circle = SERVICES.to_owned()
        + &entry(
            "ServiceSplitter",
            "web",
            "{splits: [{weight: 100, service: spare}]}",
        )
        + &entry(
            "ServiceSplitter",
            "spare",
            "{splits: [{weight: 100, service: web}]}",
        );
    let (_, findings) = compile_text(&circle);
    assert!(
        findings.iter().any(|found| found.contains("in a circle")),
        "{findings:?}"
    );
}

#[test]
fn a_redirect_stands_for_another_service() {
    let text = SERVICES.to_owned()
        + &entry("ServiceResolver", "web", "{redirect: {service: spare}}")
        + &entry(
            "ServiceResolver",
            "spare",
            "{subsets: {all: {}}, defaultSubset: all}",
        );
    let (compiled, findings) = compile_text(&text);
    assert_eq!(findings, [""; 0]);
    assert_eq!(
        shares(&forwards(&compiled, "web")[0]),
        [(cluster("all", "spare"), 1)]
    );
    let circle = SERVICES.to_owned()
        + &entry("ServiceResolver", "web", "{redirect: {service: spare}}")
        + &entry("ServiceResolver", "spare", "{redirect: {service: web}}");
    compile_text(&circle);
}

#[test]
fn failover_is_a_lower_priority_and_is_followed_once() {
    let text = SERVICES.to_owned()
        + &entry(
            "ServiceResolver",
            "web",
            &format!(
                "{{{SUBSETS}, failover: {{v1: {{targets: [{{serviceSubset: v2}}, {{service: spare}}]}}, \
                 '*': {{service: spare}}}}}}"
            ),
        )
        + &entry(
            "ServiceResolver",
            "spare",
            "{failover: {'*': {service: web}}}",
        );
    let (compiled, findings) = compile_text(&text);
    assert_eq!(findings, [""; 0]);
    let own = |text: &[&str]| text.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        priorities(&compiled, &cluster("v1", "web")),
        [
            (0, own(&["10.0.0.1"])),
            (1, own(&["10.0.0.2"])),
            // Not the address that is there already.
            (2, own(&["10.0.1.1"])),
        ]
    );
    assert_eq!(
        priorities(&compiled, &cluster("v2", "web")),
        [(0, own(&["10.0.0.2"])), (1, own(&["10.0.1.1", "10.0.0.1"]))]
    );
    assert_eq!(
        priorities(&compiled, &cluster("", "spare")),
        [(0, own(&["10.0.1.1", "10.0.0.1"])), (1, own(&["10.0.0.2"]))],
        "what it fails over to does not bring its own failover"
    );
}

#[test]
fn balancing_and_hashes_come_from_the_resolver() {
    let text = SERVICES.to_owned()
        + &entry(
            "ServiceResolver",
            "web",
            "{loadBalancer: {policy: ring_hash, ringHashConfig: {minimumRingSize: 64}, \
             hashPolicies: [{field: header, fieldValue: X-User, terminal: true}, \
             {field: cookie, fieldValue: id, cookieConfig: {ttl: 5s, path: /}}, {sourceIP: true}]}}",
        );
    let (compiled, findings) = compile_text(&text);
    assert_eq!(findings, [""; 0]);
    let LbPolicy::RingHash(ring) = &compiled.clusters[cluster("", "web").as_str()].lb_policy else {
        panic!()
    };
    assert_eq!(ring.minimum_ring_size, 64);
    let forward = &forwards(&compiled, "web")[0];
    let policies = &forward.extras.as_ref().expect("extras").hash_policy;
    assert!(policies[0].terminal);
    let header = HashSource::Header {
        name: "x-user".to_owned(),
        rewrite: None,
    };
    assert_eq!(policies[0].source, header);
    assert_eq!(policies[2].source, HashSource::SourceIp);
}

#[test]
fn a_namespace_beside_a_service_is_that_of_the_service() {
    let elsewhere = "---
kind: ServiceEntry
metadata: {name: web, namespace: other}
spec:
  hosts: [web.other.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 10.9.0.1}]
";
    let other = "outbound|80||web.other.svc.cluster.local";
    let web = |kind: &str, spec: &str| {
        let text = format!("{SERVICES}{elsewhere}{}", entry(kind, "web", spec));
        let (compiled, findings) = compile_text(&text);
        assert_eq!(findings, [""; 0], "{kind} {spec}");
        compiled
    };
    for (kind, spec) in [
        (
            "ServiceRouter",
            "{routes: [{destination: {namespace: other}}]}",
        ),
        (
            "ServiceRouter",
            "{routes: [{destination: {service: web, namespace: other}}]}",
        ),
        (
            "ServiceSplitter",
            "{splits: [{weight: 100, namespace: other}]}",
        ),
        (
            "ServiceResolver",
            "{redirect: {service: web, namespace: other}}",
        ),
    ] {
        let compiled = web(kind, spec);
        let forwards = forwards(&compiled, "web");
        assert_eq!(
            forwards[0].clusters[0].name.as_str(),
            other,
            "{kind} {spec}"
        );
    }
    for spec in [
        "{failover: {'*': {namespace: other}}}",
        "{failover: {'*': {targets: [{service: web, namespace: other}]}}}",
    ] {
        let compiled = web("ServiceResolver", spec);
        let found = priorities(&compiled, &cluster("", "web"));
        let last = found.last().expect("some");
        assert_eq!(
            (last.0, last.1.as_slice()),
            (1, &["10.9.0.1".to_owned()][..]),
            "{spec}"
        );
    }
}

#[test]
fn mistakes_name_their_field() {
    for (kind, spec, field) in [
        (
            "ServiceSplitter",
            "{splits: [{weight: 40}, {weight: 50}]}",
            "spec.splits: the weights",
        ),
        (
            "ServiceSplitter",
            "{splits: [{weight: 100, service: nobody}]}",
            "spec.splits[0].service",
        ),
        (
            "ServiceSplitter",
            "{splits: [{weight: 100, serviceSubset: no}]}",
            "spec.splits[0].serviceSubset",
        ),
        (
            "ServiceResolver",
            "{defaultSubset: no}",
            "spec.defaultSubset",
        ),
        (
            "ServiceResolver",
            "{redirect: {service: nobody}}",
            "spec.redirect.service",
        ),
        (
            "ServiceResolver",
            "{failover: {'*': {service: nobody}}}",
            "spec.failover.*.service",
        ),
        (
            "ServiceResolver",
            "{subsets: {a: {filter: 'Node.Meta.a == b'}}}",
            "spec.subsets.a.filter",
        ),
        (
            "ServiceResolver",
            "{connectTimeout: soon}",
            "spec.connectTimeout",
        ),
        (
            "ServiceResolver",
            "{requestTimeout: soon}",
            "spec.requestTimeout",
        ),
        (
            "ServiceResolver",
            "{loadBalancer: {policy: magic}}",
            "spec.loadBalancer.policy",
        ),
        (
            "ServiceResolver",
            "{loadBalancer: {hashPolicies: [{field: header}]}}",
            "spec.loadBalancer.hashPolicies[0].fieldValue",
        ),
    ] {
        let (_, findings) = compile_text(&(SERVICES.to_owned() + &entry(kind, "web", spec)));
        let place = format!("{kind} default/web: {field}");
        assert!(
            findings.len() == 1 && findings[0].contains(&place),
            "{spec}: {findings:?}"
        );
    }
}
