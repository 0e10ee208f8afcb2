//! Audit records in a file or on standard output, one JSON object a line.
//!
//! A thread of its own writes, so that no request waits for a disk. The file is opened anew when its name
//! stands for another one, and when it is told to ([`AuditFile::reopen`], for those who send SIGHUP), so
//! that it may be moved away. What cannot be written, or comes faster than it can be written, is counted
//! ([`AuditFile::lost`]) and stops no request.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use super::{AuditRecord, AuditSink};

/// Records that wait to be written, at most; more are lost.
pub const AUDIT_WAITING_MAX: usize = 4_096;

/// Appends audit records as JSON lines. The thread that writes ends with it, when all is written.
pub struct AuditFile {
    waiting: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

enum Message {
    Record(Box<AuditRecord>),
    Reopen,
}

impl AuditFile {
    /// Appends to the file at `path`, which is made when it is not there, readable by its owner alone.
    ///
    /// # Errors
    /// When it cannot be opened now, or there is no thread to be had.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = open(&path)?;
        Self::start(Target::File {
            path,
            file: Some(file),
        })
    }

    /// Writes to standard output.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn stdout() -> io::Result<Self> {
        Self::start(Target::Stdout)
    }

    fn start(target: Target) -> io::Result<Self> {
        let (waiting, records) = sync_channel(AUDIT_WAITING_MAX);
        let lost = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&lost);
        std::thread::Builder::new()
            .name("mesh-audit".to_owned())
            .spawn(move || write_all(&records, target, &counted))?;
        Ok(Self { waiting, lost })
    }

    /// Opens the file anew, once what came before is written; for a signal to do so.
    pub fn reopen(&self) {
        _ = self.waiting.try_send(Message::Reopen);
    }

    /// Records that were not written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

impl fmt::Debug for AuditFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditFile")
            .field("lost", &self.lost())
            .finish_non_exhaustive()
    }
}

impl AuditSink for AuditFile {
    fn record(&self, record: &AuditRecord) {
        let message = Message::Record(Box::new(record.clone()));
        if self.waiting.try_send(message).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

/// Where records go.
enum Target {
    Stdout,
    File { path: PathBuf, file: Option<File> },
}

fn write_all(records: &Receiver<Message>, mut target: Target, lost: &AtomicU64) {
    while let Ok(message) = records.recv() {
        match message {
            Message::Reopen => target.close(),
            Message::Record(record) => {
                if let Err(error) = target.write(&format!("{}\n", record.to_json())) {
                    // Said once in a while: a full disk would fill the log, too.
                    if lost.fetch_add(1, Relaxed).is_power_of_two() {
                        tracing::error!(target: "mesh::audit", %error, "a record is not written");
                    }
                }
            }
        }
    }
}

impl Target {
    fn close(&mut self) {
        if let Self::File { file, .. } = self {
            *file = None;
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let (path, file) = match self {
            Self::Stdout => return io::stdout().lock().write_all(line.as_bytes()),
            Self::File { path, file } => (path, file),
        };
        let is_named = file.as_ref().is_some_and(|file| is_at(file, path));
        if !is_named {
            *file = None;
        }
        let file = match file {
            Some(file) => file,
            None => file.insert(open(path)?),
        };
        file.write_all(line.as_bytes())
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Whether the open file is the one that the name stands for.
#[cfg(unix)]
fn is_at(file: &File, path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |found: std::fs::Metadata| (found.dev(), found.ino());
    let open = file.metadata().map(id);
    matches!((open, path.metadata().map(id)), (Ok(open), Ok(named)) if open == named)
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &std::path::Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        time::{Duration, Instant, SystemTime},
    };

    use super::*;

    /// Generous: a real bound only in a failing run.
    const MUST_HAPPEN: Duration = Duration::from_secs(20);

    fn record(path: &str) -> AuditRecord {
        AuditRecord {
            time: SystemTime::UNIX_EPOCH,
            principal: None,
            remote: ([127, 0, 0, 1], 1).into(),
            method: "GET".to_owned(),
            authority: String::new(),
            path: path.to_owned(),
            policy: None,
            action: "DENY",
            authorized: false,
            is_shadow: false,
        }
    }

    fn until(what: impl Fn() -> bool) {
        let end = Instant::now() + MUST_HAPPEN;
        while !what() {
            assert!(Instant::now() < end, "in time");
            std::thread::yield_now();
        }
    }

    fn paths(file: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let whole = text.lines().filter(|line| line.ends_with('}'));
        let lines = whole.map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line["rpc_method"].as_str().expect("a path").to_owned()
        });
        lines.collect()
    }

    #[test]
    fn a_file_that_was_moved_away_gets_no_more_and_a_new_one_begins() {
        let dir = tempfile::tempdir().expect("a folder");
        let (file, moved) = (dir.path().join("audit"), dir.path().join("audit.1"));
        let sink = AuditFile::open(&file).expect("a file");
        sink.record(&record("/a"));
        until(|| paths(&file) == ["/a"]);
        std::fs::rename(&file, &moved).expect("moved");
        sink.record(&record("/b"));
        until(|| paths(&file) == ["/b"]);
        assert_eq!(paths(&moved), ["/a"]);
        sink.reopen();
        sink.record(&record("/c"));
        until(|| paths(&file) == ["/b", "/c"]);
        assert_eq!(sink.lost(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_stops_nobody() {
        let sink = AuditFile::open("/dev/full").expect("it opens");
        for _ in 0..10 {
            sink.record(&record("/a"));
        }
        until(|| sink.lost() == 10);
    }
}
