//! One TCP connection to an endpoint that has several addresses (RFC 8305; gRFC A61).
//!
//! One attempt after the other, the next one when the last one failed or has not connected for
//! [`ATTEMPT_DELAY`]; the first that connects is taken and the others are given up. The address of the last
//! connection is tried first, then kinds of addresses in turn. Deviation from gRFC A61: attempts end
//! with TCP, so that an address that accepts and fails in TLS does not lead to the next one.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use mesh_core::balance::ATTEMPT_DELAY;
use tokio::{net::TcpStream, time::Instant};

use crate::within::within;

/// The addresses of one endpoint.
#[derive(Debug)]
pub(crate) struct Addresses {
    first: SocketAddr,
    /// All, in the order of attempts; `None` for a single one.
    all: Option<Box<[SocketAddr]>>,
    /// Where the last connection went.
    last: AtomicUsize,
}

impl Addresses {
    pub(crate) fn new(first: SocketAddr, additional: Option<&Arc<[SocketAddr]>>) -> Self {
        let additional = additional.filter(|additional| !additional.is_empty());
        Self {
            first,
            all: additional.map(|additional| by_turns(first, additional)),
            last: AtomicUsize::new(0),
        }
    }

    /// A connection, and the address that it is to.
    ///
    /// # Errors
    /// When every attempt failed. There is no limit of time.
    pub(crate) async fn connect(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.all {
            None => Ok((TcpStream::connect(self.first).await?, self.first)),
            Some(all) => {
                let begin = self.last.load(Relaxed);
                let order = std::iter::once(begin).chain((0..all.len()).filter(|i| *i != begin));
                let (stream, index) = race(all, order).await?;
                self.last.store(index, Relaxed);
                Ok((stream, all[index]))
            }
        }
    }
}

/// The first connection of attempts in this order.
async fn race(
    addresses: &[SocketAddr],
    mut order: impl Iterator<Item = usize>,
) -> io::Result<(TcpStream, usize)> {
    let attempt = |index: usize| async move { (index, TcpStream::connect(addresses[index]).await) };
    let mut attempts = FuturesUnordered::new();
    let mut failures = Vec::new();
    loop {
        let due = order.next().map(|index| {
            attempts.push(attempt(index));
            Instant::now() + ATTEMPT_DELAY
        });
        match within(due, attempts.next()).await {
            // It is somebody else's turn.
            None => {}
            Some(Some((index, Ok(stream)))) => return Ok((stream, index)),
            Some(Some((index, Err(error)))) => {
                failures.push(format!("{}: {error}", addresses[index]));
            }
            Some(None) => return Err(io::Error::other(failures.join("; "))),
        }
    }
}

/// IPv6 and IPv4 in turn, beginning with `first` (RFC 8305, 4).
fn by_turns(first: SocketAddr, additional: &[SocketAddr]) -> Box<[SocketAddr]> {
    let is_same = |address: &&SocketAddr| address.is_ipv6() == first.is_ipv6();
    let (mut turn, mut other): (VecDeque<SocketAddr>, VecDeque<_>) =
        additional.iter().partition(is_same);
    turn.push_front(first);
    let mut order = Vec::with_capacity(additional.len() + 1);
    while let Some(address) = turn.pop_front().or_else(|| other.pop_front()) {
        order.push(address);
        std::mem::swap(&mut turn, &mut other);
    }
    order.into()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn kinds_of_addresses_take_turns_from_the_first() {
        let v4 = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let order = by_turns(v6(1), &[v6(2), v6(3), v4(4), v4(5)]);
        assert_eq!(*order, [v6(1), v4(4), v6(2), v4(5), v6(3)]);
        assert_eq!(*by_turns(v4(1), &[v4(2)]), [v4(1), v4(2)]);
    }

    #[tokio::test]
    async fn one_that_refuses_leads_to_the_next_and_the_one_that_took_is_kept() {
        let (one, two) = (closed().await, closed().await);
        let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = live.local_addr().unwrap();
        let addresses = Addresses::new(one, Some(&[two, address].into()));
        assert_eq!(addresses.connect().await.unwrap().1, address);
        assert_eq!(addresses.last.load(Relaxed), 2);
        assert_eq!(addresses.connect().await.unwrap().1, address);
        drop(live);
        let error = addresses.connect().await.unwrap_err().to_string();
        for address in [one, two, address] {
            assert!(error.contains(&address.to_string()), "{error}");
        }
    }

    async fn closed() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    }
}
