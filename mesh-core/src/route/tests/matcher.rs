//! Decision tables of single matchers.

use super::*;

#[test]
fn a_regex_matches_in_full_and_is_one_expression() {
    let regex = Regex::new("/a|/b").unwrap();
    for (text, expected) in [("/a", true), ("/b", true), ("/ab", false), ("x/b", false)] {
        assert_eq!(regex.is_match(text), expected, "{text}");
    }
    assert!(
        Regex::new("a)|(b").is_err(),
        "would be half of an expression"
    );
    assert!(
        Regex::new("(a{1000}){1000}").is_err(),
        "its size is bounded"
    );
}

#[test]
fn a_text_is_linear_whatever_the_regex() {
    let regex = Regex::new("(a*)*b").unwrap();
    assert!(!regex.is_match(&"a".repeat(100_000)));
}

#[test]
fn query_parameters_are_compared_as_they_are_written() {
    let exact = |value: &str| QueryMatcher::value("a", StringMatcher::exact(value));
    let absent = QueryMatcher {
        present: false,
        ..QueryMatcher::present("a")
    };
    for (matcher, query, expected) in [
        (exact("1"), Some("a=1"), true),
        (exact("1"), Some("b=2&a=1"), true),
        (exact("1"), Some("a=2&a=1"), false),
        (exact("1"), Some("A=1"), false),
        (exact(""), Some("a"), true),
        (exact("x y"), Some("a=x%20y"), false),
        (exact("1"), None, false),
        (QueryMatcher::present("a"), Some("a"), true),
        (QueryMatcher::present("a"), Some("ab=1"), false),
        (absent.clone(), Some("b"), true),
        (absent, Some("a="), false),
    ] {
        assert_eq!(matcher.is_match(query), expected, "{matcher:?} {query:?}");
    }
}

#[test]
fn path_templates_stand_for_segments() {
    for (template, path, expected) in [
        ("/a/*/c", "/a/b/c", true),
        ("/a/*/c", "/a/b/b/c", false),
        ("/a/*/c", "/a//c", false),
        ("/a/*.m4s", "/a/1.m4s", true),
        ("/a/{id}", "/a/1", true),
        ("/a/{id}", "/a/1/2", false),
        ("/a/{rest=**}", "/a/1/2", true),
        ("/a/{rest=b/*}/d", "/a/b/c/d", true),
        ("/**.mpd", "/x/y/z.mpd", true),
        ("/**", "/", true),
    ] {
        let matcher = PathTemplate::new(template).unwrap();
        assert_eq!(matcher.is_match(path), expected, "{template} {path}");
    }
    for wrong in [
        "a",
        "/{a",
        "/{a}/{a}",
        "/{1}",
        "/**/*",
        "/***",
        "/{a=}",
        "/{a={b}}",
        "/a?b",
        "/{a}{b}",
        "/{a}/{b}/{c}/{d}/{e}/{f}",
        "/{a_name_of_17_bytes}",
    ] {
        assert!(PathTemplate::new(wrong).is_err(), "{wrong}");
    }
    let template = PathTemplate::new("/{lang}/{rest=**}").unwrap();
    let rewrite = TemplateRewrite::new(&template, "/x/{rest}/in/{lang}").unwrap();
    assert_eq!(rewrite.rewrite("/de/a/b").as_deref(), Some("/x/a/b/in/de"));
    assert_eq!(rewrite.rewrite("/de"), None);
    for wrong in ["x", "/{other}", "/*", "/{lang"] {
        assert!(TemplateRewrite::new(&template, wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_regex_rewrite_replaces_every_match() {
    let rewrite = |pattern: &str, substitution: &str, text: &str| {
        RegexRewrite::new(pattern, substitution).map(|rewrite| rewrite.replace_all(text))
    };
    assert_eq!(rewrite("/v[0-9]", "/v", "/v1/v2/x").unwrap(), "/v/v/x");
    assert_eq!(
        rewrite("^/(a)/(b)", r"/\2\\\1", "/a/b/c").unwrap(),
        r"/b\a/c"
    );
    assert_eq!(rewrite("x", r"[\0]", "axb").unwrap(), "a[x]b");
    for (pattern, substitution) in [("(", "x"), ("a", r"\1"), ("a", r"\x"), ("a", r"\")] {
        assert!(
            rewrite(pattern, substitution, "").is_err(),
            "{pattern} {substitution}"
        );
    }
}

#[test]
fn a_port_in_the_authority_is_left_out_of_the_comparison_when_asked() {
    let mut config = config(&[("exact", &["a.com"]), ("any", &["*"])]);
    let name =
        |config: &RouteConfig, authority| virtual_host(config, authority).unwrap().name.clone();
    assert_eq!(name(&config, "a.com:80"), "any");
    config.ignore_port = true;
    assert_eq!(name(&config, "A.com:80"), "exact");
    assert_eq!(name(&config, "a.com:x"), "any");
}

#[test]
fn a_share_of_zero_takes_nothing_and_one_of_all_takes_everything() {
    let mut rng = SplitMix64::new(3);
    let (none, all) = (
        Fraction::new(0, 100).unwrap(),
        Fraction::new(100, 100).unwrap(),
    );
    for draw in (0..3_000_000).chain((0..1_000).map(|_| rng.next_u64())) {
        assert!(!none.contains(draw) && all.contains(draw), "{draw}");
    }
}
