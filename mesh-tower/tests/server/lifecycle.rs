//! Before the first configuration, under load, and at the end.

use std::{sync::Arc, time::Duration};

use axum::{Router, routing::any};
use http::StatusCode;
use mesh_core::ConfigError;
use mesh_tower::{server::InboundState, tls::Alpn};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{Notify, Semaphore},
};

use crate::kit::{Ca, Client, Mode, World, listener, router, within};

const SHORT: Duration = Duration::from_millis(20);

/// Whether the server closes the connection without a byte.
async fn is_closed(world: &World) -> bool {
    let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
    let mut byte = [0];
    matches!(within(tcp.read(&mut byte)).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn connections_wait_for_the_first_configuration() {
    let ca = Ca::new();
    let world = World::start(&ca, InboundState::Pending).await;
    let mut client = Client::plain(world.addr, Alpn::Http1)
        .await
        .expect("connect");
    let (answer, _) = tokio::join!(client.get("/"), async {
        tokio::task::yield_now().await;
        world.state.send_replace(listener(Mode::Disable, &[]));
    });
    assert_eq!(answer.expect("answer").text(), "hello");
}

#[tokio::test]
async fn without_a_usable_configuration_connections_are_closed() {
    let ca = Ca::new();
    let short = |server: mesh_tower::server::ServerBuilder| server.config_timeout(SHORT);
    let world = World::with(&ca, InboundState::Pending, router(), short).await;
    assert!(is_closed(&world).await);
    world
        .counted("mesh_server_refused_connections_total{reason=\"no_config\"} 1")
        .await;

    world.state.send_replace(listener(Mode::Disable, &[]));
    let mut live = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connect");
    assert!(live.get("/").await.is_ok());
    let failed = ConfigError::new("listener mesh/inbound/x", "filter_chains", "unusable");
    world.state.send_replace(InboundState::Failed(failed));
    let Client::H2(sender) = &mut live else {
        panic!("HTTP/2")
    };
    within(async {
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut refused = Client::plain(world.addr, Alpn::Http1)
        .await
        .expect("connect");
    assert!(refused.get("/").await.is_err());
    world
        .counted("mesh_server_refused_connections_total{reason=\"config\"} 1")
        .await;
}

#[tokio::test]
async fn a_silent_client_and_a_half_handshake_do_not_hold_a_connection() {
    let ca = Ca::new();
    let short = |server: mesh_tower::server::ServerBuilder| server.handshake_timeout(SHORT);
    let world = World::with(&ca, listener(Mode::Strict, &[]), router(), short).await;
    assert!(is_closed(&world).await);
    let tcp = TcpStream::connect(world.addr).await.expect("connect");
    tcp.writable().await.expect("writable");
    tcp.try_write(&[0x16, 3, 1]).expect("written");
    let mut tcp = tcp;
    let mut got = Vec::new();
    _ = within(tcp.read_to_end(&mut got)).await;
    assert!(got.is_empty());
    world
        .counted("mesh_server_refused_connections_total{reason=\"handshake_timeout\"} 2")
        .await;
}

#[tokio::test]
async fn connections_past_the_bound_are_closed_and_room_is_made_again() {
    let ca = Ca::new();
    let bound = |server: mesh_tower::server::ServerBuilder| server.max_connections(1);
    let world = World::with(&ca, listener(Mode::Disable, &[]), router(), bound).await;
    let mut first = Client::plain(world.addr, Alpn::Http1)
        .await
        .expect("connect");
    assert!(first.get("/").await.is_ok());
    assert!(is_closed(&world).await);
    world.counted("{reason=\"too_many_connections\"} 1").await;
    drop(first);
    within(async {
        loop {
            let mut next = Client::plain(world.addr, Alpn::Http1)
                .await
                .expect("connect");
            if next.get("/").await.is_ok() {
                break;
            }
        }
    })
    .await;
}

/// A router whose `/held` answers when there is a permit.
fn held() -> (Router, Arc<Notify>, Arc<Semaphore>) {
    let (entered, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let router = {
        let (entered, gate) = (Arc::clone(&entered), Arc::clone(&gate));
        Router::new().route(
            "/held",
            any(move || async move {
                entered.notify_one();
                _ = gate.acquire().await;
                "held"
            }),
        )
    };
    (router, entered, gate)
}

#[tokio::test]
async fn shutdown_lets_requests_in_flight_finish() {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let ca = Ca::new();
        let (router, entered, gate) = held();
        let mut world =
            World::with(&ca, listener(Mode::Disable, &[]), router, |server| server).await;
        let mut client = Client::plain(world.addr, alpn).await.expect("connect");
        let call = tokio::spawn(async move { client.get("/held").await });
        within(entered.notified()).await;
        world
            .shutdown
            .take()
            .expect("running")
            .send(())
            .expect("running");
        within(async { while TcpStream::connect(world.addr).await.is_ok() {} }).await;
        gate.add_permits(1);
        let answer = call.await.expect("task").expect("answer");
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "held"));
        within(world.serving).await.expect("drained");
    }
}

#[tokio::test]
async fn the_drain_is_bounded() {
    let ca = Ca::new();
    let (router, entered, _gate) = held();
    let short = |server: mesh_tower::server::ServerBuilder| server.drain_timeout(SHORT);
    let mut world = World::with(&ca, listener(Mode::Disable, &[]), router, short).await;
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connect");
    let call = tokio::spawn(async move { client.get("/held").await });
    within(entered.notified()).await;
    world
        .shutdown
        .take()
        .expect("running")
        .send(())
        .expect("running");
    within(world.serving).await.expect("ended");
    assert!(call.await.expect("task").is_err());
}
