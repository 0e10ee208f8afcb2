//! Requests that no server is asked about.

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{DataSource, RuntimeFractionalPercent, data_source::Specifier},
            route::v3::{
                DirectResponseAction, NonForwardingAction, RedirectAction,
                redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier},
                route::Action,
                route_action::ClusterSpecifier,
            },
        },
        extensions::filters::{
            common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
            http::{
                fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
                local_ratelimit::v3::LocalRateLimit,
            },
        },
        r#type::v3::{FractionalPercent, TokenBucket},
    },
    google::protobuf::Duration as DurationProto,
};
use futures_util::FutureExt as _;
use http::StatusCode;
use mesh_tower::{ErrorKind, Origin};
use tower::ServiceExt as _;

use super::{
    echo::Echo,
    filters::{filter, saying},
    resources::{TARGET, listener_with},
    scene::{Scene, Wire, add_header, forward, host, prefix},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_answered_here() {
    for wire in Wire::ALL {
        let redirect = RedirectAction {
            host_redirect: "elsewhere".into(),
            scheme_rewrite_specifier: Some(SchemeRewriteSpecifier::HttpsRedirect(true)),
            path_rewrite_specifier: Some(PathRewriteSpecifier::PrefixRewrite("/new".into())),
            response_code: 4,
            ..RedirectAction::default()
        };
        let mut route = prefix("/old", Action::Redirect(redirect));
        route.response_headers_to_add = vec![add_header("x-why", "%ROUTE_NAME%")];
        let scene = Scene::start(wire, host(vec![route])).await;
        let reply = scene.get("/old/page?q=1").await;
        assert_eq!(
            reply.header("location"),
            ["https://elsewhere/new/page?q=1"],
            "{wire:?}"
        );
        assert_eq!(reply.header("x-why"), ["from /old"]);
        match wire {
            // HTTP to gRPC: 308 is UNKNOWN.
            Wire::Grpc => assert_eq!((reply.status, reply.grpc()), (StatusCode::OK, Some("2"))),
            _ => assert_eq!(reply.status, StatusCode::PERMANENT_REDIRECT),
        }
    }
}

/// A call that is dropped as soon as it waits.
async fn give_up(scene: &Scene, path: &str, headers: &[(&str, &str)]) {
    let mut request = scene.wire.request(path);
    for (name, value) in headers {
        let name = http::HeaderName::try_from(*name).unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let service = scene.service().await;
    let call = service.oneshot(request).now_or_never();
    assert!(call.is_none(), "it waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_whose_callers_go_away_before_a_cluster_has_them_are_counted() {
    for wire in Wire::ALL {
        let delay = HttpFault {
            delay: Some(FaultDelay {
                percentage: Some(FractionalPercent {
                    numerator: 100,
                    ..FractionalPercent::default()
                }),
                fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(DurationProto {
                    seconds: 3_600,
                    nanos: 0,
                })),
            }),
            ..HttpFault::default()
        };
        let to_c = || forward("c", |_| {});
        let named = forward("c", |action| {
            action.cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x-to".into()));
        });
        let routes = vec![
            saying(prefix("/delayed", to_c()), "fault", &delay),
            prefix("/named", named),
            prefix("/known", to_c()),
        ];
        let server = Echo::start("server").await;
        let scene = Scene::start(wire, host(routes)).await;
        scene
            .plane
            .set([listener_with(vec![filter("fault", &HttpFault::default())])]);
        // There is no configuration before there is the cluster.
        give_up(&scene, "/known", &[]).await;
        scene.serve("c", &[&server]);
        scene.get("/known").await;
        give_up(&scene, "/delayed", &[]).await;
        give_up(&scene, "/named", &[("x-to", "unknown")]).await;
        let scraped = scene.metrics().await;
        let line = format!(
            "mesh_client_local_replies_total{{listener=\"{TARGET}\",reason=\"cancelled\",\
             code=\"cancelled\"}} 3\n"
        );
        assert!(scraped.contains(&line), "{line} is missing in\n{scraped}");
        let rows = scraped.matches("mesh_client_local_replies_total{").count();
        assert_eq!(rows, 1, "{scraped}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_response_is_answered_here() {
    for wire in Wire::ALL {
        let direct = DirectResponseAction {
            status: 503,
            body: Some(DataSource {
                specifier: Some(Specifier::InlineString("closed for today".into())),
                ..DataSource::default()
            }),
            ..DirectResponseAction::default()
        };
        let routes = vec![prefix("/", Action::DirectResponse(direct))];
        let scene = Scene::start(wire, host(routes)).await;
        let reply = scene.get("/").await;
        match wire {
            Wire::Grpc => {
                assert_eq!((reply.status, reply.grpc()), (StatusCode::OK, Some("14")));
                assert_eq!(reply.header("grpc-message"), ["closed for today"]);
            }
            _ => {
                assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
                assert_eq!(reply.header("content-type"), ["text/plain"]);
                assert_eq!(reply.body, "closed for today");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_for_servers_fails_its_calls_and_says_why() {
    for wire in Wire::ALL {
        let action = Action::NonForwardingAction(NonForwardingAction {});
        let scene = Scene::start(wire, host(vec![prefix("/", action)])).await;
        let error = scene.try_with("/", &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{wire:?}");
        assert_eq!(error.origin(), Origin::ControlPlane);
        let text = error.to_string();
        assert!(
            text.contains("route from /") && text.contains("non_forwarding_action"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_no_cluster_has_are_counted_with_their_reason() {
    let all = FractionalPercent {
        numerator: 100,
        ..FractionalPercent::default()
    };
    let fault = HttpFault {
        abort: Some(FaultAbort {
            percentage: Some(all),
            error_type: Some(ErrorType::HttpStatus(429)),
            ..FaultAbort::default()
        }),
        ..HttpFault::default()
    };
    let always = RuntimeFractionalPercent {
        default_value: Some(all),
        ..RuntimeFractionalPercent::default()
    };
    let once = LocalRateLimit {
        stat_prefix: "once".into(),
        token_bucket: Some(TokenBucket {
            max_tokens: 1,
            fill_interval: Some(DurationProto {
                seconds: 3600,
                nanos: 0,
            }),
            ..TokenBucket::default()
        }),
        filter_enabled: Some(always.clone()),
        filter_enforced: Some(always),
        ..LocalRateLimit::default()
    };
    let neutral = LocalRateLimit {
        stat_prefix: "neutral".into(),
        ..LocalRateLimit::default()
    };
    for wire in Wire::ALL {
        let redirect = RedirectAction {
            host_redirect: "elsewhere".into(),
            ..RedirectAction::default()
        };
        let direct = DirectResponseAction {
            status: 204,
            ..DirectResponseAction::default()
        };
        let to_c = || forward("c", |_| {});
        let routes = vec![
            prefix("/moved", Action::Redirect(redirect)),
            prefix("/empty", Action::DirectResponse(direct)),
            saying(prefix("/broken", to_c()), "fault", &fault),
            saying(prefix("/scarce", to_c()), "limit", &once),
            prefix("/known", to_c()),
        ];
        let server = Echo::start("server").await;
        let scene = Scene::start(wire, host(routes)).await;
        scene.plane.set([listener_with(vec![
            filter("fault", &HttpFault::default()),
            filter("limit", &neutral),
        ])]);
        scene.serve("c", &[&server]);
        for path in [
            "/known", "/moved", "/empty", "/broken", "/scarce", "/scarce",
        ] {
            scene.get(path).await;
        }
        let error = scene.try_with("/nowhere", &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRoute);
        let scraped = scene.metrics().await;
        let is_grpc = wire == Wire::Grpc;
        for (reason, of_http, of_grpc) in [
            ("redirect", "3xx", "UNKNOWN"),
            ("direct_response", "2xx", "UNKNOWN"),
            ("aborted", "4xx", "UNAVAILABLE"),
            ("rate_limited", "4xx", "UNAVAILABLE"),
            ("no_route", "unroutable", "unroutable"),
        ] {
            let code = if is_grpc { of_grpc } else { of_http };
            let line = format!(
                "mesh_client_local_replies_total{{listener=\"{TARGET}\",reason=\"{reason}\",\
                 code=\"{code}\"}} 1\n"
            );
            assert!(scraped.contains(&line), "{line} is missing in\n{scraped}");
        }
        let code = if is_grpc { "OK" } else { "2xx" };
        let line = format!("mesh_client_requests_total{{cluster=\"c\",code=\"{code}\"}} 2\n");
        assert!(scraped.contains(&line), "the others: {scraped}");
        let rows = scraped.matches("mesh_client_local_replies_total{").count();
        assert_eq!(rows, 5, "{scraped}");
    }
}
