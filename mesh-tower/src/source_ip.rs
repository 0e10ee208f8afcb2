//! The address that this process calls from.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::OnceLock,
};

/// The address that this process calls from, as far as it has one, for hashes of the source address:
/// behind a sidecar, too, the source of a process's calls is the process. Asked for once; the loopback
/// address without a route to anywhere.
pub(crate) fn of_process() -> Option<IpAddr> {
    static ADDRESS: OnceLock<IpAddr> = OnceLock::new();
    Some(*ADDRESS.get_or_init(|| outward().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))))
}

/// What the kernel would send from. Nothing is sent: a connected UDP socket only knows its route.
fn outward() -> Option<IpAddr> {
    /// Of the block for documentation (RFC 5737): any address outside will do.
    const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ANYWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
