//! Golden tests of the compiler: a folder a feature under `golden/`, with what goes in (`objects.yaml`,
//! `registry.json`, `states.json`, `requests.txt`) and what comes out (`xds.json`, `status.json`, what goes into the
//! status of the Gateway API's objects, `standing.json`, and of each request what the proxy's own code decides,
//! `decisions.txt`) side by side.
//! `UPDATE=1 cargo test -p pontoon --test golden` writes what comes out anew; read the difference.
#![allow(clippy::expect_used, clippy::panic, reason = "a broken helper is a failed test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use pontoon::compile::{self, Compiled};
use pontoon::model::Model;
use pontoon::model::instance::{Instance, InstanceStatus, RegistryView};
use pontoon::model::migration::{MigrationState, Stage};
use pontoon::objects::{self, ObjectName};
use pontoon_proxy::config::Store;
use pontoon_proxy::explain::{Request, explain};
use pontoon_xds::client::Update;
use pontoon_xds::{ResourceType, Snapshot, json};
use serde::Deserialize;
use tokio::time::Instant;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegisteredInstance {
    application: String,
    id: String,
    ip: String,
    port: Option<u16>,
    #[serde(default = "up")]
    status: InstanceStatus,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    held: bool,
}

fn up() -> InstanceStatus {
    InstanceStatus::Up
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    stage: Stage,
    #[serde(default)]
    weight: u16,
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

pub(crate) fn model(folder: &Path) -> Model {
    let loaded = objects::load(&folder.join("objects.yaml")).expect("objects.yaml");
    assert!(loaded.problems.is_empty(), "{}: {:?}", folder.display(), loaded.problems);
    let registered: Vec<RegisteredInstance> = read(&folder.join("registry.json"))
        .map(|text| serde_json::from_str(&text).expect("registry.json"))
        .unwrap_or_default();
    let mut registry = RegistryView::default();
    for instance in registered {
        let name: Arc<str> = instance.application.to_uppercase().into();
        let application = registry.applications.entry(name.clone()).or_default();
        let application = std::sync::Arc::make_mut(application);
        application.held |= instance.held;
        let id: Arc<str> = instance.id.into();
        let instance = Instance {
            id: id.clone(),
            application: name,
            vip: instance.application.into(),
            host_name: "localhost".into(),
            ip: instance.ip.into(),
            port: instance.port,
            secure_port: None,
            status: instance.status,
            metadata: instance.metadata,
        };
        application.instances.insert(id, Arc::new(instance));
    }
    let states: BTreeMap<String, State> = read(&folder.join("states.json"))
        .map(|text| serde_json::from_str(&text).expect("states.json"))
        .unwrap_or_default();
    let migrations = states.into_iter().map(|(name, State { stage, weight })| {
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        let initial = MigrationState::initial(&objects::migration::MigrationSpec::default());
        (ObjectName::new(namespace, name), MigrationState { stage, weight, revision: 1, ..initial })
    });
    Model {
        addresses: Arc::default(),
        objects: loaded.objects.clone(),
        registry: Arc::new(registry),
        migrations: Arc::new(migrations.collect()),
        in_pods: false,
    }
}

/// A version is a hash of the bytes, and those of a map are in an order of its own in each process: two keys in one
/// would give the same content another version on each replica.
#[test]
fn versions_are_the_same_each_time() {
    type Versions = BTreeMap<(String, ResourceType, Arc<str>), Arc<str>>;
    let versions = |compiled: &Compiled| -> Versions {
        let views = compiled.views.iter().flat_map(|(view, snapshot)| {
            ResourceType::ALL.map(|ty| (view.to_string(), ty, snapshot.resources(ty).values()))
        });
        let all = views.flat_map(|(view, ty, resources)| {
            resources.map(move |one| ((view.clone(), ty, one.name.clone()), one.version.clone()))
        });
        all.collect()
    };
    for folder in folders() {
        let model = model(&folder);
        let first = versions(&compile::compile(&model));
        // Each map has an order of its own within a process too: of two keys, ten agree once in 512 times.
        for _ in 1..10 {
            assert_eq!(versions(&compile::compile(&model)), first, "{}", folder.display());
        }
    }
}

/// The resources as JSON, by view and type.
fn rendered(compiled: &Compiled) -> String {
    let views = compiled.views.iter().map(|(view, snapshot)| {
        let types = ResourceType::ALL.map(|ty| {
            let resources = snapshot.resources(ty).values();
            let resources = resources.map(|resource| json::to_json(ty.type_url(), &resource.body));
            (ty.short_name().to_owned(), serde_json::Value::Array(resources.collect()))
        });
        (view.to_string(), types.into_iter().collect::<serde_json::Map<_, _>>().into())
    });
    let views = views.collect::<serde_json::Map<_, _>>();
    serde_json::to_string_pretty(&views).expect("JSON") + "\n"
}

fn status(compiled: &Compiled) -> String {
    let objects = compiled
        .statuses
        .iter()
        .map(|(object, conditions)| (object.to_string(), serde_json::json!(conditions)))
        .collect::<serde_json::Map<_, _>>();
    let migrations = compiled.migrations.iter().map(|(name, wire)| {
        let wire = serde_json::json!({ "target": wire.target, "legacy": wire.legacy, "routes": wire.routes });
        (name.to_string(), wire)
    });
    let migrations = migrations.collect::<serde_json::Map<_, _>>();
    let clusters = compiled.clusters.iter().collect::<BTreeMap<_, _>>();
    let all = serde_json::json!({ "objects": objects, "clusters": clusters, "migrations": migrations });
    serde_json::to_string_pretty(&all).expect("JSON") + "\n"
}

/// What is said in the `status` of the Gateway API's objects.
fn standing(compiled: &Compiled) -> String {
    fn by_name<'o, K: ToString + 'o, V: serde::Serialize + 'o>(
        of: impl IntoIterator<Item = (&'o K, &'o V)>,
    ) -> serde_json::Value {
        let of = of.into_iter().map(|(name, said)| (name.to_string(), serde_json::json!(said)));
        serde_json::Value::Object(of.collect())
    }
    let standings = &compiled.standings;
    let all = serde_json::json!({
        "classes": by_name(&standings.classes),
        "gateways": by_name(&standings.gateways),
        "listenerSets": by_name(&standings.listener_sets),
        "routes": by_name(&standings.routes),
        "policies": by_name(&standings.policies),
    });
    serde_json::to_string_pretty(&all).expect("JSON") + "\n"
}

/// One line a request: `METHOD URL | header: value | ...`, and what becomes of it.
fn decisions(folder: &Path, compiled: &Compiled) -> Option<String> {
    let requests = read(&folder.join("requests.txt"))?;
    let snapshot = compiled.views.iter().find(|(view, _)| compile::is_gateway(view)).expect("a gateway").1;
    let mut text = String::new();
    for line in requests.lines().filter(|line| !line.trim().is_empty()) {
        let mut parts = line.split(" | ");
        let (method, uri) = parts.next().and_then(|head| head.split_once(' ')).expect("METHOD URL");
        let headers = parts.map(|part| {
            let (name, value) = part.split_once(": ").expect("name: value");
            (name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"))
        });
        let request = Request {
            method: method.parse().expect("a method"),
            uri: uri.trim().parse().expect("a URL"),
            headers: headers.collect(),
            client: None,
        };
        let explained = explain(snapshot, &request);
        let route = explained.route.as_deref().unwrap_or("-");
        // The share of what cannot be used is a route of its own.
        let route = route.strip_suffix("/invalid").unwrap_or(route);
        let bucket = explained.bucket.filter(|_| !explained.random);
        let outcome = if explained.random { "one of several at random" } else { &explained.outcome };
        let bucket = bucket.map_or(String::new(), |bucket| format!(" (bucket {bucket})"));
        writeln!(text, "{line}\n    {route}: {outcome}{bucket}").expect("text");
    }
    Some(text)
}

/// A proxy takes every resource, and waits for nothing but names that it has to look up.
#[test]
fn the_proxy_takes_it_all_at_once() {
    for folder in folders() {
        for snapshot in compile::compile(&model(&folder)).views.values() {
            let mut store = Store::default();
            // A proxy asks for what others name once they are here.
            let order = [
                ResourceType::Cluster,
                ResourceType::Listener,
                ResourceType::Secret,
                ResourceType::Endpoint,
                ResourceType::Route,
            ];
            for ty in order {
                let changed = snapshot.resources(ty).values().cloned().collect();
                let update = Update { ty, changed, removed: Vec::new() };
                assert_eq!(store.apply(update, Instant::now()), [], "{}", folder.display());
            }
            if store.dns_clusters().is_empty() {
                assert_eq!(store.waiting_for(), Vec::<String>::new(), "{}", folder.display());
            }
        }
    }
}

pub(crate) fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders =
        std::fs::read_dir(root).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut folders = folders.by_ref().filter(|path| path.is_dir()).collect::<Vec<_>>();
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

#[test]
fn what_goes_in_gives_what_comes_out() {
    let mut different = Vec::new();
    for folder in folders() {
        let compiled = compile::compile(&model(&folder));
        let mut all = vec![
            ("xds.json", rendered(&compiled)),
            ("status.json", status(&compiled)),
            ("standing.json", standing(&compiled)),
        ];
        all.extend(decisions(&folder, &compiled).map(|text| ("decisions.txt", text)));
        for (name, is) in all {
            let path = folder.join(name);
            if read(&path).as_deref() == Some(&is) {
                continue;
            }
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&path, &is).expect("written");
            } else {
                let was = read(&path).unwrap_or_default();
                let line = was.lines().zip(is.lines()).take_while(|(was, is)| was == is).count();
                let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
                different.push(format!(
                    "{}:{}: was {:?}, is {:?}",
                    path.display(),
                    line + 1,
                    at(&was),
                    at(&is)
                ));
            }
        }
    }
    assert!(different.is_empty(), "{}\nUPDATE=1 writes them anew", different.join("\n"));
}

fn versions(snapshot: &Snapshot) -> Vec<(ResourceType, String, String)> {
    let of =
        |ty| snapshot.resources(ty).values().map(move |r| (ty, r.name.to_string(), r.version.to_string()));
    ResourceType::ALL.into_iter().flat_map(of).collect()
}

/// The memo gives what compiling from nothing gives, whatever was compiled before.
#[test]
fn one_compiler_over_all_models_gives_what_a_fresh_one_gives() {
    let models = folders().iter().map(|folder| model(folder)).collect::<Vec<_>>();
    let mut compiler = compile::Compiler::default();
    for model in models.iter().chain(models.iter().rev()) {
        let (warm, fresh) = (compiler.compile(model), compile::compile(model));
        assert_eq!(warm.views.keys().collect::<Vec<_>>(), fresh.views.keys().collect::<Vec<_>>());
        for (name, snapshot) in &fresh.views {
            assert_eq!(versions(&warm.views[name]), versions(snapshot), "{name}");
        }
        assert_eq!((&warm.statuses, &warm.clusters), (&fresh.statuses, &fresh.clusters));
        assert_eq!(warm.standings, fresh.standings);
        assert_eq!(warm.migrations, fresh.migrations);
    }
}
