//! Injected faults (gRFC A33; Envoy `HTTPFault`).
//!
//! Deviation from gRFC A33: a `response_rate_limit` refuses the filter, as nobody limits by it here.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        extensions::filters::{
            common::fault::v3::{FaultDelay as DelayProto, fault_delay::FaultDelaySecifier},
            http::fault::v3::{FaultAbort as AbortProto, HttpFault, fault_abort::ErrorType},
        },
        r#type::v3::FractionalPercent,
    },
    google::protobuf::Any,
};
use mesh_core::config::{
    Abort, Delay, Fault, FaultAbort, FaultDelay, FilterConfig, FilterOverride, Fraction,
};
use prost::Message;

use super::{CLIENTS, FilterType};
use crate::resource::{
    path::Sink,
    report::report,
    route::{Side, matcher},
    value::{self, duration, is, parse, uint32},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<HttpFault>,
    is_override: is::<HttpFault>,
    sides: CLIENTS,
    decode,
    decode_override,
};

/// The largest gRPC status (`UNAUTHENTICATED`).
const GRPC_STATUS_MAX: u32 = 16;

/// Whether this is a fault filter that injects nothing. Istio sends it to everybody.
pub(super) fn is_without_effect(any: &Any) -> bool {
    is::<HttpFault>(any)
        && HttpFault::decode(&*any.value).is_ok_and(|fault| {
            fault.delay.is_none() && fault.abort.is_none() && fault.response_rate_limit.is_none()
        })
}

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    decode_fault(sink, any).map(FilterConfig::Fault)
}

fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    let fault = decode_fault(sink, any)?;
    Some(FilterOverride::with(FilterConfig::Fault(fault)))
}

fn decode_fault(sink: &mut Sink, any: &Any) -> Option<Arc<Fault>> {
    let proto: HttpFault = parse(sink, any)?;
    report!(
        sink,
        proto,
        [
            delay_percent_runtime,
            abort_percent_runtime,
            delay_duration_runtime,
            abort_http_status_runtime,
            max_active_faults_runtime,
            response_rate_limit_percent_runtime,
            abort_grpc_status_runtime,
            disable_downstream_cluster_stats,
            filter_metadata,
        ]
    );
    sink.refuse(
        "response_rate_limit",
        proto.response_rate_limit.is_some(),
        "is not supported",
    );
    let delay = match &proto.delay {
        Some(delay) => Some(sink.field("delay", |sink| decode_delay(sink, delay))?),
        None => None,
    };
    let abort = match &proto.abort {
        Some(abort) => Some(sink.field("abort", |sink| decode_abort(sink, abort))?),
        None => None,
    };
    Some(Arc::new(Fault {
        delay,
        abort,
        upstream_cluster: proto.upstream_cluster.clone(),
        headers: sink.each("headers", &proto.headers, matcher::header),
        downstream_nodes: proto.downstream_nodes.clone(),
        max_active_faults: uint32(proto.max_active_faults.as_ref()),
    }))
}

fn decode_delay(sink: &mut Sink, proto: &DelayProto) -> Option<FaultDelay> {
    let delay = match &proto.fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(fixed)) => {
            match duration(sink, "fixed_delay", Some(fixed))? {
                zero if zero.is_zero() => return sink.error_at("fixed_delay", "must not be 0"),
                fixed => Delay::Fixed(fixed),
            }
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => Delay::Header,
        None => return sink.error("has neither fixed_delay nor header_delay"),
    };
    let (percentage, denominator) = percentage(sink, proto.percentage.as_ref())?;
    Some(FaultDelay {
        delay,
        percentage,
        denominator,
    })
}

fn decode_abort(sink: &mut Sink, proto: &AbortProto) -> Option<FaultAbort> {
    report!(sink, proto, [response_body]);
    let abort = match &proto.error_type {
        Some(ErrorType::HttpStatus(status @ 200..=599)) => Abort::Http(*status as u16),
        Some(ErrorType::HttpStatus(status)) => {
            return sink.error_at("http_status", format!("{status} is not 200 to 599"));
        }
        Some(ErrorType::GrpcStatus(status @ 0..=GRPC_STATUS_MAX)) => Abort::Grpc(*status),
        Some(ErrorType::GrpcStatus(status)) => {
            return sink.error_at("grpc_status", format!("{status} is not a gRPC status"));
        }
        Some(ErrorType::HeaderAbort(_)) => Abort::Header,
        None => return sink.error("has none of http_status, grpc_status and header_abort"),
    };
    let (percentage, denominator) = percentage(sink, proto.percentage.as_ref())?;
    Some(FaultAbort {
        abort,
        percentage,
        denominator,
    })
}

/// Absent is 0 %, out of a hundred.
fn percentage(sink: &mut Sink, proto: Option<&FractionalPercent>) -> Option<(Fraction, u32)> {
    let none = FractionalPercent::default();
    let proto = proto.unwrap_or(&none);
    let fraction = sink.field("percentage", |sink| value::fraction(sink, proto))?;
    let denominator = match proto.denominator {
        1 => 10_000,
        2 => 1_000_000,
        _ => 100,
    };
    Some((fraction, denominator))
}
