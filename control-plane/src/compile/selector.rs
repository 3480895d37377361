//! A label selector over namespaces.

use std::collections::BTreeMap;

use gateway_api::gateways::{
    GatewayAllowedListenersNamespacesSelector, GatewayListenersAllowedRoutesNamespacesSelector,
};

use crate::objects::namespace::NAME_LABEL;
use crate::objects::{ObjectName, Objects};

/// Which namespaces are meant: those that meet all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

macro_rules! selectors {
    ($($written:ty),*) => {$(
        impl TryFrom<&$written> for Selector {
            type Error = String;

            fn try_from(written: &$written) -> Result<Self, String> {
                let labels = written.match_labels.iter().flatten().map(|(key, value)| Requirement {
                    key: key.clone(),
                    operator: Operator::In,
                    values: vec![value.clone()],
                });
                let mut requirements: Vec<Requirement> = labels.collect();
                for written in written.match_expressions.iter().flatten() {
                    let values = written.values.clone().unwrap_or_default();
                    requirements.push(requirement(&written.key, &written.operator, values)?);
                }
                Ok(Selector(requirements))
            }
        }
    )*};
}

selectors!(GatewayListenersAllowedRoutesNamespacesSelector, GatewayAllowedListenersNamespacesSelector);

fn requirement(key: &str, operator: &str, values: Vec<String>) -> Result<Requirement, String> {
    let operator = match operator {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(format!("expected In, NotIn, Exists or DoesNotExist, not {other}")),
    };
    let needs_values = matches!(operator, Operator::In | Operator::NotIn);
    if needs_values == values.is_empty() {
        return Err(format!("In and NotIn need values, Exists and DoesNotExist have none: {key}"));
    }
    Ok(Requirement { key: key.to_owned(), operator, values })
}

impl Selector {
    /// Whether a namespace is meant. One that is not known has the label of its name, as all have.
    pub(super) fn matches(&self, objects: &Objects, namespace: &str) -> bool {
        let known = objects.namespaces.get(&ObjectName::new("", namespace));
        let labels = known.and_then(|known| known.metadata.labels.as_ref());
        self.0.iter().all(|requirement| requirement.is_met(labels, namespace))
    }
}

impl Requirement {
    fn is_met(&self, labels: Option<&BTreeMap<String, String>>, namespace: &str) -> bool {
        let value = labels.and_then(|labels| labels.get(&self.key)).map(String::as_str);
        let value = value.or((self.key == NAME_LABEL).then_some(namespace));
        let listed = value.is_some_and(|value| self.values.iter().any(|listed| listed == value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(yaml: &str) -> Result<Selector, String> {
        let written: GatewayListenersAllowedRoutesNamespacesSelector =
            serde_json::from_str(yaml).expect("a selector");
        Selector::try_from(&written)
    }

    #[test]
    fn namespaces_are_selected_by_their_labels() {
        let mut objects = Objects::default();
        let mut shop = crate::objects::Namespace::default();
        shop.metadata.labels = Some(BTreeMap::from([("team".to_owned(), "a".to_owned())]));
        objects.namespaces.insert(ObjectName::new("", "shop"), shop.into());
        for (yaml, in_shop, elsewhere) in [
            (r#"{"matchLabels": {"team": "a"}}"#, true, false),
            (r#"{"matchLabels": {"team": "b"}}"#, false, false),
            (r#"{"matchLabels": {"kubernetes.io/metadata.name": "shop"}}"#, true, false),
            (
                r#"{"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}"#,
                true,
                false,
            ),
            (r#"{"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}"#, false, true),
            (r#"{"matchExpressions": [{"key": "team", "operator": "Exists"}]}"#, true, false),
            (r#"{"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}"#, false, true),
            ("{}", true, true),
        ] {
            let selector = selector(yaml).expect(yaml);
            assert_eq!(selector.matches(&objects, "shop"), in_shop, "{yaml}");
            assert_eq!(selector.matches(&objects, "elsewhere"), elsewhere, "{yaml}");
        }
        assert!(
            selector(r#"{"matchExpressions": [{"key": "team", "operator": "Gt", "values": ["1"]}]}"#)
                .is_err()
        );
        assert!(selector(r#"{"matchExpressions": [{"key": "team", "operator": "In"}]}"#).is_err());
    }
}
