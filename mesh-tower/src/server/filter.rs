//! A served request's way through the filters of its route, in the order of the listener.
//!
//! Tokens, authorisation and its audit are done here, everything else is decided by [`Run`]. Only a check
//! by another service waits: faults are the clients'. Where no filter of the chain asks one, nothing here
//! is a future.

use std::{sync::Arc, time::SystemTime};

use http::{HeaderMap, Version};
use mesh_core::{
    authz::{Authorizer, AuthzRequest, RequestDetails},
    config::{DynamicMetadata, JwtAuthn},
    filter::{
        Allowed, Caller, EXT_AUTHZ_NAMESPACE, ExternalCheck, Filter, FilterAction, FilterRequest,
        Need, Passed, Run, Step,
    },
    rng::SplitMix64,
    route::RequestView,
};
use tokio::time::Instant;

use super::{
    audit,
    check::{self, Checked},
    connection::Connection,
    inbound::Chain,
    record::Record,
    refusal::Refusal,
};
use crate::rng;

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
        Progress::Ask(_) => Err(Refusal::DENIED),
    };
    *passed = passage.end();
    result
}

/// The same where a filter may ask another service.
pub(super) async fn run_waiting(
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
    let result = loop {
        match passage.advance() {
            Progress::Done(result) => break result,
            Progress::Ask(check) => {
                if let Err(refusal) = passage.ask(check).await {
                    break Err(refusal);
                }
            }
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
        // Compiled with the chain; without it nobody could be believed.
        let verifier = self.chain.verifier(tokens).ok_or(Refusal::DENIED)?;
        let view = self.view();
        let mut headers = view.headers.clone();
        verifier.sanitize(&mut headers);
        let verified = verifier
            .verify(&headers, view.uri, SystemTime::now())
            .map_err(|why| Refusal::unauthenticated(why.as_str()))?;
        let mut uri = None;
        if let Some(verified) = &verified {
            uri = verified.apply(&mut headers, view.uri);
        }
        if let Some(verified) = verified {
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

    /// Asks the service of `check`, and does what it says.
    async fn ask(&mut self, check: &ExternalCheck) -> Result<(), Refusal> {
        let service = self.chain.authorization_service(check.config());
        let checked = {
            let view = self.view();
            let request = check.request(self.caller(), &view);
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
