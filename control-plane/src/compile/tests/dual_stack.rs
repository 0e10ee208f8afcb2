//! Pods with an IPv4 and an IPv6 address, of which Kubernetes tells in two slices.

use super::*;

const SERVICE: &str = "
kind: Service
metadata: {name: cart}
spec: {ports: [{name: http, port: 80}]}
";
const CLUSTER: &str = "outbound|80||cart.default.svc.cluster.local";

fn slice(name: &str, kind: &str, endpoints: &str) -> String {
    format!(
        "---
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: cart}}}}
addressType: {kind}
endpoints: [{endpoints}]
ports: [{{name: http, port: 8080}}]
"
    )
}

/// The addresses of each endpoint, its identity first.
fn addresses(text: &str) -> Vec<Vec<String>> {
    let (compiled, findings) = compile_text(text);
    assert_eq!(findings, [""; 0]);
    let localities = &compiled.endpoints[CLUSTER].localities;
    let endpoints = localities.iter().flat_map(|locality| &locality.endpoints);
    let of = |endpoint: &Endpoint| {
        let additional = &endpoint.details().additional_addresses;
        let all = std::iter::once(&endpoint.address).chain(additional);
        all.map(ToString::to_string).collect()
    };
    endpoints.map(of).collect()
}

#[test]
fn one_pod_in_slices_of_two_kinds_is_one_endpoint_with_both_addresses() {
    let pod = |address: &str, name: &str| {
        format!(
            "{{addresses: [\"{address}\"], targetRef: {{kind: Pod, name: {name}, uid: u-{name}}}}}"
        )
    };
    let v4 = format!("{}, {}", pod("10.0.0.1", "a"), pod("10.0.0.2", "b"));
    let v6 = format!("{}, {}", pod("fd00::1", "a"), pod("fd00::3", "c"));
    let expected = [
        vec!["10.0.0.1:8080", "[fd00::1]:8080"],
        vec!["10.0.0.2:8080"],
        vec!["[fd00::3]:8080"],
    ];
    // Whichever slice comes first.
    for [first, second] in [["x", "y"], ["y", "x"]] {
        let [v4, v6] = [slice(first, "IPv4", &v4), slice(second, "IPv6", &v6)];
        let mut got = addresses(&format!("{SERVICE}{v4}{v6}"));
        got.sort();
        assert_eq!(got, expected);
    }
    // Without a word of what they are, addresses are endpoints of their own.
    let bare = |address: &str| format!("{{addresses: [\"{address}\"]}}");
    let v4 = slice("x", "IPv4", &bare("10.0.0.1"));
    let v6 = slice("y", "IPv6", &bare("fd00::1"));
    assert_eq!(addresses(&format!("{SERVICE}{v4}{v6}")).len(), 2);
}
