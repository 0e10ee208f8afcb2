//! Load reports of endpoints out of band (ORCA `StreamCoreMetrics`, gRFC A51).
//!
//! Beside the requests. Where the policy asks for them, each endpoint has one stream of reports, on the
//! connection that its requests have: none is made for it, and it is no request of the cluster. The
//! stream goes to the next connection when that takes the requests, and ends with the endpoint. A
//! server without the service is not asked again on the same connection; after other failures a pause
//! grows. [`ClusterRuntime`]'s follower looks after the streams, as often as it maintains the cluster.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, Response, StatusCode, header};
use mesh_core::{config::Backoff, retry::backoff, snapshot::ClusterSnapshot};
use tokio::{task::AbortHandle, time::Instant};

use super::{
    ClusterRuntime, EndpointService, Exchange, MakeEndpoint, endpoint::IsCurrent,
    slot::EndpointSlot,
};
use crate::{
    Body, BoxError, Outgoing,
    orca::{ORCA_TRAILER_MAX, STREAM_CORE_METRICS, decode_load_report, encode_report_request},
    rng,
    telemetry::grpc_status,
};

/// Pause after a stream that failed: doubles up to its bound while no report comes (gRPC's connection
/// backoff).
const PAUSE: Backoff = Backoff {
    base: Duration::from_secs(1),
    max: Duration::from_secs(120),
};
/// `UNIMPLEMENTED`.
const UNIMPLEMENTED: u32 = 12;
/// Flag and length before each message of gRPC.
const FRAME_HEADER: usize = 5;

/// The streams of one cluster.
pub(super) struct LoadReports<M: MakeEndpoint> {
    reporters: Mutex<HashMap<SocketAddr, Reporter<M>>>,
}

impl<M: MakeEndpoint> Default for LoadReports<M> {
    fn default() -> Self {
        Self {
            reporters: Mutex::default(),
        }
    }
}

impl<M: MakeEndpoint> LoadReports<M> {
    /// Ends the streams of endpoints that left.
    pub(super) fn keep(&self, services: &[Arc<EndpointSlot<M>>]) {
        let mut reporters = self.lock();
        if reporters.is_empty() {
            return;
        }
        let kept = super::slot::by_address(services);
        reporters.retain(|_, reporter| super::slot::is_among(&reporter.slot, &kept));
    }

    /// Opens streams that are wanted and can be, and ends those that are not. Returns when to look again,
    /// if nothing happens before. Must be called inside a tokio runtime.
    pub(super) fn look(
        &self,
        snapshot: &ClusterSnapshot,
        services: &[Arc<EndpointSlot<M>>],
        runtime: &Weak<ClusterRuntime<M>>,
    ) -> Option<Instant> {
        let config = snapshot.config.as_ref().ok();
        let period = config.and_then(|config| config.lb_policy.oob_reporting_period());
        let Some(period) = period else {
            self.lock().clear();
            return None;
        };
        let mut reporters = self.lock();
        let now = Instant::now();
        let due = services.iter().enumerate().filter_map(|(index, slot)| {
            let reporter = reporters.entry(slot.address);
            let reporter = reporter.or_insert_with(|| Reporter::new(slot));
            if !Arc::ptr_eq(&reporter.slot, slot) {
                *reporter = Reporter::new(slot);
            }
            reporter.look(period, now, || Asked {
                period,
                authority: snapshot.hostname(index).map(str::to_owned),
                runtime: Weak::clone(runtime),
            })
        });
        due.min()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Reporter<M>>> {
        self.reporters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a stream is opened with.
struct Asked<M: MakeEndpoint> {
    period: Duration,
    authority: Option<String>,
    runtime: Weak<ClusterRuntime<M>>,
}

/// The stream of one endpoint.
struct Reporter<M: MakeEndpoint> {
    slot: Arc<EndpointSlot<M>>,
    stream: Option<OpenStream>,
    /// Streams in a row that ended without a report.
    failures: u32,
    /// Not opened again before this.
    due: Option<Instant>,
}

/// A stream, or what is left of it on its connection.
struct OpenStream {
    period: Duration,
    is_current: IsCurrent,
    state: Arc<StreamState>,
    task: AbortHandle,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How far a stream has come; 0 is not to a report.
#[derive(Debug, Default)]
struct StreamState(AtomicU8);

impl StreamState {
    const REPORTING: u8 = 1;
    const FAILED: u8 = 2;
    const FAILED_LATER: u8 = 3;
    const UNIMPLEMENTED: u8 = 4;

    fn set(&self, state: u8) {
        self.0.store(state, Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Relaxed)
    }
}

impl<M: MakeEndpoint> Reporter<M> {
    fn new(slot: &Arc<EndpointSlot<M>>) -> Self {
        Self {
            slot: Arc::clone(slot),
            stream: None,
            failures: 0,
            due: None,
        }
    }

    /// Opens the stream if it is time to; returns when that will be.
    fn look(
        &mut self,
        period: Duration,
        now: Instant,
        asked: impl FnOnce() -> Asked<M>,
    ) -> Option<Instant> {
        if let Some(stream) = &self.stream {
            let is_current = stream.period == period && (stream.is_current)();
            match stream.state.get() {
                _ if !is_current => (self.failures, self.due) = (0, None),
                StreamState::FAILED => self.fail(self.failures + 1, now),
                StreamState::FAILED_LATER => self.fail(1, now),
                _ => return None,
            }
            self.stream = None;
        }
        if let Some(due) = self.due.filter(|due| *due > now) {
            return Some(due);
        }
        self.stream = self.open(asked());
        None
    }

    fn fail(&mut self, failures: u32, now: Instant) {
        self.failures = failures;
        self.due = Some(now + backoff(&PAUSE, failures, &mut rng::fork()));
    }

    /// `None` while there is no connection for it.
    fn open(&self, asked: Asked<M>) -> Option<OpenStream> {
        let request = request(&self.slot, &asked)?;
        let attached = self.slot.service.attach(&mut Outgoing::new(request))?;
        let state = Arc::<StreamState>::default();
        let reader = Reader {
            slot: Arc::clone(&self.slot),
            runtime: asked.runtime,
            state: Arc::clone(&state),
        };
        Some(OpenStream {
            period: asked.period,
            is_current: attached.is_current,
            state,
            task: tokio::spawn(reader.run(attached.exchange)).abort_handle(),
        })
    }
}

fn request<M: MakeEndpoint>(slot: &EndpointSlot<M>, asked: &Asked<M>) -> Option<Request<Body>> {
    let scheme = match slot.cluster.tls {
        Some(_) => "https",
        None => "http",
    };
    let address = || slot.address.to_string();
    let authority = asked.authority.clone().unwrap_or_else(address);
    let message = encode_report_request(asked.period);
    let mut body = BytesMut::with_capacity(FRAME_HEADER + message.len());
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(&message);
    Request::post(format!("{scheme}://{authority}{STREAM_CORE_METRICS}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Body::from(body.freeze()))
        .ok()
}

const USER_AGENT: &str = "mesh-rs load reports";

/// Reads a stream to its end.
struct Reader<M: MakeEndpoint> {
    slot: Arc<EndpointSlot<M>>,
    runtime: Weak<ClusterRuntime<M>>,
    state: Arc<StreamState>,
}

/// Why a stream ended.
enum End {
    /// The server has no such service.
    Unimplemented,
    Failed(String),
}

impl From<BoxError> for End {
    fn from(error: BoxError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl<M: MakeEndpoint> Reader<M> {
    async fn run(self, mut exchange: <M::Endpoint as EndpointService>::Exchange) {
        let response = std::future::poll_fn(|cx| exchange.poll_response(cx)).await;
        let end = match response {
            Ok(response) => self.read(response).await,
            Err(error) => End::Failed(error.to_string()),
        };
        let (endpoint, cluster) = (self.slot.address, &self.slot.cluster.name);
        match end {
            End::Unimplemented => {
                tracing::warn!(
                    target: "mesh::orca", %cluster, %endpoint,
                    "the server does not report its load out of band (UNIMPLEMENTED): it is not \
                     asked again on this connection"
                );
                self.state.set(StreamState::UNIMPLEMENTED);
            }
            End::Failed(why) => {
                tracing::debug!(target: "mesh::orca", %cluster, %endpoint, why, "load reports ended");
                self.state.set(match self.state.get() {
                    StreamState::REPORTING => StreamState::FAILED_LATER,
                    _ => StreamState::FAILED,
                });
            }
        }
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.signals.maintenance.notify_one();
        }
    }

    async fn read<B>(&self, response: Response<B>) -> End
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        match (response.status(), grpc_status(response.headers())) {
            (StatusCode::NOT_FOUND, _) | (_, Some(UNIMPLEMENTED)) => return End::Unimplemented,
            (StatusCode::OK, None) => {}
            (status, code) => return End::Failed(format!("HTTP {status}, grpc-status {code:?}")),
        }
        let (mut body, mut buffer) = (response.into_body(), BytesMut::new());
        loop {
            let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx));
            match frame
                .await
                .map(|frame| frame.map(http_body::Frame::into_data))
            {
                None => return End::Failed("the server ended the stream".to_owned()),
                Some(Err(error)) => return End::Failed(error.into().to_string()),
                Some(Ok(Ok(data))) => buffer.put(data),
                Some(Ok(Err(frame))) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return match grpc_status(&trailers) {
                        Some(UNIMPLEMENTED) => End::Unimplemented,
                        code => End::Failed(format!("grpc-status {code:?}")),
                    };
                }
            }
            if let Err(error) = self.take(&mut buffer) {
                return error.into();
            }
        }
    }

    /// Takes the messages that are there.
    fn take(&self, buffer: &mut BytesMut) -> Result<(), BoxError> {
        while buffer.len() >= FRAME_HEADER {
            let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize;
            if buffer[0] != 0 {
                return Err("a report is compressed, which was not offered".into());
            }
            if length > ORCA_TRAILER_MAX {
                return Err(format!("a report is longer than {ORCA_TRAILER_MAX} bytes").into());
            }
            if buffer.len() < FRAME_HEADER + length {
                return Ok(());
            }
            buffer.advance(FRAME_HEADER);
            let message = buffer.split_to(length);
            let report = decode_load_report(&message).ok_or("a report is malformed")?;
            self.state.set(StreamState::REPORTING);
            if let Some(runtime) = self.runtime.upgrade() {
                let now = Instant::now().into_std();
                let state = runtime.load();
                state.snapshot.take_report(&self.slot.stats, now, &report);
            }
        }
        Ok(())
    }
}
