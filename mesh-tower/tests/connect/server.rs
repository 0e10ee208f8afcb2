//! An HTTP/1.1 and HTTP/2 server that can be stopped, killed and started again.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Notify, oneshot},
    task::{JoinHandle, JoinSet},
};

pub(crate) struct TestServer {
    address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) served: Arc<AtomicUsize>,
    progress: Arc<Notify>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, served) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let progress = Arc::new(Notify::new());
        let (stop, stopped) = oneshot::channel();
        let state = (
            Arc::clone(&connections),
            Arc::clone(&served),
            Arc::clone(&progress),
        );
        let task = tokio::spawn(serve(listener, state, stopped));
        Self {
            address,
            connections,
            served,
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

type State = (Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<Notify>);

async fn serve(
    listener: TcpListener,
    (connections, served, progress): State,
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
        connections.fetch_add(1, Relaxed);
        let (served, progress) = (Arc::clone(&served), Arc::clone(&progress));
        let service = service_fn(move |request| {
            let (served, progress) = (Arc::clone(&served), Arc::clone(&progress));
            async move {
                let response = answer(request).await;
                served.fetch_add(1, Relaxed);
                progress.notify_waiters();
                Ok::<_, Infallible>(response)
            }
        });
        let builder = auto::Builder::new(TokioExecutor::new());
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        tasks.spawn(graceful.watch(connection));
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let version = request.version();
    let path = request.uri().path_and_query().unwrap().to_string();
    let host = match request.uri().authority() {
        Some(authority) => authority.to_string(),
        None => request.headers()[header::HOST].to_str().unwrap().to_owned(),
    };
    let Ok(body) = request.into_body().collect().await else {
        return Response::builder()
            .status(400)
            .body(Full::default())
            .unwrap();
    };
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Response::new(Full::from(format!("{version:?} {path} host={host} {body}")))
}
