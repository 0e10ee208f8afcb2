//! One control plane: its link, stage by stage, with its side of the protocol.
//!
//! Stage 1 meets stage 2. Waits for the next thing that happens and moves requests out; what a
//! response means is for the driver. A link is made only while something is wanted, and no attempt
//! follows the last one sooner than the backoff allows, not even after a stream that worked. While
//! watchers are busy with the last response, the next one is not read and no timer that it could stop
//! goes on; requests do.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use mesh_core::rng::Rng;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    ads::{Machine, Response, Variant},
    bootstrap::{Bootstrap, Server, feature},
    cache::ErrorPolicy,
    dump::ServerDump,
    graph::Source,
    metrics::ServerMetrics,
    transport::{
        self, AdsStream, Connected, KeepAlive, StreamStatus, backoff::Backoff, node,
        own::OwnCertificate,
    },
    watcher::{Gate, PROCESSING_WARN_AFTER},
};

/// A stream without any response for this long is given up: the server hangs (gRPC C-core).
const FIRST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// How a stream is kept.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionOptions {
    pub(crate) backoff_base: Duration,
    pub(crate) backoff_cap: Duration,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) own: OwnCertificate,
    /// `None` is as the server's features say.
    pub(crate) variant: Option<Variant>,
}

/// One control plane.
pub(crate) struct Connection {
    pub(crate) server: Arc<Server>,
    pub(crate) source: Source,
    pub(crate) machine: Machine,
    /// The last refusal sent to it.
    pub(crate) last_nack: Option<String>,
    pub(crate) metrics: ServerMetrics,
    keep_alive: KeepAlive,
    own: OwnCertificate,
    link: Link,
    backoff: Backoff,
    status: StreamStatus,
    /// Since when watchers have been busy with the last response.
    paused_at: Option<Instant>,
    /// Whether that has been told.
    is_pause_told: bool,
}

enum Link {
    /// Not before this time.
    Waiting(Instant),
    Connecting {
        since: Instant,
        attempt: BoxFuture<'static, Result<Connected, String>>,
    },
    Open {
        since: Instant,
        stream: AdsStream,
        has_response: bool,
        /// From when on the server could have been heard.
        silent_since: Instant,
    },
}

/// What happens on a connection.
#[derive(Debug)]
pub(crate) enum Event {
    Due,
    Connected(Result<Connected, String>),
    Response(Response),
    /// The stream is over.
    Ended(Option<Status>),
    Writable,
    /// Watchers have finished with the last response, or take long.
    Gate,
    Expired,
    Hangs,
}

impl Connection {
    pub(crate) fn start(
        bootstrap: &Bootstrap,
        server: Server,
        options: &ConnectionOptions,
    ) -> Self {
        let policy = ErrorPolicy {
            fail_on_data_errors: server.has(feature::FAIL_ON_DATA_ERRORS),
            ignore_resource_deletion: server.has(feature::IGNORE_RESOURCE_DELETION),
            resource_timer_is_transient: server.has(feature::RESOURCE_TIMER_IS_TRANSIENT_ERROR)
                || server.has(feature::RESOURCE_TIMER_IS_TRANSIENT_FAILURE),
        };
        let announced = match server.has(feature::DELTA) {
            true => Variant::Incremental,
            false => Variant::StateOfTheWorld,
        };
        let variant = options.variant.unwrap_or(announced);
        let machine = Machine::new(variant, node::node(&bootstrap.node))
            .with_transient_timer(policy.resource_timer_is_transient);
        let source = Source {
            server: server.uri.to_string().into(),
            policy,
            gate: Gate::default(),
        };
        let metrics = ServerMetrics {
            server: server.uri.to_string(),
            ..ServerMetrics::default()
        };
        Self {
            metrics,
            server: Arc::new(server),
            source,
            machine,
            last_nack: None,
            keep_alive: options.keep_alive,
            own: options.own.clone(),
            link: Link::Waiting(Instant::now()),
            backoff: Backoff::new(options.backoff_base, options.backoff_cap),
            status: StreamStatus::Connecting,
            paused_at: None,
            is_pause_told: false,
        }
    }

    pub(crate) fn status(&self) -> &StreamStatus {
        &self.status
    }

    pub(crate) fn dump(&self) -> ServerDump {
        ServerDump {
            uri: self.server.uri.to_string(),
            status: self.status.clone(),
            variant: self.machine.variant(),
            last_nack: self.last_nack.clone(),
        }
    }

    /// Sends as many requests as there is room for.
    pub(crate) fn flush(&mut self) {
        let Link::Open { stream, .. } = &self.link else {
            return;
        };
        let now = Instant::now().into_std();
        while self.machine.has_request() {
            // Without room requests merge in the machine until there is some.
            let Ok(permit) = stream.requests.try_reserve() else {
                return;
            };
            match self.machine.poll_request(now) {
                Some(request) => permit.send(request),
                None => return,
            }
        }
    }

    /// Closes a link that nothing is wanted over.
    pub(crate) fn close_if_idle(&mut self) {
        let is_waiting = matches!(self.link, Link::Waiting(_));
        if !is_waiting && !self.machine.has_names() {
            tracing::info!(server = %self.server.uri, "not needed any more");
            self.machine.stream_closed();
            self.metrics.connected = false;
            self.link = Link::Waiting(Instant::now() + self.backoff.base());
            self.status = StreamStatus::Connecting;
        }
    }

    /// Notes whether watchers are busy. Timers stand still meanwhile: what would stop them may be
    /// there, unread.
    fn mind_the_gate(&mut self) {
        let now = Instant::now();
        match (self.source.gate.is_open(), self.paused_at) {
            (false, None) => self.paused_at = Some(now),
            (true, Some(since)) => {
                self.paused_at = None;
                self.is_pause_told = false;
                self.machine.postpone(now.duration_since(since));
                if let Link::Open { silent_since, .. } = &mut self.link {
                    *silent_since = now;
                }
            }
            (false, Some(since)) => {
                if !self.is_pause_told && now.duration_since(since) >= PROCESSING_WARN_AFTER {
                    self.is_pause_told = true;
                    tracing::warn!(
                        server = %self.server.uri,
                        "a watcher has not finished with the last response; the next one waits"
                    );
                }
            }
            (true, None) => {}
        }
    }

    /// The next thing that happens. Can be dropped and called again without losing anything.
    pub(crate) async fn next(&mut self) -> Event {
        self.mind_the_gate();
        let paused_at = self.paused_at;
        let deadline = match paused_at {
            None => self.machine.next_deadline().map(Instant::from_std),
            Some(_) => None,
        };
        let gate = self.source.gate.clone();
        let is_pause_told = self.is_pause_told;
        let gate = async {
            match paused_at {
                None => std::future::pending().await,
                Some(_) if is_pause_told => gate.opened().await,
                Some(since) => tokio::select! {
                    () = gate.opened() => {}
                    () = tokio::time::sleep_until(since + PROCESSING_WARN_AFTER) => {}
                },
            }
        };
        let is_blocked = self.machine.has_request();
        let is_receptive = self.machine.is_receptive() && paused_at.is_none();
        let is_needed = self.machine.has_names();
        let expired = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let link = async {
            match &mut self.link {
                // Nobody needs a connection as long as nothing is watched.
                Link::Waiting(_) if !is_needed => std::future::pending().await,
                Link::Waiting(until) => {
                    tokio::time::sleep_until(*until).await;
                    Event::Due
                }
                Link::Connecting { attempt, .. } => Event::Connected(attempt.await),
                Link::Open {
                    stream,
                    silent_since,
                    has_response,
                    ..
                } => {
                    let AdsStream {
                        requests,
                        responses,
                    } = stream;
                    let is_silent = !*has_response && is_needed && paused_at.is_none();
                    let hangs = tokio::time::sleep_until(*silent_since + FIRST_RESPONSE_TIMEOUT);
                    tokio::select! {
                        response = responses.next(), if is_receptive => match response {
                            Some(Ok(response)) => Event::Response(response),
                            Some(Err(status)) => Event::Ended(Some(status)),
                            None => Event::Ended(None),
                        },
                        Ok(_) = requests.reserve(), if is_blocked => Event::Writable,
                        () = hangs, if is_silent => Event::Hangs,
                        else => std::future::pending().await,
                    }
                }
            }
        };
        tokio::select! {
            event = link => event,
            () = gate => Event::Gate,
            () = expired => Event::Expired,
        }
    }

    pub(crate) fn connect(&mut self) {
        let server = Arc::clone(&self.server);
        self.link = Link::Connecting {
            since: Instant::now(),
            attempt: transport::connect(server, self.keep_alive, self.own.clone()).boxed(),
        };
    }

    pub(crate) fn opened(&mut self, connected: &Connected) {
        tracing::info!(server = %self.server.uri, "connected to the control plane");
        self.machine.stream_opened();
        // After a failure only a response counts (gRFC A78).
        self.metrics.connected |= self.metrics.failures == 0;
        self.status = StreamStatus::Connected;
        self.link = Link::Open {
            since: Instant::now(),
            stream: AdsStream::open(connected, self.machine.variant()),
            has_response: false,
            silent_since: Instant::now(),
        };
    }

    /// Puts the caller in the place of the server: returns what is sent to it.
    #[cfg(feature = "test-util")]
    pub(crate) fn open_loopback(&mut self) -> tokio::sync::mpsc::Receiver<crate::ads::Request> {
        let (stream, requests) = AdsStream::loopback();
        self.machine.stream_opened();
        self.link = Link::Open {
            since: Instant::now(),
            stream,
            has_response: false,
            silent_since: Instant::now(),
        };
        requests
    }

    /// A response has been read.
    pub(crate) fn responded(&mut self) {
        self.metrics.connected = true;
        if let Link::Open { has_response, .. } = &mut self.link {
            *has_response = true;
        }
    }

    /// The stream has ended; returns the error in words.
    pub(crate) fn ended(&mut self, status: Option<&Status>) -> String {
        let Some(status) = status else {
            return "the server ended the stream".into();
        };
        let is_unknown = status.code() == Code::Unimplemented;
        if is_unknown && self.machine.variant() == Variant::Incremental {
            tracing::warn!(
                server = %self.server.uri,
                "the control plane does not speak the incremental variant; going on without"
            );
            self.machine.set_variant(Variant::StateOfTheWorld);
        }
        format!("{:?}: {}", status.code(), status.message())
    }

    /// The attempt has failed or the stream has ended; schedules the next one. Returns whether the
    /// stream had worked: then its end is ordinary (gRFC A57), and the next attempt will tell.
    pub(crate) fn closed(&mut self, error: &str, rng: &mut impl Rng) -> bool {
        let now = Instant::now();
        let mut has_worked = false;
        let since = match &self.link {
            Link::Waiting(_) => now,
            Link::Connecting { since, .. } => *since,
            Link::Open {
                since,
                has_response,
                ..
            } => {
                has_worked = *has_response;
                *since
            }
        };
        let until = if has_worked {
            now + self.backoff.after_success(rng)
        } else {
            // From the start of the attempt: a slow failure is not waited for twice.
            (since + self.backoff.after_failure(rng)).max(now)
        };
        let retry_in_ms = until.duration_since(now).as_millis() as u64;
        let server = &self.server.uri;
        tracing::warn!(%server, error, retry_in_ms, "no stream to the control plane");
        self.machine.stream_closed();
        let since = match &self.status {
            StreamStatus::Disconnected { since, .. } => *since,
            StreamStatus::Connecting | StreamStatus::Connected => SystemTime::now(),
        };
        self.status = StreamStatus::Disconnected {
            since,
            error: error.to_owned(),
        };
        self.link = Link::Waiting(until);
        if !has_worked {
            self.metrics.connected = false;
            self.metrics.failures += 1;
        }
        has_worked
    }
}
