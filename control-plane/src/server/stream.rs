//! The task of one stream: requests in, the newest world out.
//!
//! Latest value only: a response is made when there is room for it, from the newest world. While a
//! slow client takes its time any number of worlds may pass, and its requests are still heard.
//! Nothing is answered before the first world.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use envoy_types::pb::{
    envoy::config::core::v3::{Node, node::UserAgentVersionType},
    google::protobuf::{Struct, value::Kind},
};
use mesh_core::config::Secret;
use tokio::{
    sync::{
        Notify,
        mpsc::{self, error::SendError},
        watch,
    },
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::{Stream as Requests, StreamExt as _};
use tonic::Status;

use super::{
    Variant,
    admit::Place,
    registry::{Connected, Report},
    sent::Verdict,
    service::Shared,
    session::Session,
    subscription::{Reason, Withheld},
    wire::Response,
};
use crate::{
    ca::{ISSUE, Identity},
    cache::{Client, ENVOY_OUTBOUND_PORT, OWN_CERTIFICATE, Resource, ResourceType},
    encode::ClientClass,
};

/// Namespace of a client that does not say where it is.
const DEFAULT_NAMESPACE: &str = "default";
/// After so long another attempt is made to issue a certificate.
const ISSUE_AGAIN: Duration = Duration::from_secs(10);
/// A client that is refused gets so long to take the reason.
const REFUSAL_MAX: Duration = Duration::from_secs(1);

/// What a stream was opened with.
pub(super) struct Opened {
    /// Who the caller proved to be.
    pub(super) identity: Option<Identity>,
    /// Becomes true when the connection is to end.
    pub(super) end: watch::Receiver<bool>,
    /// What it may ask; given back at the end.
    pub(super) place: Place,
}

pub(super) struct Stream<V: Variant> {
    session: Arc<Mutex<Session<V>>>,
    shared: Arc<Shared>,
    opened: Opened,
    number: u64,
    /// The last world that the client has answered in full, as the registry sees it.
    settled: Arc<AtomicU64>,
    /// A newer world means something to the client.
    wake: Arc<Notify>,
    is_introduced: bool,
    class: Option<ClientClass>,
    /// When the client's certificate is made again; `None` before it was asked for, and for
    /// clients who may have none.
    leaf: Option<Option<Instant>>,
    /// When each type was last sent, until it is answered.
    sent_at: BTreeMap<ResourceType, Instant>,
    /// What the client cannot take, as it was told last.
    withheld: BTreeMap<ResourceType, Withheld>,
    /// When a change came that is not answered in full yet, and whether it was about this client.
    world_at: Option<(Instant, bool)>,
    /// A response may be due.
    has_work: bool,
    responses: mpsc::Sender<Result<Response, Status>>,
}

/// The client is gone.
struct Gone;

impl<T> From<SendError<T>> for Gone {
    fn from(_: SendError<T>) -> Self {
        Self
    }
}

impl<V: Variant> Stream<V> {
    pub(super) fn new(
        shared: Arc<Shared>,
        opened: Opened,
        responses: mpsc::Sender<Result<Response, Status>>,
    ) -> Self {
        let number = shared.clients.next_number();
        Self {
            session: Arc::default(),
            shared,
            opened,
            number,
            settled: Arc::default(),
            wake: Arc::default(),
            is_introduced: false,
            class: None,
            leaf: None,
            sent_at: BTreeMap::new(),
            withheld: BTreeMap::new(),
            world_at: None,
            has_work: false,
            responses,
        }
    }

    /// Serves until either side ends.
    pub(super) async fn run(
        mut self,
        mut requests: impl Requests<Item = Result<V::Request, Status>> + Unpin,
    ) {
        let wake = Arc::clone(&self.wake);
        let mut shutdown = self.shared.shutdown.clone();
        let mut end = self.opened.end.clone();
        let responses = self.responses.clone();
        loop {
            let deadline = self.deadline();
            let served = tokio::select! {
                biased;
                () = became_true(&mut shutdown) => break,
                () = became_true(&mut end) => break,
                () = wake.notified() => {
                    self.world_at.get_or_insert_with(|| (Instant::now(), false));
                    self.has_work = true;
                    Ok(())
                }
                request = requests.next() => match request {
                    Some(Ok(request)) => match self.request(request) {
                        Ok(()) => Ok(()),
                        Err(refusal) => {
                            refuse(&responses, refusal).await;
                            break;
                        }
                    },
                    Some(Err(error)) => {
                        if let Some(refusal) = self.opened.place.unread(&error) {
                            refuse(&responses, refusal).await;
                        }
                        break;
                    }
                    None => break,
                },
                room = responses.reserve(), if self.has_work => match room {
                    Ok(room) => {
                        if let Some(response) = self.next() {
                            room.send(Ok(response));
                        }
                        Ok(())
                    }
                    Err(_) => Err(Gone),
                },
                () = at(deadline) => {
                    self.has_work = true;
                    self.renew();
                    Ok(())
                }
            };
            if served.is_err() {
                break;
            }
        }
        if let Some(class) = self.class {
            self.shared.metrics.stream_closed(class.as_str());
        }
        self.shared.clients.forget(self.number);
    }

    fn session(&self) -> MutexGuard<'_, Session<V>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When something must be done although nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let session = self.session().deadline().map(Instant::from_std);
        session.into_iter().chain(self.leaf.flatten()).min()
    }

    /// # Errors
    /// When the client claims to be somebody else than it proved to be, or asks too much.
    fn request(&mut self, mut request: V::Request) -> Result<(), Status> {
        let now = Instant::now().into_std();
        self.opened.place.request(V::names(&request), now)?;
        let node = V::node(&mut request);
        if !self.is_introduced {
            self.introduce(node.unwrap_or_default())?;
        }
        let (heard, names) = {
            let mut session = self.session();
            let heard = session.hear(request);
            (heard, session.variant().subscriptions().names())
        };
        let Some(heard) = heard else {
            return Ok(());
        };
        self.opened.place.subscribed(names)?;
        self.has_work = true;
        let kind = heard.kind;
        self.shared
            .metrics
            .requested(kind.as_str(), heard.verdict.is_some());
        if heard.is_stale {
            self.shared.metrics.nonce_expired(kind.as_str());
        }
        match heard.verdict {
            Some(Verdict::Nack(text)) => {
                self.sent_at.remove(&kind);
                self.shared.metrics.nacked(kind.as_str());
                let node = self.session().client().map(|client| client.node_id.clone());
                tracing::warn!(kind = kind.as_str(), node, text = &*text, "NACK");
            }
            Some(Verdict::Ack) => {
                if let Some(sent_at) = self.sent_at.remove(&kind) {
                    self.shared.metrics.acked(kind.as_str(), sent_at.elapsed());
                }
            }
            None => {}
        }
        let wants_leaf =
            kind == ResourceType::Secret && self.session().variant().subscriptions().wants_leaf();
        if wants_leaf && self.leaf.is_none() {
            self.issue();
        }
        Ok(())
    }

    /// The client says who it is, once a stream.
    fn introduce(&mut self, node: Node) -> Result<(), Status> {
        let client = client(node);
        if let Some(identity) = &self.opened.identity {
            check_claims(&client, identity).inspect_err(|refusal| {
                let reason = refusal.message();
                tracing::warn!(target: "audit", %identity, reason, "stream refused");
            })?;
        }
        let class = client.class;
        tracing::debug!(
            node = client.node_id,
            class = class.as_str(),
            "stream opened"
        );
        self.shared.metrics.stream_opened(class.as_str());
        let session: Arc<dyn Report> = Arc::clone(&self.session) as _;
        let connected = Connected {
            session,
            settled: Arc::clone(&self.settled),
            wake: Arc::clone(&self.wake),
        };
        self.session().introduce(client.clone());
        self.shared
            .clients
            .introduce(self.number, &client, connected);
        // Whoever publishes from now on tells this session; what was published before is here.
        let world = self.shared.worlds.borrow().clone();
        if let Some(world) = world {
            let now = Instant::now().into_std();
            self.session().world_changed(world, now);
        }
        self.class = Some(class);
        self.is_introduced = true;
        Ok(())
    }

    /// The next response; without one there is nothing to do until something happens.
    fn next(&mut self) -> Option<Response> {
        let now = Instant::now();
        let (response, settled) = {
            let mut session = self.session();
            (session.next(now.into_std()), session.settled())
        };
        let Some(response) = response else {
            self.has_work = false;
            self.tell_withheld();
            if self.settled.swap(settled, Relaxed) != settled {
                if let Some((since, true)) = self.world_at.take() {
                    self.shared.metrics.delivered(since.elapsed());
                }
                self.shared.clients.step();
            }
            return None;
        };
        let (kind, bytes) = (response.kind, response.resource_bytes());
        self.shared.metrics.pushed(kind.as_str(), bytes);
        self.sent_at.insert(kind, now);
        if let Some((_, is_about_this)) = &mut self.world_at {
            *is_about_this = true;
        }
        Some(response)
    }

    /// Tells operators what the client cannot take, when that is new.
    fn tell_withheld(&mut self) {
        let (withheld, client) = {
            let session = self.session();
            let withheld = session.variant().subscriptions().withheld();
            let withheld: BTreeMap<_, _> = withheld.map(|(k, held)| (k, held.clone())).collect();
            (withheld, session.client().cloned())
        };
        let Some(client) = client else { return };
        for (kind, held) in &withheld {
            if self.withheld.get(kind) != Some(held) {
                if let Reason::Size(_) = held.reason {
                    self.shared.metrics.response_too_large(kind.as_str());
                }
                tracing::error!(node = client.node_id, "{}", held.message(*kind, &client));
            }
        }
        self.withheld = withheld;
    }

    fn renew(&mut self) {
        let is_due = self.leaf.flatten().is_some_and(|at| at <= Instant::now());
        if is_due {
            self.issue();
        }
    }

    /// Makes the client's certificate, if it proved who it is. When that fails it keeps the one it
    /// has, and another attempt follows.
    fn issue(&mut self) {
        let node = self.session().client().map(|client| client.node_id.clone());
        let Some(identity) = &self.opened.identity else {
            tracing::warn!(
                node,
                "asks for a certificate over SDS without a valid join token in `authorization`: \
                 it gets none on this stream"
            );
            // Nothing on this stream can change who the caller is.
            self.leaf = Some(None);
            return;
        };
        let allowed = self.shared.callers.check_allowed(identity);
        let issued =
            allowed.and_then(|()| self.shared.authority.issue(identity, self.shared.cert_ttl));
        let object = issued.as_ref().map_or_else(
            |_| "certificate".to_owned(),
            |issued| format!("certificate {}", issued.serial),
        );
        let who = identity.to_string();
        let audit = self.shared.callers.audit();
        audit.outcome((&who, ISSUE), &object, &issued);
        match issued {
            Ok(issued) => {
                let left = issued.not_after.duration_since(SystemTime::now());
                let version = issued.serial.clone();
                let secret = Secret::Certificate {
                    name: OWN_CERTIFICATE.into(),
                    chain_pem: issued.chain_pem.concat(),
                    key_pem: issued.key_pem,
                };
                let resource = Resource::secret(&secret, &version);
                self.session().leaf_changed(Some(resource));
                self.leaf = Some(Some(Instant::now() + left.unwrap_or_default() / 2));
                self.has_work = true;
            }
            Err(error) => {
                tracing::error!(node, %error, "cannot issue a certificate for SDS");
                self.leaf = Some(Some(Instant::now() + ISSUE_AGAIN));
            }
        }
    }
}

/// Tells a client why its stream ends. One that takes nothing sees only that it does.
async fn refuse(responses: &mpsc::Sender<Result<Response, Status>>, refusal: Status) {
    _ = timeout(REFUSAL_MAX, responses.send(Err(refusal))).await;
}

/// Returns when it is true; never if nobody can make it so any more.
async fn became_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|is_true| *is_true).await.is_err() {
        pending::<()>().await;
    }
}

/// At `deadline`; never without one.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
/// Reads who the client is from its node.
fn client(node: Node) -> Client {
    let metadata = node.metadata.unwrap_or_default();
    let namespace = text(&metadata, "NAMESPACE")
        .or_else(|| namespace_of(&node.id))
        .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let outbound_port = text(&metadata, "OUTBOUND_PORT").and_then(|port| port.parse().ok());
    let labels = metadata
        .fields
        .get("LABELS")
        .and_then(|value| match &value.kind {
            Some(Kind::StructValue(labels)) => Some(labels),
            _ => None,
        });
    let labels = labels.into_iter().flat_map(|labels| {
        labels
            .fields
            .keys()
            .filter_map(|key| Some((key.clone(), text(labels, key)?)))
    });
    let class = ClientClass::of(&node.user_agent_name, &node.client_features);
    let release = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(text)) => class.release(text),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|version| (version.major_number, version.minor_number)),
        None => None,
    };
    let locality = node.locality.unwrap_or_default();
    Client {
        locality: mesh_core::config::LocalityId {
            region: locality.region,
            zone: locality.zone,
            sub_zone: locality.sub_zone,
        },
        class,
        release,
        labels: labels.collect(),
        node_id: node.id,
        namespace,
        outbound_port: outbound_port.unwrap_or(ENVOY_OUTBOUND_PORT),
    }
}

/// What a node says of itself must fit what its client proved: names of the namespace decide what it
/// is shown, and an id is what operators believe.
fn check_claims(client: &Client, identity: &Identity) -> Result<(), Status> {
    if client.namespace != identity.namespace {
        return Err(Status::permission_denied(format!(
            "node {:?} says that it is in namespace {:?}, its credential is of {identity}",
            client.node_id, client.namespace
        )));
    }
    let claimed = client.node_id.find("ns/").map(|at| &client.node_id[at..]);
    let claimed = claimed.filter(|claimed| claimed.contains("/sa/"));
    if claimed.is_some_and(|claimed| claimed != identity.to_string()) {
        return Err(Status::permission_denied(format!(
            "node {:?} names another identity than its credential, which is of {identity}",
            client.node_id
        )));
    }
    Ok(())
}

/// The namespace in a node id such as `web~ns/default/sa/web`.
fn namespace_of(node_id: &str) -> Option<String> {
    let (_, rest) = node_id.split_once("ns/")?;
    let (namespace, _) = rest.split_once("/sa/")?;
    (!namespace.is_empty()).then(|| namespace.to_owned())
}

fn text(metadata: &Struct, key: &str) -> Option<String> {
    match metadata.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => Some(number.to_string()),
        _ => None,
    }
}
