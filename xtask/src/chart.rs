//! `cargo xtask manifests`: the plain manifests of `deploy/kubernetes`, made of the Helm chart, so that nothing is written
//! twice; and the check that they are, that the chart is a good one, and that it refuses what it cannot do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::step::Steps;
use crate::tools::Tools;

/// As the guide has both.
const RELEASE: [&str; 2] = ["pontoon", "--namespace=pontoon-system"];
/// What a plain manifest has beside what Helm installs, and that it is nothing to Helm.
const PLAIN: [&str; 4] = [
    "--set=namespace.create=true",
    "--set=crds.keep=false",
    "--api-versions=gateway.networking.k8s.io/v1/GatewayClass",
    "--skip-tests",
];
const GUIDE: &str = "docs/guide/install.md";
/// A second installation in a cluster, as the guide has it.
const SECOND: [&str; 2] = [
    "--set=gateways.controllerName=example.com/gateways,gateways.class.name=other,injector.enabled=false,\
     validator.enabled=false,crds.install=false",
    "--api-versions=gateway.networking.k8s.io/v1/GatewayClass",
];
/// The same with all that it may have.
const SECOND_WHOLE: [&str; 2] = [
    "--set=gateways.controllerName=example.com/gateways,gateways.class.name=other,crds.install=false",
    "--api-versions=gateway.networking.k8s.io/v1/GatewayClass",
];
/// What has to be refused, and a word of why.
const REFUSED: [(&[&str], &str); 11] = [
    (&["--set=replicas=0"], "replicas"),
    (&["--set=persistence.enabled=true"], "with persistence.enabled it has to be 1"),
    (&["--set=replica=3"], "replica"),
    (&["--set=images.pontoon.tag=a b"], "tag"),
    (&["--set=gateways.serviceType=ExternalName"], "serviceType"),
    (&["--set=gateways.controllerName=example.com"], "controllerName"),
    (&["--set=injector.failurePolicy=Maybe"], "failurePolicy"),
    (&["--set=injector.replicas=0"], "minimum"),
    (&["--set=validator.failurePolicy=Fail"], "failurePolicy"),
    (&["--set-json=xdsTenants=[{\"name\":\"vms\",\"namespaces\":[\"shop\"]}]"], "networks"),
    (&["--set-json=topologySpread=[{\"maxSkew\":1}]"], "topologyKey"),
];
/// What has to be taken, and what is in it then, or, after a `!`, is not.
const TAKEN: [(&[&str], &[&str]); 15] = [
    (
        &["--set=service.type=LoadBalancer,service.externalTrafficPolicy=Local"],
        &[
            "externalTrafficPolicy: Local",
            "!loadBalancerSourceRanges",
            "value: \"127.0.0.1:8761\"",
            "port: metrics",
        ],
    ),
    (
        &[
            "--set-json=service.loadBalancerSourceRanges=[\"10.0.0.0/8\"]",
            "--set-json=networkPolicy.metricsFrom=[]",
        ],
        &["- 10.0.0.0/8", "!externalTrafficPolicy", "!- port: metrics"],
    ),
    (
        &["--set=eureka.enabled=true,persistence.enabled=true,replicas=1"],
        &[
            "kind: PersistentVolumeClaim",
            "type: Recreate",
            "targetPort: eureka",
            "!PONTOON_EUREKA_PEERS",
            "!0.0.0.0:",
        ],
    ),
    (
        &["--set=eureka.enabled=true"],
        &["value: http://pontoon-peers.pontoon-system.svc:8761/eureka/", "!PersistentVolumeClaim"],
    ),
    (
        &["--set=injector.enabled=false"],
        &[
            "!kind: MutatingWebhookConfiguration",
            "kind: ValidatingWebhookConfiguration",
            "key: gateway.networking.k8s.io/gateway-name",
        ],
    ),
    (
        &["--set=validator.enabled=false"],
        &["kind: MutatingWebhookConfiguration", "!kind: ValidatingWebhookConfiguration"],
    ),
    (&["--set=injector.enabled=false,validator.enabled=false"], &["!name: pontoon-webhook"]),
    (
        &[
            "--set=gateways.controllerName=example.com/Gate_ways",
            "--api-versions=gateway.networking.k8s.io/v1/GatewayClass",
        ],
        &[
            "controllerName: example.com/Gate_ways",
            "resourceNames: [pontoon-example.com-gate-ways]",
            "name: pontoon-gateways-pontoon-system",
            "value: \"example.com/Gate_ways\"",
            "resourceNames: [pontoon-webhook-pontoon-system]",
            "value: pontoon-webhook-pontoon-system",
        ],
    ),
    (&SECOND, &["!name: pontoon-webhook", "name: pontoon-check-pontoon-system"]),
    (&["--set=gateways.enabled=false"], &["!PONTOON_GATEWAY_IMAGE", "!name: pontoon-gateways"]),
    (&["--set=networkPolicy.enabled=false,disruptionBudget.enabled=false"], &["!NetworkPolicy", "!Budget"]),
    (
        &[
            "--set-json=xdsTenants=[{\"name\":\"vms\",\"namespaces\":[\"shop\"],\"networks\":[\"10.1.0.0/16\"]}]",
        ],
        &[
            "    tenants:\n    - name: vms",
            "- 10.1.0.0/16",
            "value: /etc/pontoon/tenants.yaml",
            "configMap: {name: pontoon-xds-tenants}",
            "pontoon.dev/xds-tenants: \"",
        ],
    ),
    (&["--set=crds.install=false"], &["!CustomResourceDefinition"]),
    (
        &["--set=images.pullPolicy=Never"],
        &[
            "PONTOON_GATEWAY_IMAGE_PULL_POLICY\n          value: Never",
            "PONTOON_PROXY_IMAGE_PULL_POLICY\n          value: Never",
            "!IfNotPresent",
        ],
    ),
    (
        &["--set-json=networkPolicy.egress=[{\"ports\":[{\"port\":443}]}]"],
        &["policyTypes: [Ingress, Egress]", "- port: 443"],
    ),
];

struct Chart<'w> {
    helm: PathBuf,
    workspace: &'w Path,
}

/// Writes the manifests.
pub(crate) fn write(workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<()> {
    let chart = Chart { helm: tools.helm(steps)?, workspace };
    for (path, text) in chart.manifests()? {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Fails with all that is wrong.
pub(crate) fn check(workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<()> {
    let chart = Chart { helm: tools.helm(steps)?, workspace };
    let mut wrong = Vec::new();
    for (path, is) in chart.manifests()? {
        if std::fs::read_to_string(&path).unwrap_or_default() != is {
            wrong.push(format!("{} is not what the chart renders: cargo xtask manifests", path.display()));
        }
    }
    if let Err(error) = chart.helm(&["lint", "--strict", "--quiet"], &RELEASE[1..]) {
        wrong.push(format!("{error:#}"));
    }
    for (values, word) in REFUSED {
        match chart.render(values) {
            Ok(_) => wrong.push(format!("{values:?} is not refused")),
            Err(error) if format!("{error:#}").contains(word) => {}
            Err(error) => wrong.push(format!("{values:?} is refused without {word:?}: {error:#}")),
        }
    }
    for (values, parts) in TAKEN {
        match chart.render(values) {
            Ok(text) => wrong.extend(
                lacking(&text, parts).map(|part| format!("{values:?}: {part:?} is not as it should be")),
            ),
            Err(error) => wrong.push(format!("{values:?} is refused: {error:#}")),
        }
    }
    let guide =
        std::fs::read_to_string(workspace.join(GUIDE)).with_context(|| format!("cannot read {GUIDE}"))?;
    if !guide.contains(&SECOND[0].replace("--set=", "--set ")) {
        wrong.push(format!("{GUIDE} installs a second one by other values than {}", SECOND[0]));
    }
    let first = of_cluster(&chart.render(&[PLAIN[2]])?);
    for values in [&SECOND, &SECOND_WHOLE] {
        let second = of_cluster(&chart.render(values)?);
        let shared = second.iter().filter(|object| first.contains(object));
        wrong.extend(shared.map(|object| format!("{values:?}: the first installation has {object}, too")));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// Those that a text should have and has not, or the other way around.
fn lacking<'p>(text: &str, parts: &'p [&str]) -> impl Iterator<Item = &'p str> {
    let is_so = |part: &str| match part.strip_prefix('!') {
        Some(part) => !text.contains(part),
        None => text.contains(part),
    };
    let wrong: Vec<&str> = parts.iter().copied().filter(|part| !is_so(part)).collect();
    wrong.into_iter()
}

/// Kind and name of each object that is in no namespace.
fn of_cluster(rendered: &str) -> Vec<String> {
    let line = |document: &str, start: &str| {
        document.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default().to_owned()
    };
    let named = rendered.split("---\n").filter_map(|document| {
        let (kind, name) = (line(document, "kind: "), line(document, "  name: "));
        let is_in_one = document.contains(&format!("  name: {name}\n  namespace: "));
        (!kind.is_empty() && !is_in_one).then(|| format!("{kind} {name}"))
    });
    named.collect()
}

impl Chart<'_> {
    fn path(&self) -> PathBuf {
        folder(self.workspace)
    }

    /// What a Helm command prints about the chart.
    fn helm(&self, command: &[&str], flags: &[&str]) -> anyhow::Result<String> {
        let mut helm = Command::new(&self.helm);
        // Nothing of the user's own has a say.
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(variable, self.workspace.join("target/helm"));
        }
        helm.env("KUBECONFIG", "/dev/null").args(command).arg(self.path()).args(flags);
        let output = helm.output().context("helm does not start")?;
        if !output.status.success() {
            let said =
                [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            bail!("helm {}: {}", command.join(" "), said.concat().trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn render(&self, values: &[&str]) -> anyhow::Result<String> {
        self.helm(&["template", RELEASE[0]], &[&RELEASE[1..], values].concat())
    }

    fn manifests(&self) -> anyhow::Result<Vec<(PathBuf, String)>> {
        let folder = self.workspace.join("deploy/kubernetes");
        let [crds, rest] = split(&self.render(&PLAIN)?);
        Ok(vec![(folder.join("crds.yaml"), crds), (folder.join("pontoon.yaml"), rest)])
    }
}

/// Where the chart is.
pub(crate) fn folder(workspace: &Path) -> PathBuf {
    workspace.join("deploy/helm/pontoon")
}

/// The definitions apart from all else, which may be there only after them.
fn split(rendered: &str) -> [String; 2] {
    const HEAD: &str = "# Made of deploy/helm/pontoon by `cargo xtask manifests`.\n";
    let mut parts = [HEAD.to_owned(), HEAD.to_owned()];
    for document in rendered.split("---\n").filter(|document| !document.trim().is_empty()) {
        let is_definition = document.contains("\nkind: CustomResourceDefinition\n");
        let part = &mut parts[usize::from(!is_definition)];
        part.push_str("---\n");
        let lines = document.trim_end().lines().filter(|line| !line.starts_with("# Source: "));
        for line in lines {
            part.push_str(line.trim_end());
            part.push('\n');
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_apart() {
        let rendered = "---\n# Source: pontoon/templates/crds.yaml\napiVersion: x\nkind: CustomResourceDefinition\n---\n\
                        # Source: pontoon/templates/x.yaml\n# Why.\nkind: Service \n";
        let [crds, rest] = split(rendered);
        assert!(
            crds.ends_with("manifests`.\n---\napiVersion: x\nkind: CustomResourceDefinition\n"),
            "{crds}"
        );
        assert!(rest.ends_with("manifests`.\n---\n# Why.\nkind: Service\n"), "{rest}");
    }

    #[test]
    fn the_chart_is_of_the_workspaces_version() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = std::fs::read_to_string(folder(&workspace).join("Chart.yaml")).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        for field in ["version", "appVersion"] {
            assert!(text.lines().any(|line| line == format!("{field}: {version}")), "{field}");
        }
    }

    #[test]
    fn an_object_of_the_clusters_is_in_no_namespace() {
        let rendered = "---\nkind: Service\nmetadata:\n  name: a\n  namespace: x\n---\nkind: ClusterRoleBinding\n\
                        metadata:\n  name: b\nsubjects:\n- kind: ServiceAccount\n  name: c\n  namespace: x\n";
        assert_eq!(of_cluster(rendered), ["ClusterRoleBinding b"]);
    }

    #[test]
    fn a_part_is_there_or_is_not() {
        let lacks = |parts: &'static [&str]| lacking("kind: Service\n", parts).collect::<Vec<_>>();
        assert_eq!(lacks(&["kind: Service", "!Deployment"]), Vec::<&str>::new());
        assert_eq!(lacks(&["Deployment", "!Service"]), ["Deployment", "!Service"]);
    }
}
