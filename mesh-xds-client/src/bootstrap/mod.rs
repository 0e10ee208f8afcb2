//! Where the control plane is, and who we are.
//!
//! Reads gRPC's bootstrap format (gRFC A27, A29) from a file, a variable or code. Does not connect
//! and does not read certificates. Deviation: channel credentials are
//! `insecure` and `tls`.

mod builder;
mod creds;
mod files;
mod json;
#[cfg(test)]
mod tests;
mod uri;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use mesh_core::{SecretName, config::LocalityId};

pub use builder::BootstrapBuilder;
pub use creds::{CallCredentials, ChannelCredentials, TlsFiles};
pub use files::{FILE_WATCHER, FileWatcher, REFRESH_INTERVAL};
pub use uri::ServerUri;
pub use workload::{SOCKET_VARIABLE, SPIFFE_WORKLOAD_API, WorkloadApi};

use crate::Error;

/// Names a file with the bootstrap; wins over [`CONFIG_VARIABLE`], without falling back to it.
pub const PATH_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP";

/// Holds the bootstrap as text.
pub const CONFIG_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP_CONFIG";

/// Name of the trust bundle when a provider names no other.
pub const TRUST_BUNDLE: &str = "ROOTCA";

/// The plugin by which this library gets its own certificate.
pub const MESH_CSR: &str = "mesh_csr";

/// Everything a client must know before it connects.
///
/// ```
/// use mesh_xds_client::Bootstrap;
///
/// let bootstrap = Bootstrap::builder("http://127.0.0.1:15010")
///     .node_id("greeter-1")
///     .server_listener_template("mesh/inbound/%s")
///     .build()?;
/// assert_eq!(bootstrap.client_listener_name("xds:///greeter.default"), "greeter.default");
/// # Ok::<(), mesh_xds_client::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bootstrap {
    /// Control planes in order; the first one is used. Never empty.
    pub servers: Vec<Server>,
    /// Who we are.
    pub node: Node,
    /// Where certificates come from, by instance name.
    pub certificate_providers: BTreeMap<String, CertificateProvider>,
    /// Names a server's listener; `%s` stands for `ADDRESS:PORT`.
    pub server_listener_resource_name_template: Option<String>,
    /// Names a client's listener; `%s` stands for the dialled name. Default `%s`.
    pub client_default_listener_resource_name_template: String,
    /// Further control planes, by the authority of the `xdstp:` names they know (gRFC A47).
    pub authorities: BTreeMap<String, Authority>,
}

/// Who knows the `xdstp:` names of one authority (gRFC A47).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Authority {
    /// Control planes in order; empty means those of the bootstrap.
    pub servers: Vec<Server>,
    /// Names a client's listener; `%s` stands for the dialled name. Begins with
    /// `xdstp://AUTHORITY/`.
    pub client_listener_resource_name_template: String,
    /// Whether the next control plane is asked whenever one cannot be reached, rather than only when
    /// something is not known yet: for resources that age fast, such as endpoints (gRFC A95). Default
    /// false.
    pub fallback_on_reachability_only: bool,
}

/// What a bootstrap can say of a server in `server_features`.
pub mod feature {
    /// The incremental variant of the protocol is spoken. Ours: gRPC clients do not have it.
    pub const DELTA: &str = "xds_delta";
    /// A refused, deleted or refused-by-server resource is not used any more (gRFC A88).
    pub const FAIL_ON_DATA_ERRORS: &str = "fail_on_data_errors";
    /// A deletion never takes a resource away (gRFC A53): the default here, and stronger than
    /// [`FAIL_ON_DATA_ERRORS`] where both are set.
    pub const IGNORE_RESOURCE_DELETION: &str = "ignore_resource_deletion";
    /// A resource that does not come in time is slow, not missing (gRFC A88, as its title says).
    pub const RESOURCE_TIMER_IS_TRANSIENT_ERROR: &str = "resource_timer_is_transient_error";
    /// The same, as the text of gRFC A88 also spells it.
    pub const RESOURCE_TIMER_IS_TRANSIENT_FAILURE: &str = "resource_timer_is_transient_failure";
}

/// One control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// Where it is.
    pub uri: ServerUri,
    /// Features it announces, as written.
    pub features: BTreeSet<String>,
    /// How the connection is secured.
    pub channel: ChannelCredentials,
    /// What each call carries.
    pub calls: Vec<CallCredentials>,
}

impl Authority {
    /// An authority with the default template; without servers it uses those of the bootstrap.
    pub fn new(name: &str, servers: Vec<Server>) -> Self {
        Self {
            servers,
            client_listener_resource_name_template: authority_template(name),
            fallback_on_reachability_only: false,
        }
    }

    /// Sets [`fallback_on_reachability_only`](Self::fallback_on_reachability_only).
    #[must_use]
    pub fn with_fallback_on_reachability_only(mut self, only: bool) -> Self {
        self.fallback_on_reachability_only = only;
        self
    }

    /// Sets the template.
    ///
    /// # Errors
    /// When it does not begin with `xdstp://NAME/`.
    pub fn with_client_listener_template(
        mut self,
        name: &str,
        template: impl Into<String>,
    ) -> Result<Self, Error> {
        let template = template.into();
        let expected = format!("xdstp://{name}/");
        if !template.starts_with(&expected) {
            return Err(Error::bootstrap(format!(
                "client_listener_resource_name_template: {template:?} does not begin with \
                 {expected:?}"
            )));
        }
        self.client_listener_resource_name_template = template;
        Ok(self)
    }
}

impl Server {
    /// A control plane at `uri`, without features.
    pub fn new(uri: ServerUri) -> Self {
        Self {
            uri,
            features: BTreeSet::new(),
            channel: ChannelCredentials::Insecure,
            calls: Vec::new(),
        }
    }

    /// Secures the connection with TLS.
    #[must_use]
    pub fn with_tls(mut self, files: TlsFiles) -> Self {
        self.channel = ChannelCredentials::Tls(files);
        self
    }

    /// Sends the token in this file with every call.
    ///
    /// # Errors
    /// When the token would leave this machine in the clear.
    pub fn with_token_file(mut self, file: impl Into<PathBuf>) -> Result<Self, Error> {
        self.calls.push(CallCredentials::JwtTokenFile(file.into()));
        creds::check(&self.uri, &self.channel, &self.calls).map_err(Error::bootstrap)?;
        Ok(self)
    }

    /// Adds one of [`feature`].
    #[must_use]
    pub fn with_feature(mut self, feature: impl Into<String>) -> Self {
        self.features.insert(feature.into());
        self
    }

    /// Whether `feature` is among its features.
    pub fn has(&self, feature: &str) -> bool {
        self.features.contains(feature)
    }
}

/// Who we are, as sent to the control plane.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Node {
    /// Unique name of this process.
    pub id: String,
    /// Group of processes, may be empty.
    pub cluster: String,
    /// Anything the control plane wants to know.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Where this process runs.
    pub locality: LocalityId,
}

/// Where a certificate comes from (gRFC A29 provider instance).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProvider {
    /// A key made in this process, signed by the control plane.
    MeshCsr(MeshCsr),
    /// Files that somebody else writes.
    FileWatcher(FileWatcher),
    /// SPIFFE's Workload API.
    WorkloadApi(WorkloadApi),
    /// A plugin this library does not have; an error when a resource uses it.
    Unsupported {
        /// The plugin's name.
        plugin_name: String,
    },
}

/// Settings of the plugin [`MESH_CSR`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MeshCsr {
    /// The signer; `None` is the first xDS server.
    pub server_uri: Option<ServerUri>,
    /// File with the bearer token, read for every request; `None` sends none.
    pub token_file: Option<PathBuf>,
    /// SDS name of the trust bundle. Default [`TRUST_BUNDLE`].
    pub trust_bundle: SecretName,
}

impl Default for MeshCsr {
    fn default() -> Self {
        Self {
            server_uri: None,
            token_file: None,
            trust_bundle: TRUST_BUNDLE.into(),
        }
    }
}

impl CertificateProvider {
    /// SDS name of the trust bundle that goes with the certificate; `None` when not known.
    pub fn trust_bundle(&self) -> Option<&str> {
        match self {
            Self::MeshCsr(csr) => Some(csr.trust_bundle.as_str()),
            Self::WorkloadApi(api) => Some(api.trust_bundle.as_str()),
            Self::FileWatcher(_) | Self::Unsupported { .. } => None,
        }
    }
}

impl Bootstrap {
    /// Reads the bootstrap from [`PATH_VARIABLE`] or [`CONFIG_VARIABLE`].
    ///
    /// # Errors
    /// When neither is set, the file cannot be read, or its content cannot be used.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(
            std::env::var_os(PATH_VARIABLE).map(PathBuf::from),
            std::env::var(CONFIG_VARIABLE).ok(),
        )
    }

    fn from_variables(path: Option<PathBuf>, config: Option<String>) -> Result<Self, Error> {
        if let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) {
            return Self::from_file(&path).map_err(|e| e.in_place(PATH_VARIABLE));
        }
        match config.filter(|config| !config.is_empty()) {
            Some(config) => Self::from_json(&config).map_err(|e| e.in_place(CONFIG_VARIABLE)),
            None => Err(Error::bootstrap(format!(
                "not found: set {PATH_VARIABLE} to the path of a bootstrap file, or \
                 {CONFIG_VARIABLE} to its content"
            ))),
        }
    }

    /// Reads the bootstrap from a file.
    ///
    /// # Errors
    /// When the file cannot be read, or its content cannot be used.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let place = path.display().to_string();
        std::fs::read_to_string(path)
            .map_err(|e| Error::bootstrap(format!("cannot be read: {e}")))
            .and_then(|text| Self::from_json(&text))
            .map_err(|e| e.in_place(&place))
    }

    /// Reads the bootstrap from text. Unknown fields are ignored.
    ///
    /// # Errors
    /// When the text is not JSON, or a field cannot be used; the field's path is named.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        json::parse(text)
    }

    /// A bootstrap in code, for one control plane: `http://host:port`, `host:port`,
    /// `dns:///host:port` or `unix:/path`.
    pub fn builder(server_uri: impl Into<String>) -> BootstrapBuilder {
        BootstrapBuilder::new(server_uri.into())
    }

    /// The listener resource of a dialled name; `xds:///` in front is removed. `xds://AUTHORITY/name`
    /// takes the template of that authority.
    ///
    /// For `xdstp:` templates the name is percent-encoded (gRFC A47). An authority that the bootstrap
    /// does not know has no control plane: watching its listener fails at once and says so;
    /// [`check_target`](Self::check_target) finds out before.
    pub fn client_listener_name(&self, target: &str) -> String {
        match split_target(target) {
            (Some(name), path) => match self.authorities.get(name) {
                Some(authority) => fill(&authority.client_listener_resource_name_template, path),
                None => fill(&authority_template(name), path),
            },
            (None, path) => fill(&self.client_default_listener_resource_name_template, path),
        }
    }

    /// Checks that the bootstrap knows the authority of a target.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_target(&self, target: &str) -> Result<(), Error> {
        match split_target(target) {
            (Some(name), _) if !self.authorities.contains_key(name) => Err(Error::bootstrap(
                format!("{target:?}: authority {name:?} is not among authorities"),
            )),
            _ => Ok(()),
        }
    }

    /// The listener resource of a server that listens on `address`.
    ///
    /// # Errors
    /// When the bootstrap has no `server_listener_resource_name_template`.
    pub fn server_listener_name(&self, address: SocketAddr) -> Result<String, Error> {
        match &self.server_listener_resource_name_template {
            Some(template) => Ok(fill(template, &address.to_string())),
            None => Err(Error::bootstrap(
                "server_listener_resource_name_template: missing, and servers need it, for \
                 example \"mesh/inbound/%s\"",
            )),
        }
    }

    /// Each authority with its servers; `None` is that of names of the old style.
    pub(crate) fn authority_servers(&self) -> impl Iterator<Item = (Option<&str>, &[Server])> {
        let named = self.authorities.iter().map(|(name, authority)| {
            let servers = match authority.servers.is_empty() {
                true => &self.servers,
                false => &authority.servers,
            };
            (Some(name.as_str()), servers.as_slice())
        });
        std::iter::once((None, self.servers.as_slice())).chain(named)
    }

    /// Settings for [`CertificateClient`](crate::certificate::CertificateClient) from the provider
    /// instance `name`.
    ///
    /// # Errors
    /// When there is no such instance, or its plugin is not supported.
    pub fn certificate_config(
        &self,
        name: &str,
    ) -> Result<crate::certificate::CertificateConfig, Error> {
        let provider = self.certificate_providers.get(name).ok_or_else(|| {
            Error::certificate(format!(
                "{name:?} is not among certificate_providers of the bootstrap"
            ))
        })?;
        self.config_of(provider)
    }

    /// Where the Workload API of a provider is; `None` for providers of another kind.
    ///
    /// # Errors
    /// When neither it nor the environment says so.
    pub(crate) fn workload_socket(
        provider: &CertificateProvider,
    ) -> Option<Result<PathBuf, Error>> {
        let CertificateProvider::WorkloadApi(api) = provider else {
            return None;
        };
        let variable = std::env::var(SOCKET_VARIABLE).ok();
        Some(api.socket(variable).map_err(Error::certificate))
    }

    pub(crate) fn config_of(
        &self,
        provider: &CertificateProvider,
    ) -> Result<crate::certificate::CertificateConfig, Error> {
        match provider {
            CertificateProvider::MeshCsr(csr) => {
                let server = csr
                    .server_uri
                    .clone()
                    .or_else(|| self.servers.first().map(|server| server.uri.clone()))
                    .ok_or_else(|| Error::certificate("there is no server to sign with"))?;
                // The signer is reached as the control plane at the same address is.
                let known = self.servers.iter().find(|known| known.uri == server);
                let channel = known.map(|known| known.channel.clone());
                let mut config = crate::certificate::CertificateConfig::new(server);
                config.channel = channel.unwrap_or_default();
                config.token_file = csr.token_file.clone();
                Ok(config)
            }
            CertificateProvider::FileWatcher(_) => Err(Error::certificate(format!(
                "plugin {FILE_WATCHER:?} reads files and asks no signer"
            ))),
            CertificateProvider::WorkloadApi(_) => Err(Error::certificate(format!(
                "plugin {SPIFFE_WORKLOAD_API:?} follows an agent and asks no signer"
            ))),
            CertificateProvider::Unsupported { plugin_name } => Err(Error::certificate(format!(
                "plugin {plugin_name:?} is not supported; supported are {MESH_CSR:?}, \
                 {FILE_WATCHER:?} and {SPIFFE_WORKLOAD_API:?}"
            ))),
        }
    }
}

/// The authority and the name in a target.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let Some(rest) = target.strip_prefix("xds:") else {
        return (None, target);
    };
    let with_authority = rest
        .strip_prefix("//")
        .and_then(|rest| rest.split_once('/'));
    match with_authority {
        Some((authority, path)) if !authority.is_empty() => (Some(authority), path),
        _ => (None, rest.trim_start_matches('/')),
    }
}

/// The template of an authority that has none.
fn authority_template(name: &str) -> String {
    format!("xdstp://{name}/envoy.config.listener.v3.Listener/%s")
}

fn fill(template: &str, name: &str) -> String {
    if template.starts_with("xdstp:") {
        template.replace("%s", &percent_encode(name))
    } else {
        template.replace("%s", name)
    }
}

/// Encodes what may not stand in an RFC 3986 path; `/` stays.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => encoded.push(byte.into()),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+'
            | b',' | b';' | b'=' | b':' | b'@' | b'/' => encoded.push(byte.into()),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}
