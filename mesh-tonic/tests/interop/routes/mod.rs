//! Our decisions against Envoy's: the same generated routes, the same generated requests.
//!
//! A configuration is generated, encoded as the control plane does it, and given to Envoy and to
//! the client's decoder. Each request goes through Envoy to servers that tell what they got, and
//! through the engine; both must come to the same route, cluster, path, authority, headers,
//! redirect or direct response. docs/envoy-deviations.md lists what is different on purpose.
//!
//! `MESH_ROUTES_REQUESTS` sets how many requests there are, `MESH_ROUTES_SEED` repeats a run.

mod filters;
mod generate;
mod grpc;
mod proxy;

use std::{collections::HashMap, fmt::Write as _, net::SocketAddr};

use control_plane::encode::{self, ClientClass};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request, StatusCode};
use mesh_core::{
    config::RouteConfig,
    rng::{Rng as _, SplitMix64},
    route::{
        Caller, ChosenCluster, Decision, DecisionAction, Features, Forwarding, RequestView,
        RouteTable, StreamLimits,
    },
};
use prost::Message as _;

use generate::{CLUSTERS, Generator, ROUTE};
use proxy::values;
pub(crate) use proxy::{any, listener, start};

/// Requests of a run.
const REQUESTS: usize = 5_000;
/// Requests of one configuration.
const REQUESTS_OF_CONFIG: usize = 2_500;
/// Requests in flight.
const IN_FLIGHT: usize = 100;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
    )
}

/// What comes of a request: one text for both sides.
fn outcome(status: StatusCode, headers: &HeaderMap, body: &str) -> String {
    let mut text = status.as_str().to_owned();
    for name in [ROUTE, "location"] {
        if let Some(value) = headers.get(name) {
            _ = write!(text, " {name}={}", value.to_str().unwrap());
        }
    }
    format!("{text}\n{}---\n{body}", values(headers))
}

async fn by_envoy(client: h2::client::SendRequest<bytes::Bytes>, request: Request<()>) -> String {
    let mut client = client.ready().await.unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let (head, mut stream) = response.await.unwrap().into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        _ = stream.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let body = String::from_utf8(body).unwrap();
    // What Envoy has to say in its own words is told by the status.
    let is_own = !head.headers.contains_key(ROUTE) || head.status == 503 && body != "body";
    outcome(head.status, &head.headers, if is_own { "" } else { &body })
}

struct Engine {
    config: RouteConfig,
    tables: HashMap<String, Option<RouteTable>>,
}

impl Engine {
    fn decide(&mut self, request: &Request<()>) -> String {
        let authority = request.uri().authority().unwrap().as_str();
        let config = &self.config;
        let table = self.tables.entry(authority.to_owned()).or_insert_with(|| {
            let index = |name: &mesh_core::ClusterName| {
                CLUSTERS
                    .iter()
                    .position(|c| *c == name.as_str())
                    .map(|i| i as u32)
            };
            RouteTable::compile_for(
                Features::ALL,
                config,
                authority,
                &StreamLimits::default(),
                &index,
            )
            .ok()
        });
        let view = RequestView::new(
            request.method(),
            request.uri(),
            authority,
            request.headers(),
        );
        let mut rng = SplitMix64::new(1);
        let decision = table
            .as_ref()
            .and_then(|table| table.decide(&view, &Caller::default(), &mut rng));
        let none = HeaderMap::new();
        let Some(decision) = decision else {
            return outcome(StatusCode::NOT_FOUND, &none, "");
        };
        let mut sent = request.clone();
        let mut headers = HeaderMap::new();
        let (status, body) = match &decision.action {
            DecisionAction::Forward(forwarding) => {
                match forward(&decision, forwarding, &view, &mut sent) {
                    Some(cluster) => {
                        headers.insert("x-c", "of-server".parse().unwrap());
                        headers.insert("x-d", "1".parse().unwrap());
                        (200, proxy::seen(cluster, &sent))
                    }
                    None => (503, String::new()),
                }
            }
            DecisionAction::Redirect { status, location } => {
                headers.insert("location", location.parse().unwrap());
                (*status, String::new())
            }
            DecisionAction::DirectResponse { status, body } => {
                (*status, String::from_utf8(body.to_vec()).unwrap())
            }
            DecisionAction::NoClusterHeader(_) => (503, String::new()),
            other => panic!("{other:?}"),
        };
        let status = StatusCode::from_u16(status).unwrap();
        let authority = sent.uri().authority().unwrap().as_str();
        let view = RequestView::new(sent.method(), sent.uri(), authority, sent.headers());
        decision.apply_response_headers(&view, status, &mut headers);
        outcome(status, &headers, &body)
    }
}

/// Changes the request into what the server gets; `None` when there is no such cluster.
fn forward(
    decision: &Decision<'_>,
    forwarding: &Forwarding<'_>,
    view: &RequestView<'_>,
    sent: &mut Request<()>,
) -> Option<&'static str> {
    let cluster = match &forwarding.cluster {
        ChosenCluster::Index(index) => CLUSTERS[*index as usize],
        ChosenCluster::Named(name) => CLUSTERS.into_iter().find(|known| known == name)?,
    };
    decision.apply_request_headers(view, sent.headers_mut());
    let original = view.uri.path_and_query().unwrap().as_str();
    let path = forwarding.path_and_query.as_deref().unwrap_or(original);
    let authority = forwarding.authority.as_deref().unwrap_or(view.authority);
    *sent.uri_mut() = format!("http://{authority}{path}").parse().unwrap();
    Some(cluster)
}

async fn connect(address: SocketAddr) -> h2::client::SendRequest<bytes::Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_requests_are_decided_as_envoy_decides_them() {
    let count = number("MESH_ROUTES_REQUESTS").map_or(REQUESTS, |count| count as usize);
    let seed = number("MESH_ROUTES_SEED").unwrap_or(1);
    println!("MESH_ROUTES_SEED={seed} MESH_ROUTES_REQUESTS={count}");
    let mut seeds = SplitMix64::new(seed);
    let mut forwarded = 0;
    let mut differences = Vec::new();
    for round in 0..count.div_ceil(REQUESTS_OF_CONFIG) {
        let mut generator = Generator(SplitMix64::new(seeds.next_u64()));
        let config = generator.config();
        let proto = encode::route_config(&config, ClientClass::Envoy);
        let (decoded, _) = mesh_xds_client::decode_route_config(&proto.encode_to_vec())
            .unwrap_or_else(|errors| panic!("{errors:?}"));
        assert_eq!(decoded, config, "what is encoded is decoded");
        let folder = tempfile::tempdir().unwrap();
        let (_envoy, address) = proxy::envoy(folder.path(), proto, Vec::new()).await;
        let client = connect(address).await;
        let mut engine = Engine {
            config: decoded,
            tables: HashMap::new(),
        };
        let requests: Vec<_> = (0..count.min(REQUESTS_OF_CONFIG))
            .map(|_| generator.request())
            .collect();
        let answers = stream::iter(&requests)
            .map(|request| by_envoy(client.clone(), request.clone()))
            .buffered(IN_FLIGHT)
            .collect::<Vec<_>>()
            .await;
        for (request, theirs) in requests.iter().zip(answers) {
            let ours = engine.decide(request);
            forwarded += usize::from(ours.starts_with("200"));
            if ours != theirs {
                let routes = &engine.tables[request.uri().authority().unwrap().as_str()];
                let routes = routes
                    .as_ref()
                    .map_or_else(String::new, ToString::to_string);
                let at =
                    format!("round {round}: {request:?}\nours {ours}\nEnvoy's {theirs}\n{routes}");
                differences.push(at);
            }
        }
    }
    let first: Vec<_> = differences.iter().take(3).map(String::as_str).collect();
    assert!(
        differences.is_empty(),
        "seed {seed}: {} of {count} differ\n{}",
        differences.len(),
        first.join("\n=====\n")
    );
    assert!(
        forwarded > count / 10,
        "{forwarded} of {count} reach a cluster"
    );
}
