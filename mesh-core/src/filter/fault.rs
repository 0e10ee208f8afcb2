//! Injected faults (gRFC A33; Envoy `HTTPFault`).
//!
//! The delay and the abort are drawn on their own. A percentage in a header can only lower the
//! configured one, a header that cannot be read counts as missing, and the HTTP status in a header wins
//! over a gRPC status. `max_active_faults` counts delays under way in the whole process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use http::HeaderMap;

use super::{Answer, FilterRequest, status_of};
use crate::{
    config::{Abort, Delay, Fault, Fraction},
    rng::Rng,
};

const DELAY: &str = "x-envoy-fault-delay-request";
const DELAY_PERCENTAGE: &str = "x-envoy-fault-delay-request-percentage";
const ABORT: &str = "x-envoy-fault-abort-request";
const ABORT_GRPC: &str = "x-envoy-fault-abort-grpc-request";
const ABORT_PERCENTAGE: &str = "x-envoy-fault-abort-request-percentage";
/// Whom the request comes from, as Envoy says it.
const SERVICE_NODE: &str = "x-envoy-downstream-service-node";
/// What Envoy says.
const BODY: &str = "fault filter abort";

/// Faults under way in this process.
pub(crate) type ActiveFaults = Arc<AtomicU32>;

/// Injects faults.
#[derive(Debug)]
pub(crate) struct FaultInjector {
    config: Arc<Fault>,
    active: ActiveFaults,
}

/// A fault under way.
#[derive(Debug)]
pub(crate) struct ActiveFault(ActiveFaults);

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl FaultInjector {
    pub(super) fn new(config: &Arc<Fault>, active: &ActiveFaults) -> Self {
        Self {
            config: Arc::clone(config),
            active: Arc::clone(active),
        }
    }

    /// Whether this request can get a fault.
    pub(super) fn applies(&self, request: &FilterRequest<'_>) -> bool {
        let config = &self.config;
        let full = config.max_active_faults;
        if full.is_some_and(|max| self.active.load(Relaxed) >= max) {
            return false;
        }
        let of_node = || {
            let node = request.view.headers.get(SERVICE_NODE);
            let node = node.and_then(|node| node.to_str().ok());
            node.is_some_and(|node| config.downstream_nodes.iter().any(|known| known == node))
        };
        (config.upstream_cluster.is_empty() || config.upstream_cluster == request.cluster)
            && (config.downstream_nodes.is_empty() || of_node())
            && config
                .headers
                .iter()
                .all(|header| header.is_match(request.view.header(&header.name).as_deref()))
    }

    /// How long the request waits.
    pub(super) fn delay(
        &self,
        headers: &HeaderMap,
        rng: &mut impl Rng,
    ) -> Option<(Duration, ActiveFault)> {
        let config = self.config.delay.as_ref()?;
        let (delay, share) = match config.delay {
            Delay::Fixed(delay) => (delay, config.percentage),
            Delay::Header => {
                let delay = Duration::from_millis(number(headers, DELAY)?);
                let share = lowered(
                    headers,
                    DELAY_PERCENTAGE,
                    config.percentage,
                    config.denominator,
                );
                (delay, share)
            }
        };
        if delay.is_zero() || !share.contains(rng.next_u64()) {
            return None;
        }
        self.active.fetch_add(1, Relaxed);
        Some((delay, ActiveFault(Arc::clone(&self.active))))
    }

    /// What the request is answered.
    pub(super) fn abort(&self, headers: &HeaderMap, rng: &mut impl Rng) -> Option<Answer> {
        let config = self.config.abort.as_ref()?;
        let (abort, share) = match config.abort {
            Abort::Header => {
                let abort = requested_abort(headers)?;
                let share = lowered(
                    headers,
                    ABORT_PERCENTAGE,
                    config.percentage,
                    config.denominator,
                );
                (abort, share)
            }
            fixed => (fixed, config.percentage),
        };
        if !share.contains(rng.next_u64()) {
            return None;
        }
        Some(match abort {
            Abort::Http(status) => Answer::new(status_of(status), BODY),
            Abort::Grpc(code) => Answer {
                grpc_status: Some(code),
                ..Answer::new(status_of(http_status_of(code)), BODY)
            },
            Abort::Header => unreachable!("answered above"),
        })
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn requested_abort(headers: &HeaderMap) -> Option<Abort> {
    let http = number(headers, ABORT).filter(|status| (200..=599).contains(status));
    if let Some(status) = http {
        return Some(Abort::Http(status as u16));
    }
    let grpc = number(headers, ABORT_GRPC).filter(|status| *status <= 16)?;
    Some(Abort::Grpc(grpc as u32))
}

/// The smaller one of the configured share and the one that a header asks for.
fn lowered(headers: &HeaderMap, name: &str, configured: Fraction, denominator: u32) -> Fraction {
    let asked = number(headers, name).and_then(|number| u32::try_from(number).ok());
    match asked.and_then(|number| Fraction::new(number, denominator)) {
        Some(asked) if asked.per_million() < configured.per_million() => asked,
        _ => configured,
    }
}

/// The HTTP status of a gRPC status (Envoy `grpcToHttpStatus`).
fn http_status_of(code: u32) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}
