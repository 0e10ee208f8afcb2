//! What came, went or differs between two maps.

use std::collections::{BTreeMap, HashSet};

/// Names of what came, went or differs.
pub(crate) fn changed<K: Ord + ToString, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> HashSet<String> {
    let differs = |(key, value): &(&K, &V)| before.get(key) != Some(*value);
    let new = after.iter().filter(differs).map(|(key, _)| key);
    let gone = before.keys().filter(|key| !after.contains_key(key));
    new.chain(gone).map(ToString::to_string).collect()
}
