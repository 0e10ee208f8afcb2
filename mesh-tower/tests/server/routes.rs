//! What a server's routes do besides serving: other addresses, answers of their own, headers.

use std::sync::Arc;

use axum::{Router, routing::any};
use http::{HeaderMap, HeaderName};
use mesh_core::config::{
    AppendAction, DirectResponse, FilterConfig, FilterOverrides, HeaderChanges, HeaderMutation,
    HeaderMutations, HeaderValue, HttpFilter, PathMatcher, PathPattern, Redirect, RedirectPath,
    Route, RouteAction, RouteConfig, RouteMatch, RouteSource, ValueTemplate, VirtualHost,
};
use mesh_tower::{server::InboundState, tls::Alpn};

use crate::kit::{ALICE, Answer, Ca, Client, Mode, World, listener};

/// A listener with these filters and this host.
fn with(mode: Mode, filters: &[HttpFilter], config: RouteConfig) -> InboundState {
    let InboundState::Ready(listener) = listener(mode, &[]) else {
        unreachable!("it is ready")
    };
    let mut listener = (*listener).clone();
    let config = Arc::new(config);
    for chain in &mut listener.filter_chains {
        chain.filters = filters.to_vec();
        chain.routes = RouteSource::Inline(Arc::clone(&config));
    }
    InboundState::Ready(Arc::new(listener))
}

fn route(prefix: &str, action: RouteAction) -> Route {
    let mut route = Route::new(prefix, RouteMatch::any(), action);
    route.matcher.path = PathMatcher::new(PathPattern::Prefix(prefix.into()));
    route
}

fn config(routes: Vec<Route>) -> RouteConfig {
    RouteConfig::new("inbound", vec![VirtualHost::new("all", ["*"], routes)])
}

fn add(name: &'static str, value: &str, is_response: bool) -> HeaderChanges {
    HeaderChanges {
        remove: vec![HeaderName::from_static("x-secret")],
        add: vec![HeaderValue {
            name: HeaderName::from_static(name),
            value: ValueTemplate::new(value, is_response).expect("a template"),
            action: AppendAction::Overwrite,
            keep_empty: false,
        }],
    }
}

/// Says the headers that it got, and tells a secret.
fn telling() -> Router {
    Router::new().fallback(any(|headers: HeaderMap| async move {
        let told = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap_or_default()));
        ([("x-secret", "1")], told.collect::<String>())
    }))
}

const WIRES: [(Alpn, bool); 3] = [
    (Alpn::Http1, false),
    (Alpn::Http2, false),
    (Alpn::Http2, true),
];

async fn ask(client: &mut Client, path: &str, is_grpc: bool) -> Answer {
    let answer = match is_grpc {
        true => client.grpc(path, &[("x-in", "in")]).await,
        false => client.send(path, &[("x-in", "in")]).await,
    };
    answer.expect("answered")
}

#[tokio::test]
async fn a_server_answers_redirects_and_direct_responses_by_itself() {
    let ca = Ca::new();
    let redirect = Redirect {
        status: 308,
        path: Some(RedirectPath::Prefix("/new".into())),
        ..Redirect::default()
    };
    let direct = DirectResponse {
        status: 503,
        body: "closed".into(),
    };
    let mut closed = route("/closed", RouteAction::DirectResponse(Box::new(direct)));
    closed.headers = Some(Box::new(HeaderMutations {
        request: HeaderChanges::default(),
        response: add("x-why", "%REQ(x-in)% %RESPONSE_CODE%", true),
    }));
    let routes = vec![
        route("/old", RouteAction::Redirect(Box::new(redirect))),
        closed,
        route("/", RouteAction::NonForwarding),
    ];
    let state = with(Mode::Disable, &[], config(routes));
    let world = World::start(&ca, state).await;
    for (alpn, is_grpc) in WIRES {
        let mut client = Client::plain(world.addr, alpn).await.expect("connects");
        let moved = ask(&mut client, "/old/a?b=c", is_grpc).await;
        assert_eq!(moved.headers["location"], "http://server.default/new/a?b=c");
        let closed = ask(&mut client, "/closed", is_grpc).await;
        assert_eq!(closed.headers["x-why"], "in 503");
        match is_grpc {
            true => {
                assert_eq!(moved.grpc_status(), Some("2"));
                assert_eq!(closed.grpc_status(), Some("14"));
                assert_eq!(closed.headers["grpc-message"], "closed");
            }
            false => {
                assert_eq!(moved.status, 308);
                assert_eq!((closed.status.as_u16(), closed.text()), (503, "closed"));
                let served = ask(&mut client, "/", false).await;
                assert_eq!((served.status.as_u16(), served.text()), (200, "hello"));
            }
        }
    }
}

#[tokio::test]
async fn a_redirect_keeps_the_scheme_by_which_the_caller_came() {
    let ca = Ca::new();
    let redirect = Redirect {
        status: 301,
        host: Some("elsewhere".into()),
        ..Redirect::default()
    };
    let routes = vec![route("/", RouteAction::Redirect(Box::new(redirect)))];
    let world = World::start(&ca, with(Mode::Strict, &[], config(routes))).await;
    let client = Client::tls(world.addr, ca.identity(ALICE)).await;
    let moved = client.expect("connects").get("/a").await.expect("answered");
    assert_eq!(moved.headers["location"], "https://elsewhere/a");
}

#[tokio::test]
async fn headers_change_on_the_way_to_the_application_and_back() {
    let ca = Ca::new();
    let changes = |level: &str| HeaderMutations {
        request: add("x-level", level, false),
        response: add("x-answered", &format!("{level} %REQ(x-level)%"), true),
    };
    let mut routes = config(vec![route("/", RouteAction::NonForwarding)]);
    routes.headers = Some(Box::new(changes("config")));
    routes.virtual_hosts[0].headers = Some(Box::new(changes("host")));
    routes.virtual_hosts[0].routes[0].headers = Some(Box::new(changes("route")));
    let state = with(Mode::Disable, &[], routes);
    let world = World::with(&ca, state, telling(), |server| server).await;
    for (alpn, is_grpc) in WIRES {
        let mut client = Client::plain(world.addr, alpn).await.expect("connects");
        let answer = ask(&mut client, "/", is_grpc).await;
        // The least specific is made last.
        assert!(
            answer.text().contains("x-level: config\n"),
            "{}",
            answer.text()
        );
        assert_eq!(answer.headers["x-answered"], "config config");
        assert!(!answer.headers.contains_key("x-secret"), "{alpn:?}");
    }
}

#[tokio::test]
async fn the_header_mutation_filter_changes_what_the_application_sees_and_says() {
    let ca = Ca::new();
    let mutation = |value: &str| {
        FilterConfig::HeaderMutation(Arc::new(HeaderMutation {
            request: vec![add("x-by", value, false)],
            response: vec![add("x-answered", "%REQ(x-by)%", true)],
            most_specific_wins: true,
        }))
    };
    let mut routes = config(vec![
        route("/route", RouteAction::NonForwarding),
        route("/", RouteAction::NonForwarding),
    ]);
    let says = FilterOverrides::of("m", mutation("route"));
    routes.virtual_hosts[0].routes[0].filters = Some(Box::new(says));
    let filters = [HttpFilter::new("m", mutation("listener"))];
    let state = with(Mode::Disable, &filters, routes);
    let world = World::with(&ca, state, telling(), |server| server).await;
    for (alpn, is_grpc) in WIRES {
        let mut client = Client::plain(world.addr, alpn).await.expect("connects");
        for (path, by) in [("/route", "route"), ("/", "listener")] {
            let answer = ask(&mut client, path, is_grpc).await;
            assert!(answer.text().contains(&format!("x-by: {by}\n")), "{path}");
            assert_eq!(answer.headers["x-answered"], by);
            assert!(!answer.headers.contains_key("x-secret"));
        }
    }
}
