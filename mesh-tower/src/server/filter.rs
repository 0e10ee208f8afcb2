//! A served request's way through the filters of its route, in the order of the listener.
//!
//! Authorisation and its audit are done here, everything else is decided by [`Run`]. Nothing waits:
//! faults are the clients'.

use mesh_core::{
    authz::{Authorizer, AuthzRequest},
    filter::{Filter, FilterRequest, Passed, Run, Step},
    route::RequestView,
};
use tokio::time::Instant;

use super::{audit, connection::Connection, record::Record, refusal::Refusal};
use crate::rng;

/// Takes a request through `filters`; `passed` is what they leave behind, also when one refuses.
pub(super) fn run(
    connection: &Connection,
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
    let result = loop {
        match run.advance(&request, Instant::now().into_std(), &mut rng) {
            Step::Pass => break Ok(()),
            Step::Authorize(authorizer) => {
                if let Err(refusal) = authorize(connection, authorizer, view, record) {
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

fn authorize(
    connection: &Connection,
    authorizer: &Authorizer,
    view: &RequestView<'_>,
    record: &Record,
) -> Result<(), Refusal> {
    let asked = AuthzRequest {
        principals: connection.peer.as_ref().map_or(&[], |peer| peer.names()),
        authenticated: connection.peer.is_some(),
        method: view.method.as_str(),
        path: view.path,
        authority: view.authority,
        headers: view.headers,
        destination_port: connection.info.local.port(),
    };
    let decision = authorizer.decide(&asked);
    if !decision.allowed || !decision.audit.is_empty() {
        audit::write(
            &connection.shared.options,
            &asked,
            connection.info.remote,
            &decision,
        );
    }
    if decision.allowed {
        return Ok(());
    }
    record.denied(decision.policy.as_deref());
    Err(Refusal::DENIED)
}
