//! Where registrations outlive the process: an append-only log.
//!
//! Each record is a line: a hash of the rest, then JSON. A record whose hash is wrong, or without the
//! end of its line, was being written when the process was killed: it and what follows is cut off.
//! The log is written anew, with what is still true, when most of it is not.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::instance::Stored;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// This instance is so now.
    Put(Box<Stored>),
    /// The instance of this id is gone.
    Delete(String),
}

/// Keeps what it is given in order, for the next process.
pub trait Store: fmt::Debug + Send {
    /// All instances.
    ///
    /// # Errors
    /// When what was kept cannot be read.
    fn load(&mut self) -> io::Result<Vec<Stored>>;

    /// Keeps these; they survive the end of the process, and of the machine, when this returns.
    ///
    /// # Errors
    /// When that cannot be.
    fn append(&mut self, records: &[Record]) -> io::Result<()>;
}

/// A log that is shorter is not written anew.
const COMPACT_MIN: u64 = 64 * 1024;
/// The log is written anew when it is so many times as long as what is true.
const COMPACT_RATIO: u64 = 4;
/// Readable by the owner alone.
const MODE: u32 = 0o600;

/// A [`Store`] in a file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    file: Option<File>,
    /// Lines of what is true, by id.
    live: BTreeMap<String, String>,
    length: u64,
}

impl FileStore {
    /// A store in this file, which is made when something is kept.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            file: None,
            live: BTreeMap::new(),
            length: 0,
        }
    }

    fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let file = options.append(true).create(true).mode(MODE);
            self.file = Some(file.open(&self.path)?);
            sync_folder(&self.path)?;
        }
        self.file
            .as_mut()
            .ok_or_else(|| io::Error::other("not open"))
    }

    fn remember(&mut self, record: &Record, line: &str) {
        match record {
            Record::Put(stored) => {
                let id = stored.registration.id.clone();
                self.live.insert(id, line.to_owned());
            }
            Record::Delete(id) => _ = self.live.remove(id),
        }
    }

    /// Writes a log of what is true beside the old one, which it then replaces.
    fn compact(&mut self) -> io::Result<()> {
        let beside = self.path.with_extension("tmp");
        let text: String = self.live.values().map(String::as_str).collect();
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        sync_folder(&self.path)?;
        self.file = None;
        self.length = text.len() as u64;
        Ok(())
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

impl Store for FileStore {
    fn load(&mut self) -> io::Result<Vec<Stored>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = BTreeMap::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some((text, json)) = whole(line) else {
                break;
            };
            self.length += line.len() as u64;
            let Ok(record) = serde_json::from_str(json) else {
                tracing::warn!(
                    path = %self.path.display(), "a registration of another release is passed over"
                );
                continue;
            };
            self.remember(&record, text);
            match record {
                Record::Put(stored) => {
                    found.insert(stored.registration.id.clone(), *stored);
                }
                Record::Delete(id) => _ = found.remove(&id),
            }
        }
        if self.length < bytes.len() as u64 {
            let lost = bytes.len() as u64 - self.length;
            tracing::warn!(
                path = %self.path.display(), bytes = lost,
                "the end of the registrations was not written in full, and is cut off"
            );
            let file = OpenOptions::new().write(true).open(&self.path)?;
            file.set_len(self.length)?;
            file.sync_all()?;
        }
        Ok(found.into_values().collect())
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let mut text = String::new();
        for record in records {
            let line = line(record)?;
            self.remember(record, &line);
            text.push_str(&line);
        }
        let length = self.length;
        let file = self.open()?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Half a record would hide those after it.
            _ = file.set_len(length);
            return Err(error);
        }
        self.length += text.len() as u64;
        let live: usize = self.live.values().map(String::len).sum();
        if self.length > COMPACT_MIN.max(COMPACT_RATIO * live as u64)
            && let Err(error) = self.compact()
        {
            // Nothing is lost: the long log says the same.
            tracing::warn!(path = %self.path.display(), %error, "the registrations stay long");
        }
        Ok(())
    }
}

fn line(record: &Record) -> io::Result<String> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{:016x} {json}\n", xxh3_64(json.as_bytes())))
}

/// The text of a record that was written in full, and its JSON.
fn whole(line: &[u8]) -> Option<(&str, &str)> {
    let text = str::from_utf8(line).ok()?;
    let (hash, json) = text.strip_suffix('\n')?.split_once(' ')?;
    let is_whole = u64::from_str_radix(hash, 16).ok()? == xxh3_64(json.as_bytes());
    is_whole.then_some((text, json))
}

/// A [`Store`] that ends with the process.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(std::sync::Arc<std::sync::Mutex<BTreeMap<String, Stored>>>);

impl Store for MemoryStore {
    fn load(&mut self) -> io::Result<Vec<Stored>> {
        let held = self.0.lock().map_err(|_| io::Error::other("poisoned"))?;
        Ok(held.values().cloned().collect())
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let mut held = self.0.lock().map_err(|_| io::Error::other("poisoned"))?;
        for record in records {
            match record {
                Record::Put(stored) => {
                    held.insert(stored.registration.id.clone(), Stored::clone(stored));
                }
                Record::Delete(id) => _ = held.remove(id),
            }
        }
        Ok(())
    }
}
