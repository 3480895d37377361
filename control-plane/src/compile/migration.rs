//! A `Migration` and where it stands, to the choice that a route makes: canaries first, then a weighted choice
//! of target and legacy by the hash of the user's key. It is Envoy's own form, so that any xDS client splits
//! alike: `xxHash64(value) % 10000` falls into `[target, legacy]`, target first, so that raising the weight
//! moves users only from legacy to target.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::route_action::{HashPolicy, hash_policy};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{ClusterWeight, RandomValueSpecifier};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, WeightedCluster};
use envoy_types::pb::google::protobuf::BoolValue;

use super::matching::checked_regex;
use super::policy::{self, Target};
use super::wire::{self, Comparison};
use crate::model::migration::{MigrationState, Stage, WHOLE};
use crate::model::upstream::Upstream;
use crate::objects::migration::{CanaryMatch, Key, MigrationSpec, Side};
use crate::objects::problem::FieldError;
use crate::objects::{ObjectName, Objects};

/// What a route needs to know of a migration.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Split {
    /// The target's cluster; `None` where its pool does not exist.
    pub(super) target: Option<Upstream>,
    /// The legacy cluster; `None` where its pool does not exist.
    pub(super) legacy: Option<Upstream>,
    /// The target's share of users who match no canary, in hundredths of a percent.
    pub(super) weight: u16,
    /// Each sends what matches to the target.
    pub(super) canaries: Vec<HeaderMatcher>,
    /// What policies of its sides would be for.
    pub(super) targets: Vec<Target>,
    hash: Option<HashPolicy>,
}

/// Compiles a migration. The errors do not stop it: what is missing on one side is served by the other.
pub(super) fn compile(
    objects: &Objects,
    name: &ObjectName,
    spec: &MigrationSpec,
    state: &MigrationState,
) -> Result<(Split, Vec<FieldError>), FieldError> {
    let mut errors = Vec::new();
    let mut resolved = |side: &Side, field: &str| match side_upstream(objects, name, side, field) {
        Ok(upstream) => Some(upstream),
        Err(error) => {
            errors.push(error);
            None
        }
    };
    let legacy = resolved(&spec.legacy, "spec.legacy");
    let target = resolved(&spec.target, "spec.target");
    if let (Some(legacy), Some(target)) = (&legacy, &target)
        && legacy.source == target.source
    {
        let message =
            "legacy and target are the same instances; tell them apart with a selector or name another pool";
        errors.push(FieldError::new("spec.target", "SameAsLegacy", message));
    }
    let mut targets = Vec::new();
    let mut suited = |side: &Side, upstream: Option<Upstream>, field: &str| {
        let (kind, of, port, at) = match (&side.pool, &side.service) {
            (Some(pool), _) => ("Pool", pool, None, "pool"),
            (None, Some(service)) => ("Service", &service.name, service.port, "service.name"),
            (None, None) => return upstream,
        };
        let target = ObjectName::new(name.namespace.clone(), of.as_str());
        let upstream =
            upstream.map(|upstream| match policy::apply(objects, upstream, (kind, &target), port) {
                Ok(upstream) => upstream,
                // It is not taken for missing: its share would be the other side's.
                Err(error) => {
                    errors.push(FieldError { field: format!("{field}.{at}"), ..error });
                    Upstream::unresolved()
                }
            });
        targets.push(Target::new(kind, target));
        upstream
    };
    let legacy = suited(&spec.legacy, legacy, "spec.legacy");
    let target = suited(&spec.target, target, "spec.target");
    let hash = spec.key.as_ref().map(hash_policy).transpose()?;
    let mut weight = state.target_weight();
    if hash.is_none() && (1..WHOLE).contains(&weight) {
        let message = "a share of the users needs a key to tell them apart; legacy serves all of them until there is one";
        errors.push(FieldError::new("spec.key", "NoKey", message));
        weight = 0;
    }
    let all = spec.canary.iter().enumerate().map(|(index, canary)| canary_matcher(canary, index));
    let all = all.collect::<Result<Vec<_>, _>>()?;
    // In `cutover` everybody is at the target anyway.
    let in_force = state.canary_in_force() && state.stage != Stage::Cutover;
    let canaries = if in_force && target.is_some() { all } else { Vec::new() };
    Ok((Split { target, legacy, weight, canaries, targets, hash }, errors))
}

fn side_upstream(
    objects: &Objects,
    migration: &ObjectName,
    side: &Side,
    field: &str,
) -> Result<Upstream, FieldError> {
    match (&side.eureka, &side.pool, &side.service) {
        (Some(eureka), None, None) => Ok(Upstream::of_eureka(eureka)),
        (None, None, Some(service)) => {
            let name = ObjectName::new(migration.namespace.clone(), service.name.as_str());
            let upstream = Upstream::of_service(objects, &name, service.port);
            upstream
                .map_err(|error| FieldError { field: format!("{field}.service.{}", error.field), ..error })
        }
        (None, Some(pool), None) => {
            let name = ObjectName::new(migration.namespace.clone(), pool.as_str());
            let object = objects.pools.get(&name).ok_or_else(|| {
                let known = objects.pools.keys().filter(|k| k.namespace == name.namespace);
                let hint = crate::objects::problem::did_you_mean(pool, known.map(|k| &*k.name))
                    .map_or(String::new(), |meant| format!("; did you mean {meant}?"));
                let message = format!("there is no Pool {name}{hint}");
                FieldError::new(format!("{field}.pool"), "BackendNotFound", message)
            })?;
            Upstream::of_pool(objects, &name, &object.spec).map_err(|error| {
                let message = format!("Pool {name}: {}", error.message);
                FieldError::new(format!("{field}.pool"), "BackendNotFound", message)
            })
        }
        _ => Err(FieldError::new(field, "Invalid", "set exactly one of eureka, pool and service")),
    }
}

impl Split {
    /// The weighted choice. A side that does not exist gives its share to the other: legacy has to be able to
    /// take everything, and a target that is not there serves nobody.
    pub(super) fn weighted(&self) -> Option<WeightedCluster> {
        let weight = match (&self.target, &self.legacy) {
            (Some(_), Some(_)) => self.weight.min(WHOLE),
            (Some(_), None) => WHOLE,
            (None, Some(_)) => 0,
            (None, None) => return None,
        };
        let arms = [(&self.target, weight), (&self.legacy, WHOLE - weight)];
        let clusters = arms
            .into_iter()
            .filter_map(|(side, weight)| {
                let name = side.as_ref()?.name.to_string();
                Some(ClusterWeight { name, weight: wire::number(weight.into()), ..ClusterWeight::default() })
            })
            .collect();
        Some(WeightedCluster {
            clusters,
            random_value_specifier: self
                .hash
                .as_ref()
                .map(|_| RandomValueSpecifier::UseHashPolicy(BoolValue { value: true })),
            ..WeightedCluster::default()
        })
    }

    /// The same, both spoken to in HTTP/2.
    pub(super) fn in_http2(self) -> Self {
        let [target, legacy] = [self.target, self.legacy].map(|side| side.map(Upstream::in_http2));
        Self { target, legacy, ..self }
    }

    /// What the choice is by.
    pub(super) fn hash_policy(&self) -> Vec<HashPolicy> {
        self.hash.iter().cloned().collect()
    }

    /// Both sides' clusters, as far as they exist.
    pub(super) fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        [&self.target, &self.legacy].into_iter().flatten()
    }

    /// The names of the two clusters: target, then legacy.
    pub(super) fn names(&self) -> [Option<Arc<str>>; 2] {
        [&self.target, &self.legacy].map(|side| side.as_ref().map(|upstream| upstream.name.clone()))
    }
}

fn hash_policy(key: &Key) -> Result<HashPolicy, FieldError> {
    let specifier = match (&key.header, &key.cookie) {
        (Some(header), None) => hash_policy::PolicySpecifier::Header(hash_policy::Header {
            header_name: header.to_ascii_lowercase(),
            regex_rewrite: None,
        }),
        (None, Some(cookie)) => hash_policy::PolicySpecifier::Cookie(hash_policy::Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.map(|ttl| wire::duration(ttl.0)),
            path: if cookie.ttl.is_some() { "/".to_owned() } else { String::new() },
            attributes: Vec::new(),
        }),
        _ => return Err(FieldError::new("spec.key", "Invalid", "set exactly one of header and cookie")),
    };
    Ok(HashPolicy { terminal: false, policy_specifier: Some(specifier) })
}

fn canary_matcher(canary: &CanaryMatch, index: usize) -> Result<HeaderMatcher, FieldError> {
    let field = format!("spec.canary[{index}]");
    match (&canary.header, &canary.cookie) {
        (Some(header), None) => match (&header.value, &header.regex) {
            (Some(value), None) => Ok(wire::header(&header.name, Comparison::Exact(value.clone()))),
            (None, Some(text)) => match checked_regex(text, &field) {
                Ok(text) => Ok(wire::header(&header.name, Comparison::Regex(text))),
                Err(error) => Err(FieldError { field: format!("{field}.header.regex"), ..error }),
            },
            _ => {
                let message = "set exactly one of value and regex";
                Err(FieldError::new(format!("{field}.header"), "Invalid", message))
            }
        },
        (None, Some(cookie)) => {
            Ok(wire::header("cookie", Comparison::Regex(cookie_regex(&cookie.name, &cookie.value))))
        }
        _ => Err(FieldError::new(field, "Invalid", "set exactly one of header and cookie")),
    }
}

/// One cookie of a `Cookie` header, as a regular expression over the whole header: every xDS client has that,
/// Envoy's own cookie matcher only new ones.
fn cookie_regex(name: &str, value: &str) -> String {
    let (name, value) = (regex::escape(name), regex::escape(value));
    format!(r"(?:.*;[ \t]*)?{name}={value}(?:[ \t]*;.*)?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_anywhere_in_the_header_and_only_whole() {
        let regex = regex::Regex::new(&format!("^(?:{})$", cookie_regex("b", "1.0"))).expect("a regex");
        for header in ["b=1.0", "a=2; b=1.0", "b=1.0; c=3", "a=1;b=1.0;c=3", "a=\"x\"; b=1.0 ; c"] {
            assert!(regex.is_match(header), "{header}");
        }
        for header in ["b=1.00", "bb=1.0", "a=b=1.0", "b=1x0", "xb=1.0; c=1", "b=1", ""] {
            assert!(!regex.is_match(header), "{header}");
        }
    }
}
