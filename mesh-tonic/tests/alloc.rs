//! What a call allocates and waits for, from a gRPC request to the end of its response, over an
//! endpoint that answers at once.
//!
//! The count is a budget: raising it is a reviewed change. It is printed.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Mutex, mpsc},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use mesh_core::{
    config::{LbPolicy, RetryOn, RetryPolicy},
    stats::Connectivity,
    testing::{HandMade, tree},
};
use mesh_tonic::Channel;
use mesh_tower::{
    DispatchError, EndpointContext, EndpointService, Exchange, MakeEndpoint, MeshService, Outgoing,
};
use tower::Service;

/// Allocations of one call at most, without and with a retry policy on its route: with a policy, what
/// is kept for another attempt, and the headers in it.
const ALLOCATIONS_MAX: [u64; 2] = [0, 2];

/// Makes endpoints at once, but for the port that stops it.
#[derive(Default)]
struct Instant {
    stop: Option<Stop>,
}

struct Stop {
    port: u16,
    reached: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl MakeEndpoint for Instant {
    type Endpoint = InstantEndpoint;

    fn make(&self, context: EndpointContext) -> InstantEndpoint {
        if let Some(stop) = &self.stop
            && stop.port == context.address.port()
        {
            stop.reached.send(()).unwrap();
            stop.go_on.lock().unwrap().recv().unwrap();
        }
        InstantEndpoint(context)
    }
}

struct InstantEndpoint(EndpointContext);

impl EndpointService for InstantEndpoint {
    type ResponseBody = Trailers;
    type Exchange = Answered;

    fn connect(&self) {
        self.0.set_connectivity(Connectivity::Ready);
    }

    fn dispatch(&self, outgoing: &mut Outgoing<'_>) -> Answered {
        drop(outgoing.take());
        Answered
    }
}

struct Answered;

impl Exchange for Answered {
    type ResponseBody = Trailers;

    fn poll_response(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<Response<Trailers>, DispatchError>> {
        Poll::Ready(Ok(Response::new(Trailers(false))))
    }
}

/// A body of trailers alone.
struct Trailers(bool);

impl http_body::Body for Trailers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

fn request() -> Request<tonic::body::Body> {
    let message = http_body_util::Full::new(Bytes::from_static(&[0, 0, 0, 0, 0]));
    let mut request = Request::new(tonic::body::Body::new(message));
    *request.uri_mut() = http::Uri::from_static("/greeter.v1.Greeter/SayHello");
    let content_type = HeaderValue::from_static("application/grpc");
    request
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, content_type);
    request
}

/// Polls to the end of the response; nothing here ever has to wait.
fn finish(channel: &mut Channel<Instant>, request: Request<tonic::body::Body>) {
    let mut cx = Context::from_waker(Waker::noop());
    let response = pin!(channel.call(request)).poll(&mut cx);
    let Poll::Ready(Ok(response)) = response else {
        panic!("the stub answers at once")
    };
    let mut body = pin!(response.into_body());
    while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
        frame.expect("the stub does not fail");
    }
}

#[tokio::test]
async fn a_call_allocates_at_most_its_budget() {
    let endpoints: Vec<SocketAddr> = (1..=10)
        .map(|port| SocketAddr::from(([10, 0, 0, 1], port)))
        .collect();
    for (with_retry, allowed) in [false, true].into_iter().zip(ALLOCATIONS_MAX) {
        let (mut config, reader) = HandMade::new();
        let mut channel =
            Channel::new(MeshService::new("greeter", reader, Instant::default())).unwrap();
        let world = tree("greeter")
            .cluster_with("a", &endpoints, |cluster| {
                cluster.lb_policy = LbPolicy::least_request(2);
            })
            .route_with("/", "a", |forward| {
                forward.retry = with_retry.then(|| RetryPolicy {
                    retry_on: RetryOn::UNAVAILABLE,
                    num_retries: 2,
                    ..RetryPolicy::default()
                });
            })
            .build();
        config.publish(&world);
        channel.ready().await.unwrap();
        finish(&mut channel, request());

        let bare = allocation_counter::measure(|| drop(request()));
        let prepared = request();
        let stub = allocation_counter::measure(|| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
        });
        let call = allocation_counter::measure(|| finish(&mut channel, prepared));
        let mesh = call.count_total - stub.count_total;
        println!(
            "allocations a call (retry policy: {with_retry}): {mesh} in the mesh, {} bytes; \
             building the request takes {} more, the stub's trailers {}",
            call.bytes_total - stub.bytes_total,
            bare.count_total,
            stub.count_total
        );
        assert!(mesh <= allowed, "{mesh} > {allowed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_waits_for_no_writer() {
    let addresses = |ports: std::ops::Range<u16>| -> Vec<SocketAddr> {
        ports
            .map(|port| SocketAddr::from(([10, 0, 0, 1], port)))
            .collect()
    };
    let (mut config, reader) = HandMade::new();
    let (reached, is_reached) = mpsc::channel();
    let (go_on, wait) = mpsc::channel();
    let make = Instant {
        stop: Some(Stop {
            port: 3,
            reached,
            go_on: Mutex::new(wait),
        }),
    };
    let mut channel = Channel::new(MeshService::new("greeter", reader, make)).unwrap();
    let world = |ports| {
        let tree = tree("greeter").cluster("a", &addresses(ports));
        tree.route("/", "a").build()
    };
    config.publish(&world(1..3));
    channel.ready().await.unwrap();
    // From its first call on a cluster follows the configuration.
    finish(&mut channel, request());
    // The writer of the next configuration stands still in the middle of its work...
    config.publish(&world(1..4));
    tokio::task::block_in_place(|| is_reached.recv().unwrap());
    // ...and every call ends in the one poll that it gets.
    for _ in 0..1000 {
        finish(&mut channel, request());
    }
    go_on.send(()).unwrap();
}
