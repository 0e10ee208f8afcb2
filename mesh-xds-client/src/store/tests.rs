//! What is read back, and what is not.

use std::{
    fs::{self, File},
    time::Duration,
};

use super::*;
use crate::resource::DecodeContext;

fn some() -> Vec<StoredResource> {
    let resource = |kind, name: &str| StoredResource {
        kind,
        name: name.into(),
        version: "7".into(),
        raw: Bytes::from(vec![1, 2, 3]),
        updated: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        unused_runs: 2,
    };
    vec![resource(Kind::Cluster, "c"), resource(Kind::Listener, "l")]
}

fn store(folder: &tempfile::TempDir) -> Store {
    Store::new(folder.path().join("state"), "cp:1".into())
}

#[test]
fn what_is_saved_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    assert_eq!(store.load(), Ok(None), "no file is no error");
    store.save(&some()).unwrap();
    store.save(&some()).unwrap();
    assert_eq!(store.load(), Ok(Some(some())));
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 1, "nothing is left beside it");
}

#[cfg(unix)]
#[test]
fn the_file_is_its_owners_alone_and_not_read_when_others_may_write_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    store.save(&some()).unwrap();
    let mode = fs::metadata(store.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o620)).unwrap();
    let error = store.load().unwrap_err();
    assert!(error.contains("others may write it"), "{error}");
}

#[test]
fn a_file_of_other_control_planes_is_not_used() {
    let content = encode(&some(), "cp:1");
    let error = decode(&content, "cp:2").unwrap_err();
    assert!(error.contains("other control planes"), "{error}");
}

#[test]
fn a_file_of_another_format_is_not_used() {
    let mut content = encode(&some(), "cp:1");
    content[8] = 2;
    let error = decode(&content, "cp:1").unwrap_err();
    assert_eq!(error, "its format is 2, known is 1");
}

#[test]
fn a_file_that_is_cut_or_changed_anywhere_is_not_used() {
    let content = encode(&some(), "cp:1");
    for length in 0..content.len() {
        assert!(
            decode(&content[..length], "cp:1").is_err(),
            "cut at {length}"
        );
    }
    for i in 0..content.len() {
        let mut changed = content.clone();
        changed[i] ^= 0x10;
        assert!(decode(&changed, "cp:1").is_err(), "changed at {i}");
    }
    let mut longer = content;
    longer.push(0);
    assert!(decode(&longer, "cp:1").is_err());
}

#[test]
fn a_state_that_is_too_large_leaves_the_file_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    store.save(&some()).unwrap();
    let mut large = some();
    large[0].raw = vec![0; STATE_BYTES_MAX].into();
    let error = store.save(&large).unwrap_err();
    assert!(error.contains("the file stays as it was"), "{error}");
    assert_eq!(store.load(), Ok(Some(some())));
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let file = File::create(store.path()).unwrap();
    file.set_len(STATE_BYTES_MAX as u64 + 1).unwrap();
    let error = store.load().unwrap_err();
    assert!(error.contains("larger than"), "{error}");
}

#[test]
fn a_failed_write_leaves_the_file_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path().join("no/folder/state"), "cp:1".into());
    assert!(store.save(&some()).is_err());
    assert_eq!(store.load(), Ok(None));
}

/// Bounded, seeded fuzzing: with a checksum that fits, damage still only gives an error or resources.
#[test]
fn damaged_content_under_a_right_checksum_is_refused_or_read() {
    use mesh_core::rng::SplitMix64;
    use ring::digest::{SHA256, digest};

    use crate::mutate;
    let content = encode(&some(), "cp:1");
    let (header, payload) = content.split_at(52);
    let mut rng = SplitMix64::new(6);
    let mut read = 0;
    for _ in 0..mutate::rounds(50_000) {
        let damaged = mutate::damage(payload, &mut rng);
        let mut content = header[..12].to_vec();
        content.extend((damaged.len() as u64).to_le_bytes());
        content.extend(digest(&SHA256, &damaged).as_ref());
        content.extend(damaged);
        if let Ok(stored) = decode(&content, "cp:1") {
            read += 1;
            // Whatever is in it is judged as if it came by the wire.
            let count = stored.len();
            let revived = crate::cache::revive(stored, &DecodeContext::default());
            assert!(revived.usable.len() + revived.errors.len() <= count);
            let is_panic = |e: &mesh_core::ConfigError| e.reason.contains("panicked");
            assert!(!revived.errors.iter().any(is_panic), "{:?}", revived.errors);
        }
    }
    assert!(read > 100, "{read}");
}
