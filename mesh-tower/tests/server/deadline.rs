//! How long a request may take.

use std::{convert::Infallible, time::Duration};

use axum::{Router, body::Body, response::Response, routing::any};
use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_tower::{
    context::{RequestContext, inbound_deadline},
    tls::Alpn,
};
use tokio::sync::mpsc;

use crate::kit::{Ca, Client, Mode, World, listener, within};

/// Tells when it is dropped.
struct Dropped(mpsc::UnboundedSender<&'static str>, &'static str);

impl Drop for Dropped {
    fn drop(&mut self) {
        _ = self.0.send(self.1);
    }
}

fn left() -> Option<Duration> {
    inbound_deadline().map(|at| at.saturating_duration_since(std::time::Instant::now()))
}

/// `/never` does not answer, `/stream` answers and never ends, `/left` says how much time is left
/// in its head and again while its body is made.
fn router(dropped: &mpsc::UnboundedSender<&'static str>) -> Router {
    let (never, stream) = (dropped.clone(), dropped.clone());
    Router::new()
        .route(
            "/never",
            any(move || async move {
                let _guard = Dropped(never, "never");
                std::future::pending::<()>().await;
            }),
        )
        .route(
            "/stream",
            any(move || async move {
                let guard = Dropped(stream, "stream");
                let frames =
                    futures_util::stream::unfold((guard, false), |(guard, sent)| async move {
                        if sent {
                            std::future::pending::<()>().await;
                        }
                        let frame = Frame::data(Bytes::from_static(b"first"));
                        Some((Ok::<_, Infallible>(frame), (guard, true)))
                    });
                let body = Body::new(StreamBody::new(frames));
                let grpc = ("content-type", "application/grpc");
                Response::builder()
                    .header(grpc.0, grpc.1)
                    .body(body)
                    .expect("response")
            }),
        )
        .route(
            "/left",
            any(|| async {
                let head = left().is_some_and(|left| left <= Duration::from_secs(60));
                assert!(RequestContext::current().is_some());
                let frames = futures_util::stream::once(async move {
                    let body = left().is_some_and(|left| left <= Duration::from_secs(60));
                    Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{head} {body}"))))
                });
                Response::new(Body::new(StreamBody::new(frames)))
            }),
        )
}

#[tokio::test]
async fn the_deadline_ends_the_application_with_the_callers_own_status() {
    let ca = Ca::new();
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let state = listener(Mode::Disable, &[]);
    let world = World::with(&ca, state, router(&dropped), |server| server).await;
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connect");
    let timeout = [("grpc-timeout", "20m")];

    let grpc = client.grpc("/never", &timeout).await.expect("answer");
    assert_eq!(
        (grpc.status, grpc.grpc_status()),
        (StatusCode::OK, Some("4"))
    );
    assert_eq!(within(drops.recv()).await, Some("never"));

    let http = client.send("/never", &timeout).await.expect("answer");
    assert_eq!(http.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(within(drops.recv()).await, Some("never"));

    // Long enough for the head and the first message on a busy machine.
    let stream = client
        .grpc("/stream", &[("grpc-timeout", "500m")])
        .await
        .expect("answer");
    assert_eq!(stream.text(), "first");
    assert_eq!(stream.trailers["grpc-status"], "4");
    assert_eq!(within(drops.recv()).await, Some("stream"));
    world
        .counted("mesh_server_requests_total{code=\"DEADLINE_EXCEEDED\"} 2")
        .await;
    world.counted("mesh_server_requests_in_flight 0").await;
}

#[tokio::test]
async fn the_application_sees_its_deadline_while_it_streams_too() {
    let ca = Ca::new();
    let (dropped, _drops) = mpsc::unbounded_channel();
    let state = listener(Mode::Disable, &[]);
    let world = World::with(&ca, state, router(&dropped), |server| server).await;
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let mut client = Client::plain(world.addr, alpn).await.expect("connect");
        let answer = client
            .send("/left", &[("grpc-timeout", "1M")])
            .await
            .expect("answer");
        assert_eq!(answer.text(), "true true");
        let answer = client.get("/left").await.expect("answer");
        assert_eq!(answer.text(), "false false");
        let answer = client
            .send("/left", &[("grpc-timeout", "soon")])
            .await
            .expect("answer");
        assert_eq!(answer.text(), "false false", "not gRPC");
    }
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connect");
    let malformed = client
        .grpc("/left", &[("grpc-timeout", "soon")])
        .await
        .expect("answer");
    assert_eq!(malformed.grpc_status(), Some("13"));
}
