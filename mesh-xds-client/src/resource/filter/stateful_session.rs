//! Sessions that stick to an endpoint, by a cookie or a header (gRFC A55, A60; Envoy
//! `StatefulSession`).
//!
//! Without `session_state` the filter does nothing.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::extensions::{
        filters::http::stateful_session::v3::{
            StatefulSession as SessionProto, StatefulSessionPerRoute,
            stateful_session_per_route::Override,
        },
        http::stateful_session::{
            cookie::v3::CookieBasedSessionState, header::v3::HeaderBasedSessionState,
        },
    },
    google::protobuf::Any,
};
use mesh_core::config::{
    FilterConfig, FilterOverride, SessionCookieConfig, SessionState, StatefulSession,
};

use super::{CLIENTS, FilterType};
use crate::resource::{
    path::Sink,
    report::report,
    route::{Side, headers::header_name},
    value::{duration, is, parse},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<SessionProto>,
    is_override: is::<StatefulSessionPerRoute>,
    sides: CLIENTS,
    decode,
    decode_override,
};

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    let proto: SessionProto = parse(sink, any)?;
    session(sink, &proto).map(FilterConfig::StatefulSession)
}

fn session(sink: &mut Sink, proto: &SessionProto) -> Option<Option<Arc<StatefulSession>>> {
    report!(
        sink,
        proto,
        [stat_prefix, status_on_strict_destination_not_found]
    );
    let Some(state) = &proto.session_state else {
        return Some(None);
    };
    sink.field("session_state.typed_config", |sink| {
        let Some(any) = &state.typed_config else {
            return sink.error("is missing");
        };
        let state = if is::<CookieBasedSessionState>(any) {
            SessionState::Cookie(cookie(sink, any)?)
        } else if is::<HeaderBasedSessionState>(any) {
            let state: HeaderBasedSessionState = parse(sink, any)?;
            SessionState::Header(header_name(sink, "name", &state.name)?)
        } else {
            return sink.error(format!("{} is not supported", any.type_url));
        };
        Some(Some(Arc::new(StatefulSession {
            state,
            strict: proto.strict,
        })))
    })
}

fn cookie(sink: &mut Sink, any: &Any) -> Option<SessionCookieConfig> {
    let state: CookieBasedSessionState = parse(sink, any)?;
    let cookie = match state.cookie {
        Some(cookie) if !cookie.name.is_empty() => cookie,
        _ => return sink.error_at("cookie.name", "is missing"),
    };
    let attributes = cookie.attributes.into_iter();
    Some(SessionCookieConfig {
        ttl: duration(sink, "cookie.ttl", cookie.ttl.as_ref()),
        name: cookie.name,
        path: cookie.path,
        attributes: attributes.map(|one| (one.name, one.value)).collect(),
    })
}

fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    if !is::<StatefulSessionPerRoute>(any) {
        return sink.error("must be a StatefulSessionPerRoute");
    }
    let proto: StatefulSessionPerRoute = parse(sink, any)?;
    match &proto.r#override {
        Some(Override::Disabled(true)) => Some(FilterOverride::off()),
        Some(Override::StatefulSession(proto)) => {
            let config = sink.field("stateful_session", |sink| session(sink, proto))?;
            Some(FilterOverride::with(FilterConfig::StatefulSession(config)))
        }
        Some(Override::Disabled(false)) | None => {
            sink.error("must disable the filter or hold a stateful_session")
        }
    }
}
