//! Objects into the API server and out of it, many at a time.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use pontoon_e2e::wait::until;
use serde_json::Value;
use tokio::time::Instant;

use super::PATIENCE;

/// Requests at a time: more only wait in the API server.
const AT_ONCE: usize = 16;
const FIELD_MANAGER: &str = "pontoon-bench";

/// The kinds that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Gateway,
    Route,
    Service,
    Slice,
}

impl Kind {
    fn resource(self) -> ApiResource {
        let (group, kind, plural) = match self {
            Kind::Gateway => ("gateway.networking.k8s.io", "Gateway", "gateways"),
            Kind::Route => ("gateway.networking.k8s.io", "HTTPRoute", "httproutes"),
            Kind::Service => ("", "Service", "services"),
            Kind::Slice => ("discovery.k8s.io", "EndpointSlice", "endpointslices"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
    }
}

/// The objects of one namespace.
#[derive(Clone)]
pub(super) struct Store {
    client: Client,
    namespace: String,
}

impl Store {
    /// Of the cluster that `KUBECONFIG` says.
    pub(super) async fn connect(namespace: &str) -> anyhow::Result<Store> {
        let client = Client::try_default().await.context("no API server")?;
        Ok(Store { client, namespace: namespace.to_owned() })
    }

    pub(super) async fn version(&self) -> anyhow::Result<String> {
        Ok(self.client.apiserver_version().await?.git_version)
    }

    pub(super) fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &kind.resource())
    }

    /// Makes one that is not there.
    pub(super) async fn create(&self, kind: Kind, object: Value) -> anyhow::Result<()> {
        let object: DynamicObject = serde_json::from_value(object)?;
        let created = self.api(kind).create(&PostParams::default(), &object).await;
        created.map(drop).with_context(|| format!("{kind:?} {:?}", object.metadata.name))
    }

    /// Makes all of them; gives how long that took.
    pub(super) async fn create_all(&self, kind: Kind, objects: Vec<Value>) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let creating = stream::iter(objects.into_iter().map(|object| Ok(self.create(kind, object))));
        creating.try_buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(began.elapsed())
    }

    /// Makes it say this, by server-side apply.
    pub(super) async fn apply(&self, kind: Kind, object: &Value) -> anyhow::Result<()> {
        let name = object["metadata"]["name"].as_str().context("no name")?;
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self.api(kind).patch(name, &parameters, &Patch::Apply(object)).await;
        applied.map(drop).with_context(|| format!("{kind:?} {name}"))
    }

    /// Takes all of these away, one by one; gives how long that took.
    pub(super) async fn delete_all(&self, kind: Kind, names: Vec<String>) -> anyhow::Result<Duration> {
        let (began, api) = (Instant::now(), self.api(kind));
        let deleting = stream::iter(names).map(|name| {
            let api = api.clone();
            async move { api.delete(&name, &DeleteParams::default()).await.map(drop).context(name) }
        });
        deleting.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(began.elapsed())
    }

    /// Takes away whatever there is, and waits until it has gone.
    pub(super) async fn clear(&self) -> anyhow::Result<()> {
        for kind in [Kind::Route, Kind::Slice, Kind::Service, Kind::Gateway] {
            let api = self.api(kind);
            until(&format!("{kind:?} to go"), PATIENCE, async || {
                let _ = api.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
                let left = api.list_metadata(&ListParams::default().limit(1)).await?.items.len();
                ensure!(left == 0, "some are left");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
