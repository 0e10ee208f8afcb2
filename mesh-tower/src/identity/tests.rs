//! Tables of SPIFFE IDs and of the names of certificates.

use std::{sync::Arc, time::SystemTime};

use mesh_core::{config::TrustBundle, rng::SplitMix64};
use tokio::sync::watch;

use super::*;
use crate::fuzz;

#[test]
fn spiffe_ids_are_validated() {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/greeter").expect("valid");
    assert_eq!(id.trust_domain(), "cluster.local");
    assert_eq!(id.path(), "/ns/default/sa/greeter");
    assert_eq!(SpiffeId::parse("spiffe://td").expect("no path").path(), "");
    for bad in [
        "",
        "https://cluster.local/x",
        "SPIFFE://cluster.local/x",
        "spiffe://",
        "spiffe:///x",
        "spiffe://Cluster.local/x",
        "spiffe://user@td/x",
        "spiffe://td:80/x",
        "spiffe://td/",
        "spiffe://td/a//b",
        "spiffe://td/a/../b",
        "spiffe://td/a/",
        "spiffe://td/a?x",
        "spiffe://td/a#x",
        "spiffe://td/%61",
    ] {
        assert!(SpiffeId::parse(bad).is_err(), "{bad}");
    }
    let at_bound = format!("spiffe://td/{}", "a".repeat(SPIFFE_ID_LENGTH_MAX - 12));
    assert!(SpiffeId::parse(&at_bound).is_ok());
    assert!(SpiffeId::parse(&format!("{at_bound}a")).is_err());
}

fn leaf(names: &[(&str, &str)], subject: &[(rcgen::DnType, &str)]) -> rcgen::Certificate {
    let key = rcgen::KeyPair::generate().expect("key");
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, value) in subject {
        params.distinguished_name.push(kind.clone(), *value);
    }
    for (kind, name) in names {
        let text = (*name).try_into().expect("IA5");
        params.subject_alt_names.push(match *kind {
            "uri" => rcgen::SanType::URI(text),
            _ => rcgen::SanType::DnsName(text),
        });
    }
    params.self_signed(&key).expect("certificate")
}

#[test]
fn names_of_a_peer_are_uris_then_dns_names_then_the_subject() {
    let cn = &[
        (rcgen::DnType::OrganizationName, "Mesh, Inc"),
        (rcgen::DnType::CommonName, "a"),
    ];
    let names = |cert: &rcgen::Certificate| PeerIdentity::from_leaf(cert.der());
    let both = leaf(&[("dns", "a.example"), ("uri", "spiffe://td/a")], cn);
    let peer = names(&both).expect("readable");
    assert_eq!(peer.names(), ["spiffe://td/a"]);
    assert_eq!(
        peer.spiffe_id().map(SpiffeId::as_str),
        Some("spiffe://td/a")
    );
    let dns = names(&leaf(&[("dns", "a.example"), ("dns", "b.example")], cn)).expect("dns");
    assert_eq!(dns.names(), ["a.example", "b.example"]);
    assert!(dns.spiffe_id().is_none());
    assert_eq!(
        names(&leaf(&[], cn)).expect("subject").names(),
        ["CN=a,O=Mesh\\, Inc"]
    );
    assert!(names(&leaf(&[], &[])).expect("nothing").names().is_empty());
    for bad in [
        &[("uri", "spiffe://td/a"), ("uri", "spiffe://td/b")][..],
        &[("uri", "spiffe://td/a"), ("uri", "https://x")],
        &[("uri", "spiffe://TD/a")],
    ] {
        assert!(names(&leaf(bad, cn)).is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn ready_waits_for_both_halves_and_tells_when_it_never_will_be() {
    assert!(Identity::none().ready().await.is_err());
    let (trust_tx, trust) = watch::channel(None);
    let key = rcgen::KeyPair::generate().expect("key");
    let mut params = rcgen::CertificateParams::default();
    let id = "spiffe://td/a".try_into().expect("IA5");
    params.subject_alt_names.push(rcgen::SanType::URI(id));
    let pem = params.self_signed(&key).expect("certificate").pem();
    let certificate = Certificate::from_pem(&pem, &key.serialize_pem()).expect("usable");
    assert!(!format!("{certificate:?}").contains("PRIVATE"));
    assert!(certificate.not_after() > SystemTime::now());
    let identity = Identity::new(watch::channel(Some(Arc::new(certificate))).1, trust);
    let waiting = tokio::spawn({
        let identity = identity.clone();
        async move { identity.ready().await }
    });
    let bundle = TrustBundle {
        name: "ROOTCA".into(),
        roots: vec![],
    };
    trust_tx.send_replace(Some(Arc::new(bundle)));
    assert_eq!(waiting.await.expect("task"), Ok(()));
    let other = rcgen::KeyPair::generate().expect("key");
    assert!(
        Certificate::from_pem(&pem, &other.serialize_pem()).is_err(),
        "foreign key"
    );
}

/// Letters of PEM.
const LETTERS: &[u8] = b"-=\n BEGINCRTFAabcz019+/";

/// Bounded, seeded fuzzing: what is taken is a SPIFFE ID with a key that belongs to it, and a pair
/// whose halves are of two identities is never taken.
#[test]
fn damaged_chains_and_keys_are_refused_or_belong_together() {
    let mut rng = SplitMix64::new(9);
    let root = rcgen::KeyPair::generate().expect("key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = rcgen::CertifiedIssuer::self_signed(params, root).expect("root");
    let pair = |id: &str| {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().expect("IA5"))];
        let leaf = params.signed_by(&key, &root).expect("leaf");
        (leaf.pem() + &root.pem(), key.serialize_pem())
    };
    let (chain, key) = pair("spiffe://td/ns/default/sa/a");
    let (other_chain, other_key) = pair("spiffe://td/ns/default/sa/b");
    Certificate::from_pem(&chain, &key).expect("whole");
    let mut taken = 0;
    for _ in 0..fuzz::rounds(2_000) {
        let damaged = fuzz::damage(&chain, LETTERS, &mut rng);
        if let Ok(certificate) = Certificate::from_pem(&damaged, &key) {
            assert!(SpiffeId::parse(certificate.spiffe_id().as_str()).is_ok());
            assert!(certificate.certified().keys_match().is_ok(), "{damaged}");
            taken += 1;
        }
        let mixed = Certificate::from_pem(&damaged, &other_key);
        assert!(mixed.is_err(), "the key of another: {damaged}");
        let damaged = fuzz::damage(&key, LETTERS, &mut rng);
        if let Ok(certificate) = Certificate::from_pem(&chain, &damaged) {
            assert!(certificate.certified().keys_match().is_ok(), "{damaged}");
        }
        let mixed = Certificate::from_pem(&other_chain, &damaged);
        assert!(mixed.is_err(), "the chain of another: {damaged}");
    }
    assert!(taken > 0, "damage behind the leaf is the peer's to judge");
}
