//! Conditions: what they see, and what becomes of what is not there.

use http::{HeaderMap, HeaderValue};
use serde_json::json;

use super::super::{AuthzRequest, RequestDetails, cel::holds};
use crate::config::{Cel, CelAttribute, CelComparison, CelTextTest, DynamicMetadata, Regex};

fn text(text: &str) -> Cel {
    Cel::Text(text.to_owned())
}

fn attribute(name: &str) -> Cel {
    let (root, field) = name.split_once('.').expect("a field");
    Cel::Attribute(CelAttribute::of(root, field).expect("known"))
}

fn header(name: &str) -> Cel {
    Cel::Index(Box::new([attribute("request.headers"), text(name)]))
}

fn equal(left: Cel, right: Cel) -> Cel {
    Cel::Compare(CelComparison::Equal, Box::new([left, right]))
}

fn not(inner: Cel) -> Cel {
    Cel::Not(Box::new(inner))
}

/// What a POST to /a/b?c=d by alice over mutual TLS says.
fn says(condition: &Cel) -> bool {
    let mut headers = HeaderMap::new();
    headers.append("x-team", HeaderValue::from_static("blue"));
    headers.append("x-team", HeaderValue::from_static("red"));
    let mut metadata = DynamicMetadata::default();
    let claims = json!({"sub": "alice", "groups": ["dev", "ops"], "level": 3, "none": null,
        "address": {"city": "Berlin"}});
    metadata.set("jwt", "payload", claims);
    holds(
        condition,
        &AuthzRequest {
            principals: &["spiffe://a/ns/b/sa/alice".to_owned()],
            authenticated: true,
            method: "POST",
            path: "/a/b",
            authority: "api:80",
            headers: &headers,
            source: [192, 0, 2, 7].into(),
            destination: ([10, 0, 0, 1], 8080).into(),
            server_name: "api",
            metadata: Some(&metadata),
            details: RequestDetails {
                query: Some("c=d"),
                scheme: "https",
                protocol: "HTTP/2",
                source_port: 4000,
            },
        },
    )
}

#[test]
fn every_attribute_has_the_value_of_the_request() {
    for (name, value) in [
        ("request.path", "/a/b?c=d"),
        ("request.url_path", "/a/b"),
        ("request.query", "c=d"),
        ("request.host", "api:80"),
        ("request.scheme", "https"),
        ("request.method", "POST"),
        ("request.protocol", "HTTP/2"),
        ("connection.requested_server_name", "api"),
        (
            "connection.uri_san_peer_certificate",
            "spiffe://a/ns/b/sa/alice",
        ),
        ("source.address", "192.0.2.7:4000"),
        ("destination.address", "10.0.0.1:8080"),
    ] {
        assert!(says(&equal(attribute(name), text(value))), "{name}");
        assert!(!says(&equal(attribute(name), text("other"))), "{name}");
    }
    assert!(says(&attribute("connection.mtls")));
    assert!(says(&equal(attribute("source.port"), Cel::Int(4000))));
    assert!(says(&equal(attribute("destination.port"), Cel::Uint(8080))));
    assert!(says(&equal(header("X-Team"), text("blue,red"))));
}

#[test]
fn what_is_not_there_makes_a_condition_not_hold_and_so_does_its_negation() {
    let missing = || header("x-none");
    let unknown = equal(missing(), text("a"));
    assert!(!says(&unknown));
    assert!(!says(&not(unknown.clone())));
    assert!(!says(&text("not a truth value")));
    assert!(!says(&attribute("request.referer")));
    // One side that decides is enough, whichever it is.
    let and = |left: Cel, right: Cel| Cel::And(Box::new([left, right]));
    let or = |left: Cel, right: Cel| Cel::Or(Box::new([left, right]));
    assert!(says(&or(unknown.clone(), Cel::Bool(true))));
    assert!(says(&or(Cel::Bool(true), unknown.clone())));
    assert!(!says(&or(unknown.clone(), Cel::Bool(false))));
    assert!(says(&not(and(unknown.clone(), Cel::Bool(false)))));
    assert!(!says(&not(and(unknown, Cel::Bool(true)))));
    assert!(!says(&Cel::Has(Box::new(missing()))));
    assert!(says(&Cel::Has(Box::new(header("x-team")))));
    let name = Box::new([text("x-team"), attribute("request.headers")]);
    assert!(says(&Cel::In(name)));
}

#[test]
fn texts_lists_and_claims_are_compared() {
    let path = || attribute("request.url_path");
    let test = |test, part: &str| Cel::TextTest(test, Box::new([path(), text(part)]));
    assert!(says(&test(CelTextTest::StartsWith, "/a")));
    assert!(says(&test(CelTextTest::EndsWith, "/b")));
    assert!(says(&test(CelTextTest::Contains, "a/")));
    assert!(!says(&test(CelTextTest::StartsWith, "/b")));
    let regex = Regex::new("(?s:.*?)(?:^/[a-z]/)(?s:.*)").expect("a regex");
    assert!(says(&Cel::Matches(Box::new(path()), regex)));
    let methods = Cel::List(vec![text("GET"), text("POST")]);
    let method = || attribute("request.method");
    assert!(says(&Cel::In(Box::new([method(), methods.clone()]))));
    assert!(!says(&Cel::In(Box::new([path(), methods]))));
    let less = |left, right| Cel::Compare(CelComparison::Less, Box::new([left, right]));
    assert!(says(&less(text("a"), text("b"))));
    assert!(!says(&less(text("a"), Cel::Int(1))), "of another kind");
    let at = |held: Cel, key: &str| Cel::Index(Box::new([held, text(key)]));
    let claims = || at(at(attribute("metadata.filter_metadata"), "jwt"), "payload");
    assert!(says(&equal(at(claims(), "sub"), text("alice"))));
    assert!(says(&Cel::In(Box::new([
        text("ops"),
        at(claims(), "groups")
    ]))));
    assert!(says(&equal(at(claims(), "none"), Cel::Null)));
    assert!(
        !says(&equal(at(claims(), "level"), Cel::Int(3))),
        "a fraction"
    );
    let size = Cel::Size(Box::new(at(claims(), "groups")));
    assert!(says(&equal(size, Cel::Int(2))));
    let chosen = Cel::If(Box::new([Cel::Bool(false), text("a"), Cel::Bool(true)]));
    assert!(says(&chosen));
}

/// A claim of the token, by its path.
fn claim(path: &[&str]) -> Cel {
    let root = ["jwt", "payload"].iter().chain(path);
    let metadata = attribute("metadata.filter_metadata");
    root.fold(metadata, |held, key| {
        Cel::Index(Box::new([held, text(key)]))
    })
}

#[test]
fn every_comparison_says_what_it_says_of_values_of_its_kind() {
    use CelComparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let list = |texts: &[&str]| Cel::List(texts.iter().map(|one| text(one)).collect());
    // What holds where the left one is smaller, the same, greater.
    let table = [
        (Equal, [false, true, false]),
        (NotEqual, [true, false, true]),
        (Less, [true, false, false]),
        (LessOrEqual, [true, true, false]),
        (Greater, [false, false, true]),
        (GreaterOrEqual, [false, true, true]),
    ];
    let ordered: [[fn() -> Cel; 2]; 5] = [
        [|| text("a"), || text("b")],
        [|| Cel::Int(-1), || Cel::Int(2)],
        [|| Cel::Uint(1), || Cel::Uint(2)],
        [|| Cel::Int(-1), || Cel::Uint(2)],
        [|| Cel::Bool(false), || Cel::Bool(true)],
    ];
    for (how, expected) in table {
        for [low, high] in ordered {
            let pairs = [[low(), high()], [low(), low()], [high(), low()]];
            let found = pairs.map(|pair| says(&Cel::Compare(how, Box::new(pair))));
            assert_eq!(found, expected, "{how:?} {:?} {:?}", low(), high());
        }
    }
    let object = || claim(&[]);
    let other = || claim(&["address"]);
    let groups = || claim(&["groups"]);
    for (left, right, is_equal) in [
        (list(&["a", "b"]), list(&["a", "b"]), true),
        (list(&["a", "b"]), list(&["a", "c"]), false),
        (list(&["a"]), list(&["a", "b"]), false),
        (list(&["a", "b"]), list(&["a"]), false),
        (groups(), list(&["dev", "ops"]), true),
        (Cel::Null, Cel::Null, true),
        (Cel::Null, Cel::Bool(false), false),
        (object(), object(), true),
        (object(), other(), false),
        (text("1"), Cel::Int(1), false),
        (Cel::Bool(true), Cel::Int(1), false),
    ] {
        let both = || Box::new([left.clone(), right.clone()]);
        assert_eq!(
            says(&Cel::Compare(Equal, both())),
            is_equal,
            "{left:?} {right:?}"
        );
        assert_eq!(
            says(&Cel::Compare(NotEqual, both())),
            !is_equal,
            "{left:?} {right:?}"
        );
    }
    // Those have an order with nobody.
    for how in [Less, LessOrEqual, Greater, GreaterOrEqual] {
        for one in [Cel::Null, list(&["a"]), claim(&[])] {
            let both = Box::new([one.clone(), one]);
            assert!(!says(&not(Cel::Compare(how, both.clone()))), "{both:?}");
            assert!(!says(&Cel::Compare(how, both)));
        }
    }
}

#[test]
fn sizes_places_and_presence_are_those_of_what_is_held() {
    let size = |of| Cel::Size(Box::new(of));
    assert!(
        says(&equal(size(text("h\u{e9}")), Cel::Int(2))),
        "letters, not bytes"
    );
    assert!(says(&equal(size(claim(&["groups"])), Cel::Int(2))));
    assert!(says(&equal(size(claim(&["address"])), Cel::Int(1))));
    assert!(!says(&equal(size(Cel::Int(1)), Cel::Int(1))), "has none");
    let at = |held, at| Cel::Index(Box::new([held, Cel::Int(at)]));
    assert!(says(&equal(at(claim(&["groups"]), 1), text("ops"))));
    let has = |inner| Cel::Has(Box::new(inner));
    for (inner, is_there) in [
        (at(claim(&["groups"]), 1), true),
        (at(claim(&["groups"]), 2), false),
        (at(claim(&["groups"]), -1), false),
        (header("host"), false),
        (header("no name"), false),
        (header("x-team"), true),
        (claim(&["address", "city"]), true),
        (claim(&["address", "street"]), false),
        (attribute("request.method"), true),
        (attribute("request.referer"), false),
    ] {
        assert_eq!(says(&has(inner.clone())), is_there, "{inner:?}");
    }
    let held_in = |item, held| says(&Cel::In(Box::new([item, held])));
    assert!(held_in(text("city"), claim(&["address"])));
    assert!(!held_in(text("street"), claim(&["address"])));
    assert!(held_in(text("jwt"), attribute("metadata.filter_metadata")));
    assert!(!held_in(text("a"), text("abc")), "a text holds nothing");
    let chosen = |first| {
        Cel::If(Box::new([
            Cel::Bool(first),
            Cel::Bool(true),
            Cel::Bool(false),
        ]))
    };
    assert!(says(&chosen(true)) && !says(&chosen(false)));
    let both = |left, right| Box::new([Cel::Bool(left), Cel::Bool(right)]);
    for (left, right) in [(false, false), (false, true), (true, false), (true, true)] {
        assert_eq!(says(&Cel::And(both(left, right))), left && right);
        assert_eq!(says(&Cel::Or(both(left, right))), left || right);
    }
}
