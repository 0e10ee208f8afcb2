//! Loads: a burst of calls, callers in a closed loop, and a fixed rate.
//!
//! Callers run as tasks on the runtime's workers, never on the thread of `block_on`: a wake-up
//! across threads would be added to whatever designs hop between tasks.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::cpu;

/// Something that can be called again and again.
pub trait Call: Send + Sync + 'static {
    /// Another caller with the same channel beneath.
    fn fork(&self, caller: usize) -> Self;

    /// One call to the end of its response.
    fn call(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What a load measured in this process.
#[derive(Debug)]
pub struct Measured {
    /// Calls that succeeded.
    pub calls: usize,
    /// Time on the wall.
    pub wall: Duration,
    /// Processor time of this process.
    pub cpu: Duration,
    /// Latency in nanoseconds; empty after a [`burst`].
    pub latency: Histogram<u64>,
}

impl Measured {
    /// `time` a call, in the unit that `per_second` of make a second.
    pub fn each(&self, time: Duration, per_second: f64) -> f64 {
        time.as_secs_f64() * per_second / self.calls.max(1) as f64
    }

    /// A quantile of the latency in microseconds.
    pub fn quantile(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// `calls` calls in all by `tasks` tasks, without a clock around each.
///
/// # Errors
/// When a call fails.
pub async fn burst<C: Call>(origin: &C, tasks: usize, calls: usize) -> anyhow::Result<Measured> {
    let each = calls / tasks;
    let callers: Vec<_> = (0..tasks).map(|task| origin.fork(task)).collect();
    let (cpu_before, start) = (cpu::own(), Instant::now());
    // The first tasks wait for each other, one on each worker: short bursts would all run on the
    // worker that wakes up first.
    let parallel = tasks.min(tokio::runtime::Handle::current().metrics().num_workers());
    let together = Arc::new((AtomicUsize::new(0), std::sync::Barrier::new(parallel)));
    let mut running = JoinSet::new();
    for mut caller in callers {
        let together = Arc::clone(&together);
        running.spawn(async move {
            if together.0.fetch_add(1, Relaxed) < parallel {
                together.1.wait();
            }
            for _ in 0..each {
                caller.call().await?;
            }
            anyhow::Ok(caller)
        });
    }
    // Dropped when the clocks have stopped.
    let mut ended = Vec::with_capacity(tasks);
    while let Some(caller) = running.join_next().await {
        ended.push(caller??);
    }
    Ok(Measured {
        calls: each * tasks,
        wall: start.elapsed(),
        cpu: cpu::own() - cpu_before,
        latency: histogram(),
    })
}

/// `callers` that each call again as soon as they have their answer.
///
/// # Errors
/// When a call fails.
pub async fn closed<C: Call>(
    origin: &C,
    callers: usize,
    length: Duration,
) -> anyhow::Result<Measured> {
    let (cpu_before, start) = (cpu::own(), Instant::now());
    let mut running = JoinSet::new();
    for caller in 0..callers {
        let mut caller = origin.fork(caller);
        running.spawn(async move {
            let mut latency = histogram();
            loop {
                let before = Instant::now();
                if before - start >= length {
                    return anyhow::Ok(latency);
                }
                caller.call().await?;
                latency.saturating_record(before.elapsed().as_nanos() as u64);
            }
        });
    }
    let mut latency = histogram();
    while let Some(ended) = running.join_next().await {
        latency.add(ended??)?;
    }
    Ok(Measured {
        calls: latency.len() as usize,
        wall: start.elapsed(),
        cpu: cpu::own() - cpu_before,
        latency,
    })
}

/// A call every `1 / rate` seconds, whether or not the earlier ones have ended. The pace comes
/// from a thread of its own, since tokio's timer ticks in milliseconds.
///
/// # Errors
/// When a call fails, or calls pile up.
pub async fn fixed_rate<C: Call>(
    origin: &C,
    rate: usize,
    length: Duration,
) -> anyhow::Result<Measured> {
    const SENDERS: usize = 256;
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| Arc::new(tokio::sync::Mutex::new((origin.fork(sender), histogram()))))
        .collect();
    let late = Arc::new(AtomicUsize::new(0));
    let (cpu_before, start) = (cpu::own(), Instant::now());
    let pace = {
        let (senders, late) = (senders.clone(), Arc::clone(&late));
        let runtime = tokio::runtime::Handle::current();
        move || {
            let total = (rate as f64 * length.as_secs_f64()) as usize;
            let mut running = Vec::with_capacity(total);
            for call in 0..total {
                let due = start + Duration::from_secs_f64(call as f64 / rate as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let sender = Arc::clone(&senders[call % SENDERS]);
                let late = Arc::clone(&late);
                let issued = Instant::now();
                running.push(runtime.spawn(async move {
                    if sender.try_lock().is_err() {
                        late.fetch_add(1, Relaxed);
                    }
                    let mut held = sender.lock().await;
                    let (caller, latency) = &mut *held;
                    caller.call().await?;
                    latency.saturating_record(issued.elapsed().as_nanos() as u64);
                    anyhow::Ok(())
                }));
            }
            running
        }
    };
    let running = tokio::task::spawn_blocking(pace).await?;
    for call in running {
        call.await??;
    }
    let (wall, cpu) = (start.elapsed(), cpu::own() - cpu_before);
    let mut latency = histogram();
    for sender in senders {
        latency.add(&sender.try_lock().context("every call has ended")?.1)?;
    }
    Ok(Measured {
        calls: latency.len() as usize,
        wall,
        cpu,
        latency,
    })
}

/// Up to a minute in nanoseconds, within a thousandth.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are valid"))
}
