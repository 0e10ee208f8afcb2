//! Load reports out of band, in virtual time.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::{BufMut, BytesMut};
use futures_util::{StreamExt, stream};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use mesh_core::config::{ClientSideWrr, Prequal};
use mesh_tower::{Attached, BoxExchange, EndpointContext, EndpointService, MakeEndpoint, Outgoing};

use super::*;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a stream of reports has in it.
#[derive(Clone)]
enum Script {
    /// These utilisations, then nothing for ever.
    Reports(&'static [f64]),
    /// These bytes, then nothing for ever.
    Bytes(Bytes),
    /// The end, with this status.
    Status(&'static str),
    /// There is no connection.
    Unconnected,
}

/// Endpoints whose streams a test writes.
#[derive(Clone)]
struct Fleet {
    script: Arc<dyn Fn(u16) -> Script + Send + Sync>,
    /// The streams that were opened: where, and when.
    opened: Arc<Mutex<Vec<(u16, Instant)>>>,
    open: Arc<AtomicUsize>,
    /// Which connection of its endpoints is the current one.
    connection: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<u16>>>,
}

impl Fleet {
    fn new(script: impl Fn(u16) -> Script + Send + Sync + 'static) -> Self {
        Self {
            script: Arc::new(script),
            opened: Arc::default(),
            open: Arc::default(),
            connection: Arc::default(),
            asked: Arc::default(),
        }
    }

    fn opened(&self) -> Vec<u16> {
        let opened = self.opened.lock().unwrap();
        let mut ports: Vec<_> = opened.iter().map(|(port, _)| *port).collect();
        ports.sort_unstable();
        ports
    }

    /// Which ports the next requests go to.
    async fn send(&self, service: &MeshService<Self>, requests: usize) -> Vec<u16> {
        self.asked.lock().unwrap().clear();
        for _ in 0..requests {
            let response = service.clone().oneshot(get("/")).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
        self.asked.lock().unwrap().clone()
    }
}

struct One {
    fleet: Fleet,
    context: EndpointContext,
}

impl MakeEndpoint for Fleet {
    type Endpoint = One;

    fn make(&self, context: EndpointContext) -> One {
        One {
            fleet: self.clone(),
            context,
        }
    }
}

/// Counts a stream while it is open.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl EndpointService for One {
    type ResponseBody = Body;
    type Exchange = BoxExchange<Body>;

    fn connect(&self) {
        self.context.set_connectivity(Connectivity::Ready);
    }

    /// Requests say that port 1 is nearly idle and the others are busy.
    fn dispatch(&self, outgoing: &mut Outgoing<'_>) -> BoxExchange<Body> {
        drop(outgoing.take());
        let port = self.context.address.port();
        self.fleet.asked.lock().unwrap().push(port);
        let utilization = if port == 1 { 0.01 } else { 0.99 };
        let mut trailers = HeaderMap::new();
        let trailer = mesh_tower::orca::load_report_trailer(&mesh_core::observed::LoadReport {
            application_utilization: utilization,
            requests_per_second: 100.0,
            ..Default::default()
        });
        trailers.insert(mesh_tower::orca::ORCA_TRAILER, trailer);
        let frames = stream::iter([Ok(Frame::trailers(trailers))]);
        let body = StreamBody::new(frames).boxed_unsync();
        Box::pin(ready(Ok(Response::new(body))))
    }

    fn attach(&self, outgoing: &mut Outgoing<'_>) -> Option<Attached<BoxExchange<Body>>> {
        let port = self.context.address.port();
        let (data, status) = match (self.fleet.script)(port) {
            Script::Unconnected => return None,
            Script::Reports(reports) => {
                (reports.iter().map(|value| report(*value)).collect(), None)
            }
            Script::Bytes(bytes) => (vec![bytes], None),
            Script::Status(status) => (Vec::new(), Some(status)),
        };
        let request = outgoing.take();
        let path = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
        assert_eq!(request.uri().path(), path);
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let opened = (port, Instant::now());
        self.fleet.opened.lock().unwrap().push(opened);
        self.fleet.open.fetch_add(1, Relaxed);
        let open = Open(Arc::clone(&self.fleet.open));
        let data = stream::iter(data).map(|data| Ok(Frame::data(data)));
        let end = status.map(|status| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            Ok(Frame::trailers(trailers))
        });
        let end = match end {
            Some(end) => stream::iter([end]).left_stream(),
            None => stream::pending().right_stream(),
        };
        let frames = data.chain(end).map(move |frame| {
            _ = &open;
            frame
        });
        let body = StreamBody::new(frames).boxed_unsync();
        let (connection, own) = (
            Arc::clone(&self.fleet.connection),
            self.fleet.connection.load(Relaxed),
        );
        Some(Attached {
            exchange: Box::pin(ready(Ok(Response::new(body)))),
            is_current: Box::new(move || connection.load(Relaxed) == own),
        })
    }
}

/// A report in its frame: `rps_fractional` 100, and this `application_utilization`.
fn report(utilization: f64) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_slice(&[0, 0, 0, 0, 18, 0x31]);
    frame.put_f64_le(100.0);
    frame.put_u8(0x49);
    frame.put_f64_le(utilization);
    frame.freeze()
}

fn wrr(cluster: &mut mesh_core::config::Cluster) {
    cluster.lb_policy = LbPolicy::ClientSideWeightedRoundRobin(ClientSideWrr {
        blackout_period: Duration::ZERO,
        oob_reporting_period: Some(Duration::from_secs(10)),
        ..ClientSideWrr::default()
    });
}

fn endpoints(count: u16) -> Vec<SocketAddr> {
    let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
    (1..=count).map(address).collect()
}

fn client(fleet: &Fleet, count: u16) -> (HandMade, MeshService<Fleet>) {
    let (mut config, reader) = HandMade::new();
    let tree = tree("l").cluster_with("a", &endpoints(count), wrr);
    config.publish(&tree.route("/", "a").build());
    (config, MeshService::new("l", reader, fleet.clone()))
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn weights_follow_reports_out_of_band_and_not_those_of_responses() {
    let fleet = Fleet::new(|port| match port {
        1 => Script::Reports(&[0.1, 0.8]),
        _ => Script::Reports(&[0.2]),
    });
    let (_config, service) = client(&fleet, 2);
    fleet.send(&service, 20).await;
    tokio::time::sleep(3 * SECOND).await;
    let ports = fleet.send(&service, 100).await;
    let busy = ports.iter().filter(|port| **port == 1).count();
    assert!((18..=22).contains(&busy), "20 : 80, it was {busy}");
    assert_eq!(fleet.opened(), [1, 2], "one stream for each");
    assert_eq!(fleet.open.load(Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_without_the_service_is_asked_once_for_each_connection() {
    let fleet = Fleet::new(|_| Script::Status("12"));
    let (_config, service) = client(&fleet, 1);
    fleet.send(&service, 1).await;
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(fleet.opened(), [1]);
    fleet.connection.fetch_add(1, Relaxed);
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(fleet.opened(), [1, 1], "a server that was replaced");
}

#[tokio::test(start_paused = true)]
async fn pauses_between_failures_grow_to_their_bound() {
    let fleet = Fleet::new(|_| Script::Status("14"));
    let (_config, service) = client(&fleet, 1);
    fleet.send(&service, 1).await;
    tokio::time::sleep(1_000 * SECOND).await;
    let opened = fleet.opened.lock().unwrap().clone();
    let pauses: Vec<_> = opened.windows(2).map(|at| at[1].1 - at[0].1).collect();
    assert!(pauses[0] >= SECOND * 8 / 10, "{pauses:?}");
    for (pause, nominal) in pauses.iter().zip([1, 2, 4, 8, 16, 32, 64, 120, 120]) {
        // Looked at once a second.
        let nominal = f64::from(nominal);
        let pause = pause.as_secs_f64();
        assert!(
            (0.8 * nominal..1.2 * nominal + 1.1).contains(&pause),
            "{pauses:?}"
        );
    }
    assert!(pauses.len() >= 8, "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_follows_the_connection_and_waits_for_one() {
    let is_connected = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let fleet = Fleet::new({
        let is_connected = Arc::clone(&is_connected);
        move |_| match is_connected.load(Relaxed) {
            true => Script::Reports(&[0.5]),
            false => Script::Unconnected,
        }
    });
    let (_config, service) = client(&fleet, 1);
    fleet.send(&service, 1).await;
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(fleet.opened(), [0; 0]);
    is_connected.store(true, Relaxed);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(fleet.opened(), [1]);
    fleet.connection.fetch_add(1, Relaxed);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(fleet.opened(), [1, 1]);
    assert_eq!(fleet.open.load(Relaxed), 1, "the old one has ended");
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_endpoints_policies_and_clients() {
    let fleet = Fleet::new(|_| Script::Reports(&[0.5]));
    let (mut config, service) = client(&fleet, 4);
    fleet.send(&service, 1).await;
    tokio::time::sleep(SECOND).await;
    let open = || fleet.open.load(Relaxed);
    assert_eq!(open(), 4);
    let fewer = tree("l").cluster_with("a", &endpoints(2), wrr);
    config.publish(&fewer.route("/", "a").build());
    tokio::time::sleep(SECOND).await;
    assert_eq!(open(), 2);
    let other = tree("l").cluster_with("a", &endpoints(2), |cluster| {
        cluster.lb_policy = LbPolicy::RoundRobin;
    });
    config.publish(&other.route("/", "a").build());
    tokio::time::sleep(SECOND).await;
    assert_eq!(open(), 0);
    let again = tree("l").cluster_with("a", &endpoints(2), |cluster| {
        cluster.lb_policy = LbPolicy::Prequal(Prequal {
            oob_reporting_period: Some(SECOND),
            ..Prequal::default()
        });
    });
    config.publish(&again.route("/", "a").build());
    tokio::time::sleep(SECOND).await;
    assert_eq!(open(), 2);
    drop((service, config));
    tokio::time::sleep(SECOND).await;
    assert_eq!(open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_no_reports_ends() {
    let too_long = Bytes::from_static(&[0, 0, 1, 0, 0]);
    let compressed = Bytes::from_static(&[1, 0, 0, 0, 0]);
    let malformed = Bytes::from_static(&[0, 0, 0, 0, 1, 0xff]);
    for bytes in [too_long, compressed, malformed] {
        let fleet = Fleet::new(move |_| Script::Bytes(bytes.clone()));
        let (_config, service) = client(&fleet, 1);
        fleet.send(&service, 1).await;
        tokio::time::sleep(SECOND / 2).await;
        assert_eq!((fleet.opened().len(), fleet.open.load(Relaxed)), (1, 0));
    }
}
