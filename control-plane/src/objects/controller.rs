//! Who we are among the controllers of a cluster. Two installations with names of their own leave each other's classes
//! alone, and all that follows from them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name, where none is said.
pub const CONTROLLER: &str = "pontoon.dev/gateway-controller";
/// The Gateway API's limit.
const LONGEST: usize = 253;
/// Of the names that are made of it: the API server's limit for who applies is 128.
const LONGEST_PART: usize = 100;

/// The `controllerName` of the `GatewayClass`es that are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller(Arc<str>);

impl Default for Controller {
    fn default() -> Self {
        Controller(CONTROLLER.into())
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Controller {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let is_path = |path: &str| {
            !path.is_empty()
                && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b))
        };
        match text.split_once('/') {
            Some((domain, path))
                if text.len() <= LONGEST && domain.split('.').all(is_label) && is_path(path) =>
            {
                Ok(Controller(text.into()))
            }
            _ => Err(format!("expected DOMAIN/PATH of at most {LONGEST} bytes, such as {CONTROLLER}")),
        }
    }
}

impl Controller {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is its name.
    pub fn is(&self, name: &str) -> bool {
        *self.0 == *name
    }

    /// Whether it is called as one is that is not called otherwise.
    pub fn is_default(&self) -> bool {
        self.is(CONTROLLER)
    }

    /// What belongs to the cluster and is called `base`, of an installation of this name in `namespace`, as the chart
    /// calls it.
    pub fn in_cluster(&self, base: &str, namespace: &str) -> String {
        if self.is_default() { base.to_owned() } else { format!("{base}-{namespace}") }
    }

    /// `base` as this one's alone: of a Lease, and of who writes to the API server. The chart makes the same of it.
    pub fn own(&self, base: &str) -> String {
        if self.is_default() {
            return base.to_owned();
        }
        let mut part = String::new();
        let mut is_replaced = false;
        for c in self.0.chars().map(|c| c.to_ascii_lowercase()) {
            let is_kept = matches!(c, 'a'..='z' | '0'..='9' | '.' | '-');
            // Of several that are not, one is left.
            if is_kept || !is_replaced {
                part.push(if is_kept { c } else { '-' });
            }
            is_replaced = !is_kept;
        }
        part.truncate(LONGEST_PART);
        format!("{base}-{}", part.trim_matches(['-', '.']))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_domain_and_a_path() {
        for good in [CONTROLLER, "example.com/a", "example.com/a/b.c~d", "a/B"] {
            assert_eq!(good.parse::<Controller>().unwrap().as_str(), good);
        }
        let long = format!("example.com/{}", "a".repeat(250));
        for bad in
            ["", "example.com", "/a", "example.com/", "Example.com/a", "a..b/c", "-a/b", "a/b c", &long]
        {
            assert!(bad.parse::<Controller>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_called_after_it_is_as_it_was_by_default() {
        assert_eq!(Controller::default().own("pontoon"), "pontoon");
        assert_eq!(Controller::default().in_cluster("pontoon", "here"), "pontoon");
        let other = "example.com/gateways".parse::<Controller>().unwrap();
        assert_eq!(other.in_cluster("pontoon", "here"), "pontoon-here");
        let own = |name: &str| name.parse::<Controller>().unwrap().own("pontoon");
        assert_eq!(own("example.com/gateways"), "pontoon-example.com-gateways");
        assert_eq!(own("example.com/Gate_ways/2!"), "pontoon-example.com-gate-ways-2");
        assert_eq!(own("example.com/a-/~b"), "pontoon-example.com-a--b");
        assert!(own(&format!("example.com/{}", "a".repeat(200))).len() <= 128);
    }
}
