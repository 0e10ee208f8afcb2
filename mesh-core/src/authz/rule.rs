//! One policy, ready to be asked: a tree of predicates over a request.
//!
//! Alternatives that compare the same text for equality become one set, so that a policy for a thousand
//! callers costs one look-up. Of several predicates the cheaper ones are asked first: none of them has
//! an effect, so that their order changes no verdict.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::{
    AuthzRequest,
    attribute::{Attribute, HeaderKey},
    cel,
};
use crate::config::{
    Cel, HeaderMatcher, HeaderPredicate, IpRange, MetadataMatcher, PathTemplate, Permission,
    Principal, RbacPolicy, StringMatcher, StringPattern,
};

/// A policy with its name.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    pub(super) test: Test,
}

impl Rule {
    pub(super) fn compile(name: &str, policy: &RbacPolicy) -> Self {
        let who = Test::any(policy.principals.iter().map(Test::from));
        let what = Test::any(policy.permissions.iter().map(Test::from));
        let condition = policy.condition.iter().cloned();
        let condition = condition.map(|condition| Test::Leaf(Leaf::Condition(condition)));
        Self {
            name: name.into(),
            test: Test::all([who, what].into_iter().chain(condition)),
        }
    }
}

/// A tree of predicates.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Test {
    /// All hold; empty: always.
    All(Box<[Self]>),
    /// One holds; empty: never.
    Any(Box<[Self]>),
    Not(Box<Self>),
    Leaf(Leaf),
}

/// A predicate without others inside.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Leaf {
    /// One of the attribute's values is so.
    Text(Attribute, TextTest),
    Authenticated,
    Template(PathTemplate),
    Header(HeaderKey, HeaderMatcher),
    Source(IpRange),
    Destination(IpRange),
    /// The port is in `[start, end)`.
    Ports(u32, u32),
    Metadata(Attribute, MetadataMatcher),
    Condition(Arc<Cel>),
}

/// A predicate over a text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TextTest {
    Equal(Box<str>),
    OneOf(HashSet<Box<str>>),
    Like(StringMatcher),
}

impl Test {
    /// All of `tests` hold.
    fn all(tests: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Vec::new();
        for test in tests {
            match test {
                Self::All(inner) => all.extend(inner),
                never if never.is_never() => return never,
                test => all.push(test),
            }
        }
        Self::ordered(all).unwrap_or_else(|all| Self::All(all.into()))
    }

    /// One of `tests` holds.
    fn any(tests: impl IntoIterator<Item = Self>) -> Self {
        let mut any = Alternatives::default();
        for test in tests {
            match test {
                Self::Any(inner) => inner.into_iter().for_each(|test| any.push(test)),
                always if always.is_always() => return always,
                test => any.push(test),
            }
        }
        Self::ordered(any.finish()).unwrap_or_else(|any| Self::Any(any.into()))
    }

    fn not(test: Self) -> Self {
        match test {
            always if always.is_always() => Self::Any([].into()),
            never if never.is_never() => Self::All([].into()),
            test => Self::Not(Box::new(test)),
        }
    }

    /// One alone, or all of them in the order of their costs.
    fn ordered(mut tests: Vec<Self>) -> Result<Self, Vec<Self>> {
        match tests.pop() {
            Some(only) if tests.is_empty() => Ok(only),
            last => {
                tests.extend(last);
                tests.sort_by_key(Self::cost);
                Err(tests)
            }
        }
    }

    fn is_always(&self) -> bool {
        matches!(self, Self::All(all) if all.is_empty())
    }

    pub(super) fn is_never(&self) -> bool {
        matches!(self, Self::Any(any) if any.is_empty())
    }

    /// Whether it holds.
    pub(super) fn is_match(&self, request: &AuthzRequest<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|test| test.is_match(request)),
            Self::Any(any) => any.iter().any(|test| test.is_match(request)),
            Self::Not(inner) => !inner.is_match(request),
            Self::Leaf(leaf) => leaf.is_match(request),
        }
    }

    /// What asking costs, in comparisons of a number; roughly.
    fn cost(&self) -> u32 {
        match self {
            Self::All(tests) | Self::Any(tests) => {
                tests.iter().map(Self::cost).fold(0, u32::saturating_add)
            }
            Self::Not(inner) => inner.cost(),
            Self::Leaf(leaf) => leaf.cost(),
        }
    }
}

/// Alternatives, equalities by what they compare.
#[derive(Default)]
struct Alternatives {
    equal: Vec<(Attribute, HashSet<Box<str>>)>,
    /// Where an attribute is in `equal`.
    places: HashMap<Attribute, usize>,
    others: Vec<Test>,
}

impl Alternatives {
    fn push(&mut self, test: Test) {
        match test {
            Test::Leaf(Leaf::Text(attribute, TextTest::Equal(text))) => {
                self.texts(attribute).insert(text);
            }
            Test::Leaf(Leaf::Text(attribute, TextTest::OneOf(texts))) => {
                self.texts(attribute).extend(texts);
            }
            test => self.others.push(test),
        }
    }

    fn texts(&mut self, attribute: Attribute) -> &mut HashSet<Box<str>> {
        let next = self.equal.len();
        let at = *self.places.entry(attribute.clone()).or_insert(next);
        if at == next {
            self.equal.push((attribute, HashSet::new()));
        }
        &mut self.equal[at].1
    }

    fn finish(self) -> Vec<Test> {
        let equal = self.equal.into_iter().map(|(attribute, texts)| {
            let test = match texts.len() {
                1 => texts.into_iter().next().map(TextTest::Equal),
                _ => Some(TextTest::OneOf(texts)),
            };
            test.map(|test| Test::Leaf(Leaf::Text(attribute, test)))
        });
        equal.flatten().chain(self.others).collect()
    }
}

impl Leaf {
    fn is_match(&self, request: &AuthzRequest<'_>) -> bool {
        match self {
            Self::Text(attribute, test) => attribute.any(request, |text| test.is_match(text)),
            Self::Authenticated => request.authenticated,
            Self::Template(template) => template.is_match(request.path),
            Self::Header(key, matcher) => matcher.is_match(key.value(request).as_deref()),
            Self::Source(range) => range.contains(request.source),
            Self::Destination(range) => range.contains(request.destination.ip()),
            Self::Ports(start, end) => {
                (*start..*end).contains(&u32::from(request.destination.port()))
            }
            Self::Metadata(_, matcher) => matcher.is_match(request.metadata),
            Self::Condition(condition) => cel::holds(condition, request),
        }
    }

    fn cost(&self) -> u32 {
        match self {
            Self::Authenticated | Self::Ports(..) => 1,
            Self::Source(_) | Self::Destination(_) => 2,
            Self::Text(attribute, test) => of_attribute(attribute) + of_text(test),
            Self::Template(_) => 16,
            Self::Header(key, _) => of_header(key) + 4,
            Self::Metadata(..) => 32,
            Self::Condition(_) => 64,
        }
    }
}

fn of_attribute(attribute: &Attribute) -> u32 {
    match attribute {
        Attribute::Path | Attribute::ServerName => 1,
        Attribute::Name => 2,
        Attribute::Header(key) => of_header(key),
        Attribute::Metadata(_) => 32,
    }
}

fn of_header(key: &HeaderKey) -> u32 {
    match key {
        HeaderKey::Method | HeaderKey::Path | HeaderKey::Authority | HeaderKey::Hidden => 2,
        HeaderKey::Field(_) => 8,
    }
}

fn of_text(test: &TextTest) -> u32 {
    match test {
        TextTest::Equal(_) => 2,
        TextTest::OneOf(_) => 6,
        TextTest::Like(matcher) => match matcher.pattern {
            StringPattern::Exact(_) | StringPattern::Prefix(_) | StringPattern::Suffix(_) => 3,
            StringPattern::Contains(_) => 16,
            StringPattern::Regex(_) => 32,
        },
    }
}

impl TextTest {
    fn is_match(&self, text: &str) -> bool {
        match self {
            Self::Equal(equal) => **equal == *text,
            Self::OneOf(set) => set.contains(text),
            Self::Like(matcher) => matcher.is_match(text),
        }
    }
}

impl From<&Principal> for Test {
    fn from(principal: &Principal) -> Self {
        Self::Leaf(match principal {
            Principal::Any => return Self::All([].into()),
            Principal::And(all) => return Self::all(all.iter().map(Self::from)),
            Principal::Or(any) => return Self::any(any.iter().map(Self::from)),
            Principal::Not(inner) => return Self::not((&**inner).into()),
            Principal::Authenticated(None) => Leaf::Authenticated,
            Principal::Authenticated(Some(matcher)) => text(Attribute::Name, matcher),
            Principal::DirectRemoteIp(range) | Principal::RemoteIp(range) => Leaf::Source(*range),
            Principal::Header(matcher) => header(matcher),
            Principal::Path(matcher) => text(Attribute::Path, matcher),
            Principal::Metadata(matcher) => metadata(matcher),
        })
    }
}

impl From<&Permission> for Test {
    fn from(permission: &Permission) -> Self {
        Self::Leaf(match permission {
            Permission::Any => return Self::All([].into()),
            Permission::And(all) => return Self::all(all.iter().map(Self::from)),
            Permission::Or(any) => return Self::any(any.iter().map(Self::from)),
            Permission::Not(inner) => return Self::not((&**inner).into()),
            Permission::Path(matcher) => text(Attribute::Path, matcher),
            Permission::Template(template) => Leaf::Template(template.clone()),
            Permission::Header(matcher) => header(matcher),
            Permission::DestinationIp(range) => Leaf::Destination(*range),
            Permission::DestinationPort(port) => {
                Leaf::Ports(u32::from(*port), u32::from(*port) + 1)
            }
            Permission::DestinationPorts { start, end } => Leaf::Ports(*start, *end),
            Permission::RequestedServerName(matcher) => text(Attribute::ServerName, matcher),
            Permission::Metadata(matcher) => metadata(matcher),
        })
    }
}

fn text(attribute: Attribute, matcher: &StringMatcher) -> Leaf {
    let test = match &matcher.pattern {
        StringPattern::Exact(text) if !matcher.ignore_case => TextTest::Equal(text.as_str().into()),
        _ => TextTest::Like(matcher.clone()),
    };
    Leaf::Text(attribute, test)
}

/// A header that must be there and be so is a text; what else is asked of one is not.
fn header(matcher: &HeaderMatcher) -> Leaf {
    let key = HeaderKey::new(&matcher.name);
    match &matcher.predicate {
        HeaderPredicate::String(value) if !matcher.invert && !matcher.treat_missing_as_empty => {
            text(Attribute::Header(key), value)
        }
        _ => Leaf::Header(key, matcher.clone()),
    }
}

fn metadata(matcher: &MetadataMatcher) -> Leaf {
    Leaf::Metadata(Attribute::Metadata(matcher.into()), matcher.clone())
}
