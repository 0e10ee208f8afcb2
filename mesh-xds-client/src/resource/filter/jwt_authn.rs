//! Tokens of requests (Envoy's `jwt_authn` filter).
//!
//! Fails closed: what would verify less than the configuration asks for refuses it. Understood is one
//! rule for all paths that takes any of the providers or no token at all, with keys in the
//! configuration or at an address ([`remote_jwks`]); that is what
//! RequestAuthentication needs.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::core::v3::data_source::Specifier,
        extensions::filters::http::jwt_authn::v3::{
            JwtAuthentication, JwtProvider as ProviderProto, JwtRequirement, PerRouteConfig,
            jwt_provider::JwksSourceSpecifier, jwt_requirement::RequiresType,
            requirement_rule::RequirementType,
        },
    },
    google::protobuf::Any,
};
use http::HeaderName;
use mesh_core::config::{
    ClaimToHeader, FilterConfig, FilterOverride, HeaderLocation, JWT_CLOCK_SKEW_DEFAULT, Jwks,
    JwtAuthn, JwtProvider,
};

use super::{FilterType, SERVERS, remote_jwks};
use crate::resource::{
    path::Sink,
    report::report,
    route::Side,
    value::{is, parse},
};

pub(super) const TYPE: FilterType = FilterType {
    is: is::<JwtAuthentication>,
    is_override: is::<PerRouteConfig>,
    sides: SERVERS,
    decode,
    decode_override,
};

const UNSUPPORTED: &str = "is not supported";

fn decode_override(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterOverride> {
    sink.error(format!("{} is not supported", any.type_url))
}

fn decode(sink: &mut Sink, _: Side, any: &Any) -> Option<FilterConfig> {
    let proto: JwtAuthentication = parse(sink, any)?;
    sink.refuse(
        "filter_state_rules",
        proto.filter_state_rules.is_some(),
        UNSUPPORTED,
    );
    report!(sink, proto, [requirement_map, stat_prefix]);
    sink.refuse(
        "bypass_cors_preflight",
        proto.bypass_cors_preflight,
        UNSUPPORTED,
    );
    sink.refuse(
        "strip_failure_response",
        proto.strip_failure_response,
        UNSUPPORTED,
    );
    let [rule] = proto.rules.as_slice() else {
        return sink.error_at("rules", "must be one, for all paths");
    };
    let names = sink.field("rules[0]", |sink| {
        let is_everything = rule.r#match.as_ref().is_some_and(|matcher| {
            use envoy_types::pb::envoy::config::route::v3::{RouteMatch, route_match};
            let prefix = route_match::PathSpecifier::Prefix("/".to_owned());
            *matcher
                == RouteMatch {
                    path_specifier: Some(prefix),
                    ..RouteMatch::default()
                }
        });
        sink.refuse("match", !is_everything, "must be the prefix / alone");
        match &rule.requirement_type {
            Some(RequirementType::Requires(requirement)) => {
                sink.field("requires", |sink| accepted(sink, requirement))
            }
            _ => sink.error_at("requirement_name", UNSUPPORTED),
        }
    })?;
    let mut providers = Vec::new();
    for name in &names {
        let provider = sink.field(&format!("providers[{name:?}]"), |sink| {
            match proto.providers.get(name) {
                Some(provider) => decode_provider(sink, name, provider),
                None => sink.error("is missing"),
            }
        });
        providers.push(provider?);
    }
    Some(FilterConfig::JwtAuthn(JwtAuthn { providers }.into()))
}

/// The providers any of which is enough; no token is enough, too.
fn accepted(sink: &mut Sink, requirement: &JwtRequirement) -> Option<Vec<String>> {
    let shape = "must be requires_any of provider names and allow_missing";
    let Some(RequiresType::RequiresAny(any)) = &requirement.requires_type else {
        return sink.error(shape);
    };
    let (mut names, mut allows_missing) = (Vec::new(), false);
    for one in &any.requirements {
        match &one.requires_type {
            Some(RequiresType::ProviderName(name)) => names.push(name.clone()),
            Some(RequiresType::AllowMissing(_)) => allows_missing = true,
            _ => return sink.error_at("requires_any", shape),
        }
    }
    if names.is_empty() || !allows_missing {
        return sink.error_at("requires_any", shape);
    }
    Some(names)
}

fn decode_provider(sink: &mut Sink, name: &str, proto: &ProviderProto) -> Option<JwtProvider> {
    for (field, is_set) in [
        ("subjects", proto.subjects.is_some()),
        ("require_expiration", proto.require_expiration),
        ("max_lifetime", proto.max_lifetime.is_some()),
        (
            "payload_in_metadata_normalize",
            proto.normalize_payload_in_metadata.is_some(),
        ),
        (
            "failed_status_in_metadata",
            !proto.failed_status_in_metadata.is_empty(),
        ),
        ("header_in_metadata", !proto.header_in_metadata.is_empty()),
        (
            "pad_forward_payload_header",
            proto.pad_forward_payload_header,
        ),
        ("clear_route_cache", proto.clear_route_cache),
    ] {
        sink.refuse(field, is_set, UNSUPPORTED);
    }
    report!(sink, proto, [jwt_cache_config]);
    let jwks = match &proto.jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => {
            sink.field("local_jwks", |sink| match &source.specifier {
                Some(Specifier::InlineString(text)) => Some(Jwks::from(text.as_str())),
                Some(Specifier::InlineBytes(bytes)) => {
                    let text = String::from_utf8(bytes.to_vec());
                    let text = text.ok().or_else(|| sink.error("is not text"));
                    text.map(Jwks::from)
                }
                _ => sink.error("must be inline"),
            })
        }
        Some(JwksSourceSpecifier::RemoteJwks(remote)) => sink
            .field("remote_jwks", |sink| remote_jwks::decode(sink, remote))
            .map(Jwks::from),
        None => sink.error_at("local_jwks", "is missing"),
    };
    let from_headers = sink.each("from_headers", &proto.from_headers, |sink, header| {
        Some(HeaderLocation {
            name: header_name(sink, "name", &header.name)?,
            value_prefix: header.value_prefix.clone(),
        })
    });
    let claims = sink.each("claim_to_headers", &proto.claim_to_headers, |sink, one| {
        sink.refuse("claim_path", !one.claim_path.is_empty(), UNSUPPORTED);
        Some(ClaimToHeader {
            header: header_name(sink, "header_name", &one.header_name)?,
            claim: one.claim_name.clone(),
        })
    });
    let payload = match proto.forward_payload_header.as_str() {
        "" => None,
        name => Some(header_name(sink, "forward_payload_header", name)?),
    };
    let clock_skew = match proto.clock_skew_seconds {
        0 => JWT_CLOCK_SKEW_DEFAULT,
        seconds => Duration::from_secs(seconds.into()),
    };
    let complete = from_headers.len() == proto.from_headers.len()
        && claims.len() == proto.claim_to_headers.len();
    Some(JwtProvider {
        audiences: proto.audiences.clone(),
        from_headers,
        from_params: proto.from_params.clone(),
        from_cookies: proto.from_cookies.clone(),
        forward: proto.forward,
        forward_payload_header: payload,
        claim_to_headers: claims,
        payload_in_metadata: proto.payload_in_metadata.clone(),
        clock_skew,
        ..JwtProvider::new(name, proto.issuer.clone(), jwks?)
    })
    .filter(|_| complete)
}

fn header_name(sink: &mut Sink, field: &str, text: &str) -> Option<String> {
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Some(name.as_str().to_owned()),
        Err(_) => sink.error_at(field, format!("{text:?} is not the name of a header")),
    }
}
