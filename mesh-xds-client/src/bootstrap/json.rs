//! The bootstrap's JSON form.
//!
//! Reads text into [`Bootstrap`]; every error names the field's path. Unknown fields are ignored,
//! as the format demands (gRFC A27).

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::config::LocalityId;
use serde::Deserialize;

use super::{
    Authority, Bootstrap, CertificateProvider, ChannelCredentials, MESH_CSR, MeshCsr, Node, Server,
    ServerUri,
    creds::{self, CredsDocument},
    files::{FILE_WATCHER, FileWatcherDocument},
    workload::{SPIFFE_WORKLOAD_API, WorkloadApiDocument},
};
use crate::Error;

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    xds_servers: Vec<ServerDocument>,
    #[serde(default)]
    node: NodeDocument,
    #[serde(default)]
    certificate_providers: BTreeMap<String, ProviderDocument>,
    server_listener_resource_name_template: Option<String>,
    client_default_listener_resource_name_template: Option<String>,
    #[serde(default)]
    authorities: BTreeMap<String, AuthorityDocument>,
}

#[derive(Deserialize)]
struct AuthorityDocument {
    #[serde(default)]
    xds_servers: Vec<ServerDocument>,
    client_listener_resource_name_template: Option<String>,
    #[serde(default)]
    fallback_on_reachability_only: bool,
}

#[derive(Deserialize)]
struct ServerDocument {
    server_uri: String,
    #[serde(default)]
    channel_creds: Vec<CredsDocument>,
    #[serde(default)]
    call_creds: Vec<CredsDocument>,
    #[serde(default)]
    server_features: Vec<serde_json::Value>,
}

#[derive(Default, Deserialize)]
struct NodeDocument {
    #[serde(default)]
    id: String,
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    metadata: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    locality: LocalityDocument,
}

#[derive(Default, Deserialize)]
struct LocalityDocument {
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    sub_zone: String,
}

#[derive(Deserialize)]
struct ProviderDocument {
    plugin_name: String,
    #[serde(default)]
    config: serde_json::Value,
}

#[derive(Default, Deserialize)]
struct MeshCsrDocument {
    server_uri: Option<String>,
    token_file: Option<String>,
    trust_bundle: Option<String>,
}

pub(super) fn parse(text: &str) -> Result<Bootstrap, Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let document: Document = serde_path_to_error::deserialize(&mut reader).map_err(field_error)?;
    if document.xds_servers.is_empty() {
        return Err(Error::bootstrap("xds_servers: at least one is needed"));
    }
    let servers = parse_servers("", document.xds_servers)?;
    let mut authorities = BTreeMap::new();
    for (name, authority) in document.authorities {
        let authority = authority.parse(&name)?;
        authorities.insert(name, authority);
    }
    let mut certificate_providers = BTreeMap::new();
    for (name, provider) in document.certificate_providers {
        let provider = provider.parse().map_err(|(field, reason)| {
            Error::bootstrap(format!(
                "certificate_providers.{name}.config{field}: {reason}"
            ))
        })?;
        certificate_providers.insert(name, provider);
    }
    Ok(Bootstrap {
        servers,
        node: document.node.into_node(),
        certificate_providers,
        server_listener_resource_name_template: document.server_listener_resource_name_template,
        client_default_listener_resource_name_template: document
            .client_default_listener_resource_name_template
            .filter(|template| !template.is_empty())
            .unwrap_or_else(|| "%s".into()),
        authorities,
    })
}

fn parse_servers(place: &str, documents: Vec<ServerDocument>) -> Result<Vec<Server>, Error> {
    let mut servers = Vec::new();
    for (i, server) in documents.into_iter().enumerate() {
        let server = server.parse().map_err(|(field, reason)| {
            Error::bootstrap(format!("{place}xds_servers[{i}].{field}: {reason}"))
        })?;
        servers.push(server);
    }
    Ok(servers)
}

impl AuthorityDocument {
    fn parse(self, name: &str) -> Result<Authority, Error> {
        let place = format!("authorities[{name:?}].");
        let servers = parse_servers(&place, self.xds_servers)?;
        let authority = Authority::new(name, servers)
            .with_fallback_on_reachability_only(self.fallback_on_reachability_only);
        match self.client_listener_resource_name_template {
            Some(template) if !template.is_empty() => authority
                .with_client_listener_template(name, template)
                .map_err(|e| e.in_place(place.trim_end_matches('.'))),
            _ => Ok(authority),
        }
    }
}

fn field_error(error: serde_path_to_error::Error<serde_json::Error>) -> Error {
    let path = error.path().to_string();
    let inner = error.into_inner();
    if path == "." {
        Error::bootstrap(inner.to_string())
    } else {
        Error::bootstrap(format!("{path}: {inner}"))
    }
}

impl ServerDocument {
    fn parse(self) -> Result<Server, (String, String)> {
        let channel = creds::channel(self.channel_creds)?;
        // `https:` says what the credentials say; without them it would be a lie.
        let text = match &channel {
            ChannelCredentials::Tls(_) => self.server_uri.strip_prefix("https://"),
            ChannelCredentials::Insecure => None,
        };
        let uri = ServerUri::parse(text.unwrap_or(&self.server_uri))
            .map_err(|reason| ("server_uri".to_owned(), reason))?;
        let calls = creds::calls(self.call_creds)?;
        creds::check(&uri, &channel, &calls).map_err(|reason| ("call_creds".to_owned(), reason))?;
        let features: BTreeSet<String> = self
            .server_features
            .iter()
            .filter_map(|feature| feature.as_str().map(str::to_owned))
            .collect();
        Ok(Server {
            uri,
            features,
            channel,
            calls,
        })
    }
}

impl NodeDocument {
    fn into_node(self) -> Node {
        Node {
            id: self.id,
            cluster: self.cluster,
            metadata: self.metadata,
            locality: LocalityId {
                region: self.locality.region,
                zone: self.locality.zone,
                sub_zone: self.locality.sub_zone,
            },
        }
    }
}

/// A plugin's settings; none at all are the defaults.
fn config<T: Default + serde::de::DeserializeOwned>(
    config: serde_json::Value,
) -> Result<T, (String, String)> {
    match config {
        serde_json::Value::Null => Ok(T::default()),
        config => serde_path_to_error::deserialize(config)
            .map_err(|e| (format!(".{}", e.path()), e.inner().to_string())),
    }
}

impl ProviderDocument {
    fn parse(self) -> Result<CertificateProvider, (String, String)> {
        if self.plugin_name == FILE_WATCHER {
            let config: FileWatcherDocument = config(self.config)?;
            return config.parse().map(CertificateProvider::FileWatcher);
        }
        if self.plugin_name == SPIFFE_WORKLOAD_API {
            let config: WorkloadApiDocument = config(self.config)?;
            return config.parse().map(CertificateProvider::WorkloadApi);
        }
        if self.plugin_name != MESH_CSR {
            return Ok(CertificateProvider::Unsupported {
                plugin_name: self.plugin_name,
            });
        }
        let config: MeshCsrDocument = config(self.config)?;
        let server_uri = config
            .server_uri
            .map(|uri| ServerUri::parse(&uri))
            .transpose()
            .map_err(|reason| (".server_uri".to_owned(), reason))?;
        let defaults = MeshCsr::default();
        Ok(CertificateProvider::MeshCsr(MeshCsr {
            server_uri,
            token_file: config.token_file.map(Into::into),
            trust_bundle: config
                .trust_bundle
                .map_or(defaults.trust_bundle, Into::into),
        }))
    }
}
