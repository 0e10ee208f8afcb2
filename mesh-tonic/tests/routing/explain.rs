//! Why a request goes where it goes.

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            DirectResponseAction, RedirectAction, RetryPolicy,
            route::Action,
            route_action::{HashPolicy, HostRewriteSpecifier, hash_policy},
        },
        extensions::filters::http::{
            buffer::v3::Buffer,
            fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
        },
        r#type::v3::FractionalPercent,
    },
    google::protobuf::UInt32Value,
};
use mesh_tower::{Body, explain::CallExplanation};

use super::{
    echo::Echo,
    filters::{filter, saying},
    resources::listener_with,
    scene::{Scene, Wire, add_header, forward, host, prefix},
};

async fn explained(scene: &Scene, path: &str, user: &str) -> CallExplanation {
    let request = http::Request::get(format!("http://greeter{path}"))
        .header("x-user", user)
        .body(Body::empty())
        .unwrap();
    scene.service().await.explain(&request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explanation_names_every_step_to_the_endpoints() {
    let echo = Echo::start("echo").await;
    let action = forward("c", |action| {
        action.prefix_rewrite = "/b".into();
        action.host_rewrite_specifier =
            Some(HostRewriteSpecifier::HostRewriteLiteral("inner".into()));
        action.retry_policy = Some(RetryPolicy {
            retry_on: "5xx".into(),
            ..RetryPolicy::default()
        });
        action.hash_policy = vec![HashPolicy {
            policy_specifier: Some(hash_policy::PolicySpecifier::Header(hash_policy::Header {
                header_name: "x-user".into(),
                ..hash_policy::Header::default()
            })),
            ..HashPolicy::default()
        }];
    });
    let mut sent = prefix("/a", action);
    sent.request_headers_to_add = vec![add_header("x-by", "mesh")];
    sent.request_headers_to_remove = vec!["x-user".into()];
    let routes = vec![
        prefix(
            "/closed",
            Action::DirectResponse(DirectResponseAction {
                status: 503,
                ..DirectResponseAction::default()
            }),
        ),
        prefix(
            "/old",
            Action::Redirect(RedirectAction {
                host_redirect: "new".into(),
                ..RedirectAction::default()
            }),
        ),
        sent,
    ];
    let scene = Scene::start(Wire::Http1, host(routes)).await;
    scene.serve("c", &[&echo]);
    let seen = scene.get_with("/a/x", &[("x-user", "1")]).await.seen();
    assert_eq!(
        (seen.path.as_str(), seen.authority.as_str()),
        ("/b/x", "inner")
    );

    let text = explained(&scene, "/a/x", "1").await.to_string();
    for line in [
        "GET greeter/a/x",
        "> virtual host all: domain *",
        "  - route from /closed: the path does not match: prefix /closed",
        "  > route from /a: matches",
        "retried 1 times on 5xx",
        "path becomes /b/x",
        "authority becomes inner",
        "header x-by: mesh",
        "header x-user is removed",
        "to cluster c (100.0 %), round robin",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let endpoint = format!(
        "  {} usable (unknown, ready), weight 1, 0 in flight",
        echo.address
    );
    assert!(text.contains(&endpoint), "{text}");
    let hash = |text: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with("hash of header x-user"));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let other = explained(&scene, "/a/x", "2").await.to_string();
    assert_ne!(hash(&text), hash(&other));

    let json = serde_json::to_value(explained(&scene, "/old", "1").await).unwrap();
    assert_eq!(json["action"]["redirect"]["location"], "http://new/old");
    assert_eq!(json["routes"][1]["is_taken"], true);
    let mismatch = &json["routes"][0]["mismatch"];
    assert_eq!(mismatch, "the path does not match: prefix /closed");
    let json = serde_json::to_value(explained(&scene, "/a/x", "1").await).unwrap();
    let forward = &json["action"]["forward"];
    assert_eq!(forward["hash"]["policies"][0], "header x-user");
    let cluster = &forward["clusters"][0];
    assert_eq!(cluster["lb_policy"], "round robin");
    let endpoint = &cluster["endpoints"][0];
    assert_eq!(
        (&endpoint["health"], &endpoint["connectivity"]),
        (&"unknown".into(), &"ready".into())
    );
    let nowhere = explained(&scene, "/nowhere", "1").await;
    assert!(nowhere.action.is_none() && nowhere.routes.len() == 3);
    assert_eq!(echo.served.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explanation_tells_what_filters_would_do_and_of_none_that_do_nothing() {
    let echo = Echo::start("echo").await;
    let fault = HttpFault {
        abort: Some(FaultAbort {
            percentage: Some(FractionalPercent {
                numerator: 25,
                ..FractionalPercent::default()
            }),
            error_type: Some(ErrorType::HttpStatus(503)),
            ..FaultAbort::default()
        }),
        ..HttpFault::default()
    };
    let routes = vec![
        saying(prefix("/tested", forward("c", |_| {})), "fault", &fault),
        prefix("/", forward("c", |_| {})),
    ];
    let scene = Scene::start(Wire::Http1, host(routes)).await;
    let buffer = Buffer {
        max_request_bytes: Some(UInt32Value { value: 9 }),
    };
    scene.plane.set([listener_with(vec![
        filter("fault", &HttpFault::default()),
        filter("buffer", &buffer),
    ])]);
    scene.serve("c", &[&echo]);
    scene.get("/").await;
    for (path, expected) in [
        ("/tested", &["filter fault: answers 503 for 25 %"][..]),
        ("/", &[]),
    ] {
        let text = explained(&scene, path, "1").await.to_string();
        let filters: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("filter "))
            .collect();
        let buffer =
            "filter buffer: waits for the request's body; one of more than 9 bytes gets 413";
        assert_eq!(filters, [expected, &[buffer]].concat(), "{text}");
    }
}
