//! What the examples share: the greeter's generated code, and how ports are found.

pub mod ports;

/// `greeter.v1`.
pub mod greeter {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::pedantic,
        clippy::use_self,
        reason = "generated code"
    )]
    tonic::include_proto!("greeter.v1");
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        net::{Ipv4Addr, TcpListener},
    };

    use super::ports::{FIRST, first_ephemeral, free_port};

    #[test]
    fn ports_differ_can_be_bound_and_are_none_that_the_kernel_gives_away() {
        let ports: HashSet<u16> = (0..200).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 200);
        let first = first_ephemeral();
        assert!(first <= FIRST || ports.iter().all(|port| *port < first));
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }
}
