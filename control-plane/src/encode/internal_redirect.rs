//! Redirects of servers that are followed for the caller.

use envoy_types::pb::envoy::{
    config::{core::v3::TypedExtensionConfig, route::v3},
    extensions::internal_redirect::{
        allow_listed_routes::v3::AllowListedRoutesConfig,
        previous_routes::v3::PreviousRoutesConfig, safe_cross_scheme::v3::SafeCrossSchemeConfig,
    },
};
use mesh_core::config::{InternalRedirectPolicy, RedirectPredicate};

use super::{any, uint32};

pub(super) fn policy(config: &InternalRedirectPolicy) -> v3::InternalRedirectPolicy {
    let headers = config.response_headers_to_copy.iter();
    v3::InternalRedirectPolicy {
        max_internal_redirects: Some(uint32(config.max_redirects)),
        redirect_response_codes: config.codes.iter().copied().map(u32::from).collect(),
        predicates: config.predicates.iter().map(predicate).collect(),
        allow_cross_scheme_redirect: config.allow_cross_scheme,
        response_headers_to_copy: headers.map(ToString::to_string).collect(),
    }
}

fn predicate(config: &RedirectPredicate) -> TypedExtensionConfig {
    let (name, config) = match config {
        RedirectPredicate::PreviousRoutes => ("previous_routes", any(&PreviousRoutesConfig {})),
        RedirectPredicate::AllowListedRoutes(names) => {
            let allowed_route_names = names.clone();
            let config = AllowListedRoutesConfig {
                allowed_route_names,
            };
            ("allow_listed_routes", any(&config))
        }
        RedirectPredicate::SafeCrossScheme => ("safe_cross_scheme", any(&SafeCrossSchemeConfig {})),
    };
    TypedExtensionConfig {
        name: format!("envoy.internal_redirect_predicates.{name}"),
        typed_config: Some(config),
    }
}
