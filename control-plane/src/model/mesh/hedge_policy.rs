//! Second attempts beside slow ones.

use serde::Deserialize;

/// Second attempts of the calls to a service, beside those that take long. They count against the
/// service's retry budget.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HedgePolicy {
    /// The service, as in a DestinationRule.
    pub host: String,
    /// How long an attempt is without a response before another one begins. Excludes `percentile`.
    pub delay: Option<String>,
    /// The same, as the share of the service's attempts, in percent, that do not take as long.
    pub percentile: Option<f64>,
    /// With `percentile`: not less than this, and this while too few calls were made to know.
    /// Default 10 ms.
    pub min_delay: Option<String>,
    /// Attempts that are under way at most, 2 to 5. Default 2.
    pub max_attempts: Option<u32>,
    /// Whether an attempt that reaches its per-try timeout goes on beside the retry. Default false.
    pub on_per_try_timeout: Option<bool>,
}
