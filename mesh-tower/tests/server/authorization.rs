//! What a caller may do, and what is written down about it.

use http::StatusCode;
use mesh_core::config::{Fraction, Principal, RbacAction, StringMatcher};
use mesh_tower::tls::Alpn;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::kit::{ALICE, Ca, Client, Mode, World, deny_all, listener, rbac, router, within};

fn alice() -> Principal {
    Principal::Authenticated(Some(StringMatcher::exact(ALICE)))
}

#[tokio::test]
async fn deny_all_refuses_http_and_grpc_in_their_own_words_and_is_audited() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Strict, &[deny_all()])).await;
    let mut client = Client::tls(world.addr, ca.identity(ALICE))
        .await
        .expect("handshake");
    let http = client.get("/who?token=secret").await.expect("answer");
    assert_eq!(http.status, StatusCode::FORBIDDEN);
    let grpc = client
        .grpc("/pkg.Greeter/SayHello", &[])
        .await
        .expect("answer");
    assert_eq!(grpc.status, StatusCode::OK);
    assert_eq!(grpc.grpc_status(), Some("7"));
    assert_eq!(grpc.headers["grpc-message"], "RBAC: access denied");
    assert_eq!(grpc.headers["content-type"], "application/grpc");
    assert!(grpc.body.is_empty());

    let records = world.audit.lock().expect("sink").clone();
    assert_eq!(records.len(), 2);
    let json = records[0].to_json();
    assert_eq!(json["principal"], ALICE);
    assert_eq!(json["method"], "POST");
    assert_eq!(json["rpc_method"], "/who");
    assert_eq!(json["authority"], "server.default");
    assert_eq!(json["action"], "ALLOW");
    assert_eq!(json["matched_rule"], serde_json::Value::Null);
    assert_eq!(json["authorized"], false);
    assert_eq!(records[1].path, "/pkg.Greeter/SayHello");
    world
        .counted("mesh_server_denied_total{policy=\"(none allows)\"} 2")
        .await;
    world
        .counted("mesh_server_requests_total{code=\"PERMISSION_DENIED\"} 1")
        .await;
    world
        .counted("mesh_server_requests_total{code=\"4xx\"} 1")
        .await;
}

#[tokio::test]
async fn a_policy_change_applies_to_a_live_connection() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Strict, &[])).await;
    let mut client = Client::tls(world.addr, ca.identity(ALICE))
        .await
        .expect("handshake");
    let deny = rbac(RbacAction::Deny, "no-alice", alice());
    let log = rbac(RbacAction::Log, "watch-alice", alice());
    let allow = rbac(RbacAction::Allow, "alice", alice());
    for (policies, expected) in [
        (vec![], StatusCode::OK),
        (vec![deny.clone()], StatusCode::FORBIDDEN),
        (vec![allow.clone()], StatusCode::OK),
        (vec![log.clone(), allow.clone()], StatusCode::OK),
        (vec![deny, allow], StatusCode::FORBIDDEN),
    ] {
        world.state.send_replace(listener(Mode::Strict, &policies));
        let refused = within(async {
            loop {
                let answer = client.get("/").await.expect("the connection lives");
                // The server takes the change on in a task of its own.
                if answer.status == expected {
                    break;
                }
            }
        });
        refused.await;
    }
    let records = world.audit.lock().expect("sink").clone();
    let by = |policy: &str| {
        records
            .iter()
            .find(|record| record.policy.as_deref() == Some(policy))
            .expect("record")
    };
    assert_eq!(
        (by("no-alice").action, by("no-alice").authorized),
        ("DENY", false)
    );
    assert_eq!(
        (by("watch-alice").action, by("watch-alice").authorized),
        ("LOG", true)
    );
    assert!(
        records
            .iter()
            .all(|record| record.principal.as_deref() == Some(ALICE))
    );
}

#[tokio::test]
async fn plaintext_callers_have_no_name() {
    let ca = Ca::new();
    let allow = rbac(RbacAction::Allow, "alice", alice());
    let world = World::start(&ca, listener(Mode::Permissive, &[allow])).await;
    let mut plain = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connect");
    assert_eq!(
        plain.get("/").await.expect("answer").status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(world.audit.lock().expect("sink")[0].principal, None);
    let mut tls = Client::tls(world.addr, ca.identity(ALICE))
        .await
        .expect("handshake");
    assert_eq!(tls.get("/").await.expect("answer").status, StatusCode::OK);
}

#[tokio::test]
async fn a_connection_that_no_longer_fits_is_drained() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Permissive, &[])).await;
    let mut plain = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connect");
    let mut tls = Client::tls(world.addr, ca.identity(ALICE))
        .await
        .expect("handshake");
    assert!(plain.get("/").await.is_ok() && tls.get("/").await.is_ok());
    world.state.send_replace(listener(Mode::Strict, &[]));
    let Client::H2(sender) = &mut plain else {
        panic!("HTTP/2")
    };
    within(async {
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(tls.get("/").await.is_ok(), "the other one stays");
}

#[tokio::test]
async fn a_request_with_two_authorities_is_refused_before_anything_compares_them() {
    let ca = Ca::new();
    let world = World::start(&ca, listener(Mode::Disable, &[])).await;
    for head in [
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n",
        "GET http://a/ HTTP/1.1\r\nhost: b\r\n",
    ] {
        let mut tcp = TcpStream::connect(world.addr).await.expect("connect");
        let request = format!("{head}connection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.expect("write");
        let mut got = String::new();
        within(tcp.read_to_string(&mut got)).await.expect("answer");
        assert!(got.starts_with("HTTP/1.1 400 "), "{head:?}: {got}");
    }
    let mut client = Client::plain(world.addr, Alpn::Http2)
        .await
        .expect("connect");
    let answer = client
        .send("/", &[("host", "other")])
        .await
        .expect("answer");
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let answer = client
        .send("/", &[("host", "SERVER.default")])
        .await
        .expect("answer");
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn what_passed_is_written_down_by_the_share_and_what_did_not_always() {
    let ca = Ca::new();
    let allow = rbac(RbacAction::Allow, "alice", alice());
    for (share, allowed) in [
        (None, 0..=0),
        (Some(Fraction::NONE), 0..=0),
        // A hundred draws, each of which counts half of the time.
        (Fraction::new(1, 2), 10..=90),
        (Fraction::new(1, 1), 100..=100),
    ] {
        let state = listener(Mode::Strict, std::slice::from_ref(&allow));
        let world = World::with(&ca, state, router(), |server| match share {
            Some(share) => server.audit_allowed(share),
            None => server,
        });
        let world = world.await;
        let identity = ca.identity(ALICE);
        let mut client = Client::tls(world.addr, identity).await.expect("handshake");
        for _ in 0..100 {
            let answer = client.get("/who").await.expect("answer");
            assert_eq!(answer.status, StatusCode::OK);
        }
        let written = world.audit.lock().expect("sink").len();
        assert!(allowed.contains(&written), "{share:?}: {written}");
        let stranger = ca.identity("spiffe://cluster.local/ns/default/sa/mallory");
        let mut client = Client::tls(world.addr, stranger).await.expect("handshake");
        for _ in 0..10 {
            let answer = client.get("/who").await.expect("answer");
            assert_eq!(answer.status, StatusCode::FORBIDDEN);
        }
        let refused = world.audit.lock().expect("sink").split_off(written);
        assert_eq!(refused.len(), 10, "{share:?}");
        assert!(refused.iter().all(|record| !record.authorized));
    }
}
