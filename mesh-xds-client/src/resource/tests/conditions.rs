//! Conditions of authorisation rules: what is read, and what refuses the filter.

use envoy_types::pb::{
    envoy::{
        config::rbac::v3::{
            Permission, Policy, Principal, Rbac as RulesProto, permission, principal,
        },
        extensions::filters::http::rbac::v3::Rbac as FilterProto,
    },
    google::api::expr::v1alpha1::{
        Constant, Expr,
        constant::ConstantKind,
        expr::{Call, CreateStruct, ExprKind, Ident, Select},
    },
};
use mesh_core::config::{CEL_DEPTH_MAX, CEL_NODES_MAX, Cel, CelAttribute, CelComparison};
use prost::Message;

use super::super::decode_rbac_filter;

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
    constant(ConstantKind::StringValue(text.into()))
}

fn attribute(root: &str, field: &str) -> Expr {
    let name = root.to_owned();
    expr(ExprKind::SelectExpr(Box::new(Select {
        operand: Some(Box::new(expr(ExprKind::IdentExpr(Ident { name })))),
        field: field.to_owned(),
        test_only: false,
    })))
}

fn call(function: &str, args: Vec<Expr>) -> Expr {
    expr(ExprKind::CallExpr(Box::new(Call {
        target: None,
        function: function.to_owned(),
        args,
    })))
}

fn decode(condition: Expr) -> Result<Cel, String> {
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
    let filter = FilterProto {
        rules: Some(RulesProto {
            policies: [("p".to_owned(), policy)].into(),
            ..RulesProto::default()
        }),
        ..FilterProto::default()
    };
    match decode_rbac_filter(&filter.encode_to_vec()) {
        Ok(rules) => {
            let rules = rules.expect("rules");
            let condition = rules.policies["p"].condition.clone();
            Ok((*condition.expect("a condition")).clone())
        }
        Err(errors) => {
            assert_eq!(errors[0].path, "rules.policies[\"p\"].condition");
            Err(errors[0].reason.clone())
        }
    }
}

#[test]
fn a_comparison_is_read() {
    let method = attribute("request", "method");
    let read = decode(call("_==_", vec![method, text("GET")]));
    let both = [
        Cel::Attribute(CelAttribute::RequestMethod),
        Cel::Text("GET".into()),
    ];
    assert_eq!(read, Ok(Cel::Compare(CelComparison::Equal, Box::new(both))));
}

#[test]
fn what_is_not_known_refuses_the_filter() {
    let yes = || constant(ConstantKind::BoolValue(true));
    for (condition, expected) in [
        (Expr::default(), "holds no expression"),
        (attribute("request", "time"), "request.time is not known"),
        (attribute("upstream", "port"), "upstream.port is not known"),
        (
            expr(ExprKind::IdentExpr(Ident {
                name: "request".into(),
            })),
            "\"request\" is not known here by itself",
        ),
        (constant(ConstantKind::DoubleValue(0.5)), "fraction"),
        (
            call("_+_", vec![text("a"), text("b")]),
            "\"_+_\" is not supported",
        ),
        (call("_&&_", vec![yes()]), "takes 2 arguments"),
        (
            call("matches", vec![text("a"), attribute("request", "path")]),
            "must be a literal",
        ),
        (call("matches", vec![text("a"), text("(")]), "regex"),
        (
            expr(ExprKind::ComprehensionExpr(Box::default())),
            "all, exists",
        ),
        (
            expr(ExprKind::StructExpr(CreateStruct::default())),
            "structures",
        ),
    ] {
        let reason = decode(condition).expect_err(expected);
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn a_condition_is_bounded_in_depth_and_in_parts() {
    let yes = || constant(ConstantKind::BoolValue(true));
    let nested = |depth| (1..depth).fold(yes(), |inner, _| call("!_", vec![inner]));
    assert!(decode(nested(CEL_DEPTH_MAX)).is_ok());
    assert!(decode(nested(CEL_DEPTH_MAX + 1)).is_err());
    let wide = |parts: usize| {
        let items = (2..parts).map(|_| yes()).collect();
        let list = envoy_types::pb::google::api::expr::v1alpha1::expr::CreateList {
            elements: items,
            ..Default::default()
        };
        call("size", vec![expr(ExprKind::ListExpr(list))])
    };
    assert!(decode(wide(CEL_NODES_MAX)).is_ok());
    assert!(decode(wide(CEL_NODES_MAX + 1)).is_err());
}
