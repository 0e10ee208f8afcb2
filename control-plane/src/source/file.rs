//! A directory of YAML files, watched.
//!
//! The first event after a quiet time is read at once; bursts are read together. Everything is read
//! again at each change: the directory is small, and what editors and symlink swaps do to single
//! files is not worth knowing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{Loaded, parse::read_text};
use crate::{
    diagnostic::{Diagnostic, Severity, UNREADABLE},
    model::ObjectSet,
};

/// Events are read together until there was none for so long.
const QUIET: Duration = Duration::from_millis(10);
/// But not for longer than this.
const COALESCED_MAX: Duration = Duration::from_millis(250);
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
        let mut watcher = notify::recommended_watcher(move |_event| {
            // Full means that a change is known already.
            _ = events.try_send(());
        })
        .map_err(io::Error::other)?;
        watcher
            .watch(folder, RecursiveMode::Recursive)
            .map_err(io::Error::other)?;
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
            () = tokio::time::sleep(RESCAN) => {}
        }
        let last = Instant::now() + COALESCED_MAX;
        loop {
            match read_folder(&folder) {
                Ok(texts) if texts != held => {
                    let before = tx.borrow().objects.clone();
                    let loaded = read_all(&texts, &before);
                    held = texts;
                    tx.send_replace(Arc::new(loaded));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, folder = %folder.display(), "cannot be read: the last configuration stays");
                }
            }
            let quiet = sleep_until((Instant::now() + QUIET).min(last));
            tokio::select! {
                change = changes.recv() => if change.is_none() { return },
                () = quiet => break,
            }
        }
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
        let file = path.display().to_string();
        match text {
            Ok(text) => read_text(&file, text, before, &mut loaded),
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
    loaded
}
