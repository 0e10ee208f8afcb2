//! Copies of requests, whose responses nobody waits for.
//!
//! Stage 8 sends them, beside the call (Envoy `request_mirror_policies`). A copy has its own permit of
//! the cluster that it goes to, and a task of its own; it gets the body as the call sends it, and is
//! given up when it lags behind, takes too long, or there are too many. Nothing of it reaches the
//! caller.

use std::{sync::Arc, time::Duration};

use http::{Request, uri::Authority};
use http_body_util::BodyExt;
use mesh_core::config::{Mirror, MirrorTarget};
use tokio::{runtime::Handle, time::Instant};

use super::{Attempts, Next};
use crate::{
    Body,
    cluster::{ClusterState, MakeEndpoint},
    head::Head,
    in_flight::InFlight,
    listener::{ListenerRuntime, LiveSnapshot},
    outgoing::Outgoing,
    rng,
    telemetry::{CallHead, Extra},
    within::within,
};

/// Copies that a cluster gets at the same time, from this process; more are dropped.
pub const MIRRORS_IN_FLIGHT_MAX: u32 = 128;

/// How long a copy of a call without a deadline may take.
pub const MIRROR_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes that are read of a copy's response, so that its connection can be used again; a longer one
/// is broken off.
pub const MIRROR_RESPONSE_BYTES_MAX: usize = 1 << 20;

/// What is appended to the host of copies.
const SHADOW: &str = "-shadow";

/// Sends copies of the request of `call`, whose body is copied while it is sent.
#[cold]
pub(super) fn send_all<M: MakeEndpoint>(
    listener: &ListenerRuntime<M>,
    live: &LiveSnapshot<M>,
    mirrors: &[Mirror],
    call: &InFlight<M>,
    outgoing: &mut Outgoing<'_>,
) {
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    for mirror in mirrors {
        let name = match &mirror.cluster {
            MirrorTarget::Cluster(name) => Some(name.as_str()),
            MirrorTarget::Header(header) => {
                let headers = &outgoing.head().headers;
                headers.get(header).and_then(|name| name.to_str().ok())
            }
        };
        // A cluster that is not there gets no copy, as in Envoy.
        let Some(cluster) = name.and_then(|name| live.find(name)) else {
            continue;
        };
        let state = live.clusters.get(cluster).load();
        let Some(permit) = Permit::acquire(&state) else {
            state.calls().extra(Extra::MirrorDropped);
            continue;
        };
        let mut request = Head::of(outgoing.head()).request(outgoing.body_mut().tee());
        if mirror.shadow_suffix {
            append_suffix(&mut request);
        }
        let begin = || {
            let head = || CallHead {
                protocol: call.protocol,
                method: request.method(),
                path: request.uri().path(),
                authority: request.uri().authority().map_or("", Authority::as_str),
            };
            listener.telemetry().start_call_span(head)
        };
        let span = call.within_span(mirror.trace_sampled, begin);
        let now = Instant::now();
        let deadline = call.deadline.unwrap_or(now + MIRROR_TIMEOUT);
        state.calls().extra(Extra::Mirror);
        let copy = InFlight::begin(state, now, Some(deadline), call.protocol, span);
        runtime.spawn(run(copy, permit, request));
    }
}

/// Sends one copy, and reads its response to the end.
async fn run<M: MakeEndpoint>(copy: InFlight<M>, permit: Permit<M>, request: Request<Body>) {
    let until = copy.deadline;
    let sent = Attempts::new(copy, None, until).run(Next::Send(request));
    let is_whole = match within(until, sent).await {
        Some(Ok(response)) => {
            let mut body = response.into_body();
            let mut bytes = 0;
            loop {
                match within(until, body.frame()).await {
                    Some(None) => break true,
                    Some(Some(Ok(frame))) => bytes += frame.data_ref().map_or(0, |d| d.len()),
                    Some(Some(Err(_))) | None => break false,
                }
                if bytes > MIRROR_RESPONSE_BYTES_MAX {
                    break true;
                }
            }
        }
        Some(Err(_)) | None => false,
    };
    if !is_whole {
        permit.state.calls().extra(Extra::MirrorDropped);
    }
}

/// Permits of one copy. The circuit's is given back with the call that is made with it.
struct Permit<M: MakeEndpoint> {
    state: Arc<ClusterState<M>>,
}

impl<M: MakeEndpoint> Permit<M> {
    fn acquire(state: &Arc<ClusterState<M>>) -> Option<Self> {
        if !state.acquire_mirror(MIRRORS_IN_FLIGHT_MAX) {
            return None;
        }
        let permit = Self {
            state: Arc::clone(state),
        };
        state.acquire(&mut rng::fork()).ok().map(|()| permit)
    }
}

impl<M: MakeEndpoint> Drop for Permit<M> {
    fn drop(&mut self) {
        self.state.release_mirror();
    }
}

/// Makes `host:port` `host-shadow:port`. A host that cannot be changed so stays.
fn append_suffix(request: &mut Request<Body>) {
    let Some(authority) = request.uri().authority() else {
        return;
    };
    let (user_and_host, port) = match authority.port() {
        Some(port) => {
            let port = port.as_str().len() + 1;
            authority.as_str().split_at(authority.as_str().len() - port)
        }
        None => (authority.as_str(), ""),
    };
    if user_and_host.ends_with(']') {
        return;
    }
    let Ok(shadow) = Authority::try_from(format!("{user_and_host}{SHADOW}{port}")) else {
        return;
    };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.authority = Some(shadow);
    *request.uri_mut() = http::Uri::from_parts(parts).unwrap_or_default();
    request.headers_mut().remove(http::header::HOST);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_goes_before_the_port() {
        for (uri, expected) in [
            ("http://a.b/x", "http://a.b-shadow/x"),
            ("http://a.b:80/x?y", "http://a.b-shadow:80/x?y"),
            // An address of IPv6 would be none with it.
            ("http://[::1]:80/", "http://[::1]:80/"),
            ("/x", "/x"),
        ] {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = uri.parse().unwrap();
            append_suffix(&mut request);
            assert_eq!(request.uri().to_string(), expected);
        }
    }
}
