//! CEL conditions: the same rules at Envoy and at our server, over the same requests.

use std::{net::Ipv4Addr, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            listener::v3::filter::ConfigType,
            rbac::v3::{
                Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac::Action,
            },
        },
        extensions::filters::{
            http::rbac::v3::Rbac,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter as ProtoFilter, http_filter,
            },
        },
    },
    google::api::expr::v1alpha1::{
        Constant, Expr,
        constant::ConstantKind,
        expr::{Call, CreateList, ExprKind, Ident, Select},
    },
};
use mesh_core::config::{FilterConfig, HttpFilter, Listener, ListenerKind};
use mesh_examples::ports::free_address;
use mesh_xds_client::decode_rbac_filter;
use prost::Message as _;
use tokio::net::TcpListener;

use super::{super::routes::any, ask, for_envoy, listener, proxy, serve};

fn expr(kind: ExprKind) -> Expr {
    Expr {
        id: 0,
        expr_kind: Some(kind),
    }
}

fn constant(kind: ConstantKind) -> Expr {
    expr(ExprKind::ConstExpr(Constant {
        constant_kind: Some(kind),
    }))
}

fn text(text: &str) -> Expr {
    constant(ConstantKind::StringValue(text.to_owned()))
}

fn int(value: i64) -> Expr {
    constant(ConstantKind::Int64Value(value))
}

fn list(elements: Vec<Expr>) -> Expr {
    expr(ExprKind::ListExpr(CreateList {
        elements,
        ..CreateList::default()
    }))
}

fn select(operand: Expr, field: &str, test_only: bool) -> Expr {
    expr(ExprKind::SelectExpr(Box::new(Select {
        operand: Some(Box::new(operand)),
        field: field.to_owned(),
        test_only,
    })))
}

/// `request.path` and the like.
fn attribute(name: &str) -> Expr {
    let (root, field) = name.split_once('.').unwrap();
    let root = expr(ExprKind::IdentExpr(Ident { name: root.into() }));
    select(root, field, false)
}

fn call(function: &str, args: Vec<Expr>) -> Expr {
    expr(ExprKind::CallExpr(Box::new(Call {
        target: None,
        function: function.to_owned(),
        args,
    })))
}

fn method(target: Expr, function: &str, arg: Expr) -> Expr {
    expr(ExprKind::CallExpr(Box::new(Call {
        target: Some(Box::new(target)),
        function: function.to_owned(),
        args: vec![arg],
    })))
}

fn both(function: &str, left: Expr, right: Expr) -> Expr {
    call(function, vec![left, right])
}

fn header(name: &str) -> Expr {
    both("_[_]", attribute("request.headers"), text(name))
}

fn equal(left: Expr, right: Expr) -> Expr {
    both("_==_", left, right)
}

fn conditions() -> Vec<Expr> {
    let path = || attribute("request.url_path");
    let missing = || equal(header("x-none"), text("a"));
    let yes = || constant(ConstantKind::BoolValue(true));
    let no = || constant(ConstantKind::BoolValue(false));
    let not = |inner| call("!_", vec![inner]);
    vec![
        yes(),
        no(),
        text("no truth value"),
        equal(attribute("request.method"), text("POST")),
        both("_!=_", attribute("request.method"), text("POST")),
        equal(attribute("request.path"), text("/a/b?c=d")),
        equal(path(), text("/a/b")),
        equal(attribute("request.query"), text("c=d")),
        equal(attribute("request.host"), text("a.example")),
        equal(attribute("request.scheme"), text("http")),
        equal(attribute("request.protocol"), text("HTTP/1.1")),
        equal(attribute("request.useragent"), text("test")),
        not(equal(attribute("request.referer"), text("x"))),
        equal(header("x-team"), text("blue")),
        equal(header("X-Team"), text("blue,red")),
        equal(
            select(attribute("request.headers"), "accept", false),
            text("a"),
        ),
        missing(),
        not(missing()),
        both("_||_", missing(), yes()),
        both("_||_", yes(), missing()),
        both("_||_", missing(), no()),
        both("_&&_", missing(), no()),
        not(both("_&&_", missing(), no())),
        both("@in", text("x-team"), attribute("request.headers")),
        not(both("@in", text("x-none"), attribute("request.headers"))),
        select(attribute("request.headers"), "accept", true),
        not(select(attribute("request.headers"), "none", true)),
        method(path(), "startsWith", text("/a")),
        method(path(), "endsWith", text("/b")),
        method(path(), "contains", text("/b")),
        method(path(), "matches", text("^/[a-c]/")),
        method(path(), "matches", text("b")),
        method(path(), "matches", text("^b$")),
        both(
            "@in",
            attribute("request.method"),
            list(vec![text("GET"), text("PUT")]),
        ),
        call("_?_:_", vec![equal(path(), text("/a/b")), yes(), no()]),
        both("_>_", call("size", vec![path()]), int(3)),
        both("_<_", path(), text("/b")),
        attribute("connection.mtls"),
        not(attribute("connection.mtls")),
        equal(attribute("connection.requested_server_name"), text("")),
        not(equal(
            attribute("connection.uri_san_peer_certificate"),
            text("a"),
        )),
        both("_>_", attribute("source.port"), int(0)),
        method(
            attribute("source.address"),
            "startsWith",
            text("127.0.0.1:"),
        ),
        method(
            attribute("destination.address"),
            "startsWith",
            text("127.0.0.1:"),
        ),
        both("_<=_", attribute("destination.port"), int(65_535)),
    ]
}

fn filter(condition: Expr, action: Action) -> Rbac {
    let policy = Policy {
        permissions: vec![Permission {
            rule: Some(permission::Rule::Any(true)),
        }],
        principals: vec![Principal {
            identifier: Some(principal::Identifier::Any(true)),
        }],
        condition: Some(condition),
        ..Policy::default()
    };
    Rbac {
        rules: Some(Rules {
            action: action as i32,
            policies: [("p".to_owned(), policy)].into(),
            ..Rules::default()
        }),
        ..Rbac::default()
    }
}

/// The listener with the filter at our server.
fn ours(mut listener: Listener, filter: &Rbac) -> Listener {
    let rules = decode_rbac_filter(&filter.encode_to_vec()).unwrap();
    let ListenerKind::Inbound(inbound) = &mut listener.kind else {
        unreachable!("it is a server's")
    };
    for chain in &mut inbound.filter_chains {
        let config = FilterConfig::Rbac(rules.clone());
        chain.filters.push(HttpFilter::new("condition", config));
    }
    listener
}

/// The listener with the filter at Envoy.
fn theirs(
    listener: &Listener,
    filter: &Rbac,
) -> envoy_types::pb::envoy::config::listener::v3::Listener {
    let mut listener = for_envoy(listener);
    for filters in listener
        .filter_chains
        .iter_mut()
        .map(|chain| &mut chain.filters)
    {
        let Some(ConfigType::TypedConfig(config)) = &mut filters[0].config_type else {
            panic!("a manager")
        };
        let mut manager = HttpConnectionManager::decode(&*config.value).unwrap();
        let condition = ProtoFilter {
            name: "condition".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(any(filter))),
            ..ProtoFilter::default()
        };
        manager.http_filters.insert(0, condition);
        *config = any(&manager);
    }
    listener
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_hold_for_the_same_requests_at_envoy_and_at_our_server() {
    let conditions = conditions();
    let (mut served, mut listeners) = (Vec::new(), Vec::new());
    for (index, condition) in conditions.iter().enumerate() {
        let envoy = free_address().unwrap();
        let action = match index % 2 {
            0 => Action::Allow,
            _ => Action::Deny,
        };
        let filter = filter(condition.clone(), action);
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let our_address = socket.local_addr().unwrap();
        serve(&ours(listener("# nothing", our_address), &filter), socket).await;
        listeners.push(theirs(&listener("# nothing", envoy), &filter));
        served.push((condition, our_address, envoy));
    }
    let folder = tempfile::tempdir().unwrap();
    let last = served[served.len() - 1].2;
    let _envoy = proxy::envoy(folder.path(), listeners, last).await;
    let requests: Arc<[&str]> = Arc::new([
        "POST /a/b?c=d HTTP/1.1\r\nhost: a.example\r\nuser-agent: test\r\nx-team: blue\r\n\
         x-team: red\r\naccept: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "GET /b HTTP/1.1\r\nhost: b.example\r\nconnection: close\r\n\r\n",
    ]);
    let (mut wrong, mut passed, mut refused) = (String::new(), 0, 0);
    for (condition, ours, envoy) in served {
        for request in requests.iter() {
            let ((ours, _), (theirs, _)) = tokio::join!(ask(ours, request), ask(envoy, request));
            passed += usize::from(theirs == 200);
            refused += usize::from(theirs == 403);
            if ours != theirs {
                wrong.push_str(&format!(
                    "ours {ours}, Envoy's {theirs}: {request}{condition:?}\n"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(passed + refused, 2 * conditions.len());
    assert!(passed > 20 && refused > 20, "{passed} {refused}");
}
