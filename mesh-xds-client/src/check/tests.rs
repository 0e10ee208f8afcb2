//! What answers mean, and what of them cannot be done.

use envoy_types::pb::{
    envoy::{config::core::v3::HeaderValue as HeaderProto, r#type::v3::HttpStatus},
    google::{protobuf::BoolValue, rpc::Status},
};
use http::HeaderMap;

use super::*;

fn status(code: i32) -> Option<Status> {
    Some(Status {
        code,
        ..Status::default()
    })
}

fn option(name: &str, value: &str, append: Option<bool>, action: i32) -> HeaderValueOption {
    #[allow(deprecated, reason = "services in use set append")]
    HeaderValueOption {
        header: Some(HeaderProto {
            key: name.into(),
            value: value.into(),
            ..HeaderProto::default()
        }),
        append: append.map(|value| BoolValue { value }),
        append_action: action,
        ..HeaderValueOption::default()
    }
}

fn answer(code: i32, http_response: Option<HttpResponse>) -> Vec<u8> {
    let answer = CheckResponse {
        status: status(code),
        dynamic_metadata: None,
        http_response,
    };
    answer.encode_to_vec()
}

fn ok(headers: Vec<HeaderValueOption>) -> Vec<u8> {
    let ok = OkHttpResponse {
        headers,
        ..OkHttpResponse::default()
    };
    answer(0, Some(HttpResponse::OkResponse(ok)))
}

#[test]
fn only_a_status_of_ok_allows_whatever_comes_with_it() {
    let said = DeniedHttpResponse {
        status: Some(HttpStatus { code: 401 }),
        body: "who are you?".into(),
        ..DeniedHttpResponse::default()
    };
    let allowed = |bytes: &[u8]| matches!(decode(bytes), Ok(CheckVerdict::Allowed(_)));
    assert!(allowed(&[]), "no status is OK, as in Envoy");
    assert!(allowed(&answer(0, None)));
    let ok = HttpResponse::OkResponse(OkHttpResponse::default());
    assert!(!allowed(&answer(7, Some(ok))));
    let denied = HttpResponse::DeniedResponse(said.clone());
    assert_eq!(
        decode(&answer(16, Some(denied))),
        Ok(CheckVerdict::Denied(Box::new(Denied {
            status: Some(401),
            headers: Vec::new(),
            body: "who are you?".into(),
        })))
    );
    assert_eq!(
        decode(&answer(7, None)),
        Ok(CheckVerdict::Denied(Box::default()))
    );
    let failed = decode(&answer(13, Some(HttpResponse::ErrorResponse(said))));
    assert!(matches!(failed, Ok(CheckVerdict::Failed(_))));
}

#[test]
fn headers_are_replaced_unless_a_service_says_append() {
    // (append, append_action, what becomes of `x: a, b` and of a missing `y`: request, response)
    type Values = [&'static [&'static str]; 2];
    type Row = (Option<bool>, i32, Values, Values);
    let table: [Row; 6] = [
        (
            Some(true),
            0,
            [&["a,v", "b"], &[]],
            [&["a", "b", "v"], &["v"]],
        ),
        (Some(false), 0, [&["v"], &["v"]], [&["v"], &["v"]]),
        (None, 0, [&["v"], &["v"]], [&["a", "b", "v"], &["v"]]),
        (None, 1, [&["v"], &["v"]], [&["a", "b"], &["v"]]),
        (None, 2, [&["v"], &["v"]], [&["v"], &["v"]]),
        (None, 3, [&["v"], &["v"]], [&["v"], &[]]),
    ];
    for (append, action, request, response) in table {
        let both = || {
            vec![
                option("x", "v", append, action),
                option("y", "v", append, action),
            ]
        };
        let said = OkHttpResponse {
            headers: both(),
            response_headers_to_add: both(),
            ..OkHttpResponse::default()
        };
        let answer = answer(0, Some(HttpResponse::OkResponse(said)));
        let Ok(CheckVerdict::Allowed(allowed)) = decode(&answer) else {
            panic!("allowed");
        };
        let held = || {
            let mut headers = HeaderMap::new();
            headers.append("x", HeaderValue::from_static("a"));
            headers.append("x", HeaderValue::from_static("b"));
            headers
        };
        let (mut of_request, mut of_response) = (held(), held());
        let uri = http::Uri::from_static("/");
        let changed = allowed.apply(&mut of_request, &uri).expect("no query");
        assert_eq!(changed, None);
        for edit in &allowed.response {
            edit.apply(&mut of_response);
        }
        for (headers, expected) in [(of_request, request), (of_response, response)] {
            for (name, expected) in ["x", "y"].into_iter().zip(expected) {
                let values: Vec<_> = headers.get_all(name).iter().collect();
                assert_eq!(values, expected, "{name} {append:?} {action}");
            }
        }
    }
}

#[test]
fn an_answer_that_cannot_be_carried_out_is_none() {
    for (name, value, action) in [
        ("x y", "v", 2),
        ("", "v", 2),
        (":path", "/admin", 2),
        ("host", "other", 2),
        ("x", "a\r\nb: c", 2),
        ("x", "v", 9),
    ] {
        let answer = ok(vec![option(name, value, None, action)]);
        assert!(decode(&answer).is_err(), "{name:?} {value:?} {action}");
    }
    assert!(decode(&[0xff]).is_err());
    let mut deep = ValueProto::default();
    for _ in 0..METADATA_DEPTH_MAX {
        deep = ValueProto {
            kind: Some(Kind::StructValue(Struct {
                fields: [("a".to_owned(), deep)].into(),
            })),
        };
    }
    let answer = CheckResponse {
        dynamic_metadata: Some(Struct {
            fields: [("a".to_owned(), deep)].into(),
        }),
        ..CheckResponse::default()
    };
    assert!(decode(&answer.encode_to_vec()).is_err());
}

#[test]
fn query_parameters_are_set_and_go() {
    use envoy_types::pb::envoy::config::core::v3::QueryParameter;
    for (uri, set, remove, expected) in [
        ("/p?a=1&b=2", &[("a", "3")][..], &[][..], Some("/p?a=3&b=2")),
        ("/p?a=1&b=2&a=4", &[], &["a"], Some("/p?b=2")),
        ("/p?a", &[], &["a"], Some("/p")),
        ("/p", &[("a", "1")], &[], Some("/p?a=1")),
        ("/p?a=1", &[], &[], None),
    ] {
        let set = set.iter().map(|(key, value)| QueryParameter {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        });
        let said = OkHttpResponse {
            query_parameters_to_set: set.collect(),
            query_parameters_to_remove: remove.iter().map(|name| (*name).to_owned()).collect(),
            ..OkHttpResponse::default()
        };
        let answer = answer(0, Some(HttpResponse::OkResponse(said)));
        let Ok(CheckVerdict::Allowed(allowed)) = decode(&answer) else {
            panic!("allowed");
        };
        let uri = http::Uri::from_static(uri);
        let changed = allowed.apply(&mut HeaderMap::new(), &uri).expect("a URI");
        assert_eq!(changed.map(|uri| uri.to_string()).as_deref(), expected);
    }
}
