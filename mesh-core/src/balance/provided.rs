//! No choice: the request itself says which endpoint it goes to (Envoy `CLUSTER_PROVIDED`).

use super::{ClusterEndpoint, LoadBalancer, PickContext, PickResult};
use crate::rng::Rng;

/// Has requests wait until it is known where they go.
#[derive(Debug)]
pub(crate) struct Provided;

impl LoadBalancer for Provided {
    fn pick(&self, _: &[ClusterEndpoint], _: &mut PickContext<'_, dyn Rng + '_>) -> PickResult {
        PickResult::Queue
    }
}
