//! What security costs: certificates that are signed, rules that are asked.

mod issuance;
mod rules;

use crate::harness::{Plan, Results};

/// Runs the family.
///
/// # Errors
/// When a contender does not start.
pub fn run(plan: &Plan) -> anyhow::Result<Results> {
    let mut results = Results::default();
    issuance::run(plan, &mut results)?;
    rules::run(plan, &mut results)?;
    Ok(results)
}
