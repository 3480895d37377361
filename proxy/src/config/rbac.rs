//! The filter that says who may ask: rules in the listener, and what a route says in their place.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac as Filter, RbacPerRoute};
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};

use super::lds::network;
use super::matching;
use super::problem::{Problem, Under, each};
use super::support::{Message, support};
use crate::route::rbac::{self as compiled, Condition, Rules};

/// As everybody calls it.
pub(super) const NAME: &str = "envoy.filters.http.rbac";

pub(super) const MESSAGES: &[Message] = &[FILTER, RULES, POLICY];

support! {
    FILTER, filter: Filter = "envoy.extensions.filters.http.rbac.v3.RBAC";
    read: rules;
    ignored:
        rules_stat_prefix => "it only names statistics",
        shadow_rules_stat_prefix => "it only names statistics",
        track_per_rule_stats => "it only adds statistics";
    refused: matcher, shadow_rules, shadow_matcher;
}

support! {
    RULES, rules: Rbac = "envoy.config.rbac.v3.RBAC";
    read: action, policies;
    ignored:;
    refused: audit_logging_options;
}

support! {
    POLICY, policy: Policy = "envoy.config.rbac.v3.Policy";
    read: permissions, principals;
    ignored:;
    refused: condition, checked_condition, cel_config;
}

/// What a route says in place of a filter's rules: where that is nothing, the filter is off.
pub(super) fn of_route(message: &RbacPerRoute) -> Result<Arc<Rules>, Problem> {
    message.rbac.as_ref().map_or(Ok(Arc::default()), |rbac| compile(rbac).under(|| "rbac".into()))
}

/// A filter's rules. Without any it does nothing.
pub(super) fn compile(message: &Filter) -> Result<Arc<Rules>, Problem> {
    filter(message)?;
    let compiled = message.rules.as_ref().map(|rules| of_rules(rules).under(|| "rules".into()));
    Ok(Arc::new(compiled.transpose()?.unwrap_or_default()))
}

fn of_rules(message: &Rbac) -> Result<Rules, Problem> {
    rules(message)?;
    let allow = match Action::try_from(message.action) {
        Ok(Action::Allow) => true,
        Ok(Action::Deny) => false,
        _ => return Err(Problem::new("action", "must be ALLOW or DENY")),
    };
    let by_name: BTreeMap<_, _> = message.policies.iter().collect();
    let policies = by_name.into_iter().map(|(name, message)| {
        let condition = of_policy(message).under(|| format!("policies[{name}]"))?;
        Ok(compiled::Policy { name: name.as_str().into(), condition })
    });
    Ok(Rules { allow, policies: policies.collect::<Result<_, _>>()? })
}

fn of_policy(message: &Policy) -> Result<Condition, Problem> {
    policy(message)?;
    let permissions = some("permissions", &message.permissions, permission)?;
    let principals = some("principals", &message.principals, principal)?;
    Ok(Condition::All([Condition::OneOf(permissions), Condition::OneOf(principals)].into()))
}

fn some<T>(
    field: &str,
    written: &[T],
    translate: fn(&T) -> Result<Condition, Problem>,
) -> Result<Box<[Condition]>, Problem> {
    if written.is_empty() {
        return Err(Problem::new(field, "is empty; `any: true` is for all"));
    }
    each(field, written, translate).map(Into::into)
}

fn permission(message: &Permission) -> Result<Condition, Problem> {
    let rule = message.rule.as_ref().ok_or_else(|| Problem::new("rule", "is missing"))?;
    #[allow(deprecated, reason = "a deprecated field is refused too")]
    match rule {
        Rule::Any(on) => any(*on),
        Rule::AndRules(set) => some("and_rules.rules", &set.rules, permission).map(Condition::All),
        Rule::OrRules(set) => some("or_rules.rules", &set.rules, permission).map(Condition::OneOf),
        Rule::NotRule(inner) => not("not_rule", permission(inner)),
        Rule::Header(header) => matching::header(header).map(Condition::Header).under(|| "header".into()),
        Rule::UrlPath(matcher) => path(matcher),
        Rule::DestinationIp(_) => unsupported("destination_ip"),
        Rule::DestinationPort(_) => unsupported("destination_port"),
        Rule::DestinationPortRange(_) => unsupported("destination_port_range"),
        Rule::Metadata(_) => unsupported("metadata"),
        Rule::RequestedServerName(_) => unsupported("requested_server_name"),
        Rule::Matcher(_) => unsupported("matcher"),
        Rule::UriTemplate(_) => unsupported("uri_template"),
        Rule::SourcedMetadata(_) => unsupported("sourced_metadata"),
    }
}

fn principal(message: &Principal) -> Result<Condition, Problem> {
    let identifier = message.identifier.as_ref().ok_or_else(|| Problem::new("identifier", "is missing"))?;
    #[allow(deprecated, reason = "still sent by control planes")]
    match identifier {
        Identifier::Any(on) => any(*on),
        Identifier::AndIds(set) => some("and_ids.ids", &set.ids, principal).map(Condition::All),
        Identifier::OrIds(set) => some("or_ids.ids", &set.ids, principal).map(Condition::OneOf),
        Identifier::NotId(inner) => not("not_id", principal(inner)),
        Identifier::RemoteIp(range) => network(range).map(Condition::Client).under(|| "remote_ip".into()),
        Identifier::SourceIp(range) => network(range).map(Condition::Source).under(|| "source_ip".into()),
        Identifier::DirectRemoteIp(range) => {
            network(range).map(Condition::Peer).under(|| "direct_remote_ip".into())
        }
        Identifier::Header(header) => {
            matching::header(header).map(Condition::Header).under(|| "header".into())
        }
        Identifier::UrlPath(matcher) => path(matcher),
        Identifier::Authenticated(_) => unsupported("authenticated"),
        Identifier::Metadata(_) => unsupported("metadata"),
        Identifier::FilterState(_) => unsupported("filter_state"),
        Identifier::SourcedMetadata(_) => unsupported("sourced_metadata"),
        Identifier::Custom(_) => unsupported("custom"),
    }
}

fn any(on: bool) -> Result<Condition, Problem> {
    if on { Ok(Condition::Any) } else { Err(Problem::new("any", "must be true")) }
}

fn not(field: &'static str, inner: Result<Condition, Problem>) -> Result<Condition, Problem> {
    inner.map(|inner| Condition::Not(Box::new(inner))).under(|| field.into())
}

fn path(message: &PathMatcher) -> Result<Condition, Problem> {
    let Some(path_matcher::Rule::Path(path)) = &message.rule else {
        return Err(Problem::new("url_path.path", "is missing"));
    };
    matching::string(path).map(Condition::Path).under(|| "url_path.path".into())
}

fn unsupported(field: &str) -> Result<Condition, Problem> {
    Err(Problem::new(field, "is set, but this proxy does not support it"))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::CidrRange;
    use envoy_types::pb::envoy::config::rbac::v3::{permission, principal as of};

    use super::*;

    fn compiled(
        action: i32,
        permission: Rule,
        identifier: Option<Identifier>,
    ) -> Result<Arc<Rules>, Problem> {
        let policy = Policy {
            permissions: vec![Permission { rule: Some(permission) }],
            principals: vec![Principal { identifier }],
            ..Policy::default()
        };
        let rules = Rbac { action, policies: [("p".to_owned(), policy)].into(), ..Rbac::default() };
        compile(&Filter { rules: Some(rules), ..Filter::default() })
    }

    fn range(address: &str) -> CidrRange {
        CidrRange { address_prefix: address.into(), ..CidrRange::default() }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_path() {
        let any = || Rule::Any(true);
        let all = || Some(Identifier::Any(true));
        let not = |identifier| {
            let inner = Principal { identifier: Some(Identifier::NotId(Box::new(Principal { identifier }))) };
            Some(Identifier::AndIds(of::Set { ids: vec![Principal { identifier: all() }, inner] }))
        };
        let allow = Action::Allow as i32;
        for (action, permission, identifier, path) in [
            (Action::Log as i32, any(), all(), "action"),
            (7, any(), all(), "action"),
            (allow, Rule::Any(false), all(), "policies[p].permissions[0].any"),
            (allow, Rule::DestinationPort(1), all(), "policies[p].permissions[0].destination_port"),
            (
                allow,
                Rule::OrRules(permission::Set::default()),
                all(),
                "policies[p].permissions[0].or_rules.rules",
            ),
            (allow, Rule::UrlPath(PathMatcher::default()), all(), "policies[p].permissions[0].url_path.path"),
            (allow, any(), None, "policies[p].principals[0].identifier"),
            (
                allow,
                any(),
                not(Some(Identifier::RemoteIp(range("shop")))),
                "policies[p].principals[0].and_ids.ids[1].not_id.remote_ip.address_prefix",
            ),
        ] {
            let problem = compiled(action, permission, identifier).unwrap_err();
            assert_eq!(problem.path, format!("rules.{path}"));
        }
        let empty = [("p".to_owned(), Policy::default())].into();
        let rules = Some(Rbac { policies: empty, ..Rbac::default() });
        let problem = compile(&Filter { rules, ..Filter::default() }).unwrap_err();
        assert_eq!(problem.path, "rules.policies[p].permissions");
    }

    #[test]
    fn each_address_is_its_own() {
        #[allow(deprecated, reason = "still sent by control planes")]
        let all = [
            (Identifier::RemoteIp(range("10.0.0.0")), "Client(0.0.0.0/0)"),
            (Identifier::SourceIp(range("10.0.0.0")), "Source(0.0.0.0/0)"),
            (Identifier::DirectRemoteIp(range("10.0.0.0")), "Peer(0.0.0.0/0)"),
        ];
        for (identifier, expected) in all {
            let rules = compiled(Action::Deny as i32, Rule::Any(true), Some(identifier)).unwrap();
            assert!(!rules.allow);
            let said = format!("{:?}", rules.policies[0].condition);
            assert_eq!(said, format!("All([OneOf([Any]), OneOf([{expected}])])"));
        }
    }

    #[test]
    fn without_rules_nothing_is_asked() {
        assert!(!compile(&Filter::default()).unwrap().allow);
        let none = Some(Rbac::default());
        assert!(compile(&Filter { rules: none, ..Filter::default() }).unwrap().allow, "nobody");
    }
}
