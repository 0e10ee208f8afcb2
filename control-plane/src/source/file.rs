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

use super::{Loaded, parse::read_text};
use crate::{
    diagnostic::{DUPLICATE, Diagnostic, Severity, UNREADABLE},
    model::{Object, ObjectSet},
};

/// The longest pause between two readings. A pause is as long as the reading took, so that a storm
/// of events costs half a core at most.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// The directory is looked at this often even without an event, for file systems that send none.
const RESCAN: Duration = Duration::from_secs(30);

/// Follows a directory until dropped.
#[derive(Debug)]
pub struct FileSource {
    _watcher: RecommendedWatcher,
    task: JoinHandle<()>,
}

impl Drop for FileSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FileSource {
    /// Reads `folder` and follows it. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the folder cannot be read or watched. What is wrong inside it is a finding.
    pub fn open(folder: &Path) -> io::Result<(Self, watch::Receiver<Arc<Loaded>>)> {
        let (events, changes) = mpsc::channel(1);
        let watcher = watch_changes(folder, move |_paths| {
            // Full means that a change is known already.
            _ = events.try_send(());
        })?;
        let texts = read_folder(folder)?;
        let first = Arc::new(read_all(&texts, &ObjectSet::new()));
        let (tx, rx) = watch::channel(first);
        let task = tokio::spawn(follow(folder.to_owned(), texts, tx, changes));
        Ok((
            Self {
                _watcher: watcher,
                task,
            },
            rx,
        ))
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

async fn follow(
    folder: PathBuf,
    mut held: Texts,
    tx: watch::Sender<Arc<Loaded>>,
    mut changes: mpsc::Receiver<()>,
) {
    loop {
        tokio::select! {
            change = changes.recv() => if change.is_none() { return },
            () = sleep(RESCAN) => {}
        }
        let begin = Instant::now();
        match read_folder(&folder) {
            Ok(texts) if texts != held => {
                let before = Arc::clone(&tx.borrow());
                let loaded = read_changed(&texts, &held, &before);
                held = texts;
                tx.send_replace(Arc::new(loaded));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, folder = %folder.display(), "cannot be read: the last configuration stays");
            }
        }
        sleep(begin.elapsed().min(PAUSE_MAX)).await;
    }
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
