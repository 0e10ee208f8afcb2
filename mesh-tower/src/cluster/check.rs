//! Active health checks of a cluster's endpoints.
//!
//! Beside the requests. One task for each endpoint and check, over connections of its own with the
//! cluster's TLS, so that a full pool of connections is no sickness. A cluster that nobody has called
//! yet has none; an endpoint that waits for its first check keeps requests waiting. Several checks of
//! one cluster must all pass.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, Response, header};
use mesh_core::{
    config::{
        CircuitBreakers, Cluster, HealthCheck, HealthCheckKind, HttpHealthCheck, HttpVersion,
    },
    health::{CheckOutcome, CheckedEndpoint},
    rng::Rng,
    snapshot::ClusterSnapshot,
    stats::{CheckedHealth, EndpointStats},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{EndpointContext, EndpointService, Exchange as _, MakeEndpoint, endpoint::Signals};
use crate::{Body, BoxError, Outgoing, happy_eyeballs::Addresses, rng, telemetry::grpc_status};

/// Checks of one cluster that are under way at a time.
const CHECKS_AT_A_TIME: usize = 64;
/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 64 << 10;

/// The checks of one cluster.
pub(super) struct HealthChecks {
    at_a_time: Arc<Semaphore>,
    running: Mutex<HashMap<SocketAddr, Running>>,
}

/// The checks of one endpoint.
struct Running {
    additional_addresses: Option<Arc<[SocketAddr]>>,
    cluster: Arc<Cluster>,
    stats: Arc<EndpointStats>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Default for HealthChecks {
    fn default() -> Self {
        Self {
            at_a_time: Arc::new(Semaphore::new(CHECKS_AT_A_TIME)),
            running: Mutex::default(),
        }
    }
}

impl HealthChecks {
    /// Checks the endpoints of `snapshot` and no others. Checks that have not changed go on. Must be
    /// called inside a tokio runtime.
    pub(super) fn follow<M: MakeEndpoint>(
        &self,
        snapshot: &ClusterSnapshot,
        make: &Arc<M>,
        signals: &Arc<Signals>,
    ) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let config = snapshot.config.as_ref().ok();
        let Some(cluster) = config.filter(|cluster| !cluster.health_checks.is_empty()) else {
            for (_, ended) in running.drain() {
                ended.stats.set_checked(CheckedHealth::Healthy);
            }
            return;
        };
        let mut kept = HashMap::new();
        for (index, endpoint) in snapshot.endpoints.iter().enumerate() {
            let labels = snapshot.socket_labels(index).map(|labels| &**labels);
            let cluster = &cluster.of_endpoint(snapshot.hostname(index), labels);
            let additional = snapshot.additional_addresses(index);
            let fits = |held: &Running| {
                Arc::ptr_eq(&held.stats, &endpoint.stats)
                    && held.additional_addresses.as_ref() == additional
                    && held.cluster.health_checks == cluster.health_checks
                    && held.cluster.tls == cluster.tls
            };
            let held = running.remove(&endpoint.address).filter(fits);
            let held = held.unwrap_or_else(|| {
                let addresses = (endpoint.address, additional.cloned());
                self.start(addresses, &endpoint.stats, cluster, make, signals)
            });
            kept.insert(endpoint.address, held);
        }
        *running = kept;
    }

    fn start<M: MakeEndpoint>(
        &self,
        (address, additional_addresses): (SocketAddr, Option<Arc<[SocketAddr]>>),
        stats: &Arc<EndpointStats>,
        cluster: &Arc<Cluster>,
        make: &Arc<M>,
        signals: &Arc<Signals>,
    ) -> Running {
        stats.set_checked(CheckedHealth::Unchecked);
        let verdicts = Arc::new(Verdicts {
            stats: Arc::clone(stats),
            signals: Arc::clone(signals),
            unchecked: AtomicU32::new(cluster.health_checks.len() as u32),
            unhealthy: AtomicU32::new(0),
        });
        let tasks = (0..cluster.health_checks.len()).map(|index| {
            let checker = Checker {
                address,
                additional_addresses: additional_addresses.clone(),
                cluster: Arc::clone(cluster),
                index,
                make: Arc::clone(make),
                at_a_time: Arc::clone(&self.at_a_time),
                verdicts: Arc::clone(&verdicts),
            };
            tokio::spawn(checker.run()).abort_handle()
        });
        let tasks = tasks.collect();
        Running {
            additional_addresses,
            cluster: Arc::clone(cluster),
            stats: Arc::clone(stats),
            tasks,
        }
    }
}

/// What the checks of one endpoint say together.
struct Verdicts {
    stats: Arc<EndpointStats>,
    signals: Arc<Signals>,
    unchecked: AtomicU32,
    unhealthy: AtomicU32,
}

impl Verdicts {
    fn change(&self, before: CheckedHealth, now: CheckedHealth) {
        let count = |health| match health {
            CheckedHealth::Unchecked => Some(&self.unchecked),
            CheckedHealth::Unhealthy => Some(&self.unhealthy),
            CheckedHealth::Healthy => None,
        };
        if let Some(count) = count(now) {
            count.fetch_add(1, Relaxed);
        }
        if let Some(count) = count(before) {
            count.fetch_sub(1, Relaxed);
        }
        let unhealthy = self.unhealthy.load(Relaxed) > 0;
        self.stats.set_checked(match unhealthy {
            true => CheckedHealth::Unhealthy,
            false if self.unchecked.load(Relaxed) > 0 => CheckedHealth::Unchecked,
            false => CheckedHealth::Healthy,
        });
        self.signals.waiting.notify_waiters();
        self.signals.maintenance.notify_one();
    }
}

/// An endpoint that nobody else has: its connections end with it.
struct Own<E: EndpointService>(E);

impl<E: EndpointService> Drop for Own<E> {
    fn drop(&mut self) {
        self.0.disconnect();
    }
}

/// One check of one endpoint.
struct Checker<M: MakeEndpoint> {
    address: SocketAddr,
    additional_addresses: Option<Arc<[SocketAddr]>>,
    cluster: Arc<Cluster>,
    index: usize,
    make: Arc<M>,
    at_a_time: Arc<Semaphore>,
    verdicts: Arc<Verdicts>,
}

impl<M: MakeEndpoint> Checker<M> {
    async fn run(self) {
        let config = &self.cluster.health_checks[self.index];
        sleep(config.initial_jitter.mul_f64(rng::fork().unit())).await;
        let mut endpoint = CheckedEndpoint::default();
        let mut health = CheckedHealth::Unchecked;
        let mut service = None;
        loop {
            // Never closed.
            let permit = self.at_a_time.acquire().await;
            let checked = timeout(config.timeout, self.check(config, &mut service)).await;
            drop(permit);
            let outcome = match checked {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => {
                    // A connection of which nothing more is known.
                    service = None;
                    CheckOutcome::Failed
                }
            };
            if !config.reuse_connection {
                service = None;
            }
            let now = endpoint.observe(config, outcome);
            if now != health {
                tracing::info!(
                    target: "mesh::health",
                    cluster = %self.cluster.name,
                    endpoint = %self.address,
                    health = ?now,
                    "health check"
                );
                self.verdicts.change(health, now);
                health = now;
            }
            sleep(endpoint.pause(config, &mut rng::fork())).await;
        }
    }

    async fn check(
        &self,
        config: &HealthCheck,
        service: &mut Option<Own<M::Endpoint>>,
    ) -> Result<CheckOutcome, BoxError> {
        let (version, request) = match &config.kind {
            HealthCheckKind::Tcp { send, receive } => {
                return self.check_tcp(send, receive).await;
            }
            HealthCheckKind::Http(http) => {
                let version = match http.is_http2 {
                    true => HttpVersion::Http2,
                    false => HttpVersion::Http1,
                };
                (version, self.http_request(http)?)
            }
            HealthCheckKind::Grpc {
                service_name,
                authority,
            } => {
                let request = self.grpc_request(service_name, authority)?;
                (HttpVersion::Http2, request)
            }
        };
        let service = service.get_or_insert_with(|| Own(self.connection(version)));
        let mut exchange = service.0.dispatch(&mut Outgoing::new(request));
        let response = std::future::poll_fn(|cx| exchange.poll_response(cx)).await;
        let response = response.map_err(|error| error.to_string())?;
        match &config.kind {
            HealthCheckKind::Http(http) => {
                let status = response.status().as_u16();
                read(response).await?;
                Ok(judge(http, status))
            }
            _ => is_serving(response).await,
        }
    }

    /// An endpoint of its own to the same address, with the same TLS.
    fn connection(&self, version: HttpVersion) -> M::Endpoint {
        self.make.make(EndpointContext {
            address: self.address,
            additional_addresses: self.additional_addresses.clone(),
            cluster: Arc::new(Cluster {
                http_version: version,
                circuit_breakers: CircuitBreakers::default(),
                ..(*self.cluster).clone()
            }),
            stats: Arc::default(),
            signals: Arc::default(),
        })
    }

    fn http_request(&self, config: &HttpHealthCheck) -> Result<Request<Body>, BoxError> {
        let mut request = Request::builder()
            .method(config.method.clone())
            .uri(self.uri(&config.host, &config.path))
            .header(header::USER_AGENT, USER_AGENT)
            .body(Body::empty())?;
        let headers = config.headers.iter();
        for (name, value) in headers {
            request.headers_mut().append(name, value.clone());
        }
        Ok(request)
    }

    fn grpc_request(&self, service: &str, authority: &str) -> Result<Request<Body>, BoxError> {
        let mut message = BytesMut::new();
        if !service.is_empty() {
            // Field 1 of HealthCheckRequest; the length is a varint.
            message.put_u8(0x0a);
            let mut length = service.len();
            while length > 0x7f {
                message.put_u8(length as u8 | 0x80);
                length >>= 7;
            }
            message.put_u8(length as u8);
            message.put_slice(service.as_bytes());
        }
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(message.len() as u32);
        body.put_slice(&message);
        Ok(Request::post(self.uri(authority, GRPC_PATH))
            .header(header::CONTENT_TYPE, "application/grpc+proto")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, USER_AGENT)
            .body(Body::from(body.freeze()))?)
    }

    fn uri(&self, host: &str, path: &str) -> String {
        let scheme = match self.cluster.tls {
            Some(_) => "https",
            None => "http",
        };
        // Names of clusters have characters that an authority must not.
        let name = self.cluster.name.as_str();
        let is_authority = name.parse::<http::uri::Authority>().is_ok();
        match host {
            "" if is_authority => format!("{scheme}://{name}{path}"),
            "" => format!("{scheme}://{}{path}", self.address),
            host => format!("{scheme}://{host}{path}"),
        }
    }

    async fn check_tcp(&self, send: &[u8], receive: &[Vec<u8>]) -> Result<CheckOutcome, BoxError> {
        let addresses = Addresses::new(self.address, self.additional_addresses.as_ref());
        let (mut stream, _) = addresses.connect().await?;
        stream.write_all(send).await?;
        let mut answer = Vec::new();
        while !contains_all(&answer, receive) {
            if answer.len() > ANSWER_MAX || stream.read_buf(&mut answer).await? == 0 {
                return Ok(CheckOutcome::Failed);
            }
        }
        Ok(CheckOutcome::Passed)
    }
}

const USER_AGENT: &str = "mesh-rs health check";
const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";

/// Whether the parts are in `answer`, one after the other.
fn contains_all(mut answer: &[u8], parts: &[Vec<u8>]) -> bool {
    parts.iter().filter(|part| !part.is_empty()).all(|part| {
        let mut windows = answer.windows(part.len());
        let found = windows.position(|window| window == part.as_slice());
        found.is_some_and(|at| {
            answer = &answer[at + part.len()..];
            true
        })
    })
}

fn judge(config: &HttpHealthCheck, status: u16) -> CheckOutcome {
    let is_in = |ranges: &[Range<u16>]| ranges.iter().any(|range| range.contains(&status));
    let is_expected = match &config.expected_statuses[..] {
        [] => status == 200,
        ranges => is_in(ranges),
    };
    match is_expected {
        true => CheckOutcome::Passed,
        false if is_in(&config.retriable_statuses) => CheckOutcome::Failed,
        false => CheckOutcome::FailedForGood,
    }
}

/// The bytes of a response and its trailers.
async fn read<B>(response: Response<B>) -> Result<(Bytes, Option<http::HeaderMap>), BoxError>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let mut body = response.into_body();
    let (mut bytes, mut trailers) = (BytesMut::new(), None);
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        match frame.transpose().map_err(Into::into)? {
            None => return Ok((bytes.freeze(), trailers)),
            Some(frame) => match frame.into_data() {
                Ok(data) => bytes.put(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
        if bytes.len() > ANSWER_MAX {
            return Err(format!("the answer is longer than {ANSWER_MAX} bytes").into());
        }
    }
}

/// Whether a gRPC answer says SERVING.
async fn is_serving<B>(response: Response<B>) -> Result<CheckOutcome, BoxError>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    /// `HealthCheckResponse { status: SERVING }` in its frame.
    const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x01];
    let of_head = grpc_status(response.headers());
    let (bytes, trailers) = read(response).await?;
    let status = of_head.or_else(|| grpc_status(&trailers?));
    Ok(match status {
        Some(0) if bytes == SERVING => CheckOutcome::Passed,
        _ => CheckOutcome::Failed,
    })
}
