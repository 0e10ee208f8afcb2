//! The bootstrap in code.
//!
//! What the JSON form says, said by calls; the same checks apply.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use mesh_core::config::LocalityId;

use super::{Authority, Bootstrap, CertificateProvider, Node, Server, ServerUri, TlsFiles};
use crate::Error;

/// Makes a [`Bootstrap`] in code.
#[derive(Clone, Debug)]
#[must_use]
pub struct BootstrapBuilder {
    server_uri: String,
    features: BTreeSet<String>,
    tls: Option<TlsFiles>,
    token_file: Option<PathBuf>,
    fallbacks: Vec<Server>,
    authorities: BTreeMap<String, Authority>,
    node: Node,
    certificate_providers: BTreeMap<String, CertificateProvider>,
    server_template: Option<String>,
    client_template: Option<String>,
}

impl BootstrapBuilder {
    pub(super) fn new(server_uri: String) -> Self {
        Self {
            server_uri,
            features: BTreeSet::new(),
            tls: None,
            token_file: None,
            fallbacks: Vec::new(),
            authorities: BTreeMap::new(),
            node: Node::default(),
            certificate_providers: BTreeMap::new(),
            server_template: None,
            client_template: None,
        }
    }

    /// Adds one of [`feature`](super::feature) to the first control plane. Default none.
    pub fn server_feature(mut self, feature: impl Into<String>) -> Self {
        self.features.insert(feature.into());
        self
    }

    /// Secures the connection to the first control plane with TLS (gRFC A65). Default plaintext.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Sends the token in this file to the first control plane (gRFC A97). Default none.
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.token_file = Some(file.into());
        self
    }

    /// Adds a control plane that is asked when those before it cannot be reached (gRFC A71).
    pub fn fallback_server(mut self, server: Server) -> Self {
        self.fallbacks.push(server);
        self
    }

    /// Adds an authority (gRFC A47).
    pub fn authority(mut self, name: impl Into<String>, authority: Authority) -> Self {
        self.authorities.insert(name.into(), authority);
        self
    }

    /// Unique name of this process. Default empty.
    pub fn node_id(mut self, id: impl Into<String>) -> Self {
        self.node.id = id.into();
        self
    }

    /// Group of processes. Default empty.
    pub fn node_cluster(mut self, cluster: impl Into<String>) -> Self {
        self.node.cluster = cluster.into();
        self
    }

    /// Where this process runs. Default nowhere.
    pub fn locality(mut self, locality: LocalityId) -> Self {
        self.node.locality = locality;
        self
    }

    /// Adds one entry to the node's metadata.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.node.metadata.insert(key.into(), value.into());
        self
    }

    /// Adds a certificate provider; `default` by convention is the process's own identity.
    pub fn certificate_provider(
        mut self,
        instance: impl Into<String>,
        provider: CertificateProvider,
    ) -> Self {
        self.certificate_providers.insert(instance.into(), provider);
        self
    }

    /// Sets [`Bootstrap::server_listener_resource_name_template`]. Default none.
    pub fn server_listener_template(mut self, template: impl Into<String>) -> Self {
        self.server_template = Some(template.into());
        self
    }

    /// Sets [`Bootstrap::client_default_listener_resource_name_template`]. Default `%s`.
    pub fn client_listener_template(mut self, template: impl Into<String>) -> Self {
        self.client_template = Some(template.into());
        self
    }

    /// Checks and finishes.
    ///
    /// # Errors
    /// When the server's URI cannot be used, or a token would travel in the clear.
    pub fn build(self) -> Result<Bootstrap, Error> {
        let text = match &self.tls {
            Some(_) => self.server_uri.strip_prefix("https://"),
            None => None,
        };
        let uri = ServerUri::parse(text.unwrap_or(&self.server_uri))
            .map_err(|reason| Error::bootstrap(format!("server_uri: {reason}")))?;
        let mut first = Server::new(uri);
        first.features = self.features;
        if let Some(files) = self.tls {
            first = first.with_tls(files);
        }
        if let Some(file) = self.token_file {
            first = first.with_token_file(file)?;
        }
        Ok(Bootstrap {
            servers: std::iter::once(first).chain(self.fallbacks).collect(),
            node: self.node,
            certificate_providers: self.certificate_providers,
            server_listener_resource_name_template: self.server_template,
            client_default_listener_resource_name_template: self
                .client_template
                .unwrap_or_else(|| "%s".into()),
            authorities: self.authorities,
        })
    }
}
