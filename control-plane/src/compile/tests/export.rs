//! Which DestinationRule holds for the clients of which namespace.

use super::*;

const SHOP: &str = "
kind: ServiceEntry
metadata: {name: cart, namespace: shop}
spec:
  hosts: [cart.shop.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 127.0.0.1, ports: {http: 1}, labels: {version: v1, track: stable}}
  - {address: 127.0.0.1, ports: {http: 2}, labels: {version: v2, track: canary}}
";
const CART: &str = "outbound|80||cart.shop.svc.cluster.local";
const V1: &str = "outbound|80|v1|cart.shop.svc.cluster.local";
/// Limit of requests of a cluster that no rule is about.
const NOTHING: u32 = 1024;

/// The cart with rules: namespace, host, `exportTo`, limit of requests.
fn cart(rules: &[(&str, &str, &str, u32)]) -> (Compiled, Vec<String>) {
    let rule = |(index, (namespace, host, export_to, limit)): (usize, &(&str, &str, &str, u32))| {
        format!(
            "---\nkind: DestinationRule\nmetadata: {{name: r{index}, namespace: {namespace}}}\nspec:\n  \
             host: '{host}'\n  exportTo: [{export_to}]\n  \
             trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: {limit}}}}}}}\n"
        )
    };
    let rules = rules.iter().enumerate().map(rule);
    compile_text(&format!("{SHOP}{}", rules.collect::<String>()))
}

fn limit(compiled: &Compiled, namespace: &str) -> u32 {
    let (_, cluster) = compiled.cluster(CART, namespace).expect("a cluster");
    cluster.circuit_breakers.max_requests
}

#[test]
fn a_client_looks_in_its_own_namespace_then_in_the_services_then_in_the_root() {
    const HOST: &str = "cart.shop.svc.cluster.local";
    let (web, shop, root) = ("web", "shop", "istio-system");
    // Rules, and what clients of web, shop, the root namespace and another one get.
    type Rule = (&'static str, &'static str, &'static str, u32);
    let table: [(&[Rule], [u32; 4]); 14] = [
        (&[(shop, "cart", "", 1)], [1; 4]),
        (&[(shop, "cart", "'*'", 1)], [1; 4]),
        (&[(root, HOST, "", 1)], [1; 4]),
        // A rule of a client's namespace is for the clients there, whatever it is exported to.
        (&[(web, HOST, "", 1)], [1, NOTHING, NOTHING, NOTHING]),
        (&[(web, HOST, "shop", 1)], [1, NOTHING, NOTHING, NOTHING]),
        (&[(web, HOST, "", 1), (shop, "cart", "", 2)], [1, 2, 2, 2]),
        (&[(root, HOST, "", 1), (shop, "cart", "", 2)], [2; 4]),
        (&[(root, HOST, "", 1), (web, HOST, "", 2)], [2, 1, 1, 1]),
        // Exported to some.
        (&[(shop, "cart", ".", 1)], [NOTHING, 1, NOTHING, NOTHING]),
        (&[(shop, "cart", "web", 1)], [1, 1, NOTHING, NOTHING]),
        (
            &[(shop, "cart", "web", 1), (root, HOST, "", 2)],
            [1, 1, 2, 2],
        ),
        (&[(root, HOST, "shop", 1)], [NOTHING, 1, 1, NOTHING]),
        // What the root namespace has for itself goes before what the service says.
        (&[(root, HOST, ".", 1), (shop, "cart", "", 2)], [2, 2, 1, 2]),
        // The narrower host.
        (
            &[(root, "*", "", 1), (root, "*.svc.cluster.local", "", 2)],
            [2; 4],
        ),
    ];
    for (rules, expected) in table {
        let (compiled, findings) = cart(rules);
        assert_eq!(findings, [""; 0], "{rules:?}");
        let found = [web, shop, root, "other"].map(|namespace| limit(&compiled, namespace));
        assert_eq!(found, expected, "{rules:?}");
    }
}

#[test]
fn of_rules_for_one_host_the_oldest_policy_holds_and_the_subsets_are_added_up() {
    let (compiled, findings) = compile_text(&format!(
        "{SHOP}---
kind: DestinationRule
metadata: {{name: b, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}}
spec:
  host: cart
  subsets: [{{name: v1, labels: {{version: v1}}}}]
---
kind: DestinationRule
metadata: {{name: c, namespace: shop, creationTimestamp: '2026-01-02T00:00:00Z'}}
spec:
  host: cart
  trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: 7}}}}}}
  subsets: [{{name: v1, labels: {{version: v2}}}}, {{name: v2, labels: {{version: v2}}}}]
---
kind: DestinationRule
metadata: {{name: a, namespace: shop}}
spec:
  host: cart
  trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: 8}}}}}}
"
    ));
    assert_eq!(limit(&compiled, "any"), 7);
    let of = |name: &str| {
        let endpoints = &compiled.endpoints[name].localities[0].endpoints;
        endpoints
            .iter()
            .map(|e| e.address.port())
            .collect::<Vec<_>>()
    };
    assert_eq!((of(V1), of(&V1.replace("v1", "v2"))), (vec![1], vec![2]));
    let [finding] = &findings[..] else {
        panic!("{findings:?}")
    };
    assert!(
        finding.contains("shop/a") && finding.contains("shop/c"),
        "{finding}"
    );
}

#[test]
fn a_subset_is_what_the_rule_that_a_client_sees_makes_of_it() {
    let (compiled, findings) = compile_text(&format!(
        "{SHOP}---
kind: DestinationRule
metadata: {{name: r, namespace: shop}}
spec:
  host: cart
  subsets: [{{name: v1, labels: {{version: v1}}}}]
---
kind: DestinationRule
metadata: {{name: r, namespace: web}}
spec:
  host: cart.shop
  trafficPolicy: {{loadBalancer: {{consistentHash: {{httpHeaderName: x-user}}}}}}
  subsets: [{{name: v1, labels: {{track: canary}}}}, {{name: own, labels: {{track: stable}}}}]
---
kind: VirtualService
metadata: {{name: v, namespace: shop}}
spec:
  hosts: [cart]
  http:
  - name: own
    match: [{{uri: {{exact: /own}}}}]
    route: [{{destination: {{host: cart, subset: own}}}}]
  - name: rest
    route: [{{destination: {{host: cart, subset: v1}}}}]
"
    ));
    assert_eq!(findings, [""; 0]);
    let ports = |name: &str, namespace: &str| {
        let (_, endpoints) = compiled.endpoints(name, namespace).expect("endpoints");
        let all = endpoints.localities.iter().flat_map(|l| &l.endpoints);
        all.map(|endpoint| endpoint.address.port())
            .collect::<Vec<_>>()
    };
    let own = V1.replace("v1", "own");
    assert_eq!((ports(V1, "web"), ports(V1, "shop")), (vec![2], vec![1]));
    assert_eq!((ports(&own, "web"), ports(&own, "shop")), (vec![1], vec![]));
    let hashed = |namespace: &str| {
        let view = compiled.view(CART, namespace).expect("routes");
        let routes = view.config.virtual_hosts[0].routes.iter();
        let hashed = routes.map(|route| match &route.action {
            RouteAction::Forward(forward) => {
                let extras = forward.extras.as_deref();
                extras.map_or(0, |extras| extras.hash_policy.len())
            }
            _ => 0,
        });
        (view.key, hashed.collect::<Vec<_>>())
    };
    let ((web, of_web), (shop, of_shop)) = (hashed("web"), hashed("shop"));
    assert_eq!((of_web, of_shop), (vec![1, 1], vec![0, 0]));
    assert_ne!(web, shop, "they share no encoded configuration");
}
