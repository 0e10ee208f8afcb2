//! Who gets no certificate any more.
//!
//! The file `denied` in the data directory names an identity a line, `ns/NAMESPACE/sa/ACCOUNT`, or a
//! whole namespace, `ns/NAMESPACE`; `#` begins a comment. It is read when it changed. One that cannot
//! be read or understood denies everybody: an operator who meant to shut somebody out must not be
//! ignored because of a typing error. What changes in it while the control plane runs is written down
//! ([`Audit`]), by the name of the user who owns the file.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{CaError, Identity, files};
use crate::audit::{self, Audit, Event};

/// Name of the file.
const FILE: &str = "denied";

/// The list, followed as its file changes.
#[derive(Debug)]
pub struct DenyList {
    path: PathBuf,
    held: Mutex<Held>,
    audit: Audit,
}

#[derive(Debug, Default)]
struct Held {
    /// Modification time, length and inode of what was read.
    stamp: Option<(i64, i64, u64, u64)>,
    denied: BTreeSet<String>,
    /// The last list that could be read.
    known: BTreeSet<String>,
    /// Why it cannot be read now.
    failure: Option<String>,
}

impl DenyList {
    /// The list in `data_dir`; there may be none.
    ///
    /// # Errors
    /// When the file exists and cannot be read or understood.
    pub fn open(data_dir: &Path) -> Result<Self, CaError> {
        let list = Self {
            path: data_dir.join(FILE),
            held: Mutex::default(),
            audit: Audit::default(),
        };
        list.refresh()?;
        Ok(list)
    }

    /// Changes are written down there.
    pub(super) fn audited(&mut self, audit: Audit) {
        self.audit = audit;
    }

    /// Reads the file where it changed.
    ///
    /// # Errors
    /// When it cannot be read or understood: then everybody is denied.
    pub(super) fn refresh(&self) -> Result<(), CaError> {
        self.current().map(drop)
    }

    fn current(&self) -> Result<MutexGuard<'_, Held>, CaError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let read = held.refresh(&self.path);
        held.write_down(&self.audit, &self.path, &read);
        read.map(|()| held)
    }

    /// Nothing when `identity` may have a certificate.
    ///
    /// # Errors
    /// [`CaError::Denied`] when it may not; another when the list cannot be read.
    pub fn check(&self, identity: &Identity) -> Result<(), CaError> {
        let held = self.current()?;
        let namespace = format!("ns/{}", identity.namespace);
        for name in [identity.to_string(), namespace] {
            if held.denied.contains(&name) {
                return Err(CaError::Denied(name));
            }
        }
        Ok(())
    }
}

impl Held {
    fn refresh(&mut self, path: &Path) -> Result<(), CaError> {
        let stamp = match fs::metadata(path) {
            Ok(meta) => Some((meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(files::at(path)(error)),
        };
        if stamp.is_some() && stamp == self.stamp {
            return Ok(());
        }
        // What cannot be read must be read again, not taken for what was there before.
        (self.stamp, self.denied) = (None, BTreeSet::new());
        if stamp.is_some() {
            let text = files::read(path)?.unwrap_or_default();
            self.denied = parse(path, &text)?;
            self.stamp = stamp;
        }
        Ok(())
    }

    /// Writes down how the list differs from the last one, once.
    fn write_down(&mut self, audit: &Audit, path: &Path, read: &Result<(), CaError>) {
        let write = |object: &str, action, result: &str| {
            audit.record(&Event {
                principal: &audit::owner(path),
                object,
                action,
                result,
            });
        };
        let failure = read.as_ref().err().map(ToString::to_string);
        if failure != self.failure {
            if let Some(why) = &failure {
                write(FILE, "deny.read", &format!("everybody is denied: {why}"));
            }
            self.failure = failure;
        }
        if read.is_err() || self.denied == self.known {
            return;
        }
        for name in self.denied.difference(&self.known) {
            write(name, "deny.add", "ok");
        }
        for name in self.known.difference(&self.denied) {
            write(name, "deny.remove", "ok");
        }
        self.known.clone_from(&self.denied);
    }
}

fn parse(path: &Path, text: &str) -> Result<BTreeSet<String>, CaError> {
    let mut denied = BTreeSet::new();
    for (i, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if name.is_empty() {
            continue;
        }
        let is_namespace = name
            .strip_prefix("ns/")
            .is_some_and(|namespace| Identity::new(namespace, "any").is_ok());
        if !is_namespace && Identity::of_path(name).is_none() {
            return Err(CaError::Corrupt {
                path: path.into(),
                reason: format!(
                    "line {}: {name:?} is neither ns/NAMESPACE/sa/ACCOUNT nor ns/NAMESPACE",
                    i + 1
                ),
            });
        }
        denied.insert(name.to_owned());
    }
    Ok(denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_the_list_is_written_down_once() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| files::replace(&dir.path().join(FILE), text.as_bytes()).unwrap();
        write("ns/a/sa/x\n");
        let log = dir.path().join(audit::FILE);
        let mut list = DenyList::open(dir.path()).unwrap();
        list.audited(Audit::open(&log));
        // Until the next look.
        let mut seen = 0;
        let mut news = |list: &DenyList| -> Vec<String> {
            for _ in 0..3 {
                _ = list.refresh();
            }
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<_> = text.lines().skip(seen).collect();
            seen += lines.len();
            let said = lines.iter().map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let text = |key: &str| line[key].as_str().unwrap().to_owned();
                assert!(!text("principal").is_empty());
                let result = text("result");
                let result = result.split(':').next().unwrap_or_default();
                format!("{} {} {result}", text("action"), text("object"))
            });
            said.collect()
        };
        assert!(news(&list).is_empty(), "what was there at the start");
        write("ns/a/sa/x\nns/b\n");
        assert_eq!(news(&list), ["deny.add ns/b ok"]);
        write("ns/b\n# ns/a/sa/x\nns/c\n");
        assert_eq!(
            news(&list),
            ["deny.add ns/c ok", "deny.remove ns/a/sa/x ok"]
        );
        write("b\n");
        assert_eq!(news(&list), ["deny.read denied everybody is denied"]);
        write("ns/b\n");
        assert_eq!(news(&list), ["deny.remove ns/c ok"]);
        fs::remove_file(dir.path().join(FILE)).unwrap();
        let said = news(&list);
        assert_eq!(said, ["deny.remove ns/b ok"]);
    }

    #[test]
    fn a_list_is_followed_and_one_with_a_mistake_denies_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let list = DenyList::open(dir.path()).unwrap();
        let id = |namespace: &str, account: &str| Identity::new(namespace, account).unwrap();
        let check = |namespace: &str, account: &str| list.check(&id(namespace, account));
        check("a", "x").unwrap();

        let write = |text: &str| files::replace(&dir.path().join(FILE), text.as_bytes()).unwrap();
        write("# leaked\nns/a/sa/x # since Monday\n\nns/b\n");
        assert!(
            check("a", "x")
                .unwrap_err()
                .to_string()
                .contains("ns/a/sa/x")
        );
        assert!(matches!(check("b", "anybody"), Err(CaError::Denied(_))));
        check("a", "y").unwrap();

        write("a/x\n");
        for _ in 0..2 {
            let error = check("a", "y").unwrap_err().to_string();
            assert!(error.contains("line 1"), "{error}");
        }
        assert!(DenyList::open(dir.path()).is_err());
        fs::remove_file(dir.path().join(FILE)).unwrap();
        check("a", "x").unwrap();
    }
}
