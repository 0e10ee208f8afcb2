//! The only sockets: a channel to a server, and the ADS stream on it.
//!
//! Stage 1. Connects and streams; it does not decide when (see [`backoff`] and the driver) and does
//! not read messages. HTTP/2 over TCP, TLS or a Unix socket. Deviation from gRPC's clients: a
//! TCP keepalive besides the HTTP/2 one finds a dead peer within a minute.

pub(crate) mod backoff;
mod bundle;
pub(crate) mod csds;
pub(crate) mod lrs;
pub(crate) mod node;
pub(crate) mod own;
mod secure;

use std::{fmt, sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{
    DiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use futures_util::{Stream, StreamExt, TryFutureExt, TryStreamExt, stream::BoxStream};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use own::OwnCertificate;

use crate::{
    ads::{Request, Response, SotwRequest, Variant},
    bootstrap::{ChannelCredentials, Server},
};

/// Largest response that is read, in bytes. 10,000 clusters of Istio's size are about 10 MB.
pub(crate) const RESPONSE_BYTES_MAX: usize = 128 << 20;

/// Method of the state-of-the-world variant.
const STREAM_SOTW: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Requests on their way to the socket; more wait in the ADS machine, where they merge.
const REQUESTS_QUEUED_MAX: usize = 16;

/// How the stream to the control plane is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamStatus {
    /// Not connected yet. Also the state before anything is watched, when there is no need to be.
    #[default]
    Connecting,
    /// There is a connection, and a stream has been opened on it.
    Connected,
    /// The stream is down; the next attempt follows by itself.
    Disconnected {
        /// Since when, as wall-clock time.
        since: std::time::SystemTime,
        /// The last error.
        error: String,
    },
}

/// Liveness probes on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeepAlive {
    /// Between HTTP/2 pings.
    pub(crate) interval: Duration,
    /// Without an answer for this long the connection is closed.
    pub(crate) timeout: Duration,
}

impl Default for KeepAlive {
    /// 5 min and 20 s, as grpc-go: servers may close on more frequent pings.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            timeout: Duration::from_secs(20),
        }
    }
}

/// Connects to `server`; over TLS with our own certificate, where the bootstrap names no other.
pub(crate) async fn connect(
    server: Arc<Server>,
    keep_alive: KeepAlive,
    own: OwnCertificate,
) -> Result<Connected, String> {
    let endpoint = Endpoint::from_shared(server.uri.http_uri())
        .map_err(|e| e.to_string())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .tcp_keepalive_interval(Some(Duration::from_secs(10)))
        .tcp_keepalive_retries(Some(3))
        .http2_keep_alive_interval(keep_alive.interval)
        .keep_alive_timeout(keep_alive.timeout)
        .keep_alive_while_idle(true);
    let channel = match (&server.channel, server.uri.unix_path()) {
        (ChannelCredentials::Tls(files), _) => {
            secure::connect(&endpoint, &server.uri, files, &own).await?
        }
        (ChannelCredentials::Insecure, None) => endpoint.connect().await.map_err(|e| chain(&e))?,
        (ChannelCredentials::Insecure, Some(path)) => {
            let connected = connect_unix(&endpoint, path.clone()).await;
            connected.map_err(|e| chain(&e))?
        }
    };
    let token = secure::token(&server.calls).await?;
    Ok(Connected { channel, token })
}

/// A connection with what each call on it carries.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    pub(crate) channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Connected {
    /// A call with the token that goes with it.
    pub(crate) fn call<T>(&self, message: T) -> tonic::Request<T> {
        let mut call = tonic::Request::new(message);
        if let Some(token) = &self.token {
            call.metadata_mut().insert("authorization", token.clone());
        }
        call
    }
}

#[cfg(unix)]
async fn connect_unix(
    endpoint: &Endpoint,
    path: std::path::PathBuf,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    endpoint.connect_with_connector(connector).await
}

#[cfg(not(unix))]
async fn connect_unix(
    endpoint: &Endpoint,
    _path: std::path::PathBuf,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(|_| async {
        Err::<hyper_util::rt::TokioIo<tokio::net::TcpStream>, _>(std::io::Error::other(
            "this platform has no Unix sockets",
        ))
    });
    endpoint.connect_with_connector(connector).await
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// An open stream. Dropping it closes the stream and the connection.
pub(crate) struct AdsStream {
    /// Requests to send, of the stream's variant.
    pub(crate) requests: mpsc::Sender<Request>,
    /// What the server sends; ends with the stream.
    pub(crate) responses: BoxStream<'static, Result<Response, Status>>,
}

impl AdsStream {
    /// Opens a stream on `channel`. Servers may send their headers with the first response only,
    /// so requests are taken before the call is answered.
    pub(crate) fn open(connected: &Connected, variant: Variant) -> Self {
        let (requests, queue) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let queue = ReceiverStream::new(queue);
        let responses = match variant {
            Variant::StateOfTheWorld => {
                let queue = queue.filter_map(|request| {
                    std::future::ready(match request {
                        Request::Sotw(request) => Some(request),
                        Request::Delta(_) => None,
                    })
                });
                let call = stream_sotw(connected.channel.clone(), connected.call(queue));
                let responses = call
                    .map_ok(tonic::Response::into_inner)
                    .try_flatten_stream();
                responses.map_ok(Response::Sotw).boxed()
            }
            Variant::Incremental => {
                let queue = queue.filter_map(|request| {
                    std::future::ready(match request {
                        Request::Delta(request) => Some(request),
                        Request::Sotw(_) => None,
                    })
                });
                let call = connected.call(queue);
                let mut client = AggregatedDiscoveryServiceClient::new(connected.channel.clone())
                    .max_decoding_message_size(RESPONSE_BYTES_MAX);
                let call = async move { client.delta_aggregated_resources(call).await };
                let responses = call
                    .map_ok(tonic::Response::into_inner)
                    .try_flatten_stream();
                responses.map_ok(Response::Delta).boxed()
            }
        };
        Self {
            requests,
            responses,
        }
    }
}

/// `AggregatedDiscoveryService.StreamAggregatedResources` with requests that are partly encoded.
async fn stream_sotw(
    channel: Channel,
    call: tonic::Request<impl Stream<Item = SotwRequest> + Send + 'static>,
) -> Result<tonic::Response<Streaming<DiscoveryResponse>>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
    let unready = |e| Status::unknown(format!("the connection is not ready: {e}"));
    client.ready().await.map_err(unready)?;
    let path = PathAndQuery::from_static(STREAM_SOTW);
    client.streaming(call, path, ProstCodec::default()).await
}

#[cfg(feature = "test-util")]
impl AdsStream {
    /// A stream to the caller, who gets what is sent.
    pub(crate) fn loopback() -> (Self, mpsc::Receiver<Request>) {
        let (requests, sent) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let stream = Self {
            requests,
            responses: futures_util::stream::pending().boxed(),
        };
        (stream, sent)
    }
}

impl fmt::Debug for AdsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdsStream").finish_non_exhaustive()
    }
}
