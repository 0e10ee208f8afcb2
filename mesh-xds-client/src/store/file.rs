//! Files that are written whole or not at all, and that others cannot write.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// What others must not be able to do with a file that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privacy {
    /// What others may write, others decide.
    NotWritable,
    /// What others may read is no secret.
    NotReadable,
}

impl Privacy {
    #[cfg(unix)]
    fn check(self, file: &File) -> Result<(), String> {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = file.metadata().map_err(|e| e.to_string())?.permissions();
        let mode = mode.mode() & 0o777;
        let (forbidden, what) = match self {
            Self::NotWritable => (0o022, "write"),
            Self::NotReadable => (0o077, "read or write"),
        };
        if mode & forbidden != 0 {
            return Err(format!(
                "its mode is {mode:o}: others may {what} it; make it 600"
            ));
        }
        Ok(())
    }

    #[cfg(not(unix))]
    fn check(self, _: &File) -> Result<(), String> {
        Ok(())
    }
}

/// Reads a file of at most `bytes_max`; `Ok(None)` when there is none.
pub(crate) fn read(
    path: &Path,
    privacy: Privacy,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    privacy.check(&file)?;
    let mut content = Vec::new();
    file.take(bytes_max as u64 + 1)
        .read_to_end(&mut content)
        .map_err(|e| e.to_string())?;
    if content.len() > bytes_max {
        return Err(format!("it is larger than {bytes_max} bytes"));
    }
    Ok(Some(content))
}

/// Replaces a file by one that its owner alone can read; on an error it stays as it was.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut side = path.to_owned().into_os_string();
    side.push(format!(".{}.new", std::process::id()));
    let side = PathBuf::from(side);
    let written = write(path, &side, content);
    if written.is_err() {
        _ = fs::remove_file(&side);
    }
    written
}

fn write(path: &Path, side: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(side) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(side)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(side, path)?;
    // The rename itself must survive a power cut; not every file system can sync a folder.
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}
