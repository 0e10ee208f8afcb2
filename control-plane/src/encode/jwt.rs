//! Tokens of requests (Envoy's `jwt_authn` filter).

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{BackoffStrategy, DataSource, HttpUri, RetryPolicy, data_source, http_uri},
            route::v3::{RouteMatch, route_match},
        },
        extensions::filters::http::jwt_authn::v3::{
            JwksAsyncFetch, JwtAuthentication, JwtClaimToHeader, JwtHeader,
            JwtProvider as ProtoProvider, JwtRequirement, JwtRequirementOrList,
            RemoteJwks as ProtoRemote, RequirementRule, jwt_provider, jwt_requirement,
            requirement_rule,
        },
    },
    google::protobuf::{Empty, UInt32Value},
};
use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, Jwks, JwtAuthn, JwtProvider, Permission, Principal, Rbac,
    RbacAction, RbacPolicy, RemoteJwks, StringMatcher, StringPattern,
};

use super::duration;

/// Encodes the filter: a request has no token, or one that a provider believes.
pub(super) fn filter(config: &JwtAuthn) -> JwtAuthentication {
    let requirement = |of| JwtRequirement {
        requires_type: Some(of),
    };
    let named = config.providers.iter().map(|provider| {
        let name = provider.name.clone();
        requirement(jwt_requirement::RequiresType::ProviderName(name))
    });
    let missing = requirement(jwt_requirement::RequiresType::AllowMissing(Empty {}));
    let any = JwtRequirementOrList {
        requirements: named.chain([missing]).collect(),
    };
    let everything = RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
        ..RouteMatch::default()
    };
    let rule = RequirementRule {
        r#match: Some(everything),
        requirement_type: Some(requirement_rule::RequirementType::Requires(requirement(
            jwt_requirement::RequiresType::RequiresAny(any),
        ))),
    };
    let providers = config.providers.iter();
    JwtAuthentication {
        providers: providers
            .map(|provider| (provider.name.clone(), encode_provider(provider)))
            .collect(),
        rules: vec![rule],
        ..JwtAuthentication::default()
    }
}

fn encode_provider(config: &JwtProvider) -> ProtoProvider {
    let headers = config.from_headers.iter().map(|location| JwtHeader {
        name: location.name.clone(),
        value_prefix: location.value_prefix.clone(),
    });
    let claims = config.claim_to_headers.iter().map(|one| JwtClaimToHeader {
        header_name: one.header.clone(),
        claim_name: one.claim.clone(),
        ..JwtClaimToHeader::default()
    });
    let keys = match &config.jwks {
        Jwks::Inline(text) => jwt_provider::JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(data_source::Specifier::InlineString(text.to_string())),
            ..DataSource::default()
        }),
        Jwks::Remote(remote) => {
            jwt_provider::JwksSourceSpecifier::RemoteJwks(encode_remote(remote))
        }
    };
    ProtoProvider {
        issuer: config.issuer.clone(),
        audiences: config.audiences.clone(),
        forward: config.forward,
        from_headers: headers.collect(),
        from_params: config.from_params.clone(),
        from_cookies: config.from_cookies.clone(),
        forward_payload_header: config.forward_payload_header.clone().unwrap_or_default(),
        payload_in_metadata: config.payload_in_metadata.clone(),
        clock_skew_seconds: u32::try_from(config.clock_skew.as_secs()).unwrap_or(u32::MAX),
        claim_to_headers: claims.collect(),
        jwks_source_specifier: Some(keys),
        ..ProtoProvider::default()
    }
}

fn encode_remote(config: &RemoteJwks) -> ProtoRemote {
    let uri = HttpUri {
        uri: config.uri.to_string(),
        timeout: Some(duration(config.timeout)),
        http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(
            config.cluster.to_string(),
        )),
    };
    let pauses = BackoffStrategy {
        base_interval: Some(duration(config.backoff.base)),
        max_interval: Some(duration(config.backoff.max)),
    };
    ProtoRemote {
        http_uri: Some(uri),
        cache_duration: Some(duration(config.cache_duration)),
        async_fetch: config.prefetch.then(|| JwksAsyncFetch {
            fast_listener: true,
            failed_refetch_duration: Some(duration(config.failed_refetch)),
        }),
        retry_policy: (config.retries > 0).then(|| RetryPolicy {
            retry_back_off: Some(pauses),
            num_retries: Some(UInt32Value {
                value: config.retries,
            }),
            ..RetryPolicy::default()
        }),
    }
}

/// The filter for clients that cannot verify tokens: what may hold one is refused, as the
/// application would take it for verified.
pub(super) fn refused(config: &JwtAuthn) -> Rbac {
    let mut places = Vec::new();
    for provider in &config.providers {
        let is_default = provider.from_headers.is_empty()
            && provider.from_params.is_empty()
            && provider.from_cookies.is_empty();
        if is_default {
            places.push(holds("authorization", "Bearer "));
        }
        for location in &provider.from_headers {
            places.push(holds(&location.name, &location.value_prefix));
        }
        // Parameters are nothing that a gRPC request has.
        if !provider.from_cookies.is_empty() {
            places.push(holds("cookie", ""));
        }
    }
    if places.is_empty() {
        return Rbac::without_rules();
    }
    let policy = RbacPolicy {
        principals: vec![Principal::Any],
        permissions: places,
        condition: None,
    };
    let name = "tokens cannot be verified here".to_owned();
    Rbac::new(RbacAction::Deny, BTreeMap::from([(name, policy)]))
}

fn holds(header: &str, prefix: &str) -> Permission {
    let predicate = match prefix {
        "" => HeaderPredicate::Present(true),
        prefix => HeaderPredicate::String(StringMatcher {
            pattern: StringPattern::Prefix(prefix.to_owned()),
            ignore_case: false,
        }),
    };
    Permission::Header(HeaderMatcher::new(header, predicate))
}
