//! An HTTP/1.1 and HTTP/2 server that can be stopped, killed and started again.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::ports::free_address;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Notify, oneshot, watch},
    task::{JoinHandle, JoinSet},
};

pub(crate) struct TestServer {
    address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) served: Arc<AtomicUsize>,
    /// What it answers to health checks.
    pub(crate) is_healthy: Arc<AtomicBool>,
    /// The most connections that were open at a time.
    pub(crate) most_open: Arc<AtomicUsize>,
    /// The most requests that came on one connection.
    pub(crate) most_requests: Arc<AtomicUsize>,
    pub(crate) gate: Arc<Gate>,
    seen: Seen,
    progress: Arc<Notify>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// How a server is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// `SETTINGS_MAX_CONCURRENT_STREAMS`.
    pub(crate) max_streams: Option<u32>,
    /// How many requests a connection takes before it drains (GOAWAY).
    pub(crate) max_requests: Option<usize>,
    /// What it answers to health checks at first.
    pub(crate) is_sick: bool,
}

/// What a server has seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    most_open: Arc<AtomicUsize>,
    most_requests: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
}

/// Holds requests at the server.
#[derive(Debug)]
pub(crate) struct Gate {
    is_open: watch::Sender<bool>,
    held: watch::Sender<usize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            is_open: watch::Sender::new(true),
            held: watch::Sender::new(0),
        }
    }
}

impl Gate {
    pub(crate) fn close(&self) {
        self.is_open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.is_open.send_replace(true);
    }

    /// Waits until it holds `count` requests.
    pub(crate) async fn has(&self, count: usize) {
        let mut held = self.held.subscribe();
        held.wait_for(|held| *held >= count).await.unwrap();
    }

    async fn pass(&self) {
        let mut is_open = self.is_open.subscribe();
        self.held.send_modify(|held| *held += 1);
        is_open.wait_for(|is_open| *is_open).await.unwrap();
        self.held.send_modify(|held| *held -= 1);
    }
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_at(free_address().unwrap()).await
    }

    pub(crate) async fn start_with(set: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        set(&mut settings);
        Self::start_as(free_address().unwrap(), settings).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        Self::start_as(address, Settings::default()).await
    }

    async fn start_as(address: SocketAddr, settings: Settings) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Seen::default();
        let gate = Arc::<Gate>::default();
        let progress = Arc::new(Notify::new());
        let (stop, stopped) = oneshot::channel();
        let is_healthy = Arc::new(AtomicBool::new(!settings.is_sick));
        let state = (
            seen.clone(),
            Arc::clone(&progress),
            Arc::clone(&gate),
            Arc::clone(&is_healthy),
        );
        let task = tokio::spawn(serve(listener, settings, state, stopped));
        Self {
            address,
            connections: Arc::clone(&seen.connections),
            served: Arc::clone(&seen.served),
            most_open: Arc::clone(&seen.most_open),
            most_requests: Arc::clone(&seen.most_requests),
            is_healthy,
            gate,
            seen,
            progress,
            stop,
            task,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until `count` requests were served.
    pub(crate) async fn served_at_least(&self, count: usize) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.served.load(Relaxed) >= count {
                return;
            }
            progress.await;
        }
    }

    /// Waits until `count` connections are open.
    pub(crate) async fn has_open(&self, count: usize) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.seen.open.load(Relaxed) == count {
                return;
            }
            progress.await;
        }
    }

    /// Stops taking connections, says so on the open ones, and waits for them.
    pub(crate) async fn stop(self) -> SocketAddr {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        self.address
    }

    /// Ends at once, in the middle of whatever there is.
    pub(crate) async fn kill(self) -> SocketAddr {
        self.task.abort();
        _ = self.task.await;
        self.address
    }
}

type State = (Seen, Arc<Notify>, Arc<Gate>, Arc<AtomicBool>);

async fn serve(
    listener: TcpListener,
    settings: Settings,
    (seen, progress, gate, is_healthy): State,
    mut stopped: oneshot::Receiver<()>,
) {
    let graceful = GracefulShutdown::new();
    // Aborted together with this task.
    let mut tasks = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            _ = &mut stopped => break,
        };
        stream.set_nodelay(true).unwrap();
        seen.connections.fetch_add(1, Relaxed);
        let open = seen.open.fetch_add(1, Relaxed) + 1;
        seen.most_open.fetch_max(open, Relaxed);
        let requests = Arc::<AtomicUsize>::default();
        let used_up = Arc::<Notify>::default();
        let is_used_up = Arc::clone(&used_up);
        let (seen, progress, gate) = (seen.clone(), Arc::clone(&progress), Arc::clone(&gate));
        let is_healthy = Arc::clone(&is_healthy);
        let closed = (Arc::clone(&seen.open), Arc::clone(&progress));
        let service = service_fn(move |request| {
            let (seen, progress, gate) = (seen.clone(), Arc::clone(&progress), Arc::clone(&gate));
            let requests = requests.fetch_add(1, Relaxed) + 1;
            seen.most_requests.fetch_max(requests, Relaxed);
            if settings.max_requests == Some(requests) {
                is_used_up.notify_one();
            }
            let is_healthy = Arc::clone(&is_healthy);
            async move {
                if let Some(health) = health(&request, is_healthy.load(Relaxed)) {
                    return Ok(health);
                }
                let answer = async |request| answer(request).await.map(Full::from);
                gate.pass().await;
                let response = answer(request).await;
                seen.served.fetch_add(1, Relaxed);
                progress.notify_waiters();
                Ok::<_, Infallible>(response)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        if let Some(max) = settings.max_streams {
            builder.http2().max_concurrent_streams(max);
        }
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let own = GracefulShutdown::new();
        let connection = match settings.max_requests {
            None => graceful.watch(connection).left_future(),
            Some(_) => own.watch(connection).right_future(),
        };
        tasks.spawn(async move {
            tokio::pin!(connection);
            tokio::select! {
                _ = &mut connection => {}
                () = used_up.notified() => {
                    _ = tokio::join!(own.shutdown(), connection);
                }
            }
            let (open, progress) = closed;
            open.fetch_sub(1, Relaxed);
            progress.notify_waiters();
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// The answer to a health check, if it is one.
fn health(request: &Request<Incoming>, is_healthy: bool) -> Option<Response<Full<Bytes>>> {
    let response = Response::builder();
    Some(match request.uri().path() {
        "/healthz" => {
            let status = if is_healthy { 200 } else { 503 };
            response.status(status).body(Full::default()).unwrap()
        }
        "/grpc.health.v1.Health/Check" => {
            let status = if is_healthy { 1 } else { 2 };
            let frame = Bytes::from(vec![0, 0, 0, 0, 2, 0x08, status]);
            let response = response.header("grpc-status", "0");
            response.body(Full::from(frame)).unwrap()
        }
        _ => return None,
    })
}

async fn answer(request: Request<Incoming>) -> Response<Bytes> {
    let version = request.version();
    let path = request.uri().path_and_query().unwrap().to_string();
    let host = match request.uri().authority() {
        Some(authority) => authority.to_string(),
        None => request.headers()[header::HOST].to_str().unwrap().to_owned(),
    };
    let Ok(body) = request.into_body().collect().await else {
        return Response::builder().status(400).body(Bytes::new()).unwrap();
    };
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Response::new(format!("{version:?} {path} host={host} {body}").into())
}
