//! pingora's balancers, by one and by two threads: a selection of a backend, without what a request
//! would count on it.

use std::{net::SocketAddr, time::Instant};

use anyhow::Context;
use futures_util::{FutureExt, future};
use mesh_core::rng::{Rng, SplitMix64};
use pingora_load_balancing::{
    LoadBalancer,
    selection::{BackendIter, BackendSelection, Consistent, FNVHash, Random, RoundRobin},
};

use crate::harness::{Contender, Turn, cpu};

/// Backends that are looked at for one that is healthy: all are.
const ITERATIONS_MAX: usize = 8;

/// Most endpoints that its selections by weight take; with more they panic.
const WEIGHTED_MAX: usize = 1 << 16;

/// All of them, over these endpoints.
///
/// # Errors
/// When one cannot be made.
pub(super) fn contenders<'a>(
    addresses: &[SocketAddr],
    threads: usize,
    picks: usize,
) -> anyhow::Result<Vec<Contender<'a>>> {
    let ketama = contender::<Consistent>("pingora, ketama", addresses, threads, picks)?;
    let mut all = vec![ketama];
    if addresses.len() <= WEIGHTED_MAX {
        all.extend([
            contender::<RoundRobin>("pingora, round robin", addresses, threads, picks)?,
            contender::<Random>("pingora, random", addresses, threads, picks)?,
            contender::<FNVHash>("pingora, hash by FNV", addresses, threads, picks)?,
        ]);
    }
    Ok(all)
}

fn contender<'a, S>(
    name: &str,
    addresses: &[SocketAddr],
    threads: usize,
    picks: usize,
) -> anyhow::Result<Contender<'a>>
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    let balancer = LoadBalancer::<S>::try_from_iter(addresses).context("addresses")?;
    Ok(Contender {
        name: name.to_owned(),
        turn: Box::new(move || future::ready(turn(&balancer, threads, picks)).boxed()),
    })
}

fn turn<S>(balancer: &LoadBalancer<S>, threads: usize, picks: usize) -> anyhow::Result<Turn>
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    let each = picks / threads;
    let (cpu_before, start) = (cpu::own(), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut rng = SplitMix64::new(thread as u64);
                for _ in 0..each {
                    let key = rng.next_u64().to_le_bytes();
                    std::hint::black_box(balancer.select(&key, ITERATIONS_MAX));
                }
            });
        }
    });
    let (cpu, wall) = (cpu::own() - cpu_before, start.elapsed());
    Ok(super::figures(cpu, wall, each * threads))
}
