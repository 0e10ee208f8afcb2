//! Who calls, and what it sees.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{FutureExt, future};
use h2::client::SendRequest;
use http::Request;
use mesh_core::config::{CertificateSource, TrustBundle, TrustSource, UpstreamTls};
use mesh_tower::{
    BoxError,
    identity::{Certificate, Identity},
    tls::{Alpn, client::ClientTls},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use super::{Verdict, servers::Address};
use crate::world::MUST_HAPPEN;

/// An authority of the mesh, and a strange one.
pub(super) struct Authority {
    ours: Root,
    strange: Root,
}

type Root = rcgen::CertifiedIssuer<'static, rcgen::KeyPair>;

/// A chain and its key, in PEM.
pub(super) struct Pair {
    pub(super) chain: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self {
            ours: root("ours"),
            strange: root("strange"),
        }
    }

    pub(super) fn root_pem(&self) -> String {
        self.ours.pem()
    }

    pub(super) fn issue(&self, id: &str) -> Pair {
        issue(&self.ours, id)
    }

    /// An identity of ours.
    pub(super) fn identity(&self, id: &str) -> Identity {
        let pair = self.issue(id);
        Identity::fixed(certificate(&pair), self.bundle())
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle {
            name: "ROOTCA".into(),
            roots: vec![Bytes::copy_from_slice(self.ours.der())],
        }
    }
}

fn root(name: &str) -> Root {
    let mut params = rcgen::CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Root::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
}

fn issue(root: &Root, id: &str) -> Pair {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_before = (SystemTime::now() - Duration::from_secs(600)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
    let leaf = params.signed_by(&key, root).unwrap();
    Pair {
        chain: leaf.pem(),
        key: key.serialize_pem(),
    }
}

fn certificate(pair: &Pair) -> Certificate {
    Certificate::from_pem(&pair.chain, &pair.key).unwrap()
}

/// A caller with its call.
pub(super) struct Caller {
    /// `None` speaks plaintext.
    tls: Option<ClientTls>,
    authority: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl Caller {
    /// Reads `CALLER METHOD [header=value]…`. Callers: `plain` without TLS, `nobody` without a
    /// certificate, `stranger` with one of a strange authority; else the last part of an identity,
    /// in `default` unless it says `NAMESPACE/ACCOUNT`. Of the headers `host` is the authority,
    /// `sni` is what TLS asks for. A `+` in a value is a space.
    pub(super) fn new(authority: &Authority, call: &str) -> Self {
        let mut words = call.split(' ');
        let (who, path) = (words.next().unwrap(), words.next().unwrap());
        let (mut host, mut sni, mut headers) = ("api".to_owned(), None, Vec::new());
        for word in words {
            let (name, value) = word.split_once('=').unwrap();
            let value = value.replace('+', " ");
            match name {
                "host" => host = value,
                "sni" => sni = Some(value),
                name => headers.push((name.to_owned(), value)),
            }
        }
        let identity = identity(authority, who);
        let tls = identity.map(|(identity, has_certificate)| {
            let own = CertificateSource::Sds("default".into());
            let settings = UpstreamTls {
                identity: has_certificate.then_some(own),
                sni,
                ..UpstreamTls::new(TrustSource::Sds("ROOTCA".into()))
            };
            ClientTls::new(&settings, identity, Alpn::Http2)
        });
        Self {
            tls,
            authority: host,
            path: path.to_owned(),
            headers,
        }
    }

    /// What a server makes of the call, over a connection of its own.
    pub(super) async fn call(&self, address: Address) -> Verdict {
        self.attempt(address).await.unwrap_or(Verdict::Refused)
    }

    /// # Errors
    /// How the connection ended without an answer.
    pub(super) async fn attempt(&self, address: Address) -> Result<Verdict, BoxError> {
        let called = timeout(MUST_HAPPEN, self.connect(address)).await;
        called.unwrap_or_else(|_| Ok(Verdict::Other("no answer".to_owned())))
    }

    async fn connect(&self, address: Address) -> Result<Verdict, BoxError> {
        let tcp = TcpStream::connect(address).await?;
        match &self.tls {
            None => self.speak(tcp).await,
            Some(tls) => self.speak(tls.connect(tcp, address).await?).await,
        }
    }

    async fn speak<IO>(&self, io: IO) -> Result<Verdict, BoxError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (sender, connection) = h2::client::handshake(io).await?;
        let answer = std::pin::pin!(self.ask(sender));
        let connection = std::pin::pin!(connection);
        match future::select(answer, connection).await {
            future::Either::Left((verdict, _)) => verdict,
            // An answer may be the last thing on a connection; all that came is there.
            future::Either::Right((_, answer)) => answer
                .now_or_never()
                .unwrap_or_else(|| Err("the connection ended without an answer".into())),
        }
    }

    async fn ask(&self, sender: SendRequest<Bytes>) -> Result<Verdict, BoxError> {
        let mut sender = sender.ready().await?;
        let uri = format!("http://{}{}", self.authority, self.path);
        let mut request = Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(()).unwrap();
        let (response, mut body) = sender.send_request(request, false)?;
        // An empty message. Who has been refused already does not read it.
        _ = body.send_data(Bytes::from_static(&[0; 5]), true);
        let (head, mut body) = response.await?.into_parts();
        while let Some(chunk) = body.data().await {
            _ = body.flow_control().release_capacity(chunk?.len());
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        let status = head.headers.get("grpc-status");
        let status = status.or_else(|| trailers.get("grpc-status"));
        let status = status.and_then(|status| status.to_str().ok());
        Ok(match (head.status.as_u16(), status) {
            (200, None | Some("0")) => Verdict::Passes,
            (200, Some("7")) | (403, _) => Verdict::Denied,
            (200, Some("16")) | (401, _) => Verdict::Unauthenticated,
            (http, grpc) => Verdict::Other(format!("{http} {grpc:?}")),
        })
    }
}

/// Who a caller is, and whether it shows a certificate; `None` for plaintext.
fn identity(authority: &Authority, who: &str) -> Option<(Identity, bool)> {
    Some(match who {
        "plain" => return None,
        "nobody" => (authority.identity("spiffe://cluster.local/unused"), false),
        "stranger" => {
            let pair = issue(
                &authority.strange,
                "spiffe://cluster.local/ns/default/sa/alice",
            );
            let strange = Identity::fixed(certificate(&pair), authority.bundle());
            (strange, true)
        }
        name => {
            let (namespace, account) = name.split_once('/').unwrap_or(("default", name));
            let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
            (authority.identity(&id), true)
        }
    })
}
