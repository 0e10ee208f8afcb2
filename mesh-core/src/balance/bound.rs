//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam; Envoy
//! `hash_balance_factor`): no endpoint has more requests in flight than its part of the mean times a
//! factor, what is above goes on to the next one.
//!
//! The mean is summed up over all endpoints, but only when the first choice is busy at all.

use super::ClusterEndpoint;

/// The bound of a list of endpoints.
#[derive(Debug)]
pub(super) struct Bound {
    factor: f64,
    /// Parts of the weights, of a sum of 1.
    shares: Box<[f64]>,
}

impl Bound {
    /// `percent` of the mean; `None` is no bound.
    pub(super) fn new(percent: Option<u32>, weights: &[f64]) -> Option<Self> {
        let percent = percent?.max(100);
        let total: f64 = weights.iter().sum();
        Some(Self {
            factor: f64::from(percent) / 100.0,
            shares: weights.iter().map(|weight| weight / total).collect(),
        })
    }

    /// Whether the endpoint has as many requests in flight as it may, with the one to come.
    /// `total` keeps the sum for the next look of the same pick.
    pub(super) fn is_full(
        &self,
        endpoints: &[ClusterEndpoint],
        index: usize,
        total: &mut Option<f64>,
    ) -> bool {
        let own = endpoints[index].stats.in_flight();
        if own == 0 {
            return false;
        }
        let total = *total.get_or_insert_with(|| {
            let in_flight = endpoints.iter().map(|e| f64::from(e.stats.in_flight()));
            in_flight.sum::<f64>() + 1.0
        });
        f64::from(own) >= (total * self.factor * self.shares[index]).ceil().max(1.0)
    }
}
