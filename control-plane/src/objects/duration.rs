//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `5s`, `250ms`; digits and units only.

use std::borrow::Cow;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time, written like `1h30m`, `5s` or `250ms`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

/// GEP-2257's own pattern.
const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Reads a duration, with a message that says what would be right.
pub(crate) fn parse(text: &str) -> Result<std::time::Duration, String> {
    gateway_api::Duration::from_str(text)
        .map(|duration| std::time::Duration::new(duration.as_secs(), duration.subsec_nanos()))
        .map_err(|_| {
            format!("{text:?} is not a duration: write digits and units h, m, s, ms, as in 1m30s or 250ms")
        })
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        parse(&text).map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::fmt::Display for Duration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0s"),
            _ => {
                let (hours, rest) = (millis / 3_600_000, millis % 3_600_000);
                let (minutes, rest) = (rest / 60_000, rest % 60_000);
                for (count, unit) in [(hours, "h"), (minutes, "m"), (rest / 1000, "s"), (rest % 1000, "ms")] {
                    if count > 0 {
                        write!(f, "{count}{unit}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "examples": ["5s", "1m30s", "250ms"] })
    }

    fn inline_schema() -> bool {
        true
    }
}
