//! What objects mean together.

mod balancing;
mod consul;
mod destination;
mod dual_stack;
mod export;
mod gateway;
mod hedge;
mod members;
mod outside;
mod patch;
mod routes;
mod visibility;

use mesh_core::config::*;

use super::*;
use crate::source::load_text;

const GREETER: &str = "
kind: ServiceEntry
metadata: {name: greeter}
spec:
  hosts: [greeter.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
  endpoints:
  - {address: 127.0.0.1, ports: {grpc: 1}, labels: {version: v1}, serviceAccount: greeter}
  - {address: 127.0.0.1, ports: {grpc: 2}, labels: {version: v2}, serviceAccount: greeter}
---
kind: DestinationRule
metadata: {name: greeter}
spec:
  host: greeter
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";
const FQDN: &str = "greeter.default.svc.cluster.local";

fn compile_text(text: &str) -> (Compiled, Vec<String>) {
    let loaded = load_text("t.yaml", text);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    let (compiled, findings) = compile(&loaded.objects, &CompileOptions::default());
    (compiled, findings.iter().map(ToString::to_string).collect())
}

#[test]
fn names_are_found_in_every_spelling() {
    let (compiled, findings) = compile_text(GREETER);
    assert_eq!(findings, [""; 0]);
    for (requested, namespace, found) in [
        ("greeter", "default", true),
        ("greeter", "other", false),
        ("greeter.default", "other", true),
        ("greeter.default.svc", "other", true),
        ("greeter.default.svc.cluster.local", "other", true),
        ("greeter.default:8080", "other", true),
        ("Greeter.default:8080", "other", true),
        ("greeter.default:8081", "other", false),
        ("nobody", "default", false),
    ] {
        let listener = compiled.resolve_listener(requested, namespace);
        assert_eq!(listener.is_some(), found, "{requested} in {namespace}");
        if let Some(listener) = listener {
            assert_eq!(listener.name.as_str(), requested);
        }
    }
}

#[test]
fn subsets_are_clusters_of_their_own() {
    let (compiled, _) = compile_text(GREETER);
    for (subset, ports) in [("", vec![1, 2]), ("v1", vec![1]), ("v2", vec![2])] {
        let name = format!("outbound|8080|{subset}|{FQDN}");
        let endpoints = &compiled.endpoints[name.as_str()];
        let held: Vec<_> = endpoints
            .localities
            .iter()
            .flat_map(|l| l.endpoints.iter().map(|e| e.address.port()))
            .collect();
        assert_eq!(held, ports, "{subset}");
        assert_eq!(
            compiled.clusters[name.as_str()].http_version,
            HttpVersion::Http2
        );
    }
}

#[test]
fn a_route_to_what_is_not_there_fails_its_share_alone() {
    let text = format!(
        "{GREETER}---
kind: VirtualService
metadata: {{name: greeter}}
spec:
  hosts: [greeter]
  http:
  - route:
    - {{destination: {{host: greeter, subset: v1}}, weight: 90}}
    - {{destination: {{host: greeter, subset: v9}}, weight: 10}}
"
    );
    let (compiled, findings) = compile_text(&text);
    assert_eq!(findings.len(), 1);
    let place = "t.yaml:25: error[MESH0104]: VirtualService default/greeter: \
                 spec.http[0].route[1].destination.subset";
    assert!(findings[0].starts_with(place), "{findings:?}");
    let missing = format!("outbound|8080|v9|{FQDN}");
    assert!(compiled.endpoints[missing.as_str()].localities.is_empty());
    let routes = &compiled.routes[format!("outbound|8080||{FQDN}").as_str()];
    let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else {
        panic!()
    };
    assert_eq!(forward.clusters.len(), 2);
}

fn inbound(text: &str, port: u16) -> InboundListener {
    let (compiled, _) = compile_text(text);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listener = compiled.inbound_listener("l", address, "default", &BTreeMap::new());
    let ListenerKind::Inbound(inbound) = listener.kind else {
        panic!()
    };
    inbound
}

#[test]
fn the_narrowest_mode_wins_and_clients_follow() {
    let policy = |namespace: &str, selector: &str, mode: &str| {
        format!(
            "---\nkind: PeerAuthentication\nmetadata: {{name: p{mode}{}, namespace: {namespace}}}\n\
             spec: {{{selector}mtls: {{mode: {mode}}}}}\n",
            selector.len()
        )
    };
    let v1 = "selector: {matchLabels: {version: v1}}, ";
    for (policies, chains, is_mtls) in [
        (
            String::new(),
            vec![TransportMatch::Tls, TransportMatch::RawBuffer],
            false,
        ),
        (
            policy("istio-system", "", "STRICT"),
            vec![TransportMatch::Tls],
            true,
        ),
        (
            policy("istio-system", "", "STRICT") + &policy("default", "", "DISABLE"),
            vec![TransportMatch::Any],
            false,
        ),
        (
            policy("default", "", "DISABLE") + &policy("default", v1, "STRICT"),
            vec![TransportMatch::Tls],
            true,
        ),
    ] {
        let text = format!("{GREETER}{policies}");
        let held: Vec<_> = inbound(&text, 1)
            .filter_chains
            .iter()
            .map(|chain| chain.transport)
            .collect();
        assert_eq!(held, chains, "{policies}");
        let (compiled, _) = compile_text(&text);
        let cluster = &compiled.clusters[format!("outbound|8080|v1|{FQDN}").as_str()];
        assert_eq!(cluster.tls.is_some(), is_mtls, "{policies}");
        if let Some(tls) = &cluster.tls {
            let account = "spiffe://cluster.local/ns/default/sa/greeter";
            assert_eq!(tls.subject_alt_names, [SanMatcher::exact(account)]);
        }
    }
}

fn rules(inbound: &InboundListener) -> Vec<Rbac> {
    let filters = &inbound.filter_chains[0].filters;
    filters
        .iter()
        .filter_map(|filter| filter.rbac().cloned())
        .collect()
}

#[test]
fn allow_without_rules_denies_all_and_what_cannot_be_read_closes() {
    let policy = |spec: &str| {
        let head = "---\nkind: AuthorizationPolicy\nmetadata: {name: p}\n";
        format!("{GREETER}{head}spec: {spec}\n")
    };
    assert!(rules(&inbound(GREETER, 1)).is_empty());
    let deny_all = Rbac::new(RbacAction::Allow, BTreeMap::new());
    assert_eq!(rules(&inbound(&policy("{}"), 1)), [deny_all]);
    let allow_all = &rules(&inbound(&policy("{rules: [{}]}"), 1))[0];
    assert_eq!(
        allow_all.policies["default/p[0]"].principals,
        [Principal::Any]
    );

    // Closed even where another policy allows everything, but only what it selects.
    let allow = "---\nkind: AuthorizationPolicy\nmetadata: {name: z}\nspec: {rules: [{}]}\n";
    let v1 = "selector: {matchLabels: {version: v1}}";
    for (spec, is_closed) in [
        ("{rulez: []}", [true, true]),
        ("{action: CUSTOM}", [true, true]),
        (&format!("{{rulez: [], {v1}}}"), [true, false]),
        (&format!("{{action: CUSTOM, {v1}}}"), [true, false]),
        (
            &format!("{{rulez: [], {}}}", v1.replace("matchLabels", "matchLabel")),
            [true, true],
        ),
    ] {
        let loaded = load_text("t.yaml", &(policy(spec) + allow));
        let (compiled, _) = compile(&loaded.objects, &CompileOptions::default());
        for (port, is_closed) in [1, 2].into_iter().zip(is_closed) {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let listener = compiled.inbound_listener("l", address, "default", &BTreeMap::new());
            let ListenerKind::Inbound(inbound) = listener.kind else {
                panic!()
            };
            let first = &rules(&inbound)[0];
            assert_eq!(first.action == RbacAction::Deny, is_closed, "{spec} {port}");
            assert_eq!(first.policies.len(), 1);
        }
    }
}

#[test]
fn a_destination_rule_says_when_endpoints_are_ejected_and_how_new_ones_begin() {
    let rule = |policy: &str| {
        let text = format!(
            "{GREETER}---\n\
             kind: ServiceEntry\nmetadata: {{name: other}}\nspec:\n  hosts: [other.default.svc.cluster.local]\n  \
             resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n---\n\
             kind: DestinationRule\nmetadata: {{name: a}}\nspec:\n  host: other\n  trafficPolicy: {policy}\n"
        );
        let (compiled, findings) = compile_text(&text);
        let name = "outbound|80||other.default.svc.cluster.local";
        (compiled.clusters[name].clone(), findings)
    };
    let (cluster, _) = rule(
        "{outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, minHealthPercent: 40}}",
    );
    let outliers = cluster.outlier_detection.clone().unwrap();
    assert_eq!(outliers.consecutive_5xx.enforcing, 0, "0 is off");
    let gateway = outliers.consecutive_gateway_failure;
    assert_eq!((gateway.threshold, gateway.enforcing), (3, 100));
    assert_eq!(outliers.success_rate.enforcing, 0, "as in Istio");
    assert_eq!(cluster.common_lb_config.healthy_panic_threshold, Some(40));
    let (old, _) = rule("{outlierDetection: {consecutiveErrors: 7}}");
    let outliers = old.outlier_detection.clone().unwrap();
    assert_eq!(outliers.consecutive_5xx.threshold, 7);
    assert_eq!(outliers.consecutive_gateway_failure.enforcing, 0);
    let (warm, _) =
        rule("{loadBalancer: {warmup: {duration: 60s, aggression: 2, minimumPercent: 5}}}");
    let expected = SlowStart {
        window: std::time::Duration::from_secs(60),
        aggression: 2.0,
        min_weight_percent: 5.0,
    };
    assert_eq!(warm.common_lb_config.slow_start, Some(expected));
    let (_, findings) = rule("{outlierDetection: {interval: 0s, maxEjectionPercent: 101}}");
    let text = findings.join("\n");
    assert!(
        text.contains("outlierDetection.interval") && text.contains("maxEjectionPercent"),
        "{text}"
    );
}

/// The filters of a server with these objects: their names, and the first action of its rules.
fn filters_of(objects: &str) -> (InboundListener, Vec<String>, Vec<String>) {
    let (compiled, findings) = compile_text(&format!("{GREETER}---\n{objects}"));
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let listener = compiled.inbound_listener("l", address, "default", &BTreeMap::new());
    let ListenerKind::Inbound(inbound) = listener.kind else {
        panic!("a server's")
    };
    let filters = inbound.filter_chains[0].filters.iter();
    let names = filters.map(|filter| filter.name.to_string()).collect();
    (inbound, names, findings)
}

const PROVIDER: &str = "kind: MeshPolicy\nmetadata: {name: m}\nspec:\n  extensionProviders:\n  \
    - {name: a, envoyExtAuthzGrpc: {service: checks/decider, port: 9000}}\n  \
    - {name: b, envoyExtAuthzGrpc: {service: checks/decider, port: 9000, failOpen: true}}\n\
    ---\nkind: ServiceEntry\nmetadata: {name: decider, namespace: checks}\nspec:\n  \
      hosts: [decider.checks.svc.cluster.local]\n  resolution: STATIC\n  \
      ports: [{number: 9000, name: grpc, protocol: GRPC}]\n  \
      endpoints: [{address: 127.0.0.1, ports: {grpc: 9000}, labels: {app: decider}}]\n";

fn custom(name: &str, provider: &str) -> String {
    format!(
        "---\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]}}\n"
    )
}

#[test]
fn providers_are_asked_before_other_rules_each_about_what_its_policies_match() {
    let deny =
        "---\nkind: AuthorizationPolicy\nmetadata: {name: d}\nspec: {action: DENY, rules: [{}]}\n";
    let objects = format!("{PROVIDER}{}{}{deny}", custom("x", "a"), custom("y", "b"));
    let (inbound, names, findings) = filters_of(&objects);
    assert_eq!(findings, [""; 0]);
    assert_eq!(
        names,
        [
            "envoy.filters.http.rbac.a",
            "envoy.filters.http.ext_authz.a",
            "envoy.filters.http.rbac.b",
            "envoy.filters.http.ext_authz.b",
            "envoy.filters.http.rbac.0",
        ]
    );
    let filters = &inbound.filter_chains[0].filters;
    for (pair, policy) in [(0, "x"), (2, "y")] {
        let selection = filters[pair].rbac().expect("rules");
        let shadow = selection.shadow.as_ref().expect("shadow rules");
        assert!(shadow.is_selection() && selection.policies.is_empty());
        let names: Vec<_> = shadow.policies.keys().collect();
        assert_eq!(names, [&format!("istio-ext-authz-default/{policy}[0]")]);
        let FilterConfig::ExtAuthz(settings) = &filters[pair + 1].config else {
            panic!("a question")
        };
        let service = settings.service.as_ref().expect("somebody");
        assert_eq!(service.failure_mode_allow, policy == "y");
        let matcher = service.enabled_metadata.as_ref().expect("a matcher");
        let key = format!("{}shadow_effective_policy_id", shadow.stat_prefix);
        assert_eq!(matcher.path, [key]);
    }
}

#[test]
fn a_policy_by_which_a_provider_asks_itself_is_warned_of() {
    let policy = |namespace: &str, spec: &str| {
        let text = format!(
            "{PROVIDER}---\nkind: AuthorizationPolicy\nmetadata: {{name: x, namespace: {namespace}}}\n\
             spec: {{action: CUSTOM, provider: {{name: a}}, {spec}}}\n"
        );
        let (_, _, findings) = filters_of(&text);
        let warned = findings.iter().filter(|finding| {
            finding.contains("warning[MESH0115]") && finding.contains("spec.provider.name")
        });
        assert_eq!(warned.clone().count(), findings.len(), "{findings:?}");
        warned.count() > 0
    };
    let own = "targetRefs: [{kind: Service, name: decider}], rules: [{}]";
    for (namespace, spec, is_warned) in [
        ("checks", "rules: [{}]", true),
        ("default", "rules: [{}]", false),
        // The root namespace is everybody's.
        ("istio-system", "rules: [{}]", true),
        (
            "checks",
            "selector: {matchLabels: {app: decider}}, rules: [{}]",
            true,
        ),
        (
            "checks",
            "selector: {matchLabels: {app: web}}, rules: [{}]",
            false,
        ),
        ("checks", own, true),
        ("checks", "rules: []", false),
        (
            "checks",
            "rules: [{to: [{operation: {paths: [/admin]}}]}]",
            false,
        ),
        (
            "checks",
            "rules: [{to: [{operation: {ports: [\"9000\"]}}]}]",
            true,
        ),
        (
            "checks",
            "rules: [{to: [{operation: {ports: [\"80\"]}}]}]",
            false,
        ),
        (
            "checks",
            "rules: [{to: [{operation: {notPaths: [\"/envoy.service.auth.v3.Authorization/*\"]}}]}]",
            false,
        ),
        (
            "checks",
            "rules: [{from: [{source: {principals: [a]}}]}]",
            true,
        ),
    ] {
        assert_eq!(policy(namespace, spec), is_warned, "{namespace} {spec}");
    }
}

#[test]
fn a_provider_that_is_unknown_twofold_or_unusable_closes_what_it_has_to_decide() {
    let other = "---\nkind: MeshPolicy\nmetadata: {name: n}\nspec: {extensionProviders: \
        [{name: a, envoyExtAuthzGrpc: {service: checks/decider, port: 9000, timeout: 1s}}]}\n";
    let broken = PROVIDER.replace("decider, port: 9000", "decider, port: 1");
    for (providers, name, expected) in [
        (PROVIDER.to_owned(), "who", "there is no provider"),
        (format!("{PROVIDER}{other}"), "a", "cannot be used"),
        (broken, "a", "has no port 1"),
    ] {
        let (inbound, names, findings) = filters_of(&format!("{providers}{}", custom("x", name)));
        assert_eq!(names, ["envoy.filters.http.rbac.0"]);
        let rules = inbound.filter_chains[0].filters[0].rbac().expect("rules");
        assert_eq!((rules.action, rules.policies.len()), (RbacAction::Deny, 1));
        let is_said = findings.iter().any(|finding| finding.contains(expected));
        assert!(is_said, "{expected}: {findings:?}");
    }
}
