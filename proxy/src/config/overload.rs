//! `envoy.config.overload.v3.OverloadManager`: what of it this proxy has in its own way. Memory is the resident memory of
//! the process here, which is what a control group kills for, and never less than the heap.

use envoy_types::pb::envoy::config::overload::v3::{
    OverloadAction, OverloadManager, ResourceMonitor, ThresholdTrigger, Trigger, resource_monitor, trigger,
};
use envoy_types::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use envoy_types::pb::envoy::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig;
use prost::Name as _;

use super::lds::unpack;
use super::problem::{Problem, Under, each};
use super::support::{Message, support};
use crate::overload::Shares;

pub(super) const MESSAGES: &[Message] =
    &[OVERLOAD_MANAGER, MONITOR, ACTION, TRIGGER, THRESHOLD, FIXED_HEAP, CONNECTIONS];

support! {
    OVERLOAD_MANAGER, overload_manager: OverloadManager = "envoy.config.overload.v3.OverloadManager";
    read: resource_monitors, actions;
    ignored:;
    differs:
        refresh_interval => "memory is looked at four times a second";
    refused: loadshed_points, buffer_factory_config;
}

support! {
    MONITOR, monitor: ResourceMonitor = "envoy.config.overload.v3.ResourceMonitor";
    read: name, config_type;
    ignored:;
    refused: ;
}

support! {
    ACTION, action: OverloadAction = "envoy.config.overload.v3.OverloadAction";
    read: name, triggers;
    ignored:;
    refused: typed_config;
}

support! {
    TRIGGER, trigger_fields: Trigger = "envoy.config.overload.v3.Trigger";
    read: name, trigger_oneof;
    ignored:;
    refused: ;
}

support! {
    THRESHOLD, threshold_fields: ThresholdTrigger = "envoy.config.overload.v3.ThresholdTrigger";
    read: value;
    ignored:;
    refused: ;
}

support! {
    FIXED_HEAP, fixed_heap: FixedHeapConfig = "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig";
    read: max_heap_size_bytes;
    ignored:;
    refused: max_heap_size_bytes_runtime;
}

support! {
    CONNECTIONS, connections_fields: DownstreamConnectionsConfig = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
    read: max_active_downstream_connections;
    ignored:;
    refused: ;
}

const MIB: u64 = 1024 * 1024;

/// What it says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overload {
    /// Connections of clients in all.
    pub connections: Option<usize>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// What becomes of requests as memory fills up.
    pub shares: Shares,
}

/// What a monitor watches.
enum Watches {
    Memory(String),
    Connections,
}

pub(super) fn compile(message: &OverloadManager) -> Result<Overload, Problem> {
    overload_manager(message)?;
    let mut found = Overload { shares: Shares { no_keep_alive: None, shed: None }, ..Overload::default() };
    let watched =
        each("resource_monitors", &message.resource_monitors, |message| watch(message, &mut found))?;
    let memory: Vec<String> = watched
        .into_iter()
        .filter_map(|watches| match watches {
            Watches::Memory(name) => Some(name),
            Watches::Connections => None,
        })
        .collect();
    let shares = &mut found.shares;
    each("actions", &message.actions, |message| act(message, &memory, shares))?;
    Ok(found)
}

fn watch(message: &ResourceMonitor, found: &mut Overload) -> Result<Watches, Problem> {
    monitor(message)?;
    let Some(resource_monitor::ConfigType::TypedConfig(config)) = &message.config_type else {
        return Err(Problem::new("typed_config", "is missing"));
    };
    let at = || "typed_config".into();
    if config.type_url == DownstreamConnectionsConfig::type_url() {
        let config: DownstreamConnectionsConfig = unpack(config)?;
        connections_fields(&config).under(at)?;
        let most = config.max_active_downstream_connections;
        let most = usize::try_from(most).ok().filter(|most| *most > 0).ok_or_else(|| {
            Problem::new("max_active_downstream_connections", format!("is {most}; must be at least 1"))
        });
        if found.connections.replace(most.under(at)?).is_some() {
            return Err(second());
        }
        return Ok(Watches::Connections);
    }
    let config: FixedHeapConfig = unpack(config).map_err(|problem| {
        Problem::new(problem.path, format!("{}, and DownstreamConnectionsConfig", problem.reason))
    })?;
    fixed_heap(&config).under(at)?;
    let bytes = config.max_heap_size_bytes;
    if bytes < MIB {
        let reason = format!("is {bytes}; must be at least {MIB}");
        return Err(Problem::new("max_heap_size_bytes", reason)).under(at);
    }
    if found.memory_mib.replace(bytes / MIB).is_some() {
        return Err(second());
    }
    Ok(Watches::Memory(message.name.clone()))
}

fn second() -> Problem {
    Problem::new("typed_config", "is a second monitor of its kind; one can be given")
}

fn act(message: &OverloadAction, memory: &[String], shares: &mut Shares) -> Result<(), Problem> {
    action(message)?;
    let share = match message.name.as_str() {
        "envoy.overload_actions.disable_http_keepalive" => Some(&mut shares.no_keep_alive),
        "envoy.overload_actions.stop_accepting_requests"
        | "envoy.overload_actions.stop_accepting_connections"
        | "envoy.overload_actions.reject_incoming_connections" => Some(&mut shares.shed),
        // What is free goes back to the system anyway.
        "envoy.overload_actions.shrink_heap" => None,
        other => {
            let reason = format!(
                "is {other:?}; this proxy has envoy.overload_actions.disable_http_keepalive, .stop_accepting_requests, .stop_accepting_connections, .reject_incoming_connections and .shrink_heap"
            );
            return Err(Problem::new("name", reason));
        }
    };
    let thresholds = each("triggers", &message.triggers, |trigger| threshold(trigger, memory))?;
    if let (Some(share), Some(lowest)) = (share, thresholds.into_iter().min()) {
        *share = Some(share.map_or(lowest, |before| before.min(lowest)));
    }
    Ok(())
}

/// In thousandths.
fn threshold(message: &Trigger, memory: &[String]) -> Result<u32, Problem> {
    trigger_fields(message)?;
    if !memory.contains(&message.name) {
        let reason = format!("is {:?}, which is no monitor with a FixedHeapConfig here", message.name);
        return Err(Problem::new("name", reason));
    }
    let Some(trigger::TriggerOneof::Threshold(threshold)) = &message.trigger_oneof else {
        return Err(Problem::new("threshold", "is missing; a scaled trigger is not supported"));
    };
    threshold_fields(threshold).under(|| "threshold".into())?;
    let value = threshold.value;
    if value > 0.0 && value <= 1.0 {
        // At least one: nothing is shed at all times.
        Ok(((value * 1000.0).round() as u32).max(1))
    } else {
        Err(Problem::new("threshold.value", format!("is {value}; must be above 0, and at most 1")))
    }
}

#[cfg(test)]
mod tests {
    use pontoon_xds::json;
    use prost::Message as _;
    use serde_json::{Value, json};

    use super::*;

    fn read(value: &Value) -> Result<Overload, Problem> {
        let bytes = json::from_json(&OverloadManager::type_url(), value);
        let bytes = bytes.map_err(|mistake| Problem::new(mistake.path, mistake.reason))?;
        compile(&OverloadManager::decode(bytes.as_slice()).unwrap())
    }

    fn monitors() -> Value {
        let of = |name: &str, config: Value| json!({"name": name, "typed_config": config});
        let heap = "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig";
        let connections = "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
        json!([
            of("heap", json!({"@type": heap, "max_heap_size_bytes": 64 * MIB})),
            of("connections", json!({"@type": connections, "max_active_downstream_connections": 1000})),
        ])
    }

    fn action(name: &str, trigger: Value) -> Value {
        json!({"name": format!("envoy.overload_actions.{name}"), "triggers": [trigger]})
    }

    fn heap(threshold: f64) -> Value {
        json!({"name": "heap", "threshold": {"value": threshold}})
    }

    #[test]
    fn what_has_an_equivalent_is_taken() {
        let actions = json!([
            action("shrink_heap", heap(0.5)),
            action("disable_http_keepalive", heap(0.925)),
            action("stop_accepting_requests", heap(0.98)),
            action("stop_accepting_connections", heap(0.95)),
        ]);
        let found = read(&json!({"resource_monitors": monitors(), "actions": actions})).unwrap();
        assert_eq!((found.connections, found.memory_mib), (Some(1000), Some(64)));
        assert_eq!(found.shares, Shares { no_keep_alive: Some(925), shed: Some(950) });
        let watched = read(&json!({"resource_monitors": monitors()})).unwrap();
        assert_eq!(watched.shares, Shares { no_keep_alive: None, shed: None }, "nothing is done unasked");
    }

    #[test]
    fn the_rest_is_refused_with_its_path() {
        let scaled =
            json!({"name": "heap", "scaled": {"scaling_threshold": 0.8, "saturation_threshold": 0.9}});
        for (action, path) in [
            (action("reset_high_memory_stream", heap(0.9)), "actions[0].name"),
            (action("stop_accepting_requests", scaled), "actions[0].triggers[0].threshold"),
            (action("stop_accepting_requests", heap(1.5)), "actions[0].triggers[0].threshold.value"),
            (
                action("stop_accepting_requests", json!({"name": "cpu", "threshold": {"value": 0.9}})),
                "actions[0].triggers[0].name",
            ),
        ] {
            let problem = read(&json!({"resource_monitors": monitors(), "actions": [action]})).unwrap_err();
            assert_eq!(problem.path, path, "{problem}");
        }
        let mut none = monitors();
        none[0]["typed_config"]["max_heap_size_bytes"] = json!(0);
        let problem = read(&json!({"resource_monitors": none})).unwrap_err();
        assert_eq!(problem.path, "resource_monitors[0].typed_config.max_heap_size_bytes");
        let points = json!([{"name": "envoy.load_shed_points.tcp_listener_accept", "triggers": [heap(0.9)]}]);
        let shed = json!({"resource_monitors": monitors(), "loadshed_points": points});
        assert_eq!(read(&shed).unwrap_err().path, "loadshed_points");
    }
}
