//! What a condition says of a request (CEL, as Envoy evaluates it).
//!
//! A condition that has no value, because something it asks for is missing or of another kind, does not
//! hold, as in Envoy: an ALLOW policy with it allows nothing, and **a DENY policy with it denies nothing**;
//! who writes one asks with `has` or `in` first. As the language has it, `&&` and `||` come to a value
//! that one side alone decides. Numbers with a fraction, times, arithmetic and loops are not known; the
//! decoder refuses them.

use std::{borrow::Cow, cmp::Ordering};

use serde_json::Value as Json;

use super::AuthzRequest;
use crate::config::{Cel, CelAttribute, CelComparison, CelTextTest, DynamicMetadata, joined};

/// Whether `condition` holds.
pub(super) fn holds(condition: &Cel, request: &AuthzRequest<'_>) -> bool {
    matches!(value(condition, request), Ok(Value::Bool(true)))
}

/// There is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missing;

enum Value<'r> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Text(Cow<'r, str>),
    List(Vec<Self>),
    Headers(&'r AuthzRequest<'r>),
    Metadata(Option<&'r DynamicMetadata>),
    Object(&'r serde_json::Map<String, Json>),
}

type Result<'r> = std::result::Result<Value<'r>, Missing>;

fn value<'r>(expression: &'r Cel, request: &'r AuthzRequest<'r>) -> Result<'r> {
    let of = |expression: &'r Cel| value(expression, request);
    Ok(match expression {
        Cel::Null => Value::Null,
        Cel::Bool(value) => Value::Bool(*value),
        Cel::Int(value) => Value::Int(*value),
        Cel::Uint(value) => Value::Uint(*value),
        Cel::Text(text) => Value::Text(text.into()),
        Cel::List(items) => Value::List(
            items
                .iter()
                .map(of)
                .collect::<std::result::Result<_, _>>()?,
        ),
        Cel::Attribute(attribute) => known(*attribute, request)?,
        Cel::Index(both) => {
            let [held, key] = &**both;
            index(of(held)?, &of(key)?)?
        }
        Cel::Has(inner) => Value::Bool(match &**inner {
            Cel::Index(both) => {
                let [held, key] = &**both;
                index(of(held)?, &of(key)?).is_ok()
            }
            other => of(other).is_ok(),
        }),
        Cel::Not(inner) => Value::Bool(!truth(of(inner))?),
        Cel::And(both) => Value::Bool(either(both, of, false)?),
        Cel::Or(both) => Value::Bool(either(both, of, true)?),
        Cel::If(parts) => {
            let [condition, then, otherwise] = &**parts;
            match truth(of(condition))? {
                true => of(then)?,
                false => of(otherwise)?,
            }
        }
        Cel::Compare(how, both) => {
            let [left, right] = &**both;
            Value::Bool(compare(*how, &of(left)?, &of(right)?)?)
        }
        Cel::In(both) => {
            let [item, held] = &**both;
            let item = of(item)?;
            Value::Bool(match of(held)? {
                Value::List(items) => items.iter().any(|one| is_equal(one, &item)),
                Value::Headers(_) | Value::Metadata(_) | Value::Object(_) => {
                    index(of(held)?, &item).is_ok()
                }
                _ => return Err(Missing),
            })
        }
        Cel::TextTest(test, both) => {
            let [text, part] = &**both;
            let (Value::Text(text), Value::Text(part)) = (of(text)?, of(part)?) else {
                return Err(Missing);
            };
            Value::Bool(match test {
                CelTextTest::StartsWith => text.starts_with(&*part),
                CelTextTest::EndsWith => text.ends_with(&*part),
                CelTextTest::Contains => text.contains(&*part),
            })
        }
        Cel::Matches(text, regex) => match of(text)? {
            Value::Text(text) => Value::Bool(regex.is_match(&text)),
            _ => return Err(Missing),
        },
        Cel::Size(inner) => {
            let size = match of(inner)? {
                Value::Text(text) => text.chars().count(),
                Value::List(items) => items.len(),
                Value::Object(fields) => fields.len(),
                _ => return Err(Missing),
            };
            Value::Int(i64::try_from(size).map_err(|_| Missing)?)
        }
    })
}

fn truth(value: Result<'_>) -> std::result::Result<bool, Missing> {
    match value? {
        Value::Bool(value) => Ok(value),
        _ => Err(Missing),
    }
}

/// The value of `&&` (`decisive` is false) or `||` (true): one side that is decisive is enough, whether
/// or not the other has a value.
fn either<'r>(
    both: &'r [Cel; 2],
    of: impl Fn(&'r Cel) -> Result<'r>,
    decisive: bool,
) -> std::result::Result<bool, Missing> {
    let [left, right] = both;
    let left = truth(of(left));
    if left == Ok(decisive) {
        return left;
    }
    match truth(of(right)) {
        Ok(right) if right == decisive => Ok(decisive),
        right => left.and(right),
    }
}

fn known<'r>(attribute: CelAttribute, request: &'r AuthzRequest<'r>) -> Result<'r> {
    let header = |name: &str| {
        joined(request.headers, name)
            .map(Value::Text)
            .ok_or(Missing)
    };
    let text = |text: &'r str| Value::Text(text.into());
    let details = &request.details;
    Ok(match attribute {
        CelAttribute::RequestPath => match details.query {
            Some(query) => Value::Text(format!("{}?{query}", request.path).into()),
            None => text(request.path),
        },
        CelAttribute::RequestUrlPath => text(request.path),
        CelAttribute::RequestQuery => text(details.query.unwrap_or_default()),
        CelAttribute::RequestHost => text(request.authority),
        CelAttribute::RequestScheme => text(details.scheme),
        CelAttribute::RequestMethod => text(request.method),
        CelAttribute::RequestHeaders => Value::Headers(request),
        CelAttribute::RequestReferer => header("referer")?,
        CelAttribute::RequestUserAgent => header("user-agent")?,
        CelAttribute::RequestProtocol => text(details.protocol),
        CelAttribute::ConnectionMtls => Value::Bool(request.authenticated),
        CelAttribute::ConnectionServerName => text(request.server_name),
        CelAttribute::ConnectionUriSan => {
            let mut names = request.principals.iter();
            text(names.find(|name| name.contains("://")).ok_or(Missing)?)
        }
        CelAttribute::SourceAddress => {
            let address = std::net::SocketAddr::new(request.source, details.source_port);
            Value::Text(address.to_string().into())
        }
        CelAttribute::SourcePort => Value::Int(details.source_port.into()),
        CelAttribute::DestinationAddress => Value::Text(request.destination.to_string().into()),
        CelAttribute::DestinationPort => Value::Int(request.destination.port().into()),
        CelAttribute::FilterMetadata => Value::Metadata(request.metadata),
    })
}

fn index<'r>(held: Value<'r>, key: &Value<'r>) -> Result<'r> {
    match (held, key) {
        (Value::Headers(request), Value::Text(name)) => {
            let name = name.to_ascii_lowercase();
            // Names that a map of headers cannot hold are not there.
            let name = http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| Missing)?;
            // To everybody behind it is the authority.
            if name == http::header::HOST {
                return Err(Missing);
            }
            joined(request.headers, name.as_str())
                .map(Value::Text)
                .ok_or(Missing)
        }
        (Value::Metadata(metadata), Value::Text(name)) => json(
            metadata
                .and_then(|metadata| metadata.get(name))
                .ok_or(Missing)?,
        ),
        (Value::Object(fields), Value::Text(name)) => json(fields.get(&**name).ok_or(Missing)?),
        (Value::List(items), Value::Int(at)) => {
            let at = usize::try_from(*at).map_err(|_| Missing)?;
            items.into_iter().nth(at).ok_or(Missing)
        }
        _ => Err(Missing),
    }
}

fn json(value: &Json) -> Result<'_> {
    Ok(match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        // Structures know numbers with a fraction alone.
        Json::Number(_) => return Err(Missing),
        Json::String(text) => Value::Text(text.into()),
        Json::Array(items) => Value::List(
            items
                .iter()
                .map(json)
                .collect::<std::result::Result<_, _>>()?,
        ),
        Json::Object(fields) => Value::Object(fields),
    })
}

fn compare(
    how: CelComparison,
    left: &Value<'_>,
    right: &Value<'_>,
) -> std::result::Result<bool, Missing> {
    let order = || order(left, right).ok_or(Missing);
    Ok(match how {
        CelComparison::Equal => is_equal(left, right),
        CelComparison::NotEqual => !is_equal(left, right),
        CelComparison::Less => order()?.is_lt(),
        CelComparison::LessOrEqual => order()?.is_le(),
        CelComparison::Greater => order()?.is_gt(),
        CelComparison::GreaterOrEqual => order()?.is_ge(),
    })
}

/// Values of different kinds are not equal.
fn is_equal(left: &Value<'_>, right: &Value<'_>) -> bool {
    match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::List(left), Value::List(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(a, b)| is_equal(a, b))
        }
        (Value::Object(left), Value::Object(right)) => left == right,
        _ => order(left, right) == Some(Ordering::Equal),
    }
}

fn order(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    Some(match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Int(left), Value::Int(right)) => left.cmp(right),
        (Value::Uint(left), Value::Uint(right)) => left.cmp(right),
        (Value::Int(left), Value::Uint(right)) => i128::from(*left).cmp(&i128::from(*right)),
        (Value::Uint(left), Value::Int(right)) => i128::from(*left).cmp(&i128::from(*right)),
        (Value::Text(left), Value::Text(right)) => left.cmp(right),
        _ => return None,
    })
}
