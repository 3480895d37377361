use std::convert::Infallible;

use http::{Method, Request, Response};
use imbl::OrdMap;
use kube::client::Body;
use pontoon_xds::server::{Options, Server};
use serde_json::json;

use super::*;
use crate::migration::stage::State;
use crate::objects::Objects;

/// An API server with the migration `shop/orders` that answers its n-th write as `answers` says: with a status, or never.
fn api_server(answers: &'static [Option<u16>], state: Option<State>) -> kube::Client {
    let status = state.map_or_else(|| json!({}), |state| json!({ "state": state }));
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    kube::Client::new(
        tower::service_fn(move |request: Request<Body>| {
            let (asked, state) = (asked.clone(), status.clone());
            async move {
                let mut status = 200;
                if request.method() != Method::GET {
                    let n = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    match answers.get(n).copied().unwrap_or(Some(200)) {
                        Some(answer) => status = answer,
                        None => std::future::pending().await,
                    }
                }
                let body = match status {
                    200 => json!({
                        "apiVersion": "pontoon.dev/v1alpha1", "kind": "Migration",
                        "metadata": { "name": "orders", "namespace": "shop", "uid": "u-1", "resourceVersion": "1" },
                        "status": state,
                    }),
                    code => {
                        json!({ "kind": "Status", "status": "Failure", "code": code, "reason": "InternalError" })
                    }
                };
                let body = Body::from(body.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        }),
        "default",
    )
}

struct Case {
    world: watch::Receiver<Arc<World>>,
    name: ObjectName,
    began: Instant,
    // What the bridge ends without.
    _sources: (watch::Sender<Arc<RegistryView>>, watch::Sender<Loaded>, mpsc::Sender<Command>),
}

impl Case {
    /// With a migration that is declared as `observe`, and not begun.
    fn start(answers: &'static [Option<u16>], state: Option<State>) -> Case {
        let name = ObjectName::new("shop", "orders");
        let migration = serde_json::from_value(json!({
            "apiVersion": "pontoon.dev/v1alpha1", "kind": "Migration",
            "metadata": { "name": "orders", "namespace": "shop", "uid": "u-1" },
            "spec": {
                "service": "orders", "stage": "observe",
                "legacy": { "eureka": { "application": "ORDERS" } }, "target": { "pool": "new" },
            },
        }));
        let objects = Objects {
            migrations: OrdMap::unit(name.clone(), Arc::new(migration.unwrap())),
            ..Objects::default()
        };
        let kept = state.clone().map(|state| OrdMap::unit(name.clone(), ("u-1".into(), state)));
        let mut folder = Loaded::default();
        (folder.objects, folder.states) = (Arc::new(objects), Some(kept.unwrap_or_default()));
        let (registry, registry_out) = watch::channel(Arc::default());
        let (loaded, folder) = watch::channel(folder);
        let (commands, commands_out) = mpsc::channel(1);
        let sources = Sources {
            registry: registry_out,
            services: None,
            leads: None,
            aside: None,
            folder,
            in_pods: false,
            commands: commands_out,
        };
        let assigner = assigner();
        let keeper =
            Keeper::in_kubernetes(api_server(answers, state.clone()), watch::channel(OrdMap::new()).1);
        let server = Server::new(Options::new(|_| Ok(String::new())));
        let (world, world_out) = watch::channel(Arc::default());
        let mut bridge = Bridge::new(sources, keeper, Book::default(), assigner, Proxies::new(server), world);
        let began = Instant::now();
        tokio::spawn(async move {
            bridge.refresh().await;
            bridge.run(CancellationToken::new()).await;
        });
        Case { world: world_out, name, began, _sources: (registry, loaded, commands) }
    }

    async fn until(&mut self, holds: impl Fn(&World, &ObjectName) -> bool) -> Duration {
        let name = self.name.clone();
        self.world.wait_for(|world| holds(world, &name)).await.unwrap();
        self.began.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_tried_again_by_itself() {
    let mut case = Case::start(&[Some(500), Some(500)], None);
    let waited = case.until(|world, name| world.book.state(name).is_some()).await;
    assert_eq!(waited.as_secs(), (RETRY + RETRY * 2).as_secs());
}

#[tokio::test(start_paused = true)]
async fn endpoints_do_not_wait_for_what_is_written() {
    let state = json!({
        "revision": 3, "position": { "stage": "canary", "weight": 0 }, "previous": null, "actor": "jo",
        "reason": null, "at": "2026-01-01T00:00:00Z", "declared": { "stage": "canary", "weight": 0 },
    });
    let state: State = serde_json::from_value(state).unwrap();
    let mut case = Case::start(&[None], Some(state));
    let waited = case.until(|world, name| world.model.objects.migrations.contains_key(name)).await;
    assert_eq!(waited, Duration::ZERO);
    // And then it is.
    let waited =
        case.until(|world, name| world.book.state(name).is_some_and(|state| state.revision > 3)).await;
    assert!(waited > Duration::from_secs(3), "{waited:?}");
}

fn assigner() -> Assigner {
    let backend = redb::backends::InMemoryBackend::new();
    let database = redb::Database::builder().create_with_backend(backend).unwrap();
    Assigner::new(Slots::default(), Store::new(Arc::new(database)))
}

#[tokio::test]
async fn addresses_are_where_the_replica_that_leads_has_them() {
    let mut assigner = assigner();
    let services = Arc::new(BTreeSet::from([Arc::from("shop/orders")]));
    assert!(assigner.assign(&services).await);
    let by_name = assigner.in_model.of("shop/orders");
    let (slots, aside) = (assigner.aside().borrow().slots, BTreeMap::from([("shop/orders".to_owned(), 7)]));
    let theirs = Aside { slots, services: aside };
    assigner.follow(&theirs).await;
    assert!(assigner.assign(&services).await);
    assert_ne!(assigner.in_model.of("shop/orders"), by_name);
    assert_eq!(**assigner.aside().borrow(), theirs, "and it says so itself when it leads");
    assigner.follow(&Aside { slots, ..Aside::default() }).await;
    assert!(assigner.assign(&services).await);
    assert_eq!(assigner.in_model.of("shop/orders"), by_name, "nobody is in its place there");
}
