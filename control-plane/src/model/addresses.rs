//! Virtual addresses: what a service's name resolves to on every sidecar. A service has a slot, and the ranges say
//! which addresses the slot stands for, so both families are assigned at once.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

/// More slots than any mesh has services; an IPv6 range may be larger.
const MOST_SLOTS: u32 = 1 << 24;

/// The addresses that can be given. The first and the last of a range never are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    /// Of IPv4; `None`: services have no IPv4 address.
    pub v4: Option<Ipv4Net>,
    /// Of IPv6; `None`: services have no IPv6 address.
    pub v6: Option<Ipv6Net>,
}

impl Default for Ranges {
    /// 240.0.0.0/8, which no network uses (RFC 1112 reserves it); and a unique local network (RFC 4193) whose digits
    /// spell `pontoon`. Both as large as slots go: two names that want the same slot get it in the order in which a
    /// control plane sees them, and that may differ. Of 1,000 services two do with a probability of 3 %; in a /16
    /// it is all but certain.
    fn default() -> Self {
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 8);
        let v6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd70, 0x6f6e, 0x746f, 0x6f6e, 0, 0, 0, 0), 104);
        Self { v4: Some(v4), v6: Some(v6) }
    }
}

impl Ranges {
    /// How many services can have addresses.
    pub fn slots(&self) -> u32 {
        let usable =
            |host_bits: u8| 1_u32.checked_shl(host_bits.into()).unwrap_or(u32::MAX).saturating_sub(2);
        let v4 = self.v4.map(|net| usable(32 - net.prefix_len()));
        let v6 = self.v6.map(|net| usable(128 - net.prefix_len()));
        let smaller = match (v4, v6) {
            (Some(v4), Some(v6)) => v4.min(v6),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => 0,
        };
        smaller.min(MOST_SLOTS)
    }

    fn at(&self, slot: u32) -> Option<VirtualAddress> {
        if slot >= self.slots() {
            return None;
        }
        // The first address is the network's own.
        let v4 = self.v4.map(|net| Ipv4Addr::from_bits(net.network().to_bits() + 1 + slot));
        let v6 = self.v6.map(|net| Ipv6Addr::from_bits(net.network().to_bits() + 1 + u128::from(slot)));
        Some(VirtualAddress { v4, v6 })
    }
}

/// What a service's name resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualAddress {
    /// The A record.
    pub v4: Option<Ipv4Addr>,
    /// The AAAA record.
    pub v6: Option<Ipv6Addr>,
}

/// The addresses of all services that have one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    ranges: Ranges,
    slots: BTreeMap<Arc<str>, u32>,
}

impl Addresses {
    /// Of these slots, by `namespace/service`.
    pub fn new(ranges: Ranges, slots: BTreeMap<Arc<str>, u32>) -> Self {
        Self { ranges, slots }
    }

    /// The address of `namespace/service`.
    pub fn of(&self, service: &str) -> Option<VirtualAddress> {
        self.ranges.at(*self.slots.get(service)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_an_address_of_each_family_and_never_the_ends_of_a_range() {
        let ranges = Ranges::default();
        let text = |slot| {
            let address = ranges.at(slot).unwrap();
            (address.v4.unwrap().to_string(), address.v6.unwrap().to_string())
        };
        assert_eq!(ranges.slots(), 16_777_214);
        assert_eq!(text(0), ("240.0.0.1".into(), "fd70:6f6e:746f:6f6e::1".into()));
        assert_eq!(text(16_777_213), ("240.255.255.254".into(), "fd70:6f6e:746f:6f6e::ff:fffe".into()));
        assert_eq!(ranges.at(16_777_214), None);
    }

    #[test]
    fn the_smaller_range_counts_and_none_is_none() {
        let v4 = Some("10.1.0.0/30".parse().unwrap());
        assert_eq!(Ranges { v4, ..Ranges::default() }.slots(), 2);
        assert_eq!(Ranges { v4: None, v6: Some("fd00::/8".parse().unwrap()) }.slots(), MOST_SLOTS);
        assert_eq!(Ranges { v4: Some("0.0.0.0/0".parse().unwrap()), v6: None }.slots(), MOST_SLOTS);
        assert_eq!(Ranges { v4: None, v6: None }.slots(), 0);
    }
}
