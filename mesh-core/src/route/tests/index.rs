//! The index against trying every route.

use super::*;

fn text(rng: &mut SplitMix64, longest: u64) -> String {
    let length = rng.below(longest + 1);
    let letters = (0..length).map(|_| ['/', '/', 'a', 'b', 'B', '-'][rng.below(6) as usize]);
    letters.collect()
}

fn path_pattern(rng: &mut SplitMix64) -> PathPattern {
    match rng.below(10) {
        0 | 1 => PathPattern::Exact(format!("/{}", text(rng, 4))),
        2 | 3 => PathPattern::Prefix(format!("/{}/", text(rng, 3))),
        4 | 5 => PathPattern::Prefix(text(rng, 4)),
        6 | 7 => PathPattern::SeparatedPrefix(format!("/{}", text(rng, 2))),
        8 => PathPattern::Template(
            PathTemplate::new(["/*/a", "/a/**"][rng.below(2) as usize]).unwrap(),
        ),
        _ => PathPattern::Regex(Regex::new("/a+/?").unwrap()),
    }
}

fn string(rng: &mut SplitMix64) -> StringMatcher {
    let pattern = match rng.below(5) {
        0 => StringPattern::Prefix("a".into()),
        1 => StringPattern::Suffix("b".into()),
        2 => StringPattern::Contains("B".into()),
        3 => StringPattern::Regex(Regex::new("[ab]+").unwrap()),
        _ => StringPattern::Exact("ab".into()),
    };
    StringMatcher::new(pattern)
        .unwrap()
        .ignore_case(rng.below(2) == 0)
}

fn header(rng: &mut SplitMix64) -> HeaderMatcher {
    let names = [
        "x",
        "y",
        ":method",
        ":path",
        ":authority",
        ":scheme",
        "z-bin",
    ];
    let predicate = match rng.below(4) {
        0 => HeaderPredicate::Present(rng.below(2) == 0),
        1 => HeaderPredicate::Range { start: 1, end: 3 },
        _ => HeaderPredicate::String(string(rng)),
    };
    HeaderMatcher {
        invert: rng.below(3) == 0,
        treat_missing_as_empty: rng.below(3) == 0,
        ..HeaderMatcher::new(names[rng.below(7) as usize], predicate)
    }
}

fn any_route(rng: &mut SplitMix64, number: u64) -> Route {
    let mut route = route(&number.to_string(), path_pattern(rng), vec![]);
    route.matcher.path.case_sensitive = rng.below(8) > 0;
    if rng.below(3) == 0 {
        route.matcher.headers = vec![header(rng)];
    }
    if rng.below(5) == 0 {
        let parameter = match rng.below(2) {
            0 => QueryMatcher::present("q"),
            _ => QueryMatcher::value("q", string(rng)),
        };
        route.matcher.query_parameters = vec![parameter];
    }
    if rng.below(10) == 0 {
        route.matcher.fraction = Fraction::new([0, 1][rng.below(2) as usize], 1);
    }
    route
}

#[test]
fn the_index_finds_the_same_route_as_trying_all_of_them() {
    let rng = &mut SplitMix64::new(11);
    let (mut found, mut indexed) = (0, 0);
    for _ in 0..400 {
        let count = rng.below(60);
        let table = table((0..count).map(|number| any_route(rng, number)).collect());
        indexed += u32::from(table.has_index());
        for _ in 0..60 {
            let query = ["", "?q", "?q=ab", "?p=1&q=b", "?q=a&q=b"][rng.below(5) as usize];
            let uri: Uri = format!("/{}{query}", text(rng, 7))
                .replace("//", "/a/")
                .parse()
                .unwrap();
            let mut headers = HeaderMap::new();
            for name in ["x", "y", "z-bin"] {
                for _ in 0..rng.below(3) {
                    let value = ["", "1", "2", "ab", "aB", "b"][rng.below(6) as usize];
                    headers.append(name, HeaderValue::from_static(value));
                }
            }
            let method = [Method::GET, Method::POST][rng.below(2) as usize].clone();
            let view = RequestView::new(&method, &uri, "any", &headers);
            let number = |found: Option<(u32, &CompiledRoute)>| found.map(|(number, _)| number);
            let expected = number(table.lookup_in_order(&view, &mut SplitMix64::new(1)));
            let actual = number(table.lookup(&view, &mut SplitMix64::new(1)));
            assert_eq!(actual, expected, "{method} {uri} {headers:?} in\n{table}");
            found += u32::from(actual.is_some());
        }
    }
    assert!(found > 3_000 && indexed > 200, "{found} {indexed}");
}

#[test]
fn ten_thousand_routes_take_at_most_half_as_many_steps_again_as_ten() {
    let steps = |count: u32, pattern: &dyn Fn(u32) -> PathPattern, path: &str| {
        let routes = (0..count).map(|n| route(&n.to_string(), pattern(n), vec![]));
        table(routes.collect()).steps(path)
    };
    let patterns: [&dyn Fn(u32) -> PathPattern; 4] = [
        &|n| PathPattern::Exact(format!("/shop.Service{n}/Get")),
        &|n| PathPattern::Prefix(format!("/shop.Service{n}/")),
        &|n| PathPattern::Prefix(format!("/v1/service-{n:05}")),
        &|n| PathPattern::SeparatedPrefix(format!("/v1/service-{n}")),
    ];
    for (number, pattern) in patterns.into_iter().enumerate() {
        for path in [
            "/shop.Service7/Get",
            "/v1/service-00007/a",
            "/v1/service-7/a",
            "/none",
        ] {
            let (few, many) = (steps(10, pattern, path), steps(10_000, pattern, path));
            assert!(
                2 * many <= 3 * few,
                "pattern {number}, {path}: {few} steps, then {many}"
            );
        }
    }
}
