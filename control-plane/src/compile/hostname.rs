//! Hostnames as the Gateway API compares them: exact or with a first label of `*`, which stands for one label
//! or more. No hostname at all stands for every host.

use std::cmp::Reverse;

/// A hostname or the pattern of one, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Hostname {
    /// Every host.
    Any,
    /// `*.example.com`, kept as `.example.com`.
    Suffix(String),
    /// `shop.example.com`.
    Exact(String),
}

impl Hostname {
    /// As written in an object; absent or empty is [`Hostname::Any`].
    pub(super) fn parse(text: Option<&str>) -> Result<Self, String> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Self::Any) };
        let lower = text.to_ascii_lowercase();
        let (suffix, rest) = match lower.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, lower.as_str()),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if rest.parse::<std::net::IpAddr>().is_ok() {
            return Err("expected a hostname, not an IP address; leave it out to match every host".into());
        }
        if rest.len() > 253 || !rest.split('.').all(label) {
            return Err(
                "expected a hostname such as shop.example.com or *.example.com, without a port".into()
            );
        }
        Ok(if suffix { Self::Suffix(format!(".{rest}")) } else { Self::Exact(lower) })
    }

    /// Whether every host of `other` is one of this.
    pub(super) fn covers(&self, other: &Hostname) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (Self::Suffix(mine), Self::Suffix(theirs)) => theirs.ends_with(mine.as_str()),
            (Self::Suffix(mine), Self::Exact(theirs)) => {
                theirs.len() > mine.len() && theirs.ends_with(mine.as_str())
            }
            (Self::Exact(mine), Self::Exact(theirs)) => mine == theirs,
            (Self::Exact(_), Self::Suffix(_)) => false,
        }
    }

    /// Every pattern that [covers](Self::covers) this, itself among them; the most specific first.
    pub(super) fn covering(&self) -> impl Iterator<Item = Hostname> {
        let (name, from) = match self {
            Self::Exact(name) => (name.as_str(), 0),
            // Its own first dot begins itself.
            Self::Suffix(name) => (name.as_str(), 1),
            Self::Any => ("", 0),
        };
        let own = (*self != Self::Any).then(|| self.clone());
        // A wildcard stands for one label at least.
        let dots = name.match_indices('.').map(|(at, _)| at).filter(move |at| *at >= from.max(1));
        let suffixes = dots.filter_map(|at| name.get(at..)).map(|suffix| Self::Suffix(suffix.to_owned()));
        own.into_iter().chain(suffixes).chain([Self::Any])
    }

    /// The hosts that both stand for: always one of the two, or none.
    pub(super) fn intersection(&self, other: &Hostname) -> Option<Hostname> {
        if self.covers(other) {
            Some(other.clone())
        } else if other.covers(self) {
            Some(self.clone())
        } else {
            None
        }
    }

    /// Sorts the most specific first: exact before wildcard, longer before shorter.
    pub(super) fn specificity(&self) -> (u8, Reverse<usize>) {
        match self {
            Self::Exact(name) => (0, Reverse(name.len())),
            Self::Suffix(name) => (1, Reverse(name.len())),
            Self::Any => (2, Reverse(0)),
        }
    }

    /// As a virtual host's domain.
    pub(super) fn domain(&self) -> String {
        match self {
            Self::Exact(name) => name.clone(),
            Self::Suffix(name) => format!("*{name}"),
            Self::Any => "*".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Hostname {
        Hostname::parse(Some(text)).expect("a hostname")
    }

    #[test]
    fn intersections_are_the_specs() {
        let both = |a: &str, b: &str| host(a).intersection(&host(b)).map(|h| h.domain());
        assert_eq!(both("*.example.com", "shop.example.com").as_deref(), Some("shop.example.com"));
        assert_eq!(both("*.example.com", "a.b.example.com").as_deref(), Some("a.b.example.com"));
        assert_eq!(both("*.example.com", "*.b.example.com").as_deref(), Some("*.b.example.com"));
        assert_eq!(both("*.example.com", "example.com"), None);
        assert_eq!(both("*.example.com", "*.example.com").as_deref(), Some("*.example.com"));
        assert_eq!(both("*.example.com", "shopexample.com"), None);
        assert_eq!(both("shop.example.com", "SHOP.example.com").as_deref(), Some("shop.example.com"));
        assert_eq!(Hostname::Any.intersection(&host("a.com")), Some(host("a.com")));
    }

    #[test]
    fn what_covers_a_host_is_found_from_its_labels() {
        let all = ["a.b.example.com", "*.b.example.com", "*.example.com", "*.com", "example.com"].map(host);
        let all = || all.iter().chain([&Hostname::Any]);
        for one in all() {
            let mut expected: Vec<_> = all().filter(|other| other.covers(one)).cloned().collect();
            expected.sort_by_key(Hostname::specificity);
            let found: Vec<_> = one.covering().filter(|found| all().any(|other| other == found)).collect();
            assert_eq!(found, expected, "{one:?}");
            assert!(one.covering().all(|found| found.covers(one)), "{one:?}");
        }
    }

    #[test]
    fn what_is_no_hostname_is_refused() {
        for wrong in ["10.0.0.1", "shop.example.com:80", "*", "a..b", "-a.com", "*.*.com", "a_b.com", "a b"] {
            assert!(Hostname::parse(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_most_specific_sorts_first() {
        let mut hosts = [Hostname::Any, host("*.com"), host("a.com"), host("*.a.com"), host("b.a.com")];
        hosts.sort_by_key(Hostname::specificity);
        let domains = hosts.each_ref().map(Hostname::domain);
        assert_eq!(domains, ["b.a.com", "a.com", "*.a.com", "*.com", "*"]);
    }
}
