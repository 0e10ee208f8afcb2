//! Which virtual host an authority belongs to.
//!
//! Exact beats suffix (`*foo`) beats prefix (`foo*`) beats `*`; inside a class the longer pattern
//! wins, then the first (gRFC A27, Envoy `VirtualHost.domains`). ASCII case is ignored, and a
//! wildcard stands for at least one character. Deviation: a malformed domain only disables itself.

use crate::config::{RouteConfig, VirtualHost};

/// Class of a domain, then its length.
type Rank = (u8, usize);

/// The virtual host for `authority`, `None` when no domain matches.
pub fn virtual_host<'c>(config: &'c RouteConfig, authority: &str) -> Option<&'c VirtualHost> {
    let authority = compared(config, authority);
    let mut best: Option<(Rank, &VirtualHost)> = None;
    for host in &config.virtual_hosts {
        if let Some((rank, _)) = best_of(host, authority)
            && best.as_ref().is_none_or(|(held, _)| rank > *held)
        {
            best = Some((rank, host));
        }
    }
    best.map(|(_, host)| host)
}

/// The domain of `host` that fits `authority` best.
pub(super) fn best_domain<'c>(
    config: &RouteConfig,
    host: &'c VirtualHost,
    authority: &str,
) -> Option<&'c str> {
    best_of(host, compared(config, authority)).map(|(_, domain)| domain)
}

/// What of an authority is compared with domains.
fn compared<'a>(config: &RouteConfig, authority: &'a str) -> &'a str {
    let has_port = |(_, port): &(&str, &str)| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
    };
    match authority.rsplit_once(':').filter(has_port) {
        Some((host, _)) if config.ignore_port => host,
        _ => authority,
    }
}

fn best_of<'c>(host: &'c VirtualHost, authority: &str) -> Option<(Rank, &'c str)> {
    let domains = host.domains.iter();
    let ranked = domains.filter_map(|domain| Some((rank(domain, authority)?, domain.as_str())));
    // The first of equals.
    ranked.reduce(|best, next| if next.0 > best.0 { next } else { best })
}

/// How well `domain` matches. `None` when it does not.
fn rank(domain: &str, authority: &str) -> Option<Rank> {
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
