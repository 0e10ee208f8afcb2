//! Ports for servers that are not there yet: those of other processes, and those that come back.
//!
//! A port that is found by binding port 0 and let go is anybody's again: the next connection that goes
//! out may get it from the kernel. These are below the range of such ports, and each is handed out once
//! in a process. Processes begin at different places, so that two that look at once do not meet.

use std::{
    fs,
    io::{Error, ErrorKind, Result},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// The first port that is handed out; well-known servers sit below.
pub(crate) const FIRST: u16 = 10_000;
/// Where the kernel's own ports begin when it does not say so; Linux's default, and below that of others.
const EPHEMERAL: u16 = 32_768;
/// Between the places where processes with neighbouring numbers begin.
const STRIDE: u32 = 512;

/// A port that nobody listens on and nobody else gets by chance.
///
/// Where the kernel takes nearly all ports for its own (`net.ipv4.ip_local_port_range`), it is one of those.
///
/// # Errors
/// When all have been handed out.
pub fn free_port() -> Result<u16> {
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    let Some(count) = first_ephemeral().checked_sub(FIRST).filter(|n| *n > 0) else {
        return Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?
            .local_addr()?
            .port());
    };
    let count = u32::from(count);
    let begin = process::id().wrapping_mul(STRIDE) % count;
    loop {
        let number = HANDED_OUT.fetch_add(1, Relaxed);
        if number >= count {
            let text = format!("all {count} ports from {FIRST} on were handed out or are in use");
            return Err(Error::new(ErrorKind::AddrInUse, text));
        }
        let port = u32::from(FIRST) + (begin + number) % count;
        let port = u16::try_from(port).map_err(Error::other)?;
        // At any address: who listens at one of the machine's is in the way of one that takes all.
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
}

/// Such a port of `127.0.0.1`.
///
/// # Errors
/// When all have been handed out.
pub fn free_address() -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
}

/// The first port that the kernel gives to connections that go out.
pub(crate) fn first_ephemeral() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let first = range.ok().and_then(|range| {
        let first = range.split_whitespace().next()?;
        first.parse().ok()
    });
    first.unwrap_or(EPHEMERAL)
}
