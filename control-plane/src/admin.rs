//! The HTTP endpoint for operators: health, metrics, and what the control plane knows.
//!
//! Read-only but for the registry's part, where services register, and the change of roots, for those
//! who hold the [`AdminKey`] of the data directory. Where other machines can ask, all of `/v1/` is for
//! those alone. On an address of this machine alone services register without a key, as with an agent of
//! Consul, and pages in a browser do not. No answer holds a key or a token.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Query, Request, State},
    http::{
        Extensions, HeaderMap, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE, ORIGIN},
    },
    middleware::{Next, from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use crate::{
    audit::{self, Event},
    ca::{self, CaError, ConnectionPeer, Identity},
    cache::{Version, World},
    diagnostic::Diagnostic,
    explain::{ExplainRequest, explain_compiled},
    metrics::Metrics,
    registry::{Registry, consul},
    rotate::Rotator,
    server::{Clients, Progress},
    services, value,
};

/// The media type Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long `/v1/wait` waits unless it is told.
const WAIT: Duration = Duration::from_secs(30);
/// The longest that it can be told to.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Clients or resources in one answer; the others are counted.
const LISTED_MAX: usize = 1_000;
/// Longest body of a request, in bytes.
const BODY_MAX: usize = consul::BODY_MAX;

/// Name of the file with the admin key.
const ADMIN_KEY: &str = "admin.key";

/// What the endpoint shows.
#[derive(Clone, Debug)]
pub struct AdminState {
    /// Served at `/metrics`.
    pub metrics: Metrics,
    /// Whether `/readyz` says yes.
    pub ready: watch::Receiver<bool>,
    /// Served at `/v1/diagnostics`.
    pub diagnostics: Arc<Mutex<Vec<Diagnostic>>>,
    /// Served at `/v1/clients`, `/v1/resources` and `/v1/wait`.
    pub clients: Clients,
    /// Served at `/v1/explain` and `/v1/routes`, and with the registry at `/v1/services`.
    pub world: watch::Receiver<Option<Arc<World>>>,
    /// Services register there by Consul's API.
    pub registry: Registry,
    /// Served at `/v1/ca/rotation`.
    pub rotator: Option<Rotator>,
    /// What those show who change something; without it nobody does.
    pub key: Option<AdminKey>,
    /// Who may do the same by a certificate.
    pub admins: Vec<Identity>,
    /// Whether everybody who can connect may read `/v1/`: on an address of this machine alone.
    pub is_open: bool,
}

impl AdminState {
    /// Writes down that a request was refused that would have changed or read something.
    fn refused(&self, request: &Request, why: &str) {
        let (method, path) = (request.method(), request.uri().path());
        self.registry.audit().refused(&Event {
            principal: &who(request.extensions()),
            object: path,
            action: &format!("admin.{}", method.as_str().to_ascii_lowercase()),
            result: &format!("refused: {why}"),
        });
    }

    fn is_admin(&self, headers: &HeaderMap, peer: Option<&ConnectionPeer>) -> bool {
        let identity = peer.and_then(|peer| peer.identity.as_ref());
        identity.is_some_and(|identity| self.admins.contains(identity))
            || self
                .key
                .as_ref()
                .is_some_and(|key| key.is_shown_in(headers))
    }
}

/// Readers of `/v1/` prove who they are where other machines can ask.
async fn guard(State(state): State<AdminState>, request: Request, next: Next) -> Response {
    let is_probe = !request.uri().path().starts_with("/v1/");
    let peer = request.extensions().get::<ConnectionPeer>();
    let is_admin = state.is_admin(request.headers(), peer);
    // Browsers say where a request that changes something comes from, whatever name the page gave this
    // address; nobody else does.
    let is_page = !request.method().is_safe() && request.headers().contains_key(ORIGIN);
    if is_page && !is_admin {
        state.refused(&request, "a page in a browser");
        return refuse(StatusCode::FORBIDDEN, NO_PAGES);
    }
    if is_probe || state.is_open || is_admin {
        return next.run(request).await;
    }
    state.refused(
        &request,
        "neither the admin key nor the certificate of an admin",
    );
    refuse(StatusCode::UNAUTHORIZED, NEEDS_KEY)
}

/// Names the limit on bodies to who exceeds it.
async fn name_limit(response: Response) -> Response {
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("a body has {BODY_MAX} bytes at most");
            refuse(StatusCode::PAYLOAD_TOO_LARGE, message)
        }
        _ => response,
    }
}

fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(json!({"error": error.into()}))).into_response()
}

const NEEDS_KEY: &str =
    "the key in admin.key of the data directory, or the certificate of an admin, is needed";

const NO_PAGES: &str = "a page in a browser changes nothing here without the admin key";

/// Where Consul's clients put a token.
const CONSUL_TOKEN: &str = "x-consul-token";

/// A secret in the data directory, `admin.key`, made by each start: whoever can read it may change
/// something. An address proves nothing: on the same machine there are other users, and browsers.
#[derive(Clone)]
pub struct AdminKey(Arc<str>);

impl std::fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminKey")
    }
}

/// The routes `/healthz`, `/readyz`, `/metrics`, `/v1/diagnostics`, `/v1/clients`, `/v1/resources`,
/// `/v1/services`, `/v1/wait`, `/v1/explain`, `/v1/routes` and `/v1/ca/rotation`.
pub fn router(state: AdminState) -> Router {
    let registry = consul::router(state.registry.clone());
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/diagnostics", get(diagnostics))
        .route("/v1/clients", get(clients))
        .route("/v1/resources", get(resources))
        .route("/v1/services", get(services))
        .route("/v1/wait", get(wait))
        .route("/v1/explain", get(explain))
        .route("/v1/routes", get(routes))
        .route("/v1/ca/rotation", get(rotation).post(rotate))
        .with_state(state.clone())
        .merge(registry)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(map_response(name_limit))
        .layer(from_fn_with_state(state, guard))
}

type Parameters = Query<BTreeMap<String, String>>;

async fn diagnostics(State(state): State<AdminState>) -> impl IntoResponse {
    let mut found = state
        .diagnostics
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    found.extend(state.clients.withheld());
    found.extend(state.registry.diagnostics());
    Json(found)
}

/// `?node=` selects by a part of the node id, `?class=` by class.
async fn clients(State(state): State<AdminState>, Query(by): Parameters) -> impl IntoResponse {
    let mut found = state.clients.list();
    found.retain(|client| {
        by.get("node")
            .is_none_or(|node| client.node.contains(&**node))
            && by.get("class").is_none_or(|class| client.class == *class)
    });
    found.truncate(LISTED_MAX);
    Json(found)
}

/// `?type=` and `?name=` select resources, `?object=` those that an object has a part in, for
/// example `VirtualService default/greeter`.
async fn resources(State(state): State<AdminState>, Query(by): Parameters) -> impl IntoResponse {
    let mut found = state.clients.resources(|kind, name, objects| {
        by.get("type").is_none_or(|wanted| kind == wanted)
            && by.get("name").is_none_or(|wanted| name == wanted)
            && by
                .get("object")
                .is_none_or(|wanted| objects.contains(wanted))
    });
    let all = found.len();
    found.truncate(LISTED_MAX);
    Json(json!({"resources": found, "all": all}))
}

/// `?service=` selects by `NAME` or `NAMESPACE/NAME`.
async fn services(State(state): State<AdminState>, Query(by): Parameters) -> impl IntoResponse {
    let world = state.world.borrow().clone();
    let compiled = world.as_ref().map(|world| world.compiled());
    let wanted = by.get("service").map(String::as_str);
    let mut found = services::list(&state.registry, compiled, wanted);
    let all = found.len();
    found.truncate(LISTED_MAX);
    Json(json!({"services": found, "all": all}))
}

/// `?version=` is what to wait for, as `control-plane version` prints it, else the newest; and
/// `?timeout=` how long. 200: every client has it; 409: some refuse a part; 504: some did not
/// answer; 404: there was no such version.
async fn wait(State(state): State<AdminState>, Query(by): Parameters) -> Response {
    let timeout = match by.get("timeout").map(|text| value::duration(text)) {
        None => WAIT,
        Some(Ok(timeout)) => timeout.min(WAIT_MAX),
        Some(Err(message)) => {
            let message = json!({"error": format!("timeout: {message}")});
            return (StatusCode::BAD_REQUEST, Json(message)).into_response();
        }
    };
    let version = by.get("version").map(|text| Version::of_client(text));
    let waited = state.clients.wait(version, Instant::now() + timeout).await;
    let status = match waited.progress {
        Progress::Done => StatusCode::OK,
        Progress::Refused => StatusCode::CONFLICT,
        Progress::Waiting => StatusCode::GATEWAY_TIMEOUT,
        Progress::Unknown => StatusCode::NOT_FOUND,
    };
    (status, Json(waited)).into_response()
}

/// What becomes of a request: `?method=` and `?url=`, `?headers=` with one header a line, `?from=`
/// with the client's `NAMESPACE/KEY=VALUE,…`. 404: nothing is served yet.
async fn explain(State(state): State<AdminState>, Query(by): Parameters) -> Response {
    let of = |name: &str| by.get(name).map_or("", String::as_str);
    let request = ExplainRequest::parse(of("method"), of("url"), of("headers"), of("from"));
    let request = match request {
        Ok(request) => request,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    let Some(world) = state.world.borrow().clone() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    Json(explain_compiled(world.compiled(), &request)).into_response()
}

/// What became of the routes of Gateway API; `?object=` selects one, for example
/// `HTTPRoute default/greeter`.
async fn routes(State(state): State<AdminState>, Query(by): Parameters) -> Response {
    let Some(world) = state.world.borrow().clone() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let wanted = by.get("object");
    let all = world.compiled().statuses.values();
    let all = all.filter(|status| wanted.is_none_or(|object| status.object == *object));
    Json(all.collect::<Vec<_>>()).into_response()
}

async fn rotation(State(state): State<AdminState>) -> Response {
    match &state.rotator {
        Some(rotator) => Json(rotator.status()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// `?do=begin`, `abort` or `ignore-unobserved`, with the admin key as a bearer token.
async fn rotate(
    State(state): State<AdminState>,
    Query(by): Parameters,
    request: Request,
) -> Response {
    let refuse =
        |status: StatusCode, error: String| (status, Json(json!({"error": error}))).into_response();
    if !state
        .key
        .as_ref()
        .is_some_and(|key| key.is_shown_in(request.headers()))
    {
        state.refused(&request, "not the admin key");
        let error = "the key in admin.key of the data directory is needed".to_owned();
        return refuse(StatusCode::UNAUTHORIZED, error);
    }
    let Some(rotator) = state.rotator else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // Keys are made, and files are written.
    let asked = by.get("do").cloned().unwrap_or_default();
    let who = format!("admin, {}", who(request.extensions()));
    let done = tokio::task::spawn_blocking(move || match asked.as_str() {
        "begin" => rotator.begin(&who).map(|()| rotator),
        "abort" => rotator.abort(&who).map(|()| rotator),
        "ignore-unobserved" => {
            rotator.ignore_unobserved(&who);
            Ok(rotator)
        }
        _ => Err(CaError::Rotation(
            "?do= is begin, abort or ignore-unobserved",
        )),
    });
    match done.await {
        Ok(Ok(rotator)) => Json(rotator.status()).into_response(),
        Ok(Err(error @ CaError::Rotation(_))) => refuse(StatusCode::CONFLICT, error.to_string()),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Who asks: an identity where the connection proves one, else an address.
fn who(extensions: &Extensions) -> String {
    let secure = extensions.get::<ConnectionPeer>();
    let plain = extensions.get::<ConnectInfo<SocketAddr>>();
    let address = secure.map(|peer| peer.address.ip());
    let address = address.or_else(|| Some(plain?.0.ip()));
    audit::principal(secure.and_then(|peer| peer.identity.as_ref()), address)
}

impl AdminKey {
    /// Makes a new key and writes it to `data_dir`, readable by its owner alone.
    ///
    /// # Errors
    /// When there is no randomness, or the file cannot be written.
    pub fn open(data_dir: &Path) -> Result<Self, CaError> {
        let key = ca::random_hex()?;
        ca::write_private(&data_dir.join(ADMIN_KEY), &key)?;
        Ok(Self(key.into()))
    }

    /// The key that the control plane of `data_dir` made.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(data_dir: &Path) -> std::io::Result<String> {
        std::fs::read_to_string(data_dir.join(ADMIN_KEY))
    }

    /// As a bearer token, or as Consul's clients send theirs.
    fn is_shown_in(&self, headers: &HeaderMap) -> bool {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let bearer = text(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        let mut shown = bearer.into_iter().chain(text(CONSUL_TOKEN));
        shown.any(|shown| ca::is_equal(shown.as_bytes(), self.0.as_bytes()))
    }
}

async fn ready(State(state): State<AdminState>) -> impl IntoResponse {
    if *state.ready.borrow() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics(State(state): State<AdminState>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], state.metrics.encode())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use tower::ServiceExt as _;

    use super::*;
    use crate::registry::MemoryStore;

    fn state(ready: watch::Receiver<bool>) -> AdminState {
        AdminState {
            metrics: Metrics::new(),
            ready,
            diagnostics: Arc::default(),
            clients: Clients::default(),
            world: watch::channel(None).1,
            registry: Registry::open(MemoryStore::default()).unwrap(),
            rotator: None,
            key: Some(AdminKey("secret".into())),
            admins: Vec::new(),
            is_open: true,
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_refused_with_the_limit() {
        let router = router(state(watch::channel(true).1));
        for (bytes, expected) in [
            (BODY_MAX, StatusCode::BAD_REQUEST),
            (BODY_MAX + 1, StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            // Of unknown length, as a chunked one is.
            let body = Body::from_stream(futures_util::stream::iter([Ok::<_, Infallible>(
                " ".repeat(bytes),
            )]));
            let request = Request::put("/v1/agent/service/register").body(body);
            let answer = router.clone().oneshot(request.unwrap()).await.unwrap();
            assert_eq!(answer.status(), expected, "{bytes}");
            let text = axum::body::to_bytes(answer.into_body(), 1_000).await;
            let text = String::from_utf8(text.unwrap().to_vec()).unwrap();
            let names_limit = text.contains("262144 bytes at most");
            assert_eq!(names_limit, bytes > BODY_MAX, "{text}");
        }
    }

    #[tokio::test]
    async fn services_register_without_a_key_on_this_machine_alone_and_pages_never_do() {
        let state = state(watch::channel(true).1);
        // Whether other machines can ask, a header, and the answer to a registration.
        for (is_open, header, expected) in [
            (true, None, StatusCode::OK),
            (
                true,
                Some(("origin", "http://a.example")),
                StatusCode::FORBIDDEN,
            ),
            (true, Some(("x-consul-token", "secret")), StatusCode::OK),
            (false, None, StatusCode::UNAUTHORIZED),
            (
                false,
                Some(("x-consul-token", "wrong")),
                StatusCode::UNAUTHORIZED,
            ),
            (false, Some(("x-consul-token", "secret")), StatusCode::OK),
            (
                false,
                Some(("authorization", "Bearer secret")),
                StatusCode::OK,
            ),
            (
                false,
                Some(("origin", "http://a.example")),
                StatusCode::FORBIDDEN,
            ),
        ] {
            let state = AdminState {
                is_open,
                ..state.clone()
            };
            let mut request = Request::put("/v1/agent/service/register");
            if let Some((name, value)) = header {
                request = request.header(name, value);
            }
            let body = Body::from(r#"{"Name": "a", "Port": 1, "Address": "127.0.0.1"}"#);
            let request = request.body(body).unwrap();
            let answer = router(state).oneshot(request).await.unwrap();
            assert_eq!(answer.status(), expected, "{is_open} {header:?}");
        }
    }

    #[tokio::test]
    async fn readiness_follows_the_state() {
        let (ready, is_ready) = watch::channel(false);
        let state = state(is_ready);
        let status = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router(state.clone())
                .oneshot(request)
                .await
                .unwrap()
                .status()
        };
        assert_eq!(status("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        ready.send_replace(true);
        for path in [
            "/healthz",
            "/readyz",
            "/metrics",
            "/v1/diagnostics",
            "/v1/clients",
            "/v1/resources",
            "/v1/services",
        ] {
            assert_eq!(status(path).await, StatusCode::OK, "{path}");
        }
        for path in ["/v1/explain?method=GET&url=http%3A%2F%2Fa%2F", "/v1/routes"] {
            assert_eq!(
                status(path).await,
                StatusCode::NOT_FOUND,
                "nothing is served"
            );
        }
        let nothing = status("/v1/wait?timeout=1ms").await;
        assert_eq!(nothing, StatusCode::NOT_FOUND, "nothing was published");
        assert_eq!(
            status("/v1/wait?timeout=soon").await,
            StatusCode::BAD_REQUEST
        );
    }
}
