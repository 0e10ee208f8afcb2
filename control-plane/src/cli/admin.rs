//! What commands ask of a control plane's admin endpoint, over HTTP or HTTPS.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::{HTTP_PORT, admin::AdminKey, ca::TRUST_BUNDLE, dial};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A control plane's admin endpoint, and what proves that we may ask.
#[derive(Debug)]
pub(super) struct Admin<'a> {
    /// `http://` or `https://`.
    pub(super) server: &'a Uri,
    /// PEM roots that vouch for it. Default: those in the data directory, else the system's.
    pub(super) ca: Option<&'a Path>,
    /// The control plane's data directory, which holds the key.
    pub(super) data_dir: Option<&'a Path>,
}

impl Admin<'_> {
    /// Asks; the answer when it is a success.
    ///
    /// # Errors
    /// When there is no answer, or it is a refusal with its reason.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> anyhow::Result<T> {
        let key = match self.data_dir {
            None => None,
            Some(folder) => {
                let key = AdminKey::read(folder);
                Some(key.with_context(|| format!("admin.key in {}", folder.display()))?)
            }
        };
        let server = dial::Server::new(self.server, HTTP_PORT, self.roots())?;
        if key.is_some() && !server.is_private() {
            bail!(
                "the admin key would travel in the clear to {}: write https://",
                self.server
            );
        }
        let exchange = timeout(ANSWER_TIMEOUT, send(&server, key.as_deref(), method, path)).await;
        let place = || format!("control plane at {}", server.authority());
        let (status, body) = exchange.with_context(place)?.with_context(place)?;
        if !status.is_success() {
            let reason: Value = serde_json::from_slice(&body).unwrap_or_default();
            let text = String::from_utf8_lossy(&body);
            bail!("{status}: {}", reason["error"].as_str().unwrap_or(&text));
        }
        serde_json::from_slice(&body).with_context(place)
    }

    fn roots(&self) -> Vec<PathBuf> {
        let ours = self
            .data_dir
            .map(|folder| folder.join("ca").join(TRUST_BUNDLE));
        let ours = ours.filter(|file| file.exists());
        self.ca.map(Path::to_owned).or(ours).into_iter().collect()
    }
}

async fn send(
    server: &dial::Server,
    key: Option<&str>,
    method: Method,
    path: &str,
) -> anyhow::Result<(http::StatusCode, Bytes)> {
    let connection = server.connect(b"http/1.1", None).await?;
    let (mut sender, connection) = http1::handshake(connection).await?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, server.authority());
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", key.trim()));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("its answer: {error}"))?;
    Ok((status, body.to_bytes()))
}

/// The admin endpoint of a control plane on this machine, or `HOST:PORT` for short.
pub(super) fn address(text: &str) -> Result<Uri, String> {
    let text = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match dial::Server::new(&uri, HTTP_PORT, Vec::new()) {
        Ok(_) => Ok(uri),
        Err(error) => Err(error.to_string()),
    }
}
