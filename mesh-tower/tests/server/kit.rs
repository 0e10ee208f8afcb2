//! A certificate authority, a server with an axum application, and clients for it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{Extension, Router, routing::any};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::config::{
    CertificateSource, ChainMatch, DownstreamTls, FilterChain, HttpFilter, InboundListener,
    PathNormalization, Permission, Principal, Rbac, RbacAction, RbacPolicy, Route, RouteAction,
    RouteConfig, RouteMatch, RouteSource, SanMatcher, TransportMatch, TrustBundle, TrustSource,
    UpstreamTls, VirtualHost,
};
use mesh_tower::{
    BoxError,
    identity::{Certificate, Identity, PeerIdentity},
    server::{AuditRecord, InboundState, Server, ServerBuilder},
    telemetry::Telemetry,
    tls::{Alpn, TlsError, client::ClientTls},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinHandle,
};

/// What must happen happens within this time.
pub(crate) const MUST_HAPPEN: Duration = Duration::from_secs(10);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(MUST_HAPPEN, future)
        .await
        .expect("in time")
}

/// A root that issues certificates.
pub(crate) struct Ca {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

pub(crate) const ALICE: &str = "spiffe://cluster.local/ns/default/sa/alice";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

impl Ca {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self::named(&format!("root {}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn named(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self {
            issuer: rcgen::CertifiedIssuer::self_signed(params, key).expect("root"),
        }
    }

    pub(crate) fn issue(&self, id: &str) -> Certificate {
        self.issue_until(id, SystemTime::now() + Duration::from_secs(3600))
    }

    pub(crate) fn issue_until(&self, id: &str, not_after: SystemTime) -> Certificate {
        self.issue_between(
            id,
            SystemTime::now() - Duration::from_secs(86_400),
            not_after,
        )
    }

    pub(crate) fn issue_between(
        &self,
        id: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Certificate {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().expect("IA5"))];
        let leaf = params.signed_by(&key, &self.issuer).expect("leaf");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
        Certificate::new(vec![CertificateDer::from(leaf.der().to_vec())], key).expect("SVID")
    }

    /// The root.
    pub(crate) fn der(&self) -> &[u8] {
        self.issuer.der()
    }

    /// A certificate with other names than a member has, and its key.
    pub(crate) fn issue_named(
        &self,
        names: Vec<rcgen::SanType>,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = names;
        let leaf = params.signed_by(&key, &self.issuer).expect("leaf");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
        (leaf.der().clone(), key)
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        bundle(&[self])
    }

    pub(crate) fn identity(&self, id: &str) -> Identity {
        Identity::fixed(self.issue(id), self.bundle())
    }
}

pub(crate) fn bundle(roots: &[&Ca]) -> TrustBundle {
    let roots = roots
        .iter()
        .map(|ca| Bytes::copy_from_slice(ca.issuer.der()))
        .collect();
    TrustBundle {
        name: "ROOTCA".into(),
        roots,
    }
}

pub(crate) fn downstream(require_client_certificate: bool) -> DownstreamTls {
    DownstreamTls {
        identity: CertificateSource::Sds("default".into()),
        roots: Some(TrustSource::Sds("ROOTCA".into())),
        require_client_certificate,
    }
}

pub(crate) fn upstream(names: &[&str]) -> UpstreamTls {
    UpstreamTls {
        identity: Some(CertificateSource::Sds("default".into())),
        subject_alt_names: names.iter().map(|name| SanMatcher::exact(*name)).collect(),
        ..UpstreamTls::new(TrustSource::Sds("ROOTCA".into()))
    }
}

/// How a port is secured, in Istio's words.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    Disable,
    Permissive,
    Strict,
}

pub(crate) fn listener(mode: Mode, rbac: &[Rbac]) -> InboundState {
    let route = Route::new("all", RouteMatch::any(), RouteAction::NonForwarding);
    let host = VirtualHost::new("all", ["*"], vec![route]);
    let config = RouteConfig::new("inbound", vec![host]);
    let routes = RouteSource::Inline(Arc::new(config));
    let chain = |transport, tls| FilterChain {
        name: format!("{transport:?}"),
        transport,
        matches: ChainMatch::default(),
        tls,
        path_normalization: PathNormalization::BASE,
        client_cert: mesh_core::config::ForwardClientCert::default(),
        limits: mesh_core::config::HttpLimits::default(),
        filters: HttpFilter::of_rbac(rbac),
        routes: routes.clone(),
    };
    let filter_chains = match mode {
        Mode::Disable => vec![chain(TransportMatch::Any, None)],
        Mode::Strict => vec![chain(TransportMatch::Any, Some(downstream(true)))],
        Mode::Permissive => vec![
            chain(TransportMatch::RawBuffer, None),
            chain(TransportMatch::Tls, Some(downstream(true))),
        ],
    };
    InboundState::Ready(Arc::new(InboundListener {
        address: None,
        filter_chains,
    }))
}

pub(crate) fn rbac(action: RbacAction, name: &str, principal: Principal) -> Rbac {
    let policy = RbacPolicy {
        principals: vec![principal],
        permissions: vec![Permission::Any],
        condition: None,
    };
    Rbac::new(action, BTreeMap::from([(name.to_owned(), policy)]))
}

pub(crate) fn deny_all() -> Rbac {
    Rbac::new(RbacAction::Allow, BTreeMap::new())
}

/// A running server and what it is made from.
pub(crate) struct World {
    pub(crate) addr: SocketAddr,
    pub(crate) state: watch::Sender<InboundState>,
    pub(crate) certificate: watch::Sender<Option<Arc<Certificate>>>,
    pub(crate) trust: watch::Sender<Option<Arc<TrustBundle>>>,
    pub(crate) audit: Arc<Mutex<Vec<AuditRecord>>>,
    pub(crate) telemetry: Telemetry,
    pub(crate) shutdown: Option<oneshot::Sender<()>>,
    pub(crate) serving: JoinHandle<()>,
}

impl World {
    pub(crate) async fn start(ca: &Ca, state: InboundState) -> Self {
        Self::with(ca, state, router(), |server| server).await
    }

    pub(crate) async fn with(
        ca: &Ca,
        state: InboundState,
        router: Router,
        options: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        Self::traced(ca, state, router, Telemetry::disabled(), options).await
    }

    pub(crate) async fn traced(
        ca: &Ca,
        state: InboundState,
        router: Router,
        telemetry: Telemetry,
        options: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let (state, state_rx) = watch::channel(state);
        let (certificate, certificate_rx) = watch::channel(Some(Arc::new(ca.issue(SERVER))));
        let (trust, trust_rx) = watch::channel(Some(Arc::new(ca.bundle())));
        let audit = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let audit = Arc::clone(&audit);
            move |record: &AuditRecord| audit.lock().expect("sink").push(record.clone())
        };
        let builder = Server::builder(state_rx)
            .identity(Identity::new(certificate_rx, trust_rx))
            .telemetry(telemetry.clone())
            .audit(Arc::new(sink));
        let server = options(builder).build();
        let (shutdown, stop) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let stop = async { _ = stop.await };
            server.serve(listener, router, stop).await.expect("serves");
        });
        let shutdown = Some(shutdown);
        Self {
            addr,
            state,
            certificate,
            trust,
            audit,
            telemetry,
            shutdown,
            serving,
        }
    }

    pub(crate) fn metrics(&self) -> String {
        self.telemetry.metrics().encode()
    }

    /// Waits until the metrics hold `line`, which is counted by a task of the server.
    pub(crate) async fn counted(&self, line: &str) {
        within(async {
            while !self.metrics().contains(line) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// `/who` answers the caller's name; the rest says nothing of interest.
pub(crate) fn router() -> Router {
    Router::new()
        .route(
            "/who",
            any(
                |peer: Option<Extension<PeerIdentity>>, headers: HeaderMap| async move {
                    let name = peer.map_or_else(|| "nobody".into(), |p| p.principal().to_owned());
                    let claim = headers
                        .get("x-forwarded-client-cert")
                        .map_or("none", |_| "claimed");
                    format!("{name} {claim}")
                },
            ),
        )
        .route("/", any(|| async { "hello" }))
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// `grpc-status` of a trailers-only response or of its trailers.
    pub(crate) fn grpc_status(&self) -> Option<&str> {
        let status = self
            .headers
            .get("grpc-status")
            .or_else(|| self.trailers.get("grpc-status"));
        status.map(|status| status.to_str().expect("text"))
    }
}

/// One connection.
pub(crate) enum Client {
    H1(hyper::client::conn::http1::SendRequest<mesh_tower::Body>),
    H2(hyper::client::conn::http2::SendRequest<mesh_tower::Body>),
}

impl Client {
    /// Over plaintext.
    pub(crate) async fn plain(addr: SocketAddr, alpn: Alpn) -> Result<Self, BoxError> {
        Self::over(TcpStream::connect(addr).await?, alpn).await
    }

    /// Over mutual TLS, HTTP/2.
    pub(crate) async fn tls(addr: SocketAddr, identity: Identity) -> Result<Self, BoxError> {
        let tls = ClientTls::new(&upstream(&[SERVER]), identity, Alpn::Http2);
        Ok(Self::with_tls(addr, &tls).await?)
    }

    pub(crate) async fn with_tls(addr: SocketAddr, tls: &ClientTls) -> Result<Self, TlsError> {
        let tcp = TcpStream::connect(addr).await.map_err(TlsError::from_io)?;
        let stream = tls.connect(tcp, addr).await?;
        let alpn = match mesh_tower::tls::client::is_http2(&stream) {
            true => Alpn::Http2,
            false => Alpn::Http1,
        };
        Ok(Self::over(stream, alpn).await.expect("HTTP handshake"))
    }

    pub(crate) async fn over<IO>(io: IO, alpn: Alpn) -> Result<Self, BoxError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(io);
        match alpn {
            Alpn::Http1 => {
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                tokio::spawn(connection);
                Ok(Self::H1(sender))
            }
            Alpn::Http2 | Alpn::Either => {
                let executor = TokioExecutor::new();
                let (sender, connection) =
                    hyper::client::conn::http2::handshake(executor, io).await?;
                tokio::spawn(connection);
                Ok(Self::H2(sender))
            }
        }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Answer, hyper::Error> {
        self.send(path, &[]).await
    }

    /// A gRPC call without a message.
    pub(crate) async fn grpc(
        &mut self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Answer, hyper::Error> {
        let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
        all.extend(headers);
        self.send(path, &all).await
    }

    pub(crate) async fn send(
        &mut self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Answer, hyper::Error> {
        self.post(path, headers, mesh_tower::Body::empty()).await
    }

    pub(crate) async fn post(
        &mut self,
        path: &str,
        headers: &[(&'static str, &str)],
        body: mesh_tower::Body,
    ) -> Result<Answer, hyper::Error> {
        let uri = match self {
            Self::H1(_) => path.to_owned(),
            Self::H2(_) => format!("http://server.default{path}"),
        };
        let mut request = Request::post(uri);
        if matches!(self, Self::H1(_)) {
            request = request.header("host", "server.default");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).expect("request");
        let answered = within(async {
            let response = match self {
                Self::H1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
                Self::H2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
            };
            let (parts, body) = response.into_parts();
            let body = body.collect().await?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            let (status, headers) = (parts.status, parts.headers);
            Ok(Answer {
                status,
                headers,
                trailers,
                body: body.to_bytes(),
            })
        });
        answered.await
    }
}
