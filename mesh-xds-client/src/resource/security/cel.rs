//! `google.api.expr.v1alpha1.Expr` to [`Cel`].
//!
//! Stage 3. Fails closed: a condition with anything that is not known here refuses the listener, as a rule
//! that never holds would not deny what it should. Refused are loops (`all`, `exists`), structures,
//! arithmetic, numbers with a fraction, times and attributes that servers here do not know.

use envoy_types::pb::google::api::expr::v1alpha1::{
    Constant, Expr, constant::ConstantKind, expr::ExprKind,
};
use mesh_core::config::{
    CEL_DEPTH_MAX, CEL_NODES_MAX, Cel, CelAttribute, CelComparison, CelTextTest, Regex,
};

use crate::resource::path::Sink;

pub(super) fn decode(sink: &mut Sink, proto: &Expr) -> Option<Cel> {
    let mut reader = Reader { nodes: 0 };
    match reader.read(proto, 0) {
        Ok(condition) => Some(condition),
        Err(reason) => sink.error(reason),
    }
}

struct Reader {
    nodes: usize,
}

type Result<T> = std::result::Result<T, String>;

impl Reader {
    fn read(&mut self, proto: &Expr, depth: usize) -> Result<Cel> {
        self.nodes += 1;
        if self.nodes > CEL_NODES_MAX || depth >= CEL_DEPTH_MAX {
            return Err(format!(
                "has more than {CEL_NODES_MAX} parts, or they are nested deeper than {CEL_DEPTH_MAX}"
            ));
        }
        let depth = depth + 1;
        match &proto.expr_kind {
            Some(ExprKind::ConstExpr(constant)) => literal(constant),
            Some(ExprKind::SelectExpr(select)) => {
                let operand = select.operand.as_deref().ok_or("selects from nothing")?;
                let value = match &operand.expr_kind {
                    Some(ExprKind::IdentExpr(root)) => {
                        let found = CelAttribute::of(&root.name, &select.field);
                        let unknown =
                            || format!("{}.{} is not known here", root.name, select.field);
                        Cel::Attribute(found.ok_or_else(unknown)?)
                    }
                    _ => Cel::Index(Box::new([
                        self.read(operand, depth)?,
                        Cel::Text(select.field.clone()),
                    ])),
                };
                Ok(match select.test_only {
                    true => Cel::Has(Box::new(value)),
                    false => value,
                })
            }
            Some(ExprKind::ListExpr(list)) => {
                if !list.optional_indices.is_empty() {
                    return Err("optional items of lists are not supported".to_owned());
                }
                let items = list.elements.iter().map(|item| self.read(item, depth));
                Ok(Cel::List(items.collect::<Result<_>>()?))
            }
            Some(ExprKind::CallExpr(call)) => {
                let target = call.target.as_deref().into_iter();
                let arguments: Vec<&Expr> = target.chain(&call.args).collect();
                self.call(&call.function, &arguments, depth)
            }
            Some(ExprKind::IdentExpr(ident)) => {
                Err(format!("{:?} is not known here by itself", ident.name))
            }
            Some(ExprKind::StructExpr(_)) => Err("structures are not supported".to_owned()),
            Some(ExprKind::ComprehensionExpr(_)) => {
                Err("all, exists, map and filter are not supported".to_owned())
            }
            None => Err("CEL: holds no expression".to_owned()),
        }
    }

    fn call(&mut self, function: &str, arguments: &[&Expr], depth: usize) -> Result<Cel> {
        let comparison = match function {
            "_==_" => Some(CelComparison::Equal),
            "_!=_" => Some(CelComparison::NotEqual),
            "_<_" => Some(CelComparison::Less),
            "_<=_" => Some(CelComparison::LessOrEqual),
            "_>_" => Some(CelComparison::Greater),
            "_>=_" => Some(CelComparison::GreaterOrEqual),
            _ => None,
        };
        let test = match function {
            "startsWith" => Some(CelTextTest::StartsWith),
            "endsWith" => Some(CelTextTest::EndsWith),
            "contains" => Some(CelTextTest::Contains),
            _ => None,
        };
        if let Some(comparison) = comparison {
            let both = self.some(function, arguments, depth)?;
            return Ok(Cel::Compare(comparison, both));
        }
        if let Some(test) = test {
            return Ok(Cel::TextTest(test, self.some(function, arguments, depth)?));
        }
        match (function, arguments) {
            ("!_", [inner]) => Ok(Cel::Not(Box::new(self.read(inner, depth)?))),
            ("size", [inner]) => Ok(Cel::Size(Box::new(self.read(inner, depth)?))),
            ("_&&_", both) => Ok(Cel::And(self.some(function, both, depth)?)),
            ("_||_", both) => Ok(Cel::Or(self.some(function, both, depth)?)),
            ("_?_:_", parts) => Ok(Cel::If(self.some(function, parts, depth)?)),
            ("@in" | "_in_" | "in", both) => Ok(Cel::In(self.some(function, both, depth)?)),
            ("_[_]", both) => Ok(Cel::Index(self.some(function, both, depth)?)),
            ("matches", [text, pattern]) => {
                let text = self.read(text, depth)?;
                let Cel::Text(pattern) = self.read(pattern, depth)? else {
                    return Err("matches: the expression must be a literal".to_owned());
                };
                Ok(Cel::Matches(Box::new(text), anywhere(&pattern)?))
            }
            _ => Err(format!("the function {function:?} is not supported")),
        }
    }

    /// Exactly so many arguments.
    fn some<const N: usize>(
        &mut self,
        function: &str,
        arguments: &[&Expr],
        depth: usize,
    ) -> Result<Box<[Cel; N]>> {
        let read = arguments.iter().map(|one| self.read(one, depth));
        let read: Vec<Cel> = read.collect::<Result<_>>()?;
        let wrong = |_| format!("{function:?} takes {N} arguments");
        Ok(Box::new(read.try_into().map_err(wrong)?))
    }
}

/// An expression that some part of a text must match.
fn anywhere(pattern: &str) -> Result<Regex> {
    // By itself, so that it is one expression.
    Regex::new(pattern)?;
    Regex::new(&format!("(?s:.*?)(?:{pattern})(?s:.*)"))
}

fn literal(constant: &Constant) -> Result<Cel> {
    match &constant.constant_kind {
        Some(ConstantKind::NullValue(_)) => Ok(Cel::Null),
        Some(ConstantKind::BoolValue(value)) => Ok(Cel::Bool(*value)),
        Some(ConstantKind::Int64Value(value)) => Ok(Cel::Int(*value)),
        Some(ConstantKind::Uint64Value(value)) => Ok(Cel::Uint(*value)),
        Some(ConstantKind::StringValue(text)) => Ok(Cel::Text(text.clone())),
        Some(_) => Err("numbers with a fraction, bytes and times are not supported".to_owned()),
        None => Err("a literal is missing".to_owned()),
    }
}
