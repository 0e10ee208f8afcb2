//! Whether a service is asked, and what it is told.

use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Method, Uri};
use serde_json::json;

use super::*;
use crate::{
    config::{
        DynamicMetadata, ExtAuthz, ExtAuthzSettings, Fraction, MetadataMatcher, StringMatcher,
        StringPattern, ValueMatcher,
    },
    filter::{CHECK_PATH, Caller, ExternalCheck, Need},
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
        let request = check.request(caller, &view);
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
    let request = check.request(caller, &view);
    let extensions: Vec<_> = request.context_extensions.iter().collect();
    let expected = [("a", "host"), ("b", "route")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(
        extensions,
        expected.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>()
    );
}
