//! The alarm and renewal in virtual time, with clocks that are wrong.

use std::{
    fmt::Write as _,
    sync::{Mutex, atomic::AtomicU64},
};

use tokio::time::{Instant, advance};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);
/// How far clocks may be off (docs/security.md).
const SKEW: Duration = Duration::from_secs(5 * 60);
/// How far signers set `notBefore` back.
const BACKDATE: Duration = Duration::from_secs(10 * 60);

/// Events of this crate at INFO and above, as `LEVEL field=value ...`.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl Events {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().contains("certificate::life")
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// A clock of virtual time, ahead or behind by so many seconds.
fn clock(off_s: i64) -> Clock {
    let (start, begin) = (Instant::now(), SystemTime::now());
    Clock::new(move || {
        let now = begin + start.elapsed();
        let off = Duration::from_secs(off_s.unsigned_abs());
        if off_s < 0 { now - off } else { now + off }
    })
}

fn certificate(begins: SystemTime, life: Duration) -> Certificate {
    Certificate {
        chain: Vec::new(),
        key: PrivateKeyDer::Pkcs8(Vec::new().into()),
        spiffe_id: NAME.into(),
        not_before: begins - BACKDATE,
        not_after: begins + life,
        is_stored: false,
    }
}

/// Lets tasks that are ready run.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_warning_comes_with_a_third_of_the_life_left_and_one_line_when_it_is_over() {
    let events = Events::default();
    let _guard = tracing::subscriber::set_default(events.clone());
    let clock = clock(0);
    let life = LifeReport::start(clock.clone(), None);
    life.renewed(&certificate(clock.now(), DAY));
    life.failed("the signer is away");
    settle().await;
    // Though `notBefore` is ten minutes back, the life is that of which something is left.
    advance(DAY * 2 / 3 - MINUTE).await;
    settle().await;
    assert_eq!(events.take(), [""; 0], "two thirds are not over");
    advance(MINUTE * 2).await;
    settle().await;
    let said = events.take();
    assert_eq!(said.len(), 1, "{said:?}");
    for part in [
        "WARN",
        "the signer is away",
        "left_s=28740",
        "less than a third",
    ] {
        assert!(said[0].contains(part), "{part}: {said:?}");
    }
    for _ in 0..100 {
        advance(MINUTE).await;
        life.failed("still away");
        settle().await;
    }
    assert_eq!(events.take(), [""; 0], "once is enough");
    life.renewed(&certificate(clock.now(), DAY));
    settle().await;
    let said = events.take();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("INFO") && said[0].contains("renewed"),
        "{said:?}"
    );
    advance(DAY * 2 / 3 + MINUTE).await;
    life.failed("away again");
    settle().await;
    assert_eq!(events.take().len(), 1, "each certificate has its own");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_yet_to_be_tried_is_no_alarm_and_files_that_nobody_replaces_are() {
    let events = Events::default();
    let _guard = tracing::subscriber::set_default(events.clone());
    let clock = clock(0);
    let tried = LifeReport::start(clock.clone(), None);
    let silent = LifeReport::start(clock.clone(), Some("its files were not replaced"));
    // Renewal is at 70 % of the life at the latest.
    tried.renewed(&certificate(clock.now(), DAY));
    settle().await;
    advance(DAY.mul_f64(0.69)).await;
    settle().await;
    tried.renewed(&certificate(clock.now(), DAY));
    settle().await;
    assert_eq!(events.take(), [""; 0]);

    // It was there before us: its life began with its `notBefore`.
    let mut found = certificate(clock.now(), DAY);
    found.not_before = clock.now() - DAY;
    silent.found(&found);
    settle().await;
    advance(DAY / 3 - MINUTE).await;
    settle().await;
    assert_eq!(events.take(), [""; 0]);
    advance(MINUTE * 2).await;
    settle().await;
    let said = events.take();
    assert!(
        said.len() == 1 && said[0].contains("were not replaced"),
        "{said:?}"
    );
}

/// Renews over `time` with a clock that is off; how often it asked, and whether a certificate that
/// the world takes for valid was there all the time.
async fn renewals(off_s: i64, life: Duration, time: Duration) -> (u64, bool) {
    let (world, ours) = (clock(0), clock(off_s));
    let config = CertificateConfig::new(ServerUri::parse("cp:1").unwrap());
    let (client, watch) = CertificateClient::new(config, ours.clone());
    let asked = Arc::new(AtomicU64::new(0));
    let ask = {
        let (asked, world) = (Arc::clone(&asked), world.clone());
        move || {
            asked.fetch_add(1, Ordering::Relaxed);
            let made = certificate(world.now(), life);
            // As the check of the answer does.
            let is_over = ours.now() >= made.not_after;
            std::future::ready(match is_over {
                true => Err("the leaf has expired".to_owned()),
                false => Ok(made),
            })
        }
    };
    let renewing = tokio::spawn(client.renew_with(ask));
    settle().await;
    let end = Instant::now() + time;
    let mut is_valid = true;
    while Instant::now() < end {
        advance(life / 100).await;
        settle().await;
        let held = watch.borrow().clone();
        let now = world.now();
        is_valid &= held.is_some_and(|held| held.not_before <= now && now < held.not_after);
    }
    renewing.abort();
    (asked.load(Ordering::Relaxed), is_valid)
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_five_minutes_off_never_leaves_a_process_without_a_certificate() {
    let skew = SKEW.as_secs() as i64;
    for life in [Duration::from_secs(15 * 60), Duration::from_secs(3600), DAY] {
        for off in [-skew, 0, skew] {
            let lives = 20;
            let (asked, is_valid) = renewals(off, life, life * lives).await;
            assert!(is_valid, "{life:?} {off}");
            // Between half and 70 % of what is left, by a clock that takes five minutes off it.
            let seen = life - SKEW;
            let most = (life * lives).as_secs_f64() / (seen.as_secs_f64() * 0.5) + 2.0;
            assert!((asked as f64) <= most, "{life:?} {off}: {asked}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_ahead_of_the_end_asks_once_a_minute_and_one_just_before_once_a_second_at_most() {
    let life = SKEW;
    let time = Duration::from_secs(3600);
    let (asked, _) = renewals(life.as_secs() as i64 + 1, life, time).await;
    assert!((30..120).contains(&asked), "{asked}");
    let (asked, _) = renewals(life.as_secs() as i64 - 1, life, time).await;
    assert!(asked <= 3700, "{asked}");
}
