//! The bytes of the state file.
//!
//! ```text
//! magic(8) version(u32) length(u64) sha256(32) payload
//! payload = fingerprint count(u32) { kind(u8) unused(u8) updated(u64) name version raw }
//! ```
//!
//! Numbers are little-endian, texts have a `u32` length. Reading never trusts a length.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ring::digest::{SHA256, digest};

use super::StoredResource;
use crate::resource::Kind;

const MAGIC: &[u8; 8] = b"MESHXDS\n";

/// Of the format. A file of another version is not read.
const VERSION: u32 = 1;

const HEADER: usize = 8 + 4 + 8 + 32;

pub(crate) fn encode(resources: &[StoredResource], fingerprint: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    put(&mut payload, fingerprint.as_bytes());
    payload.extend((resources.len() as u32).to_le_bytes());
    for resource in resources {
        let age = resource.updated.duration_since(UNIX_EPOCH);
        payload.push(resource.kind as u8);
        payload.push(resource.unused_runs);
        payload.extend(age.unwrap_or_default().as_secs().to_le_bytes());
        put(&mut payload, resource.name.as_bytes());
        put(&mut payload, resource.version.as_bytes());
        put(&mut payload, &resource.raw);
    }
    let mut content = Vec::with_capacity(HEADER + payload.len());
    content.extend(MAGIC);
    content.extend(VERSION.to_le_bytes());
    content.extend((payload.len() as u64).to_le_bytes());
    content.extend(digest(&SHA256, &payload).as_ref());
    content.extend(payload);
    content
}

/// Writes bytes with their length, as [`Reader::bytes`] takes them.
pub(crate) fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u32).to_le_bytes());
    to.extend(bytes);
}

/// The resources in `content`, all of them or an error.
pub(crate) fn decode(content: &[u8], fingerprint: &str) -> Result<Vec<StoredResource>, String> {
    let mut header = Reader(content);
    let damaged = || "it is damaged".to_owned();
    if header.take(MAGIC.len()) != Some(MAGIC) {
        return Err("it is not a state file".into());
    }
    let version = header.u32().ok_or_else(damaged)?;
    if version != VERSION {
        return Err(format!("its format is {version}, known is {VERSION}"));
    }
    let length = header.u64().ok_or_else(damaged)?;
    let checksum = header.take(32).ok_or_else(damaged)?;
    let payload = header.0;
    if payload.len() as u64 != length || digest(&SHA256, payload).as_ref() != checksum {
        return Err(damaged());
    }
    let mut reader = Reader(payload);
    let from = reader.text().ok_or_else(damaged)?;
    if from != fingerprint {
        return Err(format!(
            "it is from other control planes: {from:?}, not {fingerprint:?}"
        ));
    }
    let count = reader.u32().ok_or_else(damaged)?;
    let mut resources = Vec::new();
    for _ in 0..count {
        resources.push(reader.resource().ok_or_else(damaged)?);
    }
    Ok(resources)
}

/// Takes numbers and texts from bytes; `None` where they end too soon.
pub(crate) struct Reader<'b>(pub(crate) &'b [u8]);

impl<'b> Reader<'b> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        let bytes = self.take(4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let bytes = self.take(8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    pub(crate) fn bytes(&mut self) -> Option<&'b [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }

    pub(crate) fn text(&mut self) -> Option<&'b str> {
        str::from_utf8(self.bytes()?).ok()
    }

    fn resource(&mut self) -> Option<StoredResource> {
        let kind = self.u8()?;
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind)?;
        let unused_runs = self.u8()?;
        let updated = Duration::from_secs(self.u64()?);
        Some(StoredResource {
            kind,
            name: self.text()?.to_owned(),
            version: self.text()?.to_owned(),
            raw: Bytes::copy_from_slice(self.bytes()?),
            updated: SystemTime::UNIX_EPOCH.checked_add(updated)?,
            unused_runs,
        })
    }
}
