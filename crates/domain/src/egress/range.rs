//! Ranges of addresses, as texts.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::EgressTextError;

/// A range of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    bits: u8,
}

/// Shortest prefixes of a range: a range has one kind of private addresses in it, not the whole Internet.
const SHORTEST: (u8, u8) = (8, 7);

impl AddressRange {
    /// Whether the address lies in it. An IPv4 address lies in no IPv6 range, however it is written.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                first.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                first.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for AddressRange {
    type Err = EgressTextError;

    fn from_str(text: &str) -> Result<Self, EgressTextError> {
        let fault = |reason| EgressTextError::new(text, reason);
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let first: IpAddr = address.parse().map_err(|_| fault("is no address range, such as 10.1.0.0/16"))?;
        let (shortest, longest) = if first.is_ipv4() { (SHORTEST.0, 32) } else { (SHORTEST.1, 128) };
        let bits = match bits {
            None => longest,
            Some(digits) => digits.parse().map_err(|_| fault("has no number behind its slash"))?,
        };
        if !(shortest..=longest).contains(&bits) {
            return Err(fault(
                "is too wide or has a number that is none; IPv4 from /8 to /32, IPv6 from /7 to /128",
            ));
        }
        Ok(Self { first, bits })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.first, self.bits)
    }
}
