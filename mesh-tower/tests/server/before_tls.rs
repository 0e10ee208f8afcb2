//! What somebody can do before proving anything: little, and not for long.

use std::time::Duration;

use mesh_core::rng::{Rng as _, SplitMix64};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::kit::{ALICE, Ca, Client, Mode, World, listener, router, within};

/// Short, so that the test is; the default is 10 s.
const SHORT: Duration = Duration::from_millis(200);

async fn patient(ca: &Ca, mode: Mode) -> World {
    World::with(ca, listener(mode, &[]), router(), |server| {
        server.handshake_timeout(SHORT)
    })
    .await
}

/// Sends `bytes`, then nothing, and waits until the server has closed.
async fn trickle(world: &World, bytes: &[u8]) {
    let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
    tcp.write_all(bytes).await.expect("write");
    let mut got = Vec::new();
    // A reset is as good as an end.
    _ = within(tcp.read_to_end(&mut got)).await;
}

#[tokio::test]
async fn a_client_that_is_slow_before_it_proved_anything_is_closed() {
    let ca = Ca::new();
    for mode in [Mode::Strict, Mode::Permissive] {
        let world = patient(&ca, mode).await;
        // Nothing at all, the first byte of a handshake, and a record that never ends.
        for bytes in [
            &b""[..],
            b"\x16",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ] {
            trickle(&world, bytes).await;
        }
        world
            .counted("mesh_server_refused_connections_total{reason=\"handshake_timeout\"} 3")
            .await;
        let mut honest = Client::tls(world.addr, ca.identity(ALICE))
            .await
            .expect("handshake");
        honest.get("/").await.expect("answer");
    }
}

/// Bytes that look like a handshake for a while.
fn noise(rng: &mut SplitMix64) -> Vec<u8> {
    let len = (rng.unit() * 600.0) as usize + 1;
    let mut bytes: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
    if rng.unit() < 0.8 {
        bytes[0] = 0x16;
    }
    if len > 10 && rng.unit() < 0.7 {
        let record = (len - 5) as u16;
        bytes[1..5].copy_from_slice(&[3, 1, (record >> 8) as u8, record as u8]);
        let message = len as u32 - 9;
        bytes[5] = 1;
        bytes[6..9].copy_from_slice(&message.to_be_bytes()[1..]);
    }
    bytes
}

#[tokio::test]
async fn no_bytes_before_a_handshake_get_an_answer_or_take_the_server_down() {
    let rounds = std::env::var("MESH_FUZZ_ROUNDS").ok();
    let rounds: u32 = rounds.and_then(|text| text.parse().ok()).unwrap_or(200);
    let ca = Ca::new();
    let world = patient(&ca, Mode::Strict).await;
    let mut rng = SplitMix64::new(11);
    for round in 0..rounds {
        let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
        let bytes = noise(&mut rng);
        // It may have closed in the middle.
        _ = tcp.write_all(&bytes).await;
        _ = tcp.shutdown().await;
        let mut got = Vec::new();
        _ = within(tcp.read_to_end(&mut got)).await;
        // An alert at most (RFC 8446 §6): never a byte of HTTP.
        let is_alert = got.first().is_none_or(|kind| *kind == 0x15);
        assert!(is_alert, "round {round}: {got:?}");
    }
    let mut honest = Client::tls(world.addr, ca.identity(ALICE))
        .await
        .expect("handshake");
    honest.get("/").await.expect("answer");
}
