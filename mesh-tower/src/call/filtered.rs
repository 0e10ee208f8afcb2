//! Calls whose route has filters (gRFC A39).
//!
//! Between stages 8 and 9, for the few. The route is chosen again with the numbers that were drawn
//! before, the request meets its filters in order, and goes on like every other when they let it pass.
//! The deadline runs from the beginning: a delay is part of it (gRFC A33).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use mesh_core::{
    filter::{Answer, FilterAction, FilterRequest, Passed, Run, Step},
    rng::SplitMix64,
    route::RequestView,
};
use tokio::time::{Instant, sleep};

use super::{CallOptions, CallResult, Chosen, Stop, Unclaimed, choose, deadline, proceed, read};
use crate::{
    Body,
    body::HoldBackError,
    cluster::MakeEndpoint,
    error::{AsError, Error, ErrorKind},
    in_flight::InFlight,
    listener::{ListenerRuntime, LiveSnapshot},
    local_reply::LocalReply,
    outgoing::Outgoing,
    telemetry::{LocalReplyReason, Protocol},
    within::within,
};

/// Sends `request` through the filters of its route. `drawn` is as it was when the route was chosen.
pub(super) async fn send<M: MakeEndpoint>(
    listener: Arc<ListenerRuntime<M>>,
    request: Request<Body>,
    ([started, now], waiting): ([Instant; 2], Unclaimed<M>),
    options: CallOptions,
    mut drawn: SplitMix64,
) -> CallResult<M> {
    let mut outgoing = Outgoing::new(request);
    let (protocol, timeout) = read::<AsError>(&outgoing.head().headers);
    let timeout = timeout.cloned();
    let live = listener.load();
    let mut call = Filtered {
        listener: &listener,
        protocol,
        deadline: None,
        waiting,
    };
    let name = listener.name();
    let Some(live) = live.ready() else {
        let reason = format!("listener {name}: its configuration has just been withdrawn");
        return call.fail(Error::new(ErrorKind::NoConfig, reason));
    };
    let chosen = match choose(&listener, live, &outgoing, protocol, &mut drawn) {
        Ok(chosen) => chosen,
        Err(Stop::Failed(error)) => return call.fail(error),
        Err(Stop::Answered(reply)) => return call.reply(*reply),
        Err(Stop::Unknown(_) | Stop::Filtered) => {
            let reason = format!("listener {name}: its clusters have just changed");
            return call.fail(Error::new(ErrorKind::NoRoute, reason));
        }
    };
    call.deadline = deadline(chosen.forward, protocol, timeout.as_ref(), [started, now]);
    call.send(live, chosen, &mut outgoing, started, options, drawn)
        .await
}

struct Filtered<'l, M: MakeEndpoint> {
    listener: &'l Arc<ListenerRuntime<M>>,
    protocol: Protocol,
    deadline: Option<Instant>,
    waiting: Unclaimed<M>,
}

impl<M: MakeEndpoint> Filtered<'_, M> {
    async fn send(
        mut self,
        live: &LiveSnapshot<M>,
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
                let authority = outgoing.authority_or(name);
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
                Step::Answer(answer, action) => {
                    let is_head = outgoing.head().method == Method::HEAD;
                    return self.answer(*answer, action.into(), &run.end(), is_head);
                }
                // The decoder lets no authorisation pass for clients.
                Step::Authorize(_) | Step::Authenticate(_) | Step::Check(_) => {
                    let reason = "authorisation is the server's";
                    return self.fail(Error::new(ErrorKind::Unsupported, reason));
                }
            }
        }
        let mut passed = run.end();
        if let Some(headers) = passed.headers.take() {
            outgoing.head_mut().headers = headers;
        }
        if let Some(buffer) = &passed.buffer {
            let held = outgoing.body_mut().hold_back(buffer.max_bytes as usize);
            match within(self.deadline, held).await {
                Some(Ok(())) => {}
                Some(Err(HoldBackError::TooLong)) => {
                    let action = FilterAction::TooLarge;
                    self.count_one(&buffer.filter, action);
                    let is_head = outgoing.head().method == Method::HEAD;
                    return self.answer(Answer::too_large(), action.into(), &passed, is_head);
                }
                Some(Err(HoldBackError::Failed(error))) => {
                    let reason = format!("cluster {cluster}: the request's body failed");
                    let error = Error::new(ErrorKind::InvalidRequest, reason).with_source(error);
                    return self.fail(error);
                }
                None => {
                    let reason =
                        format!("cluster {cluster}: the deadline passed before the body was there");
                    return self.fail(Error::new(ErrorKind::DeadlineExceeded, reason));
                }
            }
        }
        let state = chosen.cluster.load();
        if let Err(error) = state.acquire(&mut rng) {
            return self.fail(error);
        }
        let Self {
            listener,
            protocol,
            deadline,
            waiting,
        } = self;
        let span = waiting.claim();
        let in_flight = InFlight::begin(state, started, deadline, protocol, span);
        let now = Instant::now();
        let permitted = (in_flight, chosen);
        let sent =
            proceed::<M, AsError>(listener, live, outgoing, now, options, permitted, &mut rng);
        let mut response = sent.await?;
        let status = response.status();
        passed.respond(status, response.headers_mut());
        response.body_mut().hold(passed.permits);
        Ok(response)
    }

    fn count(&self, run: &mut Run<'_>) {
        for (filter, action) in run.take_actions() {
            self.count_one(&filter, action);
        }
    }

    fn count_one(&self, filter: &str, action: FilterAction) {
        let metrics = self.listener.telemetry().metrics();
        metrics.filtered("client", filter, action);
        if let Some(span) = self.waiting.span() {
            span.filtered(filter, action);
        }
    }

    fn fail(&mut self, error: Error) -> CallResult<M> {
        self.waiting.fail(&error);
        Err(error)
    }

    fn answer(
        &mut self,
        answer: Answer,
        reason: LocalReplyReason,
        passed: &Passed,
        is_head: bool,
    ) -> CallResult<M> {
        let body = Bytes::from_static(answer.body.as_bytes());
        let mut reply = LocalReply::new(reason, answer.status, body);
        reply.headers = answer.headers;
        if let (Protocol::Grpc, Some(status)) = (self.protocol, answer.grpc_status) {
            reply
                .headers
                .insert("grpc-status", HeaderValue::from(status));
        }
        let mut reply = reply.spoken(self.protocol, is_head);
        passed.respond(reply.status, &mut reply.headers);
        self.reply(reply)
    }

    fn reply(&mut self, reply: LocalReply) -> CallResult<M> {
        let code = reply.code(self.protocol);
        self.waiting.end(reply.reason, code);
        Ok(reply.into_response())
    }
}
