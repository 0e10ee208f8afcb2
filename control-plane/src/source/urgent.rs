//! Which changes must not wait for others: those that take an endpoint away.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    model::{Object, ObjectSet, Spec},
    registry::Members,
};

/// Whether an endpoint that could be used before cannot be any more.
pub(crate) fn loses_endpoints(before: &ObjectSet, after: &ObjectSet) -> bool {
    before.iter().any(|(key, held)| match after.get(key) {
        Some(new) if Arc::ptr_eq(held, new) => false,
        Some(new) => !usable(held).is_subset(&usable(new)),
        None => !usable(held).is_empty(),
    })
}

/// Whether an instance that could be used before cannot be any more.
pub(crate) fn loses_members(before: &Members, after: &Members) -> bool {
    before.iter().any(|(id, held)| {
        let new = after.get(id);
        held.health.is_usable() && !new.is_some_and(|new| new.health.is_usable())
    })
}

/// The addresses in an object that take requests.
fn usable(object: &Object) -> BTreeSet<&str> {
    match &object.spec {
        Spec::ServiceEntry(entry) => entry.endpoints.iter().map(|e| &*e.address).collect(),
        Spec::WorkloadEntry(entry) => [&*entry.address].into(),
        Spec::EndpointSlice(slice) => {
            let takes_requests = slice.endpoints.iter().filter(|endpoint| {
                let conditions = endpoint.conditions;
                conditions.ready.unwrap_or(true) && conditions.terminating != Some(true)
            });
            takes_requests
                .flat_map(|endpoint| endpoint.addresses.iter().map(|a| &**a))
                .collect()
        }
        _ => BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::load_text;

    fn slice(endpoints: &str) -> ObjectSet {
        let head = "kind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\n";
        load_text("a.yaml", &format!("{head}endpoints: {endpoints}\n")).objects
    }

    #[test]
    fn an_endpoint_that_goes_or_is_not_ready_is_lost() {
        let both = slice("[{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]");
        let one = slice("[{addresses: [10.0.0.1]}]");
        let sick =
            slice("[{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false}}]");
        assert!(loses_endpoints(&both, &one));
        assert!(loses_endpoints(&both, &sick));
        assert!(loses_endpoints(&both, &ObjectSet::new()));
        assert!(!loses_endpoints(&one, &both));
        assert!(!loses_endpoints(&one, &sick));
        assert!(!loses_endpoints(&both, &both.clone()));
    }
}
