//! A folder of certificate files that readers see as a whole.
//!
//! ```text
//! FOLDER/cert-chain.pem  -> ..data/cert-chain.pem
//! FOLDER/key.pem         -> ..data/key.pem
//! FOLDER/root-cert.pem   -> ..data/root-cert.pem
//! FOLDER/..data          -> ..NUMBER
//! FOLDER/..NUMBER/         the files themselves
//! ```
//!
//! As Kubernetes does for secrets: a new version is written beside the old one and takes its place by
//! the rename of one link, so that chain, key and roots change together, also over a crash. Readers
//! must open files by path each time, as gRPC's `file_watcher` (gRFC A29) and Envoy's
//! `watched_directory` do. The version before the current one stays for those in the middle of
//! reading. One process writes a folder; it holds a lock.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// The chain, leaf first, PEM.
pub const CHAIN: &str = "cert-chain.pem";
/// Its private key, PEM.
pub const KEY: &str = "key.pem";
/// The roots that everybody trusts, PEM.
pub const ROOTS: &str = "root-cert.pem";

/// The link that is swapped.
const CURRENT: &str = "..data";
/// Its successor, for as long as a swap takes.
const NEXT: &str = "..data.next";
const LOCK: &str = "..lock";

/// Mode of what anybody may read.
const PUBLIC: u32 = 0o644;
/// Mode of the key.
const PRIVATE: u32 = 0o600;
/// Mode of directories: who reads roots must get to them.
const DIRECTORY: u32 = 0o755;

/// A folder that this process writes.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Creates the folder where it is missing, and takes its lock.
    ///
    /// # Errors
    /// When it cannot be written, or another process writes it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let place = || path.display().to_string();
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(DIRECTORY);
        builder.create(path).with_context(place)?;
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE);
        let lock = options.open(path.join(LOCK)).with_context(place)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => bail!("{}: another agent writes it", place()),
            Err(error) => return Err(error).with_context(place),
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// A file of the folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces all three files at once.
    pub(super) fn write(&self, chain: &str, key: &str, roots: &str) -> anyhow::Result<()> {
        let swap = || -> io::Result<()> {
            let before = fs::read_link(self.file(CURRENT)).ok();
            let version = self.new_version()?;
            let folder = self.path.join(&version);
            for (name, text, mode) in [
                (CHAIN, chain, PUBLIC),
                (KEY, key, PRIVATE),
                (ROOTS, roots, PUBLIC),
            ] {
                write(&folder.join(name), text, mode)?;
            }
            File::open(&folder)?.sync_all()?;
            self.point(CURRENT, Path::new(&version))?;
            for name in [CHAIN, KEY, ROOTS] {
                let target = Path::new(CURRENT).join(name);
                if fs::read_link(self.file(name)).ok().as_ref() != Some(&target) {
                    self.point(name, &target)?;
                }
            }
            File::open(&self.path)?.sync_all()?;
            self.forget(&version, before.as_deref())
        };
        swap().with_context(|| self.path.display().to_string())
    }

    /// A directory that was not there.
    fn new_version(&self) -> io::Result<String> {
        loop {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let name = format!("..{}", now.unwrap_or_default().as_nanos());
            match DirBuilder::new().mode(DIRECTORY).create(self.file(&name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| name),
            }
        }
    }

    /// Makes `name` a link to `target`, whatever it was.
    fn point(&self, name: &str, target: &Path) -> io::Result<()> {
        let next = self.file(NEXT);
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(target, &next)?;
        fs::rename(next, self.file(name))
    }

    /// Removes all versions but two, also those of an agent that was killed while it wrote.
    fn forget(&self, current: &str, before: Option<&Path>) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_version = name.to_str().is_some_and(|name| {
                let number = name.strip_prefix("..").unwrap_or_default();
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            });
            let is_kept =
                name == current || before.is_some_and(|before| before == Path::new(&name));
            if is_version && !is_kept {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    // Whatever the umask says.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_key_is_its_owners_and_what_was_there_before_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let folder = Folder::open(&path).unwrap();
        // As `cert issue` leaves it, and a version that somebody was killed over.
        fs::write(path.join(KEY), "old").unwrap();
        fs::create_dir(path.join("..17")).unwrap();
        fs::write(path.join("..notes"), "not ours").unwrap();
        for i in 0..4 {
            let [chain, key, roots] = ["chain", "key", "roots"].map(|what| format!("{what} {i}"));
            folder.write(&chain, &key, &roots).unwrap();
            for (name, text, expected) in [
                (CHAIN, &chain, PUBLIC),
                (KEY, &key, PRIVATE),
                (ROOTS, &roots, PUBLIC),
            ] {
                let file = path.join(name);
                assert_eq!(&fs::read_to_string(&file).unwrap(), text);
                assert_eq!(mode(&file), expected, "{name}");
            }
        }
        let directories = fs::read_dir(&path).unwrap().filter(|entry| {
            let kind = entry.as_ref().unwrap().file_type().unwrap();
            kind.is_dir()
        });
        assert_eq!(directories.count(), 2, "the current version and the last");
        assert!(path.join("..notes").exists());
    }

    #[test]
    fn whoever_reads_the_directory_of_a_version_sees_what_belongs_together() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        folder.write("0", "0", "0").unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 1..200 {
                    let text = i.to_string();
                    folder.write(&text, &text, &text).unwrap();
                }
                is_over.store(true, Relaxed);
            });
            while !is_over.load(Relaxed) {
                let version = fs::read_link(dir.path().join(CURRENT)).unwrap();
                let read = |name| fs::read_to_string(dir.path().join(&version).join(name));
                // Two versions later it is gone as a whole.
                let (Ok(chain), Ok(key), Ok(roots)) = (read(CHAIN), read(KEY), read(ROOTS)) else {
                    continue;
                };
                assert!(chain == key && key == roots, "{chain} {key} {roots}");
                fs::read(dir.path().join(KEY))
                    .map(|key| assert!(!key.is_empty()))
                    .ok();
            }
        });
    }

    #[test]
    fn two_agents_do_not_write_one_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(dir.path()).unwrap();
        let error = Folder::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another agent writes it"), "{error}");
        drop(first);
        Folder::open(dir.path()).unwrap();
    }
}
