//! The certificate with its key on disk, for a process that starts while its signer is down.
//!
//! Opt-in, in a file of its own that its owner alone can read, written whole and renamed. What is read
//! is judged like an answer of the signer: the key belongs to the leaf, the leaf names one SPIFFE ID
//! and is valid now; besides, it must be from the same signer and for the same node. Whether our own
//! trust bundle vouches for it is asked by whoever holds that. A file that is not exactly right is not
//! used, and says so in the log.
//!
//! ```text
//! magic(8) version(u32) sha256(32) payload
//! payload = signer node key count(u32) { certificate }
//! ```

use std::{path::PathBuf, time::SystemTime};

use rcgen::{KeyPair, PublicKeyData as _};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Certificate, csr::check_leaf};
use crate::store::{
    file::{self, Privacy},
    format::{Reader, put},
};

const MAGIC: &[u8; 8] = b"MESHID\0\n";

/// Of the format. A file of another version is not read.
const VERSION: u32 = 1;

/// Largest file that is read, in bytes.
const BYTES_MAX: usize = 1 << 20;

/// Where a certificate is kept, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keep {
    pub(super) path: PathBuf,
    pub(super) signer: String,
    pub(super) node: String,
}

impl Keep {
    /// Reads the file. `Ok(None)` when there is none.
    pub(super) fn load(&self, now: SystemTime) -> Result<Option<Certificate>, String> {
        let content = file::read(&self.path, Privacy::NotReadable, BYTES_MAX)?;
        content
            .map(|content| self.decode(&content, now))
            .transpose()
    }

    /// Replaces the file.
    pub(super) fn save(&self, certificate: &Certificate) -> Result<(), String> {
        file::replace(&self.path, &self.encode(certificate)).map_err(|e| e.to_string())
    }

    fn encode(&self, certificate: &Certificate) -> Vec<u8> {
        let mut payload = Vec::new();
        put(&mut payload, self.signer.as_bytes());
        put(&mut payload, self.node.as_bytes());
        put(&mut payload, certificate.key.secret_der());
        payload.extend((certificate.chain.len() as u32).to_le_bytes());
        for certificate in &certificate.chain {
            put(&mut payload, certificate);
        }
        let mut content = MAGIC.to_vec();
        content.extend(VERSION.to_le_bytes());
        content.extend(digest(&SHA256, &payload).as_ref());
        content.extend(payload);
        content
    }

    pub(super) fn decode(&self, content: &[u8], now: SystemTime) -> Result<Certificate, String> {
        let damaged = || "it is damaged".to_owned();
        let mut header = Reader(content);
        if header.take(MAGIC.len()) != Some(MAGIC) {
            return Err("it is not a stored identity".into());
        }
        let version = header.u32().ok_or_else(damaged)?;
        if version != VERSION {
            return Err(format!("its format is {version}, known is {VERSION}"));
        }
        let checksum = header.take(32).ok_or_else(damaged)?;
        if digest(&SHA256, header.0).as_ref() != checksum {
            return Err(damaged());
        }
        let mut payload = Reader(header.0);
        let (signer, node) = (payload.text(), payload.text());
        let (signer, node) = signer.zip(node).ok_or_else(damaged)?;
        if (signer, node) != (&*self.signer, &*self.node) {
            return Err(format!(
                "it is of node {node:?} from {signer:?}, not of {:?} from {:?}",
                self.node, self.signer
            ));
        }
        let key = PrivatePkcs8KeyDer::from(payload.bytes().ok_or_else(damaged)?.to_vec());
        let count = payload.u32().ok_or_else(damaged)?;
        let mut chain = Vec::new();
        for _ in 0..count {
            let certificate = payload.bytes().ok_or_else(damaged)?;
            chain.push(CertificateDer::from(certificate.to_vec()));
        }
        let pair = KeyPair::try_from(&key).map_err(|e| format!("its key cannot be used: {e}"))?;
        let leaf = chain.first().ok_or("it holds no certificate")?;
        let leaf = check_leaf(leaf, Some(&pair.subject_public_key_info()), now)?;
        Ok(Certificate {
            chain,
            key: PrivateKeyDer::Pkcs8(key),
            spiffe_id: leaf.spiffe_id,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            is_stored: true,
        })
    }
}
