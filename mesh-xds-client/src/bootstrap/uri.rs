//! Where a server is: `http://host:port`, `host:port`, `dns:///host:port`, `unix:/path`.
//!
//! Parses and prints. Does not resolve. The forms are those of gRPC naming that a plaintext
//! channel can use.

use std::{fmt, path::PathBuf};

/// Address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUri {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// `host:port`
    Tcp(String),
    Unix(PathBuf),
}

impl ServerUri {
    /// Reads one of the forms above.
    ///
    /// # Errors
    /// Text that says what is wrong and which forms are known.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(format!("{text:?} names no socket"));
            }
            return Ok(Self {
                kind: Kind::Unix(path.into()),
            });
        }
        if text.starts_with("https:") {
            return Err(format!(
                "{text:?} asks for TLS, which channel credentials \"insecure\" cannot give; \
                 write http://host:port"
            ));
        }
        let rest = ["http://", "dns:///", "dns:"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .unwrap_or(text);
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let parsed: http::uri::Authority = authority.parse().map_err(|_| unknown(text))?;
        if parsed.port_u16().is_none() || parsed.host().is_empty() || authority.contains('@') {
            return Err(unknown(text));
        }
        Ok(Self {
            kind: Kind::Tcp(authority.to_owned()),
        })
    }

    /// The URI for an HTTP/2 client. A socket path has a made-up authority.
    pub(crate) fn http_uri(&self) -> String {
        match &self.kind {
            Kind::Tcp(authority) => format!("http://{authority}"),
            Kind::Unix(_) => "http://localhost".into(),
        }
    }

    /// The socket's path, if it is one.
    pub(crate) fn unix_path(&self) -> Option<&PathBuf> {
        match &self.kind {
            Kind::Unix(path) => Some(path),
            Kind::Tcp(_) => None,
        }
    }

    /// Authority and host, if it is not a socket's path.
    pub(crate) fn host(&self) -> Option<(&str, &str)> {
        let Kind::Tcp(authority) = &self.kind else {
            return None;
        };
        let (host, _) = authority.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some((authority, host))
    }

    /// Whether what is sent stays on this machine.
    pub(crate) fn is_local(&self) -> bool {
        match &self.kind {
            Kind::Unix(_) => true,
            Kind::Tcp(authority) => {
                let host = authority
                    .rsplit_once(':')
                    .map_or(authority.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                host == "localhost"
                    || host
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

fn unknown(text: &str) -> String {
    format!(
        "{text:?} is not an address; write http://host:port, host:port, dns:///host:port or \
         unix:/path"
    )
}

impl fmt::Display for ServerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Tcp(authority) => f.write_str(authority),
            Kind::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
