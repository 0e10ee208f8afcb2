//! Roots over SDS beside the mesh's own: for whom they vouch at a server that is a member.

use std::sync::Arc;

use bytes::Bytes;
use mesh_core::{
    ConfigError,
    config::{Secret, TrustBundle, TrustSource},
    secrets::{self, SecretWriter},
};
use mesh_tower::{
    identity::Identity,
    server::InboundState,
    tls::{Alpn, TlsError, client::ClientTls},
};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::kit::{ALICE, Ca, Client, Mode, SERVER, World, listener, router, upstream, within};

const PARTNERS: &str = "partners";
const BOB: &str = "spiffe://partner.example/ns/b/sa/bob";

/// A strict server whose clients are verified with the secret [`PARTNERS`].
fn trusting_partners() -> InboundState {
    let InboundState::Ready(listener) = listener(Mode::Strict, &[]) else {
        unreachable!("it is made ready")
    };
    let mut listener = Arc::unwrap_or_clone(listener);
    for chain in &mut listener.filter_chains {
        let tls = chain.tls.as_mut().expect("strict");
        tls.roots = Some(TrustSource::Sds(PARTNERS.into()));
    }
    InboundState::Ready(Arc::new(listener))
}

async fn server(ca: &Ca) -> (World, SecretWriter) {
    let (writer, reader) = secrets::pair();
    let identity = ca.identity(SERVER).with_secrets(reader);
    let state = trusting_partners();
    let world = World::with(ca, state, router(), |server| server.identity(identity)).await;
    (world, writer)
}

fn hold(writer: &SecretWriter, root: &Ca) {
    let bundle = TrustBundle {
        name: PARTNERS.into(),
        roots: vec![Bytes::copy_from_slice(root.der())],
    };
    let secret = Arc::new(Secret::TrustBundle(bundle));
    writer.set(&PARTNERS.into(), Ok(secret));
}

/// A client of `id` that `signer` vouches for, which trusts the server.
fn client(ca: &Ca, signer: &Ca, id: &str) -> ClientTls {
    let identity = Identity::fixed(signer.issue(id), ca.bundle());
    ClientTls::new(&upstream(&[SERVER]), identity, Alpn::Http2)
}

async fn refusal(world: &World, tls: &ClientTls) -> TlsError {
    let tcp = TcpStream::connect(world.addr).await.expect("connect");
    match within(tls.connect(tcp, world.addr)).await {
        Err(error) => error,
        Ok(mut stream) => {
            let read = within(stream.read(&mut [0])).await;
            TlsError::from_io(read.expect_err("refused"))
        }
    }
}

async fn counted(world: &World, reason: &str, count: u32) {
    let line = format!("mesh_server_refused_connections_total{{reason=\"{reason}\"}} {count}");
    world.counted(&line).await;
}

#[tokio::test]
async fn a_partners_roots_vouch_for_partners_and_never_for_members() {
    let (ca, partner) = (Ca::new(), Ca::new());
    let (world, writer) = server(&ca).await;
    hold(&writer, &partner);
    let bob = client(&ca, &partner, BOB);
    let mut live = Client::with_tls(world.addr, &bob).await.expect("a partner");
    let answer = live.get("/who").await.expect("answer");
    assert!(answer.text().starts_with(BOB), "{}", answer.text());

    refusal(&world, &client(&ca, &partner, ALICE)).await;
    counted(&world, "trust_domain", 1).await;
    refusal(&world, &client(&ca, &ca, ALICE)).await;
    counted(&world, "unknown_issuer", 1).await;

    // Other roots from now on; the connection that lives goes on.
    hold(&writer, &Ca::new());
    refusal(&world, &bob).await;
    counted(&world, "unknown_issuer", 2).await;
    assert!(live.get("/who").await.is_ok());
}

#[tokio::test]
async fn a_secret_that_is_missing_or_of_another_kind_lets_nobody_in_and_says_so() {
    let (ca, partner) = (Ca::new(), Ca::new());
    let (world, writer) = server(&ca).await;
    let bob = client(&ca, &partner, BOB);
    refusal(&world, &bob).await;
    counted(&world, "no_trust", 1).await;
    let error = ConfigError::new("secret partners", "", "does not exist");
    writer.set(&PARTNERS.into(), Err(error));
    refusal(&world, &bob).await;
    counted(&world, "no_trust", 2).await;
    let certificate = Secret::Certificate {
        name: PARTNERS.into(),
        chain_pem: String::new(),
        key_pem: String::new(),
    };
    writer.set(&PARTNERS.into(), Ok(Arc::new(certificate)));
    refusal(&world, &bob).await;
    counted(&world, "no_trust", 3).await;

    hold(&writer, &partner);
    Client::with_tls(world.addr, &bob).await.expect("a partner");
    // Whoever still holds the listener when nothing names the secret any more goes on with it.
    writer.remove(&PARTNERS.into());
    Client::with_tls(world.addr, &bob).await.expect("a partner");
}
