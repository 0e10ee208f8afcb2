//! What routes become.

use super::*;

/// The routes of the greeter, and what was found.
fn routes(spec: &str) -> (Vec<Route>, Vec<String>) {
    let text = format!("{GREETER}---\n{spec}");
    let (compiled, findings) = compile_text(&text);
    let config = &compiled.routes[format!("outbound|8080||{FQDN}").as_str()];
    (config.virtual_hosts[0].routes.clone(), findings)
}

fn virtual_service(http: &str) -> (Vec<Route>, Vec<String>) {
    let head = "kind: VirtualService\nmetadata: {name: greeter}\nspec:\n  hosts: [greeter]\n";
    routes(&format!("{head}  http:\n{http}"))
}

fn shares(route: &Route) -> Vec<(String, u32)> {
    match &route.action {
        RouteAction::Forward(forward) => forward
            .clusters
            .iter()
            .map(|cluster| (cluster.name.to_string(), cluster.weight))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_rest_of_a_single_share_goes_to_the_other_subset_and_that_is_said() {
    let (routes, findings) = virtual_service(
        "  - match:
    - headers:
        canary: {exact: \"true\"}
    route:
    - destination: {host: greeter, subset: v2}
  - route:
    - destination: {host: greeter, subset: v1}
      weight: 90
",
    );
    let cluster = |subset: &str| format!("outbound|8080|{subset}|{FQDN}");
    assert_eq!(shares(&routes[0]), [(cluster("v2"), 1)]);
    assert_eq!(
        shares(&routes[1]),
        [(cluster("v1"), 90), (cluster("v2"), 10)]
    );
    let [finding] = &findings[..] else {
        panic!("{findings:?}")
    };
    assert!(finding.contains("warning["), "{finding}");
    let place = "spec.http[1].route[0].weight: one destination with 90 of 100: the other 10";
    assert!(finding.contains(place), "{finding}");
}

#[test]
fn queries_rewrites_headers_and_copies_are_compiled() {
    let (routes, findings) = virtual_service(
        "  - match: [{uri: {prefix: /a}, queryParams: {q: {exact: x}, p: {}}, scheme: {exact: http}}]
    rewrite: {uri: /b, authority: other}
    headers: {request: {set: {x: '%REQ(y)%'}, remove: [z]}}
    mirror: {host: greeter, subset: v2}
    mirrorPercentage: {value: 12.5}
    route:
    - {destination: {host: greeter, subset: v1}, headers: {response: {add: {v: '1'}}}}
",
    );
    assert_eq!(findings, [""; 0]);
    let [route] = &routes[..] else {
        panic!("{routes:?}")
    };
    assert_eq!(route.matcher.query_parameters.len(), 2);
    assert_eq!(route.matcher.headers[0].name, ":scheme");
    let changes = &route.headers.as_ref().expect("changes").request;
    assert_eq!((changes.remove.len(), changes.add.len()), (1, 1));
    let RouteAction::Forward(forward) = &route.action else {
        panic!()
    };
    assert!(forward.clusters[0].extras.is_some());
    let extras = forward.extras.as_ref().expect("extras");
    assert_eq!(extras.path_rewrite, Some(PathRewrite::Prefix("/b".into())));
    assert_eq!(
        extras.host_rewrite,
        Some(HostRewrite::Literal("other".into()))
    );
    let fraction = extras.mirrors[0].fraction.expect("a share");
    assert_eq!(fraction.per_million(), 125_000);
}

#[test]
fn answers_stand_alone_and_mistakes_name_their_field() {
    let (routes, findings) = virtual_service(
        "  - {match: [{uri: {exact: /r}}], redirect: {uri: /s, redirectCode: 308}}
  - {match: [{uri: {exact: /d}}], directResponse: {status: 503, body: {string: no}}}
",
    );
    assert_eq!(findings, [""; 0]);
    assert!(matches!(&routes[0].action, RouteAction::Redirect(r) if r.status == 308));
    assert!(matches!(&routes[1].action, RouteAction::DirectResponse(d) if &d.body[..] == b"no"));
    for (http, field) in [
        ("{redirect: {redirectCode: 200}}", "redirect.redirectCode"),
        ("{directResponse: {status: 99}}", "directResponse.status"),
        (
            "{redirect: {uri: /a}, route: [{destination: {host: greeter}}]}",
            "route: a route has a destination",
        ),
        (
            "{rewrite: {uriRegexRewrite: {match: '('}}, route: [{destination: {host: greeter}}]}",
            "rewrite.uriRegexRewrite",
        ),
        (
            "{headers: {request: {set: {':path': /}}}, route: [{destination: {host: greeter}}]}",
            "headers.request.set.:path",
        ),
        (
            "{mirrorPercentage: {value: 1}, route: [{destination: {host: greeter}}]}",
            "mirrorPercentage: there is no mirror",
        ),
        (
            "{mirrors: [{destination: {host: greeter}, percentage: {value: 101}}], \
             route: [{destination: {host: greeter}}]}",
            "mirrors[0].percentage.value",
        ),
    ] {
        let (routes, findings) = virtual_service(&format!("  - {http}\n"));
        let place = format!("VirtualService default/greeter: spec.http[0].{field}");
        assert!(
            findings.len() == 1 && findings[0].contains(&place),
            "{field}: {findings:?}"
        );
        assert_eq!(routes.len(), 1, "{field}: its requests meet no other route");
    }
}

#[test]
fn a_service_router_sends_a_path_to_another_service_and_the_rest_to_its_own() {
    let text = "
kind: ServiceEntry
metadata: {name: web}
spec: {hosts: [web.default.svc.cluster.local], resolution: STATIC,
       ports: [{number: 80, name: http, protocol: HTTP}]}
---
kind: ServiceEntry
metadata: {name: payment}
spec: {hosts: [payment.default.svc.cluster.local], resolution: STATIC,
       ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceRouter
metadata:
  name: web
spec:
  routes:
  - match:
      http:
        pathPrefix: /payment
    destination:
      service: payment
";
    let (compiled, findings) = compile_text(text);
    assert_eq!(findings, [""; 0]);
    let config = &compiled.routes["outbound|80||web.default.svc.cluster.local"];
    let [payment, rest] = &config.virtual_hosts[0].routes[..] else {
        panic!("{config:?}")
    };
    assert_eq!(
        payment.matcher.path.pattern,
        PathPattern::Prefix("/payment".into())
    );
    let cluster = |host: &str| format!("outbound|80||{host}.default.svc.cluster.local");
    assert_eq!(shares(payment), [(cluster("payment"), 1)]);
    assert_eq!(shares(rest), [(cluster("web"), 1)]);

    for (route, field) in [
        (
            "{match: {http: {pathExact: /a, pathPrefix: /b}}}",
            "match.http.pathExact",
        ),
        (
            "{match: {http: {header: [{name: a}]}}}",
            "match.http.header[0]",
        ),
        (
            "{match: {http: {methods: ['a|b']}}}",
            "match.http.methods[0]",
        ),
        (
            "{destination: {requestTimeout: soon}}",
            "destination.requestTimeout",
        ),
        ("{destination: {service: nobody}}", "destination.service"),
        (
            "{destination: {serviceSubset: none}}",
            "destination.serviceSubset",
        ),
    ] {
        let text = text.replace("routes:\n", &format!("routes:\n  - {route}\n"));
        let (_, findings) = compile_text(&text);
        let place = format!("ServiceRouter default/web: spec.routes[0].{field}");
        assert!(
            findings.len() == 1 && findings[0].contains(&place),
            "{field}: {findings:?}"
        );
    }
}

#[test]
fn a_match_on_claims_of_a_token_is_refused_and_says_what_to_write() {
    for (name, expected) in [
        ("@request.auth.claims.sub", "write an AuthorizationPolicy"),
        ("@request.auth.claims[a][b]", "write an AuthorizationPolicy"),
        ("a b", "is not the name of a header"),
    ] {
        let (_, findings) = virtual_service(&format!(
            "  - match: [{{headers: {{'{name}': {{exact: a}}}}}}]\n    route: [{{destination: {{host: greeter}}}}]\n"
        ));
        let place = format!("spec.http[0].match[0].headers.{name}: ");
        let is_it = |finding: &&String| finding.contains(&place) && finding.contains(expected);
        assert!(
            findings.iter().any(|finding| is_it(&finding)),
            "{findings:?}"
        );
    }
}

#[test]
fn retries_in_remote_localities_leave_the_priorities_of_two_attempts() {
    let retried = |retries: &str| {
        let (routes, findings) = virtual_service(&format!(
            "  - retries: {retries}\n    route: [{{destination: {{host: greeter}}}}]\n"
        ));
        assert!(findings.is_empty(), "{findings:?}");
        let RouteAction::Forward(forward) = &routes[0].action else {
            panic!("{routes:?}")
        };
        let extras = forward.retry.as_ref().unwrap().extras.clone();
        extras.and_then(|extras| extras.previous_priorities.map(std::num::NonZeroU32::get))
    };
    let remote = "{attempts: 3, retryRemoteLocalities: true}";
    assert_eq!(retried(remote), Some(2));
    assert_eq!(retried("{attempts: 3, retryRemoteLocalities: false}"), None);
    assert_eq!(retried("{attempts: 3}"), None);
}
