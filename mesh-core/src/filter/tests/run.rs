//! Orders of filters, cross-origin requests, changes of headers.

use super::*;

fn set(name: &'static str, value: &str, action: AppendAction, is_response: bool) -> HeaderChanges {
    HeaderChanges {
        remove: Vec::new(),
        add: vec![crate::config::HeaderValue {
            name: HeaderName::from_static(name),
            value: ValueTemplate::new(value, is_response).expect("a template"),
            action,
            keep_empty: false,
        }],
    }
}

fn mutation(value: &str, most_specific_wins: bool) -> FilterConfig {
    FilterConfig::HeaderMutation(Arc::new(HeaderMutation {
        request: vec![set("x", value, AppendAction::Overwrite, false)],
        response: vec![set("y", value, AppendAction::Overwrite, true)],
        most_specific_wins,
    }))
}

fn table(filters: &[HttpFilter], levels: [Option<FilterConfig>; 2]) -> Option<Filters> {
    let [host, route] = levels.map(|config| config.map(|c| Box::new(FilterOverrides::of("f", c))));
    let mut declared = Route::new("r", RouteMatch::any(), RouteAction::NonForwarding);
    declared.filters = route;
    let mut virtual_host = VirtualHost::new("v", ["*"], vec![declared]);
    virtual_host.filters = host;
    let config = RouteConfig::new("rc", vec![virtual_host]);
    let mut states = FilterStates::new(1);
    let host = &config.virtual_hosts[0];
    let table = FilterTable::compile("l", filters, &config, host, |_| None, &mut states);
    table.route(0)?.of(None).cloned()
}

#[test]
fn every_levels_mutations_are_made_and_the_least_specific_wins_unless_told_otherwise() {
    for (most_specific_wins, expected) in [(false, "host"), (true, "route")] {
        let base = [HttpFilter::new("f", mutation("base", most_specific_wins))];
        let levels = [
            Some(mutation("host", false)),
            Some(mutation("route", false)),
        ];
        let filters = table(&base, levels).expect("filters");
        let (_, _, passed) = run(
            &filters,
            &Head::new(&[("x", "0")]),
            Instant::now(),
            &mut SplitMix64::new(1),
        );
        assert_eq!(passed.headers.as_ref().expect("changed")["x"], expected);
        let mut headers = HeaderMap::new();
        passed.respond(StatusCode::OK, &mut headers);
        assert_eq!(headers["y"], expected);
    }
}

#[test]
fn later_filters_see_what_earlier_ones_changed_and_answer_through_them() {
    let mut limit = LocalRateLimit::new("l", bucket(1, 1, 3_600_000));
    limit.response_headers = set("x-limited", "%REQ(x)%", AppendAction::Append, true);
    let filters = compiled(&[
        HttpFilter::new("m", mutation("changed", false)),
        limited(limit),
    ]);
    let (now, mut rng, head) = (Instant::now(), SplitMix64::new(1), Head::new(&[("x", "0")]));
    run(&filters, &head, now, &mut rng);
    let (_, answer, passed) = run(&filters, &head, now, &mut rng);
    let mut headers = answer.expect("refused").headers;
    passed.respond(StatusCode::TOO_MANY_REQUESTS, &mut headers);
    assert_eq!(headers["x-limited"], "changed");
    assert_eq!(headers["y"], "changed");
}

fn cors(change: impl FnOnce(&mut CorsPolicy)) -> FilterConfig {
    let mut policy = CorsPolicy {
        allow_origins: vec![StringMatcher::exact("https://a")],
        allow_methods: "GET,PUT".into(),
        allow_headers: "*".into(),
        max_age: "60".into(),
        ..CorsPolicy::default()
    };
    change(&mut policy);
    FilterConfig::Cors(Some(Arc::new(policy)))
}

#[test]
fn origins_that_are_allowed_are_told_so_and_others_nothing() {
    let base = [HttpFilter::new("f", FilterConfig::Cors(None))];
    assert!(table(&base, [None, None]).is_none(), "no policy, no filter");
    let policy = cors(|policy| {
        policy.expose_headers = "x-e".into();
        policy.allow_credentials = Some(true);
    });
    let filters = table(&base, [Some(policy), None]).expect("a filter");
    let (now, mut rng) = (Instant::now(), SplitMix64::new(1));
    let mut got = |method: Method, headers: &[(&'static str, &str)]| {
        let head = Head {
            method,
            ..Head::new(headers)
        };
        let (_, answer, passed) = run(&filters, &head, now, &mut rng);
        let is_answered = answer.is_some();
        let mut headers = answer.map(|answer| answer.headers).unwrap_or_default();
        passed.respond(StatusCode::OK, &mut headers);
        let get = |name: &str| Some(headers.get(name)?.to_str().expect("text").to_owned());
        let names = ["origin", "methods", "headers", "credentials"];
        let allowed = names.map(|name| get(&format!("access-control-allow-{name}")));
        (is_answered, allowed, get("access-control-expose-headers"))
    };
    let some = |text: &str| Some(text.to_owned());
    let none = || [None, None, None, None];
    assert_eq!(got(Method::GET, &[]), (false, none(), None));
    let allowed = [some("https://a"), None, None, some("true")];
    let origin = ("origin", "https://a");
    assert_eq!(
        got(Method::GET, &[origin]),
        (false, allowed.clone(), some("x-e"))
    );
    assert_eq!(
        got(Method::GET, &[("origin", "https://b")]),
        (false, none(), None)
    );
    let asked = ("access-control-request-method", "PUT");
    let wanted = ("access-control-request-headers", "x-h");
    let preflight = [
        some("https://a"),
        some("GET,PUT"),
        some("x-h"),
        some("true"),
    ];
    let got_preflight = got(Method::OPTIONS, &[origin, asked, wanted]);
    assert_eq!(got_preflight, (true, preflight, None));
    // Not a preflight without the method that is asked for.
    assert_eq!(
        got(Method::OPTIONS, &[origin]),
        (false, allowed, some("x-e"))
    );
    let foreign = got(Method::OPTIONS, &[("origin", "https://b"), asked]);
    assert_eq!(foreign, (false, none(), None), "it is the application's");
}

#[test]
fn each_setting_of_cors_is_the_most_specific_levels() {
    let base = [HttpFilter::new("f", FilterConfig::Cors(None))];
    let host = cors(|policy| policy.forward_not_matching_preflights = Some(false));
    let route = FilterConfig::Cors(Some(Arc::new(CorsPolicy {
        allow_origins: vec![StringMatcher::exact("https://r")],
        ..CorsPolicy::default()
    })));
    let filters = table(&base, [Some(host), Some(route)]).expect("a filter");
    let answer = |origin: &str| {
        let asked = ("access-control-request-method", "PUT");
        let head = Head {
            method: Method::OPTIONS,
            ..Head::new(&[("origin", origin), asked])
        };
        let answer = run(&filters, &head, Instant::now(), &mut SplitMix64::new(1)).1;
        answer.expect("answered").headers
    };
    let ours = answer("https://r");
    assert_eq!(ours["access-control-allow-origin"], "https://r");
    assert_eq!(ours["access-control-allow-methods"], "GET,PUT");
    let foreign = answer("https://a");
    assert!(!foreign.contains_key("access-control-allow-origin"));
}

#[test]
fn a_body_that_says_it_is_too_long_is_refused_at_once_and_others_are_held_back() {
    let buffer = FilterConfig::Buffer {
        max_request_bytes: 10,
    };
    let filters = compiled(&[HttpFilter::new("b", buffer)]);
    let status = |headers: &[(&'static str, &str)]| {
        let head = Head::new(headers);
        let (_, answer, passed) = run(&filters, &head, Instant::now(), &mut SplitMix64::new(1));
        (
            answer.map(|answer| answer.status.as_u16()),
            passed.buffer.map(|buffer| buffer.max_bytes),
        )
    };
    assert_eq!(status(&[("content-length", "10")]), (None, Some(10)));
    assert_eq!(status(&[("content-length", "11")]), (Some(413), None));
    assert_eq!(status(&[]), (None, Some(10)));
}
