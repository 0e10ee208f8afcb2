//! Calls whose route has filters (gRFC A39).
//!
//! Between stages 8 and 9, for the few. The route is chosen again with the numbers that were drawn
//! before, the request meets its filters in order, and goes on like every other when they let it pass.
//! The deadline runs from the beginning: a delay is part of it (gRFC A33).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use mesh_core::{
    filter::{Answer, FilterRequest, Passed, Run, Step},
    rng::SplitMix64,
    route::RequestView,
};
use tokio::time::{Instant, sleep};

use super::{
    Beginning, CallOptions, CallResult, Chosen, Stop, choose, deadline, proceed, read, start_span,
    unknown_cluster,
};
use crate::{
    Body,
    cluster::MakeEndpoint,
    error::{AsError, Error, ErrorKind},
    in_flight::InFlight,
    listener::{ListenerRuntime, LiveSnapshot},
    local_reply::LocalReply,
    outgoing::Outgoing,
    telemetry::{CallSpan, Protocol},
    within::within,
};

/// Sends `request` through the filters of its route. `drawn` is as it was when the route was chosen.
pub(super) async fn send<M: MakeEndpoint>(
    listener: Arc<ListenerRuntime<M>>,
    request: Request<Body>,
    beginning: Beginning,
    options: CallOptions,
    mut drawn: SplitMix64,
) -> CallResult<M> {
    let live = listener.load_full();
    let Some(live) = live.ready() else {
        let name = listener.name();
        let reason = format!("listener {name}: its configuration has just been withdrawn");
        return Err(Error::new(ErrorKind::NoConfig, reason));
    };
    let mut outgoing = Outgoing::new(request, None);
    let (protocol, timeout) = read(&outgoing.head().headers);
    let timeout = timeout.cloned();
    let Beginning { started, now, span } = beginning;
    let mut span = span.unwrap_or_else(|| start_span(&listener, &outgoing, protocol));
    let chosen = match choose(&listener, live, &outgoing, protocol, &mut drawn) {
        Ok(chosen) => chosen,
        Err(stop) => {
            stop.end(&mut span, protocol);
            return match stop {
                Stop::Failed(error) => Err(error),
                Stop::Answered(reply) => Ok(reply.into_response()),
                // The configuration has changed in between.
                Stop::Unknown(cluster) => {
                    let error = unknown_cluster(&cluster);
                    span.end(error.kind().into());
                    Err(error)
                }
                Stop::Filtered => unreachable!("a choice has its filters"),
            };
        }
    };
    let deadline = deadline(chosen.forward, timeout.as_ref(), [started, now]);
    let call = Filtered {
        listener: &listener,
        live,
        protocol,
        deadline,
        span,
    };
    call.send(chosen, &mut outgoing, started, options, drawn)
        .await
}

struct Filtered<'l, M: MakeEndpoint> {
    listener: &'l ListenerRuntime<M>,
    live: &'l LiveSnapshot<M>,
    protocol: Protocol,
    deadline: Option<Instant>,
    span: CallSpan,
}

impl<M: MakeEndpoint> Filtered<'_, M> {
    async fn send(
        mut self,
        chosen: Chosen<'_, M>,
        outgoing: &mut Outgoing<'_>,
        started: Instant,
        options: CallOptions,
        mut rng: SplitMix64,
    ) -> CallResult<M> {
        let cluster = chosen.cluster.load().name().clone();
        let mut run = Run::new(chosen.filters.map_or(&[], |filters| filters));
        loop {
            let step = {
                let name = self.listener.name();
                let authority = outgoing.authority().unwrap_or(name);
                let head = outgoing.head();
                let request = FilterRequest {
                    view: RequestView::new(&head.method, &head.uri, authority, &head.headers),
                    route: &chosen.route.name,
                    cluster: cluster.as_str(),
                    remote: crate::source_ip::of_process(),
                    peer: None,
                };
                run.advance(&request, Instant::now().into_std(), &mut rng)
            };
            self.count(&mut run);
            match step {
                Step::Pass => break,
                Step::Wait(delay) if within(self.deadline, sleep(delay)).await.is_some() => {}
                Step::Wait(_) => {
                    let reason =
                        format!("cluster {cluster}: the deadline passed in a fault's delay");
                    return self.fail(Error::new(ErrorKind::DeadlineExceeded, reason));
                }
                Step::Answer(answer) => {
                    let is_head = outgoing.head().method == Method::HEAD;
                    return self.answer(*answer, &run.end(), is_head);
                }
                // The decoder lets no authorisation pass for clients.
                Step::Authorize(_) => {
                    let reason = "authorisation is the server's";
                    return self.fail(Error::new(ErrorKind::Unsupported, reason));
                }
            }
        }
        let mut passed = run.end();
        if let Some(headers) = passed.headers.take() {
            outgoing.head_mut().headers = headers;
        }
        let state = chosen.cluster.load();
        if let Err(error) = state.acquire(&mut rng) {
            return self.fail(error);
        }
        let Self {
            listener,
            live,
            protocol,
            deadline,
            span,
        } = self;
        let in_flight = InFlight::begin(state, started, deadline, protocol, span);
        let now = Instant::now();
        let sent = proceed::<M, AsError>(
            listener, live, outgoing, now, options, in_flight, chosen, &mut rng,
        );
        let mut response = sent.await?;
        let status = response.status();
        passed.respond(status, response.headers_mut());
        response.body_mut().hold(passed.permits);
        Ok(response)
    }

    fn count(&self, run: &mut Run<'_>) {
        for (filter, action) in run.take_actions() {
            self.listener
                .telemetry()
                .metrics()
                .filtered("client", &filter, action);
            self.span.filtered(&filter, action);
        }
    }

    fn fail(&mut self, error: Error) -> CallResult<M> {
        self.span.end(error.kind().into());
        Err(error)
    }

    fn answer(&mut self, answer: Answer, passed: &Passed, is_head: bool) -> CallResult<M> {
        let mut reply = LocalReply::new(answer.status, Bytes::from_static(answer.body.as_bytes()));
        reply.headers = answer.headers;
        if let (Protocol::Grpc, Some(status)) = (self.protocol, answer.grpc_status) {
            reply
                .headers
                .insert("grpc-status", HeaderValue::from(status));
        }
        let mut reply = reply.spoken(self.protocol, is_head);
        passed.respond(reply.status, &mut reply.headers);
        self.span.end(reply.code(self.protocol));
        Ok(reply.into_response())
    }
}
