//! Certificates that the control plane's authority signs in a second, for P-256 keys: the request is
//! read and its proof of possession checked, the certificate signed and written down as PEM.

use std::time::{Duration, Instant};

use anyhow::Context;
use control_plane::ca::{Authority, Identity};
use futures_util::{FutureExt as _, future};

use crate::harness::{Contender, Plan, Results, Turn, cpu, take_turns};

const TABLE: &str = "Issuance";
/// Certificates of one turn, in all.
const CERTIFICATES: usize = 4_000;
/// Life of a certificate.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Requests of as many workloads, in turns.
const REQUESTS: usize = 64;

pub(super) fn run(plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::open(folder.path(), "cluster.local", TTL)?;
    let identity = Identity::new("default", "web").context("an identity")?;
    let requests: Vec<_> = (0..REQUESTS).map(|_| request()).collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for threads in [1, 2] {
        let case = format!("{threads} threads");
        let (authority, identity, requests) = (&authority, &identity, &requests[..]);
        let signed = |name: &str, sign: fn(&Authority, &Identity, &str) -> anyhow::Result<()>| {
            let count = plan.scaled(CERTIFICATES);
            Contender {
                name: name.to_owned(),
                turn: Box::new(move || {
                    let one = move |number: usize| {
                        sign(authority, identity, &requests[number % REQUESTS])
                    };
                    future::ready(turn(threads, count, one)).boxed()
                }),
            }
        };
        let contenders = vec![
            signed("CSR", |authority, identity, request| {
                authority.sign_csr(request, identity, TTL)?;
                Ok(())
            }),
            signed("key made here, for SDS", |authority, identity, _| {
                authority.issue(identity, TTL)?;
                Ok(())
            }),
        ];
        runtime.block_on(take_turns(plan, results, (TABLE, &case), contenders));
    }
    Ok(())
}

fn request() -> Result<String, rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    rcgen::CertificateParams::default()
        .serialize_request(&key)?
        .pem()
}

fn turn(
    threads: usize,
    count: usize,
    sign: impl Fn(usize) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<Turn> {
    let each = (count / threads).max(1);
    let (cpu_before, start) = (cpu::own(), Instant::now());
    let signed: anyhow::Result<()> = std::thread::scope(|scope| {
        let sign = &sign;
        let workers = (0..threads).map(|_| scope.spawn(move || (0..each).try_for_each(sign)));
        let workers: Vec<_> = workers.collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("it signs"))
    });
    signed?;
    let (cpu, wall) = (cpu::own() - cpu_before, start.elapsed());
    let count = (each * threads) as f64;
    Ok(vec![
        ("certificates/s", count / wall.as_secs_f64()),
        ("certificates/s a core", count / cpu.as_secs_f64()),
        ("CPU us/certificate", cpu.as_secs_f64() * 1e6 / count),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_measured() {
        let mut results = Results::default();
        let plan = Plan {
            rounds: 1,
            length: 0.002,
            filter: None,
        };
        run(&plan, &mut results).unwrap();
        assert_eq!((results.rows.len(), results.notes.len()), (4, 0));
    }
}
