//! The last good version of each object on disk, for a restart while its source is broken.
//!
//! One file an object, replaced as a whole: a head with the format's version and a checksum, where
//! the object was written, and its text, which is read by the same code as the source's. What is
//! damaged, or of a format or a field that this release does not know, is left out and logged.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
    process,
    sync::Arc,
};

use tokio::{sync::watch, task::spawn_blocking};
use xxhash_rust::xxh3::xxh3_64;

use super::{Loaded, parse::read_document};
use crate::{
    diagnostic::Severity,
    model::{Object, ObjectKey, ObjectSet, Place, Spec},
};

/// First word of every file.
const MAGIC: &str = "mesh-object";
/// Of the format. A file of another version is not read.
const VERSION: &str = "1";
const EXTENSION: &str = "object";

/// A directory with the last good objects.
#[derive(Debug)]
pub struct LastGood {
    folder: PathBuf,
    /// Checksums of what is on disk, by file name.
    written: HashMap<String, u64>,
}

impl LastGood {
    /// Uses `folder`, which is made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder)?;
        Ok(Self {
            folder,
            written: HashMap::new(),
        })
    }

    /// Everything that can be read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn load(&mut self) -> io::Result<ObjectSet> {
        let mut objects = ObjectSet::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|found| found != EXTENSION) {
                continue;
            }
            let content = fs::read_to_string(&path).map_err(|error| error.to_string());
            match content.and_then(|content| decode(&content)) {
                Ok((checksum, object)) => {
                    self.written.insert(file_name(&object.key), checksum);
                    objects.insert(object.key.clone(), object);
                }
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "last good object is not used");
                }
            }
        }
        Ok(objects)
    }

    /// Makes the directory hold these and no others.
    ///
    /// # Errors
    /// The first that occurs; everything else is still tried.
    pub fn save(&mut self, objects: &ObjectSet) -> io::Result<()> {
        let mut result = Ok(());
        let mut wanted = HashMap::new();
        let is_good = |object: &&Arc<Object>| {
            !matches!(object.spec, Spec::Unreadable(_)) && object.refused.is_empty()
        };
        for object in objects.values().filter(is_good) {
            let (name, body) = (file_name(&object.key), body(&object.place));
            let checksum = xxh3_64(body.as_bytes());
            if self.written.get(&name) != Some(&checksum) {
                let written = self.write(&name, checksum, &body);
                if let Err(error) = written {
                    result = result.and(Err(error));
                    continue;
                }
            }
            wanted.insert(name, checksum);
        }
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_object = path.extension().is_some_and(|found| found == EXTENSION);
            if is_object && !wanted.contains_key(&*name) {
                match fs::remove_file(&path) {
                    // Another replica over the same directory was first.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => result = result.and(removed),
                }
            }
        }
        self.written = wanted;
        result
    }

    fn write(&self, name: &str, checksum: u64, body: &str) -> io::Result<()> {
        let path = self.folder.join(name);
        let temporary = self.folder.join(format!("{name}.{}.new", process::id()));
        let mut file = File::create(&temporary)?;
        write!(file, "{MAGIC} {VERSION} {checksum:016x}\n{body}")?;
        file.sync_all()?;
        fs::rename(temporary, path)
    }

    /// Keeps what the source holds until the source ends.
    pub(super) async fn follow(mut self, mut loaded: watch::Receiver<Arc<Loaded>>) {
        loop {
            let held = loaded.borrow_and_update().clone();
            let saved = spawn_blocking(move || {
                let result = self.save(&held.objects);
                (self, result)
            });
            let Ok((this, result)) = saved.await else {
                return;
            };
            self = this;
            if let Err(error) = result {
                tracing::error!(%error, folder = %self.folder.display(), "last good objects are not kept");
            }
            if loaded.changed().await.is_err() {
                return;
            }
        }
    }
}

fn file_name(key: &ObjectKey) -> String {
    format!("{:016x}.{EXTENSION}", xxh3_64(key.to_string().as_bytes()))
}

/// File and line on a line each, and the text.
fn body(place: &Place) -> String {
    format!("{}\n{}\n{}", place.file, place.line, place.text)
}

fn decode(content: &str) -> Result<(u64, Arc<Object>), String> {
    let (head, body) = content.split_once('\n').ok_or("it has no head")?;
    let [magic, version, checksum] = head.split(' ').collect::<Vec<_>>()[..] else {
        return Err("it is no object".to_owned());
    };
    if magic != MAGIC || version != VERSION {
        return Err(format!("it is {magic:?} of version {version}"));
    }
    let checksum = u64::from_str_radix(checksum, 16).map_err(|error| error.to_string())?;
    if checksum != xxh3_64(body.as_bytes()) {
        return Err("its checksum is another".to_owned());
    }
    let mut parts = body.splitn(3, '\n');
    let (Some(file), Some(line), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("it ends too early".to_owned());
    };
    let place = Place {
        file: file.into(),
        line: line.parse().map_err(|_| "its line is no number")?,
        text: text.into(),
    };
    read(&place).map(|object| (checksum, object))
}

fn read(place: &Place) -> Result<Arc<Object>, String> {
    let mut loaded = Loaded::default();
    read_document(place, &ObjectSet::new(), &mut loaded);
    let mut findings = loaded.diagnostics.iter();
    if let Some(finding) = findings.find(|finding| finding.severity == Severity::Error) {
        return Err(finding.to_string());
    }
    let object = loaded.objects.into_values().next();
    object.ok_or_else(|| "it holds no object".to_owned())
}
