//! The session of one request, and what keeps it: a cookie, or a header.
//!
//! Read before the cluster is chosen, which a cookie may decide (gRFC A60); written when it is known
//! which endpoint answers. A header names the endpoint alone, as in Envoy: weights decide about the cluster.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, HeaderValue, header::SET_COOKIE};

use crate::{
    balance::SessionCookie,
    config::{SessionCookieConfig, SessionState, StatefulSession},
    route::{GeneratedCookie, RequestView, find_cookie},
};

/// The session of one request.
#[derive(Clone, Debug)]
pub struct Session {
    config: Arc<StatefulSession>,
    found: Option<SessionCookie>,
    /// What the request brought names something that is no endpoint.
    is_strange: bool,
}

impl Session {
    /// `None` for a request outside of the cookie's path. What cannot be understood is none.
    pub fn of(config: &Arc<StatefulSession>, request: &RequestView<'_>) -> Option<Self> {
        let cookie;
        let (value, parse): (_, fn(&str) -> _) = match &config.state {
            SessionState::Cookie(state) if !holds_for(&state.path, request.path) => return None,
            SessionState::Cookie(state) => {
                cookie = find_cookie(request, &state.name);
                (cookie.as_deref(), SessionCookie::parse)
            }
            SessionState::Header(name) => {
                let value = request.headers.get(name);
                let value = value.and_then(|value| value.to_str().ok());
                (value, SessionCookie::parse_address)
            }
        };
        let found = value.and_then(|value| parse(value).ok());
        Some(Self {
            config: Arc::clone(config),
            is_strange: found.is_none() && value.is_some_and(SessionCookie::says_something),
            found,
        })
    }

    /// Whether the request names an endpoint that there cannot be, and no other will do: it fails, as in
    /// Envoy. What is no base64 names none.
    pub fn is_lost(&self) -> bool {
        self.is_strange && self.config.strict
    }

    /// The endpoint of earlier requests.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.found.as_ref()?.addresses.first().copied()
    }

    /// The cluster of earlier requests.
    pub fn cluster(&self) -> Option<&str> {
        self.found.as_ref()?.cluster.as_deref()
    }

    /// Whether no other endpoint will do.
    pub fn is_strict(&self) -> bool {
        self.config.strict
    }

    /// Tells the caller, in the response's headers, that `endpoint` of `cluster` has answered; not when it
    /// knows.
    pub fn tell(&self, endpoint: SocketAddr, cluster: &str, headers: &mut HeaderMap) {
        let is_same = self.endpoint() == Some(endpoint);
        match &self.config.state {
            SessionState::Cookie(_) if is_same && self.cluster() == Some(cluster) => {}
            SessionState::Cookie(config) => {
                if let Ok(cookie) = cookie(config, endpoint, cluster).header.try_into() {
                    headers.append(SET_COOKIE, cookie);
                }
            }
            SessionState::Header(_) if is_same => {}
            SessionState::Header(name) => {
                if let Ok(value) = HeaderValue::try_from(held(endpoint, None).format()) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

fn held(endpoint: SocketAddr, cluster: Option<&str>) -> SessionCookie {
    SessionCookie {
        addresses: vec![endpoint],
        cluster: cluster.map(str::to_owned),
    }
}

fn cookie(config: &SessionCookieConfig, endpoint: SocketAddr, cluster: &str) -> GeneratedCookie {
    let SessionCookieConfig {
        name,
        ttl,
        path,
        attributes,
    } = config;
    let value = held(endpoint, Some(cluster)).format();
    GeneratedCookie::new(name, &value, ttl.unwrap_or_default(), path, attributes)
}

/// Whether a cookie of `cookie_path` is sent with requests for `path` (RFC 6265, 5.1.4).
fn holds_for(cookie_path: &str, path: &str) -> bool {
    match path.strip_prefix(cookie_path) {
        Some(rest) => rest.is_empty() || cookie_path.ends_with('/') || rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, Method};

    use super::*;

    fn by_cookie(path: &str) -> SessionState {
        SessionState::Cookie(SessionCookieConfig {
            name: "s".into(),
            ttl: Some(std::time::Duration::from_secs(60)),
            path: path.into(),
            attributes: Vec::new(),
        })
    }

    fn by_header() -> SessionState {
        SessionState::Header(HeaderName::from_static("x-session"))
    }

    fn session(
        state: SessionState,
        path: &str,
        header: Option<(&'static str, &str)>,
    ) -> Option<Session> {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value.parse().unwrap());
        }
        let uri = path.parse().unwrap();
        let view = RequestView::new(&Method::GET, &uri, "a", &headers);
        let config = StatefulSession {
            state,
            strict: false,
        };
        Session::of(&Arc::new(config), &view)
    }

    /// What the caller is told.
    fn told(session: &Session, endpoint: SocketAddr, cluster: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        session.tell(endpoint, cluster, &mut headers);
        assert!(headers.len() < 2);
        let value = headers.values().next()?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_session_holds_below_the_path_of_its_cookie() {
        for (path, request, holds) in [
            ("", "/x", true),
            ("/", "/x", true),
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a/", "/a/b", true),
            ("/a", "/ab", false),
            ("/a/", "/a", false),
        ] {
            let session = session(by_cookie(path), request, None);
            assert_eq!(session.is_some(), holds, "{path} {request}");
        }
        assert!(session(by_header(), "/any/path", None).is_some());
    }

    #[test]
    fn a_cookie_brings_back_what_it_was_made_from_and_is_not_set_again() {
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let first = session(by_cookie("/"), "/", None).unwrap();
        let made = told(&first, endpoint, "c").unwrap();
        assert!(made.ends_with("; Max-Age=60; Path=/; HttpOnly"), "{made}");
        let (pair, _) = made.split_once(';').unwrap();
        let back = session(by_cookie("/"), "/", Some(("cookie", pair))).unwrap();
        assert_eq!(
            (back.endpoint(), back.cluster()),
            (Some(endpoint), Some("c"))
        );
        assert_eq!(told(&back, endpoint, "c"), None);
        assert!(told(&back, endpoint, "d").is_some(), "another cluster");
        let damaged = session(by_cookie("/"), "/", Some(("cookie", "s=!"))).unwrap();
        assert!(damaged.endpoint().is_none() && told(&damaged, endpoint, "c").is_some());
    }

    #[test]
    fn a_header_names_the_endpoint_as_envoy_does_and_no_cluster() {
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let first = session(by_header(), "/", None).unwrap();
        let made = told(&first, endpoint, "c").unwrap();
        assert_eq!(made, "MTAuMC4wLjE6ODA=", "base64 of 10.0.0.1:80");
        let back = session(by_header(), "/", Some(("x-session", &made))).unwrap();
        assert_eq!((back.endpoint(), back.cluster()), (Some(endpoint), None));
        assert_eq!(told(&back, endpoint, "c"), None);
        assert_eq!(told(&back, endpoint, "d"), None, "the cluster is not said");
        let other = SocketAddr::from(([10, 0, 0, 2], 80));
        assert!(told(&back, other, "c").is_some(), "another endpoint");
        // What a cookie would say is no address.
        let cookie = held(endpoint, Some("c")).format();
        for wrong in ["!", "", &cookie] {
            let session = session(by_header(), "/", Some(("x-session", wrong))).unwrap();
            assert_eq!(session.endpoint(), None, "{wrong}");
        }
    }

    #[test]
    fn a_strict_session_is_lost_when_it_names_what_is_no_endpoint() {
        // Base64 of "nowhere" and of an address without a port.
        let strange = ["bm93aGVyZQ==", "MTAuMC4wLjE="];
        // Nothing, no base64, no whole base64, bits that say nothing.
        let nothing = ["", "!", "bm93aGVyZQ", "bm93aGVyZR=="];
        for strict in [false, true] {
            for (values, is_strange) in [(strange.as_slice(), true), (&nothing, false)] {
                for value in values {
                    let mut found = session(by_header(), "/", Some(("x-session", value))).unwrap();
                    found.config = Arc::new(StatefulSession {
                        state: by_header(),
                        strict,
                    });
                    assert_eq!(found.is_lost(), strict && is_strange, "{value:?}");
                }
            }
        }
    }
}
