//! What security costs: handshakes.

mod handshakes;

use crate::harness::{Plan, Results};

/// Runs the family.
///
/// # Errors
/// When a contender does not start.
pub fn run(plan: &Plan) -> anyhow::Result<Results> {
    let mut results = Results::default();
    handshakes::run(plan, &mut results)?;
    Ok(results)
}
