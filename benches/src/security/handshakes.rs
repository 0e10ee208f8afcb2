//! Mutual TLS 1.3 handshakes, full and resumed: our client and server beside bare rustls, in every pairing.
//!
//! Over pipes in memory, on one thread, so that what is counted is TLS of both sides and nothing of the
//! kernel. The certificates are the same for all.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::FutureExt;
use mesh_core::config::{
    CertificateSource, DownstreamTls, SanMatcher, TrustBundle, TrustSource, UpstreamTls,
};
use mesh_tower::{
    identity::{Certificate, Identity},
    tls::{Alpn, client::ClientTls, server::ServerTls},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::harness::{Contender, Plan, Results, Turn, cpu, take_turns};

/// Handshakes of one turn.
const HANDSHAKES: usize = 2_000;

/// Bytes that a pipe holds: more than a flight of any handshake.
const PIPE: usize = 64 * 1024;

const NAME: &str = "localhost";
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

/// Runs the part of the family.
///
/// # Errors
/// When a contender does not start.
pub(super) fn run(plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    const TABLE: &str = "Handshakes (mutual TLS 1.3, both sides)";
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let handshakes = plan.scaled(HANDSHAKES);
    for (case, kind) in [
        ("full", HandshakeKind::Full),
        ("resumed", HandshakeKind::Resumed),
    ] {
        let material = Material::new()?;
        let contenders = [
            ("ours, both sides", true, true),
            ("our client, bare rustls", true, false),
            ("bare rustls, our server", false, true),
            ("bare rustls, both sides", false, false),
        ];
        let contenders = contenders.map(|(name, our_client, our_server)| {
            let sides = material.sides(our_client, our_server)?;
            let sides = Arc::new(sides);
            anyhow::Ok(Contender {
                name: name.to_owned(),
                turn: Box::new(move || turn(Arc::clone(&sides), kind, handshakes).boxed()),
            })
        });
        let contenders = contenders.into_iter().collect::<anyhow::Result<_>>()?;
        runtime.block_on(take_turns(plan, results, (TABLE, case), contenders));
    }
    Ok(())
}

/// A root, and a chain with its key for each side.
struct Material {
    root: Vec<u8>,
    server: Issued,
    client: Issued,
}

struct Issued {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Issued {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone().into()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// The two ends of a handshake.
struct Sides {
    client: Client,
    server: Server,
}

enum Client {
    Ours(Box<ClientTls>),
    Bare(TlsConnector),
}

enum Server {
    Ours(Box<ServerTls>),
    Bare(TlsAcceptor),
}

impl Material {
    fn new() -> anyhow::Result<Self> {
        let mut root = CertificateParams::new(Vec::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
        let issue = |id: &str| {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
            params.subject_alt_names.push(SanType::URI(id.try_into()?));
            anyhow::Ok(Issued {
                certificate: params.signed_by(&key, &issuer)?.der().to_vec(),
                key: key.serialize_der(),
            })
        };
        Ok(Self {
            root: issuer.der().to_vec(),
            server: issue(SERVER)?,
            client: issue(CLIENT)?,
        })
    }

    fn identity(&self, issued: &Issued) -> anyhow::Result<Identity> {
        let certificate = Certificate::new(issued.chain(), issued.key())?;
        let trust = TrustBundle {
            name: "ROOTCA".into(),
            roots: vec![Bytes::copy_from_slice(&self.root)],
        };
        Ok(Identity::fixed(certificate, trust))
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone().into())?;
        Ok(roots)
    }

    fn sides(&self, our_client: bool, our_server: bool) -> anyhow::Result<Sides> {
        let client = match our_client {
            true => Client::Ours(Box::new(self.our_client()?)),
            false => Client::Bare(self.bare_client()?),
        };
        let server = match our_server {
            true => Server::Ours(Box::new(self.our_server()?)),
            false => Server::Bare(self.bare_server()?),
        };
        Ok(Sides { client, server })
    }

    fn our_client(&self) -> anyhow::Result<ClientTls> {
        let settings = UpstreamTls {
            identity: Some(CertificateSource::Sds("default".into())),
            subject_alt_names: vec![SanMatcher::exact(SERVER)],
            sni: Some(NAME.to_owned()),
            ..UpstreamTls::new(TrustSource::Sds("ROOTCA".into()))
        };
        let identity = self.identity(&self.client)?;
        Ok(ClientTls::new(&settings, identity, Alpn::Http2))
    }

    fn our_server(&self) -> anyhow::Result<ServerTls> {
        let settings = DownstreamTls {
            identity: CertificateSource::Sds("default".into()),
            roots: Some(TrustSource::Sds("ROOTCA".into())),
            require_client_certificate: true,
        };
        Ok(ServerTls::new(&settings, self.identity(&self.server)?)?)
    }

    fn bare_client(&self) -> anyhow::Result<TlsConnector> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.client.chain(), self.client.key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn bare_server(&self) -> anyhow::Result<TlsAcceptor> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(self.roots()?);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.server.chain(), self.server.key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl Client {
    async fn connect(&self, io: DuplexStream) -> anyhow::Result<client::TlsStream<DuplexStream>> {
        let address = SocketAddr::from(([127, 0, 0, 1], 443));
        match self {
            Self::Ours(tls) => Ok(tls.connect(io, address).await?),
            Self::Bare(connector) => {
                let name = ServerName::try_from(NAME).context("a name")?;
                Ok(connector.connect(name, io).await?)
            }
        }
    }
}

impl Server {
    async fn accept(&self, io: DuplexStream) -> anyhow::Result<server::TlsStream<DuplexStream>> {
        match self {
            Self::Ours(tls) => Ok(tls.accept(io).await?.0),
            Self::Bare(acceptor) => Ok(acceptor.accept(io).await?),
        }
    }
}

/// A handshake. `is_kept`: the client takes the ticket that lets the next one resume, which comes with
/// the first byte that it reads.
async fn handshake(sides: &Sides, is_kept: bool) -> anyhow::Result<Option<HandshakeKind>> {
    let (near, far) = duplex(PIPE);
    let (client, server) =
        futures_util::future::try_join(sides.client.connect(near), sides.server.accept(far))
            .await?;
    let (mut client, mut server) = (client, server);
    let kind = client.get_ref().1.handshake_kind();
    if is_kept {
        server.write_all(b"x").await?;
        server.flush().await?;
        client.read_exact(&mut [0]).await?;
    }
    Ok(kind)
}

async fn turn(sides: Arc<Sides>, kind: HandshakeKind, handshakes: usize) -> anyhow::Result<Turn> {
    let is_resumed = kind == HandshakeKind::Resumed;
    if is_resumed {
        handshake(&sides, true).await?;
    }
    let (cpu_before, start) = (cpu::own(), Instant::now());
    for _ in 0..handshakes {
        let made = handshake(&sides, is_resumed).await?;
        ensure!(made == Some(kind), "the handshake was {made:?}");
    }
    let (cpu, wall) = (cpu::own() - cpu_before, start.elapsed());
    Ok(vec![
        (
            "CPU µs/handshake",
            cpu.as_secs_f64() * 1e6 / handshakes as f64,
        ),
        ("handshakes/s", handshakes as f64 / wall.as_secs_f64()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pairing_takes_its_turn_with_the_handshakes_that_it_says() {
        let plan = Plan {
            rounds: 1,
            length: 0.001,
            filter: None,
        };
        let mut results = Results::default();
        run(&plan, &mut results).expect("results");
        assert_eq!(results.notes, [""; 0]);
        assert_eq!(results.rows.len(), 8);
    }
}
