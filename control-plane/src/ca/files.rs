//! Private files that are replaced as a whole, and a lock between processes.
//!
//! A reader sees the old file or the new one, never a part; writers take [`lock`] first.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::CaError;

/// Mode of directories that hold keys.
const DIR_MODE: u32 = 0o700;
/// Mode of every file written here.
const FILE_MODE: u32 = 0o600;

/// Held while a read-modify-write runs; released when dropped, or when the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Waits for the exclusive lock of `dir`, which is created when missing.
pub(super) fn lock(dir: &Path) -> Result<Lock, CaError> {
    private_dir(dir)?;
    let path = dir.join(".lock");
    let take = || -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    };
    take().map(Lock).map_err(at(&path))
}

/// Creates `dir`, readable by the owner alone. One that exists keeps its mode.
pub(super) fn private_dir(dir: &Path) -> Result<(), CaError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(dir)
        .map_err(at(dir))
}

/// Replaces `path` with `content`, readable by the owner alone. The caller holds the lock.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), CaError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        // One that a killed process left may have another mode or be a link; it is not reused.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&temporary)?;
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename itself is durable only when the directory is.
        path.parent()
            .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(at(path))
}

/// Makes a file that exists readable by its owner alone.
pub(super) fn make_private(path: &Path) -> Result<(), CaError> {
    fs::set_permissions(path, Permissions::from_mode(FILE_MODE)).map_err(at(path))
}

/// The file's content, or nothing when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

/// Names the path in an I/O error.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> CaError + use<> {
    let path = path.to_owned();
    move |source| CaError::Io {
        path: path.clone(),
        source,
    }
}
