//! What every store keeps, and what a file of one survives.

use std::{fs, path::Path};

use super::{
    CheckKind, CheckSpec, CheckState, CheckStatus, FileStore, MemoryStore, Place, Record,
    Registration, Source, Store, Stored, UNNAMED, Weights,
};

fn stored(id: &str, port: u16) -> Stored {
    let check = CheckSpec {
        id: format!("service:{id}"),
        name: String::new(),
        notes: String::new(),
        kind: CheckKind::Ttl(std::time::Duration::from_secs(1)),
        initial: CheckStatus::Passing,
        success_before_passing: 0,
        failures_before_warning: None,
        failures_before_critical: 2,
        deregister_after: None,
    };
    Stored {
        registration: Registration {
            namespace: "default".into(),
            service: "a".into(),
            id: id.into(),
            address: [127, 0, 0, 1].into(),
            ports: [(UNNAMED.to_owned(), port)].into(),
            tags: vec!["a\nb".into()],
            meta: [("k".to_owned(), "ä \" \\".to_owned())].into(),
            weights: Weights::default(),
            locality: Place::default(),
            enable_tag_override: false,
            checks: vec![check.clone()],
            lease: None,
            source: Source::Http,
        },
        checks: vec![CheckState::new(check)],
        maintenance: Some("x".into()),
    }
}

fn put(id: &str, port: u16) -> Record {
    Record::Put(Box::new(stored(id, port)))
}

fn ports(stored: &[Stored]) -> Vec<(&str, u16)> {
    let port = |one: &Stored| one.registration.ports[UNNAMED];
    stored
        .iter()
        .map(|one| (&*one.registration.id, port(one)))
        .collect()
}

/// What holds for every store; `open` opens it anew, as another process does.
fn conforms<S: Store>(open: impl Fn() -> S) {
    let mut store = open();
    assert_eq!(store.load().unwrap(), []);
    store.append(&[put("a", 1), put("b", 2)]).unwrap();
    store.append(&[]).unwrap();
    let mut again = open();
    assert_eq!(again.load().unwrap(), [stored("a", 1), stored("b", 2)]);
    again
        .append(&[
            put("a", 3),
            Record::Delete("b".into()),
            Record::Delete("c".into()),
        ])
        .unwrap();
    again.append(&[put("d", 4)]).unwrap();
    assert_eq!(ports(&open().load().unwrap()), [("a", 3), ("d", 4)]);
}

#[test]
fn every_store_knows_the_last_of_each_instance_in_the_next_process() {
    let memory = MemoryStore::default();
    conforms(|| memory.clone());
    let folder = tempfile::tempdir().unwrap();
    conforms(|| FileStore::new(folder.path().join("log")));
}

fn write(path: &Path) -> Vec<u8> {
    let mut store = FileStore::new(path);
    store.append(&[put("a", 1)]).unwrap();
    store.append(&[put("b", 2)]).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn a_log_that_ends_anywhere_in_its_last_record_has_all_others_and_takes_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let whole = write(&path);
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for end in first..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        let mut store = FileStore::new(&path);
        assert_eq!(ports(&store.load().unwrap()), [("a", 1)], "cut at {end}");
        store.append(&[put("c", 3)]).unwrap();
        let found = FileStore::new(&path).load().unwrap();
        assert_eq!(ports(&found), [("a", 1), ("c", 3)], "cut at {end}");
    }
}

#[test]
fn a_record_of_which_a_byte_is_another_one_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let whole = write(&path);
    for at in 0..whole.len() - 1 {
        let mut broken = whole.clone();
        broken[at] ^= 1;
        fs::write(&path, &broken).unwrap();
        let found = FileStore::new(&path).load().unwrap();
        let found = ports(&found);
        let is_beginning = [("a", 1), ("b", 2)].starts_with(&found);
        assert!(is_beginning && found.len() < 2, "{at}: {found:?}");
    }
}

#[test]
fn a_log_that_says_the_same_thing_again_and_again_stays_short() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut store = FileStore::new(&path);
    store.append(&[put("other", 9)]).unwrap();
    for port in 1..=2_000 {
        store.append(&[put("a", port)]).unwrap();
    }
    let length = fs::metadata(&path).unwrap().len();
    assert!(length < 100 * 1024, "{length} bytes");
    let found = FileStore::new(&path).load().unwrap();
    assert_eq!(ports(&found), [("a", 2_000), ("other", 9)]);
}
