//! External authorisation: who is asked, what about, and what an answer does (Envoy `ExtAuthz`,
//! `service.auth.v3`; gRFC A92).
//!
//! Nothing is sent or read here: [`ExternalCheck`] says whether a request is to be checked and what the service
//! is told, [`CheckVerdict`] is what it said. A verdict whose changes cannot be made is no verdict.
//! Deviations from Envoy: pseudo-headers and `host` cannot be changed, as the request was routed and
//! authorised by them; a change that cannot be made refuses the request, whether or not
//! `validate_mutations` asks for that.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde_json::Value;

use crate::{
    config::{CheckBody, DynamicMetadata, ExtAuthz, ExtAuthzSettings, joined},
    rng::Rng,
    route::RequestView,
};

/// The namespace of what services say beside their verdicts in the dynamic metadata, as in Envoy.
pub const EXT_AUTHZ_NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// The path of checks; one that is to be checked itself would never end.
pub const CHECK_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Says of a request that it passes because the service could not be asked (Envoy).
const FAILURE_MODE_ALLOWED: HeaderName =
    HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// Says of a check whether it has the whole body (Envoy).
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// What services are always told over HTTP (Envoy).
const ALWAYS_TOLD_OVER_HTTP: [&str; 4] = [":authority", ":method", ":path", "authorization"];

/// A check by another service, for the requests of a route.
#[derive(Clone, Debug)]
pub struct ExternalCheck {
    config: Arc<ExtAuthz>,
    context_extensions: Arc<BTreeMap<String, String>>,
    body: Option<CheckBody>,
}

/// The beginning of a request's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedBody {
    /// What there is of it.
    pub data: Bytes,
    /// Whether there is more.
    pub is_partial: bool,
}

/// Whether a request is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The service must be asked.
    Check,
    /// It passes unchecked.
    Pass,
    /// It is refused unchecked.
    Refuse,
}

impl ExternalCheck {
    /// `levels` from the least specific, which is the listener's. `None` when nobody is asked.
    pub(super) fn new<'c>(levels: impl Iterator<Item = &'c ExtAuthzSettings>) -> Option<Self> {
        let (mut config, mut extensions) = (None, BTreeMap::new());
        let mut body = None;
        for level in levels {
            config = level.service.as_ref().or(config);
            body = level.body.or(body);
            let more = level.context_extensions.iter();
            extensions.extend(more.map(|(key, value)| (key.clone(), value.clone())));
        }
        let config = Arc::clone(config?);
        Some(Self {
            body: body.unwrap_or(config.body),
            config,
            context_extensions: Arc::new(extensions),
        })
    }

    /// How much of a request's body the service is told; `None` for nothing.
    pub fn body(&self) -> Option<&CheckBody> {
        self.body.as_ref()
    }

    /// Who is asked.
    pub fn config(&self) -> &Arc<ExtAuthz> {
        &self.config
    }

    /// Whether a request of which other filters said `metadata` is checked.
    pub fn need(&self, path: &str, metadata: Option<&DynamicMetadata>, rng: &mut impl Rng) -> Need {
        let config = &self.config;
        let is_on = config
            .enabled
            .is_none_or(|share| share.contains(rng.next_u64()));
        let is_meant = config
            .enabled_metadata
            .as_ref()
            .is_none_or(|matcher| matcher.is_match(metadata));
        match is_on && is_meant {
            true if path == CHECK_PATH => Need::Refuse,
            true => Need::Check,
            false if config.deny_at_disable => Need::Refuse,
            false => Need::Pass,
        }
    }

    /// What the service is told about a request; `body` is what was read of it, where it is told that, and
    /// `metadata` what other filters said.
    pub fn request<'r>(
        &'r self,
        caller: Caller<'r>,
        view: &RequestView<'r>,
        body: Option<&CheckedBody>,
        metadata: Option<&'r DynamicMetadata>,
    ) -> CheckRequest<'r> {
        let mut headers = BTreeMap::new();
        for name in view.headers.keys() {
            let name = name.as_str();
            // HTTP/1.1's `host` is `:authority` to everybody behind.
            if name != "host" && self.tells(name) {
                headers.extend(joined(view.headers, name).map(|value| (name, value.into_owned())));
            }
        }
        for name in [":authority", ":method", ":path"] {
            if self.tells(name) {
                headers.extend(view.header(name).map(|value| (name, value.into_owned())));
            }
        }
        if self.tells(":scheme") {
            headers.insert(":scheme", caller.scheme.to_owned());
        }
        if let (Some(body), Some(_)) = (body, &self.body) {
            let is_partial = if body.is_partial { "true" } else { "false" };
            headers.insert(PARTIAL_BODY, is_partial.to_owned());
        }
        let namespaces = self.config.metadata_namespaces.iter();
        let metadata = namespaces.filter_map(|name| Some((name.as_str(), metadata?.get(name)?)));
        CheckRequest {
            caller,
            view: *view,
            headers,
            context_extensions: &self.context_extensions,
            tells_server_name: self.config.include_tls_session,
            certificate: caller
                .certificate
                .filter(|_| self.config.include_peer_certificate),
            body: self.told(body),
            packs_body: self.body.is_some_and(|config| config.pack_as_bytes),
            metadata: metadata.collect(),
        }
    }

    /// A body as the service is told it.
    fn told(&self, body: Option<&CheckedBody>) -> Option<CheckedBody> {
        let (config, body) = (self.body.as_ref()?, body?);
        if config.pack_as_bytes || std::str::from_utf8(&body.data).is_ok() {
            return Some(body.clone());
        }
        // As Envoy does it.
        let mut text = String::with_capacity(body.data.len());
        for chunk in body.data.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '!'));
        }
        Some(CheckedBody {
            data: text.into(),
            is_partial: body.is_partial,
        })
    }

    fn tells(&self, name: &str) -> bool {
        let config = &self.config;
        let is_allowed = match (&config.allowed_headers, &config.http) {
            (_, Some(_)) if ALWAYS_TOLD_OVER_HTTP.contains(&name) => true,
            (None, http) => http.is_none(),
            (Some(allowed), _) => allowed.iter().any(|one| one.is_match(name)),
        };
        is_allowed
            && !config
                .disallowed_headers
                .iter()
                .any(|one| one.is_match(name))
    }

    /// Marks a request that passes because the service could not be asked, where that is wanted.
    pub fn mark_unchecked(&self, headers: &mut HeaderMap) {
        if self.config.failure_mode_allow_header_add {
            headers.insert(FAILURE_MODE_ALLOWED, HeaderValue::from_static("true"));
        }
    }
}

/// Who asks for something, and how.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'r> {
    /// The caller's address.
    pub source: SocketAddr,
    /// The name that its certificate proves; empty without one.
    pub principal: &'r str,
    /// The address that the request arrived on.
    pub destination: SocketAddr,
    /// The name that it asked for in its TLS handshake; empty without one.
    pub server_name: &'r str,
    /// `http` or `https`.
    pub scheme: &'r str,
    /// `HTTP/1.1` or `HTTP/2`, as on the wire.
    pub protocol: &'static str,
    /// When it began.
    pub time: SystemTime,
    /// Whether a body may follow.
    pub has_body: bool,
    /// Its certificate, as DER; `None` without one.
    pub certificate: Option<&'r [u8]>,
}

/// What a service is told about a request (`AttributeContext`).
#[derive(Clone, Debug)]
pub struct CheckRequest<'r> {
    /// Who asks.
    pub caller: Caller<'r>,
    /// For what.
    pub view: RequestView<'r>,
    /// The headers that the service may see, pseudo-headers among them.
    pub headers: BTreeMap<&'r str, String>,
    /// What routes say besides.
    pub context_extensions: &'r BTreeMap<String, String>,
    /// Whether the service is told the server name.
    pub tells_server_name: bool,
    /// The caller's certificate, where the service is told it, as DER.
    pub certificate: Option<&'r [u8]>,
    /// What it is told of the body.
    pub body: Option<CheckedBody>,
    /// Whether that is bytes and not text.
    pub packs_body: bool,
    /// What it is told of what other filters said.
    pub metadata: Vec<(&'r str, &'r Value)>,
}

/// What a service said (`CheckResponse`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckVerdict {
    /// The request may pass, changed like this.
    Allowed(Box<Allowed>),
    /// It may not.
    Denied(Box<Denied>),
    /// The service says of itself that it failed (`error_response`).
    Failed(Box<Denied>),
}

/// How a request that may pass is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Headers of the request.
    pub request: Vec<HeaderEdit>,
    /// Headers that the request loses, after that.
    pub remove: Vec<HeaderName>,
    /// Headers of the response.
    pub response: Vec<HeaderEdit>,
    /// Query parameters that get one value, as it stands in the URI.
    pub query_set: Vec<(String, String)>,
    /// Query parameters that go.
    pub query_remove: Vec<String>,
    /// What filters behind may look at: an object, in [`EXT_AUTHZ_NAMESPACE`].
    pub metadata: Option<Value>,
}

/// What the caller gets instead of the application's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    /// `None` is 403, or the configured `status_on_error`.
    pub status: Option<u16>,
    /// Headers.
    pub headers: Vec<HeaderEdit>,
    /// Body, or gRPC message.
    pub body: String,
}

/// One change of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Name.
    pub name: HeaderName,
    /// Value.
    pub value: HeaderValue,
    /// What if it is there.
    pub action: EditAction,
}

/// What if a header is there that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditAction {
    /// One more.
    Append,
    /// The value is joined with the first one by `,`; nothing happens where there is none.
    Join,
    /// Nothing happens.
    AddIfAbsent,
    /// It goes.
    Overwrite,
    /// It goes; nothing happens where there is none.
    OverwriteIfExists,
}

impl HeaderEdit {
    /// Makes the change.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let (name, value) = (&self.name, &self.value);
        let is_there = headers.contains_key(name);
        match self.action {
            EditAction::Join => {
                if let Some(held) = headers.get_mut(name) {
                    let joined = [held.as_bytes(), b",", value.as_bytes()].concat();
                    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                        *held = joined;
                    }
                }
            }
            EditAction::Append => _ = headers.append(name, value.clone()),
            EditAction::AddIfAbsent if is_there => {}
            EditAction::OverwriteIfExists if !is_there => {}
            EditAction::AddIfAbsent | EditAction::Overwrite | EditAction::OverwriteIfExists => {
                headers.insert(name, value.clone());
            }
        }
    }
}

impl Allowed {
    /// Makes of the request's headers and URI what the application sees; returns the new URI, if it
    /// changes.
    ///
    /// # Errors
    /// When the query would be none.
    pub fn apply(&self, headers: &mut HeaderMap, uri: &Uri) -> Result<Option<Uri>, http::Error> {
        for edit in &self.request {
            edit.apply(headers);
        }
        for name in &self.remove {
            headers.remove(name);
        }
        if self.query_set.is_empty() && self.query_remove.is_empty() {
            return Ok(None);
        }
        // Those that are set take the place of the first of their name.
        let mut set: Vec<_> = self.query_set.iter().map(Some).collect();
        let mut query = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&') {
            let name = pair.split('=').next().unwrap_or_default();
            let is_set = |one: &&(String, String)| one.0 == name;
            if let Some(at) = self.query_set.iter().position(|one| is_set(&one)) {
                query.extend(
                    set[at]
                        .take()
                        .map(|(name, value)| format!("{name}={value}")),
                );
            } else if !pair.is_empty() && !self.query_remove.iter().any(|gone| gone == name) {
                query.push(pair.to_owned());
            }
        }
        let rest = set.into_iter().flatten();
        query.extend(rest.map(|(name, value)| format!("{name}={value}")));
        let path = match query.is_empty() {
            true => uri.path().to_owned(),
            false => format!("{}?{}", uri.path(), query.join("&")),
        };
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(path.try_into()?);
        Ok(Some(Uri::from_parts(parts)?))
    }
}
