//! Redirects that are followed for the caller, beside Envoy: the same routes, server and requests, and
//! the same requests after them.

use std::fmt::Write as _;

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::TypedExtensionConfig,
            route::v3::{
                DirectResponseAction, InternalRedirectPolicy, RedirectAction, Route, RouteAction,
                VirtualHost, redirect_action::PathRewriteSpecifier, route::Action,
            },
        },
        extensions::internal_redirect::{
            allow_listed_routes::v3::AllowListedRoutesConfig,
            previous_routes::v3::PreviousRoutesConfig,
            safe_cross_scheme::v3::SafeCrossSchemeConfig,
        },
    },
    google::protobuf::{Any, UInt32Value},
};
use http::Request;
use mesh_tower::Body;

use super::{
    beside::{Beside, Options},
    http,
    redirecting::{ANSWERS, Redirecting},
    resources::{TARGET, any, endpoint},
    scene::{Scene, Wire, add_header, forward, prefix, priorities},
    unruly::CASE,
};

/// Both sides with the same routes and server.
struct Sides {
    ours: Scene,
    envoy: Beside,
    server: Redirecting,
}

impl Sides {
    async fn start(routes: Vec<Route>) -> Self {
        let server = Redirecting::start().await;
        let address = server.address;
        let assignment = priorities(
            "c",
            vec![vec![endpoint(&address.ip().to_string(), address.port())]],
        );
        let host = VirtualHost {
            name: "own".into(),
            domains: vec![TARGET.into(), "*.own".into()],
            routes,
            ..VirtualHost::default()
        };
        let ours = Scene::start(Wire::Http1, host.clone()).await;
        ours.serve_priorities(&assignment, "c", |_| {});
        let envoy = Beside::start(host, assignment, Options::default()).await;
        Self {
            ours,
            envoy,
            server,
        }
    }

    /// What comes of a request on both sides: status, and what the server was asked.
    async fn ask(&self, case: &Case) -> [String; 2] {
        let Case(method, path, answers, body) = *case;
        let name = format!("{method} {path} {answers}");
        let (mine, theirs) = (format!("mine {name}"), format!("theirs {name}"));
        let ours = Request::builder()
            .method(method)
            .uri(format!("http://{TARGET}{path}"))
            .header(CASE, &mine)
            .header(ANSWERS, answers)
            .header("x-copied", "of the request")
            .body(match body {
                "" => Body::empty(),
                body => Body::from(body),
            });
        let status = self.ours.send(ours.unwrap()).await.unwrap().status;
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {TARGET}\r\n");
        for (name, value) in [
            (CASE, theirs.as_str()),
            (ANSWERS, answers),
            ("x-copied", "of the request"),
            ("connection", "close"),
        ] {
            _ = write!(request, "{name}: {value}\r\n");
        }
        if !body.is_empty() {
            _ = write!(request, "content-length: {}\r\n", body.len());
        }
        let answer = http(self.envoy.address, &format!("{request}\r\n{body}")).await;
        let of_envoy = answer.split(' ').nth(1).unwrap_or_default();
        [
            format!("{}: {:#?}", status.as_u16(), self.server.asked(&mine)),
            format!("{of_envoy}: {:#?}", self.server.asked(&theirs)),
        ]
    }
}

/// Method, path, answers, body.
struct Case(&'static str, &'static str, &'static str, &'static str);

fn policy(change: impl FnOnce(&mut InternalRedirectPolicy)) -> InternalRedirectPolicy {
    let mut policy = InternalRedirectPolicy::default();
    change(&mut policy);
    policy
}

fn predicate(name: &str, config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: format!("envoy.internal_redirect_predicates.{name}"),
        typed_config: Some(config),
    }
}

/// A route that tells its name and follows redirects so.
fn route(
    path: &str,
    policy: InternalRedirectPolicy,
    change: impl FnOnce(&mut RouteAction),
) -> Route {
    let action = forward("c", |action| {
        action.internal_redirect_policy = Some(policy);
        change(action);
    });
    Route {
        request_headers_to_add: vec![add_header("x-route", path)],
        ..prefix(path, action)
    }
}

fn all_routes() -> Vec<Route> {
    let max = |value| Some(UInt32Value { value });
    let all_codes = vec![301, 302, 303, 307, 304];
    let previous = predicate("previous_routes", any(&PreviousRoutesConfig {}));
    let allowed = AllowListedRoutesConfig {
        allowed_route_names: vec!["from /plain".into()],
    };
    let allowed = predicate("allow_listed_routes", any(&allowed));
    let safe = predicate("safe_cross_scheme", any(&SafeCrossSchemeConfig {}));
    let direct = DirectResponseAction {
        status: 418,
        ..DirectResponseAction::default()
    };
    let moved = RedirectAction {
        path_rewrite_specifier: Some(PathRewriteSpecifier::PathRedirect("/moved-on".into())),
        ..RedirectAction::default()
    };
    vec![
        route("/default", policy(|_| {}), |_| {}),
        route("/rewritten", policy(|_| {}), |action| {
            action.prefix_rewrite = "/new".into();
        }),
        route(
            "/twice",
            policy(|p| p.max_internal_redirects = max(2)),
            |_| {},
        ),
        route(
            "/never",
            policy(|p| p.max_internal_redirects = max(0)),
            |_| {},
        ),
        route(
            "/codes",
            policy(|p| p.redirect_response_codes = all_codes),
            |_| {},
        ),
        route(
            "/cross",
            policy(|p| p.allow_cross_scheme_redirect = true),
            |_| {},
        ),
        route(
            "/safe",
            policy(|p| {
                p.allow_cross_scheme_redirect = true;
                p.predicates = vec![safe];
            }),
            |_| {},
        ),
        route("/allowed", policy(|p| p.predicates = vec![allowed]), |_| {}),
        route(
            "/previous",
            policy(|p| {
                p.max_internal_redirects = max(5);
                p.predicates = vec![previous];
            }),
            |_| {},
        ),
        route(
            "/copies",
            policy(|p| p.response_headers_to_copy = vec!["x-copied".into(), "x-none".into()]),
            |_| {},
        ),
        prefix("/direct", Action::DirectResponse(direct)),
        prefix("/moved", Action::Redirect(moved)),
        Route {
            request_headers_to_add: vec![add_header("x-route", "/plain")],
            ..prefix("/plain", forward("c", |_| {}))
        },
    ]
}

const CASES: &[Case] = &[
    Case("GET", "/default", "302 http://x.own/plain?q=1", ""),
    Case(
        "GET",
        "/default?a=b",
        "302 http://x.own:8080/plain#here",
        "",
    ),
    Case("GET", "/default", "302 http://x.own", ""),
    Case(
        "GET",
        "/default",
        "302 http://x.own/default;302 http://x.own/plain",
        "",
    ),
    Case("GET", "/default", "301 http://x.own/plain", ""),
    Case("GET", "/default", "302 /plain", ""),
    Case("GET", "/default", "302 http://x.own/nowhere", ""),
    Case("GET", "/default", "302 http://other/plain", ""),
    Case("GET", "/default", "302 https://x.own/plain", ""),
    Case("GET", "/default", "302 ftp://x.own/plain", ""),
    Case("GET", "/default", "302", ""),
    Case("GET", "/default", "503", ""),
    Case("GET", "/default", "302 http://x.own/direct", ""),
    Case("GET", "/default", "302 http://x.own/moved", ""),
    Case("POST", "/default", "302 http://x.own/plain", "body"),
    Case("GET", "/plain", "302 http://x.own/plain", ""),
    Case("GET", "/rewritten/a", "302 http://x.own/plain", ""),
    Case("GET", "/default", "302 http://x.own/rewritten/b", ""),
    Case(
        "GET",
        "/twice",
        "302 http://x.own/twice/2;302 http://x.own/twice/3;302 http://x.own/twice/4",
        "",
    ),
    Case(
        "GET",
        "/twice",
        "302 http://x.own/default;302 http://x.own/plain",
        "",
    ),
    Case(
        "GET",
        "/twice",
        "302 http://x.own/plain;302 http://x.own/twice",
        "",
    ),
    Case("GET", "/never", "302 http://x.own/plain", ""),
    Case("POST", "/codes", "301 http://x.own/plain", "body"),
    Case("POST", "/codes", "303 http://x.own/plain", "body"),
    Case("GET", "/codes", "303 http://x.own/plain", ""),
    Case("HEAD", "/codes", "303 http://x.own/plain", ""),
    Case("PUT", "/codes", "307 http://x.own/plain", "body"),
    Case("PUT", "/codes", "308 http://x.own/plain", "body"),
    Case("GET", "/codes", "304 http://x.own/plain", ""),
    Case("GET", "/cross", "302 https://x.own/plain", ""),
    Case("GET", "/safe", "302 https://x.own/plain", ""),
    Case("GET", "/safe", "302 http://x.own/plain", ""),
    Case("GET", "/allowed", "302 http://x.own/plain", ""),
    Case("GET", "/allowed", "302 http://x.own/default", ""),
    Case(
        "GET",
        "/previous",
        "302 http://x.own/previous;302 http://x.own/previous",
        "",
    ),
    Case(
        "GET",
        "/previous",
        "302 http://x.own/previous;302 http://x.own/plain",
        "",
    ),
    Case("GET", "/copies", "302 http://x.own/plain", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_followed_where_envoy_does() {
    let sides = Sides::start(all_routes()).await;
    let mut differences = Vec::new();
    for case in CASES {
        let [ours, theirs] = sides.ask(case).await;
        if ours != theirs {
            let Case(method, path, answers, _) = case;
            let name = format!("{method} {path} {answers}");
            differences.push(format!("{name}\n  ours    {ours}\n  Envoy's {theirs}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
