//! What a route asks for beyond a cluster: rewrites, answers, changes of headers, stickiness.

use envoy_types::pb::envoy::{
    config::{
        core::v3::{HeaderValue as HeaderPb, HeaderValueOption, TypedExtensionConfig},
        route::v3::{
            DirectResponseAction, QueryParameterMatcher, RedirectAction, RouteAction as ActionPb,
            query_parameter_matcher::QueryParameterMatchSpecifier,
            redirect_action::PathRewriteSpecifier,
            route::Action,
            route_action::{
                ClusterSpecifier, HashPolicy as HashPb, HostRewriteSpecifier, RequestMirrorPolicy,
                hash_policy::{FilterState, PolicySpecifier, QueryParameter},
            },
            route_match::PathSpecifier,
        },
    },
    extensions::path::{
        r#match::uri_template::v3::UriTemplateMatchConfig,
        rewrite::uri_template::v3::UriTemplateRewriteConfig,
    },
    r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
};
use mesh_core::{
    config::{
        AppendAction, ForwardExtras, HashSource, HostRewrite, PathRewrite, QueryMatcher,
        RouteAction,
    },
    route::Feature,
};

use super::{
    route::{accepted, config, forward, host, route, with, with_action, with_match},
    *,
};

fn substitute(regex: &str, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher {
            regex: regex.into(),
            ..RegexMatcher::default()
        }),
        substitution: substitution.into(),
    }
}

fn extension<M: Message + Name>(message: &M) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: "x".into(),
        typed_config: Some(any(message)),
    }
}

fn extras(change: impl FnOnce(&mut ActionPb)) -> ForwardExtras {
    *forward(with_action(change)).extras.expect("extras")
}

fn ignored(resource: Any) -> Vec<String> {
    let mut decoded = decode_any(Kind::Route, vec![resource]);
    assert!(decoded.rejected.is_empty(), "{:?}", decoded.rejected);
    decoded.accepted.remove(0).ignored
}

const ROUTE: &str = "virtual_hosts[0].routes[0]";

#[test]
fn query_parameters_and_templates_match() {
    let parameter = QueryParameterMatcher {
        name: "q".into(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::PresentMatch(false)),
    };
    let routes = accepted(with_match(|m| m.query_parameters = vec![parameter]));
    let absent = QueryMatcher {
        present: false,
        ..QueryMatcher::present("q")
    };
    assert_eq!(
        routes.virtual_hosts[0].routes[0].matcher.query_parameters,
        [absent]
    );

    let template = |path: &str| {
        extension(&UriTemplateMatchConfig {
            path_template: path.into(),
        })
    };
    let both = |rewrite: &str| {
        with(|route| {
            route.r#match.as_mut().unwrap().path_specifier =
                Some(PathSpecifier::PathMatchPolicy(template("/{a}/*")));
            let Some(Action::Route(action)) = &mut route.action else {
                unreachable!()
            };
            action.path_rewrite_policy = Some(extension(&UriTemplateRewriteConfig {
                path_template_rewrite: rewrite.into(),
            }));
        })
    };
    let extras = forward(both("/x/{a}")).extras.expect("extras");
    assert!(matches!(
        extras.path_rewrite,
        Some(PathRewrite::Template(_))
    ));
    let place = format!("{ROUTE}.route.path_rewrite_policy.typed_config");
    refused(
        Kind::Route,
        both("/{b}"),
        &format!("{place}.path_template_rewrite: "),
    );
    refused(
        Kind::Route,
        with_match(|m| m.path_specifier = Some(PathSpecifier::PathMatchPolicy(template("x")))),
        &format!("{ROUTE}.match.path_match_policy.typed_config.path_template: "),
    );
}

#[test]
fn rewrites_are_read_and_what_is_not_executed_is_said() {
    let path = |change: fn(&mut ActionPb)| extras(change).path_rewrite;
    assert_eq!(
        path(|action| action.prefix_rewrite = "/x".into()),
        Some(PathRewrite::Prefix("/x".into()))
    );
    let regex = path(|action| action.regex_rewrite = Some(substitute("a", r"\0b")));
    assert!(matches!(regex, Some(PathRewrite::Regex(_))));
    let literal = |action: &mut ActionPb| {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral("h".into()));
    };
    assert_eq!(
        extras(literal).host_rewrite,
        Some(HostRewrite::Literal("h".into()))
    );
    let said = ignored(with_action(literal));
    assert_eq!(
        said.contains(&format!("{ROUTE}.route.host_rewrite_literal")),
        !Feature::HostRewrite.is_executed(),
        "{said:?}"
    );
    refused(
        Kind::Route,
        with_action(|action| action.regex_rewrite = Some(substitute("a", r"\1"))),
        &format!("{ROUTE}.route.regex_rewrite: substitution"),
    );
    refused(
        Kind::Route,
        with_action(|action| {
            action.prefix_rewrite = "/x".into();
            action.regex_rewrite = Some(substitute("a", ""));
        }),
        &format!("{ROUTE}.route: only one of prefix_rewrite"),
    );
}

#[test]
fn answers_are_read() {
    let redirect = |change: fn(&mut RedirectAction)| {
        let mut proto = RedirectAction::default();
        change(&mut proto);
        with(|route| route.action = Some(Action::Redirect(proto)))
    };
    let answer = |resource| accepted(resource).virtual_hosts[0].routes[0].action.clone();
    let RouteAction::Redirect(found) = answer(redirect(|proto| {
        proto.response_code = 4;
        proto.port_redirect = 8443;
    })) else {
        panic!()
    };
    assert_eq!(
        (found.status, found.port, found.strip_query),
        (308, Some(8443), false)
    );
    for (change, expected) in [
        (
            (|proto| proto.port_redirect = 70_000) as fn(&mut RedirectAction),
            "port_redirect: must be 0 to 65535",
        ),
        (
            |proto| proto.response_code = 9,
            "response_code: is not known",
        ),
        (
            |proto| {
                let regex = substitute("(", "");
                proto.path_rewrite_specifier = Some(PathRewriteSpecifier::RegexRewrite(regex));
            },
            "regex_rewrite: regex",
        ),
    ] {
        let place = format!("{ROUTE}.redirect.{expected}");
        refused(Kind::Route, redirect(change), &place);
    }
    let direct = |status| {
        let proto = DirectResponseAction {
            status,
            ..DirectResponseAction::default()
        };
        with(|route| route.action = Some(Action::DirectResponse(proto)))
    };
    assert!(
        matches!(answer(direct(503)), RouteAction::DirectResponse(found) if found.status == 503)
    );
    let place = format!("{ROUTE}.direct_response.status: 99 is not");
    refused(Kind::Route, direct(99), &place);
}

#[test]
fn changes_of_headers_are_read_at_each_level() {
    let add = |key: &str, value: &str| HeaderValueOption {
        header: Some(HeaderPb {
            key: key.into(),
            value: value.into(),
            ..HeaderPb::default()
        }),
        append_action: 2,
        ..HeaderValueOption::default()
    };
    let mut shared = host(vec![route()]);
    shared.request_headers_to_add = vec![add("A", "%REQ(b)%")];
    shared.routes[0].response_headers_to_remove = vec!["Server".into()];
    let routes = accepted(config(vec![shared]));
    let own = routes.virtual_hosts[0].headers.as_ref().expect("changes");
    assert_eq!(own.request.add[0].name, "a");
    assert_eq!(own.request.add[0].action, AppendAction::Overwrite);
    let own = routes.virtual_hosts[0].routes[0]
        .headers
        .as_ref()
        .expect("changes");
    assert_eq!(own.response.remove, ["server"]);
    for name in [":path", "Host", "", "a b"] {
        refused(
            Kind::Route,
            with(|route| route.request_headers_to_add = vec![add(name, "x")]),
            &format!("{ROUTE}.request_headers_to_add[0].header.key: {name:?} cannot be changed"),
        );
    }
    let unknown = with(|route| route.request_headers_to_add = vec![add("a", "%START_TIME%")]);
    let said = ignored(unknown);
    let place = format!("{ROUTE}.request_headers_to_add[0].header.value");
    assert!(said.iter().any(|path| path.starts_with(&place)), "{said:?}");
}

#[test]
fn stickiness_and_copies_are_read() {
    let hash = |specifier: PolicySpecifier| HashPb {
        terminal: true,
        policy_specifier: Some(specifier),
    };
    let filter_state = |key: &str| {
        hash(PolicySpecifier::FilterState(FilterState {
            key: key.into(),
        }))
    };
    let query = hash(PolicySpecifier::QueryParameter(QueryParameter {
        name: "q".into(),
    }));
    let sources = |policies: Vec<HashPb>| -> Vec<_> {
        let policies = extras(|action| action.hash_policy = policies).hash_policy;
        policies
            .into_iter()
            .map(|policy| (policy.source, policy.terminal))
            .collect()
    };
    assert_eq!(
        sources(vec![
            filter_state("io.grpc.channel_id"),
            filter_state("other"),
            query
        ]),
        [
            (HashSource::Channel, true),
            (HashSource::Unknown, true),
            (HashSource::QueryParameter("q".into()), true),
        ]
    );
    let named = extras(|action| {
        action.cluster_specifier = Some(ClusterSpecifier::ClusterHeader("X-Cluster".into()));
    });
    assert_eq!(named.cluster_header.expect("a header"), "x-cluster");
    let mirror = |cluster: &str| RequestMirrorPolicy {
        cluster: cluster.into(),
        ..RequestMirrorPolicy::default()
    };
    // A host's copies are for routes that have none.
    let mut shared = host(vec![route(), route()]);
    shared.request_mirror_policies = vec![mirror("a"), mirror("b")];
    let Some(Action::Route(action)) = &mut shared.routes[1].action else {
        unreachable!()
    };
    action.request_mirror_policies = vec![mirror("c")];
    let routes = accepted(config(vec![shared]));
    let counts = routes.virtual_hosts[0]
        .routes
        .iter()
        .map(|route| match &route.action {
            RouteAction::Forward(forward) => forward.extras.as_ref().expect("extras").mirrors.len(),
            other => panic!("{other:?}"),
        });
    assert_eq!(counts.collect::<Vec<_>>(), [2, 1]);
    refused(
        Kind::Route,
        with_action(|action| action.request_mirror_policies = vec![mirror("")]),
        &format!("{ROUTE}.route.request_mirror_policies[0].cluster: is missing"),
    );
}
