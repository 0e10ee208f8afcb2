//! Objects of our own (`mesh/v1`), for what no other dialect can say.

mod rate_limit;

pub use rate_limit::{RateLimit, RateLimitMatch, RateLimitPer, RateLimitRule};
