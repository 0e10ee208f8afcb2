//! The only task: stream, timers and commands in; requests and snapshots out.
//!
//! Stages 1 to 7 in one place, each a synchronous call. It owns everything above the line and is
//! never waited for by requests. It ends, and the stream with it, when the last handle and the last
//! watch are gone: it holds no sender of its own commands.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, SystemTime},
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{Locality, Node as NodeProto, node::UserAgentVersionType},
        service::discovery::v3::DiscoveryResponse,
    },
    google::protobuf::{ListValue, Struct, Value, value::Kind as ValueKind},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use mesh_core::rng::{Rng, SplitMix64};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tonic::{Status, transport::Channel};

use crate::{
    ads::{Sotw, Variant},
    bootstrap::{Bootstrap, Node, ServerUri},
    graph::{Graph, Origin, WatchId, Watcher},
    resource::DecodeContext,
    transport::{self, AdsStream, KeepAlive, StreamStatus, backoff::Backoff},
};

/// What this library can do beyond the basic protocol.
const CLIENT_FEATURES: [&str; 1] = ["xds.config.resource-in-sotw"];

/// Commands taken in one turn before requests go out.
const COMMANDS_PER_TURN_MAX: usize = 1024;

/// What handles ask for.
#[derive(Debug)]
pub(crate) enum Command {
    Watch(WatchId, Watcher),
    Unwatch(WatchId),
}

/// How the stream is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DriverOptions {
    pub(crate) backoff_base: Duration,
    pub(crate) backoff_cap: Duration,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) seed: u64,
}

/// Keeps one client's stream and configuration. Run it on any tokio runtime; the client does
/// nothing without it.
#[must_use = "the client does nothing until the driver runs"]
pub struct Driver {
    commands: mpsc::UnboundedReceiver<Command>,
    status: watch::Sender<StreamStatus>,
    server: ServerUri,
    keep_alive: KeepAlive,
    context: DecodeContext,
    ads: Sotw,
    graph: Graph,
    link: Link,
    backoff: Backoff,
    rng: SplitMix64,
}

/// The connection, stage by stage.
enum Link {
    /// Not before this time.
    Waiting(Instant),
    Connecting {
        since: Instant,
        attempt: BoxFuture<'static, Result<Channel, String>>,
    },
    Open {
        since: Instant,
        stream: AdsStream,
        has_response: bool,
    },
}

enum Event {
    Command(Option<Command>),
    Due,
    Connected(Result<Channel, String>),
    Response(Option<Result<DiscoveryResponse, Status>>),
    Writable,
    Expired,
}

impl Driver {
    pub(crate) fn new(
        bootstrap: &Bootstrap,
        server: ServerUri,
        commands: mpsc::UnboundedReceiver<Command>,
        status: watch::Sender<StreamStatus>,
        options: DriverOptions,
    ) -> Self {
        let mut rng = SplitMix64::new(options.seed);
        let origin = Origin {
            node: bootstrap.node.id.clone(),
            server: server.to_string(),
        };
        Self {
            commands,
            status,
            server,
            keep_alive: options.keep_alive,
            context: DecodeContext::new(&bootstrap.certificate_providers),
            ads: Sotw::new(node(&bootstrap.node)),
            graph: Graph::new(origin, rng.next_u64()),
            link: Link::Waiting(Instant::now()),
            backoff: Backoff::new(options.backoff_base, options.backoff_cap),
            rng,
        }
    }

    /// Runs until the last handle and the last watch are dropped.
    pub async fn run(mut self) {
        loop {
            self.turn();
            match self.next_event().await {
                Event::Command(None) => {
                    tracing::debug!("nobody uses the xDS client any more");
                    return;
                }
                Event::Command(Some(command)) => self.take_commands(command),
                Event::Due => self.connect(),
                Event::Connected(Ok(channel)) => self.opened(channel),
                Event::Connected(Err(error)) => self.closed(&error),
                Event::Response(Some(Ok(response))) => self.received(response),
                Event::Response(Some(Err(status))) => {
                    self.closed(&format!("{:?}: {}", status.code(), status.message()));
                }
                Event::Response(None) => self.closed("the server ended the stream"),
                Event::Writable => {}
                Event::Expired => {
                    let missing = self.ads.expire(Instant::now().into_std());
                    self.graph.expire(missing);
                }
            }
        }
    }

    /// Tells the stream what changed: names first, then as many requests as it takes.
    fn turn(&mut self) {
        self.graph.collect();
        for change in self.graph.take_changes() {
            if change.is_wanted {
                self.ads.subscribe(change.kind, &change.name);
            } else {
                self.ads.unsubscribe(change.kind, &change.name);
            }
        }
        let Link::Open { stream, .. } = &self.link else {
            return;
        };
        let now = Instant::now().into_std();
        while self.ads.has_request() {
            // Without room requests merge in the machine until there is some.
            let Ok(permit) = stream.requests.try_reserve() else {
                return;
            };
            match self.ads.poll_request(now) {
                Some(request) => permit.send(request),
                None => return,
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        let deadline = self.ads.next_deadline().map(Instant::from_std);
        let is_blocked = self.ads.has_request();
        let is_needed = self.ads.has_names();
        let commands = &mut self.commands;
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
                Link::Open { stream, .. } => {
                    let AdsStream {
                        requests,
                        responses,
                    } = stream;
                    tokio::select! {
                        response = responses.next() => Event::Response(response),
                        Ok(_) = requests.reserve(), if is_blocked => Event::Writable,
                    }
                }
            }
        };
        tokio::select! {
            command = commands.recv() => Event::Command(command),
            event = link => event,
            () = expired => Event::Expired,
        }
    }

    fn take_commands(&mut self, first: Command) {
        let mut next = Some(first);
        for _ in 0..COMMANDS_PER_TURN_MAX {
            match next.take() {
                Some(Command::Watch(id, watcher)) => self.graph.add(id, watcher),
                Some(Command::Unwatch(id)) => self.graph.remove(id),
                None => return,
            }
            next = self.commands.try_recv().ok();
        }
        // Taken out of the queue already.
        match next {
            Some(Command::Watch(id, watcher)) => self.graph.add(id, watcher),
            Some(Command::Unwatch(id)) => self.graph.remove(id),
            None => {}
        }
    }

    fn connect(&mut self) {
        let attempt = transport::connect(self.server.clone(), self.keep_alive).boxed();
        self.link = Link::Connecting {
            since: Instant::now(),
            attempt,
        };
    }

    fn opened(&mut self, channel: Channel) {
        tracing::info!(server = %self.server, "connected to the control plane");
        self.ads.stream_opened();
        self.graph.connected();
        self.status.send_replace(StreamStatus::Connected);
        self.link = Link::Open {
            since: Instant::now(),
            stream: AdsStream::open(channel),
            has_response: false,
        };
    }

    fn received(&mut self, response: DiscoveryResponse) {
        if let Link::Open { has_response, .. } = &mut self.link {
            *has_response = true;
        }
        if let Some(update) = self.ads.receive(response, &self.context) {
            self.graph.apply(update);
        }
    }

    /// The attempt has failed or the stream has ended; schedules the next one.
    fn closed(&mut self, error: &str) {
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
            now + self.backoff.after_success(&mut self.rng)
        } else {
            // From the start of the attempt: a slow failure is not waited for twice.
            (since + self.backoff.after_failure(&mut self.rng)).max(now)
        };
        let retry_in_ms = until.duration_since(now).as_millis() as u64;
        tracing::warn!(server = %self.server, error, retry_in_ms, "no stream to the control plane");
        self.ads.stream_closed();
        // A stream that ends after a response is ordinary (gRFC A57); the next attempt will tell.
        if !has_worked {
            self.graph.disconnected(error);
        }
        self.status.send_if_modified(|status| {
            let since = match status {
                StreamStatus::Disconnected { since, .. } => *since,
                StreamStatus::Connecting | StreamStatus::Connected => SystemTime::now(),
            };
            *status = StreamStatus::Disconnected {
                since,
                error: error.to_owned(),
            };
            true
        });
        self.link = Link::Waiting(until);
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Who we are, on the wire.
fn node(node: &Node) -> NodeProto {
    let metadata = node
        .metadata
        .iter()
        .map(|(name, value)| (name.clone(), proto_value(value)));
    NodeProto {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: (!node.metadata.is_empty()).then(|| Struct {
            fields: metadata.collect::<HashMap<_, _>>(),
        }),
        locality: Some(Locality {
            region: node.locality.region.clone(),
            zone: node.locality.zone.clone(),
            sub_zone: node.locality.sub_zone.clone(),
        }),
        user_agent_name: "mesh-rs".into(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").into(),
        )),
        client_features: CLIENT_FEATURES.map(Into::into).to_vec(),
        ..NodeProto::default()
    }
}

fn proto_value(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => ValueKind::NullValue(0),
        Json::Bool(value) => ValueKind::BoolValue(*value),
        Json::Number(value) => ValueKind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => ValueKind::StringValue(value.clone()),
        Json::Array(values) => ValueKind::ListValue(ListValue {
            values: values.iter().map(proto_value).collect(),
        }),
        Json::Object(fields) => ValueKind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), proto_value(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}
