//! How long it takes from the control plane's word that an endpoint moved to the first call there.
//!
//! The endpoints are two servers in this process, in turns; somebody else calls all the time.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::Stream;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle, time::timeout};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    harness::child::Process,
    wire::proto::{
        Payload,
        echo_server::{Echo, EchoServer},
    },
};

/// At most so many moves.
const MOVES: usize = 40;
/// A move that takes longer has failed.
const MOVE_MAX: Duration = Duration::from_secs(10);
/// Calls settle for so long between two moves.
const PAUSE: Duration = Duration::from_millis(20);

/// Moves the first cluster back and forth for about `length`; how long each move took, sorted.
///
/// # Errors
/// When a move is never seen.
pub(super) async fn measure(
    control: &mut Process,
    length: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let targets = [Target::start().await?, Target::start().await?];
    let (start, mut took) = (Instant::now(), Vec::new());
    for target in targets.iter().cycle().take(MOVES) {
        if start.elapsed() > length {
            break;
        }
        let mut seen = std::pin::pin!(target.called.notified());
        seen.as_mut().enable();
        let told = Instant::now();
        control.tell(&format!("to {}", target.address)).await?;
        timeout(MOVE_MAX, seen)
            .await
            .context("a call that follows")?;
        took.push(told.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    control.tell("back").await?;
    // The servers are there until nobody calls them.
    tokio::time::sleep(PAUSE * 10).await;
    took.sort();
    Ok(took)
}

/// An echo server that tells of each call.
struct Target {
    address: SocketAddr,
    called: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Target {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let called = Arc::<Notify>::default();
        let service = EchoServer::new(Told(Arc::clone(&called)));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            _ = server.serve_with_incoming(incoming).await;
        });
        Ok(Self {
            address,
            called,
            task,
        })
    }
}

struct Told(Arc<Notify>);

#[tonic::async_trait]
impl Echo for Told {
    async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.0.notify_waiters();
        Ok(Response::new(request.into_inner()))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

    async fn stream(
        &self,
        _: Request<Streaming<Payload>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("unary calls only"))
    }
}
