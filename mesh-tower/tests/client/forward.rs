//! What a route asks of one forwarded request, and what it answers itself.

use mesh_core::config::{
    AppendAction, Cluster, DirectResponse, Forward, ForwardExtras, HashPolicy, HashSource,
    HeaderChanges, HeaderMutations, HeaderValue, HostRewrite, PathMatcher, PathPattern,
    PathRewrite, Redirect, RedirectPath, RingHash, Route, RouteAction, RouteMatch, ValueTemplate,
};

use super::*;

/// A route from `/a`, changed.
fn route(action: RouteAction, change: impl FnOnce(&mut Route)) -> Route {
    let path = PathMatcher::new(PathPattern::Prefix("/a".into()));
    let mut route = Route::new("a", RouteMatch::path(path), action);
    change(&mut route);
    route
}

fn to_cluster(change: impl FnOnce(&mut Forward, &mut ForwardExtras)) -> RouteAction {
    let mut forward = Forward::to("a");
    let mut extras = ForwardExtras::default();
    change(&mut forward, &mut extras);
    forward.extras = Some(Box::new(extras));
    RouteAction::Forward(forward)
}

fn service(stub: Stub, endpoints: u16, route: Route) -> (HandMade, MeshService<Stub>) {
    service_over(stub, endpoints, route, |_| {})
}

fn service_over(
    stub: Stub,
    endpoints: u16,
    route: Route,
    change: impl FnOnce(&mut Cluster),
) -> (HandMade, MeshService<Stub>) {
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, stub);
    let tree = tree("l").cluster_with("a", &addresses(endpoints), change);
    config.publish(&tree.add_route(route).build());
    (config, service)
}

fn add(name: &'static str, value: &str, is_response: bool) -> HeaderValue {
    HeaderValue {
        name: http::HeaderName::from_static(name),
        value: ValueTemplate::new(value, is_response).unwrap(),
        action: AppendAction::Append,
        keep_empty: false,
    }
}

fn values(headers: &http::HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values
        .map(|value| value.to_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn every_attempt_sends_the_request_as_it_was_changed_once() {
    let (mut unsent, mut reset) = (true, true);
    let stub = Stub::answering({
        let first = std::sync::Mutex::new(move || match (unsent, reset) {
            (true, _) => {
                unsent = false;
                0
            }
            (_, true) => {
                reset = false;
                1
            }
            _ => 2,
        });
        move |asked| match (first.lock().unwrap())() {
            0 => Answer::unsent(asked),
            1 => Answer::reset(),
            _ => Answer::status(200),
        }
    });
    let log = stub.log();
    let action = to_cluster(|forward, extras| {
        forward.retry = Some(retries("reset", 1));
        extras.path_rewrite = Some(PathRewrite::Prefix("/b".into()));
        extras.host_rewrite = Some(HostRewrite::Literal("other:81".into()));
        extras.append_x_forwarded_host = true;
    });
    let route = route(action, |route| {
        let mut headers = HeaderMutations::default();
        headers.request.add = vec![add("x-from", "%REQ(:path)%", false)];
        headers.request.remove = vec![http::HeaderName::from_static("x-secret")];
        route.headers = Some(Box::new(headers));
    });
    let (_config, service) = service(stub, 3, route);
    let mut request = get("/a/c?q=1");
    let headers = request.headers_mut();
    headers.insert("x-secret", "1".parse().unwrap());
    headers.insert("host", "l".parse().unwrap());
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(log.uris(), ["http://other:81/b/c?q=1"; 3]);
    for headers in log.headers() {
        assert_eq!(values(&headers, "x-from"), ["/a/c?q=1"]);
        assert_eq!(values(&headers, "x-forwarded-host"), ["l"]);
        assert!(!headers.contains_key("x-secret"));
        assert!(
            !headers.contains_key("host"),
            "it would name the old authority"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirect_asks_nobody_and_takes_no_permit() {
    let stub = Stub::answering(|_| Answer::status(200));
    let log = stub.log();
    let redirect = Redirect {
        path: Some(RedirectPath::Prefix("/new".into())),
        host: Some("elsewhere".into()),
        status: 308,
        ..Redirect::default()
    };
    let route = route(RouteAction::Redirect(Box::new(redirect)), |route| {
        let mut headers = HeaderMutations::default();
        headers.response.add = vec![add("x-why", "%RESPONSE_CODE% %ROUTE_NAME%", true)];
        route.headers = Some(Box::new(headers));
    });
    let (_config, service) = service_over(stub, 1, route, |cluster| {
        cluster.circuit_breakers.max_requests = 0;
    });
    let response = service.clone().oneshot(get("/a/x?q")).await.unwrap();
    assert_eq!(response.status(), StatusCode::PERMANENT_REDIRECT);
    assert_eq!(response.headers()["location"], "http://elsewhere/new/x?q");
    assert_eq!(response.headers()["x-why"], "308 a");
    assert!(
        response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .is_empty()
    );

    // What a gRPC caller of Envoy gets.
    let response = service.oneshot(grpc("/a/x")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "2");
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert!(log.ports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_direct_response_has_its_body_and_is_a_status_to_grpc() {
    let stub = Stub::answering(|_| Answer::status(200));
    let log = stub.log();
    let direct = DirectResponse {
        status: 503,
        body: Bytes::from_static("zu spät\n".as_bytes()),
    };
    let route = route(RouteAction::DirectResponse(Box::new(direct)), |_| {});
    let (_config, service) = service(stub, 1, route);
    let response = service.clone().oneshot(get("/a")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["content-type"], "text/plain");
    assert_eq!(response.headers()["content-length"], "9");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "zu spät\n".as_bytes());

    let mut head = get("/a");
    *head.method_mut() = http::Method::HEAD;
    let response = service.clone().oneshot(head).await.unwrap();
    assert_eq!(response.headers()["content-length"], "9");
    assert!(http_body::Body::is_end_stream(response.body()));

    let response = service.oneshot(grpc("/a")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "zu sp%C3%A4t%0A");
    assert!(http_body::Body::is_end_stream(response.body()));
    assert!(log.ports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_response_is_changed_with_values_of_the_request_that_was_sent() {
    let stub = Stub::answering(|_| {
        let mut response = Response::new(Full::default());
        response
            .headers_mut()
            .insert("server", "secret".parse().unwrap());
        Answer::Response(response)
    });
    let action = to_cluster(|_, extras| {
        extras.path_rewrite = Some(PathRewrite::Prefix("/b".into()));
    });
    let route = route(action, |route| {
        route.headers = Some(Box::new(HeaderMutations {
            request: HeaderChanges::default(),
            response: HeaderChanges {
                remove: vec![http::header::SERVER],
                add: vec![add(
                    "x-info",
                    "%RESPONSE_CODE% %REQ(:path)% %REQ(x-me)% %UPSTREAM_CLUSTER%",
                    true,
                )],
            },
        }));
    });
    let (_config, service) = service(stub, 1, route);
    let mut request = get("/a?q");
    request.headers_mut().insert("x-me", "I".parse().unwrap());
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.headers()["x-info"], "200 /b?q I a");
    assert!(!response.headers().contains_key("server"));
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_a_cookie_gets_one_and_comes_back_to_its_endpoint() {
    let stub = Stub::answering(|_| Answer::status(200));
    let log = stub.log();
    let action = to_cluster(|_, extras| {
        let source = HashSource::Cookie {
            name: "who".into(),
            ttl: Some(Duration::from_secs(60)),
            path: "/".into(),
            attributes: Vec::new(),
        };
        extras.hash_policy = vec![HashPolicy {
            source,
            terminal: false,
        }];
    });
    let (_config, service) = service_over(stub, 20, route(action, |_| {}), |cluster| {
        cluster.lb_policy = LbPolicy::RingHash(RingHash::default());
    });
    for _ in 0..5 {
        let response = service.clone().oneshot(get("/a")).await.unwrap();
        let cookie = response.headers()["set-cookie"].to_str().unwrap();
        assert!(
            cookie.ends_with("; Max-Age=60; Path=/; HttpOnly"),
            "{cookie}"
        );
        let (pair, _) = cookie.split_once(';').unwrap();
        let first = *log.ports().last().unwrap();
        for _ in 0..5 {
            let mut request = get("/a");
            request
                .headers_mut()
                .insert("cookie", pair.parse().unwrap());
            let response = service.clone().oneshot(request).await.unwrap();
            assert!(!response.headers().contains_key("set-cookie"));
            assert_eq!(*log.ports().last().unwrap(), first);
        }
    }
}
