//! Who changed what: one JSON object a line, in `DATA_DIR/audit.log`, and in the log with target `audit`.
//!
//! Everything that changes what clients are served goes through [`Audit::record`]: objects, registrations,
//! certificates, join tokens, the deny list, changes of roots, and what was refused of these. It holds no key
//! and no token: a token is called by the beginning of its hash. The file is opened anew when its name
//! stands for another one, so that it may be moved away; a line that cannot be written is counted and
//! stops nothing. Who is nobody cannot fill the disk: see [`Audit::refused`].

use std::{
    fmt::Display,
    fs::{File, OpenOptions},
    io::Write,
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use serde_json::json;

use crate::ca::Identity;

/// Name of the file in the data directory.
pub(crate) const FILE: &str = "audit.log";

/// So many refusals of callers that nobody knows are written down in a second; the others are counted.
pub const REFUSALS_PER_SECOND: u64 = 100;

/// Writes down who changed what. Clones write to the same file; the default writes to the log alone.
#[derive(Clone, Debug, Default)]
pub struct Audit(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Mutex<Option<File>>,
    lost: AtomicU64,
    /// The second, and how many refusals were in it.
    refusals: Mutex<(u64, u64)>,
}

/// A change, or the attempt.
#[derive(Clone, Copy, Debug)]
pub struct Event<'e> {
    /// Who: an identity, an address, a file.
    pub principal: &'e str,
    /// What changed, by its full name.
    pub object: &'e str,
    /// What was done, for example `object.create`.
    pub action: &'e str,
    /// `ok`, or why not.
    pub result: &'e str,
}

impl Audit {
    /// Appends to the file at `path`, which is readable by its owner alone.
    pub fn open(path: &Path) -> Self {
        Self(Some(Arc::new(Inner {
            path: path.to_owned(),
            file: Mutex::new(None),
            lost: AtomicU64::new(0),
            refusals: Mutex::default(),
        })))
    }

    /// Writes an event down.
    pub fn record(&self, event: &Event<'_>) {
        let Event {
            principal,
            object,
            action,
            result,
        } = *event;
        tracing::info!(target: "audit", principal, object, action, result);
        let Some(inner) = &self.0 else {
            return;
        };
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let line = json!({
            "timestamp": time.map_or(0, |time| time.as_secs()),
            "principal": principal,
            "object": object,
            "action": action,
            "result": result,
        });
        if let Err(error) = inner.write(&format!("{line}\n")) {
            // Said once in a while: a full disk would fill the log, too.
            if inner.lost.fetch_add(1, Relaxed).is_power_of_two() {
                let path = inner.path.display();
                tracing::error!(%path, %error, "who changed something is not written down");
            }
        }
    }

    /// Writes down that somebody was refused who proved nothing, and could be for ever:
    /// [`REFUSALS_PER_SECOND`] of them, the others are [`lost`](Self::lost).
    pub fn refused(&self, event: &Event<'_>) {
        if let Some(inner) = &self.0
            && !inner.has_room()
        {
            inner.lost.fetch_add(1, Relaxed);
            return;
        }
        self.record(event);
    }

    /// The same for something that worked or did not.
    pub(crate) fn outcome<T, E: Display>(
        &self,
        (principal, action): (&str, &str),
        object: &str,
        outcome: &Result<T, E>,
    ) {
        let result = match outcome {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        self.record(&Event {
            principal,
            object,
            action,
            result: &result,
        });
    }

    /// How many events could not be written to the file.
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.lost.load(Relaxed))
    }
}

/// Who asks: an identity where the connection proves one, else an address.
pub(crate) fn principal(identity: Option<&Identity>, address: Option<IpAddr>) -> String {
    match (identity, address) {
        (Some(identity), _) => identity.to_string(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "nobody".to_owned(),
    }
}

/// Who wrote a file, as far as the file tells.
pub(crate) fn owner(path: &Path) -> String {
    let uid = path.metadata().map(|file| file.uid());
    uid.map_or_else(|_| "nobody".to_owned(), |uid| format!("uid:{uid}"))
}

impl Inner {
    /// Whether one more refusal of this second is written down.
    fn has_room(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        let mut held = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != now {
            *held = (now, 0);
        }
        held.1 += 1;
        held.1 <= REFUSALS_PER_SECOND
    }

    fn write(&self, line: &str) -> std::io::Result<()> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let named = self.path.metadata().ok();
        let named = named.map(|named| (named.dev(), named.ino()));
        let open = held.as_ref().and_then(|file| file.metadata().ok());
        let open = open.map(|open| (open.dev(), open.ino()));
        if open.is_none() || open != named {
            *held = None;
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(0o600);
            *held = Some(options.open(&self.path)?);
        }
        match held.as_mut() {
            Some(file) => file.write_all(line.as_bytes()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(object: &str) -> Event<'_> {
        Event {
            principal: "file:a.yaml",
            object,
            action: "object.create",
            result: "ok",
        }
    }

    fn objects(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["principal"], "file:a.yaml");
            line["object"].as_str().unwrap().to_owned()
        });
        lines.collect()
    }

    #[test]
    fn a_file_that_was_moved_away_gets_no_more_and_a_new_one_begins() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join(FILE), dir.path().join("audit.log.1"));
        let audit = Audit::open(&path);
        audit.record(&event("a"));
        audit.record(&event("b"));
        std::fs::rename(&path, &moved).unwrap();
        audit.record(&event("c"));
        assert_eq!(objects(&moved), ["a", "b"]);
        assert_eq!(objects(&path), ["c"]);
        assert_eq!(path.metadata().unwrap().mode() & 0o077, 0);
    }

    #[test]
    fn who_proves_nothing_fills_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(&dir.path().join(FILE));
        let asked = 20 * REFUSALS_PER_SECOND;
        let started = SystemTime::now();
        for _ in 0..asked {
            audit.refused(&event("a"));
        }
        let seconds = started.elapsed().unwrap().as_secs() + 2;
        let written = objects(&dir.path().join(FILE)).len() as u64;
        assert_eq!(written + audit.lost(), asked);
        assert!(
            (REFUSALS_PER_SECOND..=seconds * REFUSALS_PER_SECOND).contains(&written),
            "{written}"
        );
        // What was done is written down in any case.
        audit.record(&event("b"));
        assert_eq!(objects(&dir.path().join(FILE)).last().unwrap(), "b");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_the_next_line_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("logs");
        let audit = Audit::open(&folder.join(FILE));
        audit.record(&event("a"));
        assert_eq!(audit.lost(), 1);
        std::fs::create_dir(&folder).unwrap();
        audit.record(&event("b"));
        assert_eq!(
            (audit.lost(), objects(&folder.join(FILE))),
            (1, vec!["b".to_owned()])
        );
        // Never full, and never with room.
        let full = Audit::open(Path::new("/dev/full"));
        full.record(&event("c"));
        assert_eq!(full.lost(), 1);
    }
}
