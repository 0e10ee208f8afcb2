//! The response to come.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Again, AttemptResult, Attempts, CallResult, Next, classify};
use crate::{
    Error, ResponseBody,
    cluster::{EndpointService, Exchange as _, MakeEndpoint},
    error::{AsError, ShowError},
    in_flight::InFlight,
    telemetry::Protocol,
};

type Exchange<M> = <<M as MakeEndpoint>::Endpoint as EndpointService>::Exchange;
type Later<M> = Pin<Box<dyn Future<Output = CallResult<M>> + Send>>;

pin_project! {
    /// The response to come. Dropping it cancels the request and gives back every permit. Errors
    /// are [`Error`], or what a [`ShowError`] makes of them.
    pub struct ResponseFuture<M: MakeEndpoint, S = AsError> {
        // The call, while its first attempt is under way.
        in_flight: Option<InFlight<M>>,
        exchange: Option<Exchange<M>>,
        // The end of the first attempt, or of the call if that is earlier.
        until: Option<Instant>,
        #[pin]
        sleep: Option<Sleep>,
        again: Option<Box<Again>>,
        // Everything else.
        later: Option<Later<M>>,
        show: PhantomData<S>,
    }
}

impl<M: MakeEndpoint, S> ResponseFuture<M, S> {
    /// The first attempt was sent.
    pub(super) fn sent(
        in_flight: InFlight<M>,
        exchange: Exchange<M>,
        until: Option<Instant>,
        again: Option<Box<Again>>,
    ) -> Self {
        Self {
            in_flight: Some(in_flight),
            exchange: Some(exchange),
            until,
            sleep: None,
            again,
            later: None,
            show: PhantomData,
        }
    }

    /// Rare: kept out of every other call's future.
    pub(super) fn later(later: impl Future<Output = CallResult<M>> + Send + 'static) -> Self {
        Self {
            in_flight: None,
            exchange: None,
            until: None,
            sleep: None,
            again: None,
            later: Some(Box::pin(later)),
            show: PhantomData,
        }
    }

    /// Nobody was asked.
    pub(super) fn answered(response: Response<ResponseBody<M>>) -> Self {
        Self::later(std::future::ready(Ok(response)))
    }

    pub(crate) fn failed(error: Error) -> Self {
        Self::later(std::future::ready(Err(error)))
    }
}

impl<M: MakeEndpoint, S: ShowError> Future for ResponseFuture<M, S> {
    type Output = Result<Response<ResponseBody<M, S>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(exchange) = this.exchange else {
            let Some(later) = this.later else {
                unreachable!("polled after its end")
            };
            return later.as_mut().poll(cx).map(show);
        };
        let result = match exchange.poll_response(cx) {
            Poll::Ready(Ok(mut response)) => {
                let protocol = this.in_flight.as_ref().map(|call| call.protocol);
                let protocol = protocol.unwrap_or(Protocol::Http);
                let outcome = classify(&response, protocol);
                let is_rejected = |again: &Again| again.rejects(&response, outcome, protocol);
                if !this.again.as_deref().is_some_and(is_rejected)
                    && let Some(in_flight) = this.in_flight.as_mut()
                {
                    *this.exchange = None;
                    in_flight.respond(&mut response, outcome);
                    let (head, body) = response.into_parts();
                    let body = ResponseBody::new(body, this.in_flight.take());
                    return Poll::Ready(Ok(Response::from_parts(head, body)));
                }
                AttemptResult::Response(response)
            }
            Poll::Ready(Err(error)) => AttemptResult::Failed(error),
            Poll::Pending => {
                let Some(until) = *this.until else {
                    return Poll::Pending;
                };
                // Made only when it has to be waited for.
                if this.sleep.is_none() {
                    this.sleep.set(Some(sleep_until(until)));
                }
                let Some(sleep) = this.sleep.as_mut().as_pin_mut() else {
                    unreachable!("it has just been made")
                };
                ready!(sleep.poll(cx));
                AttemptResult::TimedOut
            }
        };
        let Some(in_flight) = this.in_flight.take() else {
            unreachable!("it is there as long as the exchange")
        };
        let outcome = result.outcome(in_flight.protocol);
        let is_last = this.again.is_none() && !result.is_unsent();
        // Also resets a stream that took too long.
        *this.exchange = None;
        if is_last {
            return Poll::Ready(show(result.end(in_flight, outcome)));
        }
        let attempts = Attempts::new(in_flight, this.again.take(), *this.until);
        let later = this
            .later
            .insert(Box::pin(attempts.run(Next::Judge(result))));
        later.as_mut().poll(cx).map(show)
    }
}

fn show<M: MakeEndpoint, S: ShowError>(
    result: CallResult<M>,
) -> Result<Response<ResponseBody<M, S>>, S::Error> {
    match result {
        Ok(response) => Ok(response.map(ResponseBody::shown_as)),
        Err(error) => Err(S::show(error)),
    }
}

impl<M: MakeEndpoint, S> fmt::Debug for ResponseFuture<M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
