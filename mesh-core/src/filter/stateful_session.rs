//! The session of one request, and the cookie that keeps it.
//!
//! Read before the cluster is chosen, which the session may decide (gRFC A60); written when it is
//! known which endpoint answers.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    balance::SessionCookie,
    config::StatefulSession,
    route::{GeneratedCookie, RequestView, find_cookie},
};

/// The session of one request.
#[derive(Clone, Debug)]
pub struct Session {
    config: Arc<StatefulSession>,
    found: Option<SessionCookie>,
}

impl Session {
    /// `None` for a request outside of the cookie's path. A cookie that cannot be understood is none.
    pub fn of(config: &Arc<StatefulSession>, request: &RequestView<'_>) -> Option<Self> {
        holds_for(&config.path, request.path).then(|| {
            let cookie = find_cookie(request, &config.name);
            Self {
                config: Arc::clone(config),
                found: cookie.and_then(|value| SessionCookie::parse(&value).ok()),
            }
        })
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

    /// The cookie to set after `endpoint` of `cluster` has answered; `None` when the caller has it.
    pub fn cookie(&self, endpoint: SocketAddr, cluster: &str) -> Option<GeneratedCookie> {
        if self.endpoint() == Some(endpoint) && self.cluster() == Some(cluster) {
            return None;
        }
        let held = SessionCookie {
            addresses: vec![endpoint],
            cluster: Some(cluster.to_owned()),
        };
        let StatefulSession {
            name,
            ttl,
            path,
            attributes,
            strict: _,
        } = &*self.config;
        let ttl = ttl.unwrap_or_default();
        Some(GeneratedCookie::new(
            name,
            &held.format(),
            ttl,
            path,
            attributes,
        ))
    }
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
    use http::{HeaderMap, Method};

    use super::*;

    fn config(path: &str) -> Arc<StatefulSession> {
        Arc::new(StatefulSession {
            name: "s".into(),
            ttl: Some(std::time::Duration::from_secs(60)),
            path: path.into(),
            attributes: Vec::new(),
            strict: false,
        })
    }

    fn session(path: &str, request: &str, cookie: Option<&str>) -> Option<Session> {
        let mut headers = HeaderMap::new();
        if let Some(cookie) = cookie {
            headers.insert("cookie", cookie.parse().unwrap());
        }
        let uri = request.parse().unwrap();
        let view = RequestView::new(&Method::GET, &uri, "a", &headers);
        Session::of(&config(path), &view)
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
            assert_eq!(
                session(path, request, None).is_some(),
                holds,
                "{path} {request}"
            );
        }
    }

    #[test]
    fn a_cookie_brings_back_what_it_was_made_from_and_is_not_set_again() {
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let made = session("/", "/", None).unwrap();
        let made = made.cookie(endpoint, "c").unwrap().header;
        assert!(made.ends_with("; Max-Age=60; Path=/; HttpOnly"), "{made}");
        let (pair, _) = made.split_once(';').unwrap();
        let back = session("/", "/", Some(pair)).unwrap();
        assert_eq!(
            (back.endpoint(), back.cluster()),
            (Some(endpoint), Some("c"))
        );
        assert!(back.cookie(endpoint, "c").is_none());
        assert!(back.cookie(endpoint, "d").is_some(), "another cluster");
        let damaged = session("/", "/", Some("s=!")).unwrap();
        assert!(damaged.endpoint().is_none() && damaged.cookie(endpoint, "c").is_some());
    }
}
