//! The stored certificate: what is used of it, and what never is.

use std::fs;

use super::{ports::free_address, *};
use crate::certificate::keep::Keep;

fn keep(folder: &tempfile::TempDir) -> Keep {
    Keep {
        path: folder.path().join("identity"),
        signer: "cp:1".into(),
        node: "me".into(),
    }
}

/// One that is stored in `folder`.
fn stored(folder: &tempfile::TempDir) -> (Keep, Certificate) {
    let request = csr::SigningRequest::new().unwrap();
    let answer = Signer::new().sign(&request.pem, &[NAME], HOUR);
    let certificate = request.accept(&answer, SystemTime::now()).unwrap();
    let keep = keep(folder);
    keep.save(&certificate).unwrap();
    (keep, certificate)
}

#[test]
fn a_certificate_and_its_key_are_read_back_as_stored() {
    let folder = tempfile::tempdir().unwrap();
    assert!(keep(&folder).load(SystemTime::now()).unwrap().is_none());
    let (keep, certificate) = stored(&folder);
    let read = keep.load(SystemTime::now()).unwrap().unwrap();
    assert!(read.is_stored && !certificate.is_stored);
    assert_eq!(
        (&read.chain, &read.key),
        (&certificate.chain, &certificate.key)
    );
    assert_eq!(read.spiffe_id, NAME);
    assert_eq!(read.not_after, certificate.not_after);
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 1, "nothing is left beside it");
}

#[cfg(unix)]
#[test]
fn the_file_is_its_owners_alone_and_not_read_when_others_may() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (keep, _) = stored(&folder);
    let mode = fs::metadata(&keep.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for mode in [0o640, 0o604, 0o620, 0o602] {
        fs::set_permissions(&keep.path, fs::Permissions::from_mode(mode)).unwrap();
        let error = keep.load(SystemTime::now()).unwrap_err();
        assert!(error.contains("others may read or write it"), "{error}");
    }
}

#[test]
fn one_that_has_expired_or_is_of_another_node_or_signer_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let (keep, _) = stored(&folder);
    let now = SystemTime::now();
    let error = keep.load(now + 2 * HOUR).unwrap_err();
    assert!(error.contains("has expired"), "{error}");
    for other in [
        Keep {
            node: "other".into(),
            ..keep.clone()
        },
        Keep {
            signer: "cp:2".into(),
            ..keep
        },
    ] {
        let error = other.load(now).unwrap_err();
        assert!(
            error.contains("it is of node \"me\" from \"cp:1\""),
            "{error}"
        );
    }
}

#[test]
fn a_key_that_is_not_the_leafs_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let (keep, mut certificate) = stored(&folder);
    let (_, other) = stored(&tempfile::tempdir().unwrap());
    certificate.key = other.key;
    keep.save(&certificate).unwrap();
    let error = keep.load(SystemTime::now()).unwrap_err();
    assert!(error.contains("for another key"), "{error}");
}

#[test]
fn a_file_that_is_cut_or_changed_anywhere_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let (keep, _) = stored(&folder);
    let content = fs::read(&keep.path).unwrap();
    let now = SystemTime::now();
    for length in 0..content.len() {
        fs::write(&keep.path, &content[..length]).unwrap();
        assert!(keep.load(now).is_err(), "cut at {length}");
    }
    for i in 0..content.len() {
        let mut changed = content.clone();
        changed[i] ^= 0x10;
        fs::write(&keep.path, changed).unwrap();
        assert!(keep.load(now).is_err(), "changed at {i}");
    }
}

/// Bounded, seeded fuzzing: with a checksum that fits, damage is refused or gives a usable pair.
#[test]
fn damaged_content_under_a_right_checksum_never_panics() {
    use mesh_core::rng::SplitMix64;
    use ring::digest::{SHA256, digest};

    use crate::mutate;
    let folder = tempfile::tempdir().unwrap();
    let (keep, _) = stored(&folder);
    let content = fs::read(&keep.path).unwrap();
    let (header, payload) = content.split_at(8 + 4 + 32);
    let mut rng = SplitMix64::new(8);
    for _ in 0..mutate::rounds(2000) {
        let damaged = mutate::damage(payload, &mut rng);
        let mut content = header[..12].to_vec();
        content.extend(digest(&SHA256, &damaged).as_ref());
        content.extend(damaged);
        if let Ok(certificate) = keep.decode(&content, SystemTime::now()) {
            // Its signature is looked at where the trust bundle is.
            assert!(certificate.spiffe_id.starts_with("spiffe://"));
        }
    }
}

/// The stored one stands in while the signer is down, and gives way to a new one.
#[tokio::test]
async fn a_stored_certificate_serves_until_the_signer_answers_and_is_replaced_then() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address().unwrap();
    let mut config = CertificateConfig::new(ServerUri::parse(&address.to_string()).unwrap());
    config.backoff_base = Duration::from_millis(5);
    config.backoff_cap = Duration::from_millis(20);
    config.owner = "me".into();
    let token = folder.path().join("token");
    fs::write(&token, "secret").unwrap();
    config.token_file = Some(token);
    let path = folder.path().join("identity");
    config.file = Some(path.clone());
    let (keep, certificate) = stored(&folder);
    let keep = Keep {
        signer: config.server.to_string(),
        ..keep
    };
    keep.save(&certificate).unwrap();

    let mut watch = CertificateClient::start(config);
    tokio::time::timeout(MUST_HAPPEN, watch.wait_for(Option::is_some))
        .await
        .unwrap()
        .unwrap();
    let first = watch.borrow_and_update().clone().unwrap();
    assert!(first.is_stored);
    assert_eq!(first.key, certificate.key);

    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let service = Service {
        signer: Signer::new(),
        calls: AtomicUsize::new(1),
    };
    let server = tonic::transport::Server::builder()
        .add_service(IstioCertificateServiceServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let is_fresh = |held: &Option<Arc<Certificate>>| held.as_ref().is_some_and(|c| !c.is_stored);
    tokio::time::timeout(MUST_HAPPEN, watch.wait_for(is_fresh))
        .await
        .unwrap()
        .unwrap();
    let replaced = async {
        loop {
            let held = keep.load(SystemTime::now());
            if held.is_ok_and(|held| held.is_some_and(|held| held.key != certificate.key)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(MUST_HAPPEN, replaced).await.unwrap();
}
