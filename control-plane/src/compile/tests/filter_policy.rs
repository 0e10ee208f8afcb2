//! FilterPolicy: headers, bodies and sessions, of servers and of clients.

use std::{collections::BTreeMap, net::SocketAddr};

use super::*;

const AROUND: &str = "
kind: Service
metadata: {name: shop}
spec: {ports: [{port: 80, name: http}]}
---
kind: RateLimit
metadata: {name: a}
spec: {limits: [{requests: 9}]}
";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: mesh/v1\nkind: FilterPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn mesh(policies: &str) -> (Compiled, Vec<String>) {
    compile_text(&format!("{AROUND}{policies}"))
}

/// Filters of a server with the label `app=APP`.
fn of_server(compiled: &Compiled, app: &str) -> Vec<HttpFilter> {
    let address = SocketAddr::from(([10, 0, 0, 9], 80));
    let labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
    let listener = compiled.inbound_listener("l", address, "default", &labels);
    let ListenerKind::Inbound(inbound) = listener.kind else {
        panic!("{listener:?}")
    };
    inbound.filter_chains[0].filters.clone()
}

/// What the virtual host of clients says.
fn of_clients(compiled: &Compiled) -> FilterOverrides {
    let config = &compiled.routes["outbound|80||shop.default.svc.cluster.local"];
    let filters = config.virtual_hosts[0].filters.as_deref();
    filters.cloned().unwrap_or_default()
}

#[test]
fn servers_change_headers_and_hold_bodies_back_behind_authorisation_and_limits() {
    let (compiled, findings) = mesh(
        &[
            policy(
                "a",
                "{headers: {request: {remove: [x-a]}}, buffer: {maxRequestBytes: 900}}",
            ),
            policy(
                "b",
                "{selector: {matchLabels: {app: shop}}, headers: {response: {set: {x-b: b}}}, \
             buffer: {maxRequestBytes: 700}}",
            ),
            policy(
                "c",
                "{selector: {matchLabels: {app: other}}, buffer: {maxRequestBytes: 5}}",
            ),
        ]
        .concat(),
    );
    assert_eq!(findings, [""; 0]);
    let filters = of_server(&compiled, "shop");
    let names: Vec<_> = filters.iter().map(|filter| &*filter.name).collect();
    assert_eq!(
        names,
        [RATE_LIMIT_FILTER, HEADER_MUTATION_FILTER, BUFFER_FILTER]
    );
    let FilterConfig::HeaderMutation(headers) = &filters[1].config else {
        panic!("{filters:?}")
    };
    assert_eq!(headers.request[0].remove, ["x-a"]);
    assert_eq!(headers.response[0].add[0].name, "x-b");
    assert_eq!((headers.request.len(), headers.response.len()), (1, 1));
    let lowest = FilterConfig::Buffer {
        max_request_bytes: 700,
    };
    assert_eq!(filters[2].config, lowest);
    assert!(!filters[2].disabled);
}

#[test]
fn clients_of_a_host_have_its_filters_and_others_have_none() {
    let spec = "{host: shop, headers: {request: {add: {x-a: a}}}, buffer: {maxRequestBytes: 7}, \
                session: {header: x-session, strict: true}}";
    let (compiled, findings) = mesh(&policy("a", spec));
    assert_eq!(findings, [""; 0]);
    let said = of_clients(&compiled);
    let names: Vec<_> = said.by_name.keys().map(|name| &**name).collect();
    assert_eq!(
        names,
        [BUFFER_FILTER, HEADER_MUTATION_FILTER, SESSION_FILTER]
    );
    let Some(FilterConfig::StatefulSession(Some(session))) = &said.by_name[SESSION_FILTER].config
    else {
        panic!("{said:?}")
    };
    assert!(session.strict);
    let by_header = SessionState::Header("x-session".parse().expect("a name"));
    assert_eq!(session.state, by_header);
    let listener = compiled.resolve_listener("shop", "default").expect("known");
    let ListenerKind::Api(api) = listener.kind else {
        panic!("a client's")
    };
    let listed: Vec<_> = api.filters.iter().map(|f| (&*f.name, f.disabled)).collect();
    assert_eq!(
        listed,
        [(HEADER_MUTATION_FILTER, false), (BUFFER_FILTER, true)]
    );
    assert!(
        !of_server(&compiled, "shop")
            .iter()
            .any(|filter| &*filter.name == BUFFER_FILTER),
        "servers have what is for servers"
    );
    let (without, _) = mesh("");
    assert_eq!(of_clients(&without), FilterOverrides::default());
}

#[test]
fn a_policy_that_cannot_be_used_says_why() {
    for (spec, field) in [
        ("{host: nobody}", "spec.host"),
        ("{host: shop, selector: {matchLabels: {a: b}}}", "spec.host"),
        (
            "{buffer: {maxRequestBytes: 0}}",
            "spec.buffer.maxRequestBytes",
        ),
        (
            "{headers: {request: {set: {host: a}}}}",
            "spec.headers.request.set.host",
        ),
        ("{session: {header: x}}", "spec.session"),
        ("{host: shop, session: {}}", "spec.session"),
        (
            "{host: shop, session: {header: x, cookie: {name: a}}}",
            "spec.session",
        ),
        (
            "{host: shop, session: {header: 'a b'}}",
            "spec.session.header",
        ),
        (
            "{host: shop, session: {cookie: {name: 'a b'}}}",
            "spec.session.cookie.name",
        ),
        (
            "{host: shop, session: {cookie: {name: a, path: b}}}",
            "spec.session.cookie.path",
        ),
        (
            "{host: shop, session: {cookie: {name: a, ttl: soon}}}",
            "spec.session.cookie.ttl",
        ),
    ] {
        let (_, findings) = mesh(&policy("a", spec));
        assert!(
            findings.len() == 1 && findings[0].contains(&format!(" {field}:")),
            "{spec}: {findings:?}"
        );
    }
    let sessions = ["a", "b"].map(|name| policy(name, "{host: shop, session: {header: x}}"));
    let (_, findings) = mesh(&sessions.concat());
    assert!(
        findings.len() == 1 && findings[0].contains("MESH0113"),
        "{findings:?}"
    );
}
