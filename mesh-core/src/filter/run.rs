//! One request on its way through filters.
//!
//! Whoever drives a [`Run`] does what its steps say and asks again. What is left in the end
//! ([`Passed`]) belongs to the response: the last filter sees it first.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, StatusCode, Uri, header::CONTENT_LENGTH};

use super::{
    Answer, ExternalCheck, Filter, FilterAction, FilterKind, FilterRequest,
    concurrency::ConcurrencyPermit,
    cors::CorsDecision,
    ext_authz::HeaderEdit,
    fault::ActiveFault,
    header_mutation::{Asked, HeaderMutations, change},
    rate_limit::{Limited, RateLimiter},
};
use crate::{authz::Authorizer, config::JwtAuthn, rng::Rng};

/// Envoy's answer to a body that is too long.
const TOO_LARGE: &str = "Payload Too Large";
/// What gRPC calls it. Envoy maps 413 to `UNKNOWN`, from which no caller learns anything.
const RESOURCE_EXHAUSTED: u32 = 8;

/// One request on its way.
#[derive(Debug)]
pub struct Run<'f> {
    filters: &'f [Filter],
    next: usize,
    /// The fault filter at `next` has delayed the request already.
    delayed: Option<ActiveFault>,
    passed: Passed,
    actions: Vec<(Arc<str>, FilterAction)>,
}

/// What to do next.
#[derive(Debug)]
pub enum Step<'f> {
    /// Come back after this long.
    Wait(Duration),
    /// Answer the request, for what the filter did; the response's headers are changed by
    /// [`Passed::respond`], too.
    Answer(Box<Answer>, FilterAction),
    /// Come back if this permits the request.
    Authorize(&'f Authorizer),
    /// Come back if the request's tokens are believed, with [`Run::replace`].
    Authenticate(&'f Arc<JwtAuthn>),
    /// Come back if the service permits the request, with [`Run::replace`] and [`Run::respond_with`].
    Check(&'f ExternalCheck),
    /// All filters let it pass.
    Pass,
}

/// What filters leave behind for the response.
#[derive(Debug, Default)]
pub struct Passed {
    /// The request's headers, when a filter changed them.
    pub headers: Option<HeaderMap>,
    /// The request's URI, when a filter changed it.
    pub uri: Option<Uri>,
    /// The request is held back until its body is there, of which there may be so many bytes: what
    /// is longer is answered with [`Answer::too_large`].
    pub buffer: Option<BufferLimit>,
    /// Given back when the response was read to its end.
    pub permits: Vec<ConcurrencyPermit>,
    responses: Vec<OnResponse>,
}

/// How much of a request is held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferLimit {
    /// The filter that wants it.
    pub filter: Arc<str>,
    /// Most bytes of the body.
    pub max_bytes: u32,
}

#[derive(Debug)]
enum OnResponse {
    Insert(HeaderMap),
    Edit(Vec<HeaderEdit>),
    Mutate(HeaderMutations, Box<Asked>),
    Refused(Arc<RateLimiter>, Box<Asked>),
}

impl<'f> Run<'f> {
    /// A request that has met no filter yet.
    pub fn new(filters: &'f [Filter]) -> Self {
        Self {
            filters,
            next: 0,
            delayed: None,
            passed: Passed::default(),
            actions: Vec::new(),
        }
    }

    /// The headers that filters have made of the request's; `None` while they are as they came.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.passed.headers.as_ref()
    }

    /// The request is another one for the filters behind, and for the application.
    pub fn replace(&mut self, headers: HeaderMap, uri: Option<Uri>) {
        self.passed.headers = Some(headers);
        self.passed.uri = uri.or_else(|| self.passed.uri.take());
    }

    /// The URI that filters have made of the request's; `None` while it is as it came.
    pub fn uri(&self) -> Option<&Uri> {
        self.passed.uri.as_ref()
    }

    /// The response's headers are changed like this.
    pub fn respond_with(&mut self, edits: Vec<HeaderEdit>) {
        if !edits.is_empty() {
            self.passed.responses.push(OnResponse::Edit(edits));
        }
    }

    /// What the filter that was met last did, for those who do what its step says.
    pub fn note(&mut self, action: FilterAction) {
        if let Some(filter) = self.next.checked_sub(1).and_then(|at| self.filters.get(at)) {
            self.count(filter, action);
        }
    }

    /// Goes on with `request`, whose headers are as they came.
    pub fn advance(
        &mut self,
        request: &FilterRequest<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Step<'f> {
        while let Some(filter) = self.filters.get(self.next) {
            let changed = self.passed.headers.take();
            let mut request = *request;
            if let Some(headers) = &changed {
                request.view.headers = headers;
            }
            let step = self.meet(filter, &request, now, rng);
            // A filter that changed them has put new ones there.
            if self.passed.headers.is_none() {
                self.passed.headers = changed;
            }
            if let Some(step) = step {
                return step;
            }
        }
        Step::Pass
    }

    fn meet(
        &mut self,
        filter: &'f Filter,
        request: &FilterRequest<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Step<'f>> {
        if let FilterKind::Fault(fault) = &filter.kind {
            let headers = request.view.headers;
            if self.delayed.take().is_none() {
                if !fault.applies(request) {
                    self.next += 1;
                    return None;
                }
                if let Some((delay, active)) = fault.delay(headers, rng) {
                    self.delayed = Some(active);
                    return self.act(filter, FilterAction::Delayed, Step::Wait(delay));
                }
            }
            self.next += 1;
            let answer = fault.abort(headers, rng)?;
            return self.answer(filter, FilterAction::Aborted, answer);
        }
        self.next += 1;
        match &filter.kind {
            FilterKind::Fault(_) => None,
            FilterKind::Authorize(authorizer) => Some(Step::Authorize(authorizer)),
            FilterKind::Authenticate(tokens) => Some(Step::Authenticate(tokens)),
            FilterKind::Check(check) => Some(Step::Check(check)),
            FilterKind::RateLimit {
                limiter,
                rate_limits,
            } => match limiter.decide(request, rate_limits, now, rng) {
                Limited::NotCounted => None,
                Limited::Passes(headers) => {
                    self.insert(headers);
                    None
                }
                Limited::OverLimit(headers) => {
                    self.insert(headers);
                    let changes = limiter.request_headers_when_not_enforced();
                    if !changes.is_empty() {
                        let mut headers = request.view.headers.clone();
                        change(changes, request, None, &mut headers);
                        self.passed.headers = Some(headers);
                    }
                    self.count(filter, FilterAction::OverLimit);
                    None
                }
                Limited::Refused(answer) => {
                    if !limiter.response_headers().is_empty() {
                        let asked = Box::new(Asked::of(request));
                        let refused = OnResponse::Refused(Arc::clone(limiter), asked);
                        self.passed.responses.push(refused);
                    }
                    self.answer(filter, FilterAction::RateLimited, answer)
                }
            },
            FilterKind::Concurrency(controller) => match controller.admit(now) {
                Ok(permit) => {
                    self.passed.permits.push(permit);
                    None
                }
                Err(answer) => self.answer(filter, FilterAction::ConcurrencyLimited, *answer),
            },
            FilterKind::Cors(cors) => match cors.decide(request, rng) {
                CorsDecision::Ignored => None,
                CorsDecision::Response(headers) => {
                    self.insert(headers);
                    None
                }
                CorsDecision::Preflight(answer) => {
                    self.answer(filter, FilterAction::Preflight, answer)
                }
            },
            FilterKind::HeaderMutation(mutations) => {
                if mutations.changes_responses() {
                    let asked = Box::new(Asked::of(request));
                    let mutate = OnResponse::Mutate(mutations.clone(), asked);
                    self.passed.responses.push(mutate);
                }
                if mutations.changes_requests() {
                    let mut headers = request.view.headers.clone();
                    mutations.change_request(request, &mut headers);
                    self.passed.headers = Some(headers);
                }
                None
            }
            FilterKind::Buffer(max) => {
                let length = request.view.headers.get(CONTENT_LENGTH);
                let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
                if length.is_some_and(|length| length > u64::from(*max)) {
                    return self.answer(filter, FilterAction::TooLarge, Answer::too_large());
                }
                let held = self.passed.buffer.as_ref();
                if held.is_none_or(|held| held.max_bytes > *max) {
                    self.passed.buffer = Some(BufferLimit {
                        filter: Arc::clone(&filter.name),
                        max_bytes: *max,
                    });
                }
                None
            }
        }
    }

    fn insert(&mut self, headers: HeaderMap) {
        if !headers.is_empty() {
            self.passed.responses.push(OnResponse::Insert(headers));
        }
    }

    fn count(&mut self, filter: &Filter, action: FilterAction) {
        self.actions.push((Arc::clone(&filter.name), action));
    }

    fn act(&mut self, filter: &Filter, action: FilterAction, step: Step<'f>) -> Option<Step<'f>> {
        self.count(filter, action);
        Some(step)
    }

    fn answer(
        &mut self,
        filter: &Filter,
        action: FilterAction,
        answer: Answer,
    ) -> Option<Step<'f>> {
        self.act(filter, action, Step::Answer(Box::new(answer), action))
    }

    /// What filters did since the last time.
    pub fn take_actions(&mut self) -> Vec<(Arc<str>, FilterAction)> {
        std::mem::take(&mut self.actions)
    }

    /// What they leave behind. Responses are made with the request as it is in the end (Envoy).
    pub fn end(mut self) -> Passed {
        if let Some(headers) = &self.passed.headers {
            for response in &mut self.passed.responses {
                match response {
                    OnResponse::Insert(_) | OnResponse::Edit(_) => {}
                    OnResponse::Mutate(_, asked) | OnResponse::Refused(_, asked) => {
                        asked.replace(headers.clone());
                    }
                }
            }
        }
        self.passed
    }
}

impl Answer {
    /// The body is longer than a filter allows.
    pub fn too_large() -> Self {
        Self {
            grpc_status: Some(RESOURCE_EXHAUSTED),
            ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE)
        }
    }
}

impl Passed {
    /// Whether the response's headers stay as they are.
    pub fn leaves_response(&self) -> bool {
        self.responses.is_empty()
    }

    /// Changes the response's headers.
    pub fn respond(&self, status: StatusCode, headers: &mut HeaderMap) {
        for response in self.responses.iter().rev() {
            match response {
                OnResponse::Insert(more) => {
                    for (name, value) in more {
                        headers.insert(name.clone(), value.clone());
                    }
                }
                OnResponse::Edit(edits) => {
                    for edit in edits {
                        edit.apply(headers);
                    }
                }
                OnResponse::Mutate(mutations, asked) => {
                    mutations.change_response(asked, status, headers);
                }
                OnResponse::Refused(limiter, asked) => {
                    asked.change(limiter.response_headers(), status, headers);
                }
            }
        }
    }
}
