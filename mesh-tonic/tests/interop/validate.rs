//! Envoy's own verdict on everything that the control plane emits, for every class of client.
//!
//! What would come over ADS is put into one static bootstrap, routes and endpoints inline, so that
//! `envoy --mode validate` checks all of it and not only what it subscribes to first.

use std::{collections::BTreeMap, fs, process::Output, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            bootstrap::v3::{Bootstrap, bootstrap::StaticResources},
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            core::v3::{
                Address, Node, SocketAddress, TransportSocket, address::Address as AnyAddress,
                socket_address::PortSpecifier, transport_socket,
            },
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
            route::v3::RouteConfiguration,
        },
        extensions::{
            filters::network::http_connection_manager::v3::{
                HttpConnectionManager, http_connection_manager::RouteSpecifier,
            },
            transport_sockets::tls::v3::{
                CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret,
                UpstreamTlsContext,
                common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            },
        },
        service::discovery::v3::{
            DiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::protobuf::Any,
};
use prost::{Message, Name};
use tokio::{process::Command, time::timeout};
use tokio_stream::StreamExt;

use super::{MUST_HAPPEN, World, peer};

/// Everything that the configuration can say, with what is most likely to be refused.
const CONFIG: &str = "
kind: ServiceEntry
metadata: {name: greeter}
spec:
  hosts: [greeter.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 8080, name: grpc, protocol: GRPC}
  - {number: 8081, name: http, protocol: HTTP}
  endpoints:
  - {address: 127.0.0.1, ports: {grpc: 5001, http: 5002}, labels: {version: v1}, weight: 3,
     locality: a/b/c, serviceAccount: greeter}
  - {address: 127.0.0.2, ports: {grpc: 5001, http: 5002}, labels: {version: v2},
     serviceAccount: other}
---
kind: ServiceEntry
metadata: {name: empty}
spec:
  hosts: [empty.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
---
kind: Service
metadata: {name: six}
spec: {ports: [{port: 80, name: http, targetPort: 9000}]}
---
kind: EndpointSlice
metadata: {name: six-1, labels: {kubernetes.io/service-name: six}}
addressType: IPv6
ports: [{name: http, port: 9000}]
endpoints: [{addresses: ['::1'], conditions: {ready: true}}]
---
kind: DestinationRule
metadata: {name: greeter}
spec:
  host: greeter
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool: {tcp: {connectTimeout: 250ms}, http: {http2MaxRequests: 7}}
    retryBudget: {percent: 12.5, minRetryConcurrency: 2}
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {tls: {mode: DISABLE}}}
---
kind: DestinationRule
metadata: {name: six}
spec:
  host: six
  trafficPolicy:
    loadBalancer:
      consistentHash: {httpCookie: {name: user, path: /, ttl: 0s}, maglev: {tableSize: 251}}
      localityLbSetting: {distribute: [{from: '*', to: {'*': 100}}]}
    connectionPool:
      tcp:
        maxConnections: 100
        maxConnectionDuration: 1h
        tcpKeepalive: {probes: 3, time: 60s, interval: 10s}
      http: {http1MaxPendingRequests: 8, maxRequestsPerConnection: 9, maxRetries: 2, idleTimeout: 15s,
             h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 50}
    outlierDetection: {consecutiveErrors: 3, interval: 30s, baseEjectionTime: 30s, maxEjectionPercent: 50,
                       minHealthPercent: 30}
---
apiVersion: mesh/v1
kind: BalancerPolicy
metadata: {name: greeter}
spec: {host: greeter, subset: v1, panicThreshold: 20, overprovisioningFactor: 150,
       maxConnectionsPerEndpoint: 2}
---
kind: Service
metadata: {name: sticky}
spec:
  ports: [{port: 80, name: http}]
  sessionAffinity: ClientIP
  trafficDistribution: PreferClose
---
apiVersion: mesh/v1
kind: BalancerPolicy
metadata: {name: sticky}
spec: {host: sticky, adaptiveConcurrency: {maxConcurrency: 50}}
---
apiVersion: mesh/v1
kind: FilterPolicy
metadata: {name: servers}
spec:
  headers: {request: {remove: [x-debug], set: {x-a: '%REQ(x-b)%'}}, response: {add: {x-c: c}}}
  buffer: {maxRequestBytes: 65536}
---
apiVersion: mesh/v1
kind: FilterPolicy
metadata: {name: clients}
spec:
  host: greeter
  headers: {response: {set: {x-c: c}, remove: [x-d]}}
  buffer: {maxRequestBytes: 4096}
  session: {header: x-session, strict: true}
---
apiVersion: mesh/v1
kind: FilterPolicy
metadata: {name: six}
spec: {host: six, session: {cookie: {name: stay, ttl: 1h, path: /a}}}
---
kind: DestinationRule
metadata: {name: sticky}
spec:
  host: sticky
  exportTo: ['.']
  trafficPolicy: {connectionPool: {http: {http2KeepAlive: {interval: 10s, timeout: 5s}}}}
---
kind: HTTPRoute
metadata: {name: sticky}
spec:
  parentRefs: [{group: '', kind: Service, name: sticky}]
  rules:
  - sessionPersistence: {absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
    filters: [{type: CORS, cors: {allowOrigins: ['*', 'https://*.example.com'], allowMethods: [GET], maxAge: 9}}]
    backendRefs: [{name: sticky, port: 80}]
---
kind: XBackendTrafficPolicy
metadata: {name: sticky}
spec:
  targetRefs: [{group: '', kind: Service, name: sticky}]
  sessionPersistence: {sessionName: own}
---
kind: VirtualService
metadata: {name: greeter}
spec:
  hosts: [greeter]
  http:
  - name: everything
    match:
    - uri: {prefix: /a}
      ignoreUriCase: true
      method: {exact: POST}
      authority: {prefix: greeter}
      headers: {x-a: {exact: a}, x-b: {prefix: b}, x-c: {regex: 'c+'}, x-d: {}}
      withoutHeaders: {x-e: {exact: e}}
    - uri: {regex: '/r/[0-9]+'}
    - uri: {exact: /greeter.v1.Greeter/SayHello}
    route:
    - {destination: {host: greeter, subset: v1}, weight: 0}
    - {destination: {host: greeter, subset: v2}, weight: 100}
    timeout: 1.5s
    retries: {attempts: 3, perTryTimeout: 200ms, retryOn: '5xx,gateway-error,reset,503,unavailable'}
  - {match: [{uri: {exact: /redirect}}], redirect: {uri: /x, authority: y, port: 8443, scheme: https, redirectCode: 307}}
  - {match: [{uri: {exact: /direct}}], directResponse: {status: 503, body: {string: no}}}
  - match: [{uri: {prefix: /extras}, queryParams: {q: {exact: x}, p: {}}, scheme: {regex: 'https?'}}]
    rewrite: {uriRegexRewrite: {match: '/(a+)', rewrite: '/\\1'}, authority: other}
    headers: {request: {set: {x: '%REQ(y)%'}, remove: [z]}, response: {add: {w: a}}}
    mirror: {host: greeter, subset: v2}
    mirrors: [{destination: {host: greeter}, percentage: {value: 12.5}}]
    route: [{destination: {host: greeter, subset: v1}, headers: {response: {remove: [v]}}}]
  - name: nowhere
    match: [{uri: {prefix: /nowhere}}]
    route: [{destination: {host: nowhere.example}}]
  - route:
    - {destination: {host: greeter, port: {number: 8081}}, weight: 1}
    - {destination: {host: greeter, subset: nowhere}, weight: 1}
---
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: PERMISSIVE}, portLevelMtls: {5001: {mode: STRICT}}}
---
kind: AuthorizationPolicy
metadata: {name: deny}
spec:
  action: DENY
  rules:
  - from: [{source: {notPrincipals: ['cluster.local/ns/default/*'], namespaces: [x]}}]
    to: [{operation: {paths: ['/admin*', '*.php', '*'], notMethods: [GET], ports: ['5001']}}]
---
kind: AuthorizationPolicy
metadata: {name: allow}
spec:
  rules:
  - from: [{source: {principals: ['*', 'cluster.local/ns/default/sa/frontend']}}]
    to: [{operation: {hosts: [greeter.default], notPaths: [/x]}}]
---
kind: AuthorizationPolicy
metadata: {name: unreadable, namespace: elsewhere}
spec: {rulez: []}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_accepts_everything_that_is_emitted() {
    let world = World::start_with(CONFIG, Duration::from_secs(3600)).await;
    let folder = tempfile::tempdir().unwrap();
    for (user_agent, listeners, clusters, least) in [
        ("envoy", Names::All, Names::All, (1, 6)),
        ("envoy", Names::Some(INBOUND), Names::All, (3, 6)),
        ("mesh-rs", Names::Some(DIALLED), Names::Routed, (4, 4)),
        ("mesh-rs", Names::Some(INBOUND), Names::Routed, (3, 0)),
        ("gRPC C-core", Names::Some(DIALLED), Names::Routed, (4, 4)),
        ("gRPC C-core", Names::Some(INBOUND), Names::Routed, (3, 0)),
    ] {
        let emitted = Emitted {
            world: &world,
            user_agent,
        };
        let bootstrap = emitted.bootstrap(listeners, clusters).await;
        let resources = bootstrap.static_resources.as_ref().unwrap();
        let counts = (resources.listeners.len(), resources.clusters.len());
        assert!(
            counts.0 >= least.0 && counts.1 >= least.1,
            "{user_agent}: {counts:?}"
        );
        let path = folder.path().join("bootstrap.pb");
        fs::write(&path, bootstrap.encode_to_vec()).unwrap();
        let run = Command::new(peer("bin/envoy").await)
            .args(["--mode", "validate", "--log-level", "error", "-c"])
            .arg(&path)
            .kill_on_drop(true)
            .output();
        let Output { status, stderr, .. } = timeout(MUST_HAPPEN, run).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{user_agent}: {text}");
    }
}

/// Services as clients dial them.
const DIALLED: &[&str] = &[
    "greeter.default",
    "greeter.default.svc.cluster.local:8081",
    "empty",
    "six.default.svc",
    "sticky.default",
];

/// Addresses that servers listen on: STRICT, PERMISSIVE, and not in the configuration.
const INBOUND: &[&str] = &[
    "mesh/inbound/127.0.0.1:5001",
    "mesh/inbound/127.0.0.1:5002",
    "mesh/inbound/127.0.0.9:1",
];

enum Names {
    /// A wildcard subscription.
    All,
    Some(&'static [&'static str]),
    /// The clusters that the routes name.
    Routed,
}

/// What one class of client gets.
struct Emitted<'w> {
    world: &'w World,
    user_agent: &'static str,
}

impl Emitted<'_> {
    async fn bootstrap(&self, listeners: Names, clusters: Names) -> Bootstrap {
        let names = match listeners {
            Names::Some(names) => names.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        let mut routes = BTreeMap::new();
        let mut held = Vec::new();
        for mut listener in self.fetch::<Listener>(names).await {
            unwrap_api_listener(&mut listener, held.len());
            for config in http_filters(&mut listener) {
                let mut manager = HttpConnectionManager::decode(&config.value[..]).unwrap();
                if let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier {
                    let name = rds.route_config_name.clone();
                    let found = self.fetch::<RouteConfiguration>(vec![name.clone()]).await;
                    let route = found.into_iter().next().expect("a route configuration");
                    routes.insert(name, route.clone());
                    manager.route_specifier = Some(RouteSpecifier::RouteConfig(route));
                }
                config.value = manager.encode_to_vec();
            }
            let chains = listener.filter_chains.iter_mut();
            chains
                .filter_map(|chain| chain.transport_socket.as_mut())
                .for_each(name_static_secrets);
            held.push(listener);
        }
        let names = match clusters {
            Names::Routed => routed(&routes),
            _ => Vec::new(),
        };
        let mut clusters = self.fetch::<Cluster>(names).await;
        for cluster in &mut clusters {
            let eds = cluster.eds_cluster_config.take().expect("an EDS cluster");
            let found = self.fetch::<ClusterLoadAssignment>(vec![eds.service_name]);
            cluster.load_assignment = found.await.into_iter().next();
            cluster.cluster_discovery_type =
                Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
            cluster
                .transport_socket
                .iter_mut()
                .for_each(name_static_secrets);
        }
        // All classes have the same ones, but only Envoy gets them in this form.
        let envoy = Emitted {
            user_agent: "envoy",
            ..*self
        };
        let names = ["default", "ROOTCA"].map(str::to_owned).to_vec();
        let secrets = envoy.fetch::<Secret>(names).await;
        assert_eq!(secrets.len(), 2);
        Bootstrap {
            node: Some(node(self.user_agent)),
            static_resources: Some(StaticResources {
                listeners: held,
                clusters,
                secrets,
            }),
            ..Bootstrap::default()
        }
    }

    /// The resources of one type; all of them when no name is given.
    async fn fetch<M: Message + Name + Default>(&self, names: Vec<String>) -> Vec<M> {
        let uri = format!("http://{}", self.world.xds_addr());
        let request = DiscoveryRequest {
            node: Some(node(self.user_agent)),
            type_url: M::type_url(),
            resource_names: names,
            ..DiscoveryRequest::default()
        };
        let mut stream = tonic::Request::new(tokio_stream::iter([request]).chain(
            // An open stream, as a client's is.
            tokio_stream::pending(),
        ));
        let token = format!("Bearer {}", self.world.token("greeter"));
        let metadata = stream.metadata_mut();
        metadata.insert("authorization", token.parse().unwrap());
        let fetched = async {
            let mut client = AggregatedDiscoveryServiceClient::connect(uri)
                .await
                .unwrap();
            let responses = client.stream_aggregated_resources(stream).await.unwrap();
            responses.into_inner().message().await.unwrap().unwrap()
        };
        let response = timeout(MUST_HAPPEN, fetched).await.expect("an answer");
        let decode = |any: &Any| M::decode(&any.value[..]).unwrap();
        response.resources.iter().map(decode).collect()
    }
}

fn node(user_agent: &str) -> Node {
    Node {
        id: "validate~ns/default/sa/greeter".into(),
        cluster: "validate".into(),
        user_agent_name: user_agent.into(),
        ..Node::default()
    }
}

fn address(port: u32) -> Address {
    Address {
        address: Some(AnyAddress::SocketAddress(SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    }
}

/// Makes an ordinary listener of a client's, with the same filters: only one may be an API listener
/// in a bootstrap.
fn unwrap_api_listener(listener: &mut Listener, index: usize) {
    let Some(api) = listener.api_listener.take() else {
        return;
    };
    listener.address = Some(address(20_000 + index as u32));
    listener.filter_chains = vec![FilterChain {
        filters: vec![Filter {
            name: "http".into(),
            config_type: api.api_listener.map(ConfigType::TypedConfig),
        }],
        ..FilterChain::default()
    }];
}

/// The connection managers in a listener.
fn http_filters(listener: &mut Listener) -> impl Iterator<Item = &mut Any> {
    let chains = listener.filter_chains.iter_mut();
    let chains = chains.chain(listener.default_filter_chain.iter_mut());
    let filters = chains.flat_map(|chain| chain.filters.iter_mut());
    filters.filter_map(|filter| match &mut filter.config_type {
        Some(ConfigType::TypedConfig(any)) if any.type_url == HttpConnectionManager::type_url() => {
            Some(any)
        }
        _ => None,
    })
}

/// The clusters that routes lead to, found as the text that they are in the encoded routes.
fn routed(routes: &BTreeMap<String, RouteConfiguration>) -> Vec<String> {
    let text = format!("{routes:?}");
    let names = text.split('"').filter(|part| part.starts_with("outbound|"));
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// Takes secrets from the bootstrap where they would come over SDS or from a provider that only gRPC
/// has: a validation connects to nobody.
fn name_static_secrets(socket: &mut TransportSocket) {
    let Some(transport_socket::ConfigType::TypedConfig(any)) = &mut socket.config_type else {
        return;
    };
    if any.type_url == UpstreamTlsContext::type_url() {
        let mut context = UpstreamTlsContext::decode(&any.value[..]).unwrap();
        context
            .common_tls_context
            .iter_mut()
            .for_each(clear_sources);
        any.value = context.encode_to_vec();
    } else if any.type_url == DownstreamTlsContext::type_url() {
        let mut context = DownstreamTlsContext::decode(&any.value[..]).unwrap();
        context
            .common_tls_context
            .iter_mut()
            .for_each(clear_sources);
        any.value = context.encode_to_vec();
    } else {
        panic!("{} is not TLS", any.type_url);
    }
}

fn clear_sources(context: &mut CommonTlsContext) {
    let secret = |name: &str| SdsSecretConfig {
        name: name.into(),
        sds_config: None,
    };
    let is_provided = context.tls_certificate_provider_instance.take().is_some();
    if is_provided || !context.tls_certificate_sds_secret_configs.is_empty() {
        context.tls_certificate_sds_secret_configs = vec![secret("default")];
    }
    match &mut context.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(held)) => {
            *held = secret("ROOTCA");
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined.validation_context_sds_secret_config = Some(secret("ROOTCA"));
            if let Some(default) = &mut combined.default_validation_context {
                default.ca_certificate_provider_instance = None;
            }
        }
        Some(ValidationContextType::ValidationContext(held)) => {
            held.ca_certificate_provider_instance = None;
            let combined = CombinedCertificateValidationContext {
                default_validation_context: Some(held.clone()),
                validation_context_sds_secret_config: Some(secret("ROOTCA")),
                ..CombinedCertificateValidationContext::default()
            };
            context.validation_context_type =
                Some(ValidationContextType::CombinedValidationContext(combined));
        }
        other => panic!("{other:?}"),
    }
}
