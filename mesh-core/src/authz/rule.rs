//! One policy, ready to be asked: predicates over the caller and over what is asked for.
//!
//! Alternatives that compare a name or a path for equality become one set, so that a policy for a
//! thousand callers costs one look-up.

use std::sync::Arc;

use hashbrown::HashSet;

use super::{AuthzRequest, cel};
use crate::config::{Cel, Permission, Principal, RbacPolicy, StringMatcher, StringPattern};

/// A policy with its name.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    principals: Test<Principal>,
    permissions: Test<Permission>,
    condition: Option<Arc<Cel>>,
}

impl Rule {
    pub(super) fn compile(name: &str, policy: &RbacPolicy) -> Self {
        Self {
            name: name.into(),
            principals: any_of(&policy.principals),
            permissions: any_of(&policy.permissions),
            condition: policy.condition.clone(),
        }
    }

    pub(super) fn is_match(&self, request: &AuthzRequest<'_>) -> bool {
        self.permissions.is_match(request)
            && self.principals.is_match(request)
            && self
                .condition
                .as_ref()
                .is_none_or(|condition| cel::holds(condition, request))
    }

    /// How many tests there are in it.
    #[cfg(test)]
    pub(super) fn tests(&self) -> usize {
        self.principals.count() + self.permissions.count()
    }
}

/// A tree of predicates.
#[derive(Clone, Debug)]
enum Test<P> {
    Any,
    All(Box<[Self]>),
    AnyOf(Box<[Self]>),
    Not(Box<Self>),
    /// One of the values that the predicate compares is in the set.
    OneOf(HashSet<Box<str>>),
    Leaf(P),
}

impl<P: Predicate> Test<P> {
    fn is_match(&self, request: &AuthzRequest<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::All(all) => all.iter().all(|test| test.is_match(request)),
            Self::AnyOf(any) => any.iter().any(|test| test.is_match(request)),
            Self::Not(inner) => !inner.is_match(request),
            Self::OneOf(set) => P::values_in(set, request),
            Self::Leaf(predicate) => predicate.is_match(request),
        }
    }
}

#[cfg(test)]
impl<P> Test<P> {
    fn count(&self) -> usize {
        match self {
            Self::All(tests) | Self::AnyOf(tests) => {
                1 + tests.iter().map(Self::count).sum::<usize>()
            }
            Self::Not(inner) => 1 + inner.count(),
            Self::Any | Self::OneOf(_) | Self::Leaf(_) => 1,
        }
    }
}

fn any_of<P: Predicate>(tests: &[P]) -> Test<P> {
    let (mut exact, mut others) = (HashSet::new(), Vec::new());
    for test in tests {
        match test.exact() {
            Some(value) => _ = exact.insert(value.into()),
            None => others.push(test.compile()),
        }
    }
    if !exact.is_empty() {
        others.insert(0, Test::OneOf(exact));
    }
    match (others.pop(), others.is_empty()) {
        (Some(only), true) => only,
        (Some(last), false) => {
            others.push(last);
            Test::AnyOf(others.into())
        }
        // Nothing matches nothing.
        (None, _) => Test::AnyOf([].into()),
    }
}

/// What both sides of a policy have in common.
trait Predicate: Sized {
    fn compile(&self) -> Test<Self>;
    /// The value that this is equal to, if that is all it says.
    fn exact(&self) -> Option<&str>;
    /// Whether a value that `exact` is about is in `set`.
    fn values_in(set: &HashSet<Box<str>>, request: &AuthzRequest<'_>) -> bool;
    /// For predicates without others inside.
    fn is_match(&self, request: &AuthzRequest<'_>) -> bool;
}

impl Predicate for Principal {
    fn compile(&self) -> Test<Self> {
        match self {
            Self::Any => Test::Any,
            Self::And(all) => Test::All(all.iter().map(Self::compile).collect()),
            Self::Or(any) => any_of(any),
            Self::Not(inner) => Test::Not(Box::new(inner.compile())),
            leaf => match leaf.exact() {
                Some(_) => any_of(std::slice::from_ref(leaf)),
                None => Test::Leaf(leaf.clone()),
            },
        }
    }

    fn exact(&self) -> Option<&str> {
        match self {
            Self::Authenticated(Some(matcher)) => exact(matcher),
            _ => None,
        }
    }

    fn values_in(set: &HashSet<Box<str>>, request: &AuthzRequest<'_>) -> bool {
        let names = request.principals;
        // A certificate without any name is compared as the empty text (gRFC A41).
        request.authenticated
            && (names.iter().any(|name| set.contains(name.as_str()))
                || names.is_empty() && set.contains(""))
    }

    fn is_match(&self, request: &AuthzRequest<'_>) -> bool {
        match self {
            Self::Any | Self::And(_) | Self::Or(_) | Self::Not(_) => {
                self.compile().is_match(request)
            }
            Self::Authenticated(_) if !request.authenticated => false,
            Self::Authenticated(None) => true,
            Self::Authenticated(Some(matcher)) => match request.principals {
                [] => matcher.is_match(""),
                names => names.iter().any(|name| matcher.is_match(name)),
            },
            Self::DirectRemoteIp(range) | Self::RemoteIp(range) => range.contains(request.source),
            Self::Header(matcher) => matcher.is_match(request.header(&matcher.name).as_deref()),
            Self::Path(matcher) => matcher.is_match(request.path),
            Self::Metadata(matcher) => matcher.is_match(request.metadata),
        }
    }
}

impl Predicate for Permission {
    fn compile(&self) -> Test<Self> {
        match self {
            Self::Any => Test::Any,
            Self::And(all) => Test::All(all.iter().map(Self::compile).collect()),
            Self::Or(any) => any_of(any),
            Self::Not(inner) => Test::Not(Box::new(inner.compile())),
            leaf => match leaf.exact() {
                Some(_) => any_of(std::slice::from_ref(leaf)),
                None => Test::Leaf(leaf.clone()),
            },
        }
    }

    fn exact(&self) -> Option<&str> {
        match self {
            Self::Path(matcher) => exact(matcher),
            _ => None,
        }
    }

    fn values_in(set: &HashSet<Box<str>>, request: &AuthzRequest<'_>) -> bool {
        set.contains(request.path)
    }

    fn is_match(&self, request: &AuthzRequest<'_>) -> bool {
        match self {
            Self::Any | Self::And(_) | Self::Or(_) | Self::Not(_) => {
                self.compile().is_match(request)
            }
            Self::Path(matcher) => matcher.is_match(request.path),
            Self::Template(template) => template.is_match(request.path),
            Self::Header(matcher) => matcher.is_match(request.header(&matcher.name).as_deref()),
            Self::DestinationIp(range) => range.contains(request.destination.ip()),
            Self::DestinationPort(port) => *port == request.destination.port(),
            Self::DestinationPorts { start, end } => {
                (*start..*end).contains(&u32::from(request.destination.port()))
            }
            Self::RequestedServerName(matcher) => matcher.is_match(request.server_name),
            Self::Metadata(matcher) => matcher.is_match(request.metadata),
        }
    }
}

/// The text that a matcher is equal to, with case.
pub(super) fn exact(matcher: &StringMatcher) -> Option<&str> {
    match &matcher.pattern {
        StringPattern::Exact(text) if !matcher.ignore_case => Some(text),
        _ => None,
    }
}
