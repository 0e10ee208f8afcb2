//! The plugin `spiffe_workload_api`: an identity from SPIFFE's Workload API, for example of SPIRE.

use std::path::PathBuf;

use mesh_core::name::SecretName;
use serde::Deserialize;

use super::TRUST_BUNDLE;

/// The plugin's name.
pub const SPIFFE_WORKLOAD_API: &str = "spiffe_workload_api";

/// Environment variable that says where the Workload API is (SPIFFE Workload Endpoint §4).
pub const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Settings of the plugin [`SPIFFE_WORKLOAD_API`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkloadApi {
    /// The agent's socket; `None` takes that of [`SOCKET_VARIABLE`].
    pub endpoint_socket: Option<PathBuf>,
    /// SDS name by which the control plane means the bundles. Default [`TRUST_BUNDLE`].
    pub trust_bundle: SecretName,
}

impl Default for WorkloadApi {
    fn default() -> Self {
        Self {
            endpoint_socket: None,
            trust_bundle: TRUST_BUNDLE.into(),
        }
    }
}

#[derive(Default, Deserialize)]
pub(super) struct WorkloadApiDocument {
    endpoint_socket: Option<String>,
    trust_bundle: Option<String>,
}

impl WorkloadApiDocument {
    pub(super) fn parse(self) -> Result<WorkloadApi, (String, String)> {
        let socket = self.endpoint_socket.as_deref().map(socket).transpose();
        let defaults = WorkloadApi::default();
        Ok(WorkloadApi {
            endpoint_socket: socket.map_err(|reason| (".endpoint_socket".to_owned(), reason))?,
            trust_bundle: self
                .trust_bundle
                .map_or(defaults.trust_bundle, |name| name.as_str().into()),
        })
    }
}

impl WorkloadApi {
    /// The socket, with what the environment says.
    pub(crate) fn socket(&self, variable: Option<String>) -> Result<PathBuf, String> {
        match (&self.endpoint_socket, variable) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(text)) => socket(&text).map_err(|e| format!("{SOCKET_VARIABLE}: {e}")),
            (None, None) => Err(format!(
                "plugin {SPIFFE_WORKLOAD_API:?}: set endpoint_socket, or {SOCKET_VARIABLE}"
            )),
        }
    }
}

/// `unix:///PATH`, without authority, query and fragment.
fn socket(text: &str) -> Result<PathBuf, String> {
    let path = text
        .strip_prefix("unix:")
        .map(|path| path.strip_prefix("//").unwrap_or(path));
    match path {
        Some(path) if path.starts_with('/') && path.len() > 1 && !path.contains(['?', '#']) => {
            Ok(path.into())
        }
        _ => Err(format!(
            "{text:?}: write unix:///PATH; TCP is not supported"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_of_this_machine() {
        for text in ["unix:///run/agent.sock", "unix:/run/agent.sock"] {
            assert_eq!(socket(text), Ok("/run/agent.sock".into()), "{text}");
        }
        for text in [
            "tcp://127.0.0.1:8081",
            "unix://host/run/agent.sock",
            "unix:///a?b",
            "unix:///a#b",
            "unix:",
            "unix:///",
            "/run/agent.sock",
            "",
        ] {
            assert!(socket(text).unwrap_err().contains("unix:///PATH"), "{text}");
        }
    }

    #[test]
    fn the_environment_says_where_the_socket_is_unless_the_bootstrap_does() {
        let mut api = WorkloadApi::default();
        let variable = || Some("unix:///env".to_owned());
        assert_eq!(api.socket(variable()), Ok("/env".into()));
        let error = api.socket(None).unwrap_err();
        assert!(
            error.contains("set endpoint_socket, or SPIFFE_ENDPOINT_SOCKET"),
            "{error}"
        );
        let error = api.socket(Some("tcp://a:1".into())).unwrap_err();
        assert!(
            error.contains("SPIFFE_ENDPOINT_SOCKET: \"tcp://a:1\""),
            "{error}"
        );
        api.endpoint_socket = Some("/own".into());
        assert_eq!(api.socket(variable()), Ok("/own".into()));
    }
}
