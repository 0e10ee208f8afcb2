//! Which connections a filter chain takes (gRFC A36; Envoy `FilterChainMatch`).
//!
//! The criteria are looked at one after the other, and at each the chains that say it most precisely
//! stay: destination port, destination address, server name, transport, application protocol, kind of
//! source, source address, source port. A chain that lost at one is not looked at again, although no
//! other may be left in the end: then the connection is closed, or the default chain's.

use std::net::SocketAddr;

use super::{FilterChain, IpRange, TransportMatch};

/// What a chain asks of a connection besides its transport; empty takes every connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// Takes what no other chain does, and asks nothing (`default_filter_chain`).
    pub is_default: bool,
    /// The port that the client connected to.
    pub destination_port: Option<u16>,
    /// The address that it connected to is in one of these; empty for any.
    pub destination_ranges: Vec<IpRange>,
    /// The server name of the TLS handshake is one of these, in lower case; `*.a.b` stands for every
    /// name below `a.b`. Empty for any, or none.
    pub server_names: Vec<String>,
    /// The client offers one of these application protocols (ALPN); empty for any, or none.
    pub application_protocols: Vec<String>,
    /// Where the client is.
    pub source_type: SourceType,
    /// Its address is in one of these; empty for any.
    pub source_ranges: Vec<IpRange>,
    /// Its port is one of these; empty for any.
    pub source_ports: Vec<u16>,
}

impl ChainMatch {
    /// Whether two chains of one transport would be as good as one another for some connection.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.is_default
            && !other.is_default
            && self.destination_port == other.destination_port
            && share(&self.destination_ranges, &other.destination_ranges)
            && share(&self.server_names, &other.server_names)
            && share(&self.application_protocols, &other.application_protocols)
            && self.source_type == other.source_type
            && share(&self.source_ranges, &other.source_ranges)
            && share(&self.source_ports, &other.source_ports)
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// On this machine: a loopback address, or the one that it connected to.
    SameIpOrLoopback,
    /// On another.
    External,
}

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The client.
    pub source: SocketAddr,
    /// The address that it connected to.
    pub destination: SocketAddr,
    /// Whether it begins with a TLS record.
    pub is_tls: bool,
    /// Server name of the handshake.
    pub server_name: Option<&'a str>,
    /// Application protocols that the client offers, the dearest first.
    pub application_protocols: &'a [Vec<u8>],
}

/// How many criteria there are.
const CRITERIA: usize = 8;

impl FilterChain {
    /// How precisely the chain asks for what the connection is, by one criterion; `None` when the
    /// connection is something else. 0 asks nothing.
    fn precision(&self, criterion: usize, arrival: &Arrival<'_>) -> Option<u32> {
        let asks = &self.matches;
        let (source, destination) = (arrival.source.ip(), arrival.destination.ip());
        match criterion {
            0 => one(asks.destination_port, |port| {
                port == arrival.destination.port()
            }),
            1 => longest(&asks.destination_ranges, destination),
            2 => name(&asks.server_names, arrival.server_name),
            3 => match self.transport {
                TransportMatch::Any => Some(0),
                TransportMatch::Tls => arrival.is_tls.then_some(1),
                TransportMatch::RawBuffer => (!arrival.is_tls).then_some(1),
            },
            4 => protocol(&asks.application_protocols, arrival.application_protocols),
            5 => {
                let source = source.to_canonical();
                let is_near = source.is_loopback() || source == destination.to_canonical();
                match asks.source_type {
                    SourceType::Any => Some(0),
                    SourceType::SameIpOrLoopback => is_near.then_some(1),
                    SourceType::External => (!is_near).then_some(1),
                }
            }
            6 => longest(&asks.source_ranges, source),
            _ if asks.source_ports.is_empty() => Some(0),
            _ => asks
                .source_ports
                .contains(&arrival.source.port())
                .then_some(1),
        }
    }

    /// Whether it can only be chosen once the client has said hello.
    pub fn needs_hello(&self) -> bool {
        !self.matches.server_names.is_empty() || !self.matches.application_protocols.is_empty()
    }
}

/// The place of the chain for a connection; `None` when it is to be closed. Allocates nothing.
pub fn choose_chain(chains: &[FilterChain], arrival: &Arrival<'_>) -> Option<usize> {
    let asking = || {
        let all = chains.iter().enumerate();
        all.filter(|(_, chain)| !chain.matches.is_default)
    };
    let mut best = [0; CRITERIA];
    let mut winner = None;
    for criterion in 0..CRITERIA {
        let is_left = |chain: &FilterChain| {
            let before = best.iter().take(criterion).enumerate();
            before
                .into_iter()
                .all(|(earlier, best)| chain.precision(earlier, arrival) == Some(*best))
        };
        let left = asking().filter(|(_, chain)| is_left(chain));
        let precise =
            left.filter_map(|(at, chain)| Some((chain.precision(criterion, arrival)?, at)));
        // Of equals, which are refused when they are declared, the first.
        winner = precise.reduce(|best, next| if next.0 > best.0 { next } else { best });
        let Some((precision, _)) = winner else {
            break;
        };
        best[criterion] = precision;
    }
    let default = || chains.iter().position(|chain| chain.matches.is_default);
    winner.map(|(_, at)| at).or_else(default)
}

fn one(asked: Option<u16>, is_it: impl Fn(u16) -> bool) -> Option<u32> {
    match asked {
        None => Some(0),
        Some(asked) => is_it(asked).then_some(1),
    }
}

/// A range that says nothing but the family (`/0`) is more than no range.
fn longest(ranges: &[IpRange], address: std::net::IpAddr) -> Option<u32> {
    if ranges.is_empty() {
        return Some(0);
    }
    let inside = ranges.iter().filter(|range| range.contains(address));
    inside.map(|range| u32::from(range.prefix_len()) + 1).max()
}

/// A whole name beats every wildcard, a longer wildcard a shorter one.
fn name(asked: &[String], name: Option<&str>) -> Option<u32> {
    if asked.is_empty() {
        return Some(0);
    }
    let name = name?;
    let precision = |asked: &String| match asked.strip_prefix('*') {
        None => asked.eq_ignore_ascii_case(name).then_some(u32::MAX),
        Some(suffix) => {
            let at = name.len().checked_sub(suffix.len()).filter(|at| *at > 0)?;
            let end = name.get(at..)?;
            end.eq_ignore_ascii_case(suffix)
                .then_some(suffix.len() as u32)
        }
    };
    asked.iter().filter_map(precision).max()
}

/// The client's dearest protocol decides.
fn protocol(asked: &[String], offered: &[Vec<u8>]) -> Option<u32> {
    if asked.is_empty() {
        return Some(0);
    }
    let is_asked = |offer: &Vec<u8>| asked.iter().any(|asked| asked.as_bytes() == &offer[..]);
    let at = offered.iter().position(is_asked)?;
    Some((offered.len() - at) as u32)
}

/// Whether two lists of alternatives have one in common; two empty ones have.
fn share<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    (a.is_empty() && b.is_empty()) || a.iter().any(|item| b.contains(item))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PathNormalization, RouteConfig, RouteSource};

    fn range(text: &str) -> IpRange {
        text.parse().unwrap()
    }

    fn chain(name: &str, transport: TransportMatch, matches: ChainMatch) -> FilterChain {
        FilterChain {
            name: name.into(),
            transport,
            matches,
            tls: None,
            path_normalization: PathNormalization::default(),
            client_cert: crate::config::ForwardClientCert::default(),
            limits: crate::config::HttpLimits::default(),
            filters: Vec::new(),
            routes: RouteSource::Inline(RouteConfig::new("r", vec![]).into()),
        }
    }

    fn any(name: &str, change: impl FnOnce(&mut ChainMatch)) -> FilterChain {
        let mut matches = ChainMatch::default();
        change(&mut matches);
        chain(name, TransportMatch::Any, matches)
    }

    fn default_chain() -> FilterChain {
        any("default", |m| m.is_default = true)
    }

    /// `SOURCE DESTINATION [tls] [sni=NAME] [alpn=A,B]`
    fn chosen(chains: &[FilterChain], text: &str) -> Option<String> {
        let mut words = text.split(' ');
        let mut address = || words.next().unwrap().parse().unwrap();
        let (source, destination) = (address(), address());
        let (mut is_tls, mut server_name, mut offered) = (false, None, Vec::new());
        for word in words {
            if let Some(name) = word.strip_prefix("sni=") {
                server_name = Some(name);
            } else if let Some(names) = word.strip_prefix("alpn=") {
                offered = names.split(',').map(|name| name.into()).collect();
            }
            is_tls = true;
        }
        let arrival = Arrival {
            source,
            destination,
            is_tls,
            server_name,
            application_protocols: &offered,
        };
        choose_chain(chains, &arrival).map(|at| chains[at].name.clone())
    }

    const FROM_FAR: &str = "192.0.2.1:5000 10.0.0.1:80";

    #[test]
    fn the_most_precise_chain_wins_by_each_criterion() {
        let wins = |precise: FilterChain, text: &str| {
            let chains = [any("loose", |_| {}), precise];
            assert_eq!(chosen(&chains, text).as_deref(), Some("precise"), "{text}");
            let other = "[2001:db8::1]:6000 [2001:db8::2]:81";
            assert_eq!(
                chosen(&chains, other).as_deref(),
                Some("loose"),
                "{:?}",
                chains[1]
            );
        };
        wins(any("precise", |m| m.destination_port = Some(80)), FROM_FAR);
        wins(
            any("precise", |m| {
                m.destination_ranges = vec![range("0.0.0.0/0")]
            }),
            FROM_FAR,
        );
        wins(
            any("precise", |m| m.source_ranges = vec![range("192.0.2.0/24")]),
            FROM_FAR,
        );
        wins(any("precise", |m| m.source_ports = vec![5000]), FROM_FAR);
        let names = |m: &mut ChainMatch| m.server_names = vec!["*.example".into()];
        wins(any("precise", names), &format!("{FROM_FAR} sni=a.EXAMPLE"));
        let protocols = |m: &mut ChainMatch| m.application_protocols = vec!["h2".into()];
        wins(any("precise", protocols), &format!("{FROM_FAR} alpn=x,h2"));
        wins(
            chain("precise", TransportMatch::Tls, ChainMatch::default()),
            &format!("{FROM_FAR} tls"),
        );
        let near = |m: &mut ChainMatch| m.source_type = SourceType::SameIpOrLoopback;
        wins(any("precise", near), "127.0.0.1:5000 10.0.0.1:80");
        wins(any("precise", near), "10.0.0.1:5000 10.0.0.1:80");
        let far = [any("far", |m| m.source_type = SourceType::External)];
        assert_eq!(chosen(&far, FROM_FAR).as_deref(), Some("far"));
        assert_eq!(chosen(&far, "127.0.0.1:1 127.0.0.1:2"), None);
    }

    #[test]
    fn longer_prefixes_names_and_dearer_protocols_win() {
        let to = |name: &str, text: &str| any(name, |m| m.destination_ranges = vec![range(text)]);
        let chains = [
            to("8", "10.0.0.0/8"),
            to("32", "10.0.0.1/32"),
            to("16", "10.0.0.0/16"),
        ];
        assert_eq!(chosen(&chains, FROM_FAR).as_deref(), Some("32"));
        assert_eq!(
            chosen(&chains, "192.0.2.1:1 10.0.9.9:1").as_deref(),
            Some("16")
        );
        assert_eq!(chosen(&chains, "192.0.2.1:1 11.0.0.1:1"), None);

        let named = |name: &str| any(name, |m| m.server_names = vec![name.into()]);
        let chains = [named("*.b.c"), named("a.b.c"), named("*.c")];
        for (sni, expected) in [
            ("a.b.c", Some("a.b.c")),
            ("x.b.c", Some("*.b.c")),
            ("x.y.b.c", Some("*.b.c")),
            ("b.c", Some("*.c")),
            ("c", None),
            ("xb.d", None),
        ] {
            let found = chosen(&chains, &format!("{FROM_FAR} sni={sni}"));
            assert_eq!(found.as_deref(), expected, "{sni}");
        }
        assert_eq!(chosen(&chains, &format!("{FROM_FAR} tls")), None, "no name");

        let speaks = |name: &str| any(name, |m| m.application_protocols = vec![name.into()]);
        let chains = [speaks("http/1.1"), speaks("h2")];
        let found = |text: &str| chosen(&chains, &format!("{FROM_FAR} alpn={text}"));
        assert_eq!(found("h2,http/1.1").as_deref(), Some("h2"));
        assert_eq!(found("http/1.1,h2").as_deref(), Some("http/1.1"));
        assert_eq!(found("spdy"), None);
    }

    /// An earlier criterion decides although a later one then leaves nobody (Envoy, gRFC A36).
    #[test]
    fn who_lost_by_an_earlier_criterion_is_not_looked_at_again() {
        let narrow = any("narrow", |m| {
            m.destination_ranges = vec![range("10.0.0.1/32")];
            m.source_ports = vec![1];
        });
        let wide = any("wide", |m| m.destination_ranges = vec![range("10.0.0.0/8")]);
        let chains = [narrow.clone(), wide.clone()];
        assert_eq!(chosen(&chains, FROM_FAR), None);
        let chains = [narrow, wide, default_chain()];
        assert_eq!(chosen(&chains, FROM_FAR).as_deref(), Some("default"));
        assert_eq!(
            chosen(&[default_chain()], FROM_FAR).as_deref(),
            Some("default")
        );
        assert_eq!(chosen(&[], FROM_FAR), None);
    }

    #[test]
    fn chains_that_would_be_equal_for_some_connection_overlap() {
        let ports = |ports: &[u16]| any("", |m| m.source_ports = ports.to_vec()).matches;
        assert!(ports(&[1, 2]).overlaps(&ports(&[2, 3])));
        assert!(!ports(&[1]).overlaps(&ports(&[2])));
        assert!(!ports(&[1]).overlaps(&ports(&[])));
        assert!(ports(&[]).overlaps(&ports(&[])));
        let from = |text: &str| any("", |m| m.source_ranges = vec![range(text)]).matches;
        // The same range, once masked.
        assert!(from("10.1.2.3/8").overlaps(&from("10.9.9.9/8")));
        assert!(!from("10.0.0.0/8").overlaps(&from("10.0.0.0/16")));
        let default = default_chain().matches;
        assert!(!default.overlaps(&default));
    }
}
