//! Ranges of IP addresses (Envoy `core.v3.CidrRange`; RFC 4632, RFC 4291).

use std::{fmt, net::IpAddr, str::FromStr};

/// Addresses with the same leading bits. An IPv4 address written as an IPv6 one is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpRange {
    address: IpAddr,
    prefix_len: u8,
}

impl IpRange {
    /// The range of `address` whose first `prefix_len` bits count; bits behind them are dropped.
    ///
    /// # Errors
    /// When `prefix_len` is longer than the address.
    pub fn new(address: IpAddr, prefix_len: u32) -> Result<Self, String> {
        let (folded, width) = (address.to_canonical(), width(address));
        let too_long = || format!("prefix length {prefix_len} of {address} is above {width}");
        let prefix_len = u8::try_from(prefix_len)
            .ok()
            .filter(|length| *length <= width)
            .ok_or_else(too_long)?;
        if folded.is_ipv4() == address.is_ipv4() {
            let address = masked(address, prefix_len);
            return Ok(Self {
                address,
                prefix_len,
            });
        }
        // Written as IPv6: the first 96 bits say only that it is IPv4.
        match prefix_len.checked_sub(96) {
            Some(prefix_len) => Ok(Self {
                address: masked(folded, prefix_len),
                prefix_len,
            }),
            None => Err(format!(
                "{address}/{prefix_len} mixes IPv4 and IPv6: write two ranges"
            )),
        }
    }

    /// First address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits count.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Whether `address` is inside. Addresses of the other family never are.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4()
            && masked(address, self.prefix_len) == self.address
    }
}

fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix_len: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len));
            IpAddr::V4((v4.to_bits() & mask.unwrap_or(0)).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix_len));
            IpAddr::V6((v6.to_bits() & mask.unwrap_or(0)).into())
        }
    }
}

impl FromStr for IpRange {
    type Err = String;

    /// `10.0.0.0/8`, or an address alone.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither an IP address nor a range such as 10.0.0.0/8");
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length = match length {
            // `u32::from_str` takes a plus sign, which nobody means.
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
            None => width(address).into(),
        };
        Self::new(address, length)
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_the_addresses_that_share_its_leading_bits() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3/8", "10.0.0.0", "9.255.255.255"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("192.0.2.0/31", "::ffff:192.0.2.1", "::ffff:192.0.2.2"),
            ("::ffff:192.0.2.0/127", "192.0.2.1", "192.0.2.2"),
            ("::1/128", "::1", "::2"),
        ] {
            let range: IpRange = range.parse().expect(range);
            assert!(
                range.contains(inside.parse().expect(inside)),
                "{range} {inside}"
            );
            assert!(
                !range.contains(outside.parse().expect(outside)),
                "{range} {outside}"
            );
            assert_eq!(range.to_string().parse(), Ok(range));
        }
        for wrong in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "a/8",
            "::ffff:10.0.0.0/95",
            "10.0.0.0/8/8",
            "10.0.0.0/-1",
        ] {
            assert!(wrong.parse::<IpRange>().is_err(), "{wrong}");
        }
    }
}
