//! Streams: a session with a clock and a client that is slow, silent or gone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    admit::{Admission, Limits},
    service::Shared,
    session::HOLD_MAX,
    sotw::Sotw,
    stream::{Opened, Stream},
    tests::{CLUSTER, GREETER, OTHER, world},
    wire::Response,
    *,
};
use crate::{
    ca::{Authority, Callers, DenyList, Tokens},
    cache::Version,
    metrics::Metrics,
};

/// Nothing takes so long while the clock stands still.
const MUST_HAPPEN: Duration = Duration::from_secs(3600);

struct Kit {
    _data: tempfile::TempDir,
    worlds: watch::Sender<Option<Arc<World>>>,
    end: watch::Sender<bool>,
    clients: Clients,
    metrics: Metrics,
    requests: mpsc::Sender<Result<DiscoveryRequest, Status>>,
    responses: mpsc::Receiver<Result<Response, Status>>,
    task: JoinHandle<()>,
    generation: u64,
}

impl Kit {
    fn start() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let data = tempfile::tempdir().unwrap();
        let life = Duration::from_secs(60);
        let (worlds, rx) = watch::channel(None);
        let clients = Clients::default();
        let metrics = Metrics::new();
        let shared = Shared {
            worlds: rx,
            shutdown: watch::channel(false).1,
            authority: Arc::new(Authority::open(data.path(), "cluster.local", life).unwrap()),
            needs_identity: false,
            callers: Arc::new(Callers::new(
                Tokens::open(data.path()).unwrap(),
                None,
                DenyList::open(data.path()).unwrap(),
            )),
            cert_ttl: life,
            metrics: metrics.clone(),
            clients: clients.clone(),
            admission: Admission::new(limits),
        };
        let (end, ends) = watch::channel(false);
        let opened = Opened {
            identity: None,
            end: ends,
            place: shared.admission.admit(None, Instant::now()).unwrap(),
        };
        let (tx, responses) = mpsc::channel(1);
        let (requests, rx) = mpsc::channel(16);
        let stream = Stream::<Sotw>::new(Arc::new(shared), opened, tx);
        let task = tokio::spawn(stream.run(ReceiverStream::new(rx)));
        Self {
            _data: data,
            worlds,
            end,
            clients,
            metrics,
            requests,
            responses,
            task,
            generation: 0,
        }
    }

    fn publish(&mut self, yaml: &str) {
        self.generation += 1;
        let mut world = world(yaml).made_of(&Default::default());
        world.version = Version::of_client(&format!("{:016x}", self.generation));
        world.generation = self.generation;
        let world = Arc::new(world);
        self.worlds.send_replace(Some(Arc::clone(&world)));
        self.clients.published(&world);
    }

    async fn ask(&self, kind: ResourceType, nonce: &str) {
        let request = Self::request(kind, nonce);
        self.requests.send(Ok(request)).await.unwrap();
    }

    /// The same of a stream that may have ended.
    async fn ask_if_open(&self, kind: ResourceType) {
        _ = self.requests.send(Ok(Self::request(kind, ""))).await;
    }

    fn request(kind: ResourceType, nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            node: Some(Node {
                id: "web".into(),
                user_agent_name: "gRPC Go".into(),
                ..Node::default()
            }),
            type_url: kind.url(),
            resource_names: vec![CLUSTER.into()],
            response_nonce: nonce.into(),
            ..DiscoveryRequest::default()
        }
    }

    async fn next(&mut self) -> Response {
        let next = time::timeout(MUST_HAPPEN, self.responses.recv());
        next.await.expect("a response").unwrap().unwrap()
    }

    async fn fetch(&mut self, kind: ResourceType) -> Response {
        self.ask(kind, "").await;
        let response = self.next().await;
        self.ask(kind, &response.nonce.to_string()).await;
        response
    }

    async fn wait(&self, millis: u64) -> Waited {
        let deadline = time::Instant::now() + Duration::from_millis(millis);
        self.clients.wait(None, deadline).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_heard_and_gets_the_newest_when_it_has_room() {
    let mut kit = Kit::start();
    kit.publish(GREETER);
    kit.fetch(ResourceType::Endpoints).await;
    // The client takes nothing; one response is made and waits.
    for port in 5_001..5_050 {
        kit.publish(&GREETER.replace("5000", &port.to_string()));
        tokio::task::yield_now().await;
    }
    // It may ask as much as it likes meanwhile: nobody waits for anybody.
    for _ in 0..64 {
        kit.ask(ResourceType::Cluster, "").await;
    }
    let waiting = kit.next().await;
    let mut rest = vec![kit.next().await];
    while let Ok(Some(next)) = time::timeout(HOLD_MAX, kit.responses.recv()).await {
        rest.push(next.unwrap());
    }
    assert_eq!(waiting.kind, ResourceType::Endpoints);
    let newest = world(&GREETER.replace("5000", "5049"));
    let client = tests::client(crate::encode::ClientClass::GrpcGo);
    let newest = newest
        .resource(&client, ResourceType::Endpoints, CLUSTER)
        .unwrap();
    let endpoints: Vec<_> = rest
        .iter()
        .filter(|r| r.kind == ResourceType::Endpoints)
        .collect();
    assert_eq!(endpoints.len(), 1, "no queue: {rest:?}");
    assert_eq!(endpoints[0].resources, [newest]);
}

#[tokio::test(start_paused = true)]
async fn routes_are_released_by_the_clock_when_nobody_answers() {
    let both = format!("{GREETER}{OTHER}");
    let mut kit = Kit::start();
    kit.publish(&both);
    for kind in [ResourceType::Route, ResourceType::Endpoints] {
        kit.fetch(kind).await;
    }
    let route = "---\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [greeter], \
                 http: [{timeout: 1s, route: [{destination: {host: greeter}}]}]}\n";
    kit.publish(&(both.replace("5000", "5001") + route));
    let begin = time::Instant::now();
    assert_eq!(kit.next().await.kind, ResourceType::Endpoints);
    assert_eq!(kit.next().await.kind, ResourceType::Route);
    assert!(begin.elapsed() >= HOLD_MAX);
}

#[tokio::test(start_paused = true)]
async fn waiting_tells_who_has_it_who_refuses_and_who_is_silent() {
    let mut kit = Kit::start();
    assert_eq!(kit.wait(10).await.progress, Progress::Unknown);
    kit.publish(GREETER);
    kit.fetch(ResourceType::Endpoints).await;
    let done = kit.wait(1_000).await;
    assert_eq!(
        (done.progress, done.clients, done.settled),
        (Progress::Done, 1, 1)
    );

    kit.publish(&GREETER.replace("5000", "5001"));
    let response = kit.next().await;
    let silent = kit.wait(1_000).await;
    assert_eq!((silent.progress, silent.settled), (Progress::Waiting, 0));
    assert_eq!(silent.waiting[0].node, "web");
    assert_eq!(silent.waiting[0].resource, format!("eds {CLUSTER}"));
    // An older version is settled, even though it was never answered by itself.
    let waiting = kit
        .clients
        .wait(Some(Version::of_client(&format!("{:016x}", 1))), far());
    assert_eq!(waiting.await.progress, Progress::Done);

    // Whoever waits is woken by the answer.
    let clients = kit.clients.clone();
    let waiting = tokio::spawn(async move { clients.wait(None, far()).await });
    tokio::task::yield_now().await;
    kit.ask(ResourceType::Endpoints, &response.nonce.to_string())
        .await;
    assert_eq!(waiting.await.unwrap().progress, Progress::Done);

    kit.publish(&GREETER.replace("5000", "5002"));
    let response = kit.next().await;
    let refusal = DiscoveryRequest {
        type_url: ResourceType::Endpoints.url(),
        resource_names: vec![CLUSTER.into()],
        response_nonce: response.nonce.to_string(),
        error_detail: Some(envoy_types::pb::google::rpc::Status {
            message: "no".into(),
            ..Default::default()
        }),
        ..DiscoveryRequest::default()
    };
    kit.requests.send(Ok(refusal)).await.unwrap();
    let refused = kit.wait(1_000).await;
    assert_eq!((refused.progress, refused.settled), (Progress::Refused, 1));
    assert_eq!(refused.refusals[0].text, "no");
    assert!(kit.metrics.encode().contains("pilot_xds_eds_reject 1"));

    let resources = kit.clients.resources(|kind, _, _| kind == "eds");
    assert_eq!(resources.len(), 1);
    let resource = &resources[0];
    assert_eq!(
        (resource.acked, resource.nacked, resource.pending),
        (0, 1, 0)
    );
    assert_eq!(resource.objects, ["ServiceEntry default/greeter"]);
    assert_eq!(resource.refusals[0].node, "web");
}

fn far() -> time::Instant {
    time::Instant::now() + MUST_HAPPEN
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_connection_ends_its_streams_and_forgets_them() {
    let mut kit = Kit::start();
    kit.publish(GREETER);
    kit.fetch(ResourceType::Cluster).await;
    assert_eq!(kit.clients.list().len(), 1);
    assert!(
        kit.metrics
            .encode()
            .contains("pilot_xds{class=\"grpc-go\"} 1")
    );
    kit.end.send_replace(true);
    assert!(
        time::timeout(MUST_HAPPEN, kit.responses.recv())
            .await
            .unwrap()
            .is_none()
    );
    kit.task.await.unwrap();
    assert!(kit.clients.list().is_empty());
    assert!(
        kit.metrics
            .encode()
            .contains("pilot_xds{class=\"grpc-go\"} 0")
    );
    assert_eq!(
        kit.clients.classes().borrow().len(),
        1,
        "the class was seen"
    );
}

/// What the client is told when its stream is ended.
async fn refusal(kit: &mut Kit) -> Status {
    let ended = async {
        loop {
            match kit.responses.recv().await.expect("a reason") {
                Ok(_) => {}
                Err(refusal) => return refusal,
            }
        }
    };
    time::timeout(MUST_HAPPEN, ended).await.expect("the end")
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_asks_too_much_is_refused_with_the_limit() {
    for (limits, kinds, limit) in [
        (
            Limits {
                requests_burst: 2,
                ..Limits::default()
            },
            [ResourceType::Cluster; 3],
            "1000 requests in a second on a stream",
        ),
        (
            Limits {
                names: 2,
                ..Limits::default()
            },
            [
                ResourceType::Cluster,
                ResourceType::Endpoints,
                ResourceType::Route,
            ],
            "3 names on a stream, of which there may be 2",
        ),
        (
            Limits {
                name_bytes: CLUSTER.len() - 1,
                ..Limits::default()
            },
            [ResourceType::Cluster; 3],
            "bytes at most",
        ),
    ] {
        let mut kit = Kit::with(limits);
        kit.publish(GREETER);
        for kind in kinds {
            // The stream may have ended by now.
            _ = time::timeout(MUST_HAPPEN, kit.ask_if_open(kind)).await;
        }
        let refused = refusal(&mut kit).await;
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains(limit), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_long_is_refused_with_the_limit() {
    let mut kit = Kit::start();
    kit.publish(GREETER);
    let too_long = Status::out_of_range("decoded message length too large");
    kit.requests.send(Err(too_long)).await.unwrap();
    let refused = refusal(&mut kit).await;
    assert!(refused.message().contains("33554432 bytes"), "{refused}");
}
