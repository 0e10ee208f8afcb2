//! Limits of connections and streams that a chain declares, over real sockets.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Bytes, routing::any};
use mesh_core::config::{HttpLimits, Underscores};
use mesh_tower::{Body, server::InboundState, tls::Alpn};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::kit::{Ca, Client, Mode, World, listener, within};

/// Soon over.
const SHORT: Duration = Duration::from_millis(100);

fn limited(change: impl FnOnce(&mut HttpLimits)) -> InboundState {
    let InboundState::Ready(listener) = listener(Mode::Disable, &[]) else {
        unreachable!("it is ready")
    };
    let mut listener = (*listener).clone();
    let mut limits = HttpLimits::default();
    change(&mut limits);
    for chain in &mut listener.filter_chains {
        chain.limits = limits.clone();
    }
    InboundState::Ready(Arc::new(listener))
}

/// `/` reads the body, `/never` does not answer, `/stalls` stops within its answer.
fn router() -> Router {
    Router::new()
        .route(
            "/",
            any(|body: Bytes| async move { body.len().to_string() }),
        )
        .route("/never", any(std::future::pending::<()>))
        .route(
            "/stalls",
            any(|| async {
                let first = futures_util::stream::iter([Ok::<_, std::io::Error>("some")]);
                let rest = futures_util::stream::pending();
                axum::body::Body::from_stream(futures_util::StreamExt::chain(first, rest))
            }),
        )
}

async fn world(change: impl FnOnce(&mut HttpLimits)) -> World {
    World::with(&Ca::new(), limited(change), router(), |server| server).await
}

/// A body that never ends.
fn endless() -> Body {
    let first = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from("some")))]);
    let rest = futures_util::stream::pending::<Result<_, std::io::Error>>();
    let frames = futures_util::StreamExt::chain(first, rest);
    Body::new(http_body_util::StreamBody::new(frames))
}

const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

/// Reads until the server closes.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    // A server that closes with unread bytes resets the connection.
    _ = within(stream.read_to_end(&mut read)).await;
    String::from_utf8(read).expect("text")
}

#[tokio::test]
async fn a_stream_without_data_ends_and_says_who_did_not_go_on() {
    let world = world(|limits| limits.stream_idle_timeout = Some(SHORT)).await;
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let connect = || async { Client::plain(world.addr, alpn).await.expect("connects") };
        let silent = connect().await.get("/never").await.expect("answered");
        assert_eq!(
            (silent.status.as_u16(), silent.text()),
            (504, "stream timeout\n")
        );
        let caller = connect().await.post("/", &[], endless()).await;
        assert_eq!(caller.expect("answered").status, 408);
        let torn = connect().await.get("/stalls").await;
        torn.err().expect("its end never came");
    }
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connects");
    let silent = client.grpc("/never", &[]).await.expect("answered");
    assert_eq!(silent.grpc_status(), Some("4"));
    let torn = client.grpc("/stalls", &[]).await.expect("answered");
    assert_eq!(torn.grpc_status(), Some("4"));
    // The connection goes on.
    assert_eq!(client.get("/").await.expect("answered").status, 200);
}

#[tokio::test]
async fn a_request_whose_body_takes_too_long_is_answered_with_408() {
    let world = world(|limits| limits.request_timeout = Some(SHORT)).await;
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let mut client = Client::plain(world.addr, alpn).await.expect("connects");
        let late = client.post("/", &[], endless()).await.expect("answered");
        assert_eq!(
            (late.status.as_u16(), late.text()),
            (408, "request timeout\n")
        );
    }
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connects");
    let late = client.post("/", &GRPC, endless()).await.expect("answered");
    assert_eq!(late.grpc_status(), Some("4"));
    // A request that is read may take as long as it likes.
    let whole = client.post("/", &[], Body::from("whole")).await;
    assert_eq!(whole.expect("answered").text(), "5");
}

#[tokio::test]
async fn a_stream_ends_with_its_longest_duration() {
    let world = world(|limits| limits.max_stream_duration = Some(SHORT)).await;
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let mut client = Client::plain(world.addr, alpn).await.expect("connects");
        let late = client.get("/never").await.expect("answered");
        assert_eq!(late.status, 504);
    }
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connects");
    // What the caller asks for is longer.
    let late = client.grpc("/stalls", &[("grpc-timeout", "1H")]).await;
    assert_eq!(late.expect("answered").grpc_status(), Some("4"));
}

#[tokio::test]
async fn a_head_that_trickles_in_is_given_up() {
    let world = world(|limits| limits.request_headers_timeout = Some(SHORT)).await;
    for begun in [
        "GET / HTTP/1.1\r\nhost: server.default\r\nx-slow: ",
        "PRI * HT",
    ] {
        let mut stream = TcpStream::connect(world.addr).await.expect("connects");
        stream.write_all(begun.as_bytes()).await.expect("written");
        assert_eq!(read_to_end(&mut stream).await, "", "{begun:?}");
    }
    // Between requests and within them there is time.
    let mut stream = TcpStream::connect(world.addr).await.expect("connects");
    let whole = b"POST / HTTP/1.1\r\nhost: server.default\r\ncontent-length: 4\r\n\r\n";
    stream.write_all(whole).await.expect("written");
    tokio::time::sleep(SHORT * 3).await;
    stream.write_all(b"body").await.expect("written");
    let mut answer = [0; 12];
    within(stream.read_exact(&mut answer))
        .await
        .expect("answered");
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_connection_without_requests_is_closed() {
    let change = |limits: &mut HttpLimits| {
        limits.idle_timeout = Some(SHORT);
        limits.request_headers_timeout = Some(SHORT * 2);
    };
    let world = world(change).await;
    for first in ["", "GET / HTTP/1.1\r\nhost: server.default\r\n\r\n"] {
        // A request that has begun is waited for, as long as its head may take.
        let first = if first.is_empty() { "G" } else { first };
        let mut stream = TcpStream::connect(world.addr).await.expect("connects");
        stream.write_all(first.as_bytes()).await.expect("written");
        let answered = read_to_end(&mut stream).await;
        assert_eq!(answered.contains("200 OK"), first.len() > 1, "{answered}");
    }
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connects");
    assert_eq!(client.get("/").await.expect("answered").status, 200);
    let Client::H2(sender) = client else {
        unreachable!("it speaks HTTP/2")
    };
    within(async {
        while !sender.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_takes_so_many_requests_and_lives_so_long() {
    let few = world(|limits| limits.max_requests_per_connection = Some(2)).await;
    let old = world(|limits| limits.max_connection_duration = Some(SHORT)).await;
    for (world, most) in [(&few, 2), (&old, usize::MAX)] {
        for alpn in [Alpn::Http1, Alpn::Http2] {
            let mut client = Client::plain(world.addr, alpn).await.expect("connects");
            let mut answered = 0;
            within(async {
                while let Ok(answer) = client.get("/").await {
                    assert_eq!(answer.status, 200);
                    answered += 1;
                }
            })
            .await;
            assert!(answered > 0, "{alpn:?}");
            // What is sent while an HTTP/2 connection drains is served.
            if alpn == Alpn::Http1 {
                assert!(answered <= most, "{answered}");
            }
        }
    }
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let bytes = world(|limits| limits.max_headers_bytes = Some(1024)).await;
    let count = world(|limits| limits.max_headers_count = Some(10)).await;
    let long = "a".repeat(1024);
    let many = [
        "x-0", "x-1", "x-2", "x-3", "x-4", "x-5", "x-6", "x-7", "x-8", "x-9",
    ];
    let many = many.map(|name| (name, "")).to_vec();
    for (world, large) in [(bytes, vec![("x-long", &*long)]), (count, many)] {
        for alpn in [Alpn::Http1, Alpn::Http2] {
            let mut client = Client::plain(world.addr, alpn).await.expect("connects");
            assert_eq!(client.get("/").await.expect("answered").status, 200);
            let refused = client.send("/", &large).await.expect("answered");
            assert_eq!(refused.status, 431, "{alpn:?}");
        }
        let mut client = Client::plain(world.addr, Alpn::Http2)
            .await
            .expect("connects");
        let refused = client.grpc("/", &large).await.expect("answered");
        assert_eq!(refused.grpc_status(), Some("8"));
    }
}

#[tokio::test]
async fn underscores_in_names_are_refused_or_left_out() {
    let told = Router::new().fallback(any(|headers: http::HeaderMap| async move {
        headers.contains_key("x_claim").to_string()
    }));
    for (underscores, status, text) in [
        (Underscores::Allow, 200, "true"),
        (Underscores::Drop, 200, "false"),
        (
            Underscores::Reject,
            400,
            "a header's name has an underscore\n",
        ),
    ] {
        let state = limited(|limits| {
            limits.underscores = underscores;
        });
        let world = World::with(&Ca::new(), state, told.clone(), |server| server).await;
        for alpn in [Alpn::Http1, Alpn::Http2] {
            let mut client = Client::plain(world.addr, alpn).await.expect("connects");
            let answer = client
                .send("/", &[("x_claim", "1")])
                .await
                .expect("answered");
            assert_eq!((answer.status.as_u16(), answer.text()), (status, text));
        }
    }
}
