//! What a DestinationRule and a BalancerPolicy do to calls.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use axum::{Router, routing::get};
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tower::ServiceExt as _;

use crate::{
    load::Load,
    world::{MUST_HAPPEN, World, endpoints, greeter_client},
};

/// The rule that is in every tutorial.
const PUBLISHED: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: default}
spec:
  host: greeter
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 100}}
    outlierDetection: {consecutiveErrors: 3, interval: 30s, baseEjectionTime: 30s, maxEjectionPercent: 50}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_three_times_in_a_row_gets_nothing_for_a_while() {
    let world = World::start().await;
    let (well, sick) = (world.greeter("well").await, world.greeter("sick").await);
    world.write(
        "greeter.yaml",
        &format!(
            "{}---{PUBLISHED}",
            endpoints(&[("v1", well.address), ("v2", sick.address)])
        ),
    );
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 1);
    let both = async {
        while sick.served.load(Relaxed) == 0 || well.served.load(Relaxed) == 0 {
            load.next(20).await;
        }
    };
    timeout(MUST_HAPPEN, both).await.expect("both are used");
    let many = 1_000_000;
    sick.fail_next.store(many, Relaxed);
    let failed = || many - sick.fail_next.load(Relaxed);
    let ejected = async {
        while failed() < 3 {
            load.next(20).await;
        }
    };
    timeout(MUST_HAPPEN, ejected).await.expect("it is asked");
    // One call may be on its way.
    load.next(20).await;
    let before = failed();
    let seen = load.next(1_000).await;
    assert_eq!((failed(), seen.failed), (before, 0), "it is ejected");
    assert!(before <= 4, "{before} calls failed");
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_balancers_reach_the_library() {
    let world = World::start().await;
    let (one, two) = (world.greeter("one").await, world.greeter("two").await);
    let declared = endpoints(&[("v1", one.address), ("v2", two.address)]);
    world.write(
        "greeter.yaml",
        &format!(
            "{declared}---
apiVersion: mesh/v1
kind: BalancerPolicy
metadata: {{name: greeter, namespace: default}}
spec: {{host: greeter, peakEwma: {{decay: 200ms}}, panicThreshold: 40}}
"
        ),
    );
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 2);
    let used = async {
        while one.served.load(Relaxed) == 0 || two.served.load(Relaxed) == 0 {
            load.next(20).await;
        }
    };
    timeout(MUST_HAPPEN, used).await.expect("both are used");
    assert_eq!(load.stop().await, [""; 0]);
}

/// A server whose answers wait, and what it was asked meanwhile.
struct Slow {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    asked: watch::Receiver<usize>,
    answer: watch::Sender<bool>,
}

impl Slow {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let counted = Counted {
            listener,
            accepted: Arc::clone(&connections),
        };
        let (tell, asked) = watch::channel(0);
        let (answer, may_answer) = watch::channel(false);
        let tell = Arc::new(tell);
        let answering = move || {
            let (tell, mut may_answer) = (Arc::clone(&tell), may_answer.clone());
            async move {
                tell.send_modify(|asked| *asked += 1);
                _ = may_answer.wait_for(|may| *may).await;
                "done"
            }
        };
        let app = Router::new().route("/", get(answering));
        tokio::spawn(async move { axum::serve(counted, app).await });
        Self {
            address,
            connections,
            asked,
            answer,
        }
    }
}

/// Counts the connections that it accepts.
struct Counted {
    listener: TcpListener,
    accepted: Arc<AtomicUsize>,
}

impl axum::serve::Listener for Counted {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let accepted = axum::serve::Listener::accept(&mut self.listener).await;
        self.accepted.fetch_add(1, Relaxed);
        accepted
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_connections_at_most_serve_those_who_wait_for_one() {
    const CALLS: usize = 150;
    let world = World::start().await;
    let mut slow = Slow::start().await;
    let port = slow.address.port();
    let entry = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web, namespace: default}}
spec:
  hosts: [web.default.svc.cluster.local]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
"
    );
    let rule = PUBLISHED.replace("greeter", "web");
    world.write("web.yaml", &format!("{entry}---{rule}"));
    let client = world.member("frontend").await.http_client();
    let mut calls: FuturesUnordered<_> = (0..CALLS)
        .map(|_| {
            let request = Request::get("http://web.default:8080/");
            let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
            let answer = client.clone().oneshot(request);
            async move {
                let answer = answer.await?;
                let body = answer.into_body().collect().await?;
                Ok::<_, mesh_tower::Error>(body.to_bytes())
            }
        })
        .collect();
    let full = async {
        tokio::select! {
            ended = calls.next() => panic!("a call ended before it was answered: {ended:?}"),
            asked = slow.asked.wait_for(|asked| *asked == 100) => { asked.unwrap(); }
        }
    };
    timeout(MUST_HAPPEN, full)
        .await
        .expect("a hundred are asked");
    assert_eq!(slow.connections.load(Relaxed), 100);
    slow.answer.send_replace(true);
    let answered = async {
        while let Some(answer) = calls.next().await {
            assert_eq!(answer.unwrap(), "done");
        }
    };
    timeout(MUST_HAPPEN, answered)
        .await
        .expect("all are answered");
    assert_eq!(*slow.asked.borrow(), CALLS);
    assert_eq!(
        slow.connections.load(Relaxed),
        100,
        "nobody got another one"
    );
}
