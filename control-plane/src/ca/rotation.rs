//! A change of roots, one safe step after the other.
//!
//! ```text
//! distribute   old signs, both trusted   until every client has confirmed both
//! issue        new signs, both trusted   until the last certificate of the old one has ended
//! retire       new signs, new trusted    until every client has confirmed that
//! ```
//!
//! Owns the state and its file, which is written before a step takes effect, so that a process that
//! starts again goes on where it was. When a step is safe is asked by
//! [`rotate`](crate::rotate), which sees the clients.

use std::{path::Path, sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::{
    CaError,
    authority::{serial, unix_seconds},
    files,
    signer::{Root, Signer, root_files},
};

/// Name of the first root's files.
const FIRST: &str = "root";

/// What a change of roots is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Both roots are being given to every client; the old one signs.
    Distribute,
    /// The new root signs; certificates of the old one are running out.
    Issue,
    /// The old root is gone; clients are being told.
    Retire,
}

/// A change of roots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// What it is doing.
    pub step: Step,
    /// The root that is to be trusted beside that which signs, or was; a name of files.
    pub other: String,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// When the last certificate of the other root ends, in seconds since the epoch; 0 before
    /// [`Step::Issue`].
    pub leaves_end: u64,
}

/// What is on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    issuing: String,
    rotation: Option<Rotation>,
}

/// The keys of an authority.
pub(super) struct Held {
    /// Files of the root that signs; `None` when it is plugged in.
    name: Option<String>,
    pub(super) issuing: Arc<Signer>,
    other: Option<Arc<Signer>>,
    pub(super) rotation: Option<Rotation>,
}

impl Held {
    /// What `dir` holds; a root is made when there is none.
    pub(super) fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        let path = dir.join("rotation.json");
        let saved = match files::read(&path)? {
            None => Saved {
                issuing: FIRST.to_owned(),
                rotation: None,
            },
            Some(text) => serde_json::from_str(&text).map_err(|error| CaError::Corrupt {
                path: path.clone(),
                reason: error.to_string(),
            })?,
        };
        let is_first = saved.issuing == FIRST && saved.rotation.is_none();
        let read = |name: &str| {
            // Only the very first root is made in passing; a later one that is missing was lost.
            if !is_first && files::read(&root_files(dir, name).0)?.is_none() {
                return Err(super::signer::corrupt(
                    &root_files(dir, name).0,
                    "rotation.json names this root, and it is missing",
                ));
            }
            Signer::own(dir, name, trust_domain).map(Arc::new)
        };
        let issuing = read(&saved.issuing)?;
        let other = match &saved.rotation {
            Some(rotation) if rotation.step != Step::Retire => Some(read(&rotation.other)?),
            _ => None,
        };
        Ok(Self {
            name: Some(saved.issuing),
            issuing,
            other,
            rotation: saved.rotation,
        })
    }

    pub(super) fn plugged_in(dir: &Path, ca_dir: &Path) -> Result<Self, CaError> {
        // Two sources of truth about who signs would be settled by whoever starts last.
        if files::read(&root_files(dir, FIRST).0)?.is_some() {
            tracing::warn!(
                own = %dir.display(), plugged_in = %ca_dir.display(),
                "a root of this control plane's own exists and is not used: the plugged-in one signs"
            );
        }
        Ok(Self {
            name: None,
            issuing: Arc::new(Signer::plugged_in(ca_dir)?),
            other: None,
            rotation: None,
        })
    }

    /// Every root that clients are to trust, that which signs first.
    pub(super) fn trusted(&self) -> Vec<Root> {
        let mut roots = self.issuing.roots.clone();
        let others = self.other.iter().flat_map(|other| &other.roots);
        for root in others {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }

    pub(super) fn begin(&mut self, dir: &Path, trust_domain: &str) -> Result<(), CaError> {
        if self.rotation.is_some() {
            return Err(CaError::Rotation("a change of roots is going on already"));
        }
        if self.name.is_none() {
            return Err(CaError::Rotation(
                "the authority is plugged in: put both roots into root-cert.pem and restart, then \
                 the new key and chain and restart, then take the old root out",
            ));
        }
        let name = format!("root-{}", &serial()?.1[..16]);
        let other = Signer::own(dir, &name, trust_domain)?;
        self.settle(
            dir,
            Some(Rotation {
                step: Step::Distribute,
                other: name,
                since: unix_seconds(SystemTime::now()),
                leaves_end: 0,
            }),
            |held| held.other = Some(Arc::new(other)),
        )
    }

    pub(super) fn advance(&mut self, dir: &Path, leaves_end: SystemTime) -> Result<(), CaError> {
        let rotation = self.rotation.clone();
        let rotation = rotation.ok_or(CaError::Rotation("no change of roots is going on"))?;
        let since = unix_seconds(SystemTime::now());
        match rotation.step {
            Step::Distribute => self.exchange(dir, rotation, leaves_end),
            Step::Issue => {
                let next = Rotation {
                    step: Step::Retire,
                    since,
                    ..rotation
                };
                self.settle(dir, Some(next), |held| held.other = None)
            }
            Step::Retire => {
                self.settle(dir, None, |_| {})?;
                remove(dir, &rotation.other);
                Ok(())
            }
        }
    }

    pub(super) fn abort(&mut self, dir: &Path, leaves_end: SystemTime) -> Result<(), CaError> {
        let rotation = self.rotation.clone();
        let rotation = rotation.ok_or(CaError::Rotation("no change of roots is going on"))?;
        match rotation.step {
            Step::Distribute => {
                self.settle(dir, None, |held| held.other = None)?;
                remove(dir, &rotation.other);
                Ok(())
            }
            Step::Issue => self.exchange(dir, rotation, leaves_end),
            Step::Retire => Err(CaError::Rotation(
                "the old root has left already: let it finish, and change roots again",
            )),
        }
    }

    /// The other root signs from now on.
    fn exchange(
        &mut self,
        dir: &Path,
        rotation: Rotation,
        leaves_end: SystemTime,
    ) -> Result<(), CaError> {
        let missing = CaError::Rotation("the root to change to is not loaded");
        let other = self.other.clone().ok_or(missing)?;
        let before = self.name.replace(rotation.other).unwrap_or_default();
        let next = Rotation {
            step: Step::Issue,
            other: before.clone(),
            since: unix_seconds(SystemTime::now()),
            leaves_end: unix_seconds(leaves_end),
        };
        let changed = self.settle(dir, Some(next), |held| {
            held.other = Some(std::mem::replace(&mut held.issuing, other));
        });
        if changed.is_err() {
            self.name = Some(before);
        }
        changed
    }

    /// Writes the state, then makes it current.
    fn settle(
        &mut self,
        dir: &Path,
        rotation: Option<Rotation>,
        change: impl FnOnce(&mut Self),
    ) -> Result<(), CaError> {
        let saved = Saved {
            issuing: self.name.clone().unwrap_or_default(),
            rotation: rotation.clone(),
        };
        let text = serde_json::to_vec_pretty(&saved).map_err(CaError::crypto)?;
        files::replace(&dir.join("rotation.json"), &text)?;
        self.rotation = rotation;
        change(self);
        Ok(())
    }
}

/// A root that nobody trusts any more; its key must not lie around.
fn remove(dir: &Path, name: &str) {
    let (cert, key) = root_files(dir, name);
    for path in [key, cert] {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a root that left could not be removed");
        }
    }
}
