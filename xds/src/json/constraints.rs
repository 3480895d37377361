//! The constraints that the proto files put on their fields (protoc-gen-validate's `validate.rules`): what breaks one, an
//! Envoy refuses to start with.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::rc::Rc;

use prost_reflect::{
    DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, OneofDescriptor,
    ReflectMessage, Value,
};
use regex::Regex;

use super::{ANY, Mistake, any_parts, decode, is_sensitive};

/// Options by their full names.
const OF_FIELD: &str = "validate.rules";
const OF_MESSAGE: &str = "validate.disabled";
const OF_ONEOF: &str = "validate.required";
/// Of a field's rules those that say whether its message is looked into; the others are of its type.
const MESSAGE: &str = "message";

/// Holds a message against the constraints of its fields, those of extensions in it too.
///
/// # Errors
/// The first that is broken, in the order of the fields' numbers.
pub(super) fn check(message: &DynamicMessage) -> Result<(), Mistake> {
    let Some(mut checker) = Checker::new(message) else { return Ok(()) };
    match checker.message(message) {
        Ok(()) => Ok(()),
        Err(reason) => Err(Mistake { path: checker.path, reason }),
    }
}

struct Checker {
    of_field: ExtensionDescriptor,
    of_message: ExtensionDescriptor,
    of_oneof: ExtensionDescriptor,
    /// By the message's full name.
    rules: HashMap<String, Rc<Rules>>,
    /// Of what is looked at; where a constraint is broken it stays there.
    path: String,
}

/// Of a message.
#[derive(Default)]
struct Rules {
    fields: Vec<(FieldDescriptor, Option<DynamicMessage>)>,
    /// One of each has to be set.
    oneofs: Vec<OneofDescriptor>,
}

impl Checker {
    fn new(message: &DynamicMessage) -> Option<Checker> {
        let pool = message.descriptor().parent_pool().clone();
        Some(Checker {
            of_field: pool.get_extension_by_name(OF_FIELD)?,
            of_message: pool.get_extension_by_name(OF_MESSAGE)?,
            of_oneof: pool.get_extension_by_name(OF_ONEOF)?,
            rules: HashMap::new(),
            path: String::new(),
        })
    }

    fn rules(&mut self, message: &MessageDescriptor) -> Rc<Rules> {
        if let Some(rules) = self.rules.get(message.full_name()) {
            return Rc::clone(rules);
        }
        let is_set =
            |options: &DynamicMessage, extension| options.get_extension(extension).as_bool() == Some(true);
        let rules = Rc::new(if is_set(&message.options(), &self.of_message) {
            Rules::default()
        } else {
            let of = |field: FieldDescriptor| {
                let options = field.options();
                let rules =
                    options.has_extension(&self.of_field).then(|| options.get_extension(&self.of_field));
                let rules = rules.and_then(|rules| rules.as_message().cloned());
                let inner = if field.is_map() { map_value(&field) } else { Some(field.clone()) };
                let has_fields = inner.is_some_and(|inner| matches!(inner.kind(), Kind::Message(_)));
                (rules.is_some() || has_fields).then_some((field, rules))
            };
            let oneofs = message.oneofs().filter(|oneof| is_set(&oneof.options(), &self.of_oneof));
            Rules { fields: message.fields().filter_map(of).collect(), oneofs: oneofs.collect() }
        });
        self.rules.insert(message.full_name().to_owned(), Rc::clone(&rules));
        rules
    }

    fn message(&mut self, message: &DynamicMessage) -> Result<(), String> {
        let descriptor = message.descriptor();
        if descriptor.full_name() == ANY {
            let (type_url, value) = any_parts(message);
            // What is not known here is for whoever reads it to refuse.
            return decode(&type_url, &value).map_or(Ok(()), |inner| self.message(&inner));
        }
        let rules = self.rules(&descriptor);
        for (field, rules) in &rules.fields {
            let length = self.path.len();
            if !self.path.is_empty() {
                self.path.push('.');
            }
            self.path.push_str(field.name());
            self.field(message, field, rules.as_ref())?;
            self.path.truncate(length);
        }
        for oneof in &rules.oneofs {
            if !oneof.fields().any(|field| message.has_field(&field)) {
                let names: Vec<String> = oneof.fields().map(|field| field.name().to_owned()).collect();
                return Err(format!("needs one of {}", names.join(", ")));
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        message: &DynamicMessage,
        field: &FieldDescriptor,
        rules: Option<&DynamicMessage>,
    ) -> Result<(), String> {
        if field.supports_presence() && !message.has_field(field) {
            // Of several that exclude each other, another may be there.
            let is_one_of = field.containing_oneof().is_some_and(|oneof| !oneof.is_synthetic());
            return match !is_one_of && rules.is_some_and(is_required) {
                true => Err("is missing".to_owned()),
                false => Ok(()),
            };
        }
        self.value(&message.get_field(field), field, rules)
    }

    /// `field`: whose kind it is.
    fn value(
        &mut self,
        value: &Value,
        field: &FieldDescriptor,
        rules: Option<&DynamicMessage>,
    ) -> Result<(), String> {
        let of_type = rules.and_then(|rules| set_in(rules, |name| name != MESSAGE));
        let of_message = rules.and_then(|rules| set_in(rules, |name| name == MESSAGE));
        if let Some((kind, constraints)) = &of_type {
            let inner = wrapped(value);
            obeys(kind.name(), constraints, inner.as_ref().unwrap_or(value), field)?;
        }
        let part = |name| of_type.as_ref().and_then(|(_, of)| part(of, name));
        match value {
            Value::List(items) => {
                let rules = part("items");
                self.each(items.iter().map(|item| (None, item)), field, rules.as_ref())
            }
            Value::Map(entries) => {
                let Some(of_values) = map_value(field) else { return Ok(()) };
                let (keys, values) = (part("keys"), part("values"));
                let mut entries: Vec<(&MapKey, &Value)> = entries.iter().collect();
                entries.sort_by_cached_key(|(key, _)| shown_key(key));
                if let Some(keys) = &keys {
                    for (key, _) in &entries {
                        self.at(&shown_key(key), |checker| {
                            checker.value(&Value::from((*key).clone()), field, Some(keys))
                        })?;
                    }
                }
                let entries = entries.into_iter().map(|(key, value)| (Some(key), value));
                self.each(entries, &of_values, values.as_ref())
            }
            Value::Message(inner) => {
                let skips = of_message.is_some_and(|(_, of)| is_true(of, "skip"));
                if skips { Ok(()) } else { self.message(inner) }
            }
            _ => Ok(()),
        }
    }

    fn each<'v>(
        &mut self,
        values: impl Iterator<Item = (Option<&'v MapKey>, &'v Value)>,
        field: &FieldDescriptor,
        rules: Option<&DynamicMessage>,
    ) -> Result<(), String> {
        for (position, (key, value)) in values.enumerate() {
            let place = key.map_or_else(|| position.to_string(), shown_key);
            self.at(&place, |checker| checker.value(value, field, rules))?;
        }
        Ok(())
    }

    fn at(&mut self, place: &str, look: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<(), String> {
        let length = self.path.len();
        // Nothing fails that writes to a string.
        let _ = write!(self.path, "[{place}]");
        look(self)?;
        self.path.truncate(length);
        Ok(())
    }
}

fn shown_key(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => format!("{text:?}"),
        MapKey::Bool(value) => value.to_string(),
        MapKey::I32(value) => value.to_string(),
        MapKey::I64(value) => value.to_string(),
        MapKey::U32(value) => value.to_string(),
        MapKey::U64(value) => value.to_string(),
    }
}

fn map_value(field: &FieldDescriptor) -> Option<FieldDescriptor> {
    match field.kind() {
        Kind::Message(entry) if entry.is_map_entry() => Some(entry.map_entry_value_field()),
        _ => None,
    }
}

/// Of the rules of a field those of one type, with its name.
fn set_in(
    rules: &DynamicMessage,
    is_wanted: impl Fn(&str) -> bool,
) -> Option<(FieldDescriptor, &DynamicMessage)> {
    let mut of_types = rules.fields().filter(|(field, _)| is_wanted(field.name()));
    of_types.find_map(|(field, of)| Some((field, of.as_message()?)))
}

fn part(rules: &DynamicMessage, name: &str) -> Option<DynamicMessage> {
    rules.has_field_by_name(name).then(|| rules.get_field_by_name(name)?.as_message().cloned()).flatten()
}

fn is_true(rules: &DynamicMessage, name: &str) -> bool {
    rules.get_field_by_name(name).is_some_and(|value| value.as_bool() == Some(true))
}

fn is_required(rules: &DynamicMessage) -> bool {
    rules.fields().any(|(_, of)| of.as_message().is_some_and(|of| is_true(of, "required")))
}

/// What is in a wrapper, such as a `UInt32Value`.
fn wrapped(value: &Value) -> Option<Value> {
    let message = value.as_message()?;
    let descriptor = message.descriptor();
    let is_wrapper = descriptor.parent_file().name() == "google/protobuf/wrappers.proto";
    is_wrapper.then(|| message.get_field_by_name("value").map(|inner| inner.into_owned())).flatten()
}

/// Holds a value against the constraints of its type.
fn obeys(kind: &str, of: &DynamicMessage, value: &Value, field: &FieldDescriptor) -> Result<(), String> {
    let is_empty = match value {
        Value::String(text) => text.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::U32(number) => *number == 0,
        _ => false,
    };
    if is_empty && is_true(of, "ignore_empty") {
        return Ok(());
    }
    for (constraint, bound) in of.fields() {
        let broken = match kind {
            "string" => text(constraint.name(), bound, of, value.as_str().unwrap_or_default(), field),
            "bytes" => {
                let length = value.as_bytes().map_or(0, |bytes| bytes.len());
                size(constraint.name(), bound, length, "byte", ["min_len", "max_len"])
            }
            "repeated" => items(constraint.name(), bound, value.as_list().unwrap_or_default()),
            "map" => {
                let length = value.as_map().map_or(0, HashMap::len);
                size(constraint.name(), bound, length, "entry", ["min_pairs", "max_pairs"])
            }
            "bool" => {
                (constraint.name() == "const" && bound != value).then(|| format!("must be {}", told(bound)))
            }
            "enum" => enumerated(constraint.name(), bound, value, field),
            _ => number(constraint.name(), bound, value),
        };
        if let Some(reason) = broken {
            return Err(reason);
        }
    }
    Ok(())
}

fn text(
    constraint: &str,
    bound: &Value,
    of: &DynamicMessage,
    text: &str,
    field: &FieldDescriptor,
) -> Option<String> {
    let shown = || if is_sensitive(field) { "what it is".to_owned() } else { format!("{text:?}") };
    let part = bound.as_str().unwrap_or_default();
    match constraint {
        "min_len" | "max_len" => {
            size(constraint, bound, text.chars().count(), "character", ["min_len", "max_len"])
        }
        "min_bytes" | "max_bytes" => size(constraint, bound, text.len(), "byte", ["min_bytes", "max_bytes"]),
        "prefix" => (!text.starts_with(part)).then(|| format!("is {}; must begin with {part:?}", shown())),
        "suffix" => (!text.ends_with(part)).then(|| format!("is {}; must end with {part:?}", shown())),
        "pattern" => {
            let matches = Regex::new(part).is_ok_and(|pattern| pattern.is_match(text));
            (!matches).then(|| format!("is {}; must match {part}", shown()))
        }
        "in" => {
            let allowed: Vec<&str> = bound.as_list()?.iter().filter_map(Value::as_str).collect();
            (!allowed.contains(&text))
                .then(|| format!("is {}; must be one of {}", shown(), allowed.join(", ")))
        }
        "well_known_regex" => {
            let is_name = bound.as_enum_number() == Some(1);
            let is_strict =
                of.get_field_by_name("strict").is_none_or(|strict| strict.as_bool() != Some(false));
            if is_name && is_strict && text.is_empty() {
                return Some("is empty; must be the name of a header".to_owned());
            }
            let is_bad = |c: char| match is_strict {
                true if is_name => !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_|~`:".contains(c)),
                true => (c < ' ' && c != '\t') || c == '\x7f',
                false => matches!(c, '\0' | '\n' | '\r'),
            };
            let bad = text.chars().find(|c| is_bad(*c))?;
            Some(format!("is {}, which has {bad:?} in it; a header cannot have that", shown()))
        }
        _ => None,
    }
}

fn items(constraint: &str, bound: &Value, items: &[Value]) -> Option<String> {
    if constraint == "unique" && bound.as_bool() == Some(true) {
        let twice = items.iter().enumerate().find(|(position, item)| items[..*position].contains(item));
        return twice.map(|(position, _)| format!("has the same twice, the second time at [{position}]"));
    }
    size(constraint, bound, items.len(), "item", ["min_items", "max_items"])
}

fn size(constraint: &str, bound: &Value, length: usize, unit: &str, names: [&str; 2]) -> Option<String> {
    let [least, most] = names;
    let limit = usize::try_from(bound.as_u64()?).unwrap_or(usize::MAX);
    if constraint == least && length < limit {
        return Some(match length {
            0 => format!("is empty; must have at least {limit} {unit}{}", plural(limit)),
            _ => format!("has {length} {unit}{}; must have at least {limit}", plural(length)),
        });
    }
    (constraint == most && length > limit)
        .then(|| format!("has {length} {unit}{}; must have at most {limit}", plural(length)))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn enumerated(constraint: &str, bound: &Value, value: &Value, field: &FieldDescriptor) -> Option<String> {
    let Kind::Enum(all) = field.kind() else { return None };
    let number = value.as_enum_number()?;
    let name = all.get_value(number).map_or_else(|| number.to_string(), |value| value.name().to_owned());
    let is_broken = match constraint {
        "defined_only" => bound.as_bool() == Some(true) && all.get_value(number).is_none(),
        "not_in" => bound.as_list().is_some_and(|not| not.iter().any(|not| not.as_i32() == Some(number))),
        _ => false,
    };
    is_broken.then(|| format!("is {name}, which it cannot be"))
}

/// Of numbers and durations.
fn number(constraint: &str, bound: &Value, value: &Value) -> Option<String> {
    let (limit, is) = (amount(bound)?, amount(value)?);
    let (holds, word) = match constraint {
        "lt" => (is < limit, "less than"),
        "lte" => (is <= limit, "at most"),
        "gt" => (is > limit, "more than"),
        "gte" => (is >= limit, "at least"),
        _ => return None,
    };
    (!holds).then(|| format!("is {}; must be {word} {}", told(value), told(bound)))
}

/// In seconds, of a duration.
fn amount(value: &Value) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "bounds are far below what a double cannot tell apart")]
    Some(match value {
        Value::I32(number) => f64::from(*number),
        Value::U32(number) => f64::from(*number),
        Value::F32(number) => f64::from(*number),
        Value::I64(number) => *number as f64,
        Value::U64(number) => *number as f64,
        Value::F64(number) => *number,
        Value::Message(duration) => {
            let part =
                |name| duration.get_field_by_name(name).and_then(|part| amount(&part)).unwrap_or_default();
            part("seconds") + part("nanos") / 1e9
        }
        _ => return None,
    })
}

fn told(value: &Value) -> String {
    match value {
        Value::Message(_) => format!("{}s", amount(value).unwrap_or_default()),
        Value::Bool(value) => value.to_string(),
        _ => amount(value).unwrap_or_default().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::super::{from_json, pool};
    use prost_reflect::ReflectMessage as _;

    use super::{DynamicMessage, OF_FIELD};

    /// `TYPE.CONSTRAINT`, of what the proto files of our resources use.
    const KNOWN: &[&str] = &[
        "any.required",
        "bool.const",
        "bytes.max_len",
        "bytes.min_len",
        "double.gt",
        "double.gte",
        "double.lte",
        "duration.gt",
        "duration.gte",
        "duration.lt",
        "duration.lte",
        "duration.required",
        "enum.defined_only",
        "enum.not_in",
        "int64.gt",
        "map.keys",
        "map.min_pairs",
        "message.required",
        "message.skip",
        "repeated.items",
        "repeated.max_items",
        "repeated.min_items",
        "repeated.unique",
        "string.ignore_empty",
        "string.in",
        "string.max_bytes",
        "string.max_len",
        "string.min_len",
        "string.pattern",
        "string.prefix",
        "string.strict",
        "string.suffix",
        "string.well_known_regex",
        "uint32.gt",
        "uint32.gte",
        "uint32.ignore_empty",
        "uint32.lt",
        "uint32.lte",
        "uint64.gt",
        "uint64.gte",
        "uint64.lt",
        "uint64.lte",
    ];

    #[test]
    fn every_constraint_of_the_proto_files_is_known() {
        let pool = pool().unwrap();
        let rules = pool.get_extension_by_name(OF_FIELD).unwrap();
        let mut seen = BTreeSet::new();
        fn note(rules: &DynamicMessage, seen: &mut BTreeSet<String>) {
            for (kind, of) in rules.fields() {
                for (constraint, bound) in of.as_message().unwrap().fields() {
                    seen.insert(format!("{}.{}", kind.name(), constraint.name()));
                    if let Some(inner) = bound.as_message().filter(|m| m.descriptor().name() == "FieldRules")
                    {
                        note(inner, seen);
                    }
                }
            }
        }
        for field in pool.all_messages().flat_map(|message| message.fields().collect::<Vec<_>>()) {
            let options = field.options();
            if options.has_extension(&rules) {
                note(options.get_extension(&rules).as_message().unwrap(), &mut seen);
            }
        }
        assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), KNOWN);
    }
    #[test]
    fn what_breaks_one_is_told_with_its_place() {
        let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let listener = |filter: Value| json!({"name": "l", "filter_chains": [{"filters": [{"name": "h", "typed_config": filter}]}]});
        let host = |host: Value| {
            listener(json!({"@type": manager, "stat_prefix": "a", "route_config": {"virtual_hosts": [host]}}))
        };
        let route = |action: Value| {
            host(
                json!({"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}),
            )
        };
        let at = "filter_chains[0].filters[0].typed_config";
        let virtual_host = format!("{at}.route_config.virtual_hosts[0]");
        let action = format!("{virtual_host}.routes[0].route");
        for (value, path, reason) in [
            (
                listener(json!({"@type": manager})),
                format!("{at}.stat_prefix"),
                "is empty; must have at least 1 character",
            ),
            (
                host(json!({"name": "v", "domains": []})),
                format!("{virtual_host}.domains"),
                "is empty; must have at least 1 item",
            ),
            (
                host(json!({"name": "v", "domains": ["*"], "request_headers_to_remove": ["a", "b\nc"]})),
                format!("{virtual_host}.request_headers_to_remove[1]"),
                "has '\\n' in it",
            ),
            (
                route(json!({"cluster": "c", "prefix_rewrite": "/a\n"})),
                format!("{action}.prefix_rewrite"),
                "has '\\n' in it",
            ),
            (route(json!({})), action.clone(), "needs one of cluster, cluster_header, "),
            (
                json!({"name": "l", "filter_chains": [{"filter_chain_match": {"destination_port": 0}}]}),
                "filter_chains[0].filter_chain_match.destination_port".to_owned(),
                "is 0; must be at least 1",
            ),
        ] {
            let found = from_json(crate::ResourceType::Listener.type_url(), &value).unwrap_err();
            assert_eq!(found.path, path);
            assert!(found.reason.contains(reason), "{found}");
        }
        let cluster = |value| from_json(crate::ResourceType::Cluster.type_url(), &value).map(drop);
        for (value, wanted) in [
            (json!({"name": "c", "connect_timeout": "0s"}), "connect_timeout: is 0s; must be more than 0s"),
            (json!({"name": "c", "type": 9}), "type: is 9, which it cannot be"),
            (
                json!({"name": "c", "health_checks": [{"timeout": "1s", "interval": "1s"}]}),
                "health_checks[0].unhealthy_threshold: is missing",
            ),
        ] {
            assert_eq!(cluster(value).unwrap_err().to_string(), wanted);
        }
        assert_eq!(cluster(json!({"name": "c", "connect_timeout": "0.1s", "type": "EDS"})), Ok(()));
    }
}
