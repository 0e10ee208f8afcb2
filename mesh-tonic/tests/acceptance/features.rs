//! What clusters and endpoints may say besides where to go: connections, sessions, slow start, several
//! addresses, clusters of clusters.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, LoadBalancingPolicy,
                circuit_breakers::Thresholds,
                cluster::{
                    ClusterDiscoveryType, CustomClusterType, LbConfig, LbPolicy,
                    RoundRobinLbConfig, SlowStartConfig,
                },
                load_balancing_policy::Policy,
            },
            core::v3::{
                Address, Http2ProtocolOptions, Pipe, RuntimeDouble, TypedExtensionConfig, address,
            },
            endpoint::v3::{
                ClusterLoadAssignment, LocalityLbEndpoints, endpoint::AdditionalAddress,
                lb_endpoint::HostIdentifier,
            },
        },
        extensions::{
            clusters::aggregate::v3::ClusterConfig,
            filters::{
                http::stateful_session::v3::StatefulSession,
                network::http_connection_manager::v3::{HttpFilter, http_filter},
            },
            http::stateful_session::cookie::v3::CookieBasedSessionState,
            load_balancing_policies::{
                random_subsetting::v3::RandomSubsetting, round_robin::v3::RoundRobin,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
        r#type::http::v3::Cookie,
    },
    google::protobuf::{Any, Duration as ProtoDuration, UInt32Value},
};
use futures_util::StreamExt as _;
use mesh_core::config::ClientPosition;
use mesh_examples::{
    greeter::{HelloRequest, greeter_client::GreeterClient, greeter_server::GreeterServer},
    ports::free_address,
};
use mesh_tonic::MeshExt as _;
use mesh_tower::{Mesh, telemetry::Telemetry};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, metadata::AsciiMetadataValue};

use super::{
    Backend, Client, Held,
    balance::load,
    becomes, call, dial, eventually, member_with,
    plane::Plane,
    resources::{
        CDS, EDS, Named, TARGET, any, cluster, dns_cluster, eds_cluster, endpoint, endpoints,
        listener, listener_with, route_to,
    },
    scenarios::{Row, refused},
    world::MUST_HAPPEN,
};

/// Policies that a cluster names by `lb_policy`.
const POLICIES: [LbPolicy; 5] = [
    LbPolicy::RoundRobin,
    LbPolicy::LeastRequest,
    LbPolicy::Random,
    LbPolicy::RingHash,
    LbPolicy::Maglev,
];

/// Adds the rows.
pub(crate) async fn rows(rows: &mut Vec<Row>) {
    let mut add = |scenario, expected, got| {
        rows.push(Row {
            scenario,
            expected,
            got,
        });
    };
    add(
        "2 connections a host (A105), 2 streams a connection, 6 calls",
        "4 inside on 2 connections, then all",
        crowded().await,
    );
    add(
        "a session by cookie, 20 calls",
        "1 of 4 endpoints used",
        session().await,
    );
    add(
        "slow_start_config, a new endpoint beside an old one",
        "under a third",
        slow_start().await,
    );
    add(
        "an endpoint that hangs at one address and refuses at another",
        "v1",
        several_addresses().await,
    );
    let answers = "v1 v1 v1 v1 v1";
    add(
        "aggregate of an empty and a live cluster, each policy",
        answers,
        aggregates().await,
    );
    add("LOGICAL_DNS, each policy", answers, dns().await);
    add(
        "DeterministicSubsetting, 4 clients, 2 of 8 endpoints each",
        "8 endpoints used, each by one",
        subsets().await,
    );
    add(
        "an endpoint on a Unix socket, which is not supported",
        "v1, NACK, v1",
        refused(unix_socket()).await,
    );
}

fn with_endpoints(policy: Named, assignment: Named) -> [Named; 4] {
    [listener(), route_to("c1"), policy, assignment]
}

async fn crowded() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gate, inside) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
    let connections = Arc::<AtomicUsize>::default();
    let service = GreeterServer::new(Held {
        version: "v1",
        gate: Arc::clone(&gate),
        inside: Arc::clone(&inside),
        failing: 0,
    });
    let counted = Arc::clone(&connections);
    let server = tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener).inspect(move |_| {
            counted.fetch_add(1, SeqCst);
        });
        let mut server = tonic::transport::Server::builder().max_concurrent_streams(2);
        let served = server.add_service(service).serve_with_incoming(incoming);
        served.await.unwrap();
    });
    let plane = Plane::start().await;
    let limit = Thresholds {
        max_connections: Some(UInt32Value { value: 2 }),
        ..Thresholds::default()
    };
    // HTTP/2 as declared: another cluster looks by HTTP/1.1 first.
    let http2 = ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default());
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(http2),
            },
        )),
        ..HttpProtocolOptions::default()
    };
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    let crowded = Cluster {
        circuit_breakers: Some(CircuitBreakers {
            per_host_thresholds: vec![limit],
            ..CircuitBreakers::default()
        }),
        typed_extension_protocol_options: [(name, any(&options))].into(),
        ..eds_cluster("c1")
    };
    let crowded = (CDS, "c1", any(&crowded));
    plane.set(with_endpoints(crowded, endpoints("c1", &[address])));
    let (_mesh, client) = dial(&plane).await;
    let start = |mut client: Client| tokio::spawn(async move { call(&mut client).await });
    let calls: Vec<_> = (0..6).map(|_| start(client.clone())).collect();
    _ = eventually(|| inside.load(SeqCst) >= 4).await;
    let (held, connected) = (inside.load(SeqCst), connections.load(SeqCst));
    gate.add_permits(6);
    let mut answered = 0;
    for call in calls {
        answered += usize::from(call.await.unwrap() == "v1");
    }
    server.abort();
    let then = match answered {
        6 => "all".to_owned(),
        some => format!("{some}"),
    };
    format!("{held} inside on {connected} connections, then {then}")
}

async fn session() -> String {
    let mut backends = Vec::new();
    for _ in 0..4 {
        backends.push(Backend::start("v1").await);
    }
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let state = CookieBasedSessionState {
        cookie: Some(Cookie {
            name: "stay".into(),
            ..Cookie::default()
        }),
    };
    let filter = StatefulSession {
        session_state: Some(TypedExtensionConfig {
            name: "cookie".into(),
            typed_config: Some(any(&state)),
        }),
        ..StatefulSession::default()
    };
    let filter = HttpFilter {
        name: "session".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&filter))),
        ..HttpFilter::default()
    };
    let plane = Plane::start().await;
    plane.set(with_endpoints(cluster("c1"), endpoints("c1", &addresses)));
    plane.set([listener_with(vec![filter])]);
    let (_mesh, mut client) = dial(&plane).await;
    let mut cookie: Option<AsciiMetadataValue> = None;
    for _ in 0..20 {
        let mut request = Request::new(HelloRequest { name: "x".into() });
        if let Some(cookie) = &cookie {
            let metadata = request.metadata_mut();
            metadata.insert("cookie", cookie.clone());
        }
        match client.say_hello(request).await {
            Ok(reply) => {
                let set = reply.metadata().get("set-cookie");
                let pair = set.and_then(|set| set.to_str().ok()?.split(';').next());
                cookie = pair.map(|pair| pair.parse().unwrap()).or(cookie);
            }
            Err(status) => return status.to_string(),
        }
    }
    let used = backends.iter();
    let used = used.filter(|backend| backend.inside.load(SeqCst) > 0);
    format!("{} of 4 endpoints used", used.count())
}

/// After this time an endpoint has all of its share.
const WINDOW: Duration = Duration::from_secs(8);
/// So long a share is counted: the share of one that grows steeply at last is small then.
const COUNTED: Duration = Duration::from_secs(2);

async fn slow_start() -> String {
    let (old, new) = (Backend::start("v1").await, Backend::start("v2").await);
    let slow_start = SlowStartConfig {
        slow_start_window: Some(ProtoDuration {
            seconds: WINDOW.as_secs() as i64,
            nanos: 0,
        }),
        aggression: Some(RuntimeDouble {
            default_value: 0.25,
            runtime_key: "aggression".into(),
        }),
        ..SlowStartConfig::default()
    };
    let policy = Cluster {
        lb_config: Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
            slow_start_config: Some(slow_start),
        })),
        ..eds_cluster("c1")
    };
    let policy = (CDS, "c1", any(&policy));
    let plane = Plane::start().await;
    plane.set(with_endpoints(policy, endpoints("c1", &[old.address])));
    let (_mesh, client) = dial(&plane).await;
    let began = Instant::now();
    while began.elapsed() < WINDOW {
        load(&client, 1, 1).await;
        tokio::time::sleep(super::PAUSE).await;
    }
    plane.set([endpoints("c1", &[old.address, new.address])]);
    let began = Instant::now();
    while new.inside.load(SeqCst) == 0 && began.elapsed() < MUST_HAPPEN {
        load(&client, 1, 1).await;
    }
    let before = [&old, &new].map(|backend| backend.inside.load(SeqCst));
    let began = Instant::now();
    while began.elapsed() < COUNTED {
        load(&client, 4, 40).await;
    }
    let [old, new] = [(&old, before[0]), (&new, before[1])]
        .map(|(backend, before)| backend.inside.load(SeqCst) - before);
    match new * 100 / (old + new) {
        0 => "none".to_owned(),
        1..33 => "under a third".to_owned(),
        percent => format!("{percent} %"),
    }
}

async fn several_addresses() -> String {
    let live = Backend::start("v1").await;
    let refuses = free_address().unwrap();
    // Its one place is taken.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(0).unwrap();
    let hangs = full.local_addr().unwrap();
    let _first = TcpStream::connect(hangs).await.unwrap();
    let at = |address: SocketAddr| endpoint(&address.ip().to_string(), address.port());
    let mut all = at(hangs);
    if let Some(HostIdentifier::Endpoint(all)) = &mut all.host_identifier {
        for address in [refuses, live.address] {
            if let Some(HostIdentifier::Endpoint(other)) = at(address).host_identifier {
                all.additional_addresses.push(AdditionalAddress {
                    address: other.address,
                });
            }
        }
    }
    let assignment = ClusterLoadAssignment {
        cluster_name: "c1".into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![all],
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    };
    let plane = Plane::start().await;
    plane.set(with_endpoints(cluster("c1"), (EDS, "c1", any(&assignment))));
    let (_mesh, mut client) = dial(&plane).await;
    becomes(&mut client, "v1").await
}

async fn aggregates() -> String {
    let live = Backend::start("v1").await;
    let mut got = Vec::new();
    for policy in POLICIES {
        let members = ClusterConfig {
            clusters: vec!["empty".into(), "live".into()],
        };
        let aggregate = Cluster {
            name: "c1".into(),
            lb_policy: LbPolicy::ClusterProvided as i32,
            cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                name: "envoy.clusters.aggregate".into(),
                typed_config: Some(any(&members)),
            })),
            ..Cluster::default()
        };
        let member = |name: &'static str| {
            let member = Cluster {
                lb_policy: policy as i32,
                ..eds_cluster(name)
            };
            (CDS, name, any(&member))
        };
        let plane = Plane::start().await;
        plane.set([
            listener(),
            route_to("c1"),
            (CDS, "c1", any(&aggregate)),
            member("empty"),
            member("live"),
            endpoints("empty", &[]),
            endpoints("live", &[live.address]),
        ]);
        let (_mesh, mut client) = dial(&plane).await;
        got.push(becomes(&mut client, "v1").await);
    }
    got.join(" ")
}

async fn dns() -> String {
    let live = Backend::start("v1").await;
    let mut got = Vec::new();
    for policy in POLICIES {
        let plane = Plane::start().await;
        let (kind, name, cluster) = dns_cluster("c1", "localhost", live.address.port());
        let cluster = Cluster {
            lb_policy: policy as i32,
            ..prost::Message::decode(&cluster.value[..]).unwrap()
        };
        plane.set([listener(), route_to("c1"), (kind, name, any(&cluster))]);
        let (_mesh, mut client) = dial(&plane).await;
        got.push(becomes(&mut client, "v1").await);
    }
    got.join(" ")
}

/// Clients that know their place among all of them.
async fn subsets() -> String {
    let names = ["v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8"];
    let mut backends = Vec::new();
    for name in names {
        backends.push(Backend::start(name).await);
    }
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let mut subsetting = any(&RandomSubsetting {
        subset_size: Some(UInt32Value { value: 2 }),
        child_policy: policy_list(any(&RoundRobin::default())),
    });
    subsetting.type_url = "type.googleapis.com/mesh.v1.DeterministicSubsetting".into();
    let policy = Cluster {
        load_balancing_policy: policy_list(subsetting),
        ..eds_cluster("c1")
    };
    let plane = Plane::start().await;
    let policy = (CDS, "c1", any(&policy));
    plane.set(with_endpoints(policy, endpoints("c1", &addresses)));
    let mut users = BTreeMap::new();
    for index in 0..4 {
        let mesh = Mesh::builder()
            .bootstrap(member_with(&plane, &[]))
            .telemetry(Telemetry::disabled())
            .client_position(ClientPosition { index, count: 4 });
        let mesh = mesh.build().await.unwrap();
        let mut client = GreeterClient::new(mesh.channel(&format!("xds:///{TARGET}")).unwrap());
        let mut used = BTreeSet::new();
        let began = Instant::now();
        while used.len() < 2 && began.elapsed() < MUST_HAPPEN {
            used.insert(call(&mut client).await);
        }
        for _ in 0..20 {
            used.insert(call(&mut client).await);
        }
        for name in used {
            *users.entry(name).or_insert(0) += 1;
        }
    }
    match users.values().all(|users| *users == 1) {
        true => format!("{} endpoints used, each by one", users.len()),
        false => format!("{users:?}"),
    }
}

fn policy_list(policy: Any) -> Option<LoadBalancingPolicy> {
    Some(LoadBalancingPolicy {
        policies: vec![Policy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: "policy".into(),
                typed_config: Some(policy),
            }),
        }],
    })
}

fn unix_socket() -> Named {
    let mut on_socket = endpoint("127.0.0.1", 1);
    if let Some(HostIdentifier::Endpoint(endpoint)) = &mut on_socket.host_identifier {
        endpoint.address = Some(Address {
            address: Some(address::Address::Pipe(Pipe {
                path: "/run/greeter".into(),
                ..Pipe::default()
            })),
        });
    }
    let assignment = ClusterLoadAssignment {
        cluster_name: "c1".into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![on_socket],
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    };
    (EDS, "c1", any(&assignment))
}
