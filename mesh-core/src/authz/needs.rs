//! What a request must have for a test to hold, as far as texts tell.

use super::{
    attribute::Attribute,
    rule::{Leaf, Test, TextTest},
    texts::Key,
};
use crate::config::{StringMatcher, StringPattern, ValueMatcher};

/// For each attribute that a test cannot do without, the texts of which it needs one.
pub(super) type Needs<'t> = Vec<(&'t Attribute, Vec<Key<'t>>)>;

/// What `test` needs: it does not hold for a request that has none of the texts of an attribute.
pub(super) fn needs(test: &Test) -> Needs<'_> {
    match test {
        Test::Leaf(leaf) => leaf_needs(leaf).into_iter().collect(),
        Test::All(all) => all.iter().flat_map(needs).fold(Vec::new(), narrower),
        Test::Any(any) => {
            let mut needed = any
                .iter()
                .map(needs)
                .reduce(|left, right| either(left, &right))
                .unwrap_or_default();
            for (_, keys) in &mut needed {
                keys.sort_unstable();
                keys.dedup();
            }
            needed
        }
        Test::Not(_) => Vec::new(),
    }
}

/// Of two lists for one attribute the shorter is enough.
fn narrower<'t>(mut all: Needs<'t>, one: (&'t Attribute, Vec<Key<'t>>)) -> Needs<'t> {
    match all.iter_mut().find(|(attribute, _)| *attribute == one.0) {
        Some((_, keys)) if keys.len() <= one.1.len() => {}
        Some((_, keys)) => *keys = one.1,
        None => all.push(one),
    }
    all
}

/// What is needed where one of two tests is enough.
fn either<'t>(left: Needs<'t>, right: &Needs<'t>) -> Needs<'t> {
    let both = left.into_iter().filter_map(|(attribute, mut keys)| {
        let (_, others) = right.iter().find(|(other, _)| *other == attribute)?;
        keys.extend(others);
        Some((attribute, keys))
    });
    both.collect()
}

fn leaf_needs(leaf: &Leaf) -> Option<(&Attribute, Vec<Key<'_>>)> {
    Some(match leaf {
        Leaf::Text(attribute, test) => (attribute, text_keys(test)?),
        Leaf::Metadata(attribute, matcher) if !matcher.invert => {
            (attribute, value_keys(&matcher.value, false)?)
        }
        _ => return None,
    })
}

fn text_keys(test: &TextTest) -> Option<Vec<Key<'_>>> {
    match test {
        TextTest::Equal(text) => Some(vec![Key::Equal(text)]),
        TextTest::OneOf(set) => Some(set.iter().map(|text| Key::Equal(text)).collect()),
        TextTest::Like(matcher) => matcher_key(matcher).map(|key| vec![key]),
    }
}

/// The attribute has the texts of a list, too, but not those of lists in it.
fn value_keys(value: &ValueMatcher, is_item: bool) -> Option<Vec<Key<'_>>> {
    match value {
        ValueMatcher::String(matcher) => matcher_key(matcher).map(|key| vec![key]),
        ValueMatcher::ListContains(item) if !is_item => value_keys(item, true),
        ValueMatcher::Or(any) if !any.is_empty() => {
            let keys = any.iter().map(|one| value_keys(one, is_item));
            let mut keys = keys.collect::<Option<Vec<_>>>()?.concat();
            keys.sort_unstable();
            keys.dedup();
            Some(keys)
        }
        ValueMatcher::Or(_)
        | ValueMatcher::ListContains(_)
        | ValueMatcher::Present
        | ValueMatcher::Null
        | ValueMatcher::Bool(_) => None,
    }
}

fn matcher_key(matcher: &StringMatcher) -> Option<Key<'_>> {
    match &matcher.pattern {
        _ if matcher.ignore_case => None,
        StringPattern::Exact(text) => Some(Key::Equal(text)),
        StringPattern::Prefix(text) => Some(Key::Prefix(text)),
        StringPattern::Suffix(_) | StringPattern::Contains(_) | StringPattern::Regex(_) => None,
    }
}
