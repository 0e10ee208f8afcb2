//! Whether a service is asked, and what it is told.

use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use serde_json::json;

use super::*;
use crate::{
    config::{
        CheckBody, DynamicMetadata, ExtAuthz, ExtAuthzSettings, Fraction, HttpCheck,
        MetadataMatcher, StringMatcher, StringPattern, ValueMatcher,
    },
    filter::{CHECK_PATH, Caller, CheckedBody, ExternalCheck, HttpAnswer, Need, verdict_of_http},
};

fn check(config: ExtAuthz) -> ExternalCheck {
    let filter = HttpFilter::new("check", FilterConfig::ExtAuthz(config.into()));
    let filters = compiled(&[filter]);
    filters[0].check().expect("a check").clone()
}

fn prefix(text: &str) -> StringMatcher {
    StringMatcher::new(StringPattern::Prefix(text.to_owned())).expect("a prefix")
}

#[test]
fn a_request_is_checked_unless_the_configuration_leaves_it_out() {
    let matcher = MetadataMatcher::new("f", ["k"], ValueMatcher::String(prefix("yes")));
    let only_marked = ExtAuthz {
        enabled_metadata: Some(matcher),
        ..ExtAuthz::new("c")
    };
    let mut marked = DynamicMetadata::default();
    marked.set("f", "k", json!("yes, it is"));
    let mut other = DynamicMetadata::default();
    other.set("f", "k", json!("no"));
    let never = ExtAuthz {
        enabled: Some(Fraction::NONE),
        ..ExtAuthz::new("c")
    };
    let closed = ExtAuthz {
        deny_at_disable: true,
        ..never.clone()
    };
    let mut rng = SplitMix64::new(1);
    for (config, path, metadata, expected) in [
        (ExtAuthz::new("c"), "/", None, Need::Check),
        // A check of a check would never end.
        (ExtAuthz::new("c"), CHECK_PATH, None, Need::Refuse),
        (only_marked.clone(), "/", Some(&marked), Need::Check),
        (only_marked.clone(), "/", Some(&other), Need::Pass),
        (only_marked.clone(), CHECK_PATH, None, Need::Pass),
        (only_marked, "/", None, Need::Pass),
        (never, "/", None, Need::Pass),
        (closed, "/", None, Need::Refuse),
    ] {
        let need = check(config.clone()).need(path, metadata, &mut rng);
        assert_eq!(need, expected, "{config:?} {path}");
    }
}

#[test]
fn a_service_is_told_the_headers_it_may_see_and_what_routes_say() {
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-a", "1"), ("x-a", "2"), ("x-b", "3"), ("cookie", "c")] {
        headers.append(name, HeaderValue::from_static(value));
    }
    let (method, uri) = (Method::GET, Uri::from_static("/p?q"));
    let view = RequestView::new(&method, &uri, "api", &headers);
    let caller = Caller {
        source: ([192, 0, 2, 7], 1).into(),
        principal: "",
        destination: ([10, 0, 0, 1], 2).into(),
        server_name: "",
        scheme: "https",
        protocol: "HTTP/2",
        time: SystemTime::UNIX_EPOCH,
        has_body: false,
        certificate: None,
    };
    let pseudo = [
        (":authority", "api"),
        (":method", "GET"),
        (":path", "/p?q"),
        (":scheme", "https"),
    ];
    let all = [("cookie", "c"), ("x-a", "1,2"), ("x-b", "3")];
    let told = |config: ExtAuthz| {
        let check = check(config);
        let request = check.request(caller, &view, None, None);
        let headers = request.headers.into_iter();
        headers
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<Vec<_>>()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    assert_eq!(
        told(ExtAuthz::new("c")),
        pairs(&[&pseudo[..], &all].concat())
    );
    let some = ExtAuthz {
        allowed_headers: Some(vec![prefix("x-")]),
        disallowed_headers: vec![StringMatcher::exact("x-b")],
        ..ExtAuthz::new("c")
    };
    assert_eq!(told(some), pairs(&[("x-a", "1,2")]));

    let said = |pairs: &[(&str, &str)]| {
        FilterConfig::ExtAuthz(ExtAuthzSettings {
            service: None,
            context_extensions: pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            body: None,
        })
    };
    let levels = [
        FilterConfig::ExtAuthz(ExtAuthz::new("c").into()),
        said(&[("a", "host"), ("b", "host")]),
        said(&[("b", "route")]),
    ];
    let levels = levels.iter().map(|level| match level {
        FilterConfig::ExtAuthz(settings) => settings,
        _ => unreachable!("they are"),
    });
    let check = ExternalCheck::new(levels).expect("a service");
    let request = check.request(caller, &view, None, None);
    let extensions: Vec<_> = request.context_extensions.iter().collect();
    let expected = [("a", "host"), ("b", "route")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(
        extensions,
        expected.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>()
    );
}

fn over_http(http: HttpCheck) -> ExtAuthz {
    ExtAuthz {
        http: Some(http.into()),
        ..ExtAuthz::new("c")
    }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = pairs.iter().map(|(name, value)| {
        let value = HeaderValue::from_static(value);
        (HeaderName::from_static(name), value)
    });
    let mut headers = HeaderMap::new();
    headers.extend(Vec::from_iter(
        pairs.map(|(name, value)| (Some(name), value)),
    ));
    headers
}

fn caller() -> Caller<'static> {
    Caller {
        source: ([192, 0, 2, 7], 1).into(),
        principal: "",
        destination: ([10, 0, 0, 1], 2).into(),
        server_name: "",
        scheme: "https",
        protocol: "HTTP/2",
        time: SystemTime::UNIX_EPOCH,
        has_body: true,
        certificate: Some(b"der"),
    }
}

#[test]
fn over_http_a_service_is_told_little_unless_more_is_listed() {
    let sent = headers(&[
        ("authorization", "Bearer t"),
        ("x-a", "1"),
        ("x-b", "2"),
        ("content-length", "77"),
        ("connection", "close"),
    ]);
    let (method, uri) = (Method::POST, Uri::from_static("/p?q"));
    let view = RequestView::new(&method, &uri, "api", &sent);
    let http = HttpCheck {
        path_prefix: "/authz".to_owned(),
        headers_to_add: vec![(
            HeaderName::from_static("x-b"),
            HeaderValue::from_static("ours"),
        )],
        ..HttpCheck::default()
    };
    let asked = |config: ExtAuthz| {
        let check = check(config.clone());
        let request = check.request(caller(), &view, None, None);
        check_head(config.http.as_ref().expect("over HTTP"), &request).expect("a head")
    };
    let (method, path, authority, told) = asked(over_http(http.clone()));
    assert_eq!((method, path.as_str()), (Method::POST, "/authz/p?q"));
    assert_eq!(authority, "api");
    let least = [
        ("authorization", "Bearer t"),
        ("x-b", "ours"),
        ("content-length", "0"),
    ];
    assert_eq!(told, headers(&least));
    let more = ExtAuthz {
        allowed_headers: Some(vec![prefix("x-"), prefix("con")]),
        ..over_http(http)
    };
    assert_eq!(
        asked(more).3,
        headers(&[&least[..], &[("x-a", "1")]].concat())
    );
}

#[test]
fn over_http_200_lets_pass_5xx_is_no_verdict_and_all_else_refuses() {
    let list = |names: &[&str]| {
        names
            .iter()
            .map(|name| StringMatcher::exact(*name))
            .collect()
    };
    let config = HttpCheck {
        upstream_headers: list(&["x-user", "host", "content-length"]),
        upstream_headers_to_append: list(&["x-group"]),
        client_headers_on_success: list(&["x-told"]),
        metadata_headers: list(&["x-user"]),
        ..HttpCheck::default()
    };
    let answered = |config: &HttpCheck, status: u16| {
        let answer = HttpAnswer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: headers(&[
                ("x-user", "alice"),
                ("x-group", "dev"),
                ("x-told", "yes"),
                ("x-other", "1"),
                ("host", "elsewhere"),
                ("content-length", "2"),
                ("www-authenticate", "Basic"),
                ("x-envoy-auth-headers-to-remove", "x-a, x-b,host"),
            ]),
            body: "no".to_owned(),
        };
        verdict_of_http(config, answer)
    };
    let Ok(CheckVerdict::Allowed(allowed)) = answered(&config, 200) else {
        unreachable!("200 lets pass")
    };
    let mut sent = headers(&[("x-user", "mallory"), ("x-group", "ops"), ("x-a", "1")]);
    let uri = Uri::from_static("/");
    assert_eq!(allowed.apply(&mut sent, &uri).expect("changed"), None);
    assert_eq!(
        sent,
        headers(&[("x-user", "alice"), ("x-group", "ops,dev")])
    );
    let mut response = HeaderMap::new();
    allowed
        .response
        .iter()
        .for_each(|edit| edit.apply(&mut response));
    assert_eq!(response, headers(&[("x-told", "yes")]));
    assert_eq!(allowed.metadata, Some(json!({"x-user": "alice"})));

    let refused = |config: &HttpCheck, status: u16| {
        let Ok(CheckVerdict::Denied(denied)) = answered(config, status) else {
            unreachable!("{status} refuses")
        };
        let mut headers = HeaderMap::new();
        denied
            .headers
            .iter()
            .for_each(|edit| edit.apply(&mut headers));
        assert_eq!((denied.status, denied.body.as_str()), (Some(status), "no"));
        headers
    };
    for status in [201, 302, 401, 403, 429] {
        assert!(refused(&config, status).contains_key("x-other"), "{status}");
    }
    let some = HttpCheck {
        client_headers: Some(list(&["x-told"])),
        ..config.clone()
    };
    let expected = headers(&[("x-told", "yes"), ("www-authenticate", "Basic")]);
    assert_eq!(refused(&some, 403), expected);
    assert!(answered(&config, 500).is_err() && answered(&config, 503).is_err());
}

#[test]
fn a_service_is_told_a_body_as_text_or_as_it_is_and_whether_that_is_all() {
    let (method, uri, none) = (Method::POST, Uri::from_static("/"), HeaderMap::new());
    let view = RequestView::new(&method, &uri, "api", &none);
    for (pack_as_bytes, is_partial, expected, header) in [
        (false, false, &b"a!!b"[..], "false"),
        (true, true, b"a\xff\xfeb", "true"),
    ] {
        let config = ExtAuthz {
            body: Some(CheckBody {
                max_request_bytes: 9,
                allow_partial: true,
                pack_as_bytes,
            }),
            ..ExtAuthz::new("c")
        };
        let body = CheckedBody {
            data: b"a\xff\xfeb".as_slice().into(),
            is_partial,
        };
        let check = check(config);
        let request = check.request(caller(), &view, Some(&body), None);
        let told = request.body.expect("a body");
        assert_eq!((&told.data[..], told.is_partial), (expected, is_partial));
        assert_eq!(request.headers["x-envoy-auth-partial-body"], header);
        assert_eq!(request.certificate, None, "nobody asked for it");
    }
    let check = check(ExtAuthz::new("c"));
    let request = check.request(caller(), &view, Some(&CheckedBody::default()), None);
    assert_eq!(request.body, None);
}
