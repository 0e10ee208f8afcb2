//! Requests that no server is asked about.

use envoy_types::pb::envoy::config::{
    core::v3::{DataSource, data_source::Specifier},
    route::v3::{
        DirectResponseAction, NonForwardingAction, RedirectAction,
        redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier},
        route::Action,
    },
};
use http::StatusCode;
use mesh_tower::{ErrorKind, Origin};

use super::scene::{Scene, Wire, add_header, host, prefix};

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
