//! The virtual address of a service, as our control plane writes it into the metadata of an API listener:
//! `filter_metadata["pontoon.dev/addresses"]` with one field, called as the service is, that lists them: at most one
//! of each family. Other clients pass metadata over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};

use super::problem::{Problem, Under};

/// The key of what is ours.
const KEY: &str = "pontoon.dev/addresses";

/// What a name resolves to. At least one of the addresses is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualAddress {
    /// The A record.
    pub v4: Option<Ipv4Addr>,
    /// The AAAA record.
    pub v6: Option<Ipv6Addr>,
    /// The name that they belong to: of a service with several names, its first.
    pub name: Arc<str>,
}

impl VirtualAddress {
    /// Of both families.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// What a listener's metadata says; `None` where it says nothing of addresses.
pub(super) fn read(metadata: Option<&Metadata>) -> Result<Option<VirtualAddress>, Problem> {
    let Some(ours) = metadata.and_then(|metadata| metadata.filter_metadata.get(KEY)) else { return Ok(None) };
    of_service(ours).under(|| format!("metadata.filter_metadata[{KEY:?}]"))
}

fn of_service(ours: &Struct) -> Result<Option<VirtualAddress>, Problem> {
    let mut services = ours.fields.iter();
    let (Some((name, list)), None) = (services.next(), services.next()) else {
        let reason = format!("has {} fields: expected one, called as the service is", ours.fields.len());
        return Err(Problem::new("", reason));
    };
    let Some(Kind::ListValue(list)) = &list.kind else {
        return Err(Problem::new(name, "is not a list of addresses"));
    };
    let (mut v4, mut v6) = (None, None);
    for (position, value) in list.values.iter().enumerate() {
        let problem = |reason: String| Problem::new(format!("{name}[{position}]"), reason);
        let second = match address(value).map_err(problem)? {
            IpAddr::V4(address) => v4.replace(address).is_some(),
            IpAddr::V6(address) => v6.replace(address).is_some(),
        };
        if second {
            return Err(problem("is the second of its family".to_owned()));
        }
    }
    Ok((v4.is_some() || v6.is_some()).then(|| VirtualAddress { v4, v6, name: name.as_str().into() }))
}

fn address(value: &Value) -> Result<IpAddr, String> {
    match &value.kind {
        Some(Kind::StringValue(text)) => {
            text.parse().map_err(|_| format!("is {text:?}: expected an IP address"))
        }
        _ => Err("is not a string".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::ListValue;

    use super::*;

    fn metadata(fields: &[(&str, Kind)]) -> Metadata {
        let fields = fields.iter().map(|(key, kind)| ((*key).to_owned(), Value { kind: Some(kind.clone()) }));
        let ours = Struct { fields: fields.collect() };
        Metadata { filter_metadata: [(KEY.to_owned(), ours)].into(), ..Metadata::default() }
    }

    fn list(addresses: &[&str]) -> Kind {
        let text = |text: &&str| Value { kind: Some(Kind::StringValue((*text).to_owned())) };
        Kind::ListValue(ListValue { values: addresses.iter().map(text).collect() })
    }

    #[test]
    fn addresses_are_read_and_other_metadata_is_passed_over() {
        assert_eq!(read(None), Ok(None));
        assert_eq!(read(Some(&Metadata::default())), Ok(None));
        assert_eq!(read(Some(&metadata(&[("orders", list(&[]))]))), Ok(None));
        let both = read(Some(&metadata(&[("orders", list(&["fd00::7", "240.240.0.7"]))]))).unwrap().unwrap();
        assert_eq!(both.addresses().map(|a| a.to_string()).collect::<Vec<_>>(), ["240.240.0.7", "fd00::7"]);
        assert_eq!(&*both.name, "orders");
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_path() {
        let at = "metadata.filter_metadata[\"pontoon.dev/addresses\"]";
        for (fields, expected) in [
            (vec![("orders", list(&["240.240.0"]))], ".orders[0]: is \"240.240.0\": expected an IP address"),
            (vec![("orders", list(&["10.0.0.1", "10.0.0.2"]))], ".orders[1]: is the second of its family"),
            (vec![("orders", Kind::NumberValue(7.0))], ".orders: is not a list of addresses"),
            (
                vec![("a", list(&[])), ("b", list(&[]))],
                ": has 2 fields: expected one, called as the service is",
            ),
        ] {
            let problem = read(Some(&metadata(&fields))).unwrap_err();
            assert_eq!(problem.to_string(), format!("{at}{expected}"));
        }
    }
}
