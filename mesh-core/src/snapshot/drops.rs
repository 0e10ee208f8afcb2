//! Requests that the control plane wants refused (gRFC A27 `drop_overloads`).
//!
//! Stage 10, before anything else of the cluster. Categories are tested in order, each with its own
//! dice: two of 50 % refuse three quarters. Who refuses counts, in
//! [`ClusterLoad`](crate::load::ClusterLoad).

use crate::{
    config::{DropOverload, Fraction},
    rng::Rng,
};

/// The drop rules of one cluster.
#[derive(Debug, Default)]
pub struct Drops {
    categories: Box<[(Fraction, Box<str>)]>,
}

impl Drops {
    pub(super) fn new(rules: &[DropOverload]) -> Self {
        let category = |rule: &DropOverload| (rule.share, rule.category.as_str().into());
        Self {
            categories: rules.iter().map(category).collect(),
        }
    }

    /// Whether nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.categories.is_empty()
    }

    /// The name of the category in which a request is refused; `None`: it goes on.
    pub fn draw<R: Rng + ?Sized>(&self, rng: &mut R) -> Option<&str> {
        let mut categories = self.categories.iter();
        let (_, category) = categories.find(|(share, _)| share.contains(rng.next_u64()))?;
        Some(category)
    }
}
