//! Which virtual host an authority belongs to.
//!
//! Exact beats suffix (`*foo`) beats prefix (`foo*`) beats `*`; inside a class the longer pattern
//! wins, then the first (gRFC A27, Envoy `VirtualHost.domains`). ASCII case is ignored, and a
//! wildcard stands for at least one character. Deviation: a malformed domain only disables itself.

use crate::config::{RouteConfig, VirtualHost};

/// The virtual host for `authority`, `None` when no domain matches.
pub fn virtual_host<'c>(config: &'c RouteConfig, authority: &str) -> Option<&'c VirtualHost> {
    let mut best: Option<((u8, usize), &VirtualHost)> = None;
    for host in &config.virtual_hosts {
        for domain in &host.domains {
            let Some(rank) = rank(domain, authority) else {
                continue;
            };
            if best.as_ref().is_none_or(|(held, _)| rank > *held) {
                best = Some((rank, host));
            }
        }
    }
    best.map(|(_, host)| host)
}

/// How well `domain` matches: class, then length. `None` when it does not.
fn rank(domain: &str, authority: &str) -> Option<(u8, usize)> {
    let (domain, authority) = (domain.as_bytes(), authority.as_bytes());
    match domain {
        [] => None,
        b"*" => Some((1, 1)),
        [b'*', suffix @ ..] => {
            let start = authority
                .len()
                .checked_sub(suffix.len())
                .filter(|start| *start > 0)?;
            (authority[start..].eq_ignore_ascii_case(suffix) && !suffix.contains(&b'*'))
                .then_some((3, domain.len()))
        }
        [prefix @ .., b'*'] => {
            let head = authority
                .get(..prefix.len())
                .filter(|_| authority.len() > prefix.len())?;
            (head.eq_ignore_ascii_case(prefix) && !prefix.contains(&b'*'))
                .then_some((2, domain.len()))
        }
        exact => exact
            .eq_ignore_ascii_case(authority)
            .then_some((4, domain.len())),
    }
}
