//! A real cluster: what runs in its pods is judged by what clients see.

mod anywhere;
mod gateways;
mod ingress;
mod inject;
mod install;
mod moves;
pub(super) mod plane;
mod side_by_side;
mod smoke;
mod validate;

use anyhow::ensure;
use pontoon_e2e::kubernetes::Cluster;
use pontoon_e2e::report::Report;

/// What a case needs of a cluster.
#[derive(Debug, Clone, Copy)]
enum Needs {
    /// That it is reached.
    ApiServer,
    /// That pods and Services are reached from here too, and nodes have the image `hello`.
    Pods,
    /// All that is ours: images, addresses of the machine, programs that may be killed.
    Ours,
}

impl Needs {
    /// Why a case does not run elsewhere.
    fn why(self) -> &'static str {
        match self {
            Needs::ApiServer => "",
            Needs::Pods => {
                "pods are to be reached from here, with the image pontoon.test/hello:1; say its name if so"
            }
            Needs::Ours => "it needs a cluster that cargo xtask has started",
        }
    }
}

/// Runs the group. True: all cases passed.
pub(crate) async fn run(arguments: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("kubernetes")?;
    let folder = report.folder().to_owned();
    let cluster = Cluster::from_environment()?;
    let is_named = |name: &str| arguments.iter().any(|wanted| name.contains(wanted.as_str()));
    let is_asked_for = |name: &str| arguments.is_empty() || is_named(name);
    macro_rules! case {
        ($name:literal, $case:expr) => {
            case!($name, Needs::Ours, $case)
        };
        ($name:literal, $needs:expr, $case:expr) => {
            if is_asked_for($name) {
                match ($needs, cluster.is_ours()) {
                    (_, true) | (Needs::ApiServer, false) => drop(report.case($name, $case).await),
                    (Needs::Pods, false) if is_named($name) => drop(report.case($name, $case).await),
                    (Needs::Pods | Needs::Ours, false) => report.skip($name, $needs.why()),
                }
            }
        };
    }
    case!(
        "cluster: the custom resources of the Gateway API are known",
        Needs::ApiServer,
        smoke::gateway_api(&cluster)
    );
    case!(
        "smoke: beside any cluster a service moves, and the leader is killed",
        Needs::ApiServer,
        anywhere::moved(&cluster, &folder)
    );
    case!("cluster: pods, Services and names work", Needs::Pods, smoke::pods(&cluster));
    case!("cluster: its API server stops and comes back", smoke::api_server(&cluster));
    case!("plane: a route to a Service follows its pods, and says so", plane::route(&cluster, &folder));
    case!("plane: a Service that is a DNS name", plane::external(&cluster, &folder));
    case!("plane: a service moves from Eureka onto pods", plane::migration(&cluster, &folder));
    case!("plane: a leader that is killed is followed", plane::failover(&cluster, &folder));
    case!("gateways: made, served, changed and gone", gateways::lifecycle(&cluster, &folder));
    case!("gateways: two installations with names of their own", side_by_side::named(&cluster, &folder));
    case!("ingress: with TLS, a rewrite, a canary, limits and auth-url", ingress::served(&cluster, &folder));
    let chart = install::Chart::new(&cluster, &folder)?;
    case!("install: by the chart, checked before, after and with one thing broken", chart.installed());
    case!("install: two replicas know what is registered with one", chart.registered());
    if is_asked_for(moves::NAME) && !cluster.is_ours() {
        report.skip(moves::NAME, Needs::Ours.why());
    } else if is_asked_for(moves::NAME) {
        Box::pin(moves::cases(&mut report, &cluster, &chart, &folder)).await;
    }
    case!("install: an upgrade under load", chart.upgraded());
    case!("install: the replica that leads is killed under load", chart.leader_killed());
    case!("install: all pods are evicted under load, as by a drain", chart.drained());
    let lab = inject::Lab::new(&cluster);
    macro_rules! injected {
        ($name:literal, $case:expr) => {
            case!($name, async {
                chart.ensure(install::PLAIN).await?;
                $case.await
            });
        };
    }
    injected!("inject: by the webhook, what comes in and goes out passes the sidecar", lab.webhook());
    injected!("inject: offline gives the same", lab.offline(&folder));
    injected!("inject: a pod that names another namespace is told nothing", lab.namespaces());
    injected!("inject: a Job completes, and its init containers are served", lab.job());
    injected!("inject: a CronJob's run by its schedule completes", lab.cron_job());
    injected!("inject: a TCP probe sees the application and not the sidecar", lab.tcp_probes());
    injected!("inject: a gRPC probe sees the application and not the sidecar", lab.grpc_probes());
    injected!("inject: probes of all kinds hold while a pod drains", lab.drains());
    injected!("inject: without privileges, at the level restricted", lab.restricted());
    injected!("inject: a rolling update under load", lab.rolls());
    injected!("inject: a container that its probe restarts", lab.restarts());
    injected!("inject: pods come back while the webhook is down", lab.down());
    injected!("inject: the webhook's certificate is renewed", lab.certificate());
    injected!(
        "validate: what could not be used is refused, and stands in the status while the webhook is down",
        validate::refused(&cluster, &folder)
    );
    case!("install: uninstalled, nothing is left", chart.uninstalled());
    // The last one: the API server that comes back is this case's own, and goes with it.
    case!("plane: an API server that is killed and comes back", plane::outage(&cluster, &folder));
    ensure!(!report.is_empty(), "no case's name has one of {arguments:?} in it");
    if !cluster.is_ours() {
        let left = async { Ok(format!("{} taken away", cluster.leave().await?)) };
        report.case("what was made in the cluster has gone", left).await;
    }
    report.finish()
}
