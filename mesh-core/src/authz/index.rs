//! The policies of a filter, found by what they need of a request.
//!
//! A policy that can only match callers with one of some names, or requests for one of some paths, is
//! looked at for those alone; so is one that needs a header, a server name or a claim. What is
//! looked at is evaluated in full: the index leaves policies out and decides nothing. What a request costs
//! depends on the policies that are about it, not on how many there are.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::{HashMap, HashSet};

use super::{
    AuthzRequest,
    attribute::Attribute,
    needs::{Needs, needs},
    rule::Rule,
    texts::{Key, Texts},
};
use crate::config::RbacPolicy;

/// So many policies are walked: a look-up costs as much.
const WALKED_MAX: usize = 3;

/// A policy is found by so many of its attributes at most, one below the other.
const LEVELS_MAX: usize = 4;

/// How often the index may hold what policies name, on average.
const COPIES_MAX: usize = 8;

/// All policies of a filter; `find` gives the first by name.
#[derive(Clone, Debug)]
pub(super) struct PolicyIndex {
    rules: Box<[Rule]>,
    root: Node,
}

/// Some of the policies, by their numbers.
#[derive(Clone, Debug)]
enum Node {
    /// One after the other, in order.
    Walk(Box<[u32]>),
    Branch(Box<Branch>),
}

#[derive(Clone, Debug)]
struct Branch {
    attribute: Attribute,
    /// Those that need the attribute to be so.
    needing: Texts<Node>,
    /// Those that do without it.
    rest: Node,
}

impl PolicyIndex {
    pub(super) fn compile(policies: &BTreeMap<String, RbacPolicy>) -> Self {
        let rules: Box<[Rule]> = policies
            .iter()
            .map(|(name, policy)| Rule::compile(name, policy))
            .filter(|rule| !rule.test.is_never())
            .collect();
        let needs: Vec<_> = rules.iter().map(|rule| needs(&rule.test)).collect();
        let named = needs.iter().flatten().map(|(_, keys)| keys.len());
        let mut builder = Builder {
            room: named.sum::<usize>().saturating_mul(COPIES_MAX),
            needs: &needs,
            used: Vec::new(),
        };
        let root = builder.node((0..rules.len()).map(number).collect());
        Self { rules, root }
    }

    /// The name of the first policy that matches.
    pub(super) fn find(&self, request: &AuthzRequest<'_>) -> Option<&Arc<str>> {
        let first = self.root.find(&self.rules, request, u32::MAX);
        Some(&self.rules.get(at(first))?.name)
    }

    /// How many policies are looked at for a request that none matches.
    #[cfg(test)]
    pub(super) fn looked_at(&self, request: &AuthzRequest<'_>) -> usize {
        self.root.looked_at(request)
    }

    /// How many numbers of policies it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.root.held()
    }
}

impl Node {
    /// The first policy before `best` that matches, else `best`.
    fn find(&self, rules: &[Rule], request: &AuthzRequest<'_>, best: u32) -> u32 {
        match self {
            Self::Walk(numbers) => {
                let mut better = numbers.iter().take_while(|number| **number < best);
                let found = better.find(|number| rules[at(**number)].test.is_match(request));
                found.copied().unwrap_or(best)
            }
            Self::Branch(branch) => {
                let mut best = best;
                branch.attribute.any(request, |text| {
                    branch.needing.about(text, |node| {
                        best = node.find(rules, request, best);
                    });
                    false
                });
                branch.rest.find(rules, request, best)
            }
        }
    }
}

/// Makes nodes of policies, given what each needs.
struct Builder<'t, 'n> {
    needs: &'n [Needs<'t>],
    /// Attributes that the nodes above have looked at.
    used: Vec<&'t Attribute>,
    /// How many more numbers the index may hold below branches.
    room: usize,
}

impl<'t> Builder<'t, '_> {
    fn node(&mut self, numbers: Vec<u32>) -> Node {
        let Some((attribute, room)) = self.best_attribute(&numbers) else {
            return Node::Walk(numbers.into());
        };
        self.room = room;
        let mut needing: BTreeMap<Key<'t>, Vec<u32>> = BTreeMap::new();
        let mut rest = Vec::new();
        for number in numbers {
            match self.keys(number, attribute) {
                Some(keys) => {
                    for key in keys {
                        needing.entry(*key).or_default().push(number);
                    }
                }
                None => rest.push(number),
            }
        }
        self.used.push(attribute);
        let needing = needing.into_iter();
        let needing = Texts::new(needing.map(|(key, numbers)| (key, self.node(numbers))));
        self.used.pop();
        Node::Branch(Box::new(Branch {
            attribute: attribute.clone(),
            needing,
            rest: self.node(rest),
        }))
    }

    fn keys(&self, number: u32, attribute: &Attribute) -> Option<&[Key<'t>]> {
        let mut needs = self.needs[at(number)].iter();
        let (_, keys) = needs.find(|(known, _)| *known == attribute)?;
        Some(keys)
    }

    /// The attribute that tells the policies apart best, and the room that is left then; `None` when
    /// walking them is as good.
    fn best_attribute(&self, numbers: &[u32]) -> Option<(&'t Attribute, usize)> {
        if numbers.len() <= WALKED_MAX || self.used.len() >= LEVELS_MAX {
            return None;
        }
        let (mut scores, mut order) = (HashMap::<_, Score<'_>>::new(), Vec::new());
        for number in numbers {
            for (attribute, keys) in &self.needs[at(*number)] {
                if self.used.contains(attribute) {
                    continue;
                }
                let score = scores.entry(*attribute).or_insert_with(|| {
                    order.push(*attribute);
                    Score::default()
                });
                score.policies += 1;
                score.entries += keys.len();
                score.keys.extend(keys);
            }
        }
        let affordable = order.into_iter().filter_map(|attribute| {
            let score = scores.get(attribute)?;
            let room = self.room.checked_sub(score.entries)?;
            let looked_at = score.looked_at(numbers.len());
            (looked_at <= numbers.len() / 2).then_some((looked_at, attribute, room))
        });
        let (_, attribute, room) = affordable.min_by_key(|(looked_at, ..)| *looked_at)?;
        Some((attribute, room))
    }
}

/// What looking at an attribute is good for.
#[derive(Default)]
struct Score<'t> {
    /// Policies that need it.
    policies: usize,
    /// How often they are named under it.
    entries: usize,
    keys: HashSet<Key<'t>>,
}

impl Score<'_> {
    /// How many of `all` policies are left on average, when one more text than are named is as likely as
    /// each of those.
    fn looked_at(&self, all: usize) -> usize {
        all - self.policies + self.entries / (self.keys.len() + 1)
    }
}

/// A protobuf with four milliards of policies does not exist.
fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn at(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
impl Node {
    fn looked_at(&self, request: &AuthzRequest<'_>) -> usize {
        match self {
            Self::Walk(numbers) => numbers.len(),
            Self::Branch(branch) => {
                let mut count = branch.rest.looked_at(request);
                branch.attribute.any(request, |text| {
                    let needing = &branch.needing;
                    needing.about(text, |node| count += node.looked_at(request));
                    false
                });
                count
            }
        }
    }

    fn held(&self) -> usize {
        match self {
            Self::Walk(numbers) => numbers.len(),
            Self::Branch(branch) => {
                branch.rest.held() + branch.needing.values().map(Self::held).sum::<usize>()
            }
        }
    }
}
