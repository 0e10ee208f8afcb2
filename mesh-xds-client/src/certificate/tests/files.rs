//! Files that are rotated, and files that are not right: what was read before stays.

use std::{fs, os::unix::fs::symlink, path::Path};

use rustls_pki_types::pem::PemObject as _;

use super::*;
use crate::{bootstrap::FileWatcher, certificate::files};

/// A key and its chain in a new folder.
fn write(folder: &Path, signer: &Signer, name: &str) {
    fs::create_dir_all(folder).unwrap();
    let request = csr::SigningRequest::new().unwrap();
    let answer = signer.sign(&request.pem, &[name], HOUR);
    fs::write(folder.join("chain.pem"), answer.concat()).unwrap();
    fs::write(folder.join("key.pem"), request.key_pem()).unwrap();
    fs::write(folder.join("ca.pem"), &signer.root).unwrap();
}

fn watcher(folder: &Path) -> FileWatcher {
    let text = serde_json::json!({
        "xds_servers": [{"server_uri": "cp:1", "channel_creds": [{"type": "insecure"}]}],
        "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {
            "certificate_file": folder.join("chain.pem"),
            "private_key_file": folder.join("key.pem"),
            "ca_certificate_file": folder.join("ca.pem"),
            "refresh_interval": "0.005s",
        }}},
    });
    let bootstrap = crate::Bootstrap::from_json(&text.to_string()).unwrap();
    match &bootstrap.certificate_providers["default"] {
        crate::bootstrap::CertificateProvider::FileWatcher(files) => files.clone(),
        other => panic!("{other:?}"),
    }
}

async fn wait(watch: &mut CertificateWatch, name: &str) -> Arc<Certificate> {
    let is_it =
        |held: &Option<Arc<Certificate>>| held.as_ref().is_some_and(|c| c.spiffe_id == name);
    let held = tokio::time::timeout(MUST_HAPPEN, watch.wait_for(is_it));
    held.await.unwrap().unwrap().clone().unwrap()
}

#[tokio::test]
async fn a_swapped_folder_is_taken_as_a_whole_and_a_pair_that_does_not_fit_never() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::new();
    let at = |name: &str| folder.path().join(name);
    let uri = |account: &str| format!("spiffe://t/ns/a/sa/{account}");
    write(&at("one"), &signer, &uri("one"));
    write(&at("two"), &signer, &uri("two"));
    symlink(at("one"), at("current")).unwrap();
    let mut held = files::start(watcher(&at("current")));
    let first = wait(&mut held.certificate, &uri("one")).await;
    let roots = tokio::time::timeout(MUST_HAPPEN, held.roots.wait_for(Option::is_some));
    assert_eq!(
        roots.await.unwrap().unwrap().as_ref().unwrap().roots.len(),
        1
    );

    // A chain with another key, half a file, none at all.
    let chain = fs::read(at("two").join("chain.pem")).unwrap();
    for bad in [&chain[..], &chain[..chain.len() / 3], b""] {
        fs::write(at("one").join("chain.pem"), bad).unwrap();
        let [chain, key] = ["chain.pem", "key.pem"].map(|file| at("current").join(file));
        files::read_identity(&chain, &key).unwrap_err();
        let now = held.certificate.borrow().clone().unwrap();
        assert!(Arc::ptr_eq(&now, &first), "the first pair stays");
    }
    fs::remove_file(at("one").join("ca.pem")).unwrap();
    symlink(at("two"), at("next")).unwrap();
    fs::rename(at("next"), at("current")).unwrap();
    wait(&mut held.certificate, &uri("two")).await;
}

#[test]
fn settings_that_cannot_be_meant_are_refused_by_field() {
    let parse = |config: serde_json::Value| {
        let text = serde_json::json!({
            "xds_servers": [{"server_uri": "cp:1", "channel_creds": [{"type": "insecure"}]}],
            "certificate_providers": {"p": {"plugin_name": "file_watcher", "config": config}},
        });
        let error = crate::Bootstrap::from_json(&text.to_string()).unwrap_err();
        error.to_string()
    };
    for (config, expected) in [
        (
            serde_json::json!({}),
            ".ca_certificate_file: neither this, spiffe",
        ),
        (
            serde_json::json!(null),
            ".ca_certificate_file: neither this, spiffe",
        ),
        (
            serde_json::json!({"certificate_file": "c"}),
            ".private_key_file: is missing",
        ),
        (
            serde_json::json!({"private_key_file": "k"}),
            ".certificate_file: is missing",
        ),
        (
            serde_json::json!({"ca_certificate_file": "c", "refresh_interval": "0s"}),
            ".refresh_interval: must be seconds above 0",
        ),
        (
            serde_json::json!({"ca_certificate_file": "c", "refresh_interval": "10"}),
            ".refresh_interval: must be seconds above 0",
        ),
    ] {
        let error = parse(config);
        assert!(
            error.contains(&format!("certificate_providers.p.config{expected}")),
            "{error}"
        );
    }
}

/// gRFC A87: the map is taken instead of the roots in one heap, and the last good one stays.
#[tokio::test]
async fn a_bundle_map_takes_the_place_of_roots_and_stays_when_its_file_goes_bad() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (Signer::new(), Signer::new());
    write(folder.path(), &one, NAME);
    let file = folder.path().join("map.json");
    let map = |domain: &str, signer: &Signer| {
        let der = CertificateDer::from_pem_slice(signer.root.as_bytes()).unwrap();
        let key =
            serde_json::json!({"kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(&der)]});
        let map = serde_json::json!({"trust_domains": {domain: {"keys": [key]}}});
        // As writers do.
        fs::write(folder.path().join("next"), map.to_string()).unwrap();
        fs::rename(folder.path().join("next"), &file).unwrap();
    };
    fs::write(&file, "{").unwrap();
    let text = serde_json::json!({
        "xds_servers": [{"server_uri": "cp:1", "channel_creds": [{"type": "insecure"}]}],
        "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {
            "spiffe_trust_bundle_map_file": file,
            "ca_certificate_file": folder.path().join("ca.pem"),
            "refresh_interval": "0.005s",
        }}},
    });
    let bootstrap = crate::Bootstrap::from_json(&text.to_string()).unwrap();
    let crate::bootstrap::CertificateProvider::FileWatcher(config) =
        &bootstrap.certificate_providers["default"]
    else {
        panic!("{bootstrap:?}");
    };
    let mut held = files::start(config.clone());
    assert!(held.roots.changed().await.is_err(), "never in one heap");
    let mut bundles = held.bundles.unwrap();
    assert!(bundles.borrow().is_none(), "a bad file gives none");
    let domains = async |bundles: &mut BundleMapWatch, expected: &str| {
        let is_it = |held: &Option<Arc<mesh_core::config::SpiffeBundleMap>>| {
            held.as_ref()
                .is_some_and(|map| map.bundles.contains_key(expected))
        };
        let held = tokio::time::timeout(MUST_HAPPEN, bundles.wait_for(is_it));
        held.await.unwrap().unwrap().clone().unwrap()
    };
    map("one", &one);
    let first = domains(&mut bundles, "one").await;
    fs::write(&file, r#"{"trust_domains": {"two": {}}}"#).unwrap();
    let error = read_bundles(&file).unwrap_err();
    assert!(
        error.contains("map.json: trust_domains[\"two\"].keys"),
        "{error}"
    );
    assert!(Arc::ptr_eq(&first, bundles.borrow().as_ref().unwrap()));
    map("two", &two);
    let second = domains(&mut bundles, "two").await;
    assert!(!second.bundles.contains_key("one"), "the file is the map");
}

#[tokio::test]
async fn what_is_not_configured_is_known_never_to_come() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Signer::new(), NAME);
    let mut config = watcher(folder.path());
    config.identity = None;
    let mut held = files::start(config);
    assert!(held.certificate.changed().await.is_err());
    held.roots.wait_for(Option::is_some).await.unwrap();
}
