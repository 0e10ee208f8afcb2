//! The alarm when a certificate runs out: one warning with the reason when less than a third of its
//! life is left and nothing came in its place, one line when something did.
//!
//! A life begins when the certificate came, not with its `notBefore`, which signers set back for
//! clocks that are behind; one that somebody else wrote at an unknown time begins with that. It asks
//! for nothing and decides nothing: renewing is the business of whoever reports here.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::sleep};

use super::Certificate;

/// With less than this part of its life left a certificate ought to have been replaced.
const ALARM: u32 = 3;

/// What time it is.
#[derive(Clone)]
pub(super) struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// That of the machine.
    pub(super) fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    #[cfg(test)]
    pub(super) fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// How long it is until then.
    pub(super) fn until(&self, time: SystemTime) -> Duration {
        time.duration_since(self.now()).unwrap_or_default()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Where a source of certificates reports. The alarm ends with it.
#[derive(Debug)]
pub(super) struct LifeReport {
    clock: Clock,
    tx: watch::Sender<Renewal>,
}

/// How renewal stands.
#[derive(Clone, Debug, Default)]
struct Renewal {
    held: Option<Held>,
    failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    spiffe_id: String,
    begins: SystemTime,
    ends: SystemTime,
}

impl Held {
    fn alarm_at(&self) -> SystemTime {
        let life = self.ends.duration_since(self.begins).unwrap_or_default();
        self.ends - life / ALARM
    }
}

impl LifeReport {
    /// Starts the alarm. `silence` is the reason where nothing failed, as nothing was tried; without
    /// one a certificate whose renewal is yet to be tried gives no alarm.
    pub(super) fn start(clock: Clock, silence: Option<&'static str>) -> Self {
        let (tx, rx) = watch::channel(Renewal::default());
        tokio::spawn(follow(rx, clock.clone(), silence));
        Self { clock, tx }
    }

    /// There is a certificate that is new now.
    pub(super) fn renewed(&self, certificate: &Certificate) {
        self.holds(certificate, self.clock.now());
    }

    /// There is a certificate that was made some time ago.
    pub(super) fn found(&self, certificate: &Certificate) {
        self.holds(certificate, certificate.not_before);
    }

    fn holds(&self, certificate: &Certificate, begins: SystemTime) {
        self.tx.send_replace(Renewal {
            held: Some(Held {
                spiffe_id: certificate.spiffe_id.clone(),
                begins,
                ends: certificate.not_after,
            }),
            failure: None,
        });
    }

    /// There is no new one, and why.
    pub(super) fn failed(&self, reason: &str) {
        self.tx
            .send_modify(|renewal| renewal.failure = Some(reason.to_owned()));
    }
}

async fn follow(
    mut renewals: watch::Receiver<Renewal>,
    clock: Clock,
    silence: Option<&'static str>,
) {
    let (mut held, mut is_raised) = (None, false);
    loop {
        let renewal = renewals.borrow_and_update().clone();
        if renewal.held != held {
            held = renewal.held;
            if let (true, Some(held)) = (is_raised, &held) {
                let left_s = clock.until(held.ends).as_secs();
                tracing::info!(
                    spiffe_id = held.spiffe_id,
                    left_s,
                    "the certificate is renewed"
                );
            }
            is_raised = false;
        }
        let mut pause = None;
        if let (false, Some(held)) = (is_raised, &held) {
            let wait = clock.until(held.alarm_at());
            let reason = renewal.failure.as_deref().or(silence);
            if !wait.is_zero() {
                pause = Some(wait);
            } else if let Some(reason) = reason {
                is_raised = true;
                tracing::warn!(
                    spiffe_id = held.spiffe_id,
                    left_s = clock.until(held.ends).as_secs(),
                    reason,
                    "less than a third of the certificate's life is left, and there is no new one"
                );
            }
        }
        tokio::select! {
            changed = renewals.changed() => if changed.is_err() { return },
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}
