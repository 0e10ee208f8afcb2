//! Where a request may hold a token.

use http::{HeaderMap, HeaderName, Uri, header, uri::PathAndQuery};
use mesh_core::config::JwtProvider;

/// One place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Location {
    Header { name: HeaderName, prefix: String },
    Parameter(String),
    Cookie(String),
}

impl Location {
    /// The places of a provider; without any those of RFC 6750.
    pub(super) fn all_of(config: &JwtProvider) -> Box<[Self]> {
        let headers = config.from_headers.iter().filter_map(|location| {
            Some(Self::Header {
                name: HeaderName::from_bytes(location.name.as_bytes()).ok()?,
                prefix: location.value_prefix.clone(),
            })
        });
        let parameters = config.from_params.iter().cloned().map(Self::Parameter);
        let cookies = config.from_cookies.iter().cloned().map(Self::Cookie);
        let all: Box<[_]> = headers.chain(parameters).chain(cookies).collect();
        if !all.is_empty() {
            return all;
        }
        let bearer = Self::Header {
            name: header::AUTHORIZATION,
            prefix: "Bearer ".to_owned(),
        };
        [bearer, Self::Parameter("access_token".to_owned())].into()
    }

    /// The tokens that are there.
    pub(super) fn tokens<'r>(&self, headers: &'r HeaderMap, uri: &'r Uri) -> Vec<&'r str> {
        match self {
            Self::Header { name, prefix } => headers
                .get_all(name)
                .iter()
                .filter_map(|value| value.to_str().ok()?.strip_prefix(prefix.as_str()))
                .map(str::trim)
                .collect(),
            Self::Parameter(name) => pairs(uri.query().unwrap_or_default(), '&')
                .filter_map(|(key, value)| (key == name).then_some(value))
                .collect(),
            Self::Cookie(name) => headers
                .get_all(header::COOKIE)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| pairs(value, ';'))
                .filter_map(|(key, value)| (key.trim() == name).then_some(value.trim()))
                .collect(),
        }
    }

    /// Takes the tokens away; returns the URI without them, if it held any. A cookie stays, because
    /// the header holds others.
    pub(super) fn remove(&self, headers: &mut HeaderMap, uri: &Uri) -> Option<Uri> {
        match self {
            Self::Header { name, .. } => {
                headers.remove(name);
                None
            }
            Self::Parameter(name) => without_parameter(uri, name),
            Self::Cookie(_) => None,
        }
    }
}

fn pairs(text: &str, separator: char) -> impl Iterator<Item = (&str, &str)> {
    text.split(separator)
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn without_parameter(uri: &Uri, name: &str) -> Option<Uri> {
    let query = uri.query()?;
    let key = |pair: &str| pair.split('=').next() == Some(name);
    let kept: Vec<_> = query.split('&').filter(|pair| !key(pair)).collect();
    let path = match kept.as_slice() {
        [] => uri.path().to_owned(),
        kept => format!("{}?{}", uri.path(), kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}
