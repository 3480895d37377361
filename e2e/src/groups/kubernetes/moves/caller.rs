//! A client in a pod with a sidecar: curl, asked for requests by `kubectl exec`. It knows `inventory` by its name alone.

use std::cell::Cell;

use pontoon_e2e::kubernetes::{Cluster, Namespace, PATIENCE, TOOLBOX};
use pontoon_e2e::load::{Answer, Sample};
use pontoon_e2e::wait::until;
use tokio::time::Instant;

use super::USERS;
use super::objects::USER;

/// Where it runs.
pub(super) struct Caller {
    cluster: Cluster,
    namespace: String,
    rounds: Cell<u32>,
}

impl Caller {
    /// Starts it, and waits until its sidecar has reached somebody.
    pub(super) async fn start(cluster: &Cluster, namespace: &Namespace) -> anyhow::Result<Caller> {
        let pod = format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: caller, labels: {{pontoon.dev/inject: enabled}}}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: caller
    image: {TOOLBOX}
    command: [/bin/sh, -c, 'trap exit TERM; while :; do sleep 1; done']
"
        );
        namespace.apply(&pod).await?;
        namespace.wait_for("condition=Ready", &["pod/caller"]).await?;
        let (cluster, namespace) = (cluster.clone(), namespace.name.clone());
        let caller = Caller { cluster, namespace, rounds: Cell::new(0) };
        until("the sidecar to reach inventory", PATIENCE, async || {
            let seen = caller.asks(1).await?;
            pontoon_e2e::load::none_failed(&seen)
        })
        .await?;
        Ok(caller)
    }

    /// So many requests of as many users, one after another.
    pub(super) async fn asks(&self, requests: usize) -> anyhow::Result<Vec<Sample>> {
        self.asks_for(&format!("[ $i -lt {requests} ]")).await
    }

    /// Requests for as long as something else takes.
    pub(super) async fn asks_while<T>(
        &self,
        what: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<(T, Vec<Sample>)> {
        self.rounds.set(self.rounds.get() + 1);
        let stop = format!("/tmp/stop-{}", self.rounds.get());
        let done = async {
            let done = what.await;
            self.runs(&format!(": > {stop}")).await?;
            done
        };
        let goes_on = format!("[ ! -e {stop} ]");
        let (done, seen) = tokio::join!(done, self.asks_for(&goes_on));
        Ok((done?, seen?))
    }

    async fn asks_for(&self, while_: &str) -> anyhow::Result<Vec<Sample>> {
        let script = format!(
            "i=0; while {while_}; do u=user-$((i % {USERS})); i=$((i + 1)); \
             echo \"$u $(curl -sS -m 10 -w ' %{{http_code}}' -H \"{USER}: $u\" http://inventory/stock/1 2>&1)\"; \
             sleep 0.03; done"
        );
        let said = self.runs(&script).await?;
        // What curl says of a failure may have lines of its own.
        let lines = said.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.filter(|(user, _)| user.starts_with("user-")).map(sample).collect())
    }

    async fn runs(&self, script: &str) -> anyhow::Result<String> {
        let exec = ["-n", &self.namespace, "exec", "caller", "-c", "caller", "--", "/bin/sh", "-c", script];
        self.cluster.kubectl(&exec).await
    }
}

fn sample((user, said): (&str, &str)) -> Sample {
    let answer = said.strip_suffix(" 200").and_then(|body| serde_json::from_str::<Answer>(body).ok());
    let now = Instant::now();
    Sample { sent: now, ended: now, user: user.to_owned(), outcome: answer.ok_or_else(|| said.to_owned()) }
}
