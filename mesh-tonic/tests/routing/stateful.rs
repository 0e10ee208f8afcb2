//! Filters that keep sessions on their endpoint.

use envoy_types::pb::envoy::{
    config::core::v3::TypedExtensionConfig,
    extensions::{
        filters::{
            http::stateful_session::v3::StatefulSession,
            network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
        },
        http::stateful_session::{
            cookie::v3::CookieBasedSessionState, header::v3::HeaderBasedSessionState,
        },
    },
    r#type::http::v3::Cookie,
};

use super::resources::any;

pub(crate) const NAME: &str = "session";

pub(crate) fn session(path: &str, strict: bool) -> StatefulSession {
    let state = CookieBasedSessionState {
        cookie: Some(Cookie {
            name: "stay".into(),
            path: path.into(),
            ..Cookie::default()
        }),
    };
    StatefulSession {
        session_state: Some(TypedExtensionConfig {
            name: "envoy.http.stateful_session.cookie".into(),
            typed_config: Some(any(&state)),
        }),
        strict,
        ..StatefulSession::default()
    }
}

pub(crate) fn by_header(strict: bool) -> StatefulSession {
    let state = HeaderBasedSessionState {
        name: "x-stay".into(),
    };
    StatefulSession {
        session_state: Some(TypedExtensionConfig {
            name: "envoy.http.stateful_session.header".into(),
            typed_config: Some(any(&state)),
        }),
        strict,
        ..StatefulSession::default()
    }
}

pub(crate) fn filter(session: &StatefulSession) -> HttpFilter {
    HttpFilter {
        name: NAME.into(),
        config_type: Some(ConfigType::TypedConfig(any(session))),
        ..HttpFilter::default()
    }
}
