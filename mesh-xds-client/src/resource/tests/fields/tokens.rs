//! Tokens of requests.

use envoy_types::pb::envoy::{
    config::{
        core::v3::{
            BackoffStrategy, DataSource, HttpUri, RetryPolicy, data_source::Specifier,
            http_uri::HttpUpstreamType,
        },
        route::v3::{RouteMatch, route_match},
    },
    extensions::filters::http::jwt_authn::v3::{
        JwksAsyncFetch, JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider,
        JwtRequirement, JwtRequirementOrList, RemoteJwks, RequirementRule,
        jwt_provider::JwksSourceSpecifier, jwt_requirement::RequiresType,
        requirement_rule::RequirementType,
    },
};

use super::{
    super::{route::seconds, *},
    filters::on_server,
    messages::add,
    probe::Fate,
};

/// The filter with one provider, or none for all.
fn filter(provider: JwtProvider) -> JwtAuthentication {
    let requirement = |of| JwtRequirement {
        requires_type: Some(of),
    };
    let any = JwtRequirementOrList {
        requirements: vec![
            requirement(RequiresType::ProviderName("p".into())),
            requirement(RequiresType::AllowMissing(Default::default())),
        ],
    };
    let everything = RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
        ..RouteMatch::default()
    };
    JwtAuthentication {
        providers: [("p".to_owned(), provider)].into(),
        rules: vec![RequirementRule {
            r#match: Some(everything),
            requirement_type: Some(RequirementType::Requires(requirement(
                RequiresType::RequiresAny(any),
            ))),
        }],
        ..JwtAuthentication::default()
    }
}

fn with_keys(keys: JwksSourceSpecifier) -> JwtProvider {
    JwtProvider {
        jwks_source_specifier: Some(keys),
        ..JwtProvider::default()
    }
}

pub(super) fn add_all(t: &mut Vec<(String, BTreeMap<String, Fate>)>) {
    let k = Kind::Listener;
    let inline = JwksSourceSpecifier::LocalJwks(DataSource {
        specifier: Some(Specifier::InlineString("{}".into())),
        ..DataSource::default()
    });
    let provider = with_keys(inline);
    let place = |provider: JwtProvider| on_server(any(&filter(provider)));
    add(t, "", k, &filter(provider.clone()), |m| on_server(any(&m)));
    add(t, "", k, &provider, place);
    let header = JwtHeader {
        name: "x".into(),
        ..JwtHeader::default()
    };
    add(t, "", k, &header, |m| {
        place(JwtProvider {
            from_headers: vec![m],
            ..provider.clone()
        })
    });
    let claim = JwtClaimToHeader {
        header_name: "x".into(),
        claim_name: "c".into(),
        ..JwtClaimToHeader::default()
    };
    add(t, "", k, &claim, |m| {
        place(JwtProvider {
            claim_to_headers: vec![m],
            ..provider.clone()
        })
    });

    let uri = HttpUri {
        uri: "https://issuer.example/keys".into(),
        timeout: seconds(1),
        http_upstream_type: Some(HttpUpstreamType::Cluster("issuer".into())),
    };
    let remote = RemoteJwks {
        http_uri: Some(uri.clone()),
        ..RemoteJwks::default()
    };
    let fetched = |remote: RemoteJwks| place(with_keys(JwksSourceSpecifier::RemoteJwks(remote)));
    add(t, "", k, &remote, fetched);
    add(t, " (of keys)", k, &uri, |m| {
        fetched(RemoteJwks {
            http_uri: Some(m),
            ..remote.clone()
        })
    });
    add(t, "", k, &JwksAsyncFetch::default(), |m| {
        fetched(RemoteJwks {
            async_fetch: Some(m),
            ..remote.clone()
        })
    });
    let with = |policy: RetryPolicy| {
        fetched(RemoteJwks {
            retry_policy: Some(policy),
            ..remote.clone()
        })
    };
    add(t, " (of keys)", k, &RetryPolicy::default(), with);
    let pauses = BackoffStrategy {
        base_interval: seconds(1),
        max_interval: None,
    };
    add(t, " (of keys)", k, &pauses, |m| {
        with(RetryPolicy {
            retry_back_off: Some(m),
            ..RetryPolicy::default()
        })
    });
}
