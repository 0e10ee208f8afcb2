//! What was good stays over a restart, whatever became of its source.

use std::{fs, path::Path, time::Duration};

use tokio::time::timeout;

use super::{FileSource, LastGood, Loaded};
use crate::{
    diagnostic::{STALE, UNREADABLE},
    model::ObjectSet,
    source::load_text,
};

const SERVICE: &str = "kind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
const POLICY: &str =
    "kind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mode: STRICT}}\n";

fn keys(objects: &ObjectSet) -> Vec<String> {
    objects.keys().map(ToString::to_string).collect()
}

fn codes(loaded: &Loaded) -> Vec<&'static str> {
    loaded.diagnostics.iter().map(|found| found.code).collect()
}

fn load(folder: &Path) -> ObjectSet {
    LastGood::open(folder).unwrap().load().unwrap()
}

/// Opens the source over a store that holds both objects as two files had them.
fn open(files: &[(&str, &str)]) -> std::io::Result<Loaded> {
    let dir = tempfile::tempdir().unwrap();
    let (config, store) = (dir.path().join("config"), dir.path().join("store"));
    let mut held = ObjectSet::new();
    for (name, text) in [("a.yaml", SERVICE), ("p.yaml", POLICY)] {
        let file = config.join(name).display().to_string();
        held.extend(load_text(&file, text).objects);
    }
    LastGood::open(&store).unwrap().save(&held).unwrap();
    for (name, text) in files {
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join(name), text).unwrap();
    }
    let (_source, loaded) = FileSource::open(&config, Some(LastGood::open(store).unwrap()))?;
    let loaded = loaded.borrow().as_ref().clone();
    Ok(loaded)
}

#[tokio::test]
async fn a_restart_serves_the_last_good_version_of_what_is_broken_and_forgets_what_was_removed() {
    let both = ["PeerAuthentication default/p", "Service default/a"];
    let broken = open(&[("a.yaml", SERVICE), ("p.yaml", "kind: [")]).unwrap();
    assert_eq!(keys(&broken.objects), both);
    assert_eq!(codes(&broken), [UNREADABLE]);
    let text = &broken.objects.values().next().unwrap().place.text;
    assert!(text.contains("STRICT"), "as it was, not merely closed");
    // A field that cannot be used is the same.
    let bad = open(&[
        ("a.yaml", SERVICE),
        ("p.yaml", &POLICY.replace("mode", "moed")),
    ]);
    assert_eq!(keys(&bad.unwrap().objects), both);
    // Its file is gone: that is not broken.
    let removed = open(&[("a.yaml", SERVICE)]).unwrap();
    assert_eq!(
        (keys(&removed.objects), codes(&removed)),
        (vec![both[1].to_owned()], vec![])
    );
}

#[tokio::test]
async fn a_source_that_is_not_there_or_empty_at_a_restart_is_stale_and_not_the_end_of_everything() {
    let missing = open(&[]).unwrap();
    assert_eq!((missing.objects.len(), codes(&missing)), (2, vec![STALE]));
    let empty = open(&[("README", "nothing")]).unwrap();
    assert_eq!((empty.objects.len(), codes(&empty)), (2, vec![STALE]));
    let on_purpose = open(&[("none.yaml", "# nothing")]).unwrap();
    assert_eq!((on_purpose.objects.len(), codes(&on_purpose)), (0, vec![]));
}

#[tokio::test]
async fn a_source_that_goes_and_comes_back_is_followed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (config, aside) = (dir.path().join("config"), dir.path().join("aside"));
    fs::create_dir(&config).unwrap();
    fs::write(config.join("a.yaml"), SERVICE).unwrap();
    let (_source, mut loaded) = FileSource::open(&config, None).unwrap();
    let mut until = async |wanted: fn(&Loaded) -> bool| {
        let changed = loaded.wait_for(|loaded| wanted(loaded));
        let changed = timeout(Duration::from_secs(20), changed).await;
        _ = changed.expect("noticed").unwrap();
    };
    fs::rename(&config, &aside).unwrap();
    until(|loaded| codes(loaded) == [STALE] && loaded.objects.len() == 1).await;
    fs::write(aside.join("p.yaml"), POLICY).unwrap();
    fs::rename(&aside, &config).unwrap();
    until(|loaded| codes(loaded).is_empty() && loaded.objects.len() == 2).await;
    fs::remove_file(config.join("p.yaml")).unwrap();
    until(|loaded| loaded.objects.len() == 1).await;
}

#[tokio::test]
async fn a_file_of_which_nothing_is_known_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret.yaml");
    // Not UTF-8, which root cannot read either.
    fs::write(&path, b"kind: PeerAuthentication\xff").unwrap();
    let error = FileSource::open(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("secret.yaml"), "{error}");
    assert!(error.contains("take it away"), "{error}");
}

#[test]
fn what_is_damaged_is_left_out_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{SERVICE}---\n{POLICY}");
    let objects = load_text("a.yaml", &text).objects;
    let mut store = LastGood::open(dir.path()).unwrap();
    store.save(&objects).unwrap();
    assert_eq!(keys(&load(dir.path())), keys(&objects));
    let kept = load(dir.path()).into_values().last().unwrap();
    assert_eq!((&*kept.place.file, kept.place.line), ("a.yaml", 1));

    let files = || {
        let found = fs::read_dir(dir.path()).unwrap();
        let mut found: Vec<_> = found.map(|entry| entry.unwrap().path()).collect();
        found.sort();
        found
    };
    let path = &files()[0];
    let whole = fs::read(path).unwrap();
    for damaged in [
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], b"x"].concat(),
        [b"mesh-object 2", &whole[13..]].concat(),
        Vec::new(),
        vec![0xff; 100],
    ] {
        fs::write(path, damaged).unwrap();
        assert_eq!(load(dir.path()).len(), 1);
    }
    // The next save mends it, and leaves nothing behind.
    let mut store = LastGood::open(dir.path()).unwrap();
    store.load().unwrap();
    store.save(&objects).unwrap();
    assert_eq!(load(dir.path()).len(), 2);
    store.save(&ObjectSet::new()).unwrap();
    assert_eq!(files().len(), 0);
}
