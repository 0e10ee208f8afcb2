//! Which outcomes a retry policy asks to try again (Envoy `retry_on`, gRFC A44).

use crate::{
    config::{RetryOn, RetryPolicy},
    outcome::Outcome,
};

/// Whether `policy` wants another attempt after `outcome`.
pub fn is_retriable(policy: &RetryPolicy, outcome: Outcome) -> bool {
    let conditions = match outcome {
        Outcome::Http(status) => return is_retriable_status(policy, status),
        Outcome::Grpc(1) => RetryOn::CANCELLED,
        Outcome::Grpc(4) => RetryOn::DEADLINE_EXCEEDED,
        Outcome::Grpc(8) => RetryOn::RESOURCE_EXHAUSTED,
        Outcome::Grpc(13) => RetryOn::INTERNAL,
        Outcome::Grpc(14) => RetryOn::UNAVAILABLE,
        // Envoy: what overflows here would overflow again.
        Outcome::Grpc(_) | Outcome::Overflow => return false,
        // gRPC users ask for UNAVAILABLE where Envoy users ask for connect-failure.
        Outcome::ConnectFailure => {
            RetryOn::CONNECT_FAILURE | RetryOn::SERVER_ERROR | RetryOn::UNAVAILABLE
        }
        Outcome::Refused => {
            RetryOn::REFUSED_STREAM | RetryOn::SERVER_ERROR | RetryOn::RESET | RetryOn::UNAVAILABLE
        }
        Outcome::Reset => RetryOn::RESET | RetryOn::SERVER_ERROR | RetryOn::UNAVAILABLE,
        Outcome::PerTryTimeout => {
            RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR | RetryOn::DEADLINE_EXCEEDED
        }
    };
    policy.retry_on.intersects(conditions)
}

fn is_retriable_status(policy: &RetryPolicy, status: u16) -> bool {
    let on = |conditions| policy.retry_on.intersects(conditions);
    (status >= 500 && on(RetryOn::SERVER_ERROR))
        || (matches!(status, 502..=504) && on(RetryOn::GATEWAY_ERROR))
        || (status == 409 && on(RetryOn::RETRIABLE_4XX))
        || (on(RetryOn::RETRIABLE_STATUS_CODES) && policy.retriable_status_codes.contains(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_takes_its_outcomes_and_no_others() {
        use Outcome::{ConnectFailure, Grpc, Http, PerTryTimeout, Refused, Reset};
        let all = [
            Http(200),
            Http(404),
            Http(409),
            Http(429),
            Http(500),
            Http(503),
            Grpc(0),
            Grpc(5),
            Grpc(1),
            Grpc(4),
            Grpc(8),
            Grpc(13),
            Grpc(14),
            ConnectFailure,
            Refused,
            Reset,
            PerTryTimeout,
        ];
        let check = |list: &str, expected: &[Outcome]| {
            let (retry_on, unknown) = RetryOn::parse(list);
            assert!(unknown.is_empty(), "{unknown:?}");
            let policy = RetryPolicy {
                retry_on,
                retriable_status_codes: vec![429],
                ..RetryPolicy::default()
            };
            let taken: Vec<_> = all
                .into_iter()
                .filter(|o| is_retriable(&policy, *o))
                .collect();
            assert_eq!(taken, expected, "{list}");
        };
        check("", &[]);
        check(
            "5xx",
            &[
                Http(500),
                Http(503),
                ConnectFailure,
                Refused,
                Reset,
                PerTryTimeout,
            ],
        );
        check("gateway-error", &[Http(503), PerTryTimeout]);
        check("connect-failure", &[ConnectFailure]);
        check("refused-stream", &[Refused]);
        check("reset", &[Refused, Reset]);
        check("retriable-4xx", &[Http(409)]);
        check("retriable-status-codes", &[Http(429)]);
        check("cancelled, Internal", &[Grpc(1), Grpc(13)]);
        check("deadline-exceeded", &[Grpc(4), PerTryTimeout]);
        check("resource-exhausted", &[Grpc(8)]);
        check("unavailable", &[Grpc(14), ConnectFailure, Refused, Reset]);
        assert_eq!(RetryOn::parse("5xx,503, nonsense").1, ["503", "nonsense"]);
    }
}
