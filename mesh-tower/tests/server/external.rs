//! Authorisation by a service that the server was given, without a mesh.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use mesh_core::{
    config::{CheckBody, ExtAuthz, FilterConfig, HttpFilter},
    filter::{CHECK_PATH, CheckRequest, CheckVerdict, Denied},
};
use mesh_tower::{
    server::{AuthorizationService, AuthorizationServices, CheckError, CheckFuture, InboundState},
    tls::Alpn,
};

use crate::kit::{Ca, Client, Mode, World, listener, router};

/// Does what the path says.
struct ByPath;

impl AuthorizationServices for ByPath {
    fn service(&self, _: &Arc<ExtAuthz>) -> Arc<dyn AuthorizationService> {
        Arc::new(Self)
    }
}

impl AuthorizationService for ByPath {
    fn check(&self, request: &CheckRequest<'_>) -> CheckFuture {
        let path = request.view.path.to_owned();
        Box::pin(async move {
            match path.as_str() {
                "/" => Ok(CheckVerdict::Allowed(Box::default())),
                "/hangs" => std::future::pending().await,
                "/invalid" => Err(CheckError::Invalid("no answer".to_owned())),
                "/away" => Err(CheckError::Unavailable("nobody there".to_owned())),
                _ => Ok(CheckVerdict::Denied(Box::new(Denied {
                    status: Some(418),
                    headers: Vec::new(),
                    body: "no".to_owned(),
                }))),
            }
        })
    }
}

fn checked(config: &ExtAuthz) -> InboundState {
    let InboundState::Ready(inbound) = listener(Mode::Disable, &[]) else {
        unreachable!("it is ready")
    };
    let mut inbound = (*inbound).clone();
    for chain in &mut inbound.filter_chains {
        let config = FilterConfig::ExtAuthz(config.clone().into());
        chain.filters.push(HttpFilter::new("check", config));
    }
    InboundState::Ready(Arc::new(inbound))
}

async fn statuses(config: &ExtAuthz, has_services: bool) -> Vec<u16> {
    let ca = Ca::new();
    let world = World::with(
        &ca,
        checked(config),
        router(),
        |server| match has_services {
            true => server.authorization_services(Arc::new(ByPath)),
            false => server,
        },
    );
    let world = world.await;
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("a client");
    let mut statuses = Vec::new();
    for path in ["/", "/tea", "/away", "/hangs", "/invalid", CHECK_PATH] {
        let answer = client.get(path).await.expect("an answer");
        statuses.push(answer.status.as_u16());
    }
    statuses
}

fn config() -> ExtAuthz {
    ExtAuthz {
        // Long enough for whoever answers at once, on a busy machine too.
        timeout: Duration::from_secs(2),
        status_on_error: 503,
        ..ExtAuthz::new("authz")
    }
}

#[tokio::test]
async fn a_request_without_a_verdict_is_refused() {
    let found = statuses(&config(), true).await;
    assert_eq!(found, [200, 418, 503, 503, 500, 503]);
}

#[tokio::test]
async fn failing_open_lets_pass_what_could_not_be_asked_about_and_nothing_else() {
    let open = ExtAuthz {
        failure_mode_allow: true,
        ..config()
    };
    // The application knows none of these paths but the first.
    assert_eq!(statuses(&open, true).await, [200, 418, 404, 404, 500, 503]);
}

#[tokio::test]
async fn a_server_that_was_given_nobody_to_ask_refuses_even_when_failures_pass() {
    let open = ExtAuthz {
        failure_mode_allow: true,
        ..config()
    };
    let found = statuses(&open, false).await;
    assert_eq!(found, [StatusCode::SERVICE_UNAVAILABLE.as_u16(); 6]);
}

/// Refuses with what it was told.
struct ByBody;

impl AuthorizationServices for ByBody {
    fn service(&self, _: &Arc<ExtAuthz>) -> Arc<dyn AuthorizationService> {
        Arc::new(Self)
    }
}

impl AuthorizationService for ByBody {
    fn check(&self, request: &CheckRequest<'_>) -> CheckFuture {
        let told = request.body.clone().unwrap_or_default();
        let all = if told.is_partial { "part" } else { "all" };
        let text = format!("{all} {}", String::from_utf8_lossy(&told.data));
        Box::pin(async move {
            Ok(match text.contains("bad") {
                false => CheckVerdict::Allowed(Box::default()),
                true => CheckVerdict::Denied(Box::new(Denied {
                    body: text,
                    ..Denied::default()
                })),
            })
        })
    }
}

/// A body in pieces, of unknown length.
fn pieces(text: &[&'static str]) -> mesh_tower::Body {
    let frames = text.iter().map(|piece| {
        let data = bytes::Bytes::from_static(piece.as_bytes());
        Ok::<_, std::io::Error>(http_body::Frame::data(data))
    });
    let frames: Vec<_> = frames.collect();
    mesh_tower::Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(
        frames,
    )))
}

#[tokio::test]
async fn a_service_is_told_a_body_that_the_application_gets_whole() {
    let long = "0123456789";
    for (allow_partial, body, status, answer) in [
        (false, &["te", "a"][..], 200, "tea"),
        (false, &["12", "345678"], 200, "12345678"),
        (false, &["bad", "tea"], 403, "all badtea"),
        (false, &["1234567", "89"], 413, "Payload Too Large"),
        (
            true,
            &["1234567", "89", long, long],
            200,
            "12345678901234567890123456789",
        ),
        (true, &["bad ", "tea", "pot", long], 403, "part bad teap"),
        (true, &["bad"], 403, "all bad"),
        (false, &[], 200, ""),
    ] {
        let config = ExtAuthz {
            body: Some(CheckBody {
                max_request_bytes: 8,
                allow_partial,
                pack_as_bytes: true,
            }),
            ..config()
        };
        let echo = axum::Router::new().fallback(async |body: String| body);
        for alpn in [Alpn::Http1, Alpn::Http2] {
            let state = checked(&config);
            let ca = Ca::new();
            let world = World::with(&ca, state, echo.clone(), |server| {
                server.authorization_services(Arc::new(ByBody))
            });
            let world = world.await;
            let mut client = Client::plain(world.addr, alpn).await.expect("a client");
            let got = client
                .post("/", &[], pieces(body))
                .await
                .expect("an answer");
            let got_text = got.text().trim_end();
            assert_eq!(
                (got.status.as_u16(), got_text),
                (status, answer),
                "{body:?}"
            );
        }
    }
}
