//! Tables of filter chain choice, addresses and routes.

use http::{HeaderMap, Method};
use mesh_core::{
    ConfigError,
    config::{
        CertificateSource, ChainMatch, DownstreamTls, HeaderMatcher, HeaderPredicate, PathMatcher,
        PathPattern, Route, RouteAction, RouteConfig, RouteMatch, TrustSource, VirtualHost,
    },
    route::RequestView,
};

use super::*;

/// A connection of which nothing but the transport is said.
fn by(transport: Transport) -> Seen {
    Seen {
        source: "192.0.2.1:5000".parse().expect("address"),
        destination: "10.0.0.1:8080".parse().expect("address"),
        transport,
        server_name: None,
        application_protocols: Vec::new(),
    }
}

fn tls(require: bool) -> DownstreamTls {
    let instance = "default".to_owned();
    DownstreamTls {
        identity: CertificateSource::Provider {
            instance: instance.clone(),
        },
        roots: Some(TrustSource::Provider { instance }),
        require_client_certificate: require,
    }
}

fn route(prefix: &str, action: RouteAction) -> Route {
    let path = PathMatcher::new(PathPattern::Prefix(prefix.into()));
    Route::new("", RouteMatch::path(path), action)
}

fn inline(domain: &str, routes: Vec<Route>) -> RouteSource {
    let host = VirtualHost::new("v", [domain], routes);
    RouteSource::Inline(Arc::new(RouteConfig::new("inbound", vec![host])))
}

fn chain(transport: TransportMatch, tls: Option<DownstreamTls>) -> FilterChain {
    let routes = inline("*", vec![route("/", RouteAction::NonForwarding)]);
    FilterChain {
        name: format!("{transport:?}"),
        transport,
        matches: ChainMatch::default(),
        tls,
        path_normalization: PathNormalization::default(),
        client_cert: ForwardClientCert::default(),
        limits: HttpLimits::default(),
        filters: vec![],
        routes,
    }
}

fn compile(filter_chains: Vec<FilterChain>, address: Option<&str>, previous: &Inbound) -> Inbound {
    let address = address.map(|address| address.parse().expect("address"));
    let state = InboundState::Ready(Arc::new(InboundListener {
        address,
        filter_chains,
    }));
    let local = "10.0.0.1:8080".parse().expect("address");
    Inbound::compile(
        &state,
        previous,
        local,
        &alone(&Identity::none()),
        &mut FilterStates::new(0),
    )
    .expect("a change")
}

fn alone(identity: &Identity) -> With<'_> {
    With {
        identity,
        services: None,
    }
}

#[test]
fn chains_are_chosen_by_transport_and_must_fit() {
    // (chains, raw fits, TLS without certificate fits, TLS with one fits)
    for (chains, raw, anonymous, authenticated) in [
        (
            vec![(TransportMatch::Tls, Some(tls(true)))],
            false,
            false,
            true,
        ),
        (
            vec![(TransportMatch::Any, Some(tls(true)))],
            false,
            false,
            true,
        ),
        (vec![(TransportMatch::Any, None)], true, false, false),
        (
            vec![
                (TransportMatch::Any, None),
                (TransportMatch::Tls, Some(tls(true))),
            ],
            true,
            false,
            true,
        ),
        (
            vec![
                (TransportMatch::RawBuffer, None),
                (TransportMatch::Tls, Some(tls(false))),
            ],
            true,
            true,
            true,
        ),
        (
            vec![
                (TransportMatch::RawBuffer, Some(tls(true))),
                (TransportMatch::Any, None),
            ],
            false,
            false,
            false,
        ),
        (vec![], false, false, false),
    ] {
        let text = format!("{chains:?}");
        let chains = chains
            .into_iter()
            .map(|(transport, tls)| chain(transport, tls))
            .collect();
        let inbound = compile(chains, None, &Inbound::Pending);
        let fits = |transport, auth| inbound.chain_of_live(&by(transport), auth).is_some();
        assert_eq!(fits(Transport::Raw, false), raw, "raw: {text}");
        assert_eq!(fits(Transport::Tls, false), anonymous, "anonymous: {text}");
        assert_eq!(
            fits(Transport::Tls, true),
            authenticated,
            "authenticated: {text}"
        );
    }
    let mut unusable = tls(true);
    unusable.roots = None;
    let inbound = compile(
        vec![chain(TransportMatch::Any, Some(unusable))],
        None,
        &Inbound::Pending,
    );
    assert!(inbound.chain_of_live(&by(Transport::Tls), true).is_none());
}

#[test]
fn plaintext_is_the_reason_where_a_chain_would_take_tls() {
    let with = |transport, matches| FilterChain {
        matches,
        ..chain(transport, Some(tls(true)))
    };
    let named = ChainMatch {
        server_names: vec!["a".into()],
        ..ChainMatch::default()
    };
    let elsewhere = ChainMatch {
        destination_port: Some(1),
        ..ChainMatch::default()
    };
    let (any, raw) = (ChainMatch::default(), TransportMatch::RawBuffer);
    for (chain, of_raw, of_tls) in [
        (with(TransportMatch::Tls, any.clone()), "plaintext", ""),
        (
            with(TransportMatch::Tls, named),
            "plaintext",
            "no_filter_chain",
        ),
        (
            with(TransportMatch::Tls, elsewhere),
            "no_filter_chain",
            "no_filter_chain",
        ),
        (with(raw, any), "", "no_filter_chain"),
    ] {
        let name = format!("{:?} {:?}", chain.transport, chain.matches);
        let inbound = compile(vec![chain], None, &Inbound::Pending);
        for (transport, reason) in [(Transport::Raw, of_raw), (Transport::Tls, of_tls)] {
            let seen = by(transport);
            let found = match inbound.chain(&seen) {
                Some(_) => "",
                None => inbound.why_no_chain(&seen),
            };
            assert_eq!(found, reason, "{transport:?} to {name}");
        }
    }
}

#[test]
fn the_address_must_be_ours() {
    for (address, serving) in [
        (None, true),
        (Some("10.0.0.1:8080"), true),
        (Some("0.0.0.0:8080"), true),
        (Some("10.0.0.1:0"), true),
        (Some("10.0.0.2:8080"), false),
        (Some("10.0.0.1:8081"), false),
    ] {
        let inbound = compile(
            vec![chain(TransportMatch::Any, None)],
            address,
            &Inbound::Pending,
        );
        assert_eq!(
            matches!(inbound, Inbound::Serving(_)),
            serving,
            "{address:?}"
        );
    }
}

#[test]
fn tls_that_did_not_change_keeps_its_sessions_and_pending_changes_nothing() {
    let held =
        |inbound: &Inbound| match &inbound.chain(&by(Transport::Tls)).expect("chain").security {
            Security::Tls(tls) => Arc::clone(tls),
            _ => panic!("no TLS"),
        };
    let first = compile(
        vec![chain(TransportMatch::Any, Some(tls(true)))],
        None,
        &Inbound::Pending,
    );
    let same = compile(
        vec![chain(TransportMatch::Tls, Some(tls(true)))],
        None,
        &first,
    );
    assert!(Arc::ptr_eq(&held(&first), &held(&same)));
    let other = compile(
        vec![chain(TransportMatch::Tls, Some(tls(false)))],
        None,
        &same,
    );
    assert!(!Arc::ptr_eq(&held(&same), &held(&other)));

    let local = "10.0.0.1:8080".parse().expect("address");
    let none = Identity::none();
    assert!(
        Inbound::compile(
            &InboundState::Pending,
            &other,
            local,
            &alone(&none),
            &mut FilterStates::new(0)
        )
        .is_none()
    );
    let failed = InboundState::Failed(ConfigError::new("listener x", "", "gone"));
    let failed = Inbound::compile(
        &failed,
        &other,
        local,
        &alone(&none),
        &mut FilterStates::new(0),
    )
    .expect("a change");
    assert!(matches!(failed, Inbound::Refusing(_)));
}

#[test]
fn routes_decide_what_is_served_here() {
    let headers = HeaderMap::new();
    let check = |routes: RouteSource, authority: &str, path: &str| {
        let mut declared = chain(TransportMatch::Any, None);
        declared.routes = routes;
        let inbound = compile(vec![declared], None, &Inbound::Pending);
        let method = Method::GET;
        let uri = path.parse().expect("a path");
        let view = RequestView::new(&method, &uri, authority, &headers);
        let chain = inbound.chain(&by(Transport::Raw)).expect("chain");
        chain.route(&view, false).refusal.map_or(Ok(()), Err)
    };
    let here = || RouteAction::NonForwarding;
    let all = || inline("*", vec![route("/", here())]);
    assert_eq!(check(all(), "a", "/x"), Ok(()));
    let only = || inline("a", vec![route("/x", here()), route("/y", unsupported())]);
    fn unsupported() -> RouteAction {
        RouteAction::Unsupported("redirect".into())
    }
    assert_eq!(check(only(), "a", "/x"), Ok(()));
    assert_eq!(check(only(), "b", "/x"), Err(Refusal::NO_ROUTE));
    assert_eq!(check(only(), "a", "/z"), Err(Refusal::NO_ROUTE));
    assert_eq!(check(only(), "a", "/y"), Err(Refusal::UNUSABLE_ROUTE));
    assert_eq!(
        check(RouteSource::Rds("r".into()), "a", "/"),
        Err(Refusal::UNUSABLE_ROUTE)
    );
    let mut by_header = route("/", here());
    by_header.matcher.headers = vec![HeaderMatcher::new("x", HeaderPredicate::Present(true))];
    assert_eq!(
        check(inline("*", vec![by_header]), "a", "/"),
        Err(Refusal::NO_ROUTE)
    );
}
