//! Filters against Envoy's: the same configuration, the same requests, the same answers.

use std::{sync::Arc, time::Instant};

use control_plane::{
    compile::{FAULT_FILTER, RATE_LIMIT_FILTER},
    encode::{self, ClientClass},
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter as ProtoFilter,
};
use http::{HeaderMap, Method, Request};
use mesh_core::{
    config::{
        Abort, ApiListener, DescriptorEntry, DescriptorSource, Fault, FaultAbort, FilterConfig,
        FilterOverrides, Forward, Fraction, HttpFilter, Listener, ListenerKind, LocalRateLimit,
        PathMatcher, PathPattern, RateLimit, RateLimitDescriptor, Route, RouteAction, RouteConfig,
        RouteMatch, RouteSource, RouterOptions, TokenBucket, VirtualHost,
    },
    filter::{FilterRequest, FilterStates, FilterTable, Run, Step},
    outcome::grpc_status_of,
    rng::SplitMix64,
    route::RequestView,
};
use prost::Message as _;

use super::{generate::CLUSTERS, proxy};

/// The filters of an Envoy's clients, as they are emitted.
fn emitted() -> Vec<ProtoFilter> {
    let api = ApiListener {
        routes: RouteSource::Rds("r".into()),
        max_stream_duration: None,
        stream_idle_timeout: None,
        filters: [].into(),
        router: RouterOptions::default(),
    };
    let listener = Listener {
        name: "l".into(),
        kind: ListenerKind::Api(api),
    };
    let listener = encode::listener(&listener, ClientClass::Envoy);
    let api = listener.api_listener.and_then(|api| api.api_listener);
    let manager = HttpConnectionManager::decode(&*api.expect("an API listener").value);
    let mut filters = manager.expect("a manager").http_filters;
    filters.pop();
    filters
}

fn abort(abort: Abort) -> FilterOverrides {
    let fault = Fault {
        abort: Some(FaultAbort {
            abort,
            percentage: Fraction::new(1, 1).expect("not zero"),
            denominator: 100,
        }),
        ..Fault::default()
    };
    FilterOverrides::of(FAULT_FILTER, FilterConfig::Fault(Arc::new(fault)))
}

fn limit() -> FilterOverrides {
    let bucket = |max_tokens| TokenBucket {
        max_tokens,
        tokens_per_fill: 1,
        fill_interval: std::time::Duration::from_secs(3600),
    };
    let mut limit = LocalRateLimit::new("l", bucket(5));
    limit.x_ratelimit_headers = true;
    limit.rate_limits = vec![RateLimit {
        stage: 0,
        entries: vec![DescriptorEntry {
            key: "user".into(),
            source: DescriptorSource::Header {
                name: http::HeaderName::from_static("x-user"),
                skip_if_absent: false,
            },
        }],
    }];
    limit.descriptors = vec![RateLimitDescriptor {
        entries: vec![("user".into(), "a".into())],
        token_bucket: bucket(2),
    }];
    let limit = FilterConfig::LocalRateLimit(Arc::new(limit));
    FilterOverrides::of(RATE_LIMIT_FILTER, limit)
}

fn config() -> RouteConfig {
    let routes = [
        ("/http", abort(Abort::Http(418))),
        ("/unavailable", abort(Abort::Http(503))),
        ("/grpc", abort(Abort::Grpc(8))),
        ("/limit", limit()),
    ];
    let routes = routes.into_iter().map(|(path, says)| {
        let path = PathMatcher::new(PathPattern::Exact(path.into()));
        let forward = RouteAction::Forward(Forward::to(CLUSTERS[0]));
        let mut route = Route::new("", RouteMatch::path(path), forward);
        route.filters = says.boxed();
        route
    });
    RouteConfig::new("r", vec![VirtualHost::new("v", ["*"], routes.collect())])
}

/// What callers see: status, gRPC status, and what is left of a limit.
type Seen = (u16, Option<String>, [Option<String>; 2]);

fn seen(status: u16, headers: &HeaderMap) -> Seen {
    let get = |name: &str| Some(headers.get(name)?.to_str().expect("text").to_owned());
    let left = ["x-ratelimit-limit", "x-ratelimit-remaining"].map(get);
    (status, get("grpc-status"), left)
}

fn ours(table: &FilterTable, config: &RouteConfig, request: &Request<()>, is_grpc: bool) -> Seen {
    let path = request.uri().path();
    let mut routes = config.virtual_hosts[0].routes.iter();
    let number = routes.position(|route| route.matcher.path.is_match(path));
    let number = number.expect("a route") as u32;
    let filters = table.route(number).and_then(|route| route.of(Some(0)));
    let mut run = Run::new(filters.expect("filters"));
    let asked = FilterRequest {
        view: RequestView::new(request.method(), request.uri(), "a", request.headers()),
        route: "",
        cluster: CLUSTERS[0],
        remote: None,
        peer: None,
    };
    let step = run.advance(&asked, Instant::now(), &mut SplitMix64::new(1));
    let passed = run.end();
    let (mut status, mut headers) = (http::StatusCode::OK, HeaderMap::new());
    if let Step::Answer(answer, _) = step {
        (status, headers) = (answer.status, answer.headers);
        if is_grpc {
            let grpc = answer
                .grpc_status
                .unwrap_or_else(|| grpc_status_of(status.as_u16()));
            headers.insert("grpc-status", grpc.into());
            status = http::StatusCode::OK;
        }
    }
    passed.respond(status, &mut headers);
    seen(status.as_u16(), &headers)
}

#[tokio::test]
async fn faults_and_limits_answer_as_envoys_do() {
    let folder = tempfile::tempdir().unwrap();
    let config = config();
    let encoded = encode::route_config(&config, ClientClass::Envoy);
    let (_envoy, address) = proxy::envoy(folder.path(), encoded, emitted()).await;
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let neutral = LocalRateLimit {
        filter_enabled: None,
        token_bucket: None,
        ..LocalRateLimit::new("n", limit_bucket())
    };
    let filters = [
        HttpFilter::new(FAULT_FILTER, FilterConfig::Fault(Arc::default())),
        HttpFilter::new(
            RATE_LIMIT_FILTER,
            FilterConfig::LocalRateLimit(Arc::new(neutral)),
        ),
    ];
    let host = &config.virtual_hosts[0];
    let mut states = FilterStates::new(1);
    let table = FilterTable::compile("l", &filters, &config, host, |_| Some(0), &mut states);
    let paths = ["/http", "/unavailable", "/grpc"];
    let limited = [Some("a"), Some("a"), Some("a"), Some("b"), None, None, None];
    let faults = paths.iter().map(|path| (*path, None));
    let requests = faults.chain(limited.map(|user| ("/limit", user)));
    for (path, user) in requests {
        for is_grpc in [false, true] {
            let mut request = Request::builder()
                .method(Method::POST)
                .uri(format!("http://a{path}"));
            if is_grpc {
                request = request.header("content-type", "application/grpc");
            }
            if let Some(user) = user {
                request = request.header("x-user", user);
            }
            let request = request.body(()).unwrap();
            let mine = ours(&table, &config, &request, is_grpc);
            client = client.ready().await.unwrap();
            let (response, _) = client.send_request(request, true).unwrap();
            let head = response.await.unwrap().into_parts().0;
            let theirs = seen(head.status.as_u16(), &head.headers);
            assert_eq!(mine, theirs, "{path} of {user:?}, gRPC: {is_grpc}");
        }
    }
}

fn limit_bucket() -> TokenBucket {
    TokenBucket {
        max_tokens: 1,
        tokens_per_fill: 1,
        fill_interval: std::time::Duration::from_secs(1),
    }
}
