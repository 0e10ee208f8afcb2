//! What somebody can do before proving anything: little, and not for long.

use std::time::Duration;

use mesh_core::rng::{Rng as _, SplitMix64};
use mesh_tower::tls::{Alpn, client::ClientTls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::kit::{ALICE, Ca, Client, Mode, SERVER, World, listener, router, upstream, within};

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

/// Rounds of a test, unless `MESH_FUZZ_ROUNDS` asks for others.
fn rounds(default: u32) -> u32 {
    let rounds = std::env::var("MESH_FUZZ_ROUNDS").ok();
    rounds.map_or(default, |text| text.parse().expect("a number"))
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
    let ca = Ca::new();
    let world = patient(&ca, Mode::Strict).await;
    let mut rng = SplitMix64::new(11);
    for round in 0..rounds(200) {
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

/// The first flight of an honest client.
async fn hello(ca: &Ca) -> Vec<u8> {
    let (client, mut server) = tokio::io::duplex(16 * 1024);
    let tls = ClientTls::new(&upstream(&[SERVER]), ca.identity(ALICE), Alpn::Http2);
    let address = ([127, 0, 0, 1], 1).into();
    let mut hello = vec![0; 16 * 1024];
    let read = async {
        let length = server.read(&mut hello).await.expect("a hello");
        drop(server);
        length
    };
    // It ends without an answer.
    let (_, length) = tokio::join!(tls.connect(client, address), read);
    hello.truncate(length);
    hello
}

/// The beginning of what a client of some kind says, damaged in places.
fn beginning(rng: &mut SplitMix64, hello: &[u8]) -> Vec<u8> {
    const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x10";
    const HTTP1: &[u8] =
        b"POST /who HTTP/1.1\r\nhost: server.default\r\ncontent-length: 5\r\n\r\nhello";
    let mut bytes = match rng.next_u64() % 5 {
        0 | 1 => hello.to_vec(),
        2 => [HTTP2, &noise(rng)].concat(),
        3 => HTTP1.to_vec(),
        _ => return noise(rng),
    };
    let below = |rng: &mut SplitMix64, end: usize| (rng.unit() * end as f64) as usize;
    for _ in 0..rng.next_u64() % 3 {
        let at = below(rng, bytes.len());
        bytes[at] ^= 1 << (rng.next_u64() % 8);
    }
    bytes.truncate(1 + below(rng, bytes.len()));
    bytes
}

#[tokio::test]
async fn nothing_that_a_permissive_port_is_told_takes_the_server_down() {
    let ca = Ca::new();
    let world = patient(&ca, Mode::Permissive).await;
    let hello = hello(&ca).await;
    assert_eq!(hello[0], 0x16);
    let mut rng = SplitMix64::new(12);
    for round in 0..rounds(400) {
        let bytes = beginning(&mut rng, &hello);
        let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let part = 1 + (rng.unit() * rest.len() as f64) as usize;
            let (now, later) = rest.split_at(part.min(rest.len()));
            // It may have closed in the middle.
            _ = tcp.write_all(now).await;
            rest = later;
        }
        _ = tcp.shutdown().await;
        let mut got = Vec::new();
        _ = within(tcp.read_to_end(&mut got)).await;
        if bytes[0] == 0x16 {
            // A hello that was left whole is answered; nothing of HTTP is.
            let is_tls = got.first().is_none_or(|kind| matches!(kind, 0x14..=0x17));
            assert!(is_tls, "round {round}: {got:?}");
        }
    }
    let honest = Client::tls(world.addr, ca.identity(ALICE)).await;
    honest.expect("handshake").get("/").await.expect("answer");
    let plain = Client::plain(world.addr, Alpn::Http1).await;
    plain.expect("connection").get("/").await.expect("answer");
}

#[tokio::test]
async fn a_hello_that_comes_byte_by_byte_has_no_more_time_than_another() {
    let ca = Ca::new();
    let world = patient(&ca, Mode::Permissive).await;
    let hello = hello(&ca).await;
    let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
    let trickle = async {
        // Each byte is on time, and all of them would take a minute.
        for byte in &hello {
            if tcp.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(SHORT / 2).await;
        }
    };
    within(async {
        tokio::select! {
            () = trickle => {}
            () = world.counted(
                "mesh_server_refused_connections_total{reason=\"handshake_timeout\"} 1",
            ) => {}
        }
    })
    .await;
}

/// How much a server takes of something that never ends before it closes.
async fn taken(world: &World, head: &[u8], part: &[u8]) -> usize {
    /// Far more than a server may keep, and than sockets hold.
    const SENT_MAX: usize = 64 << 20;
    let tcp = TcpStream::connect(world.addr).await.expect("connect");
    let (mut read, mut write) = tcp.into_split();
    // Answers are read, so that it is the server who ends this.
    let drain = tokio::spawn(async move {
        let mut got = Vec::new();
        _ = read.read_to_end(&mut got).await;
    });
    let mut sent = head.len();
    let mut open = write.write_all(head).await.is_ok();
    while open && sent < SENT_MAX {
        open = write.write_all(part).await.is_ok();
        sent += part.len();
    }
    drop(write);
    within(drain).await.expect("an end");
    assert!(!open, "the server takes all of it");
    sent
}

#[tokio::test]
async fn what_never_ends_is_not_kept() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Permissive, &[])).await;
    // A hello of 16 MiB in records of 16 KiB.
    let record = [&[0x16, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
    let first = [0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff];
    within(taken(&world, &first, &record)).await;
    // Headers of HTTP/1.1.
    let header = format!("x-a: {}\r\n", "a".repeat(4_000));
    let head = b"GET / HTTP/1.1\r\nhost: a\r\n";
    within(taken(&world, head, header.as_bytes())).await;
    // A block of headers in frames of HTTP/2 without an end (CVE-2024-27983 and its kin).
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let headers = [&preface[..], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]].concat();
    let literal = [&[0x40, 1, b'a', 0x7f, 0x81, 0x1e][..], &[b'a'; 4_096]].concat();
    let length = (literal.len() as u32).to_be_bytes();
    let frame = [&length[1..], &[9, 0, 0, 0, 0, 1], &literal].concat();
    within(taken(&world, &headers, &frame)).await;
    let mut honest = Client::tls(world.addr, ca.identity(ALICE))
        .await
        .expect("handshake");
    honest.get("/").await.expect("answer");
}
