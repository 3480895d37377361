//! Which part of a dump is wanted: `resource` (one list of it), `mask` (fields), `name_regex` (resources by name) and
//! `include_eds`, as Envoy's admin port takes them.

use serde_json::{Map, Value};

use crate::route::expression::Expression;

/// The lists, with the type of what is in them.
const LISTS: [(&str, &str); 12] = [
    ("static_clusters", "ClustersConfigDump.StaticCluster"),
    ("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster"),
    ("dynamic_warming_clusters", "ClustersConfigDump.DynamicCluster"),
    ("static_endpoint_configs", "EndpointsConfigDump.StaticEndpointConfig"),
    ("dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig"),
    ("static_listeners", "ListenersConfigDump.StaticListener"),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    ("dynamic_route_configs", "RoutesConfigDump.DynamicRouteConfig"),
    ("static_secrets", "SecretsConfigDump.StaticSecret"),
    ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
    ("dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret"),
];

/// What is in a section beside its lists.
const FIELDS: [(&str, &str); 4] = [
    ("BootstrapConfigDump", "bootstrap"),
    ("BootstrapConfigDump", "last_updated"),
    ("ClustersConfigDump", "version_info"),
    ("ListenersConfigDump", "version_info"),
];

/// What a request wants.
#[derive(Debug, Default)]
pub(in crate::admin) struct Wanted {
    pub(super) include_eds: bool,
    resource: Option<String>,
    mask: Vec<Vec<String>>,
    name: Option<Expression>,
}

/// Why there is no such dump.
#[derive(Debug, thiserror::Error)]
pub(in crate::admin) enum Unusable {
    #[error("no list {0:?} in the dump; it has: {names}", names = LISTS.map(|(name, _)| name).join(", "))]
    Resource(String),
    #[error("no part of the dump has all the fields of the mask")]
    Mask,
    #[error("name_regex: {0}")]
    Regex(String),
}

impl Wanted {
    /// From the values of a query.
    pub(in crate::admin) fn new(
        resource: Option<String>,
        mask: Option<&str>,
        name: Option<&str>,
        include_eds: bool,
    ) -> Result<Wanted, Unusable> {
        let paths = mask.unwrap_or_default().split(',').filter(|path| !path.is_empty());
        Ok(Wanted {
            include_eds,
            resource: resource.filter(|name| !name.is_empty()),
            mask: paths.map(|path| path.split('.').map(str::to_owned).collect()).collect(),
            name: name
                .filter(|text| !text.is_empty())
                .map(Expression::whole)
                .transpose()
                .map_err(Unusable::Regex)?,
        })
    }

    /// Whether resources of this name are wanted.
    pub(super) fn takes(&self, name: &str) -> bool {
        self.name.as_ref().is_none_or(|regex| regex.is_match(name))
    }

    /// The sections, or the elements of the one list that is wanted; of each the fields that are.
    pub(super) fn cut(&self, sections: Vec<Value>) -> Result<Vec<Value>, Unusable> {
        let Some(list) = &self.resource else {
            // As Envoy: a mask is for those of which it names fields, and the others are left out.
            let fits = |section: &Value| self.mask.iter().all(|path| has(section, path));
            let left: Vec<Value> =
                sections.into_iter().filter(fits).map(|section| self.masked(section)).collect();
            return if left.is_empty() { Err(Unusable::Mask) } else { Ok(left) };
        };
        let known = LISTS.iter().find(|(name, _)| name == list);
        let (_, of) = known.ok_or_else(|| Unusable::Resource(list.clone()))?;
        let found =
            sections.into_iter().find_map(|mut section| match section.get_mut(list).map(Value::take) {
                Some(Value::Array(elements)) => Some(elements),
                _ => None,
            });
        let typed = |element: Value| {
            let mut all = Map::from_iter([(
                String::from("@type"),
                Value::from(format!("type.googleapis.com/envoy.admin.v3.{of}")),
            )]);
            if let Value::Object(fields) = self.masked(element) {
                all.extend(fields);
            }
            Value::Object(all)
        };
        Ok(found.unwrap_or_default().into_iter().map(typed).collect())
    }

    fn masked(&self, value: Value) -> Value {
        if self.mask.is_empty() {
            return value;
        }
        let paths: Vec<&[String]> = self.mask.iter().map(Vec::as_slice).collect();
        kept(value, &paths)
    }
}

/// Whether a section may have the field that a path begins with.
fn has(section: &Value, path: &[String]) -> bool {
    let name = section.get("@type").and_then(Value::as_str).and_then(|url| url.rsplit('.').next());
    let Some((name, field)) = name.zip(path.first()) else { return false };
    let lists = LISTS.iter().filter_map(|(list, of)| Some((of.split_once('.')?.0, *list)));
    lists.chain(FIELDS).any(|known| known == (name, field.as_str()))
}

/// What the paths lead to, with the types on the way.
fn kept(value: Value, paths: &[&[String]]) -> Value {
    if paths.iter().any(|path| path.is_empty()) {
        return value;
    }
    match value {
        Value::Array(items) => items.into_iter().map(|item| kept(item, paths)).collect(),
        Value::Object(fields) => {
            let wanted = fields.into_iter().filter_map(|(name, inner)| {
                if name == "@type" {
                    return Some((name, inner));
                }
                let below: Vec<&[String]> = paths
                    .iter()
                    .filter_map(|path| path.split_first())
                    .filter(|(first, _)| **first == name)
                    .map(|(_, rest)| rest)
                    .collect();
                (!below.is_empty()).then(|| {
                    let inner = kept(inner, &below);
                    (name, inner)
                })
            });
            Value::Object(wanted.collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sections() -> Vec<Value> {
        let cluster =
            |name: &str| json!({"cluster": {"@type": "c", "name": name, "type": "EDS"}, "version_info": "1"});
        vec![
            json!({"@type": "BootstrapConfigDump", "bootstrap": {"node": {"id": "n", "cluster": "c"}}}),
            json!({"@type": "ClustersConfigDump", "dynamic_active_clusters": [cluster("a"), cluster("b")]}),
        ]
    }

    fn cut(resource: Option<&str>, mask: &str) -> Value {
        let wanted = Wanted::new(resource.map(str::to_owned), Some(mask), None, false).unwrap();
        wanted.cut(sections()).unwrap().into()
    }

    #[test]
    fn one_list_and_some_fields() {
        assert_eq!(cut(None, ""), Value::Array(sections()));
        let of = "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster";
        let one = |name| json!({"@type": of, "cluster": {"@type": "c", "name": name}});
        assert_eq!(cut(Some("dynamic_active_clusters"), "cluster.name"), json!([one("a"), one("b")]));
        assert_eq!(cut(Some("static_clusters"), ""), json!([]));
        assert_eq!(
            cut(None, "bootstrap.node.id"),
            json!([{"@type": "BootstrapConfigDump", "bootstrap": {"node": {"id": "n"}}}])
        );
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        let wanted = Wanted::new(Some("clusters".into()), None, None, false).unwrap();
        assert!(wanted.cut(sections()).unwrap_err().to_string().contains("dynamic_active_clusters"));
        assert!(Wanted::new(None, None, Some("a)|(b"), false).is_err());
        let wanted = Wanted::new(None, Some("bootstrap,static_clusters"), None, false).unwrap();
        assert!(wanted.cut(sections()).is_err());
        let wanted = Wanted::new(None, None, Some("a.*"), false).unwrap();
        assert_eq!(["a", "ab", "ba"].map(|name| wanted.takes(name)), [true, true, false]);
    }
}
