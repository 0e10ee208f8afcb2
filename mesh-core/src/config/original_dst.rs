//! Clusters whose requests say themselves which address they go to (Envoy `ORIGINAL_DST`).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that Envoy reads where the configuration names no other.
pub const ORIGINAL_DST_HEADER: HeaderName = HeaderName::from_static("x-envoy-original-dst-host");

/// Default of [`OriginalDst::cleanup_interval`] (Envoy `Cluster.cleanup_interval`).
pub const CLEANUP_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);

/// How a request names its address (Envoy `OriginalDstLbConfig`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalDst {
    /// The header that names it, as `ADDRESS:PORT`; a request without it goes where its URI says. Default
    /// none: no header has a say.
    pub http_header: Option<HeaderName>,
    /// The port to connect to, whatever the request says; not 0. Default none.
    pub port_override: Option<u16>,
    /// An address that no request named for so long is forgotten. Default
    /// [`CLEANUP_INTERVAL_DEFAULT`].
    pub cleanup_interval: Duration,
}

impl Default for OriginalDst {
    fn default() -> Self {
        Self {
            http_header: None,
            port_override: None,
            cleanup_interval: CLEANUP_INTERVAL_DEFAULT,
        }
    }
}

impl OriginalDst {
    /// The address of a request to `authority`; a port that is not said is `default_port`.
    ///
    /// # Errors
    /// When the request names none: a name is no address, and a header that is malformed, or there
    /// twice, is not passed over.
    pub fn destination(
        &self,
        headers: &HeaderMap,
        authority: Option<&str>,
        default_port: u16,
    ) -> Result<SocketAddr, String> {
        let mut named = match &self.http_header {
            Some(name) => self.of_header(name, headers)?,
            None => None,
        };
        if named.is_none() {
            named = Some(of_authority(authority.unwrap_or_default(), default_port)?);
        }
        let address = named.map(|named| match self.port_override {
            Some(port) => SocketAddr::new(named.ip(), port),
            None => named,
        });
        match address {
            Some(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(address),
            _ => Err("the address that the request names is none to connect to".to_owned()),
        }
    }

    fn of_header(
        &self,
        name: &HeaderName,
        headers: &HeaderMap,
    ) -> Result<Option<SocketAddr>, String> {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(format!("header {name} is there twice"));
        }
        let read = |value: &HeaderValue| value.to_str().ok()?.trim().parse().ok();
        match read(value) {
            Some(address) => Ok(Some(address)),
            None => Err(format!("header {name} is {value:?}, not ADDRESS:PORT")),
        }
    }
}

fn of_authority(authority: &str, default_port: u16) -> Result<SocketAddr, String> {
    let host = authority.rsplit('@').next().unwrap_or_default();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let address = bare.unwrap_or(host).parse::<IpAddr>();
    let address = address.map(|address| SocketAddr::new(address, default_port));
    address.or_else(|_| host.parse()).map_err(|_| {
        format!(
            "{authority:?} is a name: a cluster of type ORIGINAL_DST (resolution NONE, PASSTHROUGH) sends \
             to the address in the request's URI; write resolution DNS for names"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(ORIGINAL_DST_HEADER, value.parse().expect("a value"))])
    }

    fn check(config: &OriginalDst, headers: &HeaderMap, authority: &str, expected: Option<&str>) {
        let found = config.destination(headers, Some(authority), 80);
        let found = found.ok().map(|address| address.to_string());
        assert_eq!(found.as_deref(), expected, "{authority} {headers:?}");
    }

    #[test]
    fn the_authority_is_an_address_with_or_without_a_port() {
        let config = OriginalDst::default();
        for (authority, expected) in [
            ("10.0.0.1", Some("10.0.0.1:80")),
            ("10.0.0.1:8080", Some("10.0.0.1:8080")),
            ("[::1]", Some("[::1]:80")),
            ("[::1]:8080", Some("[::1]:8080")),
            ("user@10.0.0.1", Some("10.0.0.1:80")),
            ("10.0.0.1:0", None),
            ("0.0.0.0:80", None),
            ("a.example:80", None),
            ("", None),
        ] {
            check(&config, &HeaderMap::new(), authority, expected);
        }
        assert!(config.destination(&HeaderMap::new(), None, 80).is_err());
    }

    #[test]
    fn a_header_has_a_say_only_where_the_configuration_names_it() {
        let none = OriginalDst::default();
        let named = OriginalDst {
            http_header: Some(ORIGINAL_DST_HEADER),
            ..OriginalDst::default()
        };
        let elsewhere = header("10.0.0.9:90");
        check(&none, &elsewhere, "10.0.0.1", Some("10.0.0.1:80"));
        check(&named, &elsewhere, "10.0.0.1", Some("10.0.0.9:90"));
        check(&named, &elsewhere, "a.example", Some("10.0.0.9:90"));
        check(&named, &HeaderMap::new(), "10.0.0.1", Some("10.0.0.1:80"));
        // What is wrong is not passed over.
        for wrong in ["10.0.0.9", "a.example:80", "", "10.0.0.9:0", "0.0.0.0:1"] {
            check(&named, &header(wrong), "10.0.0.1", None);
        }
        let mut twice = header("10.0.0.9:90");
        twice.append(ORIGINAL_DST_HEADER, "10.0.0.8:90".parse().expect("a value"));
        check(&named, &twice, "10.0.0.1", None);
    }

    #[test]
    fn the_port_can_be_another() {
        let config = OriginalDst {
            http_header: Some(ORIGINAL_DST_HEADER),
            port_override: Some(15001),
            ..OriginalDst::default()
        };
        check(&config, &header("10.0.0.9:90"), "", Some("10.0.0.9:15001"));
        check(
            &config,
            &HeaderMap::new(),
            "10.0.0.1",
            Some("10.0.0.1:15001"),
        );
    }
}
