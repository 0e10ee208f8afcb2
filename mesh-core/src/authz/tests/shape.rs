//! What policies become: the same verdict in fewer and cheaper tests.

use hashbrown::HashSet;

use super::*;
use crate::{
    authz::{
        attribute::{Attribute, HeaderKey},
        rule::{Leaf, Rule, Test, TextTest},
    },
    config::{Cel, DynamicMetadata, IpRange, MetadataMatcher, PathTemplate, Regex, ValueMatcher},
};

fn shape(who: Vec<Principal>, what: Vec<Permission>) -> Test {
    let policy = RbacPolicy {
        principals: who,
        permissions: what,
        condition: None,
    };
    Rule::compile("p", &policy).test
}

fn who(principal: Principal) -> Test {
    shape(vec![principal], vec![Permission::Any])
}

fn what(permission: Permission) -> Test {
    shape(vec![Principal::Any], vec![permission])
}

fn text(attribute: Attribute, test: TextTest) -> Test {
    Test::Leaf(Leaf::Text(attribute, test))
}

fn equal(attribute: Attribute, to: &str) -> Test {
    text(attribute, TextTest::Equal(to.into()))
}

fn one_of(attribute: Attribute, of: &[&str]) -> Test {
    let set: HashSet<Box<str>> = of.iter().map(|text| (*text).into()).collect();
    text(attribute, TextTest::OneOf(set))
}

fn always() -> Test {
    Test::All([].into())
}

fn never() -> Test {
    Test::Any([].into())
}

fn method(name: &str) -> Permission {
    Permission::Header(header(":method", name))
}

fn like(pattern: StringPattern) -> StringMatcher {
    StringMatcher::new(pattern).expect("not empty")
}

#[test]
fn what_always_or_never_holds_leaves_no_test_behind() {
    let not = |inner| Permission::Not(Box::new(inner));
    assert_eq!(what(Permission::Any), always());
    assert_eq!(what(Permission::And(vec![])), always());
    assert_eq!(
        what(Permission::Or(vec![path("/a"), Permission::Any])),
        always()
    );
    assert_eq!(what(not(Permission::Or(vec![]))), always());
    for impossible in [
        what(Permission::Or(vec![])),
        what(not(Permission::Any)),
        what(Permission::And(vec![path("/a"), not(Permission::Any)])),
        what(Permission::Or(vec![
            not(Permission::Any),
            Permission::Or(vec![]),
        ])),
        shape(vec![], vec![Permission::Any]),
        shape(vec![Principal::Any], vec![]),
    ] {
        assert_eq!(impossible, never());
    }
    assert_eq!(
        what(not(path("/a"))),
        Test::Not(equal(Attribute::Path, "/a").into())
    );
    assert_eq!(
        who(Principal::Or(vec![named("a")])),
        equal(Attribute::Name, "a")
    );
}

#[test]
fn alternatives_that_are_equal_to_a_text_become_one_set_for_each_attribute() {
    let nested = Permission::Or(vec![
        path("/a"),
        Permission::Or(vec![method("GET"), path("/b")]),
        method("POST"),
        Permission::Header(header("x-a", "1")),
        Permission::Header(header("x-b", "1")),
        path("/a"),
    ]);
    let field = |name| Attribute::Header(HeaderKey::Field(HeaderName::from_static(name)));
    let methods = Attribute::Header(HeaderKey::Method);
    let expected = [
        one_of(Attribute::Path, &["/a", "/b"]),
        one_of(methods, &["GET", "POST"]),
        equal(field("x-a"), "1"),
        equal(field("x-b"), "1"),
    ];
    assert_eq!(what(nested), Test::Any(expected.into()));
    let twice = Principal::Or(vec![named("a"), named("a")]);
    assert_eq!(who(twice), equal(Attribute::Name, "a"));
    // Without case they are not equal to one text.
    let any_case = StringMatcher::exact("/a").ignore_case(true);
    let two = Permission::Or(vec![Permission::Path(any_case.clone()), path("/b")]);
    let expected = [
        equal(Attribute::Path, "/b"),
        text(Attribute::Path, TextTest::Like(any_case)),
    ];
    assert_eq!(what(two), Test::Any(expected.into()));
}

#[test]
fn a_header_is_compared_as_a_text_only_where_it_must_be_there() {
    let plain = header("x-a", "1");
    let key = HeaderKey::Field(HeaderName::from_static("x-a"));
    let asked = |matcher| what(Permission::Header(matcher));
    assert_eq!(
        asked(plain.clone()),
        equal(Attribute::Header(key.clone()), "1")
    );
    for other in [
        HeaderMatcher {
            invert: true,
            ..plain.clone()
        },
        HeaderMatcher {
            treat_missing_as_empty: true,
            ..plain
        },
        HeaderMatcher::new("x-a", HeaderPredicate::Present(true)),
    ] {
        let leaf = Leaf::Header(key.clone(), other.clone());
        assert_eq!(asked(other), Test::Leaf(leaf));
    }
}

#[test]
fn cheaper_tests_come_first() {
    let range: IpRange = "10.0.0.0/8".parse().expect("a range");
    let template = PathTemplate::new("/*").expect("a template");
    let regex = || StringPattern::Regex(Regex::new("a+").expect("a regex"));
    let claim = MetadataMatcher::new("jwt", ["sub"], ValueMatcher::Present);
    let present = HeaderPredicate::Present(true);
    // In the order that they are wanted in.
    let permissions = [
        Permission::DestinationPort(80),
        Permission::DestinationIp(range),
        path("/a"),
        Permission::Not(Box::new(Permission::Header(header(":method", "GET")))),
        Permission::Header(HeaderMatcher::new(
            ":path",
            HeaderPredicate::String(like(StringPattern::Suffix("/".into()))),
        )),
        Permission::Header(HeaderMatcher::new(":authority", present.clone())),
        Permission::Header(header("x-a", "1")),
        Permission::Header(HeaderMatcher::new("x-b", present)),
        Permission::Template(template),
        Permission::Path(like(StringPattern::Contains("/".into()))),
        Permission::Or(vec![
            Permission::Path(like(StringPattern::Contains("/".into()))),
            Permission::DestinationPort(81),
        ]),
        Permission::Metadata(claim),
        Permission::Path(like(regex())),
    ];
    let backwards = permissions.iter().rev().cloned().collect();
    let Test::All(tests) = what(Permission::And(backwards)) else {
        panic!("all of them");
    };
    let wanted: Vec<_> = permissions.into_iter().map(what).collect();
    assert_eq!(tests.into_vec(), wanted);
    let names: Vec<_> = (0..3).map(|n| named(&n.to_string())).collect();
    let Test::All(tests) = shape(
        vec![
            Principal::Or(names),
            Principal::Authenticated(Some(like(regex()))),
        ],
        vec![path("/a")],
    ) else {
        panic!("both");
    };
    assert_eq!(tests[0], equal(Attribute::Path, "/a"));
}

#[test]
fn a_condition_is_asked_last_and_counts() {
    let policy = |holds| RbacPolicy {
        principals: vec![Principal::Authenticated(Some(like(StringPattern::Regex(
            Regex::new("s.*").expect("a regex"),
        ))))],
        permissions: vec![Permission::Any],
        condition: Some(Arc::new(Cel::Bool(holds))),
    };
    for holds in [true, false] {
        let test = Rule::compile("p", &policy(holds)).test;
        let Test::All(tests) = test else {
            panic!("both");
        };
        assert!(matches!(&tests[1], Test::Leaf(Leaf::Condition(_))));
        let rules = Rbac::new(RbacAction::Allow, [("p".to_owned(), policy(holds))].into());
        let allow = Authorizer::compile([&rules]);
        assert_eq!(ask(&allow, ALICE, "GET", "/", "").allowed, holds);
    }
}

#[test]
fn headers_that_nobody_may_see_are_never_there() {
    let mut headers = HeaderMap::new();
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert("host", HeaderValue::from_static("evil"));
    let metadata = DynamicMetadata::default();
    let request = AuthzRequest {
        principals: &[],
        authenticated: false,
        method: "GET",
        path: "/a",
        authority: "api",
        headers: &headers,
        source: [192, 0, 2, 7].into(),
        destination: ([10, 0, 0, 1], 1).into(),
        server_name: "",
        metadata: Some(&metadata),
        details: Default::default(),
    };
    for (name, value) in [
        (":method", Some("GET")),
        (":path", Some("/a")),
        (":authority", Some("api")),
        ("host", Some("api")),
        ("te", None),
        (":scheme", None),
        ("not a name", None),
        ("x-missing", None),
    ] {
        let found = HeaderKey::new(name).value(&request);
        assert_eq!(found.as_deref(), value, "{name}");
    }
}
