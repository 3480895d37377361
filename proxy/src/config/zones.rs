//! For the clients of which zones an endpoint is meant, as our control plane writes it into the endpoint's metadata:
//! `filter_metadata["pontoon.dev/zones"]` with one field, `for`, that lists them. Other clients pass metadata over.

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};

use super::eds::Compiled;
use super::problem::{Problem, Under};
use crate::upstream::cluster::EndpointHealth;

/// The key of what is ours.
const KEY: &str = "pontoon.dev/zones";
const FIELD: &str = "for";

/// What is said of an endpoint, for a proxy that is in a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meant {
    /// For this zone.
    Here,
    /// For others.
    Elsewhere,
    /// Nothing.
    Unsaid,
}

/// What an endpoint's metadata says of `zone`.
pub(super) fn read(metadata: Option<&Metadata>, zone: &str) -> Result<Meant, Problem> {
    let Some(ours) = metadata.and_then(|metadata| metadata.filter_metadata.get(KEY)) else {
        return Ok(Meant::Unsaid);
    };
    let zones = listed(ours).under(|| format!("metadata.filter_metadata[{KEY:?}]"))?;
    let is_it = |value: &Value| matches!(&value.kind, Some(Kind::StringValue(name)) if name == zone);
    Ok(match zones.values.as_slice() {
        [] => Meant::Unsaid,
        zones if zones.iter().any(is_it) => Meant::Here,
        _ => Meant::Elsewhere,
    })
}

fn listed(ours: &Struct) -> Result<&ListValue, Problem> {
    match ours.fields.get(FIELD).and_then(|list| list.kind.as_ref()) {
        Some(Kind::ListValue(list)) => Ok(list),
        _ => Err(Problem::new(FIELD, "is not a list of zones")),
    }
}

/// Those that a proxy sends to, of endpoints with what is said of its zone. As kube-proxy has it: those that are meant
/// for it, where there are healthy ones; all of them, where there are none or nothing is said of some.
pub(super) fn preferred(endpoints: Vec<(Compiled, Meant)>) -> Vec<Compiled> {
    let (mut is_any_here, mut is_any_unsaid) = (false, false);
    for ((_, _, health), meant) in &endpoints {
        let is_healthy = *health == EndpointHealth::Healthy;
        is_any_here |= is_healthy && *meant == Meant::Here;
        is_any_unsaid |= is_healthy && *meant == Meant::Unsaid;
    }
    let all = !is_any_here || is_any_unsaid;
    let chosen = endpoints.into_iter().filter(|(_, meant)| all || *meant == Meant::Here);
    chosen.map(|(endpoint, _)| endpoint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(kind: Kind) -> Metadata {
        let fields = [(FIELD.to_owned(), Value { kind: Some(kind) })].into();
        Metadata { filter_metadata: [(KEY.to_owned(), Struct { fields })].into(), ..Metadata::default() }
    }

    fn zones(names: &[&str]) -> Metadata {
        let text = |name: &&str| Value { kind: Some(Kind::StringValue((*name).to_owned())) };
        metadata(Kind::ListValue(ListValue { values: names.iter().map(text).collect() }))
    }

    #[test]
    fn metadata_says_whose_an_endpoint_is() {
        let of = |metadata: &Metadata| read(Some(metadata), "a");
        assert_eq!(read(None, "a"), Ok(Meant::Unsaid));
        assert_eq!(of(&Metadata::default()), Ok(Meant::Unsaid));
        assert_eq!(of(&zones(&[])), Ok(Meant::Unsaid));
        assert_eq!(of(&zones(&["b", "a"])), Ok(Meant::Here));
        assert_eq!(of(&zones(&["b"])), Ok(Meant::Elsewhere));
        let wrong = of(&metadata(Kind::BoolValue(true))).unwrap_err();
        assert_eq!(wrong.path, "metadata.filter_metadata[\"pontoon.dev/zones\"].for");
    }

    #[test]
    fn a_zones_own_endpoints_go_first_and_all_stand_in_for_them() {
        use EndpointHealth::{Healthy, Unhealthy};
        use Meant::{Elsewhere, Here, Unsaid};
        let chosen = |all: &[(EndpointHealth, Meant)]| -> Vec<usize> {
            let numbered = (0_u16..).zip(all);
            let all =
                numbered.map(|(port, (health, meant))| ((([10, 0, 0, 1], port).into(), 1, *health), *meant));
            preferred(all.collect()).into_iter().map(|(address, _, _)| address.port().into()).collect()
        };
        assert_eq!(chosen(&[(Healthy, Here), (Healthy, Elsewhere), (Healthy, Here)]), [0, 2]);
        assert_eq!(chosen(&[(Healthy, Elsewhere), (Healthy, Elsewhere)]), [0, 1], "none is meant for it");
        assert_eq!(chosen(&[(Unhealthy, Here), (Healthy, Elsewhere)]), [0, 1], "its own are not well");
        assert_eq!(chosen(&[(Healthy, Here), (Healthy, Unsaid)]), [0, 1], "something is said of some only");
        assert_eq!(chosen(&[(Healthy, Here), (Unhealthy, Unsaid)]), [0]);
        assert_eq!(chosen(&[]), Vec::<usize>::new());
    }
}
