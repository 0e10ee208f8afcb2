//! Calls whose route follows the redirects of its servers (Envoy's internal redirects).
//!
//! Around stages 8 to 12, in a future of its own. The redirected request is a call of its own, with
//! route, filters, permit, attempts and copies; it ends within the deadline of the one before.

use std::sync::Arc;

use http::{Request, request::Parts};
use mesh_core::{
    config::InternalRedirectPolicy,
    rng::SplitMix64,
    route::{CompiledRoute, FollowedRedirects},
};
use tokio::time::Instant;

use super::{
    AttemptResult, Attempts, Beginning, CallOptions, CallResult, Next, attempts::Finished,
    start_drawn,
};
use crate::{
    Body,
    cluster::MakeEndpoint,
    context::RequestContext,
    error::AsError,
    listener::{ListenerRuntime, LiveSnapshot},
    outgoing::Outgoing,
    rng,
};

/// The redirects of one request.
pub(crate) struct Redirects {
    policy: InternalRedirectPolicy,
    route: Arc<str>,
    followed: FollowedRedirects,
}

impl Redirects {
    /// For a request that goes along `route`, and may have been redirected there.
    pub(super) fn new(
        policy: &InternalRedirectPolicy,
        route: &CompiledRoute,
        head: &mut Parts,
    ) -> Box<Self> {
        Box::new(Self {
            policy: policy.clone(),
            route: Arc::clone(&route.name),
            followed: head.extensions.remove().unwrap_or_default(),
        })
    }

    /// Sends `request`, and where its answer redirects to.
    pub(super) async fn follow<M: MakeEndpoint>(
        mut self: Box<Self>,
        listener: Arc<ListenerRuntime<M>>,
        attempts: Attempts<M>,
        request: Request<Body>,
        options: CallOptions,
    ) -> CallResult<M> {
        let finished = attempts.finish(Next::Send(request)).await;
        let live = listener.load();
        let Some(ready) = live.ready() else {
            return finished.end();
        };
        let drawn = rng::fork();
        let Some(request) = self.redirected(&finished, ready, drawn.clone()) else {
            return finished.end();
        };
        let context = RequestContext {
            deadline: finished.call.deadline.map(Instant::into_std),
            ..RequestContext::current().unwrap_or_default()
        };
        finished.end_with_head();
        let next = async move {
            let Some(ready) = live.ready() else {
                unreachable!("it was ready")
            };
            let beginning = Beginning::at(Instant::now());
            let outgoing = &mut Outgoing::new(request);
            let sent =
                start_drawn::<M, AsError>(&listener, ready, outgoing, beginning, options, drawn);
            // The call does not keep what it was decided by.
            drop(live);
            sent.await
        };
        RequestContext::scope(context, next).await
    }

    /// The request that the answer redirects to; `None` when the caller gets the answer.
    fn redirected<M: MakeEndpoint>(
        &mut self,
        finished: &Finished<M>,
        live: &LiveSnapshot<M>,
        mut drawn: SplitMix64,
    ) -> Option<Request<Body>> {
        let Ok((AttemptResult::Response(answer), _)) = &finished.result else {
            return None;
        };
        let again = finished.again.as_deref()?;
        let mut request = again.whole_request()?;
        let method = request.method().clone();
        let is_followed = live.snapshot.routes.follow(
            &self.policy,
            &self.route,
            &mut self.followed,
            &mut request,
            (answer.status(), answer.headers()),
            &mut drawn,
        );
        if !is_followed {
            return None;
        }
        // One that has become a GET has no body.
        if *request.method() == method {
            *request.body_mut() = again.body(false)?;
        }
        request
            .extensions_mut()
            .insert(std::mem::take(&mut self.followed));
        Some(request)
    }
}
