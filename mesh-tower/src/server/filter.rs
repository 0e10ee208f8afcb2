//! A served request's way through the filters of its route, in the order of the listener.
//!
//! Tokens, authorisation and its audit are done here, everything else is decided by [`Run`]. Only a check
//! by another service waits: faults are the clients'. Where no filter of the chain asks one, nothing here
//! is a future.

use std::{sync::Arc, time::SystemTime};

use http::{HeaderMap, Version};
use http_body::Body as _;
use mesh_core::{
    authz::{Authorizer, AuthzRequest, RequestDetails},
    config::{DynamicMetadata, JwtAuthn},
    filter::{
        Allowed, Answer, Caller, CheckedBody, EXT_AUTHZ_NAMESPACE, ExternalCheck, Filter,
        FilterAction, FilterRequest, Need, Passed, Run, Step,
    },
    rng::SplitMix64,
    route::RequestView,
};
use tokio::time::Instant;

use super::{
    RequestBody, audit,
    check::{self, Checked},
    connection::Connection,
    inbound::Chain,
    record::Record,
    refusal::Refusal,
};
use crate::{
    identity::PeerIdentity,
    jwt::{Rejected, Verified, Verifier},
    rng,
};

/// Takes a request through `filters`, none of which asks another service; `passed` is what they leave
/// behind, also when one refuses.
pub(super) fn run(
    (connection, chain): (&Connection, &Chain),
    filters: &[Filter],
    (view, version, has_body): (&RequestView<'_>, Version, bool),
    record: &Record,
    passed: &mut Passed,
) -> Result<(), Refusal> {
    let mut passage = Passage::new(
        (connection, chain),
        filters,
        (*view, version, has_body),
        record,
    );
    let result = match passage.advance() {
        Progress::Done(result) => result,
        // The chain would have said so.
        Progress::Ask(_) | Progress::Authenticate(_) => Err(Refusal::DENIED),
    };
    *passed = passage.end();
    result
}

/// The same where a filter may ask another service.
pub(super) async fn run_waiting(
    (connection, chain): (&Connection, &Chain),
    filters: &[Filter],
    (view, version, body): (&RequestView<'_>, Version, &mut RequestBody),
    record: &Record,
    passed: &mut Passed,
) -> Result<(), Refusal> {
    let head = (*view, version, !body.is_end_stream());
    let mut passage = Passage::new((connection, chain), filters, head, record);
    let result = loop {
        let done = match passage.advance() {
            Progress::Done(result) => break result,
            Progress::Ask(check) => passage.ask(check, body).await,
            Progress::Authenticate(tokens) => passage.authenticate_waiting(tokens).await,
        };
        if let Err(refusal) = done {
            break Err(refusal);
        }
    };
    *passed = passage.end();
    result
}

/// What a passage comes to.
enum Progress<'f> {
    Done(Result<(), Refusal>),
    /// A service must be asked before it goes on.
    Ask(&'f ExternalCheck),
    /// The keys of tokens may have to be fetched.
    Authenticate(&'f Arc<JwtAuthn>),
}

/// A request among filters.
struct Passage<'p> {
    connection: &'p Connection,
    chain: &'p Chain,
    record: &'p Record,
    request: FilterRequest<'p>,
    version: Version,
    has_body: bool,
    run: Run<'p>,
    rng: SplitMix64,
    /// What filters found out.
    metadata: Option<DynamicMetadata>,
}

impl<'p> Passage<'p> {
    fn new(
        (connection, chain): (&'p Connection, &'p Chain),
        filters: &'p [Filter],
        (view, version, has_body): (RequestView<'p>, Version, bool),
        record: &'p Record,
    ) -> Self {
        let request = FilterRequest {
            view,
            route: "",
            cluster: "",
            remote: Some(connection.info.remote.ip()),
            peer: connection.peer.as_ref().map(|peer| peer.principal()),
        };
        Self {
            connection,
            chain,
            record,
            request,
            version,
            has_body,
            run: Run::new(filters),
            rng: rng::fork(),
            metadata: None,
        }
    }

    /// Goes on until a service must be asked, or to the end.
    fn advance(&mut self) -> Progress<'p> {
        loop {
            let now = Instant::now().into_std();
            match self.run.advance(&self.request, now, &mut self.rng) {
                Step::Pass => return Progress::Done(Ok(())),
                Step::Authenticate(tokens) if self.chain.waits => {
                    return Progress::Authenticate(tokens);
                }
                Step::Authenticate(tokens) => {
                    if let Err(refusal) = self.authenticate(tokens) {
                        return Progress::Done(Err(refusal));
                    }
                }
                Step::Authorize(authorizer) => {
                    if let Err(refusal) = self.authorize(authorizer) {
                        return Progress::Done(Err(refusal));
                    }
                }
                Step::Check(check) => {
                    let path = self.request.view.path;
                    match check.need(path, self.metadata.as_ref(), &mut self.rng) {
                        Need::Pass => {}
                        Need::Check => return Progress::Ask(check),
                        Need::Refuse => {
                            self.run.note(FilterAction::CheckFailed);
                            let refusal = check::failed(check.config(), None);
                            return Progress::Done(Err(refusal));
                        }
                    }
                }
                Step::Answer(answer) => {
                    return Progress::Done(Err(Refusal::filtered(*answer)));
                }
                // The decoder lets no fault filter pass for servers.
                Step::Wait(_) => {}
            }
        }
    }

    fn end(mut self) -> Passed {
        for (filter, action) in self.run.take_actions() {
            self.record.filtered(&filter, action);
        }
        self.run.end()
    }

    /// The request as the filters before have left it.
    fn view(&self) -> RequestView<'_> {
        let came = &self.request.view;
        RequestView {
            headers: self.run.headers().unwrap_or(came.headers),
            uri: self.run.uri().unwrap_or(came.uri),
            ..*came
        }
    }

    /// Asks for the caller's tokens; without any it passes.
    fn authenticate(&mut self, tokens: &Arc<JwtAuthn>) -> Result<(), Refusal> {
        let (verifier, headers) = self.begin_tokens(tokens)?;
        let verdict = verifier.verify(&headers, self.view().uri, SystemTime::now());
        self.end_tokens(verdict, headers)
    }

    /// The same where keys may have to be fetched first.
    async fn authenticate_waiting(&mut self, tokens: &Arc<JwtAuthn>) -> Result<(), Refusal> {
        let (verifier, headers) = self.begin_tokens(tokens)?;
        let verdict = {
            let uri = self.view().uri;
            let asked = verifier.verify_waiting(&headers, uri);
            match self.record.span() {
                Some(span) => span.run(asked).await,
                None => asked.await,
            }
        };
        self.end_tokens(verdict, headers)
    }

    /// Who verifies, and the headers without what callers may not say.
    fn begin_tokens(&self, tokens: &Arc<JwtAuthn>) -> Result<(&'p Verifier, HeaderMap), Refusal> {
        // Compiled with the chain; without it nobody could be believed.
        let verifier = self.chain.verifier(tokens).ok_or(Refusal::DENIED)?;
        let mut headers = self.view().headers.clone();
        verifier.sanitize(&mut headers);
        Ok((verifier, headers))
    }

    fn end_tokens(
        &mut self,
        verdict: Result<Option<Verified<'_>>, Rejected>,
        mut headers: HeaderMap,
    ) -> Result<(), Refusal> {
        let verified = match verdict {
            Ok(verified) => verified,
            Err(why) => {
                self.run.note(match why {
                    Rejected::KeysMissing => FilterAction::KeysMissing,
                    _ => FilterAction::TokenRejected,
                });
                return Err(Refusal::unauthenticated(why));
            }
        };
        let mut uri = None;
        if let Some(verified) = verified {
            uri = verified.apply(&mut headers, self.view().uri);
            verified.tell(self.metadata.get_or_insert_default());
        }
        self.run.replace(headers, uri);
        Ok(())
    }

    fn authorize(&mut self, authorizer: &Authorizer) -> Result<(), Refusal> {
        let (connection, view) = (self.connection, self.view());
        let asked = AuthzRequest {
            principals: connection.peer.as_ref().map_or(&[], |peer| peer.names()),
            authenticated: connection.peer.is_some(),
            method: view.method.as_str(),
            path: view.path,
            authority: view.authority,
            headers: view.headers,
            source: connection.info.remote.ip(),
            destination: connection.info.local,
            server_name: connection.server_name.as_deref().unwrap_or_default(),
            metadata: self.metadata.as_ref(),
            details: RequestDetails {
                query: view.query(),
                scheme: self.scheme(),
                protocol: spoken(self.version),
                source_port: connection.info.remote.port(),
            },
        };
        let decision = authorizer.decide(&asked);
        let tried = decision.shadow.iter().filter(|shadow| !shadow.is_selection);
        for shadow in tried {
            self.record
                .shadow(shadow.allowed, shadow.policy.map(|name| &**name));
        }
        let remote = connection.info.remote;
        audit::write(&connection.shared.options, &asked, remote, &decision);
        if !decision.shadow.is_empty() {
            decision.tell(self.metadata.get_or_insert_default());
        }
        if decision.allowed {
            return Ok(());
        }
        self.record.denied(decision.policy.map(|name| &**name));
        Err(Refusal::DENIED)
    }

    /// Reads as much of the body as `check` tells.
    async fn read(
        &mut self,
        check: &ExternalCheck,
        body: &mut RequestBody,
    ) -> Result<Option<CheckedBody>, Refusal> {
        let Some(told) = check.body().filter(|_| self.has_body) else {
            return Ok(None);
        };
        let max = told.max_request_bytes as usize;
        // One more shows that there is more.
        let most = if told.allow_partial {
            max
        } else {
            max.saturating_add(1)
        };
        let declared = body.size_hint().lower();
        let mut is_longer = !told.allow_partial && declared > max as u64;
        let mut read = CheckedBody::default();
        if !is_longer {
            read = body.read_ahead(most).await.map_err(|error| {
                tracing::debug!(target: "mesh::server", error, "the body of a request failed");
                Refusal::BAD_BODY
            })?;
            is_longer = read.data.len() > max;
        }
        if is_longer {
            self.run.note(FilterAction::TooLarge);
            return Err(Refusal::filtered(Answer::too_large()));
        }
        Ok(Some(read))
    }

    /// Asks the service of `check`, and does what it says.
    async fn ask(&mut self, check: &ExternalCheck, body: &mut RequestBody) -> Result<(), Refusal> {
        let service = self.chain.authorization_service(check.config());
        let body = self.read(check, body).await?;
        let checked = {
            let view = self.view();
            let metadata = self.metadata.as_ref();
            let request = check.request(self.caller(), &view, body.as_ref(), metadata);
            let asked = check::ask(check, service, &request);
            match self.record.span() {
                Some(span) => span.run(asked).await,
                None => asked.await,
            }
        };
        match checked {
            Checked::Refused(refusal, action) => {
                self.run.note(action);
                Err(refusal)
            }
            Checked::Unchecked => {
                self.run.note(FilterAction::CheckFailedOpen);
                let mut headers = self.view().headers.clone();
                check.mark_unchecked(&mut headers);
                self.run.replace(headers, None);
                Ok(())
            }
            Checked::Passes(allowed) => self.change(*allowed),
        }
    }

    fn change(&mut self, allowed: Allowed) -> Result<(), Refusal> {
        let view = self.view();
        let mut headers: HeaderMap = view.headers.clone();
        let uri = allowed.apply(&mut headers, view.uri).map_err(|error| {
            tracing::warn!(target: "mesh::server", %error, "refused: a verdict cannot be used");
            Refusal::FAILED_CHECK
        })?;
        self.run.replace(headers, uri);
        self.run.respond_with(allowed.response);
        if let Some(serde_json::Value::Object(fields)) = allowed.metadata {
            let metadata = self.metadata.get_or_insert_default();
            for (key, value) in fields {
                metadata.set(EXT_AUTHZ_NAMESPACE, &key, value);
            }
        }
        Ok(())
    }

    /// As the connection has it: HTTP/1.1 does not say.
    fn scheme(&self) -> &'static str {
        match self.connection.info.is_tls {
            true => "https",
            false => "http",
        }
    }

    fn caller(&self) -> Caller<'p> {
        let connection = self.connection;
        Caller {
            source: connection.info.remote,
            principal: connection.peer.as_ref().map_or("", |peer| peer.principal()),
            destination: connection.info.local,
            server_name: connection.server_name.as_deref().unwrap_or_default(),
            scheme: self.scheme(),
            protocol: spoken(self.version),
            time: SystemTime::now(),
            has_body: self.has_body,
            certificate: connection.peer.as_ref().map(PeerIdentity::certificate),
        }
    }
}

fn spoken(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}
