//! The pause before a retry (gRFC A6).

use std::time::Duration;

use crate::{config::Backoff, rng::Rng};

/// The pause before retry `retry`, counted from 1: `min(base · 2^(retry−1), max)`, ± 20 %.
pub fn backoff(backoff: &Backoff, retry: u32, rng: &mut impl Rng) -> Duration {
    let factor = 1u32 << retry.saturating_sub(1).min(16);
    let pause = backoff.base.saturating_mul(factor).min(backoff.max);
    pause.mul_f64(0.8 + 0.4 * rng.unit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SplitMix64;

    #[test]
    fn it_doubles_up_to_its_cap_with_twenty_percent_of_jitter() {
        let policy = Backoff::default();
        let mut rng = SplitMix64::new(1);
        for (retry, nominal) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (60, 250)] {
            for _ in 0..1_000 {
                let pause =
                    backoff(&policy, retry, &mut rng).as_secs_f64() * 1e3 / f64::from(nominal);
                assert!((0.8..=1.2).contains(&pause), "retry {retry}: {pause}");
            }
        }
    }
}
