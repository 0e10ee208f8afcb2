//! A directory of YAML files, watched.
//!
//! An event is followed at once, and the next one a little later: when a burst is published is not
//! decided here. All files are read again at each change, because what editors and symlink swaps do
//! to single files is not worth knowing; only those whose text changed are parsed again.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{LastGood, Loaded, parse::read_text};
use crate::{
    diagnostic::{DUPLICATE, Diagnostic, STALE, Severity, UNREADABLE},
    model::{Object, ObjectSet},
};

/// The longest pause between two readings. A pause is as long as the reading took, so that a storm
/// of events costs half a core at most.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// The directory is looked at this often even without an event, for file systems that send none.
const RESCAN: Duration = Duration::from_secs(30);

/// After so long another attempt is made to watch a directory that could not be watched.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// Follows a directory until dropped.
#[derive(Debug)]
pub struct FileSource {
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for FileSource {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl FileSource {
    /// Reads `folder` and follows it. Must be called inside a tokio runtime.
    ///
    /// With `last_good`, objects that cannot be read have the version that they had in an earlier
    /// process, all of them if the folder cannot be read, or is empty.
    ///
    /// # Errors
    /// When the folder, or a file of which nothing is known, cannot be read: it may be what keeps
    /// something closed. What is wrong inside of files is a finding.
    pub fn open(
        folder: &Path,
        last_good: Option<LastGood>,
    ) -> io::Result<(Self, watch::Receiver<Arc<Loaded>>)> {
        let mut last_good = last_good;
        let before = match &mut last_good {
            Some(last_good) => last_good.load()?,
            None => ObjectSet::new(),
        };
        let watched = Watched::new(folder);
        let (texts, first) = match read_folder(folder) {
            Ok(texts) if texts.is_empty() && !before.is_empty() => {
                (texts, stale(folder, IS_EMPTY, &before))
            }
            Ok(texts) => {
                let first = read_all(&texts, &before);
                refuse_unknown(&texts, &first)?;
                (texts, first)
            }
            Err(error) if !before.is_empty() => {
                (Texts::new(), stale(folder, &error.to_string(), &before))
            }
            Err(error) => return Err(error),
        };
        let (tx, rx) = watch::channel(Arc::new(first));
        let mut tasks = vec![tokio::spawn(follow(watched, texts, tx))];
        if let Some(last_good) = last_good {
            tasks.push(tokio::spawn(last_good.follow(rx.clone())));
        }
        Ok((Self { tasks }, rx))
    }
}

/// A file that nothing is known of may be what keeps something closed.
fn refuse_unknown(texts: &Texts, loaded: &Loaded) -> io::Result<()> {
    for (path, text) in texts {
        let Err(reason) = text else { continue };
        let file = path.display().to_string();
        let is_known = |object: &Arc<Object>| *object.place.file == *file;
        if !loaded.objects.values().any(is_known) {
            return Err(io::Error::other(format!(
                "{file}: {reason}: nobody knows what it closes; make it readable or take it away"
            )));
        }
    }
    Ok(())
}

/// What is served while the source is not there: what it held before.
fn stale(folder: &Path, reason: &str, before: &ObjectSet) -> Loaded {
    let finding = Diagnostic {
        code: STALE,
        severity: Severity::Error,
        file: folder.display().to_string(),
        line: 0,
        object: String::new(),
        field: String::new(),
        message: format!(
            "{reason}: what was read last is served, {} objects",
            before.len()
        ),
        help: "mend it; to take everything away, leave one file with nothing but a comment".into(),
    };
    Loaded {
        objects: before.clone(),
        diagnostics: vec![finding],
    }
}

/// Why a directory without a file is not taken at its word: it may not be mounted yet.
const IS_EMPTY: &str = "there is no file in it";

/// A directory, and the events of it.
struct Watched {
    folder: PathBuf,
    watcher: Option<RecommendedWatcher>,
    sender: mpsc::Sender<()>,
    changes: mpsc::Receiver<()>,
}

impl Watched {
    fn new(folder: &Path) -> Self {
        let (sender, changes) = mpsc::channel(1);
        let mut watched = Self {
            folder: folder.to_owned(),
            watcher: None,
            sender,
            changes,
        };
        watched.watch();
        watched
    }

    /// Watches it, if that is possible now.
    fn watch(&mut self) {
        let sender = self.sender.clone();
        let watcher = watch_changes(&self.folder, move |_paths| {
            // Full means that a change is known already.
            _ = sender.try_send(());
        });
        self.watcher = watcher.ok();
    }

    /// Waits until there may be something new.
    async fn changed(&mut self) {
        let pause = match self.watcher {
            Some(_) => RESCAN,
            None => WATCH_AGAIN,
        };
        tokio::select! {
            _ = self.changes.recv() => {}
            () = sleep(pause) => {}
        }
        if self.watcher.is_none() {
            self.watch();
        }
    }
}

/// Calls `changed` when something under `folder` may have changed. Reading changes nothing: who reads
/// the folder after each event must not see his own reading as the next one.
pub(super) fn watch_changes(
    folder: &Path,
    changed: impl Fn(Vec<PathBuf>) + Send + 'static,
) -> io::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        match event {
            Ok(event) if event.kind.is_access() => {}
            Ok(event) => changed(event.paths),
            // Events were lost, maybe: everything may have changed.
            Err(_) => changed(Vec::new()),
        }
    })
    .map_err(io::Error::other)?;
    watcher
        .watch(folder, RecursiveMode::Recursive)
        .map_err(io::Error::other)?;
    Ok(watcher)
}

type Texts = Vec<(PathBuf, Result<String, String>)>;

async fn follow(mut watched: Watched, mut held: Texts, tx: watch::Sender<Arc<Loaded>>) {
    loop {
        watched.changed().await;
        let begin = Instant::now();
        let before = Arc::clone(&tx.borrow());
        let loaded = match read_folder(&watched.folder) {
            Ok(texts) if texts == held => None,
            Ok(texts) if texts.is_empty() && !before.objects.is_empty() => {
                held = texts;
                Some(stale(&watched.folder, IS_EMPTY, &before.objects))
            }
            Ok(texts) => {
                let loaded = read_changed(&texts, &held, &before);
                held = texts;
                Some(loaded)
            }
            Err(error) => {
                // A directory that comes back is another one.
                watched.watcher = None;
                held = Texts::new();
                Some(stale(&watched.folder, &error.to_string(), &before.objects))
            }
        };
        if let Some(loaded) = loaded {
            tx.send_if_modified(|held| {
                let is_new = loaded.diagnostics != held.diagnostics
                    || !is_same(&loaded.objects, &held.objects);
                if is_new {
                    *held = Arc::new(loaded);
                }
                is_new
            });
        }
        sleep(begin.elapsed().min(PAUSE_MAX)).await;
    }
}

fn is_same(one: &ObjectSet, other: &ObjectSet) -> bool {
    let objects = one.iter().zip(other);
    one.len() == other.len() && { objects }.all(|(one, other)| Arc::ptr_eq(one.1, other.1))
}

/// Reads a folder once.
///
/// # Errors
/// When the folder cannot be read.
pub fn load_folder(folder: &Path) -> io::Result<Loaded> {
    Ok(read_all(&read_folder(folder)?, &ObjectSet::new()))
}

/// The files of a folder and its folders, sorted, with what is in them.
fn read_folder(folder: &Path) -> io::Result<Texts> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let is_hidden = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if is_hidden {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
                let text = fs::read_to_string(&path).map_err(|error| error.to_string());
                found.push((path, text));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn read_all(texts: &Texts, before: &ObjectSet) -> Loaded {
    let mut loaded = Loaded::default();
    for (path, text) in texts {
        read_file(path, text, before, &mut loaded);
    }
    loaded
}

/// Reads the files that changed, and takes the others' objects from `before`.
fn read_changed(texts: &Texts, held: &Texts, before: &Loaded) -> Loaded {
    // Which file an object that is written twice is from depends on all files.
    if before
        .diagnostics
        .iter()
        .any(|found| found.code == DUPLICATE)
    {
        return read_all(texts, &before.objects);
    }
    let mut objects = HashMap::<&str, Vec<&Arc<Object>>>::new();
    for object in before.objects.values() {
        objects.entry(&object.place.file).or_default().push(object);
    }
    let mut findings = HashMap::<&str, Vec<&Diagnostic>>::new();
    for found in &before.diagnostics {
        findings.entry(&found.file).or_default().push(found);
    }
    let mut loaded = Loaded::default();
    for (path, text) in texts {
        let same = held.binary_search_by(|(held, _)| held.cmp(path));
        if !same.is_ok_and(|index| held[index].1 == *text) {
            read_file(path, text, &before.objects, &mut loaded);
            continue;
        }
        let file = path.display().to_string();
        for object in objects.remove(&*file).unwrap_or_default() {
            let (key, object) = (object.key.clone(), Arc::clone(object));
            if loaded.objects.insert(key, object).is_some() {
                return read_all(texts, &before.objects);
            }
        }
        let found = findings.remove(&*file).unwrap_or_default();
        loaded.diagnostics.extend(found.into_iter().cloned());
    }
    loaded
}

fn read_file(path: &Path, text: &Result<String, String>, before: &ObjectSet, loaded: &mut Loaded) {
    let file = path.display().to_string();
    match text {
        Ok(text) => read_text(&file, text, before, loaded),
        Err(error) => {
            let stays = before.values().filter(|object| *object.place.file == *file);
            for object in stays {
                loaded
                    .objects
                    .insert(object.key.clone(), Arc::clone(object));
            }
            loaded.diagnostics.push(Diagnostic {
                code: UNREADABLE,
                severity: Severity::Error,
                file,
                line: 1,
                object: String::new(),
                field: String::new(),
                message: error.clone(),
                help: String::new(),
            });
        }
    }
}
