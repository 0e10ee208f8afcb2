//! A set of few members, mostly one.
//!
//! Beside stage 5. Each of ten thousand clusters has a set of its users: a sorted list takes a sixth of the
//! memory of a tree.

/// Members in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Few<T>(Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> Few<T> {
    /// Adds a member; `false` if it is one.
    pub(super) fn insert(&mut self, member: T) -> bool {
        let Err(place) = self.0.binary_search(&member) else {
            return false;
        };
        if self.0.is_empty() {
            self.0.reserve_exact(1);
        }
        self.0.insert(place, member);
        true
    }

    /// Takes a member away.
    pub(super) fn remove(&mut self, member: &T) {
        if let Ok(place) = self.0.binary_search(member) {
            self.0.remove(place);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh_core::rng::{Rng, SplitMix64};

    use super::*;

    #[test]
    fn it_has_the_members_that_a_tree_has() {
        let mut rng = SplitMix64::new(7);
        let (mut few, mut tree) = (Few::default(), BTreeSet::new());
        for _ in 0..2000 {
            let member = rng.next_u64() % 12;
            if rng.next_u64().is_multiple_of(2) {
                assert_eq!(few.insert(member), tree.insert(member));
            } else {
                few.remove(&member);
                tree.remove(&member);
            }
            assert!(few.iter().eq(&tree));
            assert_eq!(few.is_empty(), tree.is_empty());
        }
    }
}
