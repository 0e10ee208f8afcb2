//! An identity of the mesh in files, for processes that read files: gRPC, Envoy, anything.
//!
//! An [`Agent`] makes a key, has it signed by a control plane over CSR, writes both with the roots
//! into a folder that readers see as a whole, and does so again in time. The key goes nowhere but
//! there. Over TLS the certificate that is held proves who asks for the next one, so that a join
//! token may be good only once. It serves nobody and does not watch who reads.
//!
//! Roots are as new as the last certificate: a change of roots reaches readers with the next renewal,
//! 70 % of a life later at most.

mod folder;
mod request;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use http::Uri;
use mesh_core::rng::{Rng as _, SplitMix64};
use tonic::metadata::{Ascii, MetadataValue};
use xxhash_rust::xxh3::xxh3_64;

use crate::{CERT_TTL, XDS_PORT, ca::random_hex, dial};
use folder::Folder;
pub use folder::{CHAIN, KEY, ROOTS};
use request::{Leaf, Proof, Signed};

/// Earliest and latest renewal, as a share of the life that is left.
const RENEWAL: (f64, f64) = (0.5, 0.7);
/// First pause after a failure; also the shortest between two renewals.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How an agent gets an identity and where it keeps it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AgentOptions {
    /// The control plane, for example `https://control-plane:18000`.
    pub server: Uri,
    /// Directory for [`CHAIN`], [`KEY`] and [`ROOTS`].
    pub out: PathBuf,
    /// PEM roots that vouch for the control plane; those in `out` do, too. Default: the system's.
    pub ca_file: Option<PathBuf>,
    /// File with a join token or a service account token, read for every request that needs it.
    pub token_file: Option<PathBuf>,
    /// Life to ask for, in whole seconds. Default [`CERT_TTL`]; the control plane may give less.
    pub ttl: Duration,
}

impl AgentOptions {
    /// Defaults, for an identity from `server` in `out`.
    pub fn new(server: Uri, out: impl Into<PathBuf>) -> Self {
        Self {
            server,
            out: out.into(),
            ca_file: None,
            token_file: None,
            ttl: CERT_TTL,
        }
    }
}

/// What an agent did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Progress {
    /// A new certificate is in its files.
    Written {
        /// Whose it is.
        spiffe_id: String,
        /// How long it is good for.
        left: Duration,
        /// When the next one is asked for.
        next: Duration,
    },
    /// There is no new certificate; the one before stays.
    Failed {
        /// Why.
        reason: String,
        /// How long that one is good for; `None` when there is none.
        left: Option<Duration>,
        /// When it is tried again.
        next: Duration,
    },
}

/// Keeps an identity in files.
#[derive(Debug)]
pub struct Agent {
    server: dial::Server,
    token_file: Option<PathBuf>,
    ttl: Duration,
    folder: Folder,
    random: SplitMix64,
}

impl Agent {
    /// An agent for a folder, which nobody else writes until it is dropped.
    ///
    /// # Errors
    /// When the folder cannot be written or another agent writes it, the address cannot be used, or
    /// a token would travel in the clear to another machine.
    pub fn open(options: AgentOptions) -> anyhow::Result<Self> {
        let folder = Folder::open(&options.out)?;
        // What a control plane gave us over TLS vouches for it after a change of its roots.
        let roots = options
            .ca_file
            .into_iter()
            .flat_map(|file| [file, folder.file(ROOTS)]);
        let server = dial::Server::new(&options.server, XDS_PORT, roots.collect())?;
        if options.token_file.is_some() && !server.is_private() {
            bail!(
                "a token would travel in the clear to {}: write https://",
                server.authority()
            );
        }
        Ok(Self {
            server,
            token_file: options.token_file,
            ttl: options.ttl,
            folder,
            random: SplitMix64::new(xxh3_64(random_hex()?.as_bytes())),
        })
    }

    /// Gets a certificate and writes it; how long it is good for and whose it is.
    ///
    /// # Errors
    /// Why there is no new one; the files are as they were.
    pub async fn renew(&mut self) -> anyhow::Result<(String, Duration)> {
        let signed = self.signed().await?;
        self.folder
            .write(&signed.chain, &signed.key, &signed.roots)?;
        let Leaf {
            spiffe_id,
            not_after,
        } = signed.leaf;
        let left = not_after.duration_since(SystemTime::now());
        Ok((spiffe_id, left.unwrap_or_default()))
    }

    /// Renews for ever, and says each time what came of it.
    pub async fn run(mut self, mut report: impl FnMut(Progress)) {
        let mut failures = 0;
        loop {
            let next = match self.renew().await {
                Ok((spiffe_id, left)) => {
                    failures = 0;
                    let (earliest, latest) = RENEWAL;
                    let share = earliest + (latest - earliest) * self.random.unit();
                    let next = left.mul_f64(share).max(PAUSE_MIN);
                    report(Progress::Written {
                        spiffe_id,
                        left,
                        next,
                    });
                    next
                }
                Err(error) => {
                    let next = pause(failures, self.random.unit());
                    failures += 1;
                    report(Progress::Failed {
                        reason: format!("{error:#}"),
                        left: self.left(),
                        next,
                    });
                    next
                }
            };
            tokio::time::sleep(next).await;
        }
    }

    /// How long the certificate in the files is good for.
    fn left(&self) -> Option<Duration> {
        let (leaf, _) = self.held()?;
        Some(
            leaf.not_after
                .duration_since(SystemTime::now())
                .unwrap_or_default(),
        )
    }

    fn held(&self) -> Option<(Leaf, dial::OwnCertificate)> {
        let chain = fs::read(self.folder.file(CHAIN)).ok()?;
        let key = fs::read(self.folder.file(KEY)).ok()?;
        request::held(&chain, &key, SystemTime::now()).ok()
    }

    /// Asks with what is held; where that does not do, with the token, which may be of a control
    /// plane that does not know what we hold.
    async fn signed(&self) -> anyhow::Result<Signed> {
        let held = self.held().filter(|_| self.server.is_tls());
        let Some((_, own)) = held else {
            let proof = self.token()?.map_or(Proof::None, Proof::Token);
            return request::certificate(&self.server, proof, self.ttl).await;
        };
        let proof = Proof::Certificate(own);
        let error = match request::certificate(&self.server, proof, self.ttl).await {
            Ok(signed) => return Ok(signed),
            Err(error) => error,
        };
        let Ok(Some(token)) = self.token() else {
            return Err(error);
        };
        let second = request::certificate(&self.server, Proof::Token(token), self.ttl).await;
        second.map_err(|second| {
            second.context(format!("with the certificate: {error:#}; with the token"))
        })
    }

    fn token(&self) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(file) = &self.token_file else {
            return Ok(None);
        };
        let place = || format!("token file {}", file.display());
        let text = fs::read_to_string(file).with_context(place)?;
        let value = format!("Bearer {}", text.trim()).parse();
        let mut value: MetadataValue<_> = value.with_context(place)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Twice as long after each failure, up to [`PAUSE_MAX`], less a random fifth.
fn pause(failures: u32, random: f64) -> Duration {
    let whole = PAUSE_MIN.saturating_mul(2u32.saturating_pow(failures));
    whole.min(PAUSE_MAX).mul_f64(1.0 - 0.2 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_are_spread() {
        assert_eq!(pause(0, 0.0), PAUSE_MIN);
        assert_eq!(pause(3, 0.0), Duration::from_secs(8));
        assert_eq!(pause(40, 0.0), PAUSE_MAX);
        assert_eq!(pause(40, 1.0), Duration::from_secs(48));
    }

    #[test]
    fn a_token_does_not_leave_the_machine_in_the_clear() {
        let dir = tempfile::tempdir().unwrap();
        let open = |server: &str| {
            let mut options = AgentOptions::new(server.parse().unwrap(), dir.path());
            options.token_file = Some(dir.path().join("token"));
            Agent::open(options)
        };
        let error = open("http://10.0.0.1:18000").unwrap_err().to_string();
        assert!(error.contains("in the clear to 10.0.0.1:18000"), "{error}");
        for fine in ["http://127.0.0.1:18000", "https://10.0.0.1:18000"] {
            open(fine).unwrap();
        }
    }
}
