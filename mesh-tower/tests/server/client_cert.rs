//! `x-forwarded-client-cert` in every mode that Envoy has, as the application sees it.

use std::sync::Arc;

use axum::{Router, routing::any};
use http::HeaderMap;
use mesh_core::config::{ClientCertDetails, ForwardClientCert, ForwardMode};
use mesh_tower::{
    server::InboundState,
    tls::{Alpn, client::ClientTls},
};

use crate::kit::{ALICE, Ca, Client, Mode, SERVER, World, listener, upstream};

const CLAIM: &str = "Hash=00;URI=spiffe://cluster.local/ns/x/sa/root";

fn forwarding(mode: ForwardMode, details: ClientCertDetails) -> InboundState {
    let InboundState::Ready(listener) = listener(Mode::Permissive, &[]) else {
        unreachable!("it is made ready")
    };
    let mut listener = Arc::unwrap_or_clone(listener);
    for chain in &mut listener.filter_chains {
        chain.client_cert = ForwardClientCert { mode, details };
    }
    InboundState::Ready(Arc::new(listener))
}

/// Says which values of the header came.
fn router() -> Router {
    let said = |headers: HeaderMap| async move {
        let values = headers.get_all("x-forwarded-client-cert").iter();
        let values: Vec<_> = values.map(|value| value.to_str().expect("text")).collect();
        values.join(" | ")
    };
    Router::new().route("/", any(said))
}

/// What the application sees of a caller with a certificate, and of one without TLS.
async fn seen(mode: ForwardMode, details: ClientCertDetails, claims: &[&str]) -> [String; 2] {
    let ca = Ca::new();
    let state = forwarding(mode, details);
    let world = World::with(&ca, state, router(), |server| server).await;
    let claims: Vec<_> = claims
        .iter()
        .map(|claim| ("x-forwarded-client-cert", *claim))
        .collect();
    let tls = ClientTls::new(&upstream(&[SERVER]), ca.identity(ALICE), Alpn::Http2);
    let mut member = Client::with_tls(world.addr, &tls).await.expect("handshake");
    let plain = Client::plain(world.addr, Alpn::Http1).await;
    let mut plain = plain.expect("connect");
    let mut answers = [String::new(), String::new()];
    for (client, answer) in [&mut member, &mut plain].into_iter().zip(&mut answers) {
        // The same on each request of a connection.
        for _ in 0..2 {
            let got = client.send("/", &claims).await.expect("answer");
            got.text().clone_into(answer);
        }
    }
    answers
}

/// What we say of Alice, without the hash.
fn without_hash(said: &str) -> String {
    let (before, rest) = said.split_once("Hash=").expect("a hash");
    let hash = rest.get(..64).expect("SHA-256");
    assert!(hash.bytes().all(|b| b.is_ascii_hexdigit()), "{said}");
    format!("{before}{}", &rest[64..])
}

#[tokio::test]
async fn a_claim_is_passed_on_as_the_mode_says() {
    let nothing = ClientCertDetails::default();
    for (mode, member, plain) in [
        (ForwardMode::Sanitize, "", ""),
        (ForwardMode::ForwardOnly, CLAIM, ""),
        (ForwardMode::AlwaysForwardOnly, CLAIM, CLAIM),
    ] {
        let got = seen(mode, nothing, &[CLAIM]).await;
        assert_eq!(got, [member, plain], "{mode:?}");
    }
    let set = seen(ForwardMode::SanitizeSet, nothing, &[CLAIM]).await;
    assert_eq!(without_hash(&set[0]), format!("By={SERVER};"));
    assert_eq!(set[1], "", "nobody proved anything");
}

#[tokio::test]
async fn what_is_appended_stands_behind_every_claim_in_one_value() {
    let details = ClientCertDetails::default();
    let mode = ForwardMode::AppendForward;
    let got = seen(mode, details, &[CLAIM, "Hash=11"]).await;
    let ours = got[0].strip_prefix(&format!("{CLAIM},Hash=11,"));
    let ours = ours.unwrap_or_else(|| panic!("{got:?}"));
    assert_eq!(without_hash(ours), format!("By={SERVER};"));
    assert_eq!(got[1], "");
    let alone = seen(mode, details, &[]).await;
    assert_eq!(without_hash(&alone[0]), format!("By={SERVER};"));
}

#[tokio::test]
async fn the_details_that_are_asked_for_are_said() {
    let uri = ClientCertDetails {
        uri: true,
        dns: true,
        subject: true,
        ..ClientCertDetails::default()
    };
    let got = seen(ForwardMode::SanitizeSet, uri, &[]).await;
    let said = without_hash(&got[0]);
    assert!(
        said.starts_with(&format!("By={SERVER};;Subject=\"")),
        "{said}"
    );
    assert!(said.ends_with(&format!(";URI={ALICE}")), "{said}");
    let certificates = ClientCertDetails {
        cert: true,
        chain: true,
        ..ClientCertDetails::default()
    };
    let got = seen(ForwardMode::SanitizeSet, certificates, &[]).await;
    for key in ["Cert", "Chain"] {
        let pem = format!(";{key}=\"-----BEGIN%20CERTIFICATE-----%0A");
        assert!(got[0].contains(&pem), "{got:?}");
    }
}
