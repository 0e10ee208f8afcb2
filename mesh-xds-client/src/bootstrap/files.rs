//! The plugin `file_watcher`: certificates in files that somebody else writes (gRFC A29, A87).

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

/// The plugin's name.
pub const FILE_WATCHER: &str = "file_watcher";

/// How often files are read unless the bootstrap says otherwise (gRFC A29).
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(600);

/// Settings of the plugin [`FILE_WATCHER`]. At least one of certificate and roots is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileWatcher {
    /// Chain and private key, PEM, leaf first.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Roots, PEM. `None` beside a bundle map, which is taken instead.
    pub ca_certificate_file: Option<PathBuf>,
    /// Roots by trust domain, in SPIFFE's bundle format (gRFC A87).
    pub spiffe_trust_bundle_map_file: Option<PathBuf>,
    /// How often the files are read. Default [`REFRESH_INTERVAL`].
    pub refresh_interval: Duration,
}

#[derive(Default, Deserialize)]
pub(super) struct FileWatcherDocument {
    certificate_file: Option<PathBuf>,
    private_key_file: Option<PathBuf>,
    ca_certificate_file: Option<PathBuf>,
    refresh_interval: Option<String>,
    spiffe_trust_bundle_map_file: Option<PathBuf>,
}

impl FileWatcherDocument {
    pub(super) fn parse(self) -> Result<FileWatcher, (String, String)> {
        let fail = |field: &str, reason: &str| Err((format!(".{field}"), reason.to_owned()));
        let identity = match (self.certificate_file, self.private_key_file) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            (Some(_), None) => {
                return fail("private_key_file", "is missing beside the certificate");
            }
            (None, Some(_)) => return fail("certificate_file", "is missing beside the key"),
        };
        let bundles = self.spiffe_trust_bundle_map_file;
        // Both may be there, for readers that do not know the map.
        let roots = self.ca_certificate_file.filter(|_| bundles.is_none());
        if identity.is_none() && roots.is_none() && bundles.is_none() {
            return fail(
                "ca_certificate_file",
                "neither this, spiffe_trust_bundle_map_file nor certificate_file is set",
            );
        }
        let refresh_interval = match self.refresh_interval.as_deref().map(seconds) {
            None => REFRESH_INTERVAL,
            Some(Some(interval)) => interval,
            Some(None) => {
                let reason = "must be seconds above 0 such as \"600s\" or \"1.5s\"";
                return fail("refresh_interval", reason);
            }
        };
        Ok(FileWatcher {
            identity,
            ca_certificate_file: roots,
            spiffe_trust_bundle_map_file: bundles,
            refresh_interval,
        })
    }
}

/// A duration in protobuf's JSON form.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (!duration.is_zero()).then_some(duration)
}
