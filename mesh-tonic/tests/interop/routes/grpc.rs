//! Our decisions against those of gRPC's C-core: routes in every dialect, out of a seed.
//!
//! Objects are generated in what gRPC understands of them, and served by the control plane. Each
//! call is made by a C-core client over xDS to servers that tell their names, and decided by the
//! engine from what was compiled; both must come to the same server, or to none.
//!
//! `MESH_GRPC_ROUTES_REQUESTS` sets how many calls there are, `MESH_GRPC_ROUTES_SEED` repeats a run.

use std::{fmt::Write as _, net::SocketAddr, process::Stdio, time::Duration};

use bytes::Bytes;
use control_plane::{
    compile::{CompileOptions, Compiled, compile},
    source::load_text,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri};
use mesh_core::{
    ClusterName,
    rng::{Rng as _, SplitMix64},
    route::{
        Caller, ChosenCluster, DecisionAction, Features, RequestView, RouteTable, StreamLimits,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    super::{PLAINTEXT, python, world::World},
    CLUSTERS, number,
};

/// Calls of a run.
const CALLS: usize = 400;
/// Rules of an object.
const RULES: usize = 10;
const SERVICES: [&str; 4] = ["a.A", "a.B", "ab.C", "A.a"];
const METHODS: [&str; 3] = ["X", "Y", "Xy"];
const HEADERS: [&str; 3] = ["x-a", "x-b", "x-c"];
const VALUES: [&str; 5] = ["a", "b", "ab", "A", "1"];

/// The dialects, in turn.
const DIALECTS: [fn(&mut Generator) -> String; 4] = [
    Generator::virtual_service,
    Generator::http_route,
    Generator::grpc_route,
    Generator::service_router,
];

struct Generator(SplitMix64);

impl Generator {
    fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    fn one(&mut self, of: &[&'static str]) -> &'static str {
        of[self.below(of.len())]
    }

    /// Rules, each made by `one` out of the cluster it leads to.
    fn rules(&mut self, one: fn(&mut Self, &'static str) -> String) -> String {
        let mut text = String::new();
        for _ in 0..RULES {
            let cluster = self.one(&CLUSTERS);
            text += &one(self, cluster);
        }
        text
    }

    fn path(&mut self) -> String {
        format!("/{}/{}", self.one(&SERVICES), self.one(&METHODS))
    }

    fn prefix(&mut self) -> String {
        let service = self.one(&SERVICES);
        match self.below(3) {
            0 => format!("/{service}/"),
            1 => format!("/{service}"),
            _ => format!("/{}", &service[..1]),
        }
    }

    fn regex(&mut self) -> &'static str {
        self.one(&["/a[.](A|B)/.*", "/a.*", "/.*/X", "/[a-z.]+/X?y?", "/a[.]A"])
    }

    fn value_regex(&mut self) -> &'static str {
        self.one(&["a.*", "[ab]+", "a|b", ".*,.*", "[0-9]"])
    }

    fn virtual_service(&mut self) -> String {
        let rules = self.rules(|this, cluster| {
            let uri = match this.below(4) {
                0 => format!("uri: {{exact: {}}}, ", this.path()),
                1 => format!("uri: {{regex: '{}'}}, ", this.regex()),
                _ => format!("uri: {{prefix: {}}}, ", this.prefix()),
            };
            let case = match (uri.contains("regex"), this.below(3)) {
                (false, 0) => "ignoreUriCase: true, ",
                _ => "",
            };
            let mut headers = String::new();
            for (list, at_most) in [("headers", 3), ("withoutHeaders", 2)] {
                let mut inside = String::new();
                for name in &HEADERS[..this.below(at_most)] {
                    let predicate = match this.below(4) {
                        0 => "{}".to_owned(),
                        1 => format!("{{prefix: '{}'}}", this.one(&VALUES)),
                        2 => format!("{{regex: '{}'}}", this.value_regex()),
                        _ => format!("{{exact: '{}'}}", this.one(&VALUES)),
                    };
                    _ = write!(inside, "{name}: {predicate}, ");
                }
                _ = write!(headers, "{list}: {{{inside}}}, ");
            }
            format!(
                "  - match: [{{{uri}{case}{headers}}}]\n    \
                 route: [{{destination: {{host: {cluster}}}}}]\n"
            )
        });
        format!(
            "kind: VirtualService\nmetadata: {{name: v}}\nspec:\n  hosts: [target]\n  http:\n{rules}"
        )
    }

    fn named_texts(&mut self) -> String {
        let mut inside = String::new();
        for name in &HEADERS[..self.below(3)] {
            let predicate = match self.below(3) {
                0 => format!("type: RegularExpression, value: '{}'", self.value_regex()),
                _ => format!("value: '{}'", self.one(&VALUES)),
            };
            _ = write!(inside, "{{name: {name}, {predicate}}}, ");
        }
        format!("headers: [{inside}]")
    }

    fn http_route(&mut self) -> String {
        let rules = self.rules(|this, cluster| {
            let path = match this.below(4) {
                0 => format!("type: Exact, value: {}", this.path()),
                1 => format!("type: RegularExpression, value: '{}'", this.regex()),
                _ => format!("value: {}", this.prefix()),
            };
            let headers = this.named_texts();
            format!(
                "  - matches: [{{path: {{{path}}}, {headers}}}]\n    \
                 backendRefs: [{{name: {cluster}, port: 80}}]\n"
            )
        });
        Self::gateway("HTTPRoute", &rules)
    }

    fn grpc_route(&mut self) -> String {
        let rules = self.rules(|this, cluster| {
            let (service, method) = (this.one(&SERVICES), this.one(&METHODS));
            let matched = match this.below(4) {
                0 => format!("service: {service}"),
                1 => format!("method: {method}"),
                2 => "type: RegularExpression, service: 'a.*'".to_owned(),
                _ => format!("service: {service}, method: {method}"),
            };
            let headers = this.named_texts();
            format!(
                "  - matches: [{{method: {{{matched}}}, {headers}}}]\n    \
                 backendRefs: [{{name: {cluster}, port: 80}}]\n"
            )
        });
        Self::gateway("GRPCRoute", &rules)
    }

    fn gateway(kind: &str, rules: &str) -> String {
        format!(
            "kind: {kind}\nmetadata: {{name: r}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: target}}]\n  rules:\n{rules}"
        )
    }

    fn service_router(&mut self) -> String {
        let routes = self.rules(|this, cluster| {
            let path = match this.below(4) {
                0 => format!("pathExact: {}", this.path()),
                1 => format!("pathRegex: '{}'", this.regex()),
                _ => format!("pathPrefix: {}", this.prefix()),
            };
            let case = match (path.contains("Regex"), this.below(3)) {
                (false, 0) => ", caseInsensitive: true",
                _ => "",
            };
            let mut headers = String::new();
            for name in &HEADERS[..this.below(3)] {
                let value = this.one(&VALUES);
                let predicate = match this.below(5) {
                    0 => "present: true".to_owned(),
                    1 => format!("prefix: '{value}'"),
                    2 => format!("suffix: '{value}'"),
                    3 => format!("regex: '{}'", this.value_regex()),
                    _ => format!("exact: '{value}'"),
                };
                let invert = if this.below(3) == 0 {
                    ", invert: true"
                } else {
                    ""
                };
                _ = write!(headers, "{{name: {name}, {predicate}{invert}}}, ");
            }
            format!(
                "  - match: {{http: {{{path}{case}, header: [{headers}]}}}}\n    \
                 destination: {{service: {cluster}}}\n"
            )
        });
        // What no route takes goes to the service itself: to nobody.
        format!("kind: ServiceRouter\nmetadata: {{name: target}}\nspec:\n  routes:\n{routes}")
    }

    fn call(&mut self) -> (String, Vec<(&'static str, &'static str)>) {
        let mut metadata = Vec::new();
        for name in HEADERS {
            for _ in 0..self.below(3) {
                metadata.push((name, self.one(&VALUES)));
            }
        }
        (self.path(), metadata)
    }
}

/// A gRPC server that answers every call with its name.
async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(name, stream));
        }
    });
    address
}

async fn serve(name: &'static str, stream: TcpStream) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(next) = connection.accept().await {
        let (_, mut respond) = next?;
        let head = Response::builder().header("content-type", "application/grpc");
        let mut stream = respond.send_response(head.body(()).unwrap(), false)?;
        let length = u32::try_from(name.len()).unwrap().to_be_bytes();
        let message = [&[0][..], &length, name.as_bytes()].concat();
        stream.send_data(Bytes::from(message), false)?;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        stream.send_trailers(trailers)?;
    }
    Ok(())
}

fn service(name: &str, address: Option<SocketAddr>) -> String {
    let endpoint = address.map_or_else(String::new, |address| {
        format!(
            "{{address: {}, ports: {{grpc: {}}}}}",
            address.ip(),
            address.port()
        )
    });
    format!(
        "kind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
         hosts: [{name}.default.svc.cluster.local]\n  resolution: STATIC\n  \
         ports: [{{number: 80, name: grpc, protocol: GRPC}}]\n  endpoints: [{endpoint}]\n---\n"
    )
}

/// The server that the engine chooses; empty for none.
fn decide(compiled: &Compiled, path: &str, metadata: &[(&str, &str)]) -> String {
    let name = "outbound|80||target.default.svc.cluster.local";
    let view = compiled.view(name, "default").expect("routes");
    let names: Vec<&ClusterName> = compiled.clusters.keys().collect();
    let index = |name: &ClusterName| names.iter().position(|n| *n == name).map(|i| i as u32);
    let authority = "target.default";
    let table = RouteTable::compile_for(
        Features::ALL,
        &view.config,
        authority,
        &StreamLimits::default(),
        &index,
    );
    let table = table.expect("a table");
    let mut headers = HeaderMap::new();
    for (name, value) in metadata {
        headers.append(
            HeaderName::from_static(HEADERS.iter().find(|n| *n == name).unwrap()),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    let uri: Uri = format!("http://{authority}{path}").parse().unwrap();
    let request = RequestView::new(&Method::POST, &uri, authority, &headers);
    let decision = table.decide(&request, &Caller::default(), &mut SplitMix64::new(1));
    let Some(decision) = decision else {
        return String::new();
    };
    let DecisionAction::Forward(forwarding) = &decision.action else {
        panic!("{:?}", decision.action)
    };
    let ChosenCluster::Index(index) = forwarding.cluster else {
        panic!()
    };
    let fqdn = names[index as usize].as_str().rsplit('|').next().unwrap();
    let server = CLUSTERS.into_iter().find(|name| fqdn.starts_with(name));
    server.unwrap_or_default().to_owned()
}

async fn calls_of_grpc(world: &World, calls: &Value) -> Vec<String> {
    let mut client = python(world, "grpc_routes.py").await;
    let client = client.arg("xds:///target.default");
    let client = client
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = client.spawn().unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(calls.to_string().as_bytes()).await.unwrap();
    drop(input);
    let output = timeout(Duration::from_secs(300), process.wait_with_output());
    let output = output.await.expect("an end").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect(&errors)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_calls_are_decided_as_grpcs_c_core_decides_them() {
    let count = number("MESH_GRPC_ROUTES_REQUESTS").map_or(CALLS, |count| count as usize);
    let seed = number("MESH_GRPC_ROUTES_SEED").unwrap_or(1);
    println!("MESH_GRPC_ROUTES_SEED={seed} MESH_GRPC_ROUTES_REQUESTS={count}");
    let mut seeds = SplitMix64::new(seed);
    let mut services = service("target", None);
    for name in CLUSTERS {
        services += &service(name, Some(server(name).await));
    }
    let mut differences = Vec::new();
    let mut forwarded = 0;
    for dialect in DIALECTS {
        let mut generator = Generator(SplitMix64::new(seeds.next_u64()));
        let routes = dialect(&mut generator);
        let text = format!("{services}{PLAINTEXT}---\n{routes}");
        let loaded = load_text("t.yaml", &text);
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
        let (compiled, findings) = compile(&loaded.objects, &CompileOptions::default());
        assert!(findings.is_empty(), "{findings:?}\n{routes}");
        let world = World::start().await;
        world.write("all.yaml", &text);
        let calls: Vec<_> = (0..count.div_ceil(DIALECTS.len()))
            .map(|_| generator.call())
            .collect();
        let asked: Vec<_> = calls
            .iter()
            .map(|(path, metadata)| json!({"path": path, "metadata": metadata}))
            .collect();
        let answers = calls_of_grpc(&world, &json!(asked)).await;
        assert_eq!(answers.len(), calls.len());
        for ((path, metadata), theirs) in calls.iter().zip(answers) {
            let ours = decide(&compiled, path, metadata);
            forwarded += usize::from(!ours.is_empty());
            // A call that goes nowhere has a status instead of a name.
            let is_same = if ours.is_empty() {
                theirs.starts_with("UNAVAILABLE")
            } else {
                ours == theirs
            };
            if !is_same {
                differences.push(format!(
                    "{path} {metadata:?}: ours {ours:?}, theirs {theirs:?}\n{routes}"
                ));
            }
        }
        let plane = world.control_plane.as_ref().unwrap();
        assert_eq!(
            plane.metrics().nacks_total(),
            0,
            "{:?}\n{routes}",
            plane.clients()
        );
    }
    let first: Vec<_> = differences.iter().take(2).map(String::as_str).collect();
    assert!(
        differences.is_empty(),
        "seed {seed}: {} of {count} differ\n{}",
        differences.len(),
        first.join("\n====\n")
    );
    assert!(
        forwarded > count / 10,
        "{forwarded} of {count} reach a server"
    );
}
