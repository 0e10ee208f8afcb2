//! Rules of a GRPCRoute.

use super::{Rule, matches};
use crate::model::gateway::GrpcRule;

pub(super) fn rule(declared: &GrpcRule) -> Rule<'_> {
    Rule {
        name: declared.name.as_deref(),
        matches: matches::grpc(&declared.matches),
        filters: &declared.filters,
        backends: &declared.backend_refs,
        timeout: Ok(None),
        retry: Ok(None),
        session: declared.session_persistence.as_ref(),
    }
}
