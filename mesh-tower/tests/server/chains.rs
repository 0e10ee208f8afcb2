//! Which filter chain takes a connection, over sockets (gRFC A36).

use std::sync::Arc;

use http::StatusCode;
use mesh_core::config::{ChainMatch, InboundListener, SourceType, TransportMatch};
use mesh_tower::{
    server::InboundState,
    tls::{Alpn, TlsError, client::ClientTls},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::kit::{ALICE, Ca, Client, Mode, SERVER, World, deny_all, listener, upstream, within};

/// A listener with one chain for each, the first of which serves and the others refuse requests.
fn chains(matches: Vec<(TransportMatch, ChainMatch)>) -> InboundState {
    let state = |rbac| match listener(Mode::Strict, rbac) {
        InboundState::Ready(listener) => listener.filter_chains[0].clone(),
        other => panic!("{other:?}"),
    };
    let (open, closed) = (state(&[]), state(&[deny_all()]));
    let chain = |(at, (transport, matches))| {
        let mut chain = if at == 0 {
            open.clone()
        } else {
            closed.clone()
        };
        (chain.transport, chain.matches) = (transport, matches);
        chain
    };
    InboundState::Ready(Arc::new(InboundListener {
        address: None,
        filter_chains: matches.into_iter().enumerate().map(chain).collect(),
    }))
}

async fn ask(world: &World, ca: &Ca, sni: &str, alpn: Alpn) -> Result<StatusCode, TlsError> {
    let mut settings = upstream(&[SERVER]);
    settings.sni = Some(sni.to_owned()).filter(|sni| !sni.is_empty());
    let tls = ClientTls::new(&settings, ca.identity(ALICE), alpn);
    let mut client = Client::with_tls(world.addr, &tls).await?;
    Ok(client.get("/").await.expect("answer").status)
}

#[tokio::test]
async fn a_tls_client_gets_the_chain_of_the_name_and_protocol_that_it_asks_for() {
    let ca = Ca::new();
    let named = |name: &str| ChainMatch {
        server_names: vec![name.to_owned()],
        ..ChainMatch::default()
    };
    let http1 = ChainMatch {
        application_protocols: vec!["http/1.1".into()],
        ..named("a.example")
    };
    let state = chains(vec![
        (TransportMatch::Tls, named("a.example")),
        (TransportMatch::Tls, named("*.example")),
        (TransportMatch::Tls, http1),
    ]);
    let world = World::start(&ca, state).await;
    for (sni, alpn, expected) in [
        ("a.example", Alpn::Http2, StatusCode::OK),
        ("A.example", Alpn::Http2, StatusCode::OK),
        ("b.example", Alpn::Http2, StatusCode::FORBIDDEN),
        ("a.example", Alpn::Http1, StatusCode::FORBIDDEN),
    ] {
        let status = ask(&world, &ca, sni, alpn).await.expect("handshake");
        assert_eq!(status, expected, "{sni} {alpn:?}");
    }
    for sni in ["example", ""] {
        ask(&world, &ca, sni, Alpn::Http2)
            .await
            .expect_err("no chain");
    }
    world
        .counted("mesh_server_refused_connections_total{reason=\"no_filter_chain\"} 2")
        .await;
}

#[tokio::test]
async fn plaintext_to_chains_that_take_tls_alone_is_refused_as_plaintext() {
    let ca = Ca::new();
    let named = ChainMatch {
        server_names: vec!["a.example".into()],
        ..ChainMatch::default()
    };
    for matches in [ChainMatch::default(), named] {
        let world = World::start(&ca, chains(vec![(TransportMatch::Tls, matches)])).await;
        let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .expect("write");
        let mut got = Vec::new();
        _ = within(tcp.read_to_end(&mut got)).await;
        assert!(got.is_empty(), "not one byte");
        world
            .counted("mesh_server_refused_connections_total{reason=\"plaintext\"} 1")
            .await;
    }
}

#[tokio::test]
async fn where_a_client_comes_from_chooses_its_chain_and_the_default_takes_the_rest() {
    let ca = Ca::new();
    let near = ChainMatch {
        source_type: SourceType::SameIpOrLoopback,
        source_ranges: vec!["127.0.0.0/8".parse().expect("range")],
        ..ChainMatch::default()
    };
    let rest = ChainMatch {
        is_default: true,
        ..ChainMatch::default()
    };
    let states = |near| {
        let all = TransportMatch::Any;
        chains(vec![(all, near), (all, rest.clone())])
    };
    let world = World::start(&ca, states(near.clone())).await;
    let status = ask(&world, &ca, "", Alpn::Http2).await.expect("handshake");
    assert_eq!(status, StatusCode::OK);
    let far = ChainMatch {
        source_type: SourceType::External,
        ..near
    };
    let world = World::start(&ca, states(far)).await;
    let status = ask(&world, &ca, "", Alpn::Http2).await.expect("handshake");
    assert_eq!(status, StatusCode::FORBIDDEN, "the default chain's");
}
