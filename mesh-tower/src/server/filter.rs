//! A served request's way through the filters of its route, in the order of the listener.
//!
//! Tokens, authorisation and its audit are done here, everything else is decided by [`Run`]. Nothing waits:
//! faults are the clients'.

use std::{sync::Arc, time::SystemTime};

use mesh_core::{
    authz::{Authorizer, AuthzRequest},
    config::{DynamicMetadata, JwtAuthn},
    filter::{Filter, FilterRequest, Passed, Run, Step},
    route::RequestView,
};
use tokio::time::Instant;

use super::{audit, connection::Connection, inbound::Chain, record::Record, refusal::Refusal};
use crate::rng;

/// Takes a request through `filters`; `passed` is what they leave behind, also when one refuses.
pub(super) fn run(
    (connection, chain): (&Connection, &Chain),
    filters: &[Filter],
    view: &RequestView<'_>,
    record: &Record,
    passed: &mut Passed,
) -> Result<(), Refusal> {
    let request = FilterRequest {
        view: *view,
        route: "",
        cluster: "",
        remote: Some(connection.info.remote.ip()),
        peer: connection.peer.as_ref().map(|peer| peer.principal()),
    };
    let mut run = Run::new(filters);
    let mut rng = rng::fork();
    let mut metadata = None;
    let result = loop {
        match run.advance(&request, Instant::now().into_std(), &mut rng) {
            Step::Pass => break Ok(()),
            Step::Authenticate(tokens) => match authenticate(chain, tokens, &mut run, view) {
                Ok(found) => metadata = found.or(metadata),
                Err(refusal) => break Err(refusal),
            },
            Step::Authorize(authorizer) => {
                let view = RequestView {
                    headers: run.headers().unwrap_or(view.headers),
                    ..*view
                };
                let asked = asked(connection, &view, metadata.as_ref());
                if let Err(refusal) = authorize(connection, authorizer, &asked, record) {
                    break Err(refusal);
                }
            }
            Step::Answer(answer) => break Err(Refusal::filtered(*answer)),
            // The decoder lets no fault filter pass for servers.
            Step::Wait(_) => {}
        }
    };
    for (filter, action) in run.take_actions() {
        record.filtered(&filter, action);
    }
    *passed = run.end();
    result
}

/// What a token says of the caller; `None` without a token.
fn authenticate(
    chain: &Chain,
    tokens: &Arc<JwtAuthn>,
    run: &mut Run<'_>,
    view: &RequestView<'_>,
) -> Result<Option<DynamicMetadata>, Refusal> {
    // Compiled with the chain; without it nobody could be believed.
    let verifier = chain.verifier(tokens).ok_or(Refusal::DENIED)?;
    let mut headers = run.headers().unwrap_or(view.headers).clone();
    verifier.sanitize(&mut headers);
    let verified = verifier
        .verify(&headers, view.uri, SystemTime::now())
        .map_err(|why| Refusal::unauthenticated(why.as_str()))?;
    let mut uri = None;
    if let Some(verified) = &verified {
        uri = verified.apply(&mut headers, view.uri);
    }
    run.replace(headers, uri);
    Ok(verified.map(|verified| verified.metadata()))
}

fn asked<'r>(
    connection: &'r Connection,
    view: &RequestView<'r>,
    metadata: Option<&'r DynamicMetadata>,
) -> AuthzRequest<'r> {
    AuthzRequest {
        principals: connection.peer.as_ref().map_or(&[], |peer| peer.names()),
        authenticated: connection.peer.is_some(),
        method: view.method.as_str(),
        path: view.path,
        authority: view.authority,
        headers: view.headers,
        source: connection.info.remote.ip(),
        destination: connection.info.local,
        server_name: connection.server_name.as_deref().unwrap_or_default(),
        metadata,
    }
}

fn authorize(
    connection: &Connection,
    authorizer: &Authorizer,
    asked: &AuthzRequest<'_>,
    record: &Record,
) -> Result<(), Refusal> {
    let decision = authorizer.decide(asked);
    for shadow in &decision.shadow {
        record.shadow(shadow.allowed, shadow.policy.as_deref());
    }
    let remote = connection.info.remote;
    audit::write(&connection.shared.options, asked, remote, &decision);
    if decision.allowed {
        return Ok(());
    }
    record.denied(decision.policy.as_deref());
    Err(Refusal::DENIED)
}
