//! Load reports of our servers, with responses and out of band, over mTLS (gRFC A51, A58).

use std::{
    collections::HashSet,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use mesh_examples::greeter::HelloRequest;
use mesh_tonic::orca::{MetricRecorder, OrcaLayer, OrcaService};
use mesh_tower::{
    Mesh,
    server::{ConnectionInfo, RequestBody},
};
use tokio::{sync::watch, time::timeout};
use tower::{ServiceBuilder, ServiceExt as _, service_fn};

use crate::world::{
    Client, MUST_HAPPEN, SECURITY, World, bind, endpoints, greeter_client, greeter_routes,
};

/// How often clients ask, and the least that servers take.
const PERIOD: Duration = Duration::from_millis(50);

const POLICY: &str = "
apiVersion: mesh/v1
kind: BalancerPolicy
metadata: {name: greeter, namespace: default}
spec:
  host: greeter
  clientSideWeightedRoundRobin:
    blackoutPeriod: 0s
    weightUpdatePeriod: 100ms
    oobReportingPeriod: 50ms
";

/// A greeter that says what its load is.
struct Reporter {
    mesh: Mesh,
    address: SocketAddr,
    /// What it says out of band.
    metrics: MetricRecorder,
    /// Streams of reports that are open.
    open: watch::Sender<usize>,
    /// Where its callers come from.
    callers: Arc<Mutex<HashSet<SocketAddr>>>,
}

/// Counts a stream while it is open.
struct Open(watch::Sender<usize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl Reporter {
    /// One that is this busy, and says `of_calls` with its responses.
    async fn start(world: &World, version: &'static str, busy: f64, of_calls: f64) -> Self {
        let builder = world.member_builder("greeter");
        let mesh = builder.drain_timeout(2 * MUST_HAPPEN).build().await;
        let mesh = mesh.unwrap();
        let metrics = MetricRecorder::default();
        metrics
            .set_application_utilization(busy)
            .set_requests_per_second(100.0);
        let calls = MetricRecorder::default();
        calls
            .set_application_utilization(of_calls)
            .set_requests_per_second(100.0);
        let reports = OrcaService::new(metrics.clone()).min_report_interval(PERIOD);
        let routes = greeter_routes(version).add_service(reports).prepare();
        let application = ServiceBuilder::new()
            .layer(OrcaLayer::new(calls))
            .service(routes);
        let (open, callers) = (watch::Sender::new(0), Arc::<Mutex<HashSet<_>>>::default());
        let (seen, from) = (open.clone(), Arc::clone(&callers));
        let watched = service_fn(move |request: Request<RequestBody>| {
            let info = request.extensions().get::<ConnectionInfo>().unwrap();
            from.lock().unwrap().insert(info.remote);
            let is_stream = request.uri().path().ends_with("/StreamCoreMetrics");
            let open = is_stream.then(|| {
                seen.send_modify(|open| *open += 1);
                Open(seen.clone())
            });
            let answer = application.clone().oneshot(request);
            async move {
                let response: Response<tonic::body::Body> = answer.await.unwrap();
                Ok::<_, Infallible>(response.map(|body| {
                    tonic::body::Body::new(body.map_frame(move |frame| {
                        _ = &open;
                        frame
                    }))
                }))
            }
        });
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = listener.local_addr().unwrap();
        let serving = mesh.clone();
        tokio::spawn(async move { serving.serve(listener, watched).await });
        Self {
            mesh,
            address,
            metrics,
            open,
            callers,
        }
    }

    /// Waits until so many streams of reports are open.
    async fn has_open(&self, count: usize) {
        let mut open = self.open.subscribe();
        let there = open.wait_for(|open| *open == count);
        timeout(MUST_HAPPEN, there).await.expect("as many").unwrap();
    }
}

async fn call(client: &mut Client) -> String {
    let name = "load".to_owned();
    let reply = client.say_hello(HelloRequest { name }).await.unwrap();
    reply.into_inner().version
}

/// Calls until `version` gets about this share of a hundred.
async fn gets(client: &mut Client, version: &str, share: usize) {
    let so = async {
        loop {
            let mut count = 0;
            for _ in 0..100 {
                count += usize::from(call(client).await == version);
            }
            if count.abs_diff(share) <= 4 {
                return;
            }
        }
    };
    timeout(MUST_HAPPEN, so).await.expect("its share");
}

/// Two servers that say the opposite in their responses and out of band, under `policy`, and a client that
/// has reached one.
async fn called(policy: &str) -> (World, Mesh, [Reporter; 2], Client) {
    let world = World::start().await;
    world.write("security.yaml", SECURITY);
    world.write("policy.yaml", policy);
    let v1 = Reporter::start(&world, "v1", 0.2, 0.8).await;
    let v2 = Reporter::start(&world, "v2", 0.8, 0.2).await;
    let both = [("v1", v1.address), ("v2", v2.address)];
    world.write("endpoints.yaml", &endpoints(&both));
    let member = world.member("frontend").await;
    let mut client = greeter_client(&member);
    timeout(MUST_HAPPEN, async {
        while client.say_hello(HelloRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a first call");
    (world, member, [v1, v2], client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_follow_reports_out_of_band_on_the_connection_of_the_calls() {
    let (world, _member, [v1, v2], mut client) = called(POLICY).await;
    // By what comes with the responses it would be the other way round.
    gets(&mut client, "v1", 80).await;
    v1.metrics.set_application_utilization(0.9);
    v2.metrics.set_application_utilization(0.1);
    gets(&mut client, "v2", 90).await;
    for server in [&v1, &v2] {
        server.has_open(1).await;
        let callers = server.callers.lock().unwrap().len();
        assert_eq!(callers, 1, "one connection for calls and reports");
    }

    // An endpoint that leaves takes its stream with it.
    world.write("endpoints.yaml", &endpoints(&[("v1", v1.address)]));
    v2.has_open(0).await;
    v1.has_open(1).await;
    // A server that drains is not held up.
    timeout(MUST_HAPPEN, v1.mesh.shutdown())
        .await
        .expect("it ends before its drain timeout");
    v1.has_open(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_responses_count_where_none_are_asked_for_out_of_band() {
    let policy = POLICY.replace("    oobReportingPeriod: 50ms\n", "");
    let (_world, _member, [v1, v2], mut client) = called(&policy).await;
    gets(&mut client, "v2", 80).await;
    assert_eq!((*v1.open.borrow(), *v2.open.borrow()), (0, 0));
}
