//! Redirects of servers that are followed for the caller, in both forms (Envoy).
//!
//! Stage 3.

use envoy_types::pb::envoy::{
    config::{
        core::v3::TypedExtensionConfig,
        route::v3::{
            InternalRedirectPolicy as PolicyProto, RouteAction as ActionProto,
            route_action::InternalRedirectAction,
        },
    },
    extensions::internal_redirect::{
        allow_listed_routes::v3::AllowListedRoutesConfig,
        previous_routes::v3::PreviousRoutesConfig, safe_cross_scheme::v3::SafeCrossSchemeConfig,
    },
};
use mesh_core::config::{InternalRedirectPolicy, REDIRECT_CODES, RedirectPredicate};

use super::headers::header_name;
use crate::resource::{
    path::Sink,
    value::{is, parse, uint32},
};

/// The policy of an action; `None` hands redirects on.
pub(super) fn policy(sink: &mut Sink, proto: &ActionProto) -> Option<Box<InternalRedirectPolicy>> {
    match &proto.internal_redirect_policy {
        Some(policy) => {
            // As in Envoy, the older form is not looked at then.
            sink.ignore([
                (
                    "internal_redirect_action",
                    proto.internal_redirect_action != 0,
                ),
                (
                    "max_internal_redirects",
                    proto.max_internal_redirects.is_some(),
                ),
            ]);
            sink.field("internal_redirect_policy", |sink| of(sink, policy))
        }
        None if is_handled(proto) => Some(Box::new(InternalRedirectPolicy {
            max_redirects: uint32(proto.max_internal_redirects.as_ref()).unwrap_or(1),
            ..InternalRedirectPolicy::default()
        })),
        None => None,
    }
}

#[allow(deprecated)]
fn is_handled(proto: &ActionProto) -> bool {
    proto.internal_redirect_action == InternalRedirectAction::HandleInternalRedirect as i32
}

fn of(sink: &mut Sink, proto: &PolicyProto) -> Option<Box<InternalRedirectPolicy>> {
    let default = InternalRedirectPolicy::default();
    // Others are ignored (Envoy).
    let codes = REDIRECT_CODES
        .into_iter()
        .filter(|code| proto.redirect_response_codes.contains(&u32::from(*code)));
    let names = &proto.response_headers_to_copy;
    let response_headers_to_copy = sink.each("response_headers_to_copy", names, |sink, name| {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            return sink.error(format!("{name:?} says where the request goes"));
        }
        header_name(sink, "", name)
    });
    let predicates = sink.each("predicates", &proto.predicates, predicate);
    if predicates.len() < proto.predicates.len() {
        // What cannot be asked does not hold.
        return None;
    }
    Some(Box::new(InternalRedirectPolicy {
        max_redirects: uint32(proto.max_internal_redirects.as_ref())
            .unwrap_or(default.max_redirects),
        codes: match proto.redirect_response_codes.is_empty() {
            true => default.codes,
            false => codes.collect(),
        },
        predicates,
        allow_cross_scheme: proto.allow_cross_scheme_redirect,
        response_headers_to_copy,
    }))
}

/// `None` is an error, or one that is not known: then no redirect is followed.
fn predicate(sink: &mut Sink, proto: &TypedExtensionConfig) -> Option<RedirectPredicate> {
    match &proto.typed_config {
        Some(any) if is::<PreviousRoutesConfig>(any) => Some(RedirectPredicate::PreviousRoutes),
        Some(any) if is::<SafeCrossSchemeConfig>(any) => Some(RedirectPredicate::SafeCrossScheme),
        Some(any) if is::<AllowListedRoutesConfig>(any) => sink.field("typed_config", |sink| {
            let proto: AllowListedRoutesConfig = parse(sink, any)?;
            let names = proto.allowed_route_names;
            let is_unnamed = names.iter().any(String::is_empty);
            sink.refuse("allowed_route_names", is_unnamed, "has an empty name");
            Some(RedirectPredicate::AllowListedRoutes(names))
        }),
        Some(_) => {
            sink.ignore([("typed_config (no redirect is followed)", true)]);
            None
        }
        None => sink.error_at("typed_config", "is missing"),
    }
}
