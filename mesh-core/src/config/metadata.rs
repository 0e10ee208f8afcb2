//! Predicates over what filters found out about a request (Envoy `MetadataMatcher`, `ValueMatcher`).

use serde_json::Value;

use super::StringMatcher;

/// What filters found out about a request, by the name of the filter's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DynamicMetadata {
    namespaces: Vec<(String, Value)>,
}

impl DynamicMetadata {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// What the filters of `namespace` said.
    pub fn get(&self, namespace: &str) -> Option<&Value> {
        let mut known = self.namespaces.iter();
        known
            .find(|(name, _)| name == namespace)
            .map(|(_, value)| value)
    }

    /// The value at the end of `path`, key by key from what the filters of `namespace` said.
    pub fn at(&self, namespace: &str, path: &[String]) -> Option<&Value> {
        path.iter()
            .try_fold(self.get(namespace)?, |at, key| at.as_object()?.get(key))
    }

    /// Says `value` under `key` of `namespace`, in place of what was said there.
    pub fn set(&mut self, namespace: &str, key: &str, value: Value) {
        let at = self
            .namespaces
            .iter()
            .position(|(name, _)| name == namespace);
        let at = at.unwrap_or_else(|| {
            let empty = Value::Object(serde_json::Map::new());
            self.namespaces.push((namespace.to_owned(), empty));
            self.namespaces.len() - 1
        });
        if let Value::Object(fields) = &mut self.namespaces[at].1 {
            fields.insert(key.to_owned(), value);
        }
    }
}

/// A predicate over one value of the [`DynamicMetadata`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataMatcher {
    /// Namespace, for example `envoy.filters.http.jwt_authn`.
    pub filter: String,
    /// Keys from there to the value; not empty.
    pub path: Vec<String>,
    /// The predicate.
    pub value: ValueMatcher,
    /// The contrary; also holds for a value that is not there.
    pub invert: bool,
}

impl MetadataMatcher {
    /// A plain matcher.
    pub fn new<K: Into<String>>(
        filter: impl Into<String>,
        path: impl IntoIterator<Item = K>,
        value: ValueMatcher,
    ) -> Self {
        Self {
            filter: filter.into(),
            path: path.into_iter().map(Into::into).collect(),
            value,
            invert: false,
        }
    }

    /// Whether what is known matches.
    pub fn is_match(&self, metadata: Option<&DynamicMetadata>) -> bool {
        let value = metadata.and_then(|metadata| metadata.at(&self.filter, &self.path));
        value.is_some_and(|value| self.value.is_match(value)) != self.invert
    }
}

/// A predicate over a value; one that is not there matches none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatcher {
    /// Any value.
    Present,
    /// No value at all (`null`).
    Null,
    /// A truth value.
    Bool(bool),
    /// A text.
    String(StringMatcher),
    /// A list, one of whose items matches.
    ListContains(Box<Self>),
    /// One of these.
    Or(Vec<Self>),
}

impl ValueMatcher {
    /// Whether `value` matches.
    pub fn is_match(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Or(any), value) => any.iter().any(|one| one.is_match(value)),
            (Self::Null, Value::Null) | (Self::Present, _) => true,
            (Self::Bool(wanted), Value::Bool(is)) => wanted == is,
            (Self::String(matcher), Value::String(text)) => matcher.is_match(text),
            (Self::ListContains(one), Value::Array(items)) => {
                items.iter().any(|item| one.is_match(item))
            }
            _ => false,
        }
    }
}
