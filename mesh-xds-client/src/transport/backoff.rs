//! When to try again.
//!
//! Stage 1. Exponential, factor 1.6, ±20 % jitter (gRPC connection backoff). Holds no clock: the
//! caller measures, from the attempt's start when it failed and from the close when it had worked.

use std::time::Duration;

use mesh_core::rng::Rng;

/// Growth from one pause to the next.
const FACTOR: f64 = 1.6;

/// Largest deviation from the pause, either way.
const JITTER: f64 = 0.2;

/// Pauses between attempts.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `base` to `cap`.
    pub(crate) fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            next: base.min(cap),
        }
    }

    /// Starts over.
    pub(crate) fn reset(&mut self) {
        self.next = self.base.min(self.cap);
    }

    /// The shortest pause.
    pub(crate) fn base(&self) -> Duration {
        self.base
    }

    /// The pause after a failure.
    pub(crate) fn after_failure(&mut self, rng: &mut impl Rng) -> Duration {
        let pause = self.next;
        self.next = pause.mul_f64(FACTOR).min(self.cap);
        pause.mul_f64(1.0 - JITTER + 2.0 * JITTER * rng.unit())
    }

    /// The pause after something that worked: the base, and never less. Without it, a server that
    /// closes each stream at once would be hammered.
    pub(crate) fn after_success(&mut self, rng: &mut impl Rng) -> Duration {
        self.next = self.base.min(self.cap);
        self.base.mul_f64(1.0 + JITTER * rng.unit())
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::rng::SplitMix64;

    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_start_over_after_success() {
        let mut rng = SplitMix64::new(7);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(120));
        let mut expected = 1.0f64;
        for _ in 0..20 {
            let pause = backoff.after_failure(&mut rng).as_secs_f64();
            assert!(
                pause >= expected * 0.8 - 1e-6 && pause <= expected * 1.2 + 1e-6,
                "{pause}"
            );
            expected = (expected * 1.6).min(120.0);
        }
        assert_eq!(expected, 120.0);
        for _ in 0..20 {
            let pause = backoff.after_success(&mut rng).as_secs_f64();
            assert!((1.0..=1.2).contains(&pause), "{pause}");
        }
        assert!(backoff.after_failure(&mut rng) <= Duration::from_millis(1200));
    }
}
