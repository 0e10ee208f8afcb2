//! Who gets no certificate any more.
//!
//! The file `denied` in the data directory names an identity a line, `ns/NAMESPACE/sa/ACCOUNT`, or a
//! whole namespace, `ns/NAMESPACE`; `#` begins a comment. It is read when it changed. One that cannot
//! be read or understood denies everybody: an operator who meant to shut somebody out must not be
//! ignored because of a typing error.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{CaError, Identity, files};

/// Name of the file.
const FILE: &str = "denied";

/// The list, followed as its file changes.
#[derive(Debug)]
pub struct DenyList {
    path: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Modification time, length and inode of what was read.
    stamp: Option<(i64, i64, u64, u64)>,
    denied: BTreeSet<String>,
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
        };
        list.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .refresh(&list.path)?;
        Ok(list)
    }

    /// Nothing when `identity` may have a certificate.
    ///
    /// # Errors
    /// [`CaError::Denied`] when it may not; another when the list cannot be read.
    pub fn check(&self, identity: &Identity) -> Result<(), CaError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.refresh(&self.path)?;
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
        *self = Self::default();
        if stamp.is_some() {
            let text = files::read(path)?.unwrap_or_default();
            self.denied = parse(path, &text)?;
            self.stamp = stamp;
        }
        Ok(())
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
